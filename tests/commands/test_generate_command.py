"""transfusion generate, from the command to the folder of documents and images."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from command import SHORT, command
from small import FREE, SOUND, model, picture, png
from transfusion.data.corpus import captioned
from transfusion.data.document import Media
from transfusion.model.network import ModelConfig
from transfusion.recipes import RECIPES
from transfusion.run.recipe import Recipe
from transfusion.run.record import Run


def test_own_pictures_from_training_to_answers(capfd) -> None:
    for i in range(24):
        png(Path(f"data/{i}.png"), i, size=(20, 16))
        Path(f"data/{i}.txt").write_text(f"picture number {i % 3}")
    small = "--model.modalities.0.shape 16 16 --model.modalities.0.patch 4 4"
    assert command(f"train pictures --data data --out run {SHORT} {small} --trainer.sample-every 3") == 0
    assert Path("run/samples/step-00000003.png").exists()
    lines = [
        {"segments": [{"text": "picture number 1"}]},
        {"segments": [{"image": "data/0.png"}]},
        {"segments": [{"text": "picture"}]},
    ]
    Path("prompts.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    assert command("generate run --prompts prompts.jsonl --out answers --max-tokens 5 --sampler.num-steps 2 --max-items 1") == 0
    answers = [json.loads(line)["segments"] for line in Path("answers/outputs.jsonl").read_text().splitlines()]
    assert [next(iter(a[0])) for a in answers] == ["text", "image", "text"]
    assert answers[0][0]["text"] == "picture number 1" and "image" in answers[0][1]
    with Image.open(Path("answers") / answers[0][1]["image"]) as drawn:
        assert np.asarray(drawn).shape == (16, 16, 3)
    assert command("generate run --prompt picture --count 3 --out more --sampler.kind ddim --sampler.num-steps 2") == 0
    assert len(Path("more/outputs.jsonl").read_text().splitlines()) == 3 and Path("more/grid.png").exists()
    first = Path("more/outputs.jsonl").read_bytes(), Path("more/00000-1.png").read_bytes()
    assert command("generate run --prompt picture --count 3 --out more --sampler.kind ddim --sampler.num-steps 2") == 0
    assert first == (Path("more/outputs.jsonl").read_bytes(), Path("more/00000-1.png").read_bytes())
    assert command("generate run --prompt= --out nothing --max-tokens 3 --sampler.num-steps 2") == 0
    capfd.readouterr()


@pytest.mark.parametrize(
    ("content", "message"),
    [("", "holds no prompts"), ("nonsense", "not JSON"), ('{"segments": [{"image": "no.png"}]}', "no such file")],
)
def test_prompts_that_cannot_be_read_are_named(capfd, content: str, message: str) -> None:
    model().save_pretrained("m")
    Path("p.jsonl").write_text(content)
    assert command("generate m --prompts p.jsonl") == 1
    assert message in capfd.readouterr().err


def test_answers_that_were_there_stay_when_new_ones_fail(capfd) -> None:
    """Also where the prompts are the earlier answers themselves."""
    model(context_length=40).save_pretrained("m")
    assert command("generate m --prompt ab --out answers --max-tokens 1 --sampler.num-steps 1") == 0
    kept = Path("answers/outputs.jsonl").read_text()
    assert command(f"generate m --prompt {'too_long_' * 20} --out answers") == 1
    assert "context" in capfd.readouterr().err
    assert Path("answers/outputs.jsonl").read_text() == kept and not list(Path("answers").glob("*.tmp*"))
    assert command("generate m --prompts answers/outputs.jsonl --out answers --mode text --max-tokens 1") == 0
    assert len(Path("answers/outputs.jsonl").read_text().splitlines()) == 1


def test_a_recipe_of_sound_needs_nothing_beside_data_and_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples during training, items after each prompt, arrays in files, and those files as prompts."""
    run = Run("waves", model=ModelConfig(modalities=(SOUND,)))
    documents = [captioned((f"tone {i}",), Media(picture(i, 3, 6), "sound"), f"wave {i}") for i in range(9)]
    recipe = Recipe(lambda: run, lambda run, log: documents, lambda _: ["tone 1", "tone 2"])
    monkeypatch.setitem(RECIPES, "waves", "Waves.")
    monkeypatch.setitem(sys.modules, "transfusion.recipes.waves", SimpleNamespace(RECIPE=recipe))
    assert command(f"train waves --out run {SHORT} --sampler.num-steps 2 --trainer.sample-every 2") == 0
    assert len(Path("run/samples/step-00000002/outputs.jsonl").read_text().splitlines()) == 2
    assert command("generate run --prompt tone --count 2 --out answers") == 0
    record = json.loads(Path("answers/outputs.jsonl").read_text().splitlines()[0])
    assert record == {"segments": [{"text": "tone"}, {"sound": "00000-1.npy"}]}
    assert np.load("answers/00000-1.npy").shape == (3, 6)
    with pytest.warns(UserWarning, match="never learned text behind text and sound"):
        assert command("generate run --prompts answers/outputs.jsonl --out more --max-tokens 2") == 0


def test_the_mode_names_a_modality_of_the_model(capfd) -> None:
    model(SOUND, FREE, context_length=96).save_pretrained("m")
    for mode, name in (("auto", "sound"), ("sound", "sound"), ("image", "image")):
        assert command(f"generate m --prompt ab --mode {mode} --out {mode} --max-tokens 0") == 0
        assert name in json.loads(Path(f"{mode}/outputs.jsonl").read_text())["segments"][1]
    assert command("generate m --prompt ab --mode imag") == 2
    assert "no 'imag'; did you mean 'image'?" in capfd.readouterr().err


def test_a_size_is_asked_for_where_several_were_learned(tmp_path: Path, monkeypatch, capfd) -> None:
    monkeypatch.chdir(tmp_path)
    model(FREE).save_pretrained("free")
    assert command("generate free --prompt a --image-size 8x4 --count 2 --out drawn --sampler.num-steps 2") == 0
    for name in ("00000-1.png", "00001-1.png"):
        with Image.open(Path("drawn") / name) as drawn:
            assert drawn.size == (4, 8)
    capfd.readouterr()
    for wrong, reason in (
        ("8x5", "multiple of the patch"),
        ("16x16", "exceeds the largest"),
        ("big", "write height and width"),
    ):
        assert command(f"generate free --prompt a --image-size {wrong}") == 2
        assert reason in capfd.readouterr().err


@pytest.mark.filterwarnings("error")
def test_pictures_keep_their_form_from_the_folder_to_what_is_drawn(tmp_path: Path, monkeypatch, capfd) -> None:
    monkeypatch.chdir(tmp_path)
    for i in range(12):
        png(Path(f"data/{i}.png"), seed=i, size=(40, 20) if i % 2 else (20, 20))
        Path(f"data/{i}.txt").write_text(f"picture {i}")
    sizes = "--model.modalities.0.shape 16 16 --model.modalities.0.patch 4 4 --model.modalities.0.largest 32 32"
    quick = "--report.images 2 --sampler.num-steps 2 --trainer.sample-every 2"
    assert command(f"train pictures --data data --out run {SHORT} {sizes} {quick}") == 0
    assert "keep their form, in whole patches of 4 x 4: 2 sizes" in " ".join("".join(capfd.readouterr()).split())
    (wide,) = json.loads(Path("run/model/documents.json").read_text())["sizes"]["image"].keys() - {"16x16"}
    assert wide == "12x20"
    line = "generate run --prompt a --sampler.num-steps 2 --device cpu --out drawn --image-size"
    assert command(f"{line} {wide}") == 0
    with Image.open("drawn/00000-1.png") as drawn:
        assert drawn.size == (20, 12)
    with pytest.warns(UserWarning, match="never learned image of size 32x8.* it learned"):
        assert command(f"{line} 32x8") == 0
