"""How a codebook learns: moving averages, dead codes, use and perplexity."""

import math

import pytest
import torch

from transfusion.codec.vq import Codebook
from transfusion.train.codebook import CodebookConfig, CodebookLearner


def step(codebook: Codebook, learner: CodebookLearner, vectors: torch.Tensor, number: int, steps: int = 100):
    learner.observe(vectors, codebook.nearest(vectors), step=number)
    return learner.end_step(codebook, step=number, steps=steps, seed=1)


def blobs(count: int) -> torch.Tensor:
    """Vectors around `count` well separated points."""
    centres = 10 * torch.eye(count)
    return (centres[:, None] + 0.1 * torch.randn(count, 40, count)).flatten(0, 1)


def test_the_first_step_takes_codes_from_the_data() -> None:
    codebook = Codebook(6, 6)
    learner, vectors = CodebookLearner(codebook, CodebookConfig()), blobs(6)
    _, revived = step(codebook, learner, vectors, 0)
    assert revived.all()
    assert all((vectors == code).all(1).any() for code in codebook.weight.detach())


def test_moving_averages_come_to_the_means() -> None:
    codebook = Codebook(6, 6)
    learner, vectors = CodebookLearner(codebook, CodebookConfig(update="ema", decay=0.8, revive_every=0)), blobs(6)
    with torch.no_grad():
        codebook.weight.copy_(10 * torch.eye(6) + 0.5 * torch.randn(6, 6))
    metrics: dict[str, float] = {}
    for number in range(40):
        metrics, _ = step(codebook, learner, vectors, number)
    means = torch.stack([v.mean(0) for v in vectors.split(40)])
    nearest = torch.cdist(codebook.weight.detach(), means).min(0).values
    assert nearest.max() < 0.01
    assert metrics["codes_used"] == 1.0 and math.isclose(metrics["perplexity"], 6.0, rel_tol=1e-3)


def test_by_gradient_the_step_leaves_codes_where_they_are() -> None:
    codebook = Codebook(4, 4)
    learner, vectors = CodebookLearner(codebook, CodebookConfig(revive_every=0)), blobs(4)
    before = codebook.weight.detach().clone()
    step(codebook, learner, vectors, 0)
    assert torch.equal(codebook.weight.detach(), before)


def test_dead_codes_are_revived_where_the_error_is_and_not_near_the_end() -> None:
    codebook = Codebook(4, 4)
    vectors = blobs(4)
    with torch.no_grad():
        codebook.weight[:3] = torch.stack([v.mean(0) for v in vectors.split(40)])[:3]
        codebook.weight[3] = 100.0  # the fourth blob has no code, and this one is never chosen
    learner = CodebookLearner(codebook, CodebookConfig(revive_every=10))
    learner.counts.fill_(1.0)
    learner.counts[3] = 0
    frozen = codebook.weight.detach().clone()
    _, revived = step(codebook, learner, vectors, 90)
    assert not revived.any() and torch.equal(codebook.weight.detach(), frozen)
    metrics, revived = step(codebook, learner, vectors, 10)
    assert revived.tolist() == [False, False, False, True]
    assert (codebook.weight[3] - vectors[120:].mean(0)).norm() < 1
    assert learner.counts[3] > 0 and metrics["codes_used"] == 0.75


def test_revival_repeats_and_a_skipped_step_leaves_nothing() -> None:
    weights = []
    for skipped in (False, True):
        torch.manual_seed(0)
        codebook = Codebook(8, 4)
        learner, vectors = CodebookLearner(codebook, CodebookConfig()), torch.randn(64, 4)
        if skipped:
            learner.observe(torch.full((64, 4), torch.nan), torch.zeros(64, dtype=torch.int64), step=-5)
        step(codebook, learner, vectors, 0)
        weights.append(codebook.weight.detach())
    assert torch.equal(*weights)


def test_settings_that_cannot_be() -> None:
    for words, message in (({"decay": 1.0}, "decay and dead"), ({"revive_every": -1}, "revive-every")):
        with pytest.raises(ValueError, match=message):
            CodebookConfig(**words)  # type: ignore[arg-type]
