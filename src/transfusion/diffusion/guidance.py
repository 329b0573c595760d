"""Classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598), for text and earlier media, within an interval of times.

With a scale for each (Brooks et al. 2022, arXiv 2211.09800, eq. 3), f the prediction and - a dropped condition:

    guided = f(-, -) + media * (f(-, media) - f(-, -)) + text * (f(text, media) - f(-, media))
           = text * f(text, media) + (media - text) * f(-, media) + (1 - media) * f(-, -)

Guidance makes items lighter, darker or more contrasted than those that were learned. `rescale` takes this back: the estimate
of x0 gets the mean and the standard deviation, of each channel, of the unguided f(text, media). (Lin et al. 2023, arXiv
2305.08891, eq. 15 and 16, do so with the standard deviation of the whole item, which leaves its mean.)
"""

import math
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

LEAST_DEVIATION = 1e-6
"""Of a channel that is divided by it."""


@dataclass(frozen=True)
class GuidanceBranch:
    """A prediction in the guided sum: the conditions that it drops, and its weight."""

    drop_text: bool
    drop_media: bool
    weight: float


@dataclass(frozen=True)
class Guidance:
    """How strongly generated items follow their context. Raises ValueError: a scale not finite, an interval or share
    outside [0, 1].

    Args:
        text: scale for text; 1: no guidance.
        media: scale for earlier media; 1: no guidance.
        low: guide only at times from here (Kynkaanniemi et al. 2024, arXiv 2404.07724);
        high: to here.
        rescale: share of the guided estimate that has the moments of the unguided one, 0 to 1; of items with axes.
    """

    text: float = 3.0
    media: float = 1.0
    low: float = 0.0
    high: float = 1.0
    rescale: float = 0.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.text) and math.isfinite(self.media)):
            raise ValueError(f"guidance scales are finite numbers, 1 for none, not {self.text} and {self.media}")
        if not 0.0 <= self.low <= self.high <= 1.0:
            raise ValueError(f"the guidance interval ({self.low}, {self.high}) must lie in [0, 1]")
        if not 0.0 <= self.rescale <= 1.0:
            raise ValueError(f"rescale is a share from 0 (as guided) to 1 (the unguided moments), not {self.rescale}")

    @property
    def max_branches(self) -> int:
        """Most unconditional branches that an item needs."""
        return int(self.text != self.media) + int(self.media != 1.0)

    def branches(self, *, has_text: bool, has_media: bool) -> tuple[GuidanceBranch, ...]:
        """The branches of an item with or without text and media before it: the conditional one, then those that drop.

        A condition that is absent cannot be dropped, so its term of the sum vanishes.
        """
        media = self.media if has_media else 1.0
        text = self.text if has_text else media
        dropped = (GuidanceBranch(True, False, media - text), GuidanceBranch(has_text, True, 1.0 - media))
        return GuidanceBranch(False, False, text), *(branch for branch in dropped if branch.weight != 0.0)

    def active(self, t: float) -> bool:
        """Whether to guide at time t."""
        return self.low <= t <= self.high


def rescaled(
    guided: Float[Tensor, "item channels ..."],
    conditional: Float[Tensor, "item channels ..."],
    share: Float[Tensor, " item"],
) -> Float[Tensor, "item channels ..."]:
    """Estimates of x0 that have, to a share for each item, mean and standard deviation of each channel of `conditional`."""
    if guided.ndim < 3:
        return guided
    axes = tuple(range(2, guided.ndim))
    centred = guided - guided.mean(axes, keepdim=True)
    ratio = conditional.std(axes, correction=0, keepdim=True) / centred.std(axes, correction=0, keepdim=True).clamp_min(
        LEAST_DEVIATION
    )
    share = share.reshape(-1, *[1] * (guided.ndim - 1))
    return share * (centred * ratio + conditional.mean(axes, keepdim=True)) + (1 - share) * guided
