"""Layers of a U-Net over latents [item, channels, *size] with 0 to 3 axes: residual blocks, down- and upsampling, attention.

The blocks are those of Nichol and Dhariwal 2021 (arXiv 2102.09672), with the time embedding added between the convolutions and
layer norm (group norm with one group) in place of adaptive norm, as in Transfusion (arXiv 2408.11039, footnote 7). No layer
mixes items, so a result does not depend on the rest of the batch.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from transfusion.nn.attention import sdpa

AXES = 3  # most axes of PyTorch's convolutions


def stages(patch: tuple[int, ...]) -> list[tuple[int, ...]]:
    """A patch factored into downsampling stages, a prime or 1 per axis: (4, 6) = (2, 2) * (2, 3)."""
    factors = [_primes(size) for size in patch]
    depth = max(map(len, factors), default=0)
    return [tuple(f[i] if i < len(f) else 1 for f in factors) for i in range(depth)]


def _primes(number: int) -> list[int]:
    primes, divisor = [], 2
    while number > 1:
        while number % divisor == 0:
            primes.append(divisor)
            number //= divisor
        divisor += 1
    return primes


def norm(channels: int, eps: float) -> nn.GroupNorm:
    """Layer norm over the channels and positions of each item."""
    return nn.GroupNorm(1, channels, eps)


def convolution(axes: int, proj_in: int, proj_out: int, kernel: int = 3) -> nn.Module:
    """A convolution that keeps the size. A vector (no axes) has one position, and a kernel of 1."""
    size = kernel if axes else 1
    conv = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[max(axes, 1)]
    return conv(proj_in, proj_out, size, padding=size // 2)


def shrink(factors: tuple[int, ...], proj_in: int, proj_out: int) -> nn.Module:
    """Each block of positions becomes one."""
    conv = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[len(factors)]
    return conv(proj_in, proj_out, factors, stride=factors)


def grow(factors: tuple[int, ...], proj_in: int, proj_out: int) -> nn.Module:
    """Each position becomes a block of them."""
    conv = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}[len(factors)]
    return conv(proj_in, proj_out, factors, stride=factors)


class Residual(nn.Module):
    """x + convolution(norm(convolution(norm(x)) + time)), with SiLU behind each norm."""

    def __init__(self, axes: int, proj_in: int, proj_out: int, time: int, eps: float) -> None:
        super().__init__()
        self.first_norm, self.first = norm(proj_in, eps), convolution(axes, proj_in, proj_out)
        self.time = nn.Linear(time, proj_out)
        self.second_norm, self.second = norm(proj_out, eps), convolution(axes, proj_out, proj_out)
        self.around = nn.Identity() if proj_in == proj_out else convolution(axes, proj_in, proj_out, 1)

    def forward(self, x: Float[Tensor, "item channels ..."], time: Float[Tensor, "item time"]) -> Tensor:
        """Features and embedded times -> features."""
        h = self.first(F.silu(self.first_norm(x)))
        h = h + self.time(F.silu(time)).reshape(h.shape[:2] + (1,) * (h.ndim - 2))
        return self.around(x) + self.second(F.silu(self.second_norm(h)))


class GridAttention(nn.Module):
    """x + attention(norm(x)) among the positions of each item; the convolutions before encode where they are."""

    def __init__(self, channels: int, heads: int, eps: float) -> None:
        super().__init__()
        if channels % heads:
            raise ValueError(f"{channels} channels cannot be split into {heads} heads: choose a divisor")
        self.heads = heads
        self.norm = norm(channels, eps)
        self.qkv, self.out = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)

    def forward(self, x: Float[Tensor, "item channels ..."]) -> Tensor:
        """[item, channels, *size] -> the same"""
        features = self.norm(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(features).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        out = self.out(sdpa(q, k, v, None).transpose(1, 2).flatten(2))
        return x + out.transpose(1, 2).reshape(x.shape)


def init_weights(module: nn.Module) -> None:
    """Weights that preserve scale (normal, 1 / sqrt(fan in)), biases zero; residual blocks and attention start as identity."""
    for child in module.modules():
        weight, bias = getattr(child, "weight", None), getattr(child, "bias", None)
        if isinstance(weight, Tensor) and weight.ndim >= 2:
            upsamples = isinstance(child, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d)
            fan_in = weight.shape[0] if upsamples else math.prod(weight.shape[1:])
            nn.init.normal_(weight, std=1 / math.sqrt(fan_in))
        if isinstance(bias, Tensor):
            nn.init.zeros_(bias)
    with torch.no_grad():
        for child in module.modules():
            if isinstance(child, Residual):
                nn.init.zeros_(child.second.weight)  # type: ignore[arg-type]
            if isinstance(child, GridAttention):
                nn.init.zeros_(child.out.weight)
