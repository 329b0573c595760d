"""Continuous axial positions: one small network per axis of a grid maps a coordinate to a vector, and the axes' are summed.

A number in, not an index: so the sizes of items are free, and an item of a size never seen gets sensible positions. It is added
to slot vectors, whatever coordinates attention turns by. (After the continuous axial embedding of x-transformers.)
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class AxisNetwork(nn.Module):
    """A coordinate -> a vector."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(1, hidden), nn.Linear(hidden, width)

    def forward(self, x: Float[Tensor, " place"]) -> Float[Tensor, "place width"]:
        """[place] -> [place, width]"""
        return self.second(F.silu(self.first(x[:, None])))


class AxialPositions(nn.Module):
    """Positions of the slots of one modality's items.

    Args:
        extents: the largest grid. Coordinates are in units of it, from 0 to 1, so that a step is as long in every item.
    """

    def __init__(self, extents: tuple[int, ...], width: int, hidden: int = 64) -> None:
        super().__init__()
        self.extents = extents
        self.axes = nn.ModuleList(AxisNetwork(width, hidden) for _ in extents)
        self.start()

    def start(self) -> None:
        """First weights: bends spread over the whole axis, and vectors somewhat fainter than those they are added to."""
        for axis in self.axes:
            assert isinstance(axis, AxisNetwork)
            nn.init.normal_(axis.first.weight, std=8.0)
            nn.init.uniform_(axis.first.bias, -8.0, 8.0)
            nn.init.normal_(axis.second.weight, std=0.002)
            nn.init.zeros_(axis.second.bias)

    def forward(self, grid: tuple[int, ...]) -> Float[Tensor, "slot width"]:
        """The vectors of a grid's slots, in raster order."""
        total: Tensor | None = None
        for i, (axis, size, extent) in enumerate(zip(self.axes, grid, self.extents, strict=True)):
            assert isinstance(axis, AxisNetwork)
            weight = axis.first.weight
            found = axis(torch.arange(size, device=weight.device, dtype=weight.dtype) / extent)
            found = found.view(*[size if j == i else 1 for j in range(len(grid))], -1)
            total = found if total is None else total + found
        assert total is not None
        return total.flatten(0, -2)
