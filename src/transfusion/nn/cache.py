"""KV cache of unfinished sequences, preallocated: sequences join and leave without moving the others.

A forward pass writes its tokens after a slot's committed prefix and reads everything up to them. Only `commit` extends the
prefix: denoising passes never commit, so the next pass overwrites their tokens and the prefix stays.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from transfusion.nn.attention import AttentionMetadata
from transfusion.nn.config import TransformerConfig


class KVCache:
    """Keys and values of `slots` sequences of up to `capacity` tokens; padding is written to one more column. For ALiBi
    the tokens' coordinates on `axes` axes are kept too."""

    def __init__(
        self, config: TransformerConfig, slots: int, capacity: int, *, axes: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        shape = (slots, config.sizes.num_kv_heads, capacity + 1, config.sizes.head_dim)
        self.keys = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(config.depth)]
        self.values = [torch.zeros_like(keys) for keys in self.keys]
        self.spans = torch.full((slots, capacity + 1), -1, device=device)
        self.private = torch.zeros(slots, capacity + 1, dtype=torch.bool, device=device)
        self.coordinates = torch.zeros(slots, capacity + 1, axes, device=device) if config.attention.alibi_heads else None
        self.capacity = capacity
        self.lengths = [0] * slots
        self._free = list(range(slots - 1, -1, -1))

    @property
    def num_free(self) -> int:
        """Unallocated slots."""
        return len(self._free)

    def allocate(self) -> int:
        """A free slot, with an empty prefix."""
        slot = self._free.pop()
        self.lengths[slot] = 0
        return slot

    def free(self, slot: int) -> None:
        """Return a slot."""
        self._free.append(slot)

    def truncate(self, slot: int, length: int) -> None:
        """Cut a slot's prefix to `length` tokens; the next pass overwrites the rest."""
        assert 0 <= length <= self.lengths[slot]
        self.lengths[slot] = length

    def view(
        self, slots: Sequence[int], counts: Sequence[int], spans: Tensor, private: Tensor, positions: Tensor | None = None
    ) -> "CacheView":
        """The view of a pass that writes `counts[i]` tokens after the prefix of `slots[i]`.

        Args:
            spans, private: [len(slots), max(counts)]; what exceeds a slot's count is padding.
            positions: the same with axes, for a cache with coordinates.

        Raises:
            ValueError: a sequence would exceed the capacity.
        """
        starts = [self.lengths[slot] for slot in slots]
        end = max(start + count for start, count in zip(starts, counts, strict=True))
        if end > self.capacity:
            raise ValueError(f"{end} tokens exceed the context of {self.capacity}")
        device = self.spans.device
        width = spans.shape[1]
        start = torch.tensor(starts, device=device)
        count = torch.tensor(counts, device=device)
        offset = torch.arange(width, device=device)
        columns = (start[:, None] + offset).masked_fill(offset >= count[:, None], self.capacity)
        index = torch.tensor(slots, device=device)
        self.spans[index[:, None], columns] = spans
        self.private[index[:, None], columns] = private
        if self.coordinates is not None:
            assert positions is not None
            self.coordinates[index[:, None], columns] = positions
        first, contiguous = slots[0], list(slots) == list(range(slots[0], slots[0] + len(slots)))
        read: slice | Tensor = slice(first, first + len(slots)) if contiguous else index
        aligned = contiguous and min(starts) + width == max(starts) + min(counts)
        query = AttentionMetadata(torch.zeros_like(spans), spans, private, start[:, None] + offset, positions)
        # Columns after this pass's last token may hold an earlier sequence: they get a document of their own.
        keys = torch.arange(end, device=device).expand(len(slots), end)
        documents = torch.where(keys >= (start + count)[:, None], -2, 0)
        coordinates = None if self.coordinates is None else self.coordinates[read, :end]
        key = AttentionMetadata(documents, self.spans[read, :end], self.private[read, :end], keys, coordinates)
        return CacheView(self, index, columns, read, starts[0] if aligned else None, end, query, key)

    def commit(self, slots: Sequence[int], counts: Sequence[int]) -> None:
        """Extend the prefixes by what the last pass wrote."""
        for slot, count in zip(slots, counts, strict=True):
            self.lengths[slot] += count


@dataclass(frozen=True, eq=False)
class CacheView:
    """One pass's view of a cache: it writes tokens and reads all up to them."""

    cache: KVCache
    slots: Int[Tensor, " sequence"]
    columns: Int[Tensor, "sequence token"]  # where each token is written
    read: slice | Tensor  # the slots again, a slice where they are contiguous
    block: int | None  # first column, if what is written is one block of the storage
    end: int  # columns read
    query: AttentionMetadata  # of the tokens written
    key: AttentionMetadata  # of all that are read

    def update(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write this pass's keys and values [sequence, head, token, dim]; returns those of all tokens up to them."""
        result = []
        for stored, new in ((self.cache.keys[layer], keys), (self.cache.values[layer], values)):
            if self.block is None:
                stored[self.slots[:, None], :, self.columns] = new.transpose(1, 2).to(stored.dtype)
            else:
                stored[self.read, :, self.block : self.end] = new
            result.append(stored[self.read, :, : self.end])
        return result[0], result[1]
