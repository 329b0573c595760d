"""Optimizers and their learning-rate schedule."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import torch
from torch import nn

from transfusion.model.network import Network
from transfusion.nn.layers import HiddenMatrix, hidden_convolutions, hidden_matrices
from transfusion.nn.transformer import Transformer
from transfusion.train.muon import MuonAdamW


@dataclass(frozen=True)
class AdamWConfig:
    """AdamW with linear warm-up, cosine decay to `min_lr`, and gradient clipping.

    Args:
        lr: peak learning rate.
        min_lr: learning rate at the end of the cosine; where `lr` is smaller, the rate stays at `lr`.
        warmup: steps of linear warm-up to `lr`.
        beta1: AdamW's decay of the gradient's mean.
        beta2: AdamW's decay of its square.
        eps: added to the root of the square.
        weight_decay: on matrices; embeddings, norms, biases and what a module names in `undecayed` have none.
        max_grad_norm: global gradient norm above which gradients are clipped.
        language_lr_scale: factor on the learning rate of a language model's weights; 0: frozen, without gradients or moments.
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
            raise ValueError(f"beta1 and beta2 must be in [0, 1), not {self.beta1} and {self.beta2}")
        if not 0 <= self.language_lr_scale < math.inf:
            raise ValueError(
                f"language_lr_scale is a factor on the learning rate, 0 (frozen) or more, not {self.language_lr_scale}"
            )

    def rate(self, step: int, steps: int) -> float:
        """Learning rate of a step, counted from 0, of `steps`."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        done = (step - self.warmup) / max(steps - self.warmup, 1)
        floor = min(self.min_lr, self.lr)
        return floor + (self.lr - floor) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))

    def build(self, module: nn.Module) -> torch.optim.Optimizer:
        """The optimizer of a module's trainable weights. `lr_scale` of a parameter group multiplies the learning rate.

        With `language_lr_scale` 0 the language model's weights get `requires_grad` False.

        Raises:
            ValueError: nothing is left to train; or `language_lr_scale` without a language model.
        """
        slow: set[int] = set()
        if self.language_lr_scale != 1.0:
            language = _language_parameters(module)
            if self.language_lr_scale:
                slow = {id(p) for p in language}
            else:
                for p in language:
                    p.requires_grad_(False)
        trained = [p for p in module.parameters() if p.requires_grad]
        if not trained:
            raise ValueError("no weights to train, all are frozen (optimizer.language_lr_scale 0 freezes a language model)")
        groups = self._groups(module, [p for p in trained if id(p) not in slow])
        if slow:
            for group in self._groups(module, [p for p in trained if id(p) in slow]):
                groups.append(group | {"lr_scale": group.get("lr_scale", 1.0) * self.language_lr_scale})
        return self._optimizer(groups, lr=self.lr, betas=(self.beta1, self.beta2), eps=self.eps)

    def _groups(self, module: nn.Module, parameters: list[nn.Parameter]) -> list[dict[str, Any]]:
        """Parameter groups with and without weight decay, which embeddings, vectors (norms, biases) and what a module names in
        `undecayed` do not have."""
        spared = {id(p) for child in module.modules() if isinstance(child, nn.Embedding) for p in child.parameters()}
        spared |= {id(getattr(child, name)) for child in module.modules() for name in getattr(child, "undecayed", ())}
        decayed = [p for p in parameters if p.ndim > 1 and id(p) not in spared]
        others = [p for p in parameters if p.ndim < 2 or id(p) in spared]
        return [{"params": decayed, "weight_decay": self.weight_decay}, {"params": others, "weight_decay": 0.0}]

    def _optimizer(self, groups: list[dict[str, Any]], **options: Any) -> torch.optim.Optimizer:
        return torch.optim.AdamW(groups, fused=True, **options)


@dataclass(frozen=True)
class MuonConfig(AdamWConfig):
    """Muon for the transformer's hidden matrices and for the convolutions within an autoencoder's residual blocks; AdamW for
    embeddings, head, patchers, norms, biases and LoRA's adapters.

    Args:
        lr_scale: factor on the learning rate of Muon's matrices.
        momentum: decay of the momentum.
        nesterov: Nesterov momentum.
        newton_schulz_steps: iterations of the orthogonalization.
        per_head: orthogonalize each attention head's matrix alone.
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

    def group(self, matrices: list[HiddenMatrix]) -> dict[str, Any]:
        """The parameter group that Muon updates."""
        return {
            "params": [m.weight for m in matrices],
            "splits": [m.sizes(per_head=self.per_head) for m in matrices],
            "lr_scale": self.lr_scale,
            "weight_decay": self.weight_decay,
            "momentum": self.momentum,
            "nesterov": self.nesterov,
            "steps": self.newton_schulz_steps,
        }

    def _groups(self, module: nn.Module, parameters: list[nn.Parameter]) -> list[dict[str, Any]]:
        transformers = [child for child in module.modules() if isinstance(child, Transformer)]
        matrices = [m for child in transformers for m in hidden_matrices(child)] + hidden_convolutions(module)
        if not transformers and not matrices:
            raise ValueError(
                "Muon needs hidden matrices of a transformer or convolutions of an autoencoder, and there are none: use "
                "optimizer.kind adamw"
            )
        if not matrices:  # all frozen, under LoRA
            return super()._groups(module, parameters)
        hidden, chosen = {id(m.weight) for m in matrices}, {id(p) for p in parameters}
        others = super()._groups(module, [p for p in parameters if id(p) not in hidden])
        return [*others, self.group([m for m in matrices if id(m.weight) in chosen])]

    def _optimizer(self, groups: list[dict[str, Any]], **options: Any) -> torch.optim.Optimizer:
        return MuonAdamW(groups, **options)


OptimizerConfig: TypeAlias = AdamWConfig | MuonConfig


def _language_parameters(module: nn.Module) -> list[nn.Parameter]:
    result = [p for child in module.modules() if isinstance(child, Network) for p in child.language_parameters()]
    if not result:
        raise ValueError(
            "optimizer.language_lr_scale needs a model that starts from a language model: leave it out, or set init to one"
        )
    return result


PAPER = AdamWConfig(lr=3e-4, min_lr=1.5e-5, warmup=4000, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1, max_grad_norm=1.0)
"""The paper's section 4.1."""
