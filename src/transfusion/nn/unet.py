"""Layers of a U-Net over latents [item, channels, *size] of 0 to 3 axes: blocks, shrinking and growing, attention.

Blocks of Nichol and Dhariwal 2021 (arXiv 2102.09672), with the time added between the two convolutions and a layer norm
over all of an item (group norm with one group) where theirs is adaptive: so wants it Transfusion (arXiv 2408.11039,
footnote 7). Nothing here looks across items, so that an item's numbers do not depend on what else is in the batch.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from transfusion.nn.attention import sdpa

AXES = 3
"""Axes that convolutions exist for."""


def stages(patch: tuple[int, ...]) -> list[tuple[int, ...]]:
    """A patch as factors of the single stages, each a prime or 1 on every axis: (4, 6) = (2, 2) * (2, 3)."""
    factors = [_primes(size) for size in patch]
    depth = max(map(len, factors), default=0)
    return [tuple(f[i] if i < len(f) else 1 for f in factors) for i in range(depth)]


def _primes(number: int) -> list[int]:
    found, divisor = [], 2
    while number > 1:
        while number % divisor == 0:
            found.append(divisor)
            number //= divisor
        divisor += 1
    return found


def norm(channels: int, eps: float) -> nn.GroupNorm:
    """Layer norm over channels and places of each item."""
    return nn.GroupNorm(1, channels, eps)


def convolution(axes: int, proj_in: int, proj_out: int, kernel: int | None = None) -> nn.Module:
    """A convolution that keeps the size; over a vector (no axis) a linear layer, as one of a single place."""
    size = (3 if kernel is None else kernel) if axes else 1
    kind = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[max(axes, 1)]
    return kind(proj_in, proj_out, size, padding=size // 2)


def shrink(factors: tuple[int, ...], proj_in: int, proj_out: int) -> nn.Module:
    """Each block of places becomes one."""
    kind = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[len(factors)]
    return kind(proj_in, proj_out, factors, stride=factors)


def grow(factors: tuple[int, ...], proj_in: int, proj_out: int) -> nn.Module:
    """Each place becomes a block of them."""
    kind = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}[len(factors)]
    return kind(proj_in, proj_out, factors, stride=factors)


class Residual(nn.Module):
    """x + convolution(norm(convolution(norm(x)) + time)), with SiLU behind each norm."""

    def __init__(self, axes: int, proj_in: int, proj_out: int, time: int, eps: float) -> None:
        super().__init__()
        self.first_norm, self.first = norm(proj_in, eps), convolution(axes, proj_in, proj_out)
        self.time = nn.Linear(time, proj_out)
        self.second_norm, self.second = norm(proj_out, eps), convolution(axes, proj_out, proj_out)
        self.around = nn.Identity() if proj_in == proj_out else convolution(axes, proj_in, proj_out, 1)

    def forward(self, x: Float[Tensor, "item channels ..."], time: Float[Tensor, "item time"]) -> Tensor:
        """Features, and the time's embedding -> features."""
        h = self.first(F.silu(self.first_norm(x)))
        h = h + self.time(F.silu(time)).reshape(h.shape[:2] + (1,) * (h.ndim - 2))
        return self.around(x) + self.second(F.silu(self.second_norm(h)))


class GridAttention(nn.Module):
    """x + attention(norm(x)) among the places of each item; where they stand they know from the convolutions before."""

    def __init__(self, channels: int, heads: int, eps: float) -> None:
        super().__init__()
        if channels % heads:
            raise ValueError(f"{channels} channels cannot be shared among {heads} heads: choose a divisor")
        self.heads = heads
        self.norm = norm(channels, eps)
        self.qkv, self.out = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)

    def forward(self, x: Float[Tensor, "item channels ..."]) -> Tensor:
        """[item, channels, *size] -> the same"""
        places = self.norm(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(places).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        found = self.out(sdpa(q, k, v, None).transpose(1, 2).flatten(2))
        return x + found.transpose(1, 2).reshape(x.shape)


def init_weights(module: nn.Module) -> None:
    """Weights that keep the scale of what they are given (normal, 1 / sqrt of the numbers summed), biases zero; blocks and
    attention begin as if they were not there."""
    for part in module.modules():
        weight, bias = getattr(part, "weight", None), getattr(part, "bias", None)
        if isinstance(weight, Tensor) and weight.ndim >= 2:
            grown = isinstance(part, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d)
            summed = weight.shape[0] if grown else math.prod(weight.shape[1:])
            nn.init.normal_(weight, std=1 / math.sqrt(summed))
        if isinstance(bias, Tensor):
            nn.init.zeros_(bias)
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, Residual):
                nn.init.zeros_(part.second.weight)  # type: ignore[arg-type]
            if isinstance(part, GridAttention):
                nn.init.zeros_(part.out.weight)
