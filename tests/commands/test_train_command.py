"""transfusion train and quickstart, from the command to the report: files in, training, grids and numbers out."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from command import SHORT, command
from small import write_idx
from transfusion.data.sources.scenes import KINDS, NOVEL
from transfusion.evaluation.classifier import ConvolutionalClassifier
from transfusion.recipes import scenes


def test_quickstart_reports_what_it_must(quickstart: str) -> None:
    report = json.loads(Path("quickstart/report.json").read_text())
    for name in ("text_to_image_agreement", "image_to_text_accuracy", "text_to_image_agreement_held_out_paraphrases"):
        low, high = report[f"{name}_interval"]
        assert 0 <= low <= report[name] <= high <= 1
    assert report["text_to_image_agreement_count"] == 20 and report["image_to_text_accuracy_count"] == 10
    assert report["classifier_accuracy"] >= 0.97 and report["classifier_accuracy_count"] == 360
    assert {"text_loss", "media_loss", "seconds", "parameters", "seed"} <= report.keys()
    with Image.open("quickstart/samples.png") as grid:
        assert grid.size[0] > 700
    assert "transfusion generate quickstart" in quickstart
    assert {p.name for p in Path("quickstart").iterdir()} >= {"run.yaml", "metrics.jsonl", "model", "checkpoints"}
    assert Path("quickstart/samples/step-00000002.png").exists()


@pytest.mark.slow
def test_fashion_from_idx_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two epochs of its classifier: how good that is, tests/evaluation and tests/commands/test_classifier_command.py say."""
    fit = ConvolutionalClassifier.fit
    monkeypatch.setattr(
        ConvolutionalClassifier, "fit", lambda *a, training, **kw: fit(*a, training=replace(training, epochs=1), **kw)
    )
    write_idx(Path("data"), 300, zipped=True)
    assert (
        command(
            f"train fashion --data data --out run {SHORT} --trainer.sample-every 2 --report.images 10 --report.readings 10 --sampler.num-steps 2"
        )
        == 0
    )
    report = json.loads(Path("run/report.json").read_text())
    assert report["text_to_image_agreement_count"] == 10 and report["image_to_text_accuracy_count"] == 10
    assert Path("run/samples/step-00000002.png").exists() and Path("run/classifier").is_dir()


def test_a_label_that_fashion_does_not_know_is_named(capfd) -> None:
    write_idx(Path("data"), 12)
    labels = Path("data/train-labels-idx1-ubyte")
    labels.write_bytes(labels.read_bytes()[:-1] + bytes([11]))
    assert command("train fashion --data data --out run") == 2
    assert "label 11" in capfd.readouterr().err


@pytest.mark.slow
def test_scenes_report_each_kind(monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    monkeypatch.setattr(scenes, "COUNTS", dict.fromkeys(KINDS, 20))
    assert command(f"train scenes {SHORT} --out run --report.images 22 --sampler.num-steps 2 --trainer.sample-every 2") == 0
    report = json.loads(Path("run/report.json").read_text())
    for name in (*KINDS, *(f"{kind}_held_out" for kind in NOVEL)):
        low, high = report[f"{name}_interval"]
        assert 0 <= low <= report[name] <= high <= 1 and report[f"{name}_count"] == 2
    assert report["checker_true"] >= 0.95 and report["checker_changed"] >= 0.95
    assert {"text_loss", "media_loss", "seconds", "parameters", "seed"} <= report.keys()
    for file in ("run/samples.png", "run/samples/step-00000002.png"):
        with Image.open(file) as grid:
            assert grid.size[0] > 700
    assert "position held out" in capfd.readouterr().out
