"""Passes over a cache: some of its rows each take a piece of sequence, behind what they hold.

A pass that commits makes the piece part of the row's prefix; one that does not reads the prefix and leaves it as it was.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from transfusion.data.tokenize import Coordinates, TokenSequence
from transfusion.data.vocabulary import Vocabulary
from transfusion.model.network import Network, NoisedGroup


@dataclass(frozen=True, eq=False)
class Chunk:
    """What one cache row takes in one pass."""

    row: int
    tokens: np.ndarray
    positions: Tensor
    spans: np.ndarray
    private: np.ndarray | None = None
    media: tuple[tuple[int, tuple[int, ...], Tensor, float, int], ...] = ()
    """(modality, grid, latents, time, first slot) each"""


class ModelRunner:
    """A network, and a cache of unfinished sequences that it runs pieces into.

    Args:
        cache_slots: sequences that the cache holds.
        capacity: tokens that a row may hold at most.
        dtype: bf16 runs a copy of the network with its matrices in bf16, under autocast; fp32 and fp64 run it as it is.
    """

    def __init__(
        self, network: Network, vocabulary: Vocabulary, *, cache_slots: int, capacity: int, dtype: torch.dtype
    ) -> None:
        self.network, self.vocabulary = _in_bf16(network) if dtype == torch.bfloat16 else network, vocabulary
        self.capacity, self.dtype = capacity, dtype
        weights = next(network.parameters()).dtype
        self._exact = torch.promote_types(weights, torch.float32)  # of latents: they are never rounded to half precision
        self._cache = network.cache(cache_slots, capacity, dtype if dtype == torch.bfloat16 else weights)

    @property
    def coordinates(self) -> Coordinates:
        """The model's."""
        return self.network.config.coordinates

    def _run(self, pieces: Sequence[Chunk], *, commit: bool) -> tuple[Tensor, list[Tensor], list[list[int]]]:
        """One pass. Back come the hidden state of each piece's last token, and where media stood: each group's
        predictions, and the pieces that the group's items belong to, in order."""
        counts = [len(piece.tokens) for piece in pieces]
        width, device = max(counts), self.network.device
        tokens = np.full((len(pieces), width), self.vocabulary.pad)
        spans = np.full((len(pieces), width), -1)
        private = np.zeros((len(pieces), width), dtype=bool)
        positions = torch.zeros(len(pieces), width, self.coordinates.axes)
        groups: dict[tuple[int, tuple[int, ...]], list[tuple[Tensor, float, int, int]]] = {}
        for i, piece in enumerate(pieces):
            tokens[i, : counts[i]], spans[i, : counts[i]] = piece.tokens, piece.spans
            positions[i, : counts[i]] = piece.positions
            if piece.private is not None:
                private[i, : counts[i]] = piece.private
            for modality, grid, latents, time, first in piece.media:
                groups.setdefault((modality, grid), []).append((latents, time, i * width + first, i))
        media = []
        for (modality, grid), items in groups.items():
            first = torch.tensor([item[2] for item in items], device=device)
            media.append(
                NoisedGroup(
                    modality,
                    grid,
                    torch.stack([item[0] for item in items]).to(device),
                    torch.tensor([item[1] for item in items], device=device),
                    first[:, None] + torch.arange(math.prod(grid), device=device),
                )
            )
        rows = [piece.row for piece in pieces]
        positions = positions.to(device)
        stand = torch.from_numpy(spans).to(device), torch.from_numpy(private).to(device)
        window = self._cache.window(rows, counts, *stand, positions)
        h, skips = self.network.hidden(torch.from_numpy(tokens).to(device), positions, media, window=window)
        owners = [[item[3] for item in items] for items in groups.values()]
        if commit:
            self._cache.commit(rows, counts)
            last = torch.tensor([i * width + count - 1 for i, count in enumerate(counts)], device=device)
            return h[last], [], owners
        return h[:0], self.network.predict(h, media, skips), owners

    def _prefix(self, row: int, tokenized: TokenSequence, end: int) -> Chunk:
        """The first `end` tokens of a sequence, its media clean."""
        media = tuple(
            (item.modality, item.grid, item.media.tensor(), 0.0, item.start) for item in tokenized.items if item.start < end
        )
        positions = torch.from_numpy(tokenized.positions[:end])
        return Chunk(row, tokenized.tokens[:end], positions, tokenized.spans[:end], tokenized.private[:end], media)


def _in_bf16(network: Network) -> Network:
    """A copy with the trunk's matrices and the head in bf16: the numbers that autocast would make of them at every step."""
    copied = copy.deepcopy(network)
    for module in (*copied.transformer.modules(), copied.head):
        if isinstance(module, nn.Linear) and module.weight is not copied.embed.weight:
            module.weight.data = module.weight.data.bfloat16()
    return copied
