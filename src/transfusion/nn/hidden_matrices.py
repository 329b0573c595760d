"""Which weights are matrices of the network's inside, and where several stand in one.

A projection is often fused: queries, keys and values in one product, gate and up in another. To an optimiser that treats a
matrix as a whole (Muon) they are several. The module that owns a weight says so, by a method `matrices`.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class Matrices:
    """A weight, [rows columns] or [expert rows columns], and the matrices that stand in it, one below the other.

    Args:
        weight: the parameter.
        parts: rows of each.
        head: rows of an attention head, where each part is made of heads; 0 where there are none.
    """

    weight: Tensor
    parts: tuple[int, ...]
    head: int = 0

    def __post_init__(self) -> None:
        if self.weight.ndim not in (2, 3) or sum(self.parts) != self.weight.shape[-2]:
            raise ValueError(f"parts {self.parts} must add up to the rows of a weight of shape {tuple(self.weight.shape)}")
        if self.head and any(part % self.head for part in self.parts):
            raise ValueError(f"parts {self.parts} must be multiples of the head's {self.head} rows")

    def rows(self, *, per_head: bool) -> tuple[int, ...]:
        """Rows of each matrix, or of each head of each."""
        if not (per_head and self.head):
            return self.parts
        return (self.head,) * (sum(self.parts) // self.head)


def matrices(module: nn.Module) -> list[Matrices]:
    """All that the parts of a module declare, where they are trained."""
    found: Iterator[Matrices] = (m for part in module.modules() if hasattr(part, "matrices") for m in _declared(part))
    return [m for m in found if m.weight.requires_grad]


def cut(x: Tensor, rows: tuple[int, ...]) -> list[Tensor]:
    """Views of the matrices of a weight (or of something of its shape), each [rows columns]."""
    return [one for part in torch.split(x, list(rows), dim=-2) for one in (part if part.ndim == 3 else (part,))]


def _declared(part: nn.Module) -> list[Matrices]:
    declare = part.matrices
    assert callable(declare)
    return declare()  # type: ignore[return-value]
