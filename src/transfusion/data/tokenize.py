"""Document -> sequence: tokens, targets, coordinates and spans of one document, before it is packed.

    BOS  text ...  [SIZE axis0 .. axisN]  BEGIN  slot slot .. slot  END  text ...  EOS
                    where sizes vary             one span of media

An item with a dual copy has two spans, the noised copy (private) and the clean one, both at the same coordinates:

    BEGIN  noised slot .. noised slot  clean slot .. clean slot  END

Targets are the next token, except that nothing is learned at a BEGIN input or under slots (so END is never predicted: the
decoder writes it), in a text that is context only, and in a document without language loss.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int
from torch import Tensor

from transfusion.data.document import CLEAN, Document, Media, Text
from transfusion.data.vocabulary import Vocabulary

IGNORE = -100
"""Target where no language loss is taken."""


@dataclass(frozen=True)
class Coordinates:
    """Where tokens stand in rotary space. Text carries the same coordinate on every axis, so rows of text are 1-D RoPE.

    Args:
        order: "grid": a slot stands at (start + its offset) on each axis of its grid, and the sequence goes on after the
            item's largest extent. "raster" (the paper's): slots count on in reading order, as if they were text.
            "shared": all slots of an item stand at one coordinate, as one token would; where they stand in the item only the
            patcher or `model.axial` can say.
        axes: rotary axes; at least as many as the grid with most axes.
    """

    order: Literal["grid", "raster", "shared"] = "grid"
    axes: int = 2

    def __post_init__(self) -> None:
        if self.order not in ("grid", "raster", "shared"):
            raise ValueError(f"order must be grid, raster or shared, not {self.order!r}")
        if self.axes < 1:
            raise ValueError(f"axes must be at least 1, not {self.axes}")

    def place(self, start: float, grid: tuple[int, ...]) -> tuple[np.ndarray, float]:
        """Coordinates of an item's slots, [slots, axes], and the coordinate at which the sequence goes on."""
        count = int(np.prod(grid, dtype=int))
        if self.order == "raster":
            return np.repeat(start + np.arange(count, dtype=np.float32)[:, None], self.axes, axis=1), start + count
        if self.order == "shared":
            return np.full((count, self.axes), start, dtype=np.float32), start + 1
        if len(grid) > self.axes:
            raise ValueError(f"a grid of {len(grid)} axes needs as many rotary axes, this model has {self.axes}: set axes")
        offsets = np.zeros((count, self.axes), dtype=np.float32)
        for axis, index in enumerate(np.indices(grid)):
            offsets[:, axis] = index.reshape(-1)
        return start + offsets, start + max(grid, default=1)


@dataclass(frozen=True, eq=False)
class MediaSpan:
    """A media item in a sequence.

    Args:
        media: the item as this copy is trained: of a dual item the noised copy is private, the clean one is context.
        modality: index of its modality.
        grid: its shape in slots.
        start: its first slot; it fills [start, start + product of grid).
        index: number of the item among the document's media; both copies of a dual item have the same.
        copy: which copy of a dual item this is; "" for any other item.
        latents: loaded values, Float[channels, *size]; None before `TokenSequence.load`.
        key: RNG key of its noise and time; both copies of a dual item have the same.
    """

    media: Media
    modality: int
    grid: tuple[int, ...]
    start: int
    index: int = 0
    copy: Literal["", "noised", "clean"] = ""
    latents: Tensor | None = None
    key: int = 0


@dataclass(frozen=True, eq=False)
class TokenSequence:
    """A document as tokens.

    Args:
        tokens: vocabulary ids; PAD under media slots.
        targets: next token, IGNORE where no language loss is taken.
        positions: rotary coordinates.
        spans: index of the media span; -1 text.
        private: slots that only their own span may see.
        items: the media spans.
        position: coordinate of the token that would come next.
        target_weights: factors on the cross-entropy of the targets; None where all are 1.
        name: of the document, for messages.
    """

    tokens: Int[np.ndarray, " length"]
    targets: Int[np.ndarray, " length"]
    positions: Float[np.ndarray, "length axes"]
    spans: Int[np.ndarray, " length"]
    private: Bool[np.ndarray, " length"]
    items: tuple[MediaSpan, ...]
    position: float
    target_weights: Float[np.ndarray, " length"] | None = None
    name: str = ""

    def __len__(self) -> int:
        return len(self.tokens)

    def load(self, key: Callable[[int], int]) -> "TokenSequence":
        """The sequence with its media loaded, each item once, and item i of the document keyed `key(i)`.

        Raises:
            MediaError: an item that cannot be read.
        """
        latents: dict[int, Tensor] = {}
        for item in self.items:
            if item.index not in latents:
                latents[item.index] = item.media.tensor()
        return replace(
            self, items=tuple(replace(item, latents=latents[item.index], key=key(item.index)) for item in self.items)
        )


def tokenize_document(
    document: Document, vocabulary: Vocabulary, coordinates: Coordinates, *, add_eos: bool = True
) -> TokenSequence:
    """The sequence of a document.

    Args:
        closed: False for a prompt: no EOS, no END after a last item that is still to be generated, and no dual copies.

    Raises:
        ValueError: an empty text, an unknown modality, ids out of range, or an item whose size its modality forbids;
            the message names document and segment.
    """
    tokens: list[int] = [vocabulary.bos]
    learned: list[float] = [0.0]
    spans: list[int] = [-1]
    private: list[bool] = [False]
    pieces: list[np.ndarray] = []
    items: list[MediaSpan] = []
    position, flat = 0.0, 0  # `flat`: tokens since the last item, whose coordinates are still to be written
    num_media = 0

    def write(ids: list[int], learn: float | tuple[float, ...]) -> None:
        tokens.extend(ids)
        learned.extend(learn if isinstance(learn, tuple) else [learn] * len(ids))
        spans.extend([-1] * len(ids))
        private.extend([False] * len(ids))

    def flush() -> None:
        nonlocal position, flat
        count = len(tokens) - flat
        pieces.append(np.repeat(position + np.arange(count, dtype=np.float32)[:, None], coordinates.axes, axis=1))
        position, flat = position + count, len(tokens)

    last = len(document.segments) - 1
    for index, segment in enumerate(document.segments):
        try:
            if isinstance(segment, Text):
                write(vocabulary.encode(segment.content), segment.weight if segment.loss else 0.0)
                continue
            modality = vocabulary.modality(segment.modality)
            grid = modality.slots(_size(segment, modality.channels, modality.shape))
            write(vocabulary.frame(modality, grid), 1.0)
            flush()
            count = int(np.prod(grid, dtype=int))
            where, position = coordinates.place(position, grid)
            for media, copy in _copies(segment, add_eos):
                pieces.append(where)
                items.append(MediaSpan(media, vocabulary.modalities.index(modality), grid, len(tokens), num_media, copy))
                tokens.extend([vocabulary.pad] * count)
                learned.extend([0.0] * count)
                spans.extend([len(items) - 1] * count)
                private.extend([media.private] * count)
            num_media += 1
            flat = len(tokens)
            if add_eos or index < last or segment.values is not None:
                write([vocabulary.end(modality.name)], 0.0)
        except ValueError as error:
            raise ValueError(f"document {document.name or '?'}, segment {index}: {error}") from error
    if add_eos:
        write([vocabulary.eos], 1.0)
    flush()

    ids = np.array(tokens, dtype=np.int64)
    targets = np.full(len(ids), IGNORE, dtype=np.int64)
    target_weights = None
    if document.language_loss:
        factors = np.array(learned, dtype=np.float32)
        keep = factors > 0
        targets[:-1][keep[1:]] = ids[1:][keep[1:]]
        if not (factors[keep] == 1).all():
            target_weights = np.append(factors[1:], np.float32(0))
    return TokenSequence(
        tokens=ids,
        targets=targets,
        positions=np.concatenate(pieces),
        spans=np.array(spans, dtype=np.int64),
        private=np.array(private, dtype=bool),
        items=tuple(items),
        position=position,
        target_weights=target_weights,
        name=document.name,
    )


def _copies(media: Media, add_eos: bool) -> tuple[tuple[Media, Literal["", "noised", "clean"]], ...]:
    """The copies in which an item stands in a sequence, and what each is called."""
    if not (media.doubled and add_eos):
        return ((media, ""),)
    clean = replace(media, times=CLEAN, weight=0.0, noise=None)
    return (replace(media, dual=False, private=True), "noised"), (clean, "clean")


def longest(document: Document, vocabulary: Vocabulary, known: dict[object, int]) -> int:
    """Tokens that a document takes in the longest of its wordings. `known` keeps what texts and sizes took, between calls.

    Raises:
        ValueError: what `tokenize_document` would say of it.
    """

    def text(content: str | tuple[int, ...]) -> int:
        if content not in known:
            known[content] = len(vocabulary.encode(content))
        return known[content]

    total = 2  # BOS, EOS
    for index, segment in enumerate(document.segments):
        try:
            if isinstance(segment, Text):
                total += max(text(content) for content in (segment.content, *segment.paraphrases))
                continue
            modality = vocabulary.modality(segment.modality)
            grid = modality.slots(_size(segment, modality.channels, modality.shape))
            slots = int(np.prod(grid, dtype=int)) * (2 if segment.doubled else 1)
            total += slots + 2 + (len(grid) if modality.varies else 0)
        except ValueError as error:
            raise ValueError(f"document {document.name or '?'}, segment {index}: {error}") from error
    return total


def _size(segment: Media, channels: int, default: tuple[int, ...]) -> tuple[int, ...]:
    if segment.values is None:
        return segment.size or default
    shape = tuple(segment.values.shape)
    if not shape or shape[0] != channels:
        raise ValueError(f"latents of shape {shape} must be (channels, *size) with {channels} channels")
    return shape[1:]
