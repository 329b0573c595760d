"""Packing: whole documents into rows of one length. A pure function of lengths and key, the same on every rank."""

from collections.abc import Sequence

from transfusion import rng


def pack(lengths: Sequence[int], row_length: int, key: int) -> list[tuple[int, ...]]:
    """Rows of document indices: each starts with the longest that is left and is filled up as far as any choice of others
    allows; the order of the rows is drawn by the key.

    Raises:
        ValueError: a document longer than a row.
    """
    left: dict[int, list[int]] = {}
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], -i)):
        if lengths[index] > row_length:
            raise ValueError(f"document {index} takes {lengths[index]} tokens, a row has {row_length}; raise row-length")
        left.setdefault(lengths[index], []).append(index)
    rows = []
    while left:
        longest = next(iter(left))
        first = _take(left, longest, 1)
        chosen = fill({length: len(indices) for length, indices in left.items()}, row_length - longest)
        rows.append(tuple(first + [index for length, count in chosen.items() for index in _take(left, length, count)]))
    order = rng.generator(rng.key(key, "rows")).permutation(len(rows))
    return [rows[i] for i in order]


def _take(left: dict[int, list[int]], length: int, count: int) -> list[int]:
    taken = [left[length].pop() for _ in range(count)]
    if not left[length]:
        del left[length]
    return taken


def fill(counts: dict[int, int], room: int) -> dict[int, int]:
    """Of `counts[length]` pieces of each length, how many to take so that they fill as much of `room` as any choice can.

    Bounded subset sum: bit t of `sums` says that some choice among the lengths so far has length t.
    """
    sums, everything, moves = 1, (1 << (room + 1)) - 1, []
    for length, count in counts.items():
        portion = 1
        while count and sums >> room == 0 and portion * length <= room:
            portion = min(portion, count)
            longer = (sums | sums << portion * length) & everything
            moves.append((length, portion, sums))
            sums, count, portion = longer, count - portion, 2 * portion
    total, chosen = sums.bit_length() - 1, dict[int, int]()
    for length, portion, before in reversed(moves):
        if not before >> total & 1:
            chosen[length] = chosen.get(length, 0) + portion
            total -= portion * length
    return chosen
