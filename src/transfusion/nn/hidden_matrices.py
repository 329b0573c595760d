"""Hidden weight matrices, and how fused projections split into them.

Queries, keys and values are one product, and so are gate and up. An optimizer that treats a matrix as a whole (Muon) needs each
alone. The module that owns a weight describes it in a method `hidden_matrices`.
"""

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class HiddenMatrix:
    """A weight [output, input] or [expert, output, input], of one or of several fused matrices.

    Args:
        weight: the parameter.
        splits: outputs of each matrix.
        head_dim: outputs of an attention head; 0: no heads.

    Raises:
        ValueError: sizes that do not add up to the weight's outputs.
    """

    weight: Tensor
    splits: tuple[int, ...]
    head_dim: int = 0

    def __post_init__(self) -> None:
        if self.weight.ndim not in (2, 3) or sum(self.splits) != self.weight.shape[-2]:
            raise ValueError(f"splits {self.splits} must add up to the outputs of a weight of shape {tuple(self.weight.shape)}")
        if self.head_dim and any(size % self.head_dim for size in self.splits):
            raise ValueError(f"splits {self.splits} must be multiples of head_dim {self.head_dim}")

    def sizes(self, *, per_head: bool) -> tuple[int, ...]:
        """Outputs of each matrix, or of each head of each."""
        if not (per_head and self.head_dim):
            return self.splits
        return (self.head_dim,) * (sum(self.splits) // self.head_dim)


def hidden_matrices(module: nn.Module) -> list[HiddenMatrix]:
    """The trainable hidden matrices of a module and its children."""
    owners = [cast(Any, child) for child in module.modules() if hasattr(child, "hidden_matrices")]
    return [matrix for owner in owners for matrix in owner.hidden_matrices() if matrix.weight.requires_grad]


def split_matrices(x: Tensor, sizes: tuple[int, ...]) -> list[Tensor]:
    """Views [output, input] of the matrices of a weight, or of a tensor of its shape."""
    return [m for split in torch.split(x, list(sizes), dim=-2) for m in (split if split.ndim == 3 else (split,))]
