"""Losses as (sum, count), so that means are right over packed rows, accumulation steps and ranks."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


def upcast(x: Tensor) -> Tensor:
    """In fp32, or in fp64 where it is: what losses are computed in."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def mean_per_item(error: Float[Tensor, "item channels ..."], masks: Float[Tensor, "item ..."] | None) -> Float[Tensor, " item"]:
    """Each item's mean over its elements; where there are masks, over those that its mask weighs, times their weights."""
    if masks is None:
        return error.flatten(1).mean(1)
    masks = masks.to(error)
    counted = (masks > 0).flatten(1).sum(1) * error.shape[1]
    return (error * masks[:, None]).flatten(1).sum(1) / counted


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
class Term:
    """A further loss with its weight: a mean over loss-bearing items, as `Losses.media`."""

    name: str
    weight: float
    mean: Mean

    def __add__(self, other: "Term") -> "Term":
        return Term(self.name, self.weight, self.mean + other.mean)


@dataclass(frozen=True, eq=False)
class Losses:
    """What a model's pass over a batch costs.

    `text` is over text targets (nats each), `media` over loss-bearing items of each one's mean squared error; one entry a
    modality in `by_modality`. `auxiliary` holds the further losses that are on, see `auxiliary.py`.
    """

    text: Mean
    media: Mean
    by_modality: tuple[Mean, ...] = ()
    auxiliary: tuple[Term, ...] = ()

    def __add__(self, other: "Losses") -> "Losses":
        both = tuple(a + b for a, b in zip(self.by_modality, other.by_modality, strict=True))
        terms = tuple(a + b for a, b in zip(self.auxiliary, other.auxiliary, strict=True))
        return Losses(self.text + other.text, self.media + other.media, both, terms)

    def detached(self) -> "Losses":
        """The same numbers, without their graph."""

        def plain(mean: Mean) -> Mean:
            return Mean(mean.sum.detach(), mean.count.detach())

        terms = tuple(Term(term.name, term.weight, plain(term.mean)) for term in self.auxiliary)
        return Losses(plain(self.text), plain(self.media), tuple(plain(m) for m in self.by_modality), terms)

    def total(self, media_weight: float, counts: "Losses | None" = None) -> Tensor:
        """text + media_weight * media (the paper's eq. 4), each its own mean; and the further losses by their weights.

        Args:
            counts: whose counts to divide by, where this batch is one part of a larger one.
        """
        by = counts or self
        return self.over(media_weight, by.text.count.clamp_min(1), by.media.count.clamp_min(1))

    def over(self, media_weight: float, texts: Tensor | int, items: Tensor | int) -> Tensor:
        """The same, where the numbers of text targets and of loss-bearing items (at least 1) are known from elsewhere."""
        total = self.text.sum / texts + media_weight * self.media.sum / items
        for term in self.auxiliary:
            total = total + term.weight * term.mean.sum / items
        return total
