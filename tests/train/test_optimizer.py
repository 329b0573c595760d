"""Weight decay pulls at matrices, and at nothing else; the learning rate rises to its peak and falls from it."""

from itertools import pairwise

import pytest
import torch

from small import IMAGE, model
from transfusion.train.optimizer import AdamWConfig, MuonConfig


def test_decay_is_for_matrices_alone() -> None:
    """Without a gradient only decay moves a weight: matrices shrink by lr * decay; norms, biases and embeddings stay."""
    m = model(IMAGE)
    before = {name: p.detach().clone() for name, p in m.network.named_parameters()}
    for p in m.network.parameters():
        p.grad = torch.zeros_like(p)
    AdamWConfig(lr=0.1, weight_decay=0.5).build(m.network).step()
    shrunk = 0
    for name, p in m.network.named_parameters():
        decayed = p.ndim >= 2 and name != "embed.weight"
        shrunk += decayed
        assert torch.allclose(p, before[name] * (0.95 if decayed else 1.0)), name
    assert shrunk > 4


@pytest.mark.parametrize("config", [AdamWConfig(lr=0.1, weight_decay=0.5), MuonConfig(lr=0.1, weight_decay=0.5)])
def test_decay_leaves_the_streams_of_hyper_connections_apart(config: AdamWConfig) -> None:
    """Their static mixing matrix starts at the identity, which is no pull towards zero; the dynamic part is a matrix as others."""
    m = model(IMAGE, residual="hyper")
    before = {name: p.detach().clone() for name, p in m.network.named_parameters()}
    for p in m.network.parameters():
        p.grad = torch.zeros_like(p)
    config.build(m.network).step()
    mixing = [name for name in before if name.endswith(".mix")]
    assert len(mixing) == 4
    for name, p in m.network.named_parameters():
        if name in mixing:
            assert torch.equal(p, before[name]), name
        elif name.endswith("dynamic.weight"):
            assert torch.allclose(p, before[name] * 0.95), name


@pytest.mark.parametrize("lr", [5e-6, 1e-5, 2e-5, 1e-3])
def test_the_rate_never_rises_after_the_warm_up(lr: float) -> None:
    """Where `lr` is below the floor it stays at `lr`."""
    for config in (AdamWConfig(lr=lr, min_lr=1e-5, warmup=10), MuonConfig(lr=lr, min_lr=1e-5, warmup=10)):
        rates = [config.rate(step, 100) for step in range(120)]
        assert max(rates) == rates[9] == lr and rates[:9] == sorted(rates[:9])
        assert all(a >= b for a, b in pairwise(rates[9:]))
        assert rates[-1] == pytest.approx(min(lr, 1e-5))
