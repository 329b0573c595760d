"""Modality routing: which tokens of a forward pass use which modality's weights.

Index 0 is text and control tokens, 1 + m is modality m. With several modalities present, `split` sorts tokens by modality into
one piece each and `join` undoes that, so that each token runs through one set of weights. With one modality present, as in
decoding text or denoising media, nothing moves.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor


@dataclass(frozen=True, eq=False)
class ModalityRouting:
    """The modalities of tokens [row, length]."""

    present: tuple[int, ...] = (0,)  # indices of the modalities that occur, ascending
    sizes: tuple[int, ...] = ()  # number of tokens of each
    order: Int[Tensor, " token"] | None = None  # flat indices of all tokens, sorted by modality; None: one modality only
    inverse: Int[Tensor, " token"] | None = None  # the inverse permutation

    @classmethod
    def of(cls, shape: Sequence[int], slots: Iterable[tuple[int, Tensor]], device: torch.device) -> "ModalityRouting":
        """From (modality index, flat token indices) pairs; an index may occur several times, all other tokens have index 0.
        `shape` is (row, length)."""
        groups, counts = list(slots), {0: math.prod(shape)}
        for index, tokens in groups:
            counts[index] = counts.get(index, 0) + tokens.numel()
            counts[0] -= tokens.numel()
        present = tuple(sorted(index for index, count in counts.items() if count))
        if len(present) < 2:
            return cls(present or (0,))
        indices = torch.zeros(math.prod(shape), dtype=torch.int64, device=device)
        for index, tokens in groups:
            indices[tokens.flatten()] = index
        order = indices.argsort(stable=True)  # nonzero would wait for the device
        inverse = torch.empty_like(order)
        inverse[order] = torch.arange(len(order), device=device)
        return cls(present, tuple(counts[index] for index in present), order, inverse)

    def split(self, x: Tensor) -> Sequence[Tensor]:
        """x [row, length, ...] -> the tokens [token, ...] of each modality present; x itself if there is only one."""
        return (x,) if self.order is None else x.flatten(0, 1).index_select(0, self.order).split(self.sizes)

    def join(self, pieces: Sequence[Tensor], shape: Sequence[int]) -> Tensor:
        """The inverse of `split`, to [row, length, ...]; `shape` begins with row, length."""
        if self.inverse is None:
            return pieces[0]
        return torch.cat(list(pieces)).index_select(0, self.inverse).unflatten(0, tuple(shape[:2]))


UNROUTED = ModalityRouting()
"""All tokens use the same weights."""
