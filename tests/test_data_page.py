"""docs/data.md: its commands run as they stand, on small data of the shape that they name, with fewer steps."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from command import SHORT
from small import folder, png, tone, wav
from transfusion.cli import main
from transfusion.data.media import to_image
from transfusion.data.sources import actions
from transfusion.recipes import RECIPES

PAGE = (Path(__file__).parent.parent / "docs" / "data.md").read_text(encoding="utf-8")
LINES = [line for block in re.findall(r"```bash\n(.+?)```", PAGE, re.S) for line in block.splitlines()]
DRAWN = "--sampler.num-steps 2 --device cpu --dtype fp32"


def lines_of(path: Path, *documents: list) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(json.dumps({"segments": segments}) for segments in documents))


def make() -> None:
    """The data that the page names."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder(Path("photos"), 12)
    for i in range(12):
        png(Path(f"photos/{i:03d}.png"), i, (96 if i % 2 else 64, 64))
        png(Path(f"bare/{i}.png"), i)
        png(Path(f"stories/{i}.png"), i, (16, 16))
        png(Path(f"edits/{i}.png"), i, (16, 16))
    images = [{"bytes": Path(f"bare/{i}.png").read_bytes()} for i in range(12)]
    Path("table").mkdir()
    pq.write_table(pa.table({"image": images, "text": [f"picture {i}" for i in range(12)]}), "table/train.parquet")
    stories = [
        [{"text": f"first {i}"}, {"image": f"{i}.png"}, {"text": " then"}, {"image": f"{11 - i}.png"}] for i in range(12)
    ]
    lines_of(Path("stories/captions.jsonl"), *stories)
    lines_of(Path("prompts.jsonl"), [{"text": "first 3"}])
    given, text = {"image": "1.png", "use": "context"}, {"text": "make it red", "loss": False}
    lines_of(Path("edits/captions.jsonl"), *([given, text, {"image": f"{i}.png"}] for i in range(12)))
    Path("edit_table").mkdir()
    for split in ("train", "validation"):
        columns = {"source_image": images, "instruction": ["make it red"] * 12, "target_image": images[::-1]}
        pq.write_table(pa.table(columns), f"edit_table/{split}.parquet")
    Path("voices").mkdir()
    for i in range(24):
        Path(f"voices/{i % 2 + 6}_anna_{i}.wav").write_bytes(wav(tone(300 + 300 * (i % 2) + i)))
    arm = []
    for i, document in enumerate(actions.documents(6, "page")):
        arm.append([{"text": document.text, "loss": False}, {"image": f"{i}.png", "use": "context"}, {"path": f"{i}.npy"}])
        Path("arm").mkdir(exist_ok=True)
        to_image(document.media[0].tensor()).save(f"arm/{i}.png")
        np.save(f"arm/{i}.npy", document.media[1].tensor().numpy())
    lines_of(Path("arm/captions.jsonl"), *arm)
    lines_of(Path("arm_prompts.jsonl"), [{"text": "go to the red mark"}, {"image": "arm/0.png"}])
    Path("poems.txt").write_text("".join(f"Once upon the {i}th hill a poet sat and sang.\n" for i in range(200)))
    Path("chapters").mkdir()
    for split in ("train", "validation"):
        texts = {"text": [f"Chapter {i}. It was the {i}th night. " * 20 for i in range(8)]}
        pq.write_table(pa.table(texts), f"chapters/{split}.parquet")


def test_the_page_names_every_recipe_that_reads_ones_own_data() -> None:
    assert len(LINES) > 12
    for recipe in set(RECIPES) - {"digits", "scenes", "emoji", "shakespeare_pictures"}:
        assert f"`{recipe}" in PAGE, recipe


@pytest.mark.slow
def test_every_command_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    monkeypatch.chdir(tmp_path)
    make()
    small = f"{SHORT} --report.images 4 --trainer.sample-every 0".replace("--packing.rows 2", "").split()
    for line in LINES:
        words = shlex.split(line.replace("--budget 20m", ""))
        assert words.pop(0) == "transfusion", line
        if words[0] == "train":
            words += small
            words += [] if words[1] in ("shakespeare", "books_text") else ["--sampler.num-steps", "2"]
        else:
            words += DRAWN.split()
        with pytest.raises(SystemExit) as ended:
            main(words)
        said = capfd.readouterr()
        assert not ended.value.code, f"{line}\n{said.out[-2000:]}\n{said.err[-2000:]}"
    for path in ("drawn/grid.png", "more/outputs.jsonl", "told/outputs.jsonl", "said/00000-1.wav", "paths/00000-2.npy"):
        assert Path(path).exists(), path
    assert "text" in Path("written/outputs.jsonl").read_text()
