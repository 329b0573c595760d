"""Presets and sizes, and the run of each recipe under them, there and back through YAML."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from transfusion import config
from transfusion.codec import unet_patcher
from transfusion.diffusion.process import PAPER
from transfusion.diffusion.sampler import DDPM
from transfusion.evaluation.record import Record
from transfusion.model.network import Network
from transfusion.recipes import RECIPES, find
from transfusion.run.command_line import command_line, parse_run
from transfusion.run.presets import LLAMA_2_IDS, PAPER_SIZES, PRESETS, paper_model, paper_optimizer, preset
from transfusion.run.record import Run
from transfusion.train.optimizer import AdamWConfig

RUNS = [find(name).run() for name in RECIPES]
RUNS += [preset(name, run) for name in PRESETS for run in RUNS] + [replace(RUNS[0], model=paper_model(s)) for s in PAPER_SIZES]


@pytest.mark.parametrize("run", RUNS, ids=lambda r: f"{r.recipe}-{r.digest}")
def test_every_preset_survives_yaml(run: Run) -> None:
    assert config.from_yaml(Run, config.to_yaml(run)) == run
    assert config.from_plain(Run, json.loads(json.dumps(config.to_plain(run)))) == run


def test_the_papers_sizes() -> None:
    """Within 4 % of Table 2's names, without allocating them."""
    for name in PAPER_SIZES:
        with torch.device("meta"):
            count = Network(paper_model(name), LLAMA_2_IDS + 5).num_parameters
        assert count / 1e9 == pytest.approx(float(name[:-1]), rel=0.04), name


SHARES = {"0.16B": 106.1, "0.37B": 71.3, "0.76B": 35.5, "1.4B": 19.3, "7B": 3.8}
"""Table 7's weights of the U-Net, in percent of those of the model."""


@pytest.mark.parametrize("size", PAPER_SIZES)
def test_the_papers_patchers_have_the_papers_sizes(size: str) -> None:
    """Linear: less than 0.5 %. U-Net: within 6 % of Table 7's shares, and of 0.27 billion at the three largest sizes."""
    with torch.device("meta"):
        linear = Network(paper_model(size), LLAMA_2_IDS + 5)
        unet = Network(paper_model(size, unet_patcher.PAPER), LLAMA_2_IDS + 5)
    trunk, weights = linear.num_parameters, [sum(p.numel() for p in n.patchers.parameters()) for n in (linear, unet)]
    assert trunk - weights[0] == unet.num_parameters - weights[1]
    assert 0 < weights[0] < 0.005 * trunk
    assert 100 * weights[1] / (trunk - weights[0]) == pytest.approx(SHARES[size], rel=0.06)
    if float(size[:-1]) > 0.5:
        assert weights[1] / 1e9 == pytest.approx(0.27, rel=0.06)


def test_the_large_preset_takes_the_papers_unet() -> None:
    run = parse_run(find("pictures").run(), ["--preset", "large", "--size", "0.16B"], "test")
    assert run.model.patcher == unet_patcher.PAPER and run.model.diffusion == PAPER and run.guidance.text == 3


def test_the_chameleon_preset_has_its_stability_and_each_part_is_a_setting() -> None:
    plain, run = (preset(name, find("digits").run()) for name in ("paper", "chameleon"))
    model, transformer = run.model, run.model.transformer
    assert (model.kind, model.z_loss, transformer.qk_norm, transformer.norm_order) == ("chameleon", 1e-5, True, "post")
    assert run.optimizer.lr == pytest.approx(plain.optimizer.lr / 3) and run.guidance.text == 5
    assert run.transform.image_first_noise == 1 and run.transform.image_first == 0.2
    words = "--preset paper --model.kind chameleon --model.transformer.dropout 0.1 --model.z-loss 1e-4"
    alone = parse_run(find("digits").run(), words.split(), "test")
    assert alone.model.kind == "chameleon" and alone.model.z_loss == 1e-4 and alone.optimizer == plain.optimizer
    assert alone.model.transformer == replace(plain.model.transformer, dropout=0.1)
    assert parse_run(find("digits").run(), command_line(alone, find("digits").run()).split()[3:], "test") == alone


def paper_numbers(words: str, recipe: str = "fashion") -> tuple[float, float, int]:
    """(lr, min_lr, warm-up) of a recipe under the paper's preset and more settings."""
    found = parse_run(find(recipe).run(), ["--preset", "paper", *words.split()], "test").optimizer
    return found.lr, found.min_lr, found.warmup


def test_the_paper_preset_is_the_papers() -> None:
    run = preset("paper", find("fashion").run())
    assert run.model.diffusion == PAPER and run.model.media_weight == 5 and run.sampler == DDPM(250, clip=1.0)
    assert (run.transform.image_first, run.transform.image_first_noise) == (0.2, 0.5)
    assert run.trainer.ema_decay == 0.0 and run.trainer.steps == find("fashion").run().trainer.steps


@pytest.mark.parametrize("size", PAPER_SIZES)
def test_at_the_papers_sizes_and_steps_its_literal_optimiser_comes_out(size: str) -> None:
    """In any order of the words; by hand: lr 3e-4, 4,000 steps of warm-up, cosine to 1.5e-5, betas 0.9 and 0.95, clip 1."""
    for words in (
        f"--preset paper --size {size} --trainer.steps 250000",
        f"--trainer.steps 250000 --size {size} --preset paper",
    ):
        found = parse_run(find("pictures").run(), words.split(), "test")
        literal = AdamWConfig(3e-4, 1.5e-5, 4000, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1, max_grad_norm=1.0)
        assert found.optimizer == literal and found.model.transformer == PAPER_SIZES[size] and found.trainer.steps == 250_000


def test_a_small_run_gets_the_papers_share_of_warm_up_and_a_rate_by_width() -> None:
    shape = "--model.transformer.width {} --model.transformer.num-heads 2 --trainer.steps {}"
    rates = [paper_numbers(shape.format(width, 1000)) for width in (16, 128, 256, 512, 768, 1024)]
    assert [warmup for _, _, warmup in rates] == [16] * 6
    lrs = [lr for lr, _, _ in rates]
    assert lrs[0] == lrs[1] > lrs[2] > lrs[3] > lrs[4] == lrs[5] == 3e-4 and lrs[0] < 5e-3
    assert all(floor == pytest.approx(lr / 20) for lr, floor, _ in rates)
    digits = find("digits").run()
    assert paper_numbers("", "digits")[2] == digits.trainer.steps * 16 // 1000
    assert paper_numbers(shape.format(128, 50))[2] == 0
    assert paper_numbers("--optimizer.lr 1e-3 --optimizer.warmup 7 --trainer.steps 90")[::2] == (1e-3, 7)
    assert paper_numbers("--init runs/other")[:2] == (3e-4, 1.5e-5)  # trained weights take the paper's own rate
    assert parse_run(digits, ["--preset", "paper", "--trainer.ema-decay", "0.9"], "test").trainer.ema_decay == 0.9


def test_records_say_that_the_paper_preset_teaches_small_runs() -> None:
    """Digits, width 128, in 1,200 steps and in 2.5 times as many, as recorded, with the numbers that the preset gives."""
    folder = Path(__file__).parents[2] / "docs" / "records"
    drawn, read, longer = (
        Record.load(folder / name)
        for name in ("paper-digits/draw.json", "paper-digits/read.json", "paper-digits-3000/read.json")
    )
    for record, steps in ((drawn, 1200), (read, 1200), (longer, 3000)):
        expected, words = paper_optimizer(128, steps), f"{record.command} "
        assert words.startswith("transfusion train digits ") and "--model.diffusion.prediction eps " in words
        assert f"--optimizer.lr {expected.lr} " in words and f"--optimizer.warmup {expected.warmup} " in words
        assert "--trainer.ema-decay 0.0 " in words and ("--trainer.steps 3000 " in words) == (steps == 3000)
    assert drawn.metrics["agreement"].value >= 0.95 and drawn.metrics["agreement"].count == 500
    assert read.metrics["accuracy"].value >= 0.85 and longer.metrics["accuracy"].value >= 0.95
    assert read.metrics["accuracy"].count == longer.metrics["accuracy"].count == 360
