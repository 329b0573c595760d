"""transfusion train and quickstart, from the command to the report: files in, training, grids and numbers out."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from command import QUICKSTART, SHORT, command
from small import png, write_idx
from transfusion.data.sources.scenes import KINDS, NOVEL
from transfusion.evaluation.classifier import ConvolutionalClassifier, Convolutions
from transfusion.evaluation.record import Record
from transfusion.evaluation.suite import ON_TRAINED
from transfusion.recipes import digits, scenes


def test_quickstart_reports_what_it_must(quickstart: str) -> None:
    report = json.loads(Path("quickstart/report.json").read_text())
    for name in ("text_to_image_agreement", "image_to_text_accuracy", "text_to_image_agreement_held_out_paraphrases"):
        low, high = report[f"{name}_interval"]
        assert 0 <= low <= report[name] <= high <= 1
    assert report["text_to_image_agreement_count"] == 20 and report["image_to_text_accuracy_count"] == 10
    assert report["classifier_accuracy"] >= 0.97 and report["classifier_accuracy_count"] == 360
    assert {"text_loss", "media_loss", "seconds", "parameters", "seed"} <= report.keys()
    # after 4 steps: noise, and the report says so
    assert "is no better than chance: guessing among 10 classes gives 0.100" in " ".join(quickstart.split())
    assert any(remark.startswith("image to text accuracy") for remark in report["no_better_than_chance"])
    with Image.open("quickstart/samples.png") as grid:
        assert grid.size[0] > 700
    assert "transfusion generate quickstart" in quickstart
    assert {p.name for p in Path("quickstart").iterdir()} >= {"run.yaml", "metrics.jsonl", "model", "checkpoints"}
    assert Path("quickstart/samples/step-00000002.png").exists()


def test_caption_preference_is_in_the_log_the_record_and_the_report(quickstart: str) -> None:
    lines = [json.loads(line) for line in Path("quickstart/metrics.jsonl").read_text().splitlines()]
    found = [line for line in lines if "caption_preference" in line]
    assert [line["step"] for line in found] == [2, 4], "with the samples, and at the end"
    assert all(0 <= f["caption_preference_low"] <= f["caption_preference"] <= f["caption_preference_high"] <= 1 for f in found)
    assert all(f["caption_preference_trained"] > 0 for f in found)
    kept = Record.load(Path("quickstart/records/draw.json")).metrics["caption_preference"]
    assert kept.count == 200 and kept.note == "at t = 0.8"
    assert json.loads(Path("quickstart/report.json").read_text())["caption_preference"] == kept.value
    assert "own caption preferred" in quickstart


def test_captions_that_are_not_used_are_said_to_be(capfd) -> None:
    """A small folder has no held-out split: the pictures that are trained on are measured, all of them however few are drawn,
    and the table and the records say so. After four steps no caption is used."""
    for i in range(40):
        png(Path(f"data/{i}.png"), seed=i, size=(8, 8))
        Path(f"data/{i}.txt").write_text(f"number {i}")
    small = "--model.modalities.0.shape 8 8 --model.modalities.0.patch 4 4 --optimizer.lr 1e-9"
    assert command(f"train pictures --data data --out run {SHORT} {small} --trainer.sample-every 0 --report.images 4") == 0
    table, said = capfd.readouterr()
    assert "nothing is held out of 40 documents" in " ".join(table.split())
    assert "step 4: caption preference" in said and "on 40 training pictures at t = 0.8" in said
    assert "captions are not used" in said and "chance 0.5" in said and "too few" not in said
    assert "own caption preferred, training images" in table and "held-out images" not in table
    report, record = json.loads(Path("run/report.json").read_text()), Record.load(Path("run/records/draw.json"))
    assert "caption_preference" in report["measured_on_training_documents"] and report["caption_preference_count"] == 40
    assert record.metrics["caption_preference"].note == f"at t = 0.8; {ON_TRAINED}"
    assert record.settings["measured"] == ON_TRAINED


def test_one_classifier_judges_and_its_digest_is_kept(quickstart: str, capfd) -> None:
    report = json.loads(Path("quickstart/report.json").read_text())
    drawn = [Record.load(Path(f"quickstart/records/{name}.json")) for name in ("draw", "draw-held-out-paraphrases")]
    assert {record.classifiers["classifier"] for record in drawn} == {report["classifier"]}
    classifier = ConvolutionalClassifier(Convolutions(1, 8, 10), digits.NAMES)
    classifier.save(Path("judge"))
    assert command(f"quickstart {QUICKSTART} --report.classifier judge") == 0, "the same run, judged by another"
    assert json.loads(Path("quickstart/report.json").read_text())["classifier"] == classifier.digest != report["classifier"]
    capfd.readouterr()
    ConvolutionalClassifier(Convolutions(1, 8, 2), ("cat", "dog")).save(Path("other"))
    assert command("train digits --out new --report.classifier other") == 1
    assert "has cat, dog; the captions of digits name" in capfd.readouterr().err and not Path("new").exists()


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["fashion", "mnist"])
def test_classes_from_idx_files(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two epochs of its classifier: how good that is, tests/evaluation and tests/commands/test_classifier_command.py say."""
    fit = ConvolutionalClassifier.fit
    monkeypatch.setattr(
        ConvolutionalClassifier, "fit", lambda *a, training, **kw: fit(*a, training=replace(training, epochs=1), **kw)
    )
    write_idx(Path("data"), 300, zipped=True)
    assert (
        command(
            f"train {recipe} --data data --out run {SHORT} --trainer.sample-every 2 --report.images 10 --report.readings 10 --sampler.num-steps 2"
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


@pytest.mark.parametrize(("warmup", "steps"), [("4000", "1200"), ("50", "50")])
def test_a_warm_up_that_does_not_end_within_the_run_is_refused_before_work(warmup: str, steps: str, capfd) -> None:
    assert command(f"train digits --out run --optimizer.warmup {warmup} --trainer.steps {steps}") == 2
    said = " ".join("".join(capfd.readouterr()).split())
    assert f"the warm-up of {warmup} steps does not end within the run of {steps}" in said
    assert f"set --optimizer.warmup to {int(steps) * 16 // 1000} " in said and not Path("run").exists()
