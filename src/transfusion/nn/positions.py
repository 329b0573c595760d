"""Rotary position embedding over several axes (RoPE, Su et al. 2021, arXiv 2104.09864; Llama's halves convention), and a
learned axial embedding beside it.

RoPE's frequencies are assigned to the axes in turn. A token with the same coordinate on every axis gets exactly the 1-D
rotation. Coordinates and angles are fp32 in every precision of the model.
"""

import math
from dataclasses import dataclass
from functools import reduce
from typing import ClassVar, TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


@dataclass(frozen=True)
class Unscaled:
    """No scaling of the frequencies."""

    kind: ClassVar[str] = "none"

    def __call__(self, frequency: Tensor) -> Tensor:
        """Unchanged frequencies."""
        return frequency


@dataclass(frozen=True)
class LinearScaling:
    """Position interpolation: frequencies divided by a factor, the context's extension (Chen et al. 2023, arXiv 2306.15595)."""

    kind: ClassVar[str] = "linear"
    factor: float = 2.0

    def __post_init__(self) -> None:
        if not 1 <= self.factor < math.inf:
            raise ValueError(f"rope_scaling.factor must be a finite number of at least 1, not {self.factor}")

    def __call__(self, frequency: Tensor) -> Tensor:
        """frequency / factor"""
        return frequency / self.factor


@dataclass(frozen=True)
class Llama3Scaling:
    """Llama 3.1's: low frequencies divided by the factor, high ones kept, linear interpolation between (arXiv 2407.21783).

    With turns = original / wavelength, the rotations within the original context, and s = (turns - low) / (high - low) clamped
    to [0, 1]: (1 - s) * frequency / factor + s * frequency.

    Args:
        factor: context extension, as a multiple of the original context.
        low, high: turns below which frequencies are divided, and above which they are kept.
        original: original context length.
    """

    kind: ClassVar[str] = "llama3"
    factor: float = 8.0
    low: float = 1.0
    high: float = 4.0
    original: int = 8192

    def __post_init__(self) -> None:
        if not 1 <= self.factor < math.inf or not 0 < self.low < self.high < math.inf or self.original < 1:
            raise ValueError(
                f"llama3 scaling needs a finite factor of at least 1, 0 < low < high and original of at least 1, not {self}"
            )

    def __call__(self, frequency: Tensor) -> Tensor:
        """Interpolated frequencies."""
        turns = self.original * frequency / (2 * math.pi)
        share = ((turns - self.low) / (self.high - self.low)).clamp(0, 1)
        return (1 - share) * frequency / self.factor + share * frequency


Scaling: TypeAlias = Unscaled | LinearScaling | Llama3Scaling


def angles(
    positions: Float[Tensor, "*rows length axes"], head_dim: int, theta: float, scaling: Scaling = Unscaled()
) -> tuple[Float[Tensor, "*rows length head_dim"], Float[Tensor, "*rows length head_dim"]]:
    """Cosines and signed sines of the rotation angles.

    angle_j = position[axis j mod axes] * theta^(-2j / head_dim), j = 0 .. head_dim / 2 - 1. Both halves of a head carry the
    same angles; the sine of the first half is negated, so that a rotation is x * cos + swap_halves(x) * sin. `scaling` changes
    the frequencies.
    """
    half = torch.arange(0, head_dim, 2, dtype=torch.float32, device=positions.device)
    frequency = scaling(theta ** (-half / head_dim))
    axis = torch.arange(head_dim // 2, device=positions.device) % positions.shape[-1]
    angle = positions.float()[..., axis] * frequency
    cos, sin = angle.cos(), angle.sin()
    return torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)


class AxisMLP(nn.Module):
    """Coordinate -> vector."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(1, hidden), nn.Linear(hidden, width)

    def forward(self, x: Float[Tensor, " place"]) -> Float[Tensor, "place width"]:
        """[place] -> [place, width]"""
        return self.second(F.silu(self.first(x[:, None])))


class AxialPositions(nn.Module):
    """Continuous axial embedding of the slots of one modality, added to their vectors: an MLP per grid axis maps a coordinate
    to a vector, and the axes' vectors are summed (after x-transformers). The coordinate is a number, not an index, so unseen
    sizes get sensible positions.

    Args:
        extents: the largest grid. Coordinates are fractions of it, so a step has the same length in every item.
    """

    def __init__(self, extents: tuple[int, ...], width: int, hidden: int = 64) -> None:
        super().__init__()
        self.extents = extents
        self.axes = nn.ModuleList(AxisMLP(width, hidden) for _ in extents)
        self.init_weights()

    def init_weights(self) -> None:
        """Hidden units active along the whole axis; vectors smaller than those that they are added to."""
        for axis in self.axes:
            assert isinstance(axis, AxisMLP)
            nn.init.normal_(axis.first.weight, std=8.0)
            nn.init.uniform_(axis.first.bias, -8.0, 8.0)
            nn.init.normal_(axis.second.weight, std=0.002)
            nn.init.zeros_(axis.second.bias)

    def forward(self, grid: tuple[int, ...]) -> Float[Tensor, "slot width"]:
        """The vectors of a grid's slots, in raster order."""
        weight, vectors = next(self.parameters()), []
        for i, (axis, size, extent) in enumerate(zip(self.axes, grid, self.extents, strict=True)):
            places = torch.arange(size, device=weight.device, dtype=weight.dtype) / extent
            vectors.append(axis(places).view(*[size if j == i else 1 for j in range(len(grid))], -1))
        return reduce(torch.add, vectors).flatten(0, -2)
