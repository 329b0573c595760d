"""Mixture of experts: several feed-forwards, of which each token runs through a few that a router chooses for it.

Experts chosen per token, by its own vector alone and without a limit on how many tokens an expert takes: so what a token gets
does not depend on its neighbours, and cached, packed and batched passes agree.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from transfusion.nn.layers import MLP


@dataclass(frozen=True)
class MoEConfig:
    """How many, and how they are chosen (Switch Transformer, arXiv 2101.03961; DeepSeekMoE, arXiv 2401.06066).

    Args:
        num_experts: experts in each layer (0: one plain feed-forward instead); each is as wide as the trunk's `hidden` says.
        top_k: experts that a token runs through, the most probable ones; each weighted by its probability.
        shared: one more expert that every token runs through, whatever the router says.
        aux_loss_weight: weight of the loss that keeps experts equally busy. It is no part of the losses that are reported: its
            gradient is added where the router's probabilities pass backward, in full for each batch that is run backward, but
            for a batch that is said to be a part of one (`balancing`), as the trainer's are where it accumulates.
    """

    num_experts: int = 0
    top_k: int = 2
    shared: bool = True
    aux_loss_weight: float = 0.01

    def __post_init__(self) -> None:
        if self.num_experts < 0 or (self.num_experts and not 1 <= self.top_k <= self.num_experts):
            raise ValueError(f"moe.top_k must be between 1 and moe.num_experts ({self.num_experts}), not {self.top_k}")
        if not 0 <= self.aux_loss_weight < math.inf:
            raise ValueError(f"moe.aux_loss_weight must not be negative, and finite, not {self.aux_loss_weight}")


_share: ContextVar[float] = ContextVar("share", default=1.0)


@contextmanager
def balancing(share: float) -> Iterator[None]:
    """Passes in this block count as this share of a batch in the balance: the share of a step's tokens for one of its parts, 0
    for a pass whose tokens are balanced in another."""
    before = _share.set(share)
    try:
        yield
    finally:
        _share.reset(before)


class MixtureOfExperts(nn.Module):
    """shared(x) + sum over the chosen experts of probability * expert(x)."""

    def __init__(self, width: int, hidden: int, config: MoEConfig) -> None:
        super().__init__()
        self.options = config
        self.router = nn.Linear(width, config.num_experts, bias=False)
        self.experts = nn.ModuleList(MLP(width, hidden) for _ in range(config.num_experts))
        self.shared = MLP(width, hidden) if config.shared else None

    def forward(self, x: Tensor, norm: Callable[[Tensor], Tensor], real: Tensor | None = None) -> Tensor:
        """[..., width] -> [..., width]; `norm` is applied to x first.

        Args:
            real: Bool[...], which tokens count in the balance (None: all); padding does not.
        """
        options, h = self.options, norm(x).flatten(0, -2)
        logits = self.router(h)
        probabilities = logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(-1)
        chosen = probabilities.detach().topk(options.top_k, -1).indices
        order = chosen.flatten().argsort(stable=True)
        counts = torch.bincount(chosen.flatten(), minlength=options.num_experts).tolist()
        if self.training and torch.is_grad_enabled() and (part := options.aux_loss_weight * _share.get()):
            probabilities = balanced(probabilities, chosen, part, None if real is None else real.flatten())
        weight = probabilities.gather(-1, chosen).to(h.dtype)
        pieces = h.index_select(0, order // options.top_k).split(counts)
        outs = [expert(piece, same) for expert, piece in zip(self.experts, pieces, strict=True) if len(piece)]
        back = torch.empty_like(order)
        back[order] = torch.arange(len(order), device=order.device)
        found = torch.cat(outs).index_select(0, back).unflatten(0, chosen.shape)
        out = (found * weight.unsqueeze(-1)).sum(1)
        if self.shared is not None:
            out = out + self.shared(h, same)
        return out.view(x.shape)


def same(x: Tensor) -> Tensor:
    """x"""
    return x


def balance(probabilities: Tensor, chosen: Tensor, real: Tensor) -> Tensor:
    """The loss of unequal work: number of experts * sum over them of (share of the choices) * (mean probability), 1 where work
    is equal (arXiv 2401.06066, eq. 12 to 14). `probabilities` [token, expert], `chosen` [token, active], `real` [token] of 0
    and 1."""
    return (_shares(probabilities, chosen, real) * probabilities * real[:, None]).sum() / real.sum().clamp_min(1)


def balanced(probabilities: Tensor, chosen: Tensor, weight: float, real: Tensor | None) -> Tensor:
    """The probabilities as they are; backward adds the gradient of weight * `balance`."""
    counted = probabilities.new_ones(len(probabilities)) if real is None else real.to(probabilities)
    gradient = _shares(probabilities, chosen, counted) * counted[:, None] * (weight / counted.sum().clamp_min(1))
    return _Added.apply(probabilities, gradient)  # pyright: ignore[reportReturnType]


def _shares(probabilities: Tensor, chosen: Tensor, real: Tensor) -> Tensor:
    """Each expert's share of the choices, times their number: [expert]."""
    number, active = probabilities.shape[-1], chosen.shape[-1]
    taken = real.new_zeros(number).index_add(0, chosen.flatten(), real.repeat_interleave(active))
    return taken * number / (active * real.sum().clamp_min(1))


class _Added(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (gradient,) = ctx.saved_tensors
        return grads[0] + gradient, None
