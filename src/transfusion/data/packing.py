"""Packing: whole documents into rows of one length. A pure function of lengths and key, the same on every rank."""

from bisect import bisect_left, insort
from collections.abc import Sequence

from transfusion import chance


def pack(lengths: Sequence[int], row_length: int, key: int) -> list[tuple[int, ...]]:
    """Rows of document indices: best fit, longest first; the order of the rows and within a row is drawn by the key.

    Raises:
        ValueError: a document longer than a row.
    """
    rows: list[list[int]] = []
    gaps: list[tuple[int, int]] = []  # (room left, row), sorted
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        length = lengths[index]
        if length > row_length:
            raise ValueError(f"document {index} takes {length} tokens, a row has {row_length}; raise row-length")
        at = bisect_left(gaps, (length, -1))
        if at < len(gaps):
            room, row = gaps.pop(at)
            rows[row].append(index)
        else:
            room, row = row_length, len(rows)
            rows.append([index])
        if room > length:
            insort(gaps, (room - length, row))
    order = chance.generator(chance.key(key, "rows")).permutation(len(rows))
    return [tuple(rows[i]) for i in order]
