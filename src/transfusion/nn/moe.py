"""Mixture of experts: a router sends each token through a few of several MLPs.

The router sees the token's vector alone and experts have no capacity limit, so a token's result does not depend on its
neighbours: cached, packed and batched passes agree.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from transfusion import distributed
from transfusion.nn.layers import MLP

MAX_EXPERTS = 4096


@dataclass(frozen=True)
class MoEConfig:
    """Experts and routing (Switch Transformer, arXiv 2101.03961; DeepSeekMoE, arXiv 2401.06066).

    Args:
        num_experts: experts per layer, each of the transformer's `mlp_width` (0: a plain MLP).
        top_k: experts per token, the most probable ones, weighted by their probability.
        shared: one more expert that all tokens use.
        aux_loss_weight: load-balancing loss weight. Only its gradient is added, in the backward of the router, once per
            optimizer step; with gradient accumulation each micro-batch counts by its share.
    """

    num_experts: int = 0
    top_k: int = 2
    shared: bool = True
    aux_loss_weight: float = 0.01

    def __post_init__(self) -> None:
        if self.num_experts > MAX_EXPERTS:
            raise ValueError(f"moe.num_experts must be at most {MAX_EXPERTS:,}, not {self.num_experts}")
        if self.num_experts < 0 or (self.num_experts and not 1 <= self.top_k <= self.num_experts):
            raise ValueError(f"moe.top_k must be between 1 and moe.num_experts ({self.num_experts}), not {self.top_k}")
        if not 0 <= self.aux_loss_weight < math.inf:
            raise ValueError(f"moe.aux_loss_weight must be a finite number, 0 or more, not {self.aux_loss_weight}")


_share: ContextVar[float] = ContextVar("share", default=1.0)


@contextmanager
def balancing(share: float) -> Iterator[None]:
    """Scale the load-balancing gradient by this micro-batch's share of the step's tokens (0: these tokens are balanced in
    another pass)."""
    before = _share.set(share)
    try:
        yield
    finally:
        _share.reset(before)


class MixtureOfExperts(nn.Module):
    """shared(x) + sum over the top-k experts of probability * expert(x)."""

    def __init__(self, width: int, hidden: int, config: MoEConfig) -> None:
        super().__init__()
        self.config = config
        self.router = nn.Linear(width, config.num_experts, bias=False)
        self.experts = nn.ModuleList(MLP(width, hidden) for _ in range(config.num_experts))
        self.shared = MLP(width, hidden) if config.shared else None

    def forward(self, x: Tensor, is_token: Tensor | None = None) -> Tensor:
        """[..., width] -> [..., width]

        Args:
            is_token: Bool[...], False for padding, which the load balance leaves out (None: no padding).
        """
        config, h = self.config, x.flatten(0, -2)
        logits = self.router(h)
        probabilities = logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(-1)
        chosen = probabilities.detach().topk(config.top_k, -1).indices
        order = chosen.flatten().argsort(stable=True)
        counts = torch.bincount(chosen.flatten(), minlength=config.num_experts).tolist()
        if self.training and torch.is_grad_enabled() and (loss_weight := config.aux_loss_weight * _share.get()):
            probabilities = balanced(probabilities, chosen, loss_weight, None if is_token is None else is_token.flatten())
        weight = probabilities.gather(-1, chosen).to(h.dtype)
        pieces = h.index_select(0, order // config.top_k).split(counts)
        outs = [expert(piece) for expert, piece in zip(self.experts, pieces, strict=True) if len(piece)]
        inverse = torch.empty_like(order)
        inverse[order] = torch.arange(len(order), device=order.device)
        routed = torch.cat(outs).index_select(0, inverse).unflatten(0, chosen.shape)
        out = (routed * weight.unsqueeze(-1)).sum(1)
        if self.shared is not None:
            out = out + self.shared(h)
        return out.view(x.shape)


def balanced(probabilities: Tensor, chosen: Tensor, weight: float, is_token: Tensor | None) -> Tensor:
    """The probabilities [token, expert] unchanged; backward adds the gradient of weight * load-balancing loss:

    number of experts * sum over experts of (share of the choices) * (mean probability); 1 for equal load (arXiv 2401.06066,
    eq. 12 to 14). `chosen` [token, top_k] are the experts' indices; padding does not count.
    """
    mask = probabilities.new_ones(len(probabilities)) if is_token is None else is_token.to(probabilities)
    num_experts, num_tokens = probabilities.shape[-1], mask.sum().clamp_min(1)
    counts = mask.new_zeros(num_experts).index_add(0, chosen.flatten(), mask.repeat_interleave(chosen.shape[-1]))
    load = distributed.summed(torch.cat([counts, mask.sum()[None]]))  # of all processes: the balance is one of the whole step
    relative_load = load[:-1] * num_experts / (chosen.shape[-1] * load[-1].clamp_min(1))
    gradient = relative_load * mask[:, None] * (weight / num_tokens)
    return _AddGradient.apply(probabilities, gradient)  # pyright: ignore[reportReturnType]


class _AddGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (gradient,) = ctx.saved_tensors
        return grads[0] + gradient, None
