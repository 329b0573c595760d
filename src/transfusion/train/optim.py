"""The optimiser and its learning rate."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import torch
from torch import nn

from transfusion.model.transfusion import Network
from transfusion.nn.matrices import Matrices, matrices
from transfusion.nn.transformer import Transformer
from transfusion.train.muon import Muon, MuonAdamW

EMBEDDINGS = ("embed.weight", "embed.new")


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
        language: factor on the learning rate of what came from a language model (`Network.language_parameters`); 0: it is
            frozen, and costs neither gradients nor moments.
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
    language: float = 1.0

    def __post_init__(self) -> None:
        for name in ("lr", "eps", "clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be a finite number above 0, not {getattr(self, name)}")
        for name in ("floor", "decay"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be a finite number, 0 or more, not {getattr(self, name)}")
        if self.warmup < 0:
            raise ValueError(f"warmup must be 0 steps or more, not {self.warmup}")
        if not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1):
            raise ValueError(f"beta1 and beta2 are shares from 0 to below 1, not {self.beta1} and {self.beta2}")
        if not 0 <= self.language < math.inf:
            raise ValueError(f"language is a factor on the learning rate, 0 (frozen) or more, not {self.language}")

    def rate(self, step: int, steps: int) -> float:
        """Learning rate of a step, counted from 0, of `steps`."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        done = (step - self.warmup) / max(steps - self.warmup, 1)
        return self.floor + (self.lr - self.floor) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))

    def build(self, module: nn.Module) -> torch.optim.Optimizer:
        """The optimiser: matrices with decay, vectors (norms, biases) and embeddings without. A group's `factor`, if it has
        one, is on the learning rate.

        With `language` 0 the language model's weights are frozen: from then on they ask for no gradient.

        Raises:
            ValueError: nothing is left to train; or a rate for a language model where there is none.
        """
        slow: set[int] = set()
        if self.language != 1.0:
            language = _language(module)
            if self.language:
                slow = {id(p) for p in language}
            else:
                for p in language:
                    p.requires_grad_(False)
        trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
        if not trained:
            raise ValueError("nothing is left to train: all weights are frozen (optim.language 0 freezes a language model's)")
        inside = [] if isinstance(self.method, AdamW) else _inside(module)
        groups = self._groups({n: p for n, p in trained.items() if id(p) not in slow}, inside)
        if slow:
            for group in self._groups({n: p for n, p in trained.items() if id(p) in slow}, inside):
                groups.append(group | {"factor": group.get("factor", 1.0) * self.language})
        betas = (self.beta1, self.beta2)
        if isinstance(self.method, AdamW):
            return torch.optim.AdamW(groups, lr=self.lr, betas=betas, eps=self.eps, fused=True)
        return MuonAdamW(groups, lr=self.lr, betas=betas, eps=self.eps)

    def _groups(self, named: dict[str, nn.Parameter], inside: list[Matrices]) -> list[dict[str, Any]]:
        """Groups of some parameters; `inside` are matrices for Muon, where they are among these."""
        chosen = {id(p) for p in named.values()}
        inside = [m for m in inside if id(m.weight) in chosen]
        taken = {id(m.weight) for m in inside}
        rest = [(name, p) for name, p in named.items() if id(p) not in taken]
        with_decay = [p for name, p in rest if p.ndim >= 2 and not name.endswith(EMBEDDINGS)]
        without = [p for name, p in rest if p.ndim < 2 or name.endswith(EMBEDDINGS)]
        groups = [{"params": with_decay, "weight_decay": self.decay}, {"params": without, "weight_decay": 0.0}]
        return groups if isinstance(self.method, AdamW) else [*groups, self.method.group(inside, self.decay)]


def _language(module: nn.Module) -> list[nn.Parameter]:
    """What came from a language model. Raises ValueError where there is none."""
    found = [p for part in module.modules() if isinstance(part, Network) for p in part.language_parameters()]
    if not found:
        raise ValueError(
            "this model goes on from no language model whose weights could be frozen or slowed: leave out optim.language, or "
            "start from one (init)"
        )
    return found


def _inside(module: nn.Module) -> list[Matrices]:
    """The matrices of all trunks in a module. Raises ValueError if there are none."""
    found = [m for part in module.modules() if isinstance(part, Transformer) for m in matrices(part)]
    if not found:
        raise ValueError("Muon is for the matrices of a trunk, and none of this model's is trained: use optim.method adamw")
    return found


PAPER = Optim(lr=3e-4, floor=1.5e-5, warmup=4000, beta1=0.9, beta2=0.95, eps=1e-8, decay=0.1, clip=1.0)
"""The paper's section 4.1."""
