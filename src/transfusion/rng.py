"""Keyed, stateless RNG: every draw is a pure function of its key.

A key is made of (seed, epoch, sample, item, purpose ...), never of a rank, a worker, a row or a position in a batch. So a run
resumes from its position alone, neither packing nor a second process changes what is trained, and a generated document depends
on its own seed, not on its neighbours. Numbers come from numpy's Philox generator, the same on every machine.
"""

import hashlib

import numpy as np
import torch
from torch import Tensor

KeyPart = int | str | np.integer


def key(*parts: KeyPart) -> int:
    """A 63-bit key of the parts, in order; equal parts give equal keys on every machine, numpy's whole numbers those of int."""
    plain = (part.item() if isinstance(part, np.integer) else part for part in parts)
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in plain)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(key: int) -> np.random.Generator:
    """The random generator of a key."""
    return np.random.Generator(np.random.Philox(key=key))


def uniform(*parts: KeyPart) -> float:
    """A number in [0, 1), drawn by the key of the parts."""
    return key(*parts) / 2**63


def normal(keys: list[int], shape: tuple[int, ...]) -> Tensor:
    """Standard normal numbers, Float32[len(keys), *shape] on the CPU; row i depends on keys[i] alone."""
    rows = np.empty((len(keys), *shape), dtype=np.float32)
    for row, row_key in zip(rows, keys, strict=True):
        row[...] = generator(row_key).standard_normal(shape, dtype=np.float32)
    return torch.from_numpy(rows)
