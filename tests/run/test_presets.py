"""Presets and sizes, and the run of each recipe under them, there and back through YAML."""

import json
from dataclasses import replace

import pytest
import torch

from transfusion import config
from transfusion.diffusion.process import PAPER
from transfusion.diffusion.sampler import DDPM
from transfusion.model.network import Network
from transfusion.recipes import RECIPES, find
from transfusion.run.presets import LLAMA_2_IDS, PAPER_SIZES, PRESETS, paper_model, preset
from transfusion.run.record import Run

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
