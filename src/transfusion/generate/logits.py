"""Decoding: the next token from logits. Each method is a frozen dataclass with one verb; a row draws one uniform number."""

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
        """The id with the largest logit."""
        return logits.argmax(-1)


@dataclass(frozen=True)
class Sample:
    """A draw from the distribution over the ids that pass all of these cuts.

    Args:
        temperature: divides the logits; below 1 sharpens.
        top_k: keep the k most likely (0: all).
        top_p: keep the fewest ids whose probabilities sum to p (Holtzman et al. 2020, arXiv 1904.09751).
        min_p: keep ids at least this times as likely as the most likely one (Nguyen et al. 2024, arXiv 2407.01082).
    """

    kind: ClassVar[str] = "sample"
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature must be above 0, not {self.temperature}; for the most likely token use greedy")
        if not isinstance(self.top_k, int) or self.top_k < 0 or not 0 < self.top_p <= 1 or not 0 <= self.min_p <= 1:
            raise ValueError(f"top-k must be a whole number of 0 or more, top-p in (0, 1], min-p in [0, 1], not {self}")

    def choose(self, logits: Float[Tensor, "row id"], u: Float[Tensor, " row"]) -> Int[Tensor, " row"]:
        """By inverse CDF: the first id, in descending order of probability, at which the cumulative sum exceeds u."""
        probs, ids = (logits.double() / self.temperature).softmax(-1).sort(dim=-1, descending=True, stable=True)
        keep = probs >= self.min_p * probs[:, :1]
        if self.top_k:
            keep[:, self.top_k :] = False
        keep &= probs.cumsum(-1) - probs < self.top_p
        probs = (probs * keep).cumsum(-1)
        index = torch.searchsorted(probs, (u.double() * probs[:, -1])[:, None], right=True)
        return ids.gather(1, index.clamp_max(keep.sum(-1, keepdim=True) - 1)).squeeze(1)


Decoding: TypeAlias = Greedy | Sample
