"""Words of a command line -> a run, and back; the settings that commands have."""

import shlex
from pathlib import Path
from typing import Any

import pytest

from transfusion.codec.patchers import LinearPatcherConfig, UNetPatcherConfig
from transfusion.commands.classifier import ClassifierOptions
from transfusion.commands.data import EncodeOptions, MeasureOptions
from transfusion.commands.evaluate import EvaluateOptions
from transfusion.commands.generate import GenerateOptions
from transfusion.commands.reconstruct import ReconstructOptions
from transfusion.diffusion.sampler import DDPM, Euler, Heun
from transfusion.evaluation.curves import Plot
from transfusion.evaluation.results import Results
from transfusion.recipes import find
from transfusion.run.autoencoder import small
from transfusion.run.command_line import choices, choose_kinds, command_line, names, parse, parse_run
from transfusion.run.presets import preset


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


# ---- the settings that commands have ------------------------------------------------------------------------------------

SURFACE = Path(__file__).parent / "settings.txt"


def sections(title: str, value: Any) -> list[str]:
    """A line for each section of settings, and one for each kind that a section may have."""
    lines = []
    for name in dict.fromkeys(name.rpartition(".")[0] for name in names(value)):
        fields = [full.rpartition(".")[2] for full in names(value) if full.rpartition(".")[0] == name]
        lines.append(f"{title} {name or '-'}: {' '.join(fields)}")
    for name, kinds in choices(value).items():
        for tag in kinds if len(kinds) > 1 else ():
            chosen, _ = choose_kinds(value, [f"--{name}.kind", tag])
            fields = [full.removeprefix(f"{name}.") for full in names(chosen) if full.startswith(f"{name}.")]
            lines.append(f"{title} {name}={tag}: {' '.join(fields)}")
    return lines


def test_the_settings_are_those_of_the_list() -> None:
    """A renamed or removed setting breaks commands, YAML files and saved runs of others: change the list knowingly."""
    defaults = {
        "train": DIGITS,
        "train-vae": small("vae"),
        "train-classifier": ClassifierOptions(),
        "generate": GenerateOptions(),
        "evaluate": EvaluateOptions(),
        "reconstruct": ReconstructOptions(),
        "data-encode": EncodeOptions(),
        "data-measure": MeasureOptions(),
        "results": Results(),
        "plot": Plot(),
    }
    now = [line for title, value in defaults.items() for line in sections(title, value)]
    assert now == SURFACE.read_text().splitlines(), f"write these lines into {SURFACE} if the change is wanted"
