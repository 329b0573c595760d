"""Time conditioning by adaLN-zero (DiT, Peebles and Xie 2022, arXiv 2212.09748), for media only: each item's time gives shift,
scale and gate for a layer's attention and MLP, computed per item and gathered for its slots. Text is computed as without it.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from transfusion.nn.layers import RMSNorm


@dataclass(frozen=True, eq=False)
class TimeCondition:
    """Embedded times of the items of a batch, and for each token (flat over row, length) its item's index; for text the number
    of items."""

    items: Float[Tensor, "item width"]
    owner: Int[Tensor, " token"]


@dataclass(frozen=True, eq=False)
class AdaLNParameters:
    """gate * sublayer((1 + scale) * norm(x) + shift). Each is [..., width]."""

    shift: Tensor
    scale: Tensor
    gate: Tensor


class AdaLN(nn.Module):
    """Time condition -> the modulation of a layer's attention and of its MLP. Gates are zero at initialisation, so a new layer
    passes media through unchanged."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.out = nn.Linear(width, 6 * width)
        self.init_weights()

    def init_weights(self) -> None:
        """All zero."""
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, condition: TimeCondition, like: Tensor) -> tuple[AdaLNParameters, AdaLNParameters]:
        """Parameters for every token, in the dtype of `like` [row, length, ...]; text gets shift 0, scale 0, gate 1."""
        items = self.out(F.silu(condition.items)).to(like.dtype).unflatten(-1, (6, -1))
        text = torch.zeros_like(items[:1])
        text[:, 2::3] = 1
        tokens = torch.cat([items, text]).index_select(0, condition.owner).unflatten(0, like.shape[:2]).unbind(2)
        return AdaLNParameters(*tokens[:3]), AdaLNParameters(*tokens[3:])


def modulated_norm(x: Tensor, norm: RMSNorm, scale: Tensor, shift: Tensor) -> Tensor:
    """norm(x) * (1 + scale) + shift"""
    return norm(x) * (1 + scale) + shift
