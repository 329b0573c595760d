"""AdamW and its learning rate."""

import math
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class Optim:
    """AdamW with warm-up, a cosine down to a floor, and clipping.

    Args:
        lr: highest learning rate.
        floor: lowest, at the end.
        warmup: steps up to `lr`.
        beta1, beta2, eps: of AdamW.
        decay: weight decay, on matrices only.
        clip: bound on the norm of the gradient.
    """

    lr: float = 1e-3
    floor: float = 1e-5
    warmup: int = 100
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    decay: float = 0.1
    clip: float = 1.0

    def rate(self, step: int, steps: int) -> float:
        """Learning rate of a step, counted from 0, of `steps`."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        done = (step - self.warmup) / max(steps - self.warmup, 1)
        return self.floor + (self.lr - self.floor) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))

    def build(self, module: nn.Module) -> torch.optim.AdamW:
        """The optimiser: matrices with decay, vectors (norms, biases) and embeddings without."""
        named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
        matrices = [p for name, p in named if p.ndim >= 2 and not name.endswith("embed.weight")]
        others = [p for name, p in named if p.ndim < 2 or name.endswith("embed.weight")]
        groups = [{"params": matrices, "weight_decay": self.decay}, {"params": others, "weight_decay": 0.0}]
        return torch.optim.AdamW(groups, lr=self.lr, betas=(self.beta1, self.beta2), eps=self.eps, fused=True)


PAPER = Optim(lr=3e-4, floor=1.5e-5, warmup=4000, beta1=0.9, beta2=0.95, eps=1e-8, decay=0.1, clip=1.0)
"""The paper's section 4.1."""
