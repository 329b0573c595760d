"""Keys and values of unfinished sequences, preallocated: rows join and leave without moving the others.

A pass writes its tokens behind a row's committed prefix and reads everything up to them. It moves the row's end only when
it commits; a denoising pass does not, so the next one writes over the same place and the prefix stays as it was.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from transfusion.nn.attention import AttentionMetadata


class Cache:
    """Storage for `rows` sequences of up to `capacity` tokens. One more column takes what padding writes. With `axes`, the
    tokens' coordinates are kept, too."""

    def __init__(
        self,
        *,
        layers: int,
        kv_heads: int,
        head_dim: int,
        rows: int,
        capacity: int,
        device: torch.device,
        dtype: torch.dtype,
        axes: int = 0,
    ) -> None:
        shape = (rows, kv_heads, capacity + 1, head_dim)
        self.keys = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(layers)]
        self.values = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(layers)]
        self.spans = torch.full((rows, capacity + 1), -1, device=device)
        self.private = torch.zeros(rows, capacity + 1, dtype=torch.bool, device=device)
        self.coordinates = torch.zeros(rows, capacity + 1, axes, device=device) if axes else None
        self.capacity = capacity
        self.lengths = [0] * rows
        self._free = list(range(rows - 1, -1, -1))

    @property
    def num_free(self) -> int:
        """Rows that nobody holds."""
        return len(self._free)

    def take(self) -> int:
        """A free row, empty."""
        row = self._free.pop()
        self.lengths[row] = 0
        return row

    def give_back(self, row: int) -> None:
        """Free a row."""
        self._free.append(row)

    def shorten(self, row: int, length: int) -> None:
        """Take back what was committed of a row beyond `length` tokens: what comes next is written in its place."""
        assert 0 <= length <= self.lengths[row]
        self.lengths[row] = length

    def window(
        self, rows: Sequence[int], counts: Sequence[int], spans: Tensor, private: Tensor, positions: Tensor | None = None
    ) -> "Window":
        """A view for one pass that writes `counts[i]` tokens behind the prefix of `rows[i]`.

        `spans` and `private` are [len(rows), max(counts)], and `positions`, which a cache of coordinates needs, one axis more;
        what lies behind a row's count is padding.
        """
        starts = [self.lengths[row] for row in rows]
        end = max(start + count for start, count in zip(starts, counts, strict=True))
        if end > self.capacity:
            raise ValueError(f"{end} tokens exceed the context of {self.capacity}")
        device = self.spans.device
        width = spans.shape[1]
        start = torch.tensor(starts, device=device)
        offset = torch.arange(width, device=device)
        at = (start[:, None] + offset).masked_fill(offset >= torch.tensor(counts, device=device)[:, None], self.capacity)
        index = torch.tensor(rows, device=device)
        self.spans[index[:, None], at] = spans
        self.private[index[:, None], at] = private
        if self.coordinates is not None:
            assert positions is not None
            self.coordinates[index[:, None], at] = positions
        first, contiguous = rows[0], list(rows) == list(range(rows[0], rows[0] + len(rows)))
        read: slice | Tensor = slice(first, first + len(rows)) if contiguous else index
        level = contiguous and min(starts) + width == max(starts) + min(counts)  # one block of the storage, without padding
        kept = self.coordinates
        query = AttentionMetadata(
            torch.zeros_like(spans), spans, private, start[:, None] + offset, None if kept is None else positions
        )
        # What an earlier holder of the row left behind this pass's last token belongs to no document.
        columns = torch.arange(end, device=device).expand(len(rows), end)
        stale = columns >= (start + torch.tensor(counts, device=device))[:, None]
        key = AttentionMetadata(
            torch.where(stale, -2, 0),
            self.spans[read, :end],
            self.private[read, :end],
            columns,
            None if kept is None else kept[read, :end],
        )
        return Window(self, index, at, read, starts[0] if level else None, end, query, key)

    def commit(self, rows: Sequence[int], counts: Sequence[int]) -> None:
        """Make what the last pass wrote part of the prefixes."""
        for row, count in zip(rows, counts, strict=True):
            self.lengths[row] += count


@dataclass(frozen=True, eq=False)
class Window:
    """One pass's view of a cache: where it writes, what it reads, and where both stand."""

    cache: Cache
    rows: Tensor
    at: Tensor
    read: slice | Tensor
    block: int | None
    """Column where all rows begin to write, if what they write is one block of the storage."""
    end: int
    query: AttentionMetadata
    key: AttentionMetadata

    def update(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write this pass's keys and values [row, head, length, dim]; everything up to them comes back."""
        both = []
        for stored, new in ((self.cache.keys[layer], keys), (self.cache.values[layer], values)):
            if self.block is None:
                stored[self.rows[:, None], :, self.at] = new.transpose(1, 2).to(stored.dtype)
            else:
                stored[self.read, :, self.block : self.end] = new
            both.append(stored[self.read, :, : self.end])
        return both[0], both[1]
