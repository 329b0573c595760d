"""One unfinished document: what was asked, what is written, and which token may come next.

text --SIZE--> sizes --..--> BEGIN --> media (denoise, all slots together) --> END --> text --EOS--> done
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from transfusion.data.document import Document, Media, Segment, Text
from transfusion.data.vocabulary import Vocabulary
from transfusion.diffusion.guidance import Guidance
from transfusion.diffusion.sampler import Euler, Sampler
from transfusion.generate.logits import Decoding, Greedy
from transfusion.generate.sizes import PendingItem, SizeError, SizeParser, openers
from transfusion.modality import Modality


@dataclass(frozen=True, eq=False)
class Request:
    """What to write.

    Args:
        document: the prompt; it is continued.
        seed: all chance of this document.
        max_tokens: text tokens to write at most.
        max_items: media items to write at most (None: as many as fit).
        allow_eos: whether the model may end the document; if not, it goes on to `max_tokens` or to the end of the context.
        force: name of a modality of which an item is written at once, before any text.
        size: the forced item's size in latent elements (None: what `sizes` says, or its modality's own).
        sizes: by name of the modality, the size that all its items get, whatever the model would write.
        max_length: tokens of the whole sequence at most: prompt, text, slots and control tokens (None: the context's).
        noise: what the forced item starts from, Float[channels, *size] (None: drawn by the seed).
        decoding, sampler, guidance: how.
    """

    document: Document
    seed: int = 0
    max_tokens: int = 128
    max_items: int | None = None
    allow_eos: bool = True
    force: str | None = None
    size: tuple[int, ...] | None = None
    sizes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    max_length: int | None = None
    noise: Tensor | None = None
    decoding: Decoding = Greedy()
    sampler: Sampler = Euler()
    guidance: Guidance = Guidance()

    def grid(self, modality: Modality) -> tuple[int, ...] | None:
        """The slots that every item of a modality must take; None where the model chooses."""
        if modality.name in self.sizes:
            return modality.slots(self.sizes[modality.name])
        return None if modality.varies else modality.slots(modality.shape)

    def forced(self, modality: Modality) -> tuple[int, ...]:
        """The slots of the forced item."""
        return modality.slots(self.size or self.sizes.get(modality.name) or modality.shape)


@dataclass(frozen=True)
class Token:
    """A token was written. Those of an item's size are told when the size is complete, as they stand in the sequence."""

    id: int
    token: int


@dataclass(frozen=True, eq=False)
class Denoising:
    """An item moved a step; `estimate` is what its clean latents look like now."""

    id: int
    step: int
    num_steps: int
    estimate: Tensor


@dataclass(frozen=True, eq=False)
class ItemDone:
    """An item is finished. `fallback`: why it has its modality's own size and not the one that was written, if so."""

    id: int
    media: Media
    fallback: SizeError | None = None


@dataclass(frozen=True, eq=False)
class Done:
    """A document is finished: by its own end, at its limit of tokens, or because the context is full."""

    id: int
    document: Document
    reason: Literal["end", "tokens", "context"]


Event: TypeAlias = Token | Denoising | ItemDone | Done


@dataclass(eq=False)
class CachedBranch:
    """A row of the cache that an item is denoised in: its weight in the guided sum, and where its slots stand."""

    row: int
    weight: float
    positions: Tensor
    span: int


@dataclass(eq=False)
class Span:
    """An item being denoised. The first branch is the document itself."""

    modality: int
    grid: tuple[int, ...]
    latents: Tensor
    branches: list[CachedBranch]
    position: float
    """Coordinate after the item."""
    step: int = 0
    fallback: SizeError | None = None


@dataclass(eq=False)
class Row:
    """One unfinished document in the engine."""

    id: int
    request: Request
    row: int
    spare: list[int]
    """Cache rows held for unconditional branches."""
    position: float = 0.0
    num_spans: int = 0
    num_tokens: int = 0
    num_draws: int = 0
    num_items: int = 0
    segments: list[Segment] = field(default_factory=list)
    text: list[int] = field(default_factory=list)
    size_parser: SizeParser | None = None
    pending: list[int] = field(default_factory=list)
    logits: Tensor | None = None
    pending_item: PendingItem | None = None
    span: Span | None = None

    def close_text(self) -> None:
        """Make the ids written so far a segment."""
        if self.text:
            self.segments.append(Text(tuple(self.text)))
            self.text = []

    def document(self) -> Document:
        """Prompt and what is written; text still as ids."""
        self.close_text()
        return Document((*self.request.document.segments, *self.segments), name=self.request.document.name)

    def may_begin(self, modality: Modality, room: int) -> bool:
        """Whether an item's smallest form still fits, and one more is wanted."""
        limit, grid = self.request.max_items, self.request.grid(modality)
        slots = 1 if grid is None else math.prod(grid)
        frame = len(modality.patch) * modality.varies + 2
        return room >= slots + frame and (limit is None or self.num_items < limit)

    def legal(self, vocabulary: Vocabulary, room: int) -> Tensor:
        """Bool[id]: ids that may come next, with `room` tokens of context left. Where a size is being written, all: whatever
        comes is read."""
        if self.size_parser is not None:
            return torch.ones(len(vocabulary), dtype=torch.bool)
        legal = vocabulary.writable.clone()
        legal[list(vocabulary.ends)] = self.request.allow_eos
        for modality in vocabulary.modalities:
            if self.may_begin(modality, room):
                legal[openers(vocabulary, modality)] = True
        return legal
