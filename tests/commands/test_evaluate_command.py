"""transfusion evaluate, from its command to records and image grids."""

import json
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest

from command import SHORT, command
from small import model, png
from transfusion.commands.evaluate import SUITES, Suite
from transfusion.evaluation.record import Record
from transfusion.modality import Modality

COLOUR = Modality("image", channels=3, shape=(16, 16), patch=(8, 8))


def records(folder: str) -> dict[str, Record]:
    return {path.stem: Record.load(path) for path in Path(folder, "records").glob("*.json")}


def colour_model(folder: str) -> None:
    """A model of colour pictures, without a run around it."""
    found = model(COLOUR, context_length=400)
    found.config = replace(found.config, sampler=replace(found.config.sampler, num_steps=1))
    found.save_pretrained(folder)


def test_the_command_line_has_every_suite() -> None:
    assert get_args(Suite) == (*SUITES, "task") and all(callable(suite.score) for suite in SUITES.values())


@pytest.mark.slow
def test_a_run_with_classes_and_a_suite_that_does_not_fit(quickstart: str, capfd) -> None:
    line = "evaluate quickstart --suite draw edit text read --samples 70 --device cpu --dtype fp32 --sampler.num-steps 2"
    own = records("quickstart")["draw"]
    Path("quickstart/records/draw.json").unlink()
    assert command(line) == 1
    out = capfd.readouterr().out
    assert "edit could not be measured: no document is an image, an instruction and an image" in out
    found = records("quickstart")
    assert found["draw"].metrics.keys() >= {
        "agreement",
        "classifier_accuracy",
        "frechet_pixels",
        "kernel_pixels",
        "precision",
        "nearest_training",
    }
    assert found["draw"].metrics["agreement"].count == 70 and found["draw"].command == f"transfusion {line}"
    assert found["draw"].settings["sampler"]["num_steps"] == 2 and found["draw"].settings["dtype"] == "float32"
    (answers,) = (one for one in Path("quickstart/records").glob("read-*.json"))
    assert Record.load(answers).metrics["accuracy"].count == 70, "the report's own record stays"
    said = found["read"].command
    assert said.startswith("transfusion train digits --") and "--trainer.steps 4" in said and "--report.readings 10" in said
    assert "--optimizer.lr" not in said and "--out" not in said and own.command == said
    assert found["read"].metrics["accuracy"].count == 10 and Path("quickstart/grids/draw.png").exists()
    before = found["draw"]
    assert command(line) == 1 and records("quickstart")["draw"] == before, "the same weights and seeds give the same record"
    assert command("results quickstart --out tables.md") == 0 and before.weights in Path("tables.md").read_text()


def test_data_that_was_trained_on_is_refused(capfd) -> None:
    for i in range(12):
        png(Path("data") / f"{i}.png", i, size=(16, 16))
        Path(f"data/{i}.txt").write_text(f"number {i % 3}")
        png(Path("new") / f"{i}.png", i + 50, size=(16, 16))
        Path(f"new/{i}.txt").write_text(f"number {i % 3}")
    sizes = "--model.modalities.0.shape 16 16 --model.modalities.0.patch 8 8"
    assert command(f"train pictures --data data --out run {SHORT} {sizes} --report.images 0") == 0
    short = "--device cpu --dtype fp32 --sampler.num-steps 1"
    assert command(f"evaluate run --suite draw {short}") == 1
    assert "has no held-out split" in capfd.readouterr().out
    Path("again").mkdir()
    for path in Path("data").iterdir():
        Path("again", f"copy-{path.name}").write_bytes(path.read_bytes())
    assert command(f"evaluate run --suite read --data again {short}") == 1
    assert "trained on 12 of the 12 documents in again" in capfd.readouterr().out
    assert command(f"evaluate run --suite draw read --data new --samples 6 {short}") == 0
    found = records("run")
    assert found["draw"].metrics["nearest_training"].count == 6 and found["draw"].settings["trained_on"] == 0
    assert "train classifier" in found["draw"].missing["agreement"] and "cider" in found["read"].metrics
    assert command(f"evaluate run --suite draw --data new --classifier nowhere {short}") == 1
    assert "no classifier in nowhere" in capfd.readouterr().err


@pytest.mark.slow
def test_a_classifier_of_other_classes_is_refused(quickstart: str, capfd) -> None:
    for name in ("cat", "dog"):
        for i in range(40):
            png(Path("classes") / name / f"{i}.png", i, size=(16, 16))
    assert command("train classifier --data classes --out cats --training.epochs 1 --device cpu --side 16 --channels 3") == 0
    assert command("evaluate quickstart --suite draw --samples 4 --classifier cats --device cpu") == 1
    assert "has cat, dog" in capfd.readouterr().out
    assert command("evaluate quickstart --suite read --data nowhere --device cpu") == 1, "what is given is what is read"
    assert "no data at nowhere" in capfd.readouterr().out
    colour_model("plain")
    assert command("evaluate plain --suite draw --data classes --classifier cats --samples 8 --device cpu --dtype fp32") == 0
    assert records("plain")["draw"].metrics["agreement"].count == 8


def test_text_files_and_questions(capfd) -> None:
    colour_model("plain")
    Path("book.txt").write_text("one paragraph\n\nanother one\n\n" * 6)
    Path("q.jsonl").write_text('{"question": "a", "choices": ["b", "c"], "answer": 0}\n')
    assert command("evaluate plain --suite text --data book.txt --questions q.jsonl --device cpu --dtype fp32") == 0
    found = records("plain")["text"].metrics
    assert found["perplexity"].count == 12 and found["bits_per_byte"].value > 1 and found["choice_accuracy"].count == 1
    assert command("evaluate plain --suite text --device cpu") == 1 and "--data" in capfd.readouterr().out


@pytest.mark.slow
def test_scenes_and_coco() -> None:
    colour_model("plain")
    for i in range(10):
        png(Path("coco/val2014") / f"{i}.jpg", i, size=(20, 16))
    said = {
        "images": [{"id": i, "file_name": f"{i}.jpg"} for i in range(10)],
        "annotations": [{"image_id": i, "id": i, "caption": f"picture {i}"} for i in range(10)],
    }
    split = {
        "images": [
            {"filepath": "val2014", "filename": f"{i}.jpg", "split": "test", "sentences": [{"raw": f"picture {i}"}] * 5}
            for i in range(4)
        ]
    }
    Path("coco/captions_val2014.json").write_text(json.dumps(said))
    Path("coco/dataset_coco.json").write_text(json.dumps(split))
    options = "--device cpu --dtype fp32 --guidance.text 1"
    with pytest.warns(UserWarning, match="guidance is off"):
        assert command(f"evaluate plain --suite scenes coco --data coco --samples 2 {options}") == 0
    found = records("plain")
    assert found["scenes"].metrics["single"].count == 2 and found["scenes"].metrics["checker_true"].value > 0.9
    assert "cider" in found["coco"].metrics and "--inception" in found["coco"].missing["fid"]


def test_what_is_wrong_with_the_line_is_said(capfd) -> None:
    colour_model("plain")
    assert command("evaluate") == 2 and "needs a run or model folder" in capfd.readouterr().err
    assert command("evaluate plain") == 2 and "--suite" in capfd.readouterr().err
    assert command("evaluate plain --suite coco --device cpu") == 1 and "--data" in capfd.readouterr().out
    assert command("results nowhere") == 2 and "transfusion evaluate" in capfd.readouterr().err
