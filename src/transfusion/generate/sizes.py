"""The size of an item, as the model writes it: a token an axis, then BEGIN.

    text --SIZE axis 0--> .. --SIZE axis n--> --BEGIN--> media

Nothing is masked here: what the model writes is read. What cannot be used (a token that is no size of the next axis, BEGIN too
early, a size that the context has no room for) falls to the modality's own size, and is counted. The tokens that were wrong
leave no trace: they are taken out of the cache, and the default's are written in their place.
"""

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from transfusion.data.vocabulary import SpecialToken, Vocabulary
from transfusion.modality import Modality

SizeError: TypeAlias = Literal["malformed", "too large"]
"""Why a written size is not used: it cannot be read, or the context has no room for it."""


@dataclass(eq=False)
class SizeParser:
    """An item whose size is being written.

    Args:
        modality: of the item.
        length, position, num_draws: of the row before its first size token; what is taken back, is taken back to here.
        grid: what was read so far, in slots.
    """

    modality: Modality
    length: int
    position: float
    num_draws: int
    grid: list[int] = field(default_factory=list)

    def read(self, control: SpecialToken | None) -> Literal["more", "complete", "malformed"]:
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
    """An item that begins with the next pass: its grid, and why that is not the one that was written, if it is not."""

    modality: Modality
    grid: tuple[int, ...]
    fallback: SizeError | None = None


def openers(vocabulary: Vocabulary, modality: Modality) -> list[int]:
    """Ids by which the model begins an item: BEGIN, and its sizes where they vary."""
    ids = [vocabulary.begin(modality.name)]
    if modality.varies:
        for axis, largest in enumerate(modality.extents):
            ids += [vocabulary.id(SpecialToken("size", modality.name, axis, extent)) for extent in range(1, largest + 1)]
    return ids
