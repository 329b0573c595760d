"""Rows of a vocabulary in two parts: those that a language model brings, and new ones behind them.

They are parameters of their own, so that the first can be frozen, or learn at another rate, while the second are trained: no
weight decay, moment, average or clipping that is meant for one part reaches the other.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transfusion.nn.layers import Linear


class SplitEmbedding(nn.Embedding):
    """Vectors of ids: `weight` holds those below `old`, `new` those from there on."""

    def __init__(self, old: int, new: int, width: int) -> None:
        super().__init__(old, width)
        self.new = nn.Parameter(torch.empty(new, width))

    def forward(self, input: Tensor) -> Tensor:
        """Ids [...] -> [..., width]"""
        old = F.embedding(input.clamp_max(self.num_embeddings - 1), self.weight)
        new = F.embedding((input - self.num_embeddings).clamp_min(0), self.new)
        return torch.where((input < self.num_embeddings).unsqueeze(-1), old, new)


class SplitHead(Linear):
    """Scores of ids: first those of `weight`, then those of `new`."""

    def __init__(self, width: int, old: int, new: int) -> None:
        super().__init__(width, old)
        self.new = nn.Parameter(torch.empty(new, width))

    def forward(self, input: Tensor) -> Tensor:
        """[..., width] -> [..., id]"""
        return torch.cat([super().forward(input), F.linear(input, self.new)], -1)


def rows(part: nn.Embedding | Linear) -> Tensor:
    """All rows of an embedding or a head, whole or in two parts."""
    return torch.cat([part.weight, part.new]) if isinstance(part, SplitEmbedding | SplitHead) else part.weight
