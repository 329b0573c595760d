"""Time conditioning by adaLN-zero (DiT, Peebles and Xie 2022, arXiv 2212.09748), on media alone: each item's time gives a
shift, a scale and a gate for both parts of a layer. Text tokens pass as if it were not there, to the bit.

The work is done per item, not per token, and its result then brought to the item's slots.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class TimeCondition:
    """Embedded times of the items of a pass, and which item each token (row * length + place) belongs to; for text: the
    number of items."""

    items: Float[Tensor, "item width"]
    owner: Int[Tensor, " token"]


@dataclass(frozen=True, eq=False)
class AdaLNParameters:
    """What becomes of a part: gate * part((1 + scale) * norm(x) + shift). Each is [..., width]."""

    shift: Tensor
    scale: Tensor
    gate: Tensor


class AdaLN(nn.Module):
    """Condition -> the changes of a layer's attention and of its feed-forward. Gates begin at 0: media pass a new layer as they
    are."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.out = nn.Linear(width, 6 * width)
        self.start()

    def start(self) -> None:
        """First weights: zero."""
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, condition: TimeCondition, like: Tensor) -> tuple[AdaLNParameters, AdaLNParameters]:
        """Changes for every token of `like` [row, length, width]; text has shift 0, scale 0, gate 1."""
        items = self.out(F.silu(condition.items)).to(like.dtype).unflatten(-1, (6, -1))
        text = torch.zeros_like(items[:1])
        text[:, 2::3] = 1
        parts = torch.cat([items, text]).index_select(0, condition.owner).unflatten(0, like.shape[:2]).unbind(2)
        return AdaLNParameters(*parts[:3]), AdaLNParameters(*parts[3:])
