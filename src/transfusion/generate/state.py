"""Requests, events, and the state of one unfinished document between steps of the engine."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from transfusion import rng
from transfusion.data.document import Document, Media, Segment, Text
from transfusion.data.vocabulary import Vocabulary
from transfusion.diffusion.guidance import Guidance
from transfusion.diffusion.sampler import Euler, Sampler
from transfusion.generate.logits import Decoding, Greedy, Sample
from transfusion.generate.runner import Chunk
from transfusion.generate.sizes import PendingItem, SizeError, SizeParser, item_length
from transfusion.modality import Modality

NoiseOfItem: TypeAlias = Callable[[str, tuple[int, ...]], Tensor | None]
"""(name of a modality, size of an item) -> its initial noise, Float[channels, *size], or None"""


@dataclass(frozen=True, eq=False)
class Request:
    """A prompt to continue, and how.

    Args:
        max_tokens, max_items: text tokens and media items to write at most; None: no limit.
        allow_eos: whether the model may end the document; if not, it ends at `max_tokens` or `max_length`.
        force: name of a modality; one item of it is generated right after the prompt.
        size: the forced item's size, in pixels also where the model knows latents (None: `sizes`, or the modality's default).
        sizes: modality name -> size of all its items, instead of sizes that the model writes.
        max_length: tokens of the whole sequence at most: prompt, text, slots and control tokens (None: the engine's capacity).
        max_new: the same of what is written behind the prompt, but an item that has begun is finished (None: no limit).
        noise: initial noise of the forced item, Float[channels, *size]; or of each item, by a function from its modality's name
            and its size (None, also from the function: drawn from the seed).
        decoding, code_decoding: how tokens of text are chosen, and the codes of items of discrete modalities.
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
    max_new: int | None = None
    noise: Tensor | NoiseOfItem | None = None
    decoding: Decoding = Greedy()
    code_decoding: Decoding = Sample()
    sampler: Sampler = Euler()
    guidance: Guidance = Guidance()

    @property
    def cache_slots(self) -> int:
        """Cache slots that the document holds: its own, and one for each unconditional branch of its items."""
        writes_items = self.force is not None or self.max_items != 0
        return 1 + (self.guidance.max_branches if writes_items else 0)

    def fixed_grid(self, modality: Modality) -> tuple[int, ...] | None:
        """The grid of all items of a modality; None where the model writes their sizes."""
        if modality.name in self.sizes:
            return modality.slots(self.sizes[modality.name])
        return None if modality.varies else modality.slots(modality.shape)

    def forced_grid(self, modality: Modality) -> tuple[int, ...]:
        """The grid of the forced item."""
        return modality.slots(self.size or self.sizes.get(modality.name) or modality.shape)


@dataclass(frozen=True)
class Token:
    """A token was written: of text, control, or a code of an item. The tokens of an item's size come together, once the size is
    complete."""

    id: int
    token: int


@dataclass(frozen=True, eq=False)
class Denoising:
    """An item of `modality` took a denoising step; `estimate` is the current estimate of its clean latents, Float[channels,
    *size], which `Engine.preview` shows as an item."""

    id: int
    step: int
    num_steps: int
    estimate: Tensor
    modality: str


@dataclass(frozen=True, eq=False)
class ItemDone:
    """An item is finished; it is pixels, also where the model knows latents. `fallback`: why it has its modality's default size
    and not the written one, if so."""

    id: int
    media: Media
    fallback: SizeError | None = None


@dataclass(frozen=True, eq=False)
class Done:
    """A document is finished: EOS, `max_tokens`, or no room in the context (or `max_length`)."""

    id: int
    document: Document
    reason: Literal["end", "tokens", "context"]


@dataclass(frozen=True, eq=False)
class Failed:
    """A document could not go on: a pass that it was in raised `error`, or its numbers are no longer finite. It has left the
    engine; `document` is as far as it was written."""

    id: int
    reason: str
    document: Document
    error: Exception


Event: TypeAlias = Token | Denoising | ItemDone | Done | Failed


@dataclass(frozen=True, eq=False)
class ItemBranch:
    """A branch of guidance: the cached prefix that an item is denoised behind, the weight of its prediction, and the item's
    rotary coordinates, Float[slots, axes], and span index behind this prefix."""

    cache_slot: int
    weight: float
    positions: np.ndarray
    span: int


@dataclass(eq=False)
class ActiveItem:
    """An item of a document being denoised; `modality` is its index, `step` the denoising steps taken.

    Args:
        latents: x at the current time, Float[channels, *size].
        branches: the document itself, then the unconditional branches.
        next_position: rotary coordinate of the token after the item.
        fallback: see `ItemDone`.
    """

    document: "ActiveDocument"
    modality: int
    grid: tuple[int, ...]
    latents: Tensor
    branches: list[ItemBranch]
    next_position: float
    fallback: SizeError | None = None
    step: int = 0


@dataclass(eq=False)
class ActiveCodes:
    """An item of a discrete modality whose codes are being chosen, one a step.

    Args:
        modality: its name.
        codes: ids of the codebook.
        branches: the document itself, then the unconditional branches.
        next_position, fallback: see `ActiveItem`.
        chosen: the codes so far, as numbers in the codebook.
        pending: the last code, behind each unconditional branch, for the next pass.
        logits: of the next code, one row a branch, between a pass and the choice.
    """

    modality: str
    grid: tuple[int, ...]
    codes: range
    branches: list[ItemBranch]
    next_position: float
    fallback: SizeError | None = None
    chosen: list[int] = field(default_factory=list)
    pending: list[Chunk] = field(default_factory=list)
    logits: list[Tensor] = field(default_factory=list)

    def guided(self) -> Float[Tensor, " code"]:
        """The logits of the codebook's ids alone: the sum over branches of weight * logits. After the softmax that is Ho and
        Salimans' sum of log probabilities, for what is constant in a branch falls out."""
        rows = torch.stack([row[self.codes.start : self.codes.stop] for row in self.logits])
        return torch.tensor([branch.weight for branch in self.branches], dtype=rows.dtype) @ rows

    def append(self, code: int) -> list[Chunk]:
        """Note a code. Returns it as a chunk behind each branch, the document's first."""
        at = slice(len(self.chosen), len(self.chosen) + 1)
        self.chosen.append(code)
        token = [self.codes.start + code]
        return [Chunk.text(branch.cache_slot, token, branch.positions[at]) for branch in self.branches]


@dataclass(eq=False)
class ActiveDocument:
    """An unfinished document that holds cache slots. Between steps `pending` is set, or else `item`.

    Args:
        cache_slot, guidance_slots: cache slots of its tokens, and those reserved for unconditional branches.
        position: rotary coordinate of the next token.
        num_spans: media spans in the cache; the span index of the next item.
        prompt_length: tokens of the prompt.
        num_tokens, num_draws: text tokens written; tokens chosen, control tokens too: the count of their random draws.
        segments, text: finished segments after the prompt, and the ids of the text segment being written.
        pending, pending_item: what the next pass appends to the cache, and the item that starts behind it, if any.
        logits: of the next token, between a pass and the choice of it.
        item, coded: the item that is being denoised, or whose codes are being chosen.
    """

    id: int
    request: Request
    cache_slot: int
    guidance_slots: list[int]
    position: float
    num_spans: int
    prompt_length: int = 0
    num_tokens: int = 0
    num_draws: int = 0
    num_items: int = 0
    segments: list[Segment] = field(default_factory=list)
    text: list[int] = field(default_factory=list)
    size_parser: SizeParser | None = None
    logits: Float[Tensor, " id"] | None = None
    pending: Chunk | None = None
    pending_item: PendingItem | None = None
    item: ActiveItem | None = None
    coded: ActiveCodes | None = None

    def close_text(self) -> None:
        """Make the ids written so far a segment."""
        if self.text:
            self.segments.append(Text(tuple(self.text)))
            self.text = []

    def document(self) -> Document:
        """The prompt and everything written so far; written text is ids."""
        self.close_text()
        prompt = self.request.document
        return Document((*prompt.segments, *self.segments), name=prompt.name)

    def item_key(self, *purpose: rng.KeyPart) -> int:
        """Random key of the current item."""
        return rng.key(self.request.seed, "item", self.num_items, *purpose)

    def allowed_tokens(self, vocabulary: Vocabulary, remaining: int) -> Bool[Tensor, " id"]:
        """Ids that may come next, with `remaining` tokens of context; all but codes while a size is written. An item may
        open if another one is wanted, and its smallest (or fixed) grid fits."""
        if self.size_parser is not None:
            allowed = torch.ones(len(vocabulary), dtype=torch.bool)
            for modality in vocabulary.modalities:
                codes = vocabulary.codes(modality.name)
                allowed[codes.start : codes.stop] = False
            return allowed
        allowed, request = vocabulary.writable.clone(), self.request
        allowed[list(vocabulary.ends)] = request.allow_eos
        may_open = request.max_items is None or self.num_items < request.max_items
        for modality in vocabulary.modalities if may_open else ():
            smallest = request.fixed_grid(modality) or (1,) * len(modality.patch)
            if remaining >= item_length(modality, smallest):
                allowed[vocabulary.opening(modality.name)] = True
        return allowed
