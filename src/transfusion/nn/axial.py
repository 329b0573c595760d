"""Continuous axial position embedding: an MLP per grid axis maps a coordinate to a vector; the axes' vectors are summed.

The input is a number, not an index, so item sizes are free and unseen sizes get sensible positions. The sum is added to the
slots' vectors, beside RoPE. (After the continuous axial embedding of x-transformers.)
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class AxisMLP(nn.Module):
    """Coordinate -> vector."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(1, hidden), nn.Linear(hidden, width)

    def forward(self, x: Float[Tensor, " place"]) -> Float[Tensor, "place width"]:
        """[place] -> [place, width]"""
        return self.second(F.silu(self.first(x[:, None])))


class AxialPositions(nn.Module):
    """Position vectors for the slots of one modality.

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
        total: Tensor | None = None
        for i, (axis, size, extent) in enumerate(zip(self.axes, grid, self.extents, strict=True)):
            assert isinstance(axis, AxisMLP)
            weight = axis.first.weight
            vectors = axis(torch.arange(size, device=weight.device, dtype=weight.dtype) / extent)
            vectors = vectors.view(*[size if j == i else 1 for j in range(len(grid))], -1)
            total = vectors if total is None else total + vectors
        assert total is not None
        return total.flatten(0, -2)
