"""Kinds of tokens: which tokens of a pass run through which set of weights.

Set 0 is that of text and control tokens, set 1 + m that of modality m. A pass in which several kinds occur is cut into a piece
for each (`split`) and put together again (`join`), so that each token costs one set; where all tokens are of one kind, as in
decoding text and in denoising, nothing is moved.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor


@dataclass(frozen=True, eq=False)
class ModalityRouting:
    """The kinds that occur in a pass over tokens [row, length].

    `present` names them, in order; `sizes` is how many tokens each has. `order` are the flat indices of all tokens, kind by
    kind, and `back` the inverse permutation; both None where there is only one kind.
    """

    present: tuple[int, ...] = (0,)
    sizes: tuple[int, ...] = ()
    order: Int[Tensor, " token"] | None = None
    back: Int[Tensor, " token"] | None = None

    @classmethod
    def of(cls, shape: Sequence[int], slots: Iterable[tuple[int, Tensor]], device: torch.device) -> "ModalityRouting":
        """From (kind, flat indices of its tokens) pairs, of which a kind may have several; what no pair names is of kind 0.
        `shape` is (row, length)."""
        named, counts = list(slots), {0: math.prod(shape)}
        for kind, index in named:
            counts[kind] = counts.get(kind, 0) + index.numel()
            counts[0] -= index.numel()
        present = tuple(sorted(kind for kind, count in counts.items() if count))
        if len(present) < 2:
            return cls(present or (0,))
        kinds = torch.zeros(math.prod(shape), dtype=torch.int64, device=device)
        for kind, index in named:
            kinds[index.flatten()] = kind
        order = kinds.argsort(stable=True)  # not nonzero: its size would have to come from the device
        back = torch.empty_like(order)
        back[order] = torch.arange(len(order), device=device)
        return cls(present, tuple(counts[kind] for kind in present), order, back)

    def split(self, x: Tensor) -> Sequence[Tensor]:
        """The tokens of each kind that occurs, of x [row, length, ...]: [token, ...]; x itself if there is but one."""
        return (x,) if self.order is None else x.flatten(0, 1).index_select(0, self.order).split(self.sizes)

    def join(self, pieces: Sequence[Tensor], shape: Sequence[int]) -> Tensor:
        """The inverse: pieces [token, ...] of the kinds in order -> [row, length, ...]; `shape` begins with row, length."""
        if self.back is None:
            return pieces[0]
        return torch.cat(list(pieces)).index_select(0, self.back).unflatten(0, tuple(shape[:2]))


ONE = ModalityRouting()
"""All tokens run through the same weights."""
