"""Each recipe from its command to its report, small: files in, training, sheets, answers out."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from small import model, png, write_idx
from transfusion.cli import main
from transfusion.evaluation.record import Proportion
from transfusion.evaluation.suite import named
from transfusion.recipes import digits
from transfusion.recipes.digits import NAMES

SHORT = "--trainer.steps 4 --checkpoint.every 2 --model.transformer.width 32 --model.transformer.depth 1 --model.transformer.num-heads 2 --packing.rows 2 --optimizer.warmup 1 --dtype fp32 --device cpu"


def command(line: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(line.split())
    assert ended.value.code == 0, line


def test_quickstart_reports_what_it_must(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    monkeypatch.chdir(tmp_path)
    command(f"quickstart {SHORT} --report.images 20 --report.readings 10 --sampler.num-steps 2")
    report = json.loads(Path("quickstart/report.json").read_text())
    for name in ("text_to_image_agreement", "image_to_text_accuracy", "text_to_image_agreement_held_out_paraphrases"):
        low, high = report[f"{name}_interval"]
        assert 0 <= low <= report[name] <= high <= 1
    assert report["classifier_accuracy"] >= 0.97 and report["classifier_accuracy_count"] == 360
    assert {"text_loss", "media_loss", "seconds", "parameters", "seed"} <= report.keys()
    with Image.open("quickstart/samples.png") as sheet:
        assert sheet.size[0] > 700
    out = capfd.readouterr().out
    assert "transfusion generate quickstart" in out
    assert {p.name for p in Path("quickstart").iterdir()} >= {"run.yaml", "metrics.jsonl", "model", "checkpoints"}


def test_fashion_from_idx_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_idx(tmp_path / "data", 300, zipped=True)
    command(
        f"train fashion --data data --out run {SHORT} --trainer.sample-every 2 --report.images 10 --report.readings 10 --sampler.num-steps 2"
    )
    report = json.loads(Path("run/report.json").read_text())
    assert report["text_to_image_agreement_count"] == 10 and report["image_to_text_accuracy_count"] == 10
    assert Path("run/samples/step-00000002.png").exists()


def test_own_pictures_from_training_to_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    monkeypatch.chdir(tmp_path)
    for i in range(24):
        png(tmp_path / "data" / f"{i}.png", i, size=(20, 16))
        (tmp_path / "data" / f"{i}.txt").write_text(f"picture number {i % 3}")
    small = "--model.modalities.0.shape 16 16 --model.modalities.0.patch 4 4"
    command(f"train pictures --data data --out run {SHORT} {small} --trainer.sample-every 3")
    assert Path("run/samples/step-00000003.png").exists()
    lines = [
        {"segments": [{"text": "picture number 1"}]},
        {"segments": [{"image": "data/0.png"}]},
        {"segments": [{"text": "picture"}]},
    ]
    Path("prompts.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    command("generate run --prompts prompts.jsonl --out answers --max-tokens 5 --sampler.num-steps 2 --max-items 1")
    answers = [json.loads(line)["segments"] for line in Path("answers/outputs.jsonl").read_text().splitlines()]
    assert [next(iter(a[0])) for a in answers] == ["text", "image", "text"]
    assert answers[0][0]["text"] == "picture number 1" and "image" in answers[0][1]
    with Image.open(Path("answers") / answers[0][1]["image"]) as drawn:
        assert np.asarray(drawn).shape == (16, 16, 3)
    command("generate run --prompt picture --count 3 --out more --sampler.kind ddim --sampler.num-steps 2")
    assert len(Path("more/outputs.jsonl").read_text().splitlines()) == 3 and Path("more/sheet.png").exists()
    first = Path("more/outputs.jsonl").read_bytes(), Path("more/00000-1.png").read_bytes()
    command("generate run --prompt picture --count 3 --out more --sampler.kind ddim --sampler.num-steps 2")
    assert first == (Path("more/outputs.jsonl").read_bytes(), Path("more/00000-1.png").read_bytes())
    command("generate run --prompt= --out nothing --max-tokens 3 --sampler.num-steps 2")
    capfd.readouterr()


@pytest.mark.parametrize(
    ("content", "message"),
    [("", "holds no prompts"), ("nonsense", "not JSON"), ('{"segments": [{"image": "no.png"}]}', "no such file")],
)
def test_prompts_that_cannot_be_read_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd, content: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    model().save_pretrained("m")
    Path("p.jsonl").write_text(content)
    with pytest.raises(SystemExit) as ended:
        main(["generate", "m", "--prompts", "p.jsonl"])
    assert ended.value.code == 1 and message in capfd.readouterr().err


def test_answers_that_were_there_stay_when_new_ones_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    """Also where the prompts are the earlier answers themselves."""
    monkeypatch.chdir(tmp_path)
    model(context_length=40).save_pretrained("m")
    command("generate m --prompt ab --out answers --max-tokens 1 --sampler.num-steps 1")
    kept = Path("answers/outputs.jsonl").read_text()
    with pytest.raises(SystemExit) as ended:
        main(["generate", "m", "--prompt", "too long " * 20, "--out", "answers"])
    assert ended.value.code == 1 and "context" in capfd.readouterr().err
    assert Path("answers/outputs.jsonl").read_text() == kept and not list(Path("answers").glob("*.tmp*"))
    command("generate m --prompts answers/outputs.jsonl --out answers --mode text --max-tokens 1")
    assert len(Path("answers/outputs.jsonl").read_text().splitlines()) == 1


def test_a_label_that_fashion_does_not_know_is_named(tmp_path: Path, capfd) -> None:
    write_idx(tmp_path, 12)
    labels = tmp_path / "train-labels-idx1-ubyte"
    labels.write_bytes(labels.read_bytes()[:-1] + bytes([11]))
    with pytest.raises(SystemExit) as ended:
        main(["train", "fashion", "--data", str(tmp_path), "--out", str(tmp_path / "run")])
    assert ended.value.code == 2 and "label 11" in capfd.readouterr().err


def test_held_out_digits_are_never_trained_on() -> None:
    trained = {d.media[0].tensor().numpy().tobytes() for d in digits.documents()}
    pictures, labels = digits.labelled(held_out=True)
    assert len(trained) == 1437 and len(pictures) == 360 and len(set(labels.tolist())) == 10
    assert not [p for p in pictures if p.numpy().tobytes() in trained]
    assert {named(d.text, NAMES) for d in digits.documents()} == set(range(10))


def test_names_are_found_as_whole_words_the_longest_first() -> None:
    names = ("shirt", "t-shirt", "one", "bag")
    assert named("a t-shirt", names) == 1 and named("a shirt", names) == 0
    assert named("someone has a bag", names) == 3
    assert named("a bag and a shirt", names) is None and named("nothing", names) is None


def test_intervals_cover_the_truth() -> None:
    """Wilson's interval, 4,000 repetitions of 200 draws: 95 % within the usual wobble of discrete counts."""
    rng = np.random.default_rng(0)
    for p in (0.5, 0.9, 0.97):
        shares = [Proportion(int(k), 200) for k in rng.binomial(200, p, 4000)]
        assert 0.93 < np.mean([s.interval[0] <= p <= s.interval[1] for s in shares]) < 0.98
