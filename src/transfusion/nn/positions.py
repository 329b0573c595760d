"""Rotary position embedding over several axes (RoPE, Su et al. 2021, arXiv 2104.09864; Llama's halves convention).

Each frequency belongs to one axis, in turn. A token with the same coordinate on every axis gets exactly the 1-D rotation.
Coordinates and angles are fp32 whatever the model computes in.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def angles(
    positions: Float[Tensor, "*rows length axes"], head_dim: int, theta: float
) -> tuple[Float[Tensor, "*rows length head_dim"], Float[Tensor, "*rows length head_dim"]]:
    """Cosines and signed sines of the rotation angles.

    angle_j = position[axis j mod axes] * theta^(-2j / head_dim), j = 0 .. head_dim / 2 - 1. Both halves of a head carry the
    same angles; the sine of the first half is negated, so that a rotation is x * cos + swap_halves(x) * sin.
    """
    half = torch.arange(0, head_dim, 2, dtype=torch.float32, device=positions.device)
    frequency = theta ** (-half / head_dim)
    axis = torch.arange(head_dim // 2, device=positions.device) % positions.shape[-1]
    angle = positions.float()[..., axis] * frequency
    cos, sin = angle.cos(), angle.sin()
    return torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)
