"""Modifications of attention scores before the softmax: soft cap and ALiBi.

score' = cap * tanh(score / cap) - slope[head] * mean over the axes of |query's coordinate - key's coordinate|
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class ScoreMod:
    """Soft cap (Gemma 2, arXiv 2408.00118; 0: none) and ALiBi (arXiv 2108.12409) on `alibi_heads` of `num_heads` heads."""

    soft_cap: float = 0.0
    alibi_heads: int = 0
    num_heads: int = 0

    @property
    def is_identity(self) -> bool:
        """Whether scores stay unchanged."""
        return not self.soft_cap and not self.alibi_heads

    def capped(self, scores: Tensor) -> Tensor:
        """soft_cap * tanh(scores / soft_cap)"""
        return self.soft_cap * (scores / self.soft_cap).tanh() if self.soft_cap else scores

    def slopes(self, device: torch.device) -> Float[Tensor, " head"]:
        """2^(-8 i / alibi_heads) for the first `alibi_heads` heads, i from 1; 0 for the others."""
        steps = torch.arange(1, self.num_heads + 1, dtype=torch.float32, device=device)
        return torch.where(steps <= self.alibi_heads, 2.0 ** (-8.0 * steps / max(self.alibi_heads, 1)), 0.0)

    def bias(
        self, query: Float[Tensor, "row query axes"], key: Float[Tensor, "row key axes"]
    ) -> Float[Tensor, "row head query key"]:
        """ALiBi's bias on the scores, from coordinates."""
        axes = zip(query.unbind(-1), key.unbind(-1), strict=True)
        distance = sum((q[:, :, None] - k[:, None, :]).abs() for q, k in axes)
        assert isinstance(distance, Tensor)
        return -self.slopes(distance.device)[:, None, None] * (distance / query.shape[-1])[:, None]


IDENTITY = ScoreMod()
"""Unchanged scores."""
