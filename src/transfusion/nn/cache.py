"""KV cache of unfinished sequences: they join and leave without moving the others, and memory grows with the longest.

A forward pass writes its tokens after a slot's committed prefix and reads everything up to them. Only `commit` extends the
prefix: denoising passes never commit, so the next pass overwrites their tokens and the prefix stays.

The tokens of a pass are flat, in blocks. All tokens share the layers' matrices; attention is computed block by block, since the
rows of a block are padded to one width. So a pass may hold single tokens of many sequences and the prompts of others:

    tokens   a b c d | e e e e e f f f _ _ | ...        CacheView: flat, [1, token, ...]
    rows     a         e e e e e                        CacheBlock: [row, width, ...]
             b ...     f f f _ _                        (_ padding)
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from transfusion.nn.attention import AttentionFn, AttentionMetadata
from transfusion.nn.config import TransformerConfig

FIRST_SLOTS, FIRST_COLUMNS = 8, 64
"""What an empty cache takes memory for."""
BEHIND, HOLE = -2, -3
"""Documents of keys behind a sequence's end, and of queries that are none."""


class KVCache:
    """Keys and values of up to `slots` sequences of up to `capacity` tokens.

    Memory is taken for the slots in use and for as many columns as the longest sequence needs. Both double when they are
    exceeded; when all slots are free again, all but the first is given back. For ALiBi the tokens' coordinates on `axes` axes
    are kept too.
    """

    def __init__(
        self, config: TransformerConfig, slots: int, capacity: int, *, axes: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        self._per_token = config.sizes.num_kv_heads, config.sizes.head_dim
        self._depth, self._axes, self._dtype = config.depth, axes if config.attention.alibi_heads else None, dtype
        self.slots, self.capacity, self.device = slots, capacity, device
        self.lengths = [0] * slots
        self._free = list(range(slots))  # a heap: the lowest is taken first, which keeps those in use together
        self._allocate_first()

    def _allocate_first(self) -> None:
        slots, columns = min(self.slots, FIRST_SLOTS), min(self.capacity, FIRST_COLUMNS)
        # zeros, not empty: a masked key counts nothing only if it is a number
        heads, dim = self._per_token
        zeros = torch.zeros(slots, heads, columns, dim, device=self.device, dtype=self._dtype)
        self.keys = [torch.zeros_like(zeros) for _ in range(self._depth)]
        self.values = [torch.zeros_like(zeros) for _ in range(self._depth)]
        self.spans = torch.full((slots, columns), -1, device=self.device)
        self.private = torch.zeros(slots, columns, dtype=torch.bool, device=self.device)
        self.coordinates = None if self._axes is None else torch.zeros(slots, columns, self._axes, device=self.device)

    @property
    def num_free(self) -> int:
        """Unallocated slots."""
        return len(self._free)

    @property
    def num_bytes(self) -> int:
        """Memory of the keys and values."""
        return sum(t.numel() * t.element_size() for t in (*self.keys, *self.values))

    def allocate(self) -> int:
        """A free slot, with an empty prefix."""
        slot = heapq.heappop(self._free)
        self.lengths[slot] = 0
        return slot

    def free(self, slot: int) -> None:
        """Return a slot."""
        heapq.heappush(self._free, slot)
        if len(self._free) == self.slots and self.spans.numel() > FIRST_SLOTS * FIRST_COLUMNS:
            self._allocate_first()

    def truncate(self, slot: int, length: int) -> None:
        """Cut a slot's prefix to `length` tokens; the next pass overwrites the rest."""
        assert 0 <= length <= self.lengths[slot]
        self.lengths[slot] = length

    def clear(self, slot: int) -> None:
        """Cut a slot's prefix to nothing and overwrite it: no number of it, infinite perhaps, is ever read again."""
        self.lengths[slot] = 0
        if slot < len(self.spans):
            for stored in (*self.keys, *self.values):
                stored[slot] = 0

    def reserve(self, slots: int, columns: int) -> None:
        """Grow to hold at least so many slots and columns. If memory does not suffice the cache stays as it was."""
        old_slots, old_columns = self.spans.shape
        if slots <= old_slots and columns <= old_columns:
            return
        if slots > old_slots:
            slots = min(max(slots, 2 * old_slots), self.slots)
        if columns > old_columns:
            columns = max(columns, min(2 * old_columns, self.capacity))
        shape = max(slots, old_slots), max(columns, old_columns)

        def grown(stored: Tensor) -> Tensor:  # [slot, column, ...]
            new = stored.new_zeros(*shape, *stored.shape[2:])
            new[:old_slots, :old_columns] = stored
            return new

        def grown_heads(stored: Tensor) -> Tensor:  # [slot, head, column, dim]
            new = stored.new_zeros(shape[0], stored.shape[1], shape[1], stored.shape[3])
            new[:old_slots, :, :old_columns] = stored
            return new

        keys, values = [grown_heads(t) for t in self.keys], [grown_heads(t) for t in self.values]
        spans, private = grown(self.spans), grown(self.private)
        coordinates = None if self.coordinates is None else grown(self.coordinates)
        self.keys, self.values, self.spans, self.private, self.coordinates = keys, values, spans, private, coordinates

    def view(
        self,
        blocks: Sequence[Sequence[int]],
        counts: Sequence[Sequence[int]],
        spans: Int[Tensor, " token"],
        private: Tensor,
        positions: Float[Tensor, "token axes"],
        *,
        end: int | None = None,
        gather: bool = False,
    ) -> "CacheView":
        """The view of a pass that writes `counts[b][i]` tokens after the prefix of slot `blocks[b][i]`.

        Args:
            spans, private, positions: of the flat tokens: block after block, row after row, each padded to its block's width.
            end: columns that all blocks read (None: up to the longest sequence of each).
            gather: read copies of the slots, also where they could be read in place.

        Raises:
            ValueError: a sequence would exceed the capacity.
        """
        device = self.device
        begins = [torch.tensor([self.lengths[slot] for slot in block]) for block in blocks]
        ends = [begin + torch.tensor(count) for begin, count in zip(begins, counts, strict=True)]
        longest = max(int(block.max()) for block in ends)
        if longest > self.capacity:
            raise ValueError(f"{longest} tokens exceed the context of {self.capacity}")
        widths = [max(count) for count in counts]
        padded = max(int(begin.max()) + width for begin, width in zip(begins, widths, strict=True))
        self.reserve(1 + max(map(max, blocks)), max(padded, end or 0))
        columns, places, parts, at = self.spans.shape[1], [], [], 0
        for slots, begin, stop, width in zip(blocks, begins, ends, widths, strict=True):
            flat, index = slice(at, at + len(slots) * width), torch.tensor(slots, device=device)
            # padding is written behind its sequence's end, where nothing is
            offsets = begin.to(device)[:, None] + torch.arange(width, device=device)
            places.append((index[:, None] * columns + offsets).flatten())
            self.spans.view(-1)[places[-1]], self.private.view(-1)[places[-1]] = spans[flat], private[flat]
            if self.coordinates is not None:
                self.coordinates.flatten(0, 1)[places[-1]] = positions[flat]
            fields = spans[flat], private[flat], positions[flat], offsets.flatten()
            columns_read = int(stop.max()) if end is None else end
            parts.append(self._block(slots, index, stop.to(device), columns_read, width, fields, gather=gather))
            at = flat.stop
        # the same for each head: keys and values are stored [slot, head, column, dim], so that a head's are read in a row
        written, heads = torch.cat(places)[:, None], torch.arange(self._per_token[0], device=device)
        place = (written // columns * len(heads) + heads) * columns + written % columns
        return CacheView(self, place.flatten(), tuple(parts))

    def _block(
        self,
        slots: Sequence[int],
        index: Tensor,
        stop: Tensor,
        end: int,
        width: int,
        fields: tuple[Tensor, Tensor, Tensor, Tensor],
        *,
        gather: bool,
    ) -> "CacheBlock":
        """A block of a view. Its slots are read as one slice of the storage if most of that is theirs: attention on a few rows
        of others costs less than copies of all."""
        first, spread = min(slots), max(slots) - min(slots) + 1
        read, rows = index, None
        if not gather and spread <= 2 * len(slots) and len(set(slots)) == len(slots):
            read = slice(first, first + spread)
            if list(slots) != list(range(first, first + spread)):
                rows = index - first

        def by_row(x: Tensor, hole: int) -> Tensor:
            x = x.unflatten(0, (len(slots), -1))
            return x if rows is None else x.new_full((spread, *x.shape[1:]), hole).index_copy_(0, rows, x)

        spans, private, positions, offsets = fields
        query = AttentionMetadata(
            by_row(torch.zeros_like(spans), HOLE),
            by_row(spans, -1),
            by_row(private, 0),
            by_row(offsets, 0),
            None if self.coordinates is None else by_row(positions, 0),
        )
        columns = torch.arange(end, device=self.device)
        # Columns after this pass's last token may hold an earlier sequence: they get a document of their own.
        documents = torch.where(columns >= by_row(stop, 0), BEHIND, 0)
        coordinates = None if self.coordinates is None else self.coordinates[read, :end]
        key_index = columns.expand_as(documents)
        key = AttentionMetadata(documents, self.spans[read, :end], self.private[read, :end], key_index, coordinates)
        return CacheBlock(width, len(slots), read, rows, end, query, key)

    def commit(self, slots: Sequence[int], counts: Sequence[int]) -> None:
        """Extend the prefixes by what the last pass wrote."""
        for slot, count in zip(slots, counts, strict=True):
            self.lengths[slot] += count


@dataclass(frozen=True, eq=False)
class CacheBlock:
    """A part of a pass: rows of one width, each behind the prefix of its slot."""

    width: int
    num_rows: int
    read: slice | Tensor  # slots that are read
    rows: Int[Tensor, " row"] | None  # which of these are the block's, if not all in order
    end: int  # columns read
    query: AttentionMetadata  # of the tokens written, for every slot that is read
    key: AttentionMetadata  # of all tokens that are read

    def attend(self, attention: AttentionFn, q: Tensor, keys: Tensor, values: Tensor) -> Float[Tensor, "token head dim"]:
        """Attention of queries [token, head, dim] to one layer's storage, which holds their keys and values already."""
        q = q.unflatten(0, (self.num_rows, self.width)).transpose(1, 2)
        if isinstance(self.read, slice):
            k, v = keys[self.read, :, : self.end], values[self.read, :, : self.end]
        else:
            k, v = (stored[:, :, : self.end].index_select(0, self.read) for stored in (keys, values))
        if self.rows is not None:
            q = q.new_zeros(len(k), *q.shape[1:]).index_copy_(0, self.rows, q)
        y = attention(q, k, v)
        y = y if self.rows is None else y.index_select(0, self.rows)
        return y.transpose(1, 2).flatten(0, 1)


@dataclass(frozen=True, eq=False)
class CacheView:
    """One pass's view of a cache: it writes its tokens, and each block reads its own sequences up to them."""

    cache: KVCache
    written: Int[Tensor, " token_head"]  # where each token's heads go, in the storage flattened over slots, heads and columns
    blocks: tuple[CacheBlock, ...]

    def attend(
        self, layer: int, attentions: Sequence[AttentionFn], q: Tensor, k: Tensor, v: Tensor
    ) -> Float[Tensor, "1 token head dim"]:
        """Store a layer's keys and values [1, token, head, dim]; attention of the queries, by the function of each block."""
        keys, values = self.cache.keys[layer], self.cache.values[layer]
        for stored, new in ((keys, k), (values, v)):
            stored.flatten(0, 2).index_copy_(0, self.written, new.flatten(0, 2).to(stored.dtype))
        pieces = q[0].split([block.num_rows * block.width for block in self.blocks])
        parts = zip(self.blocks, attentions, pieces, strict=True)
        out = [block.attend(attention, piece, keys, values) for block, attention, piece in parts]
        return (torch.cat(out) if len(out) > 1 else out[0]).unsqueeze(0)
