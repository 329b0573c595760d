"""The record between data and model: the tensors of some packed rows.

tokens      vocabulary ids; PAD under media slots and behind the last document of a row
targets     next token, IGNORE where no language loss is taken
learned     where one is taken, as indices into the flattened (row, length)
positions   rotary coordinates
documents   which packed document of the row; -1 padding
spans       which media span of the row; -1 text
private     slots that only their own span may see
media       the items, grouped by (modality, grid): variable sizes become a few groups
"""

from collections.abc import Sequence as List
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from transfusion.data.layout import IGNORE, Sequence
from transfusion.data.vocabulary import Vocabulary


@dataclass(frozen=True, eq=False)
class MediaGroup:
    """Items of one modality and one grid.

    `slots` are indices into the flattened (row, length); `times` the interval of noise that each may get; `keys` name
    each item's own chance.
    """

    modality: int
    grid: tuple[int, ...]
    values: Float[Tensor, "item channels ..."]
    slots: Int[Tensor, "item patch"]
    times: Float[Tensor, "item 2"]
    weights: Float[Tensor, " item"]
    keys: Int[Tensor, " item"]


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

    def to(self, device: torch.device | str) -> "Batch":
        """The same on another device. Keys and intervals of times stay: noise is drawn by them where they are."""

        def move(record: object, names: tuple[str, ...]) -> dict[str, Tensor]:
            return {name: getattr(record, name).to(device, non_blocking=True) for name in names}

        media = tuple(replace(g, **move(g, ("values", "slots", "weights"))) for g in self.media)
        rows = move(self, ("tokens", "targets", "learned", "positions", "documents", "spans", "private"))
        return replace(self, media=media, **rows)

    @property
    def num_tokens(self) -> int:
        """Tokens and slots that belong to documents."""
        return int((self.documents >= 0).sum())


@dataclass(frozen=True, eq=False)
class Entry:
    """One document ready for a row: its sequence, its items' latents and their keys."""

    sequence: Sequence
    values: tuple[Tensor, ...]
    keys: tuple[int, ...]
    name: str = ""


def collate(rows: List[List[Entry]], length: int, vocabulary: Vocabulary, axes: int) -> Batch:
    """Rows of documents as one batch. Documents of a row stand one behind the other, each counting from coordinate 0."""
    shape = (len(rows), length)
    tokens = np.full(shape, vocabulary.pad, dtype=np.int64)
    targets = np.full(shape, IGNORE, dtype=np.int64)
    positions = np.zeros((*shape, axes), dtype=np.float32)
    documents = np.full(shape, -1, dtype=np.int64)
    spans = np.full(shape, -1, dtype=np.int64)
    private = np.zeros(shape, dtype=bool)
    groups: dict[tuple[int, tuple[int, ...]], list[tuple[Tensor, int, tuple[float, float], float, int]]] = {}
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
            for item, values, key in zip(sequence.items, entry.values, entry.keys, strict=True):
                media = item.media
                weight = 0.0 if media.times == (0.0, 0.0) else media.weight
                group = groups.setdefault((item.modality, item.grid), [])
                group.append((values, r * length + at + item.start, media.times, weight, key))
            at, num_spans = at + len(sequence), num_spans + len(sequence.items)
    return Batch(
        tokens=torch.from_numpy(tokens),
        targets=torch.from_numpy(targets),
        learned=torch.from_numpy(np.flatnonzero(targets != IGNORE)),
        positions=torch.from_numpy(positions),
        documents=torch.from_numpy(documents),
        spans=torch.from_numpy(spans),
        private=torch.from_numpy(private),
        media=tuple(_group(modality, grid, items) for (modality, grid), items in sorted(groups.items(), key=lambda g: g[0])),
        names=tuple(entry.name for row in rows for entry in row),
    )


def _group(
    modality: int, grid: tuple[int, ...], items: list[tuple[Tensor, int, tuple[float, float], float, int]]
) -> MediaGroup:
    values, starts, times, weights, keys = zip(*items, strict=True)
    count = int(np.prod(grid, dtype=int))
    return MediaGroup(
        modality=modality,
        grid=grid,
        values=torch.stack(values),
        slots=torch.tensor(starts)[:, None] + torch.arange(count),
        times=torch.tensor(times, dtype=torch.float32),
        weights=torch.tensor(weights, dtype=torch.float32),
        keys=torch.tensor(keys),
    )
