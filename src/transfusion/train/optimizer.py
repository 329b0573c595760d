"""The optimiser and its learning rate."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import torch
from torch import nn

from transfusion.model.network import Network
from transfusion.nn.hidden_matrices import Matrices, matrices
from transfusion.nn.transformer import Transformer
from transfusion.train.muon import MuonAdamW, muon_group

EMBEDDINGS = ("embed.weight", "embed.new")


@dataclass(frozen=True)
class AdamWConfig:
    """AdamW with linear warm-up, cosine decay to `min_lr`, and gradient clipping.

    Args:
        lr: highest learning rate.
        min_lr: learning rate at the end of the cosine.
        warmup: steps of linear warm-up to `lr`.
        beta1, beta2, eps: of AdamW.
        weight_decay: on matrices only.
        max_grad_norm: gradients are clipped to this norm.
        language_lr_scale: factor on the learning rate of what came from a language model (`Network.language_parameters`); 0: it
            is frozen, and costs neither gradients nor moments.
    """

    kind: ClassVar[str] = "adamw"
    lr: float = 1e-3
    min_lr: float = 1e-5
    warmup: int = 100
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    max_grad_norm: float = 1.0
    language_lr_scale: float = 1.0

    def __post_init__(self) -> None:
        for name in ("lr", "eps", "max_grad_norm"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be a finite number above 0, not {getattr(self, name)}")
        for name in ("min_lr", "weight_decay"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be a finite number, 0 or more, not {getattr(self, name)}")
        if self.warmup < 0:
            raise ValueError(f"warmup must be 0 steps or more, not {self.warmup}")
        if not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1):
            raise ValueError(f"beta1 and beta2 are shares from 0 to below 1, not {self.beta1} and {self.beta2}")
        if not 0 <= self.language_lr_scale < math.inf:
            raise ValueError(
                f"language_lr_scale is a factor on the learning rate, 0 (frozen) or more, not {self.language_lr_scale}"
            )

    def rate(self, step: int, steps: int) -> float:
        """Learning rate of a step, counted from 0, of `steps`."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        done = (step - self.warmup) / max(steps - self.warmup, 1)
        return self.min_lr + (self.lr - self.min_lr) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))

    def build(self, module: nn.Module) -> torch.optim.Optimizer:
        """The optimiser: matrices with decay, vectors (norms, biases) and embeddings without. A group's `lr_scale`, if it has
        one, is on the learning rate.

        With `language_lr_scale` 0 the language model's weights are frozen: from then on they ask for no gradient.

        Raises:
            ValueError: nothing is left to train; or a rate for a language model where there is none.
        """
        slow: set[int] = set()
        if self.language_lr_scale != 1.0:
            language = _language(module)
            if self.language_lr_scale:
                slow = {id(p) for p in language}
            else:
                for p in language:
                    p.requires_grad_(False)
        trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
        if not trained:
            raise ValueError(
                "nothing is left to train: all weights are frozen (optimizer.language_lr_scale 0 freezes a language model's)"
            )
        inside = [] if not isinstance(self, MuonConfig) else _inside(module)
        groups = self._groups({n: p for n, p in trained.items() if id(p) not in slow}, inside)
        if slow:
            for group in self._groups({n: p for n, p in trained.items() if id(p) in slow}, inside):
                groups.append(group | {"lr_scale": group.get("lr_scale", 1.0) * self.language_lr_scale})
        betas = (self.beta1, self.beta2)
        if not isinstance(self, MuonConfig):
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
        groups = [{"params": with_decay, "weight_decay": self.weight_decay}, {"params": without, "weight_decay": 0.0}]
        return groups if not isinstance(self, MuonConfig) else [*groups, self.group(inside)]


@dataclass(frozen=True)
class MuonConfig(AdamWConfig):
    """Muon for the hidden weight matrices of the trunk, AdamW for embeddings, heads, patchers, norms and biases.

    Args:
        lr_scale: factor on the learning rate of the matrices that Muon updates.
        momentum: share of the old momentum kept at each step.
        nesterov: Nesterov momentum.
        newton_schulz_steps: iterations of the orthogonalisation.
        per_head: orthogonalise each attention head's rows alone.
    """

    kind: ClassVar[str] = "muon"
    lr_scale: float = 1.0
    momentum: float = 0.95
    nesterov: bool = True
    newton_schulz_steps: int = 5
    per_head: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lr_scale <= 0 or not 0 <= self.momentum < 1 or self.newton_schulz_steps < 1:
            raise ValueError(
                f"Muon needs lr_scale above 0, a momentum in [0, 1) and at least one step, not {self.lr_scale}, "
                f"{self.momentum} and {self.newton_schulz_steps}"
            )

    def group(self, matrices: list[Matrices]) -> dict[str, Any]:
        """The parameter group that Muon updates."""
        return muon_group(
            matrices,
            weight_decay=self.weight_decay,
            lr_scale=self.lr_scale,
            momentum=self.momentum,
            nesterov=self.nesterov,
            newton_schulz_steps=self.newton_schulz_steps,
            per_head=self.per_head,
        )


OptimizerConfig: TypeAlias = AdamWConfig | MuonConfig


def _language(module: nn.Module) -> list[nn.Parameter]:
    """What came from a language model. Raises ValueError where there is none."""
    found = [p for part in module.modules() if isinstance(part, Network) for p in part.language_parameters()]
    if not found:
        raise ValueError(
            "this model goes on from no language model whose weights could be frozen or slowed: leave out "
            "optimizer.language_lr_scale, or start from one (init)"
        )
    return found


def _inside(module: nn.Module) -> list[Matrices]:
    """The matrices of all trunks in a module. Raises ValueError if there are none."""
    found = [m for part in module.modules() if isinstance(part, Transformer) for m in matrices(part)]
    if not found:
        raise ValueError("Muon is for the matrices of a trunk, and none of this model's is trained: use optimizer.method adamw")
    return found


PAPER = AdamWConfig(lr=3e-4, min_lr=1.5e-5, warmup=4000, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1, max_grad_norm=1.0)
"""The paper's section 4.1."""
