"""Packing of whole documents into rows of one length: a pure function of lengths and key, the same on every rank."""

from collections.abc import Sequence

from transfusion import rng


def pack(lengths: Sequence[int], row_length: int, key: int) -> list[tuple[int, ...]]:
    """Rows of document indices. Each starts with the longest unpacked document and is filled by the best subset of the others
    (`fill`); the key draws the order of the rows. Raises ValueError for a document longer than a row."""
    unpacked: dict[int, list[int]] = {}  # length -> indices
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], -i)):
        if lengths[index] > row_length:
            raise ValueError(f"document {index} takes {lengths[index]} tokens, a row has {row_length}; raise row-length")
        unpacked.setdefault(lengths[index], []).append(index)
    rows = []
    while unpacked:
        longest = next(iter(unpacked))
        first = _take(unpacked, longest, 1)
        chosen = fill({length: len(indices) for length, indices in unpacked.items()}, row_length - longest)
        rows.append(tuple(first + [index for length, count in chosen.items() for index in _take(unpacked, length, count)]))
    order = rng.generator(rng.key(key, "rows")).permutation(len(rows))
    return [rows[i] for i in order]


def _take(unpacked: dict[int, list[int]], length: int, count: int) -> list[int]:
    taken = [unpacked[length].pop() for _ in range(count)]
    if not unpacked[length]:
        del unpacked[length]
    return taken


def fill(counts: dict[int, int], capacity: int) -> dict[int, int]:
    """The subset of documents that fills `capacity` best: length -> how many of `counts[length]` to take.

    Bounded subset sum with binary splitting: bit t of `sums` is set if some subset of the lengths so far has total t.
    """
    sums, mask, moves = 1, (1 << (capacity + 1)) - 1, []
    for length, count in counts.items():
        portion = 1
        while count and sums >> capacity == 0 and portion * length <= capacity:
            portion = min(portion, count)
            moves.append((length, portion, sums))
            sums = (sums | sums << portion * length) & mask
            count, portion = count - portion, 2 * portion
    total, chosen = sums.bit_length() - 1, dict[int, int]()
    for length, portion, before in reversed(moves):
        if not before >> total & 1:
            chosen[length] = chosen.get(length, 0) + portion
            total -= portion * length
    return chosen
