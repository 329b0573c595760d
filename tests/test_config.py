"""Configurations there and back, mistakes named; the command line."""

import json
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from small import model, picture
from transfusion import config
from transfusion.api import Transfusion
from transfusion.cli import main
from transfusion.codec.patchers import LinearPatcherConfig, UNetPatcherConfig
from transfusion.config import ConfigError
from transfusion.diffusion.process import PAPER
from transfusion.diffusion.sampler import DDPM, Euler, Heun
from transfusion.model.network import Network
from transfusion.model_folder import TransfusionConfig
from transfusion.recipes import RECIPES, find
from transfusion.run.command_line import command_line, parse, parse_run
from transfusion.run.presets import LLAMA_2_IDS, PAPER_SIZES, PRESETS, paper_model, preset
from transfusion.run.record import Run

RUNS = [find(name).run() for name in RECIPES]
RUNS += [preset(name, run) for name in PRESETS for run in RUNS] + [replace(RUNS[0], model=paper_model(s)) for s in PAPER_SIZES]


@pytest.mark.parametrize("run", RUNS, ids=lambda r: f"{r.recipe}-{r.digest}")
def test_every_preset_survives_yaml(run: Run) -> None:
    assert config.from_yaml(Run, config.to_yaml(run)) == run
    assert config.from_plain(Run, json.loads(json.dumps(config.to_plain(run)))) == run


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("recipe: x\ntrian: {steps: 3}", "trian: no such setting; did you mean 'trainer'"),
        ("recipe: x\ntrainer: {step: 3}", r"trainer\.step: no such setting; did you mean 'steps'"),
        ("recipe: x\ntrainer: {steps: many}", r"trainer\.steps: must be int, not 'many'"),
        ("recipe: x\ntrainer: {steps: 0}", "steps and accumulate must be at least 1"),
        ("recipe: x\nsampler: {kind: eulr}", r"sampler\.kind: no 'eulr'; did you mean 'euler'"),
        ("recipe: x\ndevice: tpu", "device: no 'tpu'"),
        ("recipe: x\nmodel: {modalities: [{shape: [5, 5]}]}", "multiple of the patch"),
        ("recipe: [", "not YAML"),
        ("data: x", "recipe"),
    ],
)
def test_mistakes_are_named(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config.from_yaml(Run, text)


def test_the_papers_sizes() -> None:
    """Within 4 % of Table 2's names, without allocating them."""
    for name in PAPER_SIZES:
        with torch.device("meta"):
            count = Network(paper_model(name), LLAMA_2_IDS + 5).num_parameters
        assert count / 1e9 == pytest.approx(float(name[:-1]), rel=0.04), name


def test_the_paper_preset_is_the_papers() -> None:
    run = preset("paper", find("fashion").run())
    assert run.model.diffusion == PAPER and run.model.media_weight == 5 and run.sampler == DDPM(250, clip=1.0)
    assert (run.optimizer.lr, run.optimizer.min_lr, run.optimizer.warmup, run.optimizer.weight_decay, run.optimizer.eps) == (
        3e-4,
        1.5e-5,
        4000,
        0.1,
        1e-8,
    )
    assert (run.transform.image_first, run.transform.condition_noise_max) == (0.2, 0.5)


def test_overrides_from_the_command_line() -> None:
    run = parse(
        find("digits").run(),
        ["--sampler.kind", "heun", "--sampler.num-steps", "50", "--trainer.steps=7", "--model.modalities.0.patch", "4", "4"],
        "x",
    )
    assert run.sampler == Heun(num_steps=50, shift=2.0) and run.trainer.steps == 7 and run.model.modalities[0].patch == (4, 4)
    untouched = parse(find("digits").run(), [], "x")
    assert untouched == find("digits").run()


DIGITS = find("digits").run()
SAID = (
    "--lora.target-modules qkv out --lora.rank 4",
    "--model.modalities.0.largest 16 16 --model.modalities.0.patch 4 4 --trainer.steps 7",
    "--model.modalities.0.shape 16 8",
    "--sampler.kind ddpm --sampler.num-steps 25",
    "--sampler.kind heun --sampler.shift 1.0 --sampler.clip 1",
    "--model.patchers.0.kind unet --model.patchers.0.channels 16 --data 'a folder'",
    "--model.patcher.kind unet --model.patcher.attention 2 --tokenizer.kind bytes --optimizer.kind muon",
    "--preset paper --size 0.16B --transform.condition_dropout.text 0.25 --model.transformer.attention.gated True",
    "--model.diffusion.times.kind logit_normal --model.transformer.num-kv-heads 2 --model.transformer.rope-scaling.kind linear",
)


@pytest.mark.parametrize("line", SAID)
def test_the_recorded_command_says_the_same_run(line: str) -> None:
    run = parse_run(DIGITS, shlex.split(line), "x")
    assert run != DIGITS
    words = shlex.split(command_line(run, DIGITS))
    assert words[:3] == ["transfusion", "train", "digits"]
    assert parse_run(DIGITS, words[3:], "x") == run
    assert shlex.split(command_line(DIGITS, DIGITS)) == words[:3]


def test_another_kind_keeps_what_both_have_and_was_set() -> None:
    digits, papers = find("digits").run(), preset("paper", find("digits").run())
    assert parse(digits, ["--sampler.kind", "heun"], "x").sampler == Heun(num_steps=25, shift=2.0)
    assert parse(digits, ["--sampler.kind", "ddpm"], "x").sampler == DDPM(num_steps=250, shift=2.0)
    assert parse(papers, ["--sampler.kind", "euler"], "x").sampler == Euler(num_steps=25, clip=1.0)
    unet = parse(digits, ["--model.patcher.time_features", "64"], "x")
    unet = parse(unet, ["--model.patcher.kind", "unet", "--model.patchers.0.kind", "unet"], "x")
    assert unet.model.patcher == UNetPatcherConfig(time_features=64) and unet.model.patchers == (UNetPatcherConfig(),)
    unet = parse(unet, ["--model.patchers.0.time_features", "32"], "x")
    assert parse(unet, ["--model.patchers.0.kind", "linear"], "x").model.patchers == (LinearPatcherConfig(time_features=32),)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("trian digits", "did you mean 'train'"),
        ("train digitz", "did you mean 'digits'"),
        ("train", "needs a recipe"),
        ("train digits --train.step 3", "did you mean 'trainer.steps'"),
        ("train digits --sampler.kind eulr", "did you mean 'euler'"),
        ("train digits --samplr.kind euler", "no choice 'samplr'"),
        ("train digits --preset papr", "did you mean 'paper'"),
        ("train digits --size 0.16b", "did you mean '0.16B'"),
        ("train digits --trainer.steps", "trainer.steps"),
        ("train digits --trainer.steps many", "many"),
        ("train digits --trainer.steps 0", "at least 1"),
        ("train digits --packing.rows 7 --trainer.accumulate 2", "multiple"),
        ("train fashion", "needs --data"),
        ("train pictures", "needs --data"),
        ("generate", "needs a run"),
        ("doctor now", "no arguments"),
    ],
)
def test_a_mistyped_line_ends_with_2_and_names_what_would_be_right(
    line: str, message: str, tmp_path: Path, monkeypatch, capfd
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(line.split())
    assert ended.value.code == 2
    assert message in "".join(capfd.readouterr())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("train fashion --data nowhere", "train-images"),
        ("train pictures --data nowhere", "no data at nowhere"),
        ("train pictures --data .", "no documents"),
        ("generate nowhere --prompt x", "no model in nowhere"),
        ("train digits --device cuda", "has no cuda"),
        ("train digits --init nowhere", "no model in nowhere"),
        ("train digits --tokenizer.kind file --tokenizer.path nowhere.json", "no tokenizer"),
    ],
)
def test_what_is_not_there_ends_with_1(line: str, message: str, tmp_path: Path, monkeypatch, capfd) -> None:
    if "cuda" in line and torch.cuda.is_available():
        return
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(line.split())
    assert ended.value.code == 1
    assert message in capfd.readouterr().err


@pytest.mark.parametrize(
    "line", ["", "--help", "train --help", "train digits --help", "config digits", "doctor", "generate --help", "--version"]
)
def test_help_and_information_end_with_0(line: str, capfd) -> None:
    with pytest.raises(SystemExit) as ended:
        main(line.split())
    assert ended.value.code == 0
    assert len(capfd.readouterr().out) > 4


def test_config_prints_what_train_would_do(capfd) -> None:
    with pytest.raises(SystemExit):
        main(["config", "fashion", "--trainer.steps", "5", "--preset", "paper"])
    assert config.from_yaml(Run, capfd.readouterr().out) == replace(
        preset("paper", find("fashion").run()), trainer=replace(find("fashion").run().trainer, steps=5)
    )


# ---- model folders ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tie_embeddings", [False, True])
def test_a_saved_model_is_the_same_model(tmp_path: Path, tie_embeddings: bool) -> None:
    found = model()
    if tie_embeddings:
        found = Transfusion(
            replace(found.config, model=replace(found.config.model, tie_embeddings=True)), found.vocabulary
        ).eval()
    found.save_pretrained(tmp_path)
    again = Transfusion.from_pretrained(tmp_path).eval()
    assert again.config == found.config
    documents = [["a text", picture(0)]]
    assert torch.equal(found.loss(documents), again.loss(documents))  # type: ignore[arg-type]
    one, other = (m.generate("a", force="image", seed=3)[0].media[0].tensor() for m in (found, again))
    assert torch.equal(one, other)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]


def test_weights_of_another_architecture_are_refused_and_named(tmp_path: Path) -> None:
    model().save_pretrained(tmp_path)
    model(width=64).save_pretrained(tmp_path / "wide")
    (tmp_path / "wide" / "config.json").write_bytes((tmp_path / "config.json").read_bytes())
    with pytest.raises(ValueError, match=r"(?s)another architecture.*\(\d+, 64\)"):
        Transfusion.from_pretrained(tmp_path / "wide")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
@pytest.mark.parametrize("damage", ["gone", "garbage", "half"])
def test_damaged_model_folders_are_named(tmp_path: Path, name: str, damage: str) -> None:
    model().save_pretrained(tmp_path)
    file = tmp_path / name
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(b"\x80garbage" if damage == "garbage" else file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(ValueError, match=r"config\.json" if name == "config.json" else name):
        Transfusion.from_pretrained(tmp_path)


def test_settings_of_another_format_are_refused(tmp_path: Path) -> None:
    model().save_pretrained(tmp_path)
    plain = config.to_plain(TransfusionConfig()) | {"format": 99}
    (tmp_path / "config.json").write_text(json.dumps(plain))
    with pytest.raises(ValueError, match=r"has format 99, this version reads format 2: train"):
        Transfusion.from_pretrained(tmp_path)
