"""The optimiser and its learning rate."""

import math
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import torch
from torch import nn

from transfusion.nn.matrices import Matrices, matrices
from transfusion.nn.transformer import Transformer
from transfusion.train.muon import Muon, MuonAdamW


@dataclass(frozen=True)
class AdamW:
    """AdamW for all weights."""

    kind: ClassVar[str] = "adamw"


Method: TypeAlias = AdamW | Muon


@dataclass(frozen=True)
class Optim:
    """AdamW, or Muon beside it, with warm-up, a cosine down to a floor, and clipping.

    Args:
        method: what the trunk's matrices are moved by.
        lr: highest learning rate.
        floor: lowest, at the end.
        warmup: steps up to `lr`.
        beta1, beta2, eps: of AdamW.
        decay: weight decay, on matrices only.
        clip: bound on the norm of the gradient.
    """

    method: Method = AdamW()
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

    def build(self, module: nn.Module) -> torch.optim.Optimizer:
        """The optimiser: matrices with decay, vectors (norms, biases) and embeddings without. A group's `factor`, if it has
        one, is on the learning rate."""
        inside = [] if isinstance(self.method, AdamW) else _inside(module)
        taken = {id(m.weight) for m in inside}
        named = [(name, p) for name, p in module.named_parameters() if p.requires_grad and id(p) not in taken]
        with_decay = [p for name, p in named if p.ndim >= 2 and not name.endswith("embed.weight")]
        without = [p for name, p in named if p.ndim < 2 or name.endswith("embed.weight")]
        groups = [{"params": with_decay, "weight_decay": self.decay}, {"params": without, "weight_decay": 0.0}]
        betas = (self.beta1, self.beta2)
        if isinstance(self.method, AdamW):
            return torch.optim.AdamW(groups, lr=self.lr, betas=betas, eps=self.eps, fused=True)
        return MuonAdamW([*groups, self.method.group(inside, self.decay)], lr=self.lr, betas=betas, eps=self.eps)


def _inside(module: nn.Module) -> list[Matrices]:
    """The matrices of all trunks in a module. Raises ValueError if there are none."""
    found = [m for part in module.modules() if isinstance(part, Transformer) for m in matrices(part)]
    if not found:
        raise ValueError("Muon is for the matrices of a trunk, and none of this model's is trained: use optim.method adamw")
    return found


PAPER = Optim(lr=3e-4, floor=1.5e-5, warmup=4000, beta1=0.9, beta2=0.95, eps=1e-8, decay=0.1, clip=1.0)
"""The paper's section 4.1."""
