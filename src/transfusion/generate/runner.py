"""The model runner: a network, its KV cache, and one forward pass over some of the cache's slots.

Each cache slot of a pass takes a chunk of sequence behind the prefix that it holds. `extend` appends the chunks to the
prefixes. `denoise` reads the prefixes and leaves them as they are, so every denoising step writes over the same columns.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from transfusion.data.tokenize import TokenSequence
from transfusion.data.vocabulary import Vocabulary
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
    """Consecutive tokens that one cache slot takes in one pass; the arrays are those of `TokenSequence`, cut to the chunk."""

    cache_slot: int
    tokens: np.ndarray
    positions: Tensor
    spans: np.ndarray
    private: np.ndarray | None = None
    items: tuple[ChunkItem, ...] = ()

    @classmethod
    def prefix(cls, cache_slot: int, sequence: TokenSequence, end: int) -> "Chunk":
        """The first `end` tokens of a sequence, its media clean."""
        spans = [span for span in sequence.items if span.start < end]
        items = tuple(ChunkItem(span.modality, span.grid, span.media.tensor(), 0.0, span.start) for span in spans)
        positions = torch.from_numpy(sequence.positions[:end])
        return cls(cache_slot, sequence.tokens[:end], positions, sequence.spans[:end], sequence.private[:end], items)


class ModelRunner:
    """Runs a network over a KV cache of `cache_slots` unfinished sequences of at most `capacity` tokens.

    Args:
        dtype: bf16 runs a copy of the network with bf16 matrices under autocast; fp32 and fp64 run the network itself.
    """

    def __init__(
        self, network: Network, vocabulary: Vocabulary, *, cache_slots: int, capacity: int, dtype: torch.dtype
    ) -> None:
        self.network, self.vocabulary, self.dtype = _in_bf16(network) if dtype == torch.bfloat16 else network, vocabulary, dtype
        weights = next(network.parameters()).dtype
        self.latent_dtype = torch.promote_types(weights, torch.float32)  # latents are never rounded to half precision
        self.cache = network.cache(cache_slots, capacity, dtype if dtype == torch.bfloat16 else weights)

    def autocast(self) -> torch.autocast:
        """The context of all passes."""
        return torch.autocast(self.network.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16)

    def extend(self, chunks: Sequence[Chunk]) -> Float[Tensor, "chunk width"]:
        """Append chunks to the prefixes of their cache slots; returns the hidden state of each chunk's last token."""
        h, _, _ = self._forward(chunks)
        lengths = [len(chunk.tokens) for chunk in chunks]
        self.cache.commit([chunk.cache_slot for chunk in chunks], lengths)
        width = max(lengths)
        return h[torch.tensor([i * width + length - 1 for i, length in enumerate(lengths)], device=h.device)]

    def denoise(self, chunks: Sequence[Chunk]) -> Float[Tensor, "chunk channels ..."]:
        """The network's prediction for each chunk's one item, all of one modality and grid; the prefixes stay as they are."""
        (predictions,) = self.network.predict(*self._forward(chunks))
        return predictions

    def logits(self, h: Float[Tensor, "chunk width"]) -> Float[Tensor, "chunk id"]:
        """Next-token logits of hidden states, Float32 on the CPU."""
        return self.network.head(h).float().cpu()

    def _forward(self, chunks: Sequence[Chunk]) -> tuple[Tensor, list[NoisedGroup], list[Any]]:
        """One pass over chunks padded to one width: hidden states, flat over (chunk, length); items, grouped by modality and
        grid; and what their patchers keep for decoding."""
        lengths = [len(chunk.tokens) for chunk in chunks]
        width, device = max(lengths), self.network.device
        tokens = np.full((len(chunks), width), self.vocabulary.pad)
        spans = np.full((len(chunks), width), -1)
        private = np.zeros((len(chunks), width), dtype=bool)
        positions = torch.zeros(len(chunks), width, self.network.config.coordinates.axes)
        groups: dict[tuple[int, tuple[int, ...]], list[tuple[int, ChunkItem]]] = {}
        for i, (chunk, length) in enumerate(zip(chunks, lengths, strict=True)):
            tokens[i, :length], spans[i, :length], positions[i, :length] = chunk.tokens, chunk.spans, chunk.positions
            if chunk.private is not None:
                private[i, :length] = chunk.private
            for item in chunk.items:
                groups.setdefault((item.modality, item.grid), []).append((i * width + item.start, item))
        media = []
        for (modality, grid), items in groups.items():
            latents = torch.stack([item.latents for _, item in items]).to(device)
            times = torch.tensor([item.time for _, item in items], device=device)
            first = torch.tensor([start for start, _ in items], device=device)
            slots = first[:, None] + torch.arange(math.prod(grid), device=device)
            media.append(NoisedGroup(modality, grid, latents, times, slots))
        positions = positions.to(device)
        tokens, spans, private = (torch.from_numpy(array).to(device) for array in (tokens, spans, private))
        view = self.cache.view([chunk.cache_slot for chunk in chunks], lengths, spans, private, positions)
        h, skips = self.network.hidden(tokens, positions, media, view=view)
        return h, media, skips


def _in_bf16(network: Network) -> Network:
    """A copy whose transformer matrices and head are bf16: the values that autocast would round them to at every step."""
    copied = copy.deepcopy(network)
    for module in (*copied.transformer.modules(), copied.head):
        if isinstance(module, nn.Linear) and module.weight is not copied.embed.weight:
            module.weight.data = module.weight.data.bfloat16()
    return copied
