"""Handwritten digits that come with scikit-learn: 1,797 of 8 x 8 pixels (UCI; Alpaydin and Kaynak 1998), 360 held out."""

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from transfusion import rng

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
HELD_OUT = 360


@dataclass(frozen=True, eq=False)
class Digits:
    """Square pictures of digits.

    Args:
        pictures: Float[picture, 1, side, side] in [-1, 1], bright on dark.
        labels: Int[picture], 0 to 9.
    """

    pictures: Tensor
    labels: Tensor


@cache
def handwritten(*, held_out: bool) -> Digits:
    """The 1,437 digits to train on, or the 360 that never are."""
    from sklearn.datasets import load_digits

    data: Any = load_digits()
    order = rng.generator(rng.key("digits", "held out")).permutation(len(data.target))
    picked = torch.from_numpy(order[:HELD_OUT] if held_out else order[HELD_OUT:])
    return Digits(torch.from_numpy(data.images).float()[picked, None] / 8 - 1, torch.from_numpy(data.target)[picked])
