"""Embedding and head of an extended vocabulary: the pretrained ids in one parameter, new ids in another.

So the pretrained vectors can be frozen, or have their own learning rate, while the new ones train: weight decay, moments, EMA
and clipping never mix them.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transfusion.nn.layers import Linear


class SplitEmbedding(nn.Embedding):
    """Embedding; `weight` holds ids below `old`, `new` all further ids."""

    def __init__(self, old: int, new: int, width: int) -> None:
        super().__init__(old, width)
        self.new = nn.Parameter(torch.empty(new, width))

    def forward(self, input: Tensor) -> Tensor:
        """Ids [...] -> [..., width]"""
        old = F.embedding(input.clamp_max(self.num_embeddings - 1), self.weight)
        new = F.embedding((input - self.num_embeddings).clamp_min(0), self.new)
        return torch.where((input < self.num_embeddings).unsqueeze(-1), old, new)


class SplitHead(Linear):
    """Logits: of `weight` first, then of `new`."""

    def __init__(self, width: int, old: int, new: int) -> None:
        super().__init__(width, old)
        self.new = nn.Parameter(torch.empty(new, width))

    def forward(self, input: Tensor) -> Tensor:
        """[..., width] -> logits [..., id]"""
        return torch.cat([super().forward(input), F.linear(input, self.new)], -1)


def whole_weight(module: nn.Embedding | Linear) -> Tensor:
    """The weight [id, width] of an embedding or a head, split or not."""
    return torch.cat([module.weight, module.new]) if isinstance(module, SplitEmbedding | SplitHead) else module.weight
