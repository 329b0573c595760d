"""Classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598), for text and for earlier pictures, within an interval.

With both scales (Brooks et al. 2022, arXiv 2211.09800, eq. 3):

    guided = f(-, -) + media * (f(-, media) - f(-, -)) + text * (f(text, media) - f(-, media))
"""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class GuidanceBranch:
    """One unconditional branch: what it drops, and its weight in the sum."""

    drop_text: bool
    drop_media: bool
    weight: float


@dataclass(frozen=True)
class Guidance:
    """How strongly generation follows its context.

    Args:
        text: scale for text; 1: no guidance.
        media: scale for earlier pictures; 1: no guidance.
        low: guide only at times from here ...
        high: ... to here (Kynkaanniemi et al. 2024, arXiv 2404.07724).
    """

    text: float = 3.0
    media: float = 1.0
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.text) and math.isfinite(self.media)):
            raise ValueError(f"guidance scales are finite numbers, 1 for none, not {self.text} and {self.media}")
        if not 0.0 <= self.low <= self.high <= 1.0:
            raise ValueError(f"the guidance interval ({self.low}, {self.high}) must lie in [0, 1]")

    @property
    def max_branches(self) -> int:
        """Unconditional branches that an item may need at most."""
        if self.media == 1.0:
            return int(self.text != 1.0)
        return 1 if self.text == self.media else 2

    def branches(self, *, has_text: bool, has_media: bool) -> tuple[float, tuple[GuidanceBranch, ...]]:
        """Weight of the conditional branch, and the unconditional ones that are needed beside it.

        Args:
            has_text: whether text stands before the item.
            has_media: whether media stand before it.
        """
        text = self.text if has_text else 1.0
        media = self.media if has_media else 1.0
        found: list[GuidanceBranch] = []
        if media == 1.0:
            if text != 1.0:
                found.append(GuidanceBranch(True, False, 1.0 - text))
            return text, tuple(found)
        if not has_text:
            return media, (GuidanceBranch(False, True, 1.0 - media),)
        if media != text:
            found.append(GuidanceBranch(True, False, media - text))
        found.append(GuidanceBranch(True, True, 1.0 - media))
        return text, tuple(found)

    def active(self, t: float) -> bool:
        """Whether to guide at time t."""
        return self.low <= t <= self.high
