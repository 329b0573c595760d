"""Losses as (sum, count), so that means are right over packed rows, accumulation steps and ranks."""

from dataclasses import dataclass

import torch
from torch import Tensor


def at_least_single(x: Tensor) -> Tensor:
    """In fp32, or in fp64 where it is: what losses are computed in."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


@dataclass(frozen=True, eq=False)
class Mean:
    """A mean that is not divided yet: sum of the terms, and how many there are."""

    sum: Tensor
    count: Tensor

    @property
    def value(self) -> Tensor:
        """The mean; 0 where there is no term."""
        return self.sum / self.count.clamp_min(1)

    def __add__(self, other: "Mean") -> "Mean":
        return Mean(self.sum + other.sum, self.count + other.count)


@dataclass(frozen=True, eq=False)
class Losses:
    """What a model's pass over a batch costs.

    `text` is over text targets (nats each), `media` over loss-bearing items of each one's mean squared error; one entry a
    modality in `by_modality`.
    """

    text: Mean
    media: Mean
    by_modality: tuple[Mean, ...] = ()

    def __add__(self, other: "Losses") -> "Losses":
        both = tuple(a + b for a, b in zip(self.by_modality, other.by_modality, strict=True))
        return Losses(self.text + other.text, self.media + other.media, both)

    def detached(self) -> "Losses":
        """The same numbers, without their graph."""
        parts = [Mean(m.sum.detach(), m.count.detach()) for m in (self.text, self.media, *self.by_modality)]
        return Losses(parts[0], parts[1], tuple(parts[2:]))

    def total(self, media_weight: float, counts: "Losses | None" = None) -> Tensor:
        """text + media_weight * media (the paper's eq. 4), each its own mean.

        Args:
            counts: whose counts to divide by, where this batch is one part of a larger one.
        """
        by = counts or self
        return self.text.sum / by.text.count.clamp_min(1) + media_weight * self.media.sum / by.media.count.clamp_min(1)
