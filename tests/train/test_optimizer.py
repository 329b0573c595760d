"""Weight decay pulls at matrices, and at nothing else."""

import torch

from small import IMAGE, model
from transfusion.train.optimizer import AdamWConfig


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
