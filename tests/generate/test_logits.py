"""Choosing tokens: sampling follows the distribution, and each cut keeps what it must."""

import pytest
import torch

from transfusion.generate.logits import Greedy, Sample


def shares(decoding: Sample, logits: torch.Tensor, count: int = 20_000) -> torch.Tensor:
    u = (torch.arange(count) + 0.5) / count
    return torch.bincount(decoding.choose(logits.expand(count, -1), u), minlength=logits.shape[-1]) / count


def test_sampling_follows_the_distribution_and_its_cuts() -> None:
    p = torch.tensor([0.5, 0.2, 0.15, 0.1, 0.05])
    logits = p.log()[None]
    assert torch.allclose(shares(Sample(), logits), p, atol=1e-3)
    assert torch.allclose(shares(Sample(0.5), logits), p**2 / (p**2).sum(), atol=1e-3)
    assert torch.allclose(shares(Sample(top_k=2), logits), torch.tensor([5, 2, 0, 0, 0]) / 7, atol=1e-3)
    assert torch.allclose(shares(Sample(top_p=0.75), logits), torch.tensor([0.5, 0.2, 0.15, 0, 0]) / 0.85, atol=1e-3)
    assert torch.allclose(shares(Sample(min_p=0.35), logits), torch.tensor([5, 2, 0, 0, 0]) / 7, atol=1e-3)
    assert Greedy().choose(logits, torch.zeros(1)).item() == 0
    for make in (
        lambda: Sample(temperature=0.0),
        lambda: Sample(top_p=0.0),
        lambda: Sample(min_p=2.0),
        lambda: Sample(top_k=-1),
    ):
        with pytest.raises(ValueError):
            make()
    edge = Sample(top_p=1e-6).choose(logits, torch.tensor([0.999999]))
    assert edge.item() == 0
