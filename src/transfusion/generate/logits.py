"""Next token from logits. A choice is a frozen dataclass with one verb; its chance is one uniform number a row."""

import math
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Greedy:
    """The most likely token."""

    kind: ClassVar[str] = "greedy"

    def choose(self, logits: Float[Tensor, "row id"], u: Float[Tensor, " row"]) -> Int[Tensor, " row"]:
        """Ids."""
        return logits.argmax(-1)


@dataclass(frozen=True)
class Sample:
    """A draw from the distribution, after these cuts in this order.

    Args:
        temperature: divides the logits; below 1 sharpens.
        top_k: keep the k most likely (0: all).
        top_p: keep the most likely whose shares reach p (Holtzman et al. 2020, arXiv 1904.09751).
        min_p: keep what has at least this share of the most likely one (Nguyen et al. 2024, arXiv 2407.01082).
    """

    kind: ClassVar[str] = "sample"
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature must be above 0, not {self.temperature}; for the most likely token use greedy")
        if self.top_k < 0 or not 0 < self.top_p <= 1 or not 0 <= self.min_p <= 1:
            raise ValueError(f"top-k must be 0 or more, top-p in (0, 1], min-p in [0, 1], not {self}")

    def choose(self, logits: Float[Tensor, "row id"], u: Float[Tensor, " row"]) -> Int[Tensor, " row"]:
        """Ids: the first, in falling order of likelihood, at which the summed shares exceed u."""
        shares, ids = (logits.double() / self.temperature).softmax(-1).sort(dim=-1, descending=True, stable=True)
        keep = shares >= self.min_p * shares[:, :1]
        if self.top_k:
            keep[:, self.top_k :] = False
        keep &= shares.cumsum(-1) - shares < self.top_p
        shares = (shares * keep).cumsum(-1)
        at = torch.searchsorted(shares, (u.double() * shares[:, -1])[:, None], right=True)
        return ids.gather(1, at.clamp_max(keep.sum(-1, keepdim=True) - 1)).squeeze(1)


Decoding: TypeAlias = Greedy | Sample
