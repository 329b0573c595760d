"""Losses as (sum, count), so that means are right over packed rows, accumulation steps and ranks.

    total = text + lambda * media + sum of weight * auxiliary loss        (Transfusion, arXiv 2408.11039, eq. 4)

With discrete media, text is the mean over all targets, text and codes alike; the two are told apart in the records only.

Here: the text loss, the records, and their sum. The loss of a media item: `denoising.py`. Auxiliary losses: `auxiliary.py`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Mean:
    """A mean before its division: the sum of the terms, and their number."""

    sum: Float[Tensor, ""]
    count: Float[Tensor, ""]

    @property
    def value(self) -> Tensor:
        """The mean; 0 if there are no terms."""
        return self.sum / self.count.clamp_min(1)

    def __add__(self, other: "Mean") -> "Mean":
        return Mean(self.sum + other.sum, self.count + other.count)

    def detached(self) -> "Mean":
        """The same numbers without their graph."""
        return Mean(self.sum.detach(), self.count.detach())


@dataclass(frozen=True, eq=False)
class MediaMean(Mean):
    """A mean over media items, and the same for each modality."""

    by_modality: tuple[Mean, ...] = ()


@dataclass(frozen=True, eq=False)
class Term:
    """A loss and its weight. Auxiliary losses are means over the items with a loss, as `Losses.media`.

    Args:
        per: name of the loss whose count its sum is divided by ("": its own; of auxiliary losses, that of media).
    """

    name: str
    weight: float
    mean: Mean
    per: str = ""

    def __add__(self, other: "Term") -> "Term":
        return replace(self, mean=self.mean + other.mean)

    def detached(self) -> "Term":
        """The same numbers without their graph."""
        return replace(self, mean=self.mean.detached())


@dataclass(frozen=True, eq=False)
class Losses:
    """The losses of a batch.

    Args:
        text: mean cross-entropy of the text targets, in nats.
        media: mean denoising loss of the items with a loss.
        by_modality: the same for each modality.
        auxiliary: the auxiliary losses that are on.
        codes: mean cross-entropy of the targets that are codes of discrete media, in nats; None where a model has none.
    """

    text: Mean
    media: Mean
    by_modality: tuple[Mean, ...] = ()
    auxiliary: tuple[Term, ...] = ()
    codes: Mean | None = None

    def __add__(self, other: "Losses") -> "Losses":
        by_modality = tuple(a + b for a, b in zip(self.by_modality, other.by_modality, strict=True))
        auxiliary = tuple(a + b for a, b in zip(self.auxiliary, other.auxiliary, strict=True))
        codes = None if self.codes is None or other.codes is None else self.codes + other.codes
        return Losses(self.text + other.text, self.media + other.media, by_modality, auxiliary, codes)

    def detached(self) -> "Losses":
        """The same numbers without their graph."""
        auxiliary = tuple(term.detached() for term in self.auxiliary)
        by_modality = tuple(m.detached() for m in self.by_modality)
        codes = None if self.codes is None else self.codes.detached()
        return Losses(self.text.detached(), self.media.detached(), by_modality, auxiliary, codes)

    @property
    def targets(self) -> Tensor:
        """Number of all targets, text and codes."""
        return self.text.count if self.codes is None else self.text.count + self.codes.count

    def total(self, media_weight: float, counts: "Losses | None" = None) -> Float[Tensor, ""]:
        """text + lambda * media + the weighted auxiliary losses, each its own mean. If this batch belongs to a larger one, the
        sums are divided by the larger one's `counts`."""
        by = counts or self
        return self.over(media_weight, by.targets.clamp_min(1), by.media.count.clamp_min(1))

    def over(self, media_weight: float, texts: Tensor | int, items: Tensor | int) -> Float[Tensor, ""]:
        """The same, divided by known numbers of targets and of items with a loss (at least 1 each)."""
        return total(self.terms(media_weight), {"text": texts, "media": items})

    def terms(self, media_weight: float) -> tuple[Term, ...]:
        """Text, media, codes and the auxiliary losses as terms of one sum. The count of "text" is that of all targets."""
        auxiliary = (term if term.per else replace(term, per="media") for term in self.auxiliary)
        codes = () if self.codes is None else (Term("codes", 1.0, self.codes, per="text"),)
        return (Term("text", 1.0, self.text), Term("media", media_weight, self.media), *codes, *auxiliary)


def total(terms: Sequence[Term], counts: Mapping[str, Tensor | int]) -> Float[Tensor, ""]:
    """The sum of losses, each its weight times its sum over its count (of at least 1)."""
    shares = [term.weight * term.mean.sum / counts[term.per or term.name] for term in terms]
    return sum(shares[1:], shares[0])


def text_loss(
    logits: Float[Tensor, "target id"], targets: Int[Tensor, " target"], weights: Float[Tensor, " target"] | None
) -> Mean:
    """Cross-entropy of the targets in nats, each times its weight if there are weights; every target counts as 1."""
    logits = upcast(logits)
    if weights is None:
        nats = F.cross_entropy(logits, targets, reduction="sum")
    else:
        nats = F.cross_entropy(logits, targets, reduction="none") @ weights.to(logits)
    return Mean(nats, logits.new_tensor(len(targets)))


def text_and_codes(
    logits: Float[Tensor, "target id"],
    targets: Int[Tensor, " target"],
    weights: Float[Tensor, " target"] | None,
    first_code: int,
) -> tuple[Mean, Mean]:
    """`text_loss` of the targets below `first_code`, and of the others, which are codes."""
    nats = F.cross_entropy(upcast(logits), targets, reduction="none")
    nats = nats if weights is None else nats * weights.to(nats)
    coded = (targets >= first_code).to(nats)
    return Mean(nats @ (1 - coded), (1 - coded).sum()), Mean(nats @ coded, coded.sum())


def z_loss(logits: Float[Tensor, "target id"]) -> Mean:
    """The squared logarithm of the softmax's denominator, over targets: it keeps logits from growing (PaLM, arXiv 2204.02311;
    Chameleon, arXiv 2405.09818, takes the weight 1e-5)."""
    squares = upcast(logits).logsumexp(-1).square()
    return Mean(squares.sum(), squares.new_tensor(len(squares)))


def mean_per_item(error: Float[Tensor, "item channels ..."], masks: Float[Tensor, "item ..."] | None) -> Float[Tensor, " item"]:
    """Each item's mean over its elements; with masks, over the elements whose weight is above 0, times their weights."""
    if masks is None:
        return error.flatten(1).mean(1)
    masks = masks.to(error)
    counted = (masks > 0).flatten(1).sum(1) * error.shape[1]
    return (error * masks[:, None]).flatten(1).sum(1) / counted


def mean_over_items(errors: Float[Tensor, " item"], weights: Float[Tensor, " item"]) -> Mean:
    """The sum of (weighted) errors over the number of items with a weight above 0."""
    return Mean(errors.sum(), (weights > 0).sum().to(errors))


def upcast(x: Tensor) -> Tensor:
    """In fp32, or fp64 if x is: the precision of all losses."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
