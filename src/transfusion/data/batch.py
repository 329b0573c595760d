"""Tokenised documents -> the record between data and model: the tensors of some packed rows.

Positions, spans and document numbers travel with the tokens, so the network needs no case for any modality. Media are grouped
by (modality, grid): items of various sizes become a few groups, without a loop over items and without padding.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from transfusion.data.document import CLEAN
from transfusion.data.tokenize import IGNORE, MediaSpan, TokenSequence
from transfusion.data.vocabulary import Vocabulary


@dataclass(frozen=True, eq=False)
class MediaGroup:
    """Items of one modality (its index) and one grid; `values` are their clean latents.

    Args:
        slots: indices into the flattened (row, length).
        times: interval of noise times that each item may get (0 clean, 1 noise).
        loss_weights: factors on the denoising losses of the items; 0 for an item without a loss.
        keys: RNG key of each item's noise and time.
        noises: for each item its noise, or None where it is drawn; None where all are drawn.
        masks: weights of the elements in each item's loss; None where all are 1.
    """

    modality: int
    grid: tuple[int, ...]
    values: Float[Tensor, "item channels ..."]
    slots: Int[Tensor, "item patch"]
    times: Float[Tensor, "item 2"]
    loss_weights: Float[Tensor, " item"]
    keys: Int[Tensor, " item"]
    noises: tuple[Tensor | None, ...] | None = None
    masks: Float[Tensor, "item ..."] | None = None


@dataclass(frozen=True)
class Position:
    """Position of a loader: the next row to read. A resumed run needs nothing else."""

    epoch: int = 0
    window: int = 0
    row: int = 0


@dataclass(frozen=True, eq=False)
class Batch:
    """Packed rows: the fields of `TokenSequence` for each document, PAD behind the last document of a row.

    Args:
        loss_index: where a language loss is taken (targets != IGNORE): indices into the flattened (row, length).
        documents, spans: which packed document of the row, -1 padding; which media span of the row, -1 text.
        state: the loader's position after this batch.
        names, unreadable: of the documents, row by row, for messages; a line for each document that was left out.
        target_weights: factors on the cross-entropy of the targets, in the order of `loss_index`; None where all are 1.
    """

    tokens: Int[Tensor, "row length"]
    targets: Int[Tensor, "row length"]
    loss_index: Int[Tensor, " target"]
    positions: Float[Tensor, "row length axes"]
    documents: Int[Tensor, "row length"]
    spans: Int[Tensor, "row length"]
    private: Bool[Tensor, "row length"]
    media: tuple[MediaGroup, ...]
    state: Position = Position()
    names: tuple[str, ...] = ()
    unreadable: tuple[str, ...] = ()
    target_weights: Float[Tensor, " target"] | None = None

    def to(self, device: torch.device | str) -> "Batch":
        """The batch on another device. Keys, times and `noises` stay on the CPU, where noise is drawn."""

        def move(record: object, names: tuple[str, ...]) -> dict[str, Tensor]:
            return {name: getattr(record, name).to(device, non_blocking=True) for name in names}

        media = tuple(replace(g, **move(g, ("values", "slots", "loss_weights"))) for g in self.media)
        weighted = () if self.target_weights is None else ("target_weights",)
        rows = move(self, ("tokens", "targets", "loss_index", "positions", "documents", "spans", "private", *weighted))
        return replace(self, media=media, **rows)

    @property
    def num_tokens(self) -> int:
        """Tokens and slots of its documents, padding left out."""
        return int((self.documents >= 0).sum())


def collate(rows: Sequence[Sequence[TokenSequence]], length: int, vocabulary: Vocabulary, axes: int) -> Batch:
    """A batch of rows of `length` tokens, of documents with loaded media (`TokenSequence.load`); each has positions from 0."""
    shape = (len(rows), length)
    tokens = np.full(shape, vocabulary.pad, dtype=np.int64)
    targets = np.full(shape, IGNORE, dtype=np.int64)
    positions = np.zeros((*shape, axes), dtype=np.float32)
    documents = np.full(shape, -1, dtype=np.int64)
    spans = np.full(shape, -1, dtype=np.int64)
    private = np.zeros(shape, dtype=bool)
    weighted = any(sequence.target_weights is not None for row in rows for sequence in row)
    target_weights = np.ones(shape, dtype=np.float32) if weighted else None
    groups: dict[tuple[int, tuple[int, ...]], list[MediaSpan]] = {}
    for r, row in enumerate(rows):
        start = num_spans = 0
        for d, sequence in enumerate(row):
            at = r, slice(start, start + len(sequence))
            tokens[at], targets[at], positions[at] = sequence.tokens, sequence.targets, sequence.positions
            documents[at], private[at] = d, sequence.private
            spans[at] = np.where(sequence.spans >= 0, sequence.spans + num_spans, -1)
            if target_weights is not None and sequence.target_weights is not None:
                target_weights[at] = sequence.target_weights
            for span in [span for span in sequence.items if span.codes is None]:
                group = groups.setdefault((span.modality, span.grid), [])
                group.append(replace(span, start=r * length + start + span.start))
            start, num_spans = start + len(sequence), num_spans + len(sequence.items)
    loss_index = np.flatnonzero(targets != IGNORE)
    return Batch(
        tokens=torch.from_numpy(tokens),
        targets=torch.from_numpy(targets),
        loss_index=torch.from_numpy(loss_index),
        positions=torch.from_numpy(positions),
        documents=torch.from_numpy(documents),
        spans=torch.from_numpy(spans),
        private=torch.from_numpy(private),
        media=tuple(_group(modality, grid, groups[modality, grid]) for modality, grid in sorted(groups)),
        names=tuple(sequence.name for row in rows for sequence in row),
        target_weights=None if target_weights is None else torch.from_numpy(target_weights.reshape(-1)[loss_index]),
    )


def _group(modality: int, grid: tuple[int, ...], spans: Sequence[MediaSpan]) -> MediaGroup:
    """Spans of one modality and grid, their starts counted in the flattened (row, length), as a group."""
    media = [span.media for span in spans]
    latents = [span.latents for span in spans if span.latents is not None]
    assert len(latents) == len(spans), "load the media first: TokenSequence.load"
    values = torch.stack(latents)
    masks = [torch.ones(values.shape[2:]) if item.mask is None else item.mask.float().cpu() for item in media]
    times = [CLEAN if item.is_clean else item.times for item in media]
    return MediaGroup(
        modality=modality,
        grid=grid,
        values=values,
        slots=torch.tensor([span.start for span in spans])[:, None] + torch.arange(math.prod(grid)),
        times=torch.tensor(times, dtype=torch.float32),
        loss_weights=torch.tensor([item.weight if item.has_loss else 0.0 for item in media], dtype=torch.float32),
        keys=torch.tensor([span.key for span in spans]),
        noises=None if all(item.noise is None for item in media) else tuple(item.noise for item in media),
        masks=None if all(item.mask is None for item in media) else torch.stack(masks),
    )
