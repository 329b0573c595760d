"""The record between data and model: the tensors of some packed rows.

tokens      vocabulary ids; PAD under media slots and behind the last document of a row
targets     next token, IGNORE where no language loss is taken
learned     where one is taken, as indices into the flattened (row, length)
positions   rotary coordinates
documents   which packed document of the row; -1 padding
spans       which media span of the row; -1 text
private     slots that only their own span may see
media       the items, grouped by (modality, grid): variable sizes become a few groups
weights     factors on the language losses of the targets, in the order of `learned`; None where all are 1
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from transfusion.data.document import ANY_TIME, CLEAN, Media
from transfusion.data.tokenize import IGNORE, TokenSequence
from transfusion.data.vocabulary import Vocabulary


@dataclass(frozen=True, eq=False)
class MediaGroup:
    """Items of one modality and one grid.

    `slots` are indices into the flattened (row, length); `times` the interval of noise that each may get; `keys` name
    each item's own chance. `noises`, where any is given, has for each item its noise, or None where it is drawn; `masks`, where
    any is given, the weights of elements.
    """

    modality: int
    grid: tuple[int, ...]
    values: Float[Tensor, "item channels ..."]
    slots: Int[Tensor, "item patch"]
    times: Float[Tensor, "item 2"]
    weights: Float[Tensor, " item"]
    keys: Int[Tensor, " item"]
    noises: tuple[Tensor | None, ...] | None = None
    masks: Float[Tensor, "item ..."] | None = None


@dataclass(frozen=True)
class Position:
    """Where a loader stands: the next row to be read. All that a resumed run needs to know."""

    epoch: int = 0
    window: int = 0
    row: int = 0


@dataclass(frozen=True, eq=False)
class Batch:
    """Packed rows."""

    tokens: Int[Tensor, "row length"]
    targets: Int[Tensor, "row length"]
    learned: Int[Tensor, " target"]
    positions: Float[Tensor, "row length axes"]
    documents: Int[Tensor, "row length"]
    spans: Int[Tensor, "row length"]
    private: Bool[Tensor, "row length"]
    media: tuple[MediaGroup, ...]
    state: Position = Position()
    names: tuple[str, ...] = ()
    unreadable: tuple[str, ...] = ()
    weights: Float[Tensor, " target"] | None = None

    def to(self, device: torch.device | str) -> "Batch":
        """The same on another device. Keys, intervals of times and given noise stay: noise is made where they are."""

        def move(record: object, names: tuple[str, ...]) -> dict[str, Tensor]:
            return {name: getattr(record, name).to(device, non_blocking=True) for name in names}

        media = tuple(replace(g, **move(g, ("values", "slots", "weights"))) for g in self.media)
        weighted = () if self.weights is None else ("weights",)
        rows = move(self, ("tokens", "targets", "learned", "positions", "documents", "spans", "private", *weighted))
        return replace(self, media=media, **rows)

    @property
    def num_tokens(self) -> int:
        """Tokens and slots that belong to documents."""
        return int((self.documents >= 0).sum())


@dataclass(frozen=True, eq=False)
class Entry:
    """One document ready for a row: its sequence, its items' latents and their keys."""

    sequence: TokenSequence
    values: tuple[Tensor, ...]
    keys: tuple[int, ...]
    name: str = ""

    @classmethod
    def of(cls, sequence: TokenSequence, key: Callable[[int], int], name: str = "") -> "Entry":
        """The entry of a sequence: its media are loaded, each once, and item i of the document has the key `key(i)`, in both
        copies where it has two.

        Raises:
            MediaError: an item that cannot be read.
        """
        loaded: dict[int, Tensor] = {}
        for item in sequence.items:
            if item.index not in loaded:
                loaded[item.index] = item.media.tensor()
        values = tuple(loaded[item.index] for item in sequence.items)
        return cls(sequence, values, tuple(key(item.index) for item in sequence.items), name)


def collate(rows: Sequence[Sequence[Entry]], length: int, vocabulary: Vocabulary, axes: int) -> Batch:
    """Rows of documents as one batch. Documents of a row stand one behind the other, each counting from coordinate 0."""
    shape = (len(rows), length)
    tokens = np.full(shape, vocabulary.pad, dtype=np.int64)
    targets = np.full(shape, IGNORE, dtype=np.int64)
    positions = np.zeros((*shape, axes), dtype=np.float32)
    documents = np.full(shape, -1, dtype=np.int64)
    spans = np.full(shape, -1, dtype=np.int64)
    private = np.zeros(shape, dtype=bool)
    weighted = any(entry.sequence.weights is not None for row in rows for entry in row)
    weights = np.ones(shape, dtype=np.float32) if weighted else None
    groups: dict[tuple[int, tuple[int, ...]], list[_Placed]] = {}
    for r, row in enumerate(rows):
        at = num_spans = 0
        for d, entry in enumerate(row):
            sequence = entry.sequence
            here = slice(at, at + len(sequence))
            tokens[r, here], targets[r, here], positions[r, here] = (
                sequence.tokens,
                sequence.targets,
                sequence.positions,
            )
            documents[r, here], private[r, here] = d, sequence.private
            spans[r, here] = np.where(sequence.spans >= 0, sequence.spans + num_spans, -1)
            if weights is not None and sequence.weights is not None:
                weights[r, here] = sequence.weights
            for item, values, key in zip(sequence.items, entry.values, entry.keys, strict=True):
                group = groups.setdefault((item.modality, item.grid), [])
                group.append((values, r * length + at + item.start, item.media, key))
            at, num_spans = at + len(sequence), num_spans + len(sequence.items)
    learned = np.flatnonzero(targets != IGNORE)
    return Batch(
        tokens=torch.from_numpy(tokens),
        targets=torch.from_numpy(targets),
        learned=torch.from_numpy(learned),
        positions=torch.from_numpy(positions),
        documents=torch.from_numpy(documents),
        spans=torch.from_numpy(spans),
        private=torch.from_numpy(private),
        media=tuple(_group(modality, grid, items) for (modality, grid), items in sorted(groups.items(), key=lambda g: g[0])),
        names=tuple(entry.name for row in rows for entry in row),
        weights=None if weights is None else torch.from_numpy(weights.reshape(-1)[learned]),
    )


_Placed: TypeAlias = tuple[Tensor, int, Media, int]
"""Values, first slot in the flattened rows, the item, and its key."""


def _group(modality: int, grid: tuple[int, ...], items: list[_Placed]) -> MediaGroup:
    values, starts, media, keys = zip(*items, strict=True)
    count = int(np.prod(grid, dtype=int))
    noises = tuple(one.noise for one in media)
    size = values[0].shape[1:]
    masks = [torch.ones(size) if one.mask is None else one.mask.float().cpu() for one in media]
    return MediaGroup(
        modality=modality,
        grid=grid,
        values=torch.stack(values),
        slots=torch.tensor(starts)[:, None] + torch.arange(count),
        times=torch.tensor([_interval(one) for one in media], dtype=torch.float32),
        weights=torch.tensor([one.weight if one.learned else 0.0 for one in media], dtype=torch.float32),
        keys=torch.tensor(keys),
        noises=None if all(noise is None for noise in noises) else noises,
        masks=None if all(one.mask is None for one in media) else torch.stack(masks),
    )


def _interval(media: Media) -> tuple[float, float]:
    """The noise an item may get. One that is context only stands clean, as in a prompt, unless its noise is given."""
    return CLEAN if media.weight == 0 and media.times == ANY_TIME and media.noise is None else media.times
