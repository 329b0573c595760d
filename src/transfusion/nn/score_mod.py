"""What may be done to the scores of attention before the softmax: a soft cap, and a bias by distance.

score' = cap * tanh(score / cap) - slope[head] * mean over the axes of |query's coordinate - key's coordinate|
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class ScoreMod:
    """Soft cap (Gemma 2, arXiv 2408.00118; 0: none) and number of ALiBi heads (arXiv 2108.12409) of `heads`."""

    soft_cap: float = 0.0
    alibi: int = 0
    heads: int = 0

    @property
    def plain(self) -> bool:
        """Whether nothing is done."""
        return not self.soft_cap and not self.alibi

    def capped(self, scores: Tensor) -> Tensor:
        """Scores, bent into (-soft_cap, soft_cap)."""
        return self.soft_cap * (scores / self.soft_cap).tanh() if self.soft_cap else scores

    def slopes(self, device: torch.device) -> Float[Tensor, " head"]:
        """2^(-8 i / alibi) for the first `alibi` heads, i from 1; 0 for the others."""
        steps = torch.arange(1, self.heads + 1, dtype=torch.float32, device=device)
        return torch.where(steps <= self.alibi, 2.0 ** (-8.0 * steps / max(self.alibi, 1)), 0.0)

    def bias(
        self, query: Float[Tensor, "row query axes"], key: Float[Tensor, "row key axes"]
    ) -> Float[Tensor, "row head query key"]:
        """What is added to the scores of these coordinates."""
        axes = zip(query.unbind(-1), key.unbind(-1), strict=True)
        distance = sum((q[:, :, None] - k[:, None, :]).abs() for q, k in axes)
        assert isinstance(distance, Tensor)
        return -self.slopes(distance.device)[:, None, None] * (distance / query.shape[-1])[:, None]


PLAIN = ScoreMod()
"""Scores as they are."""
