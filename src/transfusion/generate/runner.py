"""The model runner: a network, its KV cache, and forward passes over some of the cache's slots.

Each cache slot of a pass takes a chunk of sequence behind the prefix that it holds. `extend` appends the chunks to the
prefixes. `denoise` reads the prefixes and leaves them as they are, so every denoising step writes over the same columns.

A pass takes all chunks, prompts beside single tokens, as one flat line of tokens (`nn/cache.py`). How a matrix product adds up
depends on how many tokens it is given, so a document's last bits depend on its neighbours: in fp32 and fp64 by rounding errors
that change no token, in bf16 by errors that can. `exact` gives every document passes of a shape that is its own.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from transfusion.data.tokenize import TokenSequence
from transfusion.data.vocabulary import Vocabulary
from transfusion.generate.weights import FollowingWeights
from transfusion.model.denoising import NoisedGroup
from transfusion.model.network import Network


@dataclass(frozen=True, eq=False)
class ChunkItem:
    """A media item in a chunk: latents Float[channels, *size] at a time, in the chunk's slots from `start` on."""

    modality: int
    grid: tuple[int, ...]
    latents: Tensor
    time: float
    start: int


@dataclass(frozen=True, eq=False)
class Chunk:
    """Consecutive tokens that one cache slot takes in one pass; the arrays are those of `TokenSequence`, cut to the chunk.
    `logits`: whether the logits of the token behind it are wanted."""

    cache_slot: int
    tokens: np.ndarray
    positions: np.ndarray
    spans: np.ndarray
    private: np.ndarray | None = None
    items: tuple[ChunkItem, ...] = ()
    logits: bool = True

    @classmethod
    def prefix(cls, cache_slot: int, sequence: TokenSequence, end: int, *, logits: bool = True) -> "Chunk":
        """The first `end` tokens of a sequence, its media clean. Raises ValueError where they cannot be read."""
        sequence = sequence.with_codes(end)
        spans = [span for span in sequence.items if span.start < end and span.codes is None]
        items = tuple(ChunkItem(span.modality, span.grid, span.media.tensor(), 0.0, span.start) for span in spans)
        arrays = sequence.positions[:end], sequence.spans[:end], sequence.private[:end]
        return cls(cache_slot, sequence.tokens[:end], *arrays, items, logits)

    @classmethod
    def text(cls, cache_slot: int, tokens: Sequence[int], positions: np.ndarray, *, logits: bool = True) -> "Chunk":
        """Tokens of text or control."""
        return cls(cache_slot, np.array(tokens), positions, np.full(len(tokens), -1), logits=logits)

    def then(self, other: "Chunk") -> "Chunk":
        """This chunk and another, of the same cache slot and without items, behind it."""
        private = np.zeros(len(self.tokens) + len(other.tokens), dtype=bool)
        if self.private is not None:
            private[: len(self.private)] = self.private
        tokens, spans = np.append(self.tokens, other.tokens), np.append(self.spans, other.spans)
        positions = np.concatenate([self.positions, other.positions])
        return Chunk(self.cache_slot, tokens, positions, spans, private, self.items, other.logits)


EXACT_ROWS, EXACT_COLUMNS = 32, 128
"""Single tokens in an exact pass, and what its columns are a multiple of."""


@dataclass(frozen=True)
class Pass:
    """The chunks of one forward pass by index, in blocks of similar length, and the columns that it reads (None: as many as
    needed)."""

    blocks: tuple[tuple[int, ...], ...]
    end: int | None = None


class ModelRunner:
    """Runs a network over a KV cache of `cache_slots` unfinished sequences of at most `capacity` tokens.

    Args:
        dtype: bf16 runs a copy of the network with bf16 matrices under autocast; fp32 and fp64 run the network itself.
        exact: a chunk's results do not depend on the chunks that it is given with.
    """

    def __init__(
        self,
        network: Network,
        vocabulary: Vocabulary,
        *,
        cache_slots: int,
        capacity: int,
        dtype: torch.dtype,
        exact: bool = False,
    ) -> None:
        self.weights, self.vocabulary, self.dtype, self.exact = FollowingWeights(network, dtype), vocabulary, dtype, exact
        self.network = self.weights.network()
        own = next(network.parameters()).dtype
        self.latent_dtype = torch.promote_types(own, torch.float32)  # latents are never rounded to half precision
        self.cache = network.cache(cache_slots, capacity, dtype if dtype == torch.bfloat16 else own)

    def begin(self) -> torch.autocast:
        """Look at the weights again; the context of all passes until the next look."""
        self.network = self.weights.network()
        return torch.autocast(self.network.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16)

    def extend(self, chunks: Sequence[Chunk]) -> list[Tensor | None]:
        """Append chunks to the prefixes of their cache slots; returns the logits of the token behind each, Float32[id] on the
        CPU, where they are wanted. A pass that raises appends nothing."""
        logits: list[Tensor | None] = [None] * len(chunks)
        for each in self._exact_passes(chunks) if self.exact else [self._one_pass(chunks)]:
            h, _, _, ends = self._forward(chunks, each)
            wanted = {i: end for i, end in ends.items() if chunks[i].logits}
            if wanted:
                # an exact pass has its rows twice where it lacks some, the head too
                count = len(each.blocks[0]) if each.end is not None else len(wanted)
                index = list(wanted.values()) + [0] * (count - len(wanted))
                rows = self.network.head(h[torch.tensor(index, device=h.device)]).float().cpu()
                for i, row in zip(wanted, rows, strict=False):
                    logits[i] = row
        self.cache.commit([chunk.cache_slot for chunk in chunks], [len(chunk.tokens) for chunk in chunks])
        return logits

    def denoise(self, chunks: Sequence[Chunk]) -> Float[Tensor, "chunk channels ..."]:
        """The network's prediction for each chunk's one item, all of one modality and grid; the prefixes stay as they are. An
        exact caller gives the chunks of one item at a time."""
        each = self._one_pass(chunks)
        h, media, skips, _ = self._forward(chunks, each)
        (predictions,) = self.network.predict(h, media, skips)
        order = torch.tensor(each.blocks[0], device=h.device)
        return torch.empty_like(predictions).index_copy_(0, order, predictions)

    def _one_pass(self, chunks: Sequence[Chunk]) -> Pass:
        """All chunks. A block has single tokens, or chunks whose lengths differ by at most 16 tokens or a fifth."""
        blocks: list[list[int]] = []
        for i in sorted(range(len(chunks)), key=lambda i: len(chunks[i].tokens)):
            shortest, length = len(chunks[blocks[-1][0]].tokens) if blocks else 0, len(chunks[i].tokens)
            longest = max(shortest + 16, int(shortest * 1.2)) if shortest > 1 else shortest
            if length <= longest:
                blocks[-1].append(i)
            else:
                blocks.append([i])
        if not self.exact:  # slots in order can be read in place; an exact caller's order is the same beside any others
            blocks = [sorted(block, key=lambda i: chunks[i].cache_slot) for block in blocks]
        return Pass(tuple(map(tuple, blocks)))

    def _exact_passes(self, chunks: Sequence[Chunk]) -> list[Pass]:
        """Single tokens with those that read as many columns, always `EXACT_ROWS` of them (the last stands in for those that
        are missing); each other chunk alone. At least one column is behind every sequence, so that attention is always masked.
        Experts take the tokens that choose them, a number that depends on the others: there every chunk is alone."""
        single: dict[int, list[int]] = {}
        alone = []
        for i, chunk in enumerate(chunks):
            if len(chunk.tokens) == 1 and not chunk.items and not self.network.config.transformer.moe.num_experts:
                end = self.cache.lengths[chunk.cache_slot] + 1
                single.setdefault((end // EXACT_COLUMNS + 1) * EXACT_COLUMNS, []).append(i)
            else:
                alone.append(Pass(((i,),)))
        for end, members in single.items():
            for first in range(0, len(members), EXACT_ROWS):
                rows = members[first : first + EXACT_ROWS]
                alone.append(Pass(((*rows, *rows[-1:] * (EXACT_ROWS - len(rows))),), end))
        return alone

    def _forward(self, chunks: Sequence[Chunk], each: Pass) -> tuple[Tensor, list[NoisedGroup], list[Any], dict[int, int]]:
        """A pass: the hidden states of its flat tokens; items, grouped by modality and grid; what their patchers keep for
        decoding; and where each chunk's last token is."""
        blocks = [[chunks[i] for i in block] for block in each.blocks]
        widths = [max(len(chunk.tokens) for chunk in block) for block in blocks]
        total, device = sum(width * len(block) for width, block in zip(widths, blocks, strict=True)), self.network.device
        tokens, spans = np.full(total, self.vocabulary.pad), np.full(total, -1)
        private = np.zeros(total, dtype=bool)
        positions = np.zeros((total, self.network.config.coordinates.axes), dtype=np.float32)
        groups: dict[tuple[int, tuple[int, ...]], list[tuple[int, ChunkItem]]] = {}
        at, ends = 0, {}
        for indices, block, width in zip(each.blocks, blocks, widths, strict=True):
            for i, chunk in zip(indices, block, strict=True):
                end = at + len(chunk.tokens)
                tokens[at:end], spans[at:end], positions[at:end] = chunk.tokens, chunk.spans, chunk.positions
                if chunk.private is not None:
                    private[at:end] = chunk.private
                for item in chunk.items:
                    groups.setdefault((item.modality, item.grid), []).append((at + item.start, item))
                ends[i] = end - 1
                at += width
        media = []
        for (modality, grid), items in groups.items():
            latents = torch.stack([item.latents for _, item in items]).to(device)
            times = torch.tensor([item.time for _, item in items], device=device)
            first = torch.tensor([start for start, _ in items], device=device)
            slots = first[:, None] + torch.arange(math.prod(grid), device=device)
            media.append(NoisedGroup(modality, grid, latents, times, slots))
        arrays = (tokens, positions, spans, private)
        token_ids, coordinates, span_ids, is_private = (torch.from_numpy(array).to(device) for array in arrays)
        view = self.cache.view(
            [[chunk.cache_slot for chunk in block] for block in blocks],
            [[len(chunk.tokens) for chunk in block] for block in blocks],
            *(span_ids, is_private, coordinates),
            end=each.end,
            gather=self.exact,
        )
        h, skips = self.network.hidden(token_ids[None], coordinates[None], media, view=view)
        return h, media, skips, ends
