"""Document -> TokenSequence: tokens, targets, rotary coordinates and media spans, before packing.

    BOS  text ...  [SIZE axis0 .. axisN]  BEGIN  slot slot .. slot  END  text ...  EOS
                    if sizes vary                media span

An item that is both drawn and read has two spans at the same coordinates, its dual copies: a noised one (private) and a clean
one, BEGIN  noised ..  clean ..  END.
Targets are the next token. There is no target at BEGIN and under slots (so END is never predicted: the decoder writes it), in
text that is only context, and in a document without language loss.

An item of a discrete modality has the ids of its codes in place of slots, which `TokenSequence.load` writes. They are tokens as
text is: seen causally, never noised, one copy for all uses. If it is to be drawn ("draw", "both"), each is a target, the first
one at BEGIN, also in a document without language loss; of use "read" or "context" none is.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int
from torch import Tensor

from transfusion import rng
from transfusion.data.document import Document, DocumentLike, Media, MediaError, Text, document, given
from transfusion.data.transforms import once, with_uses
from transfusion.data.vocabulary import Vocabulary
from transfusion.modality import Modality

IGNORE = -100
"""The target of a token without language loss."""


@dataclass(frozen=True)
class Coordinates:
    """Rotary coordinates of tokens. Text has the same coordinate on every axis, so rows of text are 1-D RoPE.

    Args:
        order: "grid": a slot is at (start + its offset) on each axis of its grid, and the sequence continues after the item's
            largest extent. "reset" (Huang et al. 2025, arXiv 2510.23095): on the first axis all slots of an item are at one
            place in the sequence, on the others at their offsets from 0, so that equal places of two items have equal
            coordinates, however much text is between: what copies and edits items learns soonest (LOG.md). "raster" (the
            paper): slots are numbered in reading order, like text. "shared": all slots of an item share one position; only
            the patcher or axial embeddings tell them apart.
        axes: rotary axes; at least as many as the grid with most axes, for "reset" one more.
    """

    order: Literal["grid", "reset", "raster", "shared"] = "grid"
    axes: int = 2

    def __post_init__(self) -> None:
        if self.order not in ("grid", "reset", "raster", "shared"):
            raise ValueError(f"order must be grid, reset, raster or shared, not {self.order!r}")
        if self.axes < 1:
            raise ValueError(f"axes must be at least 1, not {self.axes}")

    def place(self, start: float, grid: tuple[int, ...]) -> tuple[Float[np.ndarray, "slots axes"], float]:
        """Coordinates of an item's slots, and the coordinate at which the sequence continues. Raises ValueError: the grid has
        more axes than the rotary embedding has for it."""
        count = math.prod(grid)
        if self.order == "raster":
            return self.text(start, count), start + count
        if self.order == "shared":
            return np.full((count, self.axes), start, dtype=np.float32), start + 1
        reset = self.order == "reset"
        if len(grid) + reset > self.axes:
            needed = f"{len(grid) + reset} rotary axes for its order {self.order!r}"
            raise ValueError(f"a grid of {len(grid)} axes needs {needed}, not {self.axes}: raise coordinates.axes")
        offsets = np.zeros((count, self.axes), dtype=np.float32)
        for axis, index in enumerate(np.indices(grid)):
            offsets[:, axis + reset] = index.reshape(-1)
        if reset:
            offsets[:, 0] = start
            return offsets, start + 1
        return start + offsets, start + max(grid, default=1)

    def text(self, start: float, count: int) -> Float[np.ndarray, "count axes"]:
        """Coordinates of `count` tokens of text."""
        return np.repeat(start + np.arange(count, dtype=np.float32)[:, None], self.axes, axis=1)


@dataclass(frozen=True, eq=False)
class MediaSpan:
    """A media item in a sequence.

    Args:
        media: the item as this copy is trained: the noised one of two copies is private, the clean one is context.
        modality: index of its modality.
        grid: its shape in slots; it fills [start, start + product of grid).
        index, key: number of the item among the document's media, and the RNG key of its noise and time; two copies have the
            same.
        copy: which of two copies this is; "" for an item that stands once.
        latents: loaded values, Float[channels, *size]; None before `TokenSequence.load`.
        codes: ids of its modality's codebook; None where that is continuous.
    """

    media: Media
    modality: int
    grid: tuple[int, ...]
    start: int
    index: int = 0
    copy: Literal["", "noised", "clean"] = ""
    latents: Tensor | None = None
    key: int = 0
    codes: range | None = None


@dataclass(frozen=True, eq=False)
class TokenSequence:
    """A document as tokens.

    Args:
        tokens: vocabulary ids; PAD under media slots, and where codes are not loaded yet.
        targets: next token, IGNORE where no language loss is taken.
        positions, position: rotary coordinates, and that of the token that would come next.
        spans, items: index of the media span, -1 text; the media spans.
        private: slots that only their own span may see.
        target_weights: factors on the cross-entropy of the targets; None where all are 1.
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
        """The sequence with its media loaded, each item once, and item i of the document keyed `key(i)`; those of discrete
        modalities become tokens and targets. Raises MediaError."""
        latents: dict[int, Tensor] = {}
        for item in self.items:
            if item.index not in latents:
                latents[item.index] = item.media.tensor()
        items = tuple(replace(item, latents=latents[item.index], key=key(item.index)) for item in self.items)
        return replace(self, items=items).with_codes()

    def with_codes(self, end: int | None = None) -> "TokenSequence":
        """The sequence with the ids of discrete items, those before `end` (None: all), as tokens and where wanted as targets.
        Raises MediaError: values that are no ids of the codebook."""
        items = [item for item in self.items if item.codes is not None and (end is None or item.start < end)]
        if not items:
            return self
        tokens, targets = self.tokens.copy(), self.targets.copy()
        for item in items:
            assert item.codes is not None
            ids = item.codes.start + codes_of(item.media.tensor() if item.latents is None else item.latents, len(item.codes))
            tokens[item.start : item.start + len(ids)] = ids
            before = targets[item.start - 1 : item.start - 1 + len(ids)]
            before[before != IGNORE] = ids[before != IGNORE]
        return replace(self, tokens=tokens, targets=targets)


def codes_of(values: Float[Tensor, "1 ..."], count: int) -> Int[np.ndarray, " slot"]:
    """The ids of a codebook that a discrete item holds, in reading order. Raises MediaError: they are no whole numbers from 0
    to below `count`."""
    numbers = values.double().flatten().cpu().numpy()
    if not ((numbers >= 0) & (numbers < count) & (numbers == np.floor(numbers))).all():
        raise MediaError(
            f"an item of a discrete modality holds ids of its codebook, whole numbers from 0 to {count - 1}; these run from "
            f"{numbers.min():g} to {numbers.max():g}: encode it with the autoencoder that the model was made for"
        )
    return numbers.astype(np.int64)


def tokenize_document(
    document: Document, vocabulary: Vocabulary, coordinates: Coordinates, *, add_eos: bool = True
) -> TokenSequence:
    """Tokenise a document; its media are loaded later (`TokenSequence.load`). An item stands twice where its use is "both". A
    prompt, without `add_eos`, has no EOS, no END after a last item that is still to be generated, and no second copies. Raises
    ValueError: an unknown modality, ids out of range, or a size that a modality forbids; it names document and segment."""
    tokens: list[int] = []
    weights: list[float] = []  # loss weight of each token as a target
    spans: list[int] = []
    private: list[bool] = []
    positions: list[np.ndarray] = []
    items: list[MediaSpan] = []
    is_code: list[bool] = []
    position, num_media = 0.0, 0

    def append(
        ids: list[int], weight: float | tuple[float, ...], span: int = -1, is_private: bool = False, coded: bool = False
    ) -> None:
        tokens.extend(ids)
        weights.extend(weight if isinstance(weight, tuple) else [weight] * len(ids))
        spans.extend([span] * len(ids))
        private.extend([is_private] * len(ids))
        is_code.extend([coded] * len(ids))

    def append_text(ids: list[int], weight: float | tuple[float, ...]) -> None:
        nonlocal position
        append(ids, weight)
        positions.append(coordinates.text(position, len(ids)))
        position += len(ids)

    append_text([vocabulary.bos], 0.0)
    last = len(document.segments) - 1
    for index, segment in enumerate(document.segments):
        try:
            if isinstance(segment, Text):
                append_text(vocabulary.encode(segment.content), segment.weight if segment.loss else 0.0)
                continue
            modality, grid = _grid(segment, vocabulary)
            append_text(vocabulary.frame(modality, grid), 1.0)
            slots, position = coordinates.place(position, grid)
            if modality.codes:
                _check_discrete(segment)
                index_of, codes = vocabulary.modalities.index(modality), vocabulary.codes(modality.name)
                positions.append(slots)
                items.append(MediaSpan(segment, index_of, grid, len(tokens), num_media, codes=codes))
                append([vocabulary.pad] * len(slots), segment.weight if segment.has_loss else 0.0, coded=True)
            for media, copy in () if modality.codes else _copies(segment, add_eos):
                positions.append(slots)
                items.append(MediaSpan(media, vocabulary.modalities.index(modality), grid, len(tokens), num_media, copy))
                append([vocabulary.pad] * len(slots), 0.0, len(items) - 1, media.private)
            num_media += 1
            if add_eos or index < last or segment.values is not None:
                append_text([vocabulary.end(modality.name)], 0.0)
        except ValueError as error:
            raise ValueError(f"document {document.name or '?'}, segment {index}: {error}") from error
    if add_eos:
        append_text([vocabulary.eos], 1.0)

    ids = np.array(tokens, dtype=np.int64)
    targets = np.full(len(ids), IGNORE, dtype=np.int64)
    target_weights = None
    loss_weights = np.array(weights, dtype=np.float32)
    if not document.language_loss:
        loss_weights[~np.array(is_code)] = 0
    has_loss = loss_weights > 0
    targets[:-1][has_loss[1:]] = ids[1:][has_loss[1:]]
    if not (loss_weights[has_loss] == 1).all():
        target_weights = np.append(loss_weights[1:], np.float32(0))
    return TokenSequence(
        tokens=ids,
        targets=targets,
        positions=np.concatenate(positions),
        spans=np.array(spans, dtype=np.int64),
        private=np.array(private, dtype=bool),
        items=tuple(items),
        position=position,
        target_weights=target_weights,
        name=document.name,
    )


def tokenize_documents(
    documents: Sequence[DocumentLike],
    vocabulary: Vocabulary,
    coordinates: Coordinates,
    *,
    context_length: int,
    seed: int,
    add_eos: bool = True,
    encoded: Callable[[Document], Document] = lambda document: document,
) -> list[TokenSequence]:
    """Documents as token sequences with their latents loaded; the key of an item is (seed, index of the document, item). In
    complete documents (`add_eos`) the use of every item is said (`with_uses`); items stand once where two copies do not fit in
    the context. `encoded` gives a document with latents for its items. Raises ValueError: no documents, an empty one, one
    beyond the context, or one that is refused; the message names it."""
    if isinstance(documents, str | Tensor | Document | Media | Text):
        raise ValueError(f"a list of documents is wanted, not one {type(documents).__name__}: put it in a list")
    sequences = []
    for index, content in enumerate(documents):
        try:
            whole = encoded(document(content))
            if not whole.segments:
                raise ValueError(f"document {index} is empty: leave it out")
            named = whole if whole.name else replace(whole, name=str(index))
            learned = with_uses(named) if add_eos else named
            tokenized = tokenize_document(learned, vocabulary, coordinates, add_eos=add_eos)
            if len(tokenized) > context_length and any(item.copy for item in tokenized.items):
                tokenized = tokenize_document(once(learned), vocabulary, coordinates, add_eos=add_eos)
                if len(tokenized) <= context_length:
                    warnings.warn(
                        "a document has items that are drawn and read, and no room in the context for two copies of each: they "
                        'stand once, and what follows is learned from noised items; give them the use "draw" or "read", or the '
                        "model a longer context_length",
                        stacklevel=4,
                    )
            if len(tokenized) > context_length:
                raise ValueError(f"document {index} takes {len(tokenized)} tokens, the context has {context_length}")
            sequences.append(tokenized.load(lambda item, index=index: rng.key(seed, index, item)))
        except ValueError as error:
            raise ValueError(str(error) if str(error).startswith("document ") else f"document {index}: {error}") from error
    if not sequences:
        raise ValueError("no documents: give at least one")
    return sequences


def _copies(media: Media, add_eos: bool) -> tuple[tuple[Media, Literal["", "noised", "clean"]], ...]:
    """The copies of an item in a sequence, each with its name."""
    if not (media.has_two_copies and add_eos):
        return ((media, ""),)
    return (replace(media, use="draw", private=True), "noised"), (given(media), "clean")


def _check_discrete(item: Media) -> None:
    """Raises ValueError for what only items that are noised can have."""
    given = {"noise": item.noise is not None, "a mask": item.mask is not None, "privacy": item.private}
    if found := [name for name, has in given.items() if has]:
        raise ValueError(f"an item of a discrete modality is never noised, and cannot have {found[0]}: leave it out")


def max_length(document: Document, vocabulary: Vocabulary, cache: dict[object, int]) -> int:
    """Tokens of a document with the longest of its paraphrases. `cache` keeps the lengths of texts between calls. Raises
    ValueError: as `tokenize_document`."""
    total = 2  # BOS, EOS
    for index, segment in enumerate(document.segments):
        try:
            if isinstance(segment, Text):
                contents = (segment.content, *segment.paraphrases)
                cache.update({content: len(vocabulary.encode(content)) for content in contents if content not in cache})
                total += max(cache[content] for content in contents)
                continue
            modality, grid = _grid(segment, vocabulary)
            copies = 2 if segment.has_two_copies and not modality.codes else 1
            total += len(vocabulary.frame(modality, grid)) + math.prod(grid) * copies + 1
        except ValueError as error:
            raise ValueError(f"document {document.name or '?'}, segment {index}: {error}") from error
    return total


def _grid(item: Media, vocabulary: Vocabulary) -> tuple[Modality, tuple[int, ...]]:
    """Modality and grid of an item. Raises ValueError for an unknown modality, other channels or a size that it forbids."""
    modality = vocabulary.modality(item.modality)
    if item.values is None:
        return modality, modality.slots(item.size or modality.shape)
    shape = tuple(item.values.shape)
    if not shape or shape[0] != modality.channels:
        raise ValueError(f"latents of shape {shape} must be (channels, *size) with {modality.channels} channels")
    return modality, modality.slots(shape[1:])
