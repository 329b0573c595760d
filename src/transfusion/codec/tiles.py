"""Large items in overlapping tiles, to save memory: each passes alone, and where tiles overlap their results are blended."""

import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def in_tiles(
    function: Callable[[Tensor], Tensor], x: Tensor, size: Sequence[int], tile: int, *, read: int = 1, write: int = 1
) -> Tensor:
    """`function` of x [item, channels, ...], a tile at a time; neighbours share a quarter of a tile or more.

    Args:
        size: of the item in latents, along each axis.
        tile: latents of a tile along each axis.
        read, write: elements of x, and of the result, for one latent along each axis.
    """
    step = max(tile * 3 // 4, 1)
    windows = []
    for extent in size:
        starts = [*range(0, max(extent - tile, 0), step), max(extent - tile, 0)]
        windows.append([(start, min(tile, extent)) for start in starts])
    total: Tensor | None = None
    weights = torch.zeros([extent * write for extent in size])
    for window in itertools.product(*windows):
        source = tuple(slice(start * read, (start + count) * read) for start, count in window)
        target = tuple(slice(start * write, (start + count) * write) for start, count in window)
        result = function(x[(..., *source)])
        weight = _weight([count * write for _, count in window], ramp=max(tile // 4, 1) * write)
        if total is None:
            total = result.new_zeros((*result.shape[:2], *weights.shape))
        total[(..., *target)] += result * weight.to(result)
        weights[target] += weight
    assert total is not None
    return total / weights.to(total)


def _weight(counts: Sequence[int], ramp: int) -> Tensor:
    """Weights of a tile's elements: 1 inside, falling to its borders over `ramp` elements along each axis."""
    weight = torch.ones(())
    for count in counts:
        place = torch.arange(count) + 0.5
        along = torch.minimum(place, count - place).div(ramp).clamp_max(1)
        weight = weight[..., None] * along
    assert weight.numel() == math.prod(counts)
    return weight
