"""Items that have no room in the rows or in the context of a run are refused before anything is made."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from command import command
from small import tone, wav
from transfusion.config import ConfigError
from transfusion.data.document import Document, Media, Text
from transfusion.modality import Modality
from transfusion.recipes import RECIPES, find
from transfusion.run.record import Run
from transfusion.run.room import check_room

SQUARES = Modality("image", channels=1, shape=(8, 8), patch=(2, 2), largest=(16, 16))


def run_of(modality: Modality, row: int, context: int) -> Run:
    run = find("pictures").run()
    model = replace(run.model, modalities=(modality,), context_length=context)
    return replace(run, model=model, packing=replace(run.packing, row_length=row))


def test_every_recipe_has_room_for_its_own_items() -> None:
    for name in RECIPES:
        check_room(find(name).run(), ())


@pytest.mark.parametrize("samples", [96000, 81920])
def test_a_sound_that_is_longer_than_the_context(samples: int, tmp_path: Path, monkeypatch, capfd) -> None:
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    for i in range(12):
        Path(f"data/{i}.wav").write_bytes(wav(tone(300 + i, seconds=0.1)))
    assert command(f"train speech --data data --out run --model.modalities.0.shape {samples}") == 2
    said = " ".join("".join(capfd.readouterr()).split())
    assert f"an item of sound ({samples} samples) takes {samples // 256} slots" in said
    length = 512 if samples == 96000 else 384
    assert f"give --packing.row-length 1024 --model.context-length {length}" in said and not Path("run").exists()


def test_the_options_that_it_names_help() -> None:
    large = replace(SQUARES, shape=(64, 64), largest=None)
    with pytest.raises(ConfigError, match=r"--packing\.row-length 1152 --model\.context-length 1152"):
        check_room(run_of(large, 256, 512), ())
    check_room(run_of(large, 1152, 1152), ())
    with pytest.raises(ConfigError, match=r"--packing\.row-length 1152 --model\.context-length 2000"):
        check_room(run_of(large, 256, 2000), ())


def test_where_sizes_vary_the_largest_of_the_documents_counts() -> None:
    def of(side: int) -> list[Document]:
        return [Document((Text("a"), Media(torch.zeros(1, 4, side))))]

    run = run_of(SQUARES, 40, 40)
    check_room(run, of(8))
    check_room(run, of(99))  # which the modality forbids, and the loader says
    large = [Document((Text("a"), Media(torch.zeros(1, 16, 16))))]
    with pytest.raises(ConfigError, match=r"image \(up to 16 x 16\) takes 64 slots, 78 tokens"):
        check_room(run, large)
