"""Muon (Jordan 2024, https://kellerjordan.github.io/posts/muon): momentum, orthogonalized per matrix, as the update.

    M <- mu M + (1 - mu) G      U = mu M + (1 - mu) G (Nesterov)      O = orthogonal(U)      W <- (1 - lr decay) W - lr s O

O has the singular vectors of U and singular values near 1: all directions of a matrix learn at one rate. With
s = 0.2 sqrt(max(rows, columns)) the root mean square of an update is AdamW's ("Muon is scalable", arXiv 2502.16982, section
2.2), so both use one learning rate and weight decay. Muon is for hidden matrices; embeddings, head, norms and biases use AdamW.

Fused projections (queries, keys, values; gate, up) are orthogonalized matrix by matrix (`nn/layers.py`), a convolution as the
matrix [output, input * height * width] (Jordan 2024).
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from transfusion.nn.layers import split_matrices
from transfusion.train.device import has_bf16

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Jordan's quintic, steepest at 0: 5 steps bring singular values from [0.01, 1] into [0.7, 1.2]."""
MAX_BATCH_ELEMENTS = 1 << 24
"""Elements of matrices that are orthogonalized in one batch: bounds the memory of a step."""


@torch.no_grad()
def orthogonal(x: Float[Tensor, "matrix rows columns"], steps: int = 5, dtype: torch.dtype | None = None) -> Tensor:
    """Matrices with the singular vectors of x and singular values near 1, by the Newton-Schulz iteration.

    Args:
        dtype: of the arithmetic (None: bf16 where the device is faster in it, else fp32).
    """
    a, b, c = COEFFICIENTS
    dtype = dtype or (torch.bfloat16 if has_bf16(x.device) else torch.float32)
    tall = x.shape[-2] > x.shape[-1]
    y = (x.mT if tall else x).to(dtype)
    y = y / y.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-7)
    with torch.autocast(x.device.type, enabled=False):
        for _ in range(steps):
            gram = y @ y.mT
            y = torch.baddbmm(y, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), y, beta=a)
    return y.mT if tall else y


class MuonAdamW(torch.optim.AdamW):
    """Muon for the groups of `MuonConfig.group`, which have `splits`; AdamW for all others.

    Args:
        dtype: of the orthogonalization, see `orthogonal`.
        options: of AdamW.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], *, dtype: torch.dtype | None = None, **options: Any) -> None:
        self._dtype = dtype
        super().__init__(groups, fused=True, **options)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Update all parameters that have a gradient."""
        with torch.enable_grad():
            loss = None if closure is None else closure()
        groups = self.param_groups
        self.param_groups = [group for group in groups if "splits" not in group]
        super().step()
        self.param_groups = groups
        for group in groups:
            if "splits" in group:
                self._muon(group)
        return loss

    def __setstate__(self, state: dict[str, Any]) -> None:
        torch.optim.Optimizer.__setstate__(self, state)  # AdamW's own expects its moments at every weight

    def _muon(self, group: dict[str, Any]) -> None:
        rate, mu = group["lr"], group["momentum"]
        by_shape: dict[tuple[int, ...], list[tuple[Tensor, Tensor]]] = {}
        for p, splits in zip(group["params"], group["splits"], strict=True):
            if p.grad is None:
                continue
            if not self.state[p]:
                self.state[p]["momentum"] = torch.zeros_like(p)
            momentum = self.state[p]["momentum"].lerp_(p.grad, 1 - mu)
            update = p.grad.lerp(momentum, mu) if group["nesterov"] else momentum
            p.mul_(1 - rate * group["weight_decay"])
            for weight, matrix in zip(split_matrices(p, splits), split_matrices(update, splits), strict=True):
                by_shape.setdefault(tuple(weight.shape), []).append((weight, matrix))
        for shape, pairs in by_shape.items():
            scale = 0.2 * math.sqrt(max(shape))
            batch_size = max(MAX_BATCH_ELEMENTS // math.prod(shape), 1)
            for first in range(0, len(pairs), batch_size):
                batch = pairs[first : first + batch_size]
                updates = orthogonal(torch.stack([matrix for _, matrix in batch]), group["steps"], self._dtype)
                for (weight, _), o in zip(batch, updates, strict=True):
                    weight.add_(o.to(weight.dtype), alpha=-rate * scale)
