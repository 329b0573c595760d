"""Sizes that the model writes: one token an axis, then BEGIN.

No token is masked while a size is written. A size that cannot be used (a token that is not the next axis' size, an early BEGIN,
more slots than the context has left) is replaced by the modality's default and counted. The engine then removes the written
tokens from the cache and writes the default's in their place.
"""

import math
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from transfusion.data.vocabulary import SpecialToken
from transfusion.modality import Modality

SizeError: TypeAlias = Literal["malformed", "too large"]
"""Why a written size is not used: it cannot be parsed, or the context has too few tokens left for it."""


@dataclass(eq=False)
class SizeParser:
    """Parses the size of an item, token by token; `grid` holds the sizes so far, in slots.

    Args:
        length, position, num_draws: of the document before its first size token, to roll back to if the size is not used.
    """

    modality: Modality
    length: int
    position: float
    num_draws: int
    grid: list[int] = field(default_factory=list)

    def parse(self, control: SpecialToken | None) -> Literal["more", "complete", "malformed"]:
        """Take the next token (None: a text token)."""
        if control is None or control.modality != self.modality.name:
            return "malformed"
        axis = len(self.grid)
        if axis == len(self.modality.extents):
            return "complete" if control.role == "begin" else "malformed"
        if control.role != "size" or control.axis != axis:
            return "malformed"
        self.grid.append(control.extent)
        return "more"


@dataclass(frozen=True)
class PendingItem:
    """An item that starts after the next pass. `fallback`: why its grid is the modality's default, if the size was not used."""

    modality: Modality
    grid: tuple[int, ...]
    fallback: SizeError | None = None


def item_length(modality: Modality, grid: tuple[int, ...]) -> int:
    """Tokens of an item: its sizes, where they vary, BEGIN, its slots and END."""
    return len(grid) * modality.varies + 1 + math.prod(grid) + 1
