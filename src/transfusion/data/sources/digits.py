"""Handwritten digits that come with scikit-learn: 1,797 of 8 x 8 pixels (UCI; Alpaydin and Kaynak 1998), 360 held out."""

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from transfusion import rng

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
HELD_OUT = 360


@dataclass(frozen=True, eq=False)
class Digits:
    """Square images of digits in [-1, 1], bright on dark, and the digit that each shows."""

    images: Float[Tensor, "image 1 side side"]
    labels: Int[Tensor, " image"]


@cache
def read_digits(*, held_out: bool) -> Digits:
    """The 1,437 digits to train on, or the 360 that are held out."""
    from sklearn.datasets import load_digits

    data: Any = load_digits()
    order = rng.generator(rng.key("digits", "held out")).permutation(len(data.target))
    chosen = torch.from_numpy(order[:HELD_OUT] if held_out else order[HELD_OUT:])
    return Digits(torch.from_numpy(data.images).float()[chosen, None] / 8 - 1, torch.from_numpy(data.target)[chosen])
