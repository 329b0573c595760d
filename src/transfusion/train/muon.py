"""Muon (Jordan 2024, https://kellerjordan.github.io/posts/muon): momentum whose matrices are made orthogonal before a step.

    M <- mu M + (1 - mu) G      U = mu M + (1 - mu) G (Nesterov)      O = orthogonal(U)      W <- (1 - lr decay) W - lr s O

O has the singular vectors of U, and singular values near 1: every direction of a matrix is learned at one rate. With
s = 0.2 sqrt(max(rows, columns)) an entry of a step is as large as AdamW's on average ("Muon is scalable", arXiv 2502.16982,
section 2.2), so AdamW's rate and decay serve both. It is for the matrices between a network's inside and inside; embeddings,
heads, small matrices at the edge, norms and biases stay with AdamW, in the same optimiser.

A fused projection is several matrices (queries, keys, values; gate, up); each is made orthogonal alone. The module that owns
it says which rows are whose (`nn/matrices.py`).
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim.adamw import adamw

from transfusion.nn.hidden_matrices import Matrices, cut
from transfusion.train.device import has_bf16

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Jordan's quintic: steepest at 0, so that 5 steps bring singular values from 0.01 to 1 into 0.7 to 1.2."""
TOGETHER = 1 << 24
"""Numbers at most in one batch of matrices: bounds what a step needs beside the weights."""


def muon_group(
    matrices: Sequence[Matrices],
    *,
    weight_decay: float,
    lr_scale: float = 1.0,
    momentum: float = 0.95,
    nesterov: bool = True,
    newton_schulz_steps: int = 5,
    per_head: bool = False,
) -> dict[str, Any]:
    """A parameter group for `MuonAdamW`; see `MuonConfig` for the arguments."""
    return {
        "params": [m.weight for m in matrices],
        "rows": [m.rows(per_head=per_head) for m in matrices],
        "lr_scale": lr_scale,
        "weight_decay": weight_decay,
        "momentum": momentum,
        "nesterov": nesterov,
        "steps": newton_schulz_steps,
    }


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


class MuonAdamW(torch.optim.Optimizer):
    """Groups that name the rows of their matrices (`muon_group`) by Muon, all others by AdamW.

    Args:
        lr: learning rate of groups that have none. A group's own `lr_scale` is for those who set `lr` at each step.
        dtype: of the orthogonalisation, see `orthogonal`.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        *,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.1,
        dtype: torch.dtype | None = None,
    ) -> None:
        self._dtype = dtype
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "rows": None})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Move all parameters that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if group["rows"] is None:
                self._adamw(group)
            else:
                self._muon(group)
        return loss

    def _adamw(self, group: dict[str, Any]) -> None:
        held = [p for p in group["params"] if p.grad is not None]
        if not held:
            return
        for p in held:
            if not self.state[p]:
                self.state[p]["step"] = torch.zeros((), dtype=torch.float32, device=p.device)
                self.state[p]["exp_avg"] = torch.zeros_like(p)
                self.state[p]["exp_avg_sq"] = torch.zeros_like(p)
        beta1, beta2 = group["betas"]
        adamw(
            held,
            [p.grad for p in held],
            [self.state[p]["exp_avg"] for p in held],
            [self.state[p]["exp_avg_sq"] for p in held],
            [],
            [self.state[p]["step"] for p in held],
            fused=True,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )

    def _muon(self, group: dict[str, Any]) -> None:
        rate, mu = group["lr"], group["momentum"]
        alike: dict[tuple[int, ...], list[tuple[Tensor, Tensor]]] = {}
        for p, rows in zip(group["params"], group["rows"], strict=True):
            if p.grad is None:
                continue
            if not self.state[p]:
                self.state[p]["momentum"] = torch.zeros_like(p)
            momentum = self.state[p]["momentum"].lerp_(p.grad, 1 - mu)
            update = p.grad.lerp(momentum, mu) if group["nesterov"] else momentum
            p.mul_(1 - rate * group["weight_decay"])
            for weight, piece in zip(cut(p, rows), cut(update, rows), strict=True):
                alike.setdefault(tuple(weight.shape), []).append((weight, piece))
        for shape, pairs in alike.items():
            scale = 0.2 * math.sqrt(max(shape))
            together = max(TOGETHER // math.prod(shape), 1)
            for first in range(0, len(pairs), together):
                some = pairs[first : first + together]
                moved = orthogonal(torch.stack([piece for _, piece in some]), group["steps"], self._dtype)
                for (weight, _), o in zip(some, moved, strict=True):
                    weight.add_(o.to(weight.dtype), alpha=-rate * scale)
