"""`train pictures`: choices are made, said, kept and used again; what contradicts is refused before the training."""

import itertools
import json
import re
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import pytest

from command import SHORT, command
from small import png
from transfusion.api import Transfusion
from transfusion.commands import choosing, train
from transfusion.config import ConfigError
from transfusion.data.document import Document
from transfusion.data.loader import Loader
from transfusion.data.media import Fit
from transfusion.data.sources.read import read
from transfusion.data.survey import survey
from transfusion.data.vocabulary import BPE, Vocabulary
from transfusion.model_folder import TransfusionConfig
from transfusion.recipes import find
from transfusion.run import choice
from transfusion.run.record import Run, keep_record
from transfusion.train.log import METRICS

TINY = "--depth 1 --report.images 4 --sampler.num-steps 2 --trainer.sample-every 0 --dtype fp32 --device cpu"


def told(capfd) -> str:
    """What was printed."""
    found = capfd.readouterr()
    return found.out + found.err


def folder(count: int = 12, *, captions: bool = True, side: int = 40) -> None:
    for i in range(count):
        png(Path(f"data/{i}.png"), seed=i, size=(side, side))
        if captions:
            Path(f"data/{i}.txt").write_text(f"picture {i} of them")


class Trials:
    """Stands for the training of trials: steps of some seconds each.

    Args:
        seconds: of a step.
        reported: seconds of a step that are written to the log, if they are more.
    """

    def __init__(self, seconds: float = 0.0, reported: float = 1e-3) -> None:
        self.seconds, self.reported, self.steps = seconds, max(seconds, reported), 0
        self.runs, self.autoencoders = list[Run](), list[object]()

    def __call__(self, run: Run, documents: Sequence[Document], *rest) -> None:
        self.runs.append(run)
        self.autoencoders.append(rest[0])
        for step in range(1, run.trainer.steps + 1):
            time.sleep(self.seconds)
            self.steps += 1
            with (run.folder / METRICS).open("a") as file:
                file.write(json.dumps({"step": step, "seconds": self.reported, "flops": 1e10 * self.reported}) + "\n")
            for hook in rest[1:]:
                hook.call(step)


def chosen(line: str, trials: Trials | None = None) -> tuple[Run, str]:
    """The run of a line, and what was said."""
    said: list[str] = []
    run = choosing.choose(find("pictures"), line.split(), "x", trials or Trials(), said.append)
    return run, "\n".join(said)


def test_measuring_takes_a_share_of_the_budget(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder()
    slow = Trials(0.1)
    said = chosen("--data data --out run --budget 2s", slow)[1]
    assert slow.steps <= 6 and "measuring the speed of this machine, about 1 s at most" in said
    assert "measuring the machine took" in said


def test_rows_that_take_too_long_are_measured_by_fewer(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder()
    trials = Trials()
    run = chosen("--data data --out run --budget 20s --depth 12", trials)[0]
    assert trials.runs[0].packing.rows < run.packing.rows
    line = "--data data --out other --trainer.steps 9 --packing.rows 8 --trainer.accumulate 4"
    monkeypatch.setattr(choosing, "MEASURED_SECONDS", 1e-3)
    chosen(line, trials)
    assert trials.runs[-1].packing.rows == 4


def test_other_settings_are_chosen_for_anew_until_the_run_has_begun(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder()
    line = "--data data --out run --budget 9s"
    assert chosen(f"{line} --depth 2 --seed 3")[0].model.transformer.depth == 2
    assert "as chosen before" in chosen(f"{line} --seed=3 --depth 2")[1]
    run, said = chosen(f"{line} --depth 1")
    assert "as chosen before" not in said and run.model.transformer.depth == 1
    Path("run/checkpoints/step-00000001").mkdir(parents=True)
    assert "as chosen before" in chosen(f"{line} --depth 3")[1]  # and refused by its run.yaml
    with pytest.raises(ConfigError, match="made for --data data --budget 9s"):
        chosen("--data data --out run --budget 8s")


def test_a_start_that_is_refused_leaves_no_choices(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder()
    with pytest.raises(ConfigError, match="warm-up"):
        chosen("--data data --out run --trainer.steps 20 --optimizer.warmup 30")
    assert not Path("run/choices.json").exists()


def test_a_run_without_its_choices_goes_on_as_recorded(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder()
    line = "--data data --out run --budget 9s --preset paper --augment crop --seed 4"
    run = chosen(line)[0]
    keep_record(run)
    Path("run/checkpoints/step-00000001").mkdir(parents=True)
    Path("run/choices.json").unlink()
    trials = Trials()
    again, said = chosen(line, trials)
    assert again == run and not trials.runs and "as recorded in run/run.yaml" in said
    assert not Path("run/choices.json").exists()
    Path("run/checkpoints").rename("elsewhere")
    Path("run/model").mkdir()
    with pytest.raises(ConfigError, match="checkpoints/ are gone"):
        chosen(line, trials)
    Path("elsewhere").rename("run/checkpoints")
    Path("run/run.yaml").write_text("recipe: [")
    with pytest.raises(ConfigError, match="another version"):
        chosen(line, trials)


def test_pictures_are_seen_as_often_as_the_loader_shows_them(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder(1)
    said = chosen("--data data --out one --trainer.steps 5 --packing.rows 1")[1]
    assert "each picture is seen about 5 times" in said and "1 row of" in said
    folder(7)
    run = chosen("--data data --out run --trainer.steps 40 --packing.rows 2 --packing.row-length 256")[0]
    documents = find("pictures").documents(run, print)
    vocabulary = Vocabulary(run.tokenizer.build([d.text for d in documents]), run.model.modalities)
    parts = {"transform": run.transform, "packing": run.packing, "vocabulary": vocabulary, "seed": run.seed}
    loader = Loader(documents, coordinates=run.model.coordinates, **parts)
    seen = sum(len(batch.names) for (batch,) in itertools.islice(loader.batches(), run.trainer.steps))
    assert json.loads(Path("run/choices.json").read_text())["passes"] == pytest.approx(seen / 7, rel=0.1)


@pytest.mark.parametrize(
    ("passes", "words"),
    [
        (0.42, "42% of the pictures are seen"),
        (1.02, "is seen about once"),
        (1.42, "is seen about 1.4 times"),
        (12.3, "12 times"),
    ],
)
def test_passes_in_words(passes: float, words: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder(2)
    assert words in choosing._passes(passes, survey(read("data", Fit((16, 16)))))


def test_given_steps_are_timed_and_fit(tmp_path: Path, monkeypatch) -> None:
    """A sheet comes within two minutes, and a short run has a short warm-up."""
    monkeypatch.chdir(tmp_path)
    folder()
    run, said = chosen("--data data --out run --depth 3 --trainer.steps 600", Trials(reported=3.0))
    assert "it will take about 35 min" in said and run.trainer.sample_every <= 40 and run.checkpoint.every == 20
    short = chosen("--data data --out short --trainer.steps 5")[0]
    assert short.optimizer.warmup < 5 and short.trainer.sample_every <= 5
    set_ = chosen("--data data --out set --trainer.steps 600 --optimizer.warmup 70", Trials(reported=3.0))[0]
    assert set_.optimizer.warmup == 70


def test_an_autoencoder_draws_within_two_minutes(tmp_path: Path) -> None:
    kept = choosing.Kept("data", "1h", autoencoder_steps=1000, autoencoder_side=32, autoencoder_step_seconds=2.0)
    assert choosing._autoencoder_run(find("pictures").run(), kept).trainer.sample_every == 50


def test_the_line_to_go_on_with_is_short() -> None:
    run, model = find("pictures").run(), cast(Transfusion, None)
    assert train._asked(run, model, ["a dog", "a cat"]) == ["--prompt", "a cat"]
    assert train._asked(run, model, ["a dog", "a long caption " * 50]) == ["--prompt", "a dog"]
    assert 80 < len(train._asked(run, model, ["a long caption " * 50])[1]) <= train.LINE
    assert train._asked(run, model, [""]) == ["--prompt", ""]


def test_contradictions_are_refused_before_any_choice(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder()
    line = "--data data --out run --trainer.steps 9"
    for words, error in (
        ("--augment flip --transform.flip False", "--augment flip and --transform.flip contradict"),
        ("--augment crop,flip --preset paper --transform.crop 1", "--transform.crop contradict"),
        ("--depth 4 --depth 6", "--depth is given twice"),
    ):
        with pytest.raises(ConfigError, match=error):
            chosen(f"{line} {words}")
    assert chosen(f"{line} --augment crop --transform.crop 1.5")[0].transform.crop == 1.5
    model = find("pictures").run().model
    vocabulary = Vocabulary(BPE(300).build(["a"]), model.modalities)
    Transfusion(TransfusionConfig(model), vocabulary).save_pretrained("model")
    trials = Trials()
    with pytest.raises(ConfigError, match="width: 256 there, 192 here"):
        chosen("--data data --out other --init model --depth 4", trials)
    assert not trials.runs and not Path("other/choices.json").exists()


def test_a_budget_becomes_steps_that_the_same_line_goes_on_with(tmp_path: Path, monkeypatch, capfd) -> None:
    monkeypatch.chdir(tmp_path)
    folder()
    line = f"train pictures --data data --out run --budget 3s {TINY}"
    assert command(line) == 0
    said = told(capfd)
    for words in ("12 pictures", "32 x 32 pixels, 4 x 4 slots", "--depth", "it will take about", "each picture is seen about"):
        assert words in said, words
    kept = json.loads(Path("run/choices.json").read_text())
    steps = kept["choices"]["steps"]
    assert steps >= choice.MIN_STEPS and f"{steps:,} steps" in said
    report = json.loads(Path("run/report.json").read_text())
    assert 0 <= report["caption_preference"] <= 1 and report["brightness"] > 0 and Path("run/samples.png").exists()
    assert "nothing is held out" in said
    assert command(line) == 0
    again = told(capfd)
    assert "as chosen before" in again and f"resuming from step {steps}" in again
    assert json.loads(Path("run/choices.json").read_text()) == kept
    assert command(line.replace("3s", "9s")) == 2
    assert "made for --data data --budget 3s" in told(capfd)
    assert command(f"{line} --trainer.steps 4") == 2
    assert "both say how long to train" in told(capfd)
    assert command(line.replace("3s", "soon")) == 2
    assert "write 90s, 20m" in told(capfd)


def test_pictures_without_captions_are_learned_alone(tmp_path: Path, monkeypatch, capfd) -> None:
    monkeypatch.chdir(tmp_path)
    folder(captions=False)
    assert command(f"train pictures --data data --out run --trainer.steps 3 --optimizer.warmup 1 {TINY}") == 0
    said = told(capfd)
    assert "12 of them have no caption: they are learned without one" in said
    assert "brightness" in Path("run/report.json").read_text()


def test_an_autoencoder_is_trained_first_and_found_again(tmp_path: Path, monkeypatch, capfd) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(choice, "AUTOENCODER_BUDGET", 1)
    monkeypatch.setattr(choice, "AUTOENCODER_PICTURES", 10)
    monkeypatch.setattr(choosing, "LEAST_STEPS", 6)
    monkeypatch.setattr(choosing, "MOST_STEPS", 6)
    folder(20, side=48)
    line = f"train pictures --data data --out run --budget 2s {TINY}"
    assert command(line) == 0
    said = told(capfd)
    assert "first an autoencoder, 6 steps" in said and "learned as latents of an autoencoder" in said
    assert "or none for pixels" in said and said.index("--depth") < said.index("first an autoencoder")
    assert Path("run/autoencoder/model").is_dir() and Path("run/autoencoder/reconstructions.png").exists()
    assert command(line) == 0
    again = told(capfd)
    assert "resuming from step" in again and "first an autoencoder" not in again
    assert command("generate run --prompt picture --out drawn --sampler.num-steps 2") == 0
    assert Path("drawn/grid.png").exists()
    # a network that has not begun is chosen anew, for the autoencoder that there is, also where its steps are not said
    for name in ("checkpoints", "model"):
        shutil.rmtree(Path("run", name))
    for name in ("metrics.jsonl", "choices.json"):
        Path("run", name).unlink()
    words = "--data data --out run --budget 2s --device cpu --dtype fp32"
    trials = Trials()
    found, said = chosen(f"{words} --depth 2", trials)
    assert found.autoencoder.endswith("model") and "trained first, 6 steps" in said and "first an autoencoder" not in said
    assert trials.autoencoders[-1] is not None
    assert chosen(f"{words} --autoencoder none")[0].autoencoder == "none"
    with pytest.raises(ConfigError, match="made for --data data --budget 2s"):
        chosen(words.replace("2s", "3s"))


def test_one_picture_is_refused_or_learned_with_a_word(tmp_path: Path, monkeypatch, capfd) -> None:
    monkeypatch.chdir(tmp_path)
    folder(1)
    assert command(f"train pictures --data data --out run --trainer.steps 3 --optimizer.warmup 1 {TINY}") == 0
    said = told(capfd)
    assert "a caption of 4 words" in said and "alike" not in said and "1 layer " in said and "1 pictures" not in said


def test_what_would_not_be_varied_is_refused(tmp_path: Path, monkeypatch, capfd) -> None:
    """Images of files are varied alone, so no latents and no arrays; captions that a mirror image would make untrue are said."""
    monkeypatch.chdir(tmp_path)
    folder(40)
    Path("data/0.txt").write_text("an arrow to the left")
    short = f"--trainer.steps 3 --optimizer.warmup 1 {TINY}"
    assert command(f"train pictures --data data --out run --augment flip,crop {short}") == 0
    assert "2% of the captions speak of sides or letters: their pictures are not mirrored" in told(capfd)
    assert command(f"train digits --out digits --augment flip {SHORT}") == 2
    assert "these documents hold none" in told(capfd) and not Path("digits").exists()
    made = "--images.side 16 --images.batch-size 4 --model.convolutions.widths 16 --trainer.steps 2 --optimizer.warmup 1"
    assert command(f"train vae --data data --out vae --device cpu {made}") == 0
    assert command(f"train pictures --data data --autoencoder vae --out other --augment flip {short}") == 2
    assert "this run learns latents" in told(capfd)


def test_what_is_not_read_and_what_is_enlarged_is_said(tmp_path: Path, monkeypatch, capfd) -> None:
    monkeypatch.chdir(tmp_path)
    folder(6)
    for name in ("moving.gif", "old.bmp"):
        Path("data", name).write_bytes(b"GIF89a")
    larger = "--model.modalities.0.shape 64 64 --model.modalities.0.patch 16 16"
    assert command(f"train pictures --data data --out run --trainer.steps 3 --optimizer.warmup 1 {TINY} {larger}") == 0
    said = told(capfd)
    assert "2 images of other kinds are not read (moving.gif, old.bmp): save them as PNG, JPEG or WebP" in said
    assert "most pictures are smaller than that, 40 pixels" in said


@pytest.mark.parametrize("name", ["digits", "scenes"])
def test_other_recipes_have_no_budget(name: str, capfd) -> None:
    assert command(f"train {name} --budget 5m") == 2
    assert "no setting 'budget'" in told(capfd)


def test_rows_hold_long_captions_and_several_pictures(tmp_path: Path, monkeypatch, capfd) -> None:
    """What a tokenizer makes of texts is measured: words of no language take many tokens, and some languages have no blanks."""
    monkeypatch.chdir(tmp_path)
    folder()
    for i in range(12):
        Path(f"data/{i}.txt").write_text(" ".join(f"word{j}of{i}" for j in range(200)) if i % 2 else f"\u56fe\u7247{i}" * 300)
    assert command(f"train pictures --data data --out run --budget 2s {TINY}") == 0
    lengths = [int(n) for n in re.findall(r"rows? of (\d+) tokens", told(capfd))]
    assert lengths and lengths[0] >= 768
    picture = [{"image": f"{i}.png"} for i in range(12)]
    Path("data/captions.jsonl").write_text("\n".join(json.dumps({"segments": [{"text": f"{n}"}, *picture]}) for n in range(12)))
    assert command(f"train pictures --data data --out many --trainer.steps 2 --optimizer.warmup 1 {TINY}") == 0
    assert "768" in told(capfd) or json.loads(Path("many/choices.json").read_text())["choices"]["row_length"] >= 768


def test_captions_that_are_classes_are_judged_by_a_classifier(tmp_path: Path, monkeypatch, capfd) -> None:
    monkeypatch.chdir(tmp_path)
    for i in range(240):
        png(Path(f"data/{'dark' if i % 2 else 'light'} noise/{i}.png"), seed=i, size=(12, 12))
    line = f"train pictures --data data --out run --trainer.steps 2 --optimizer.warmup 1 {TINY}"
    assert command(f"{line} --model.modalities.0.shape 16 16 --model.modalities.0.patch 4 4") == 0
    said = told(capfd)
    assert "captions are 2 classes" in said
    report = json.loads(Path("run/report.json").read_text())
    assert (
        0 <= report["text_to_image_agreement"] <= 1
        and report["classifier_accuracy_count"] == report["image_to_text_accuracy_count"]
    )
    assert len(report["classifier"]) == 12 and Path("run/records/read.json").exists() and Path("run/classifier").is_dir()
