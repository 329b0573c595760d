"""What every layer is made of: the norm, the matrix, the feed-forward."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from transfusion.nn.hidden_matrices import Matrices
from transfusion.nn.pointwise import recompute_linear, rms_norm, swiglu


class RMSNorm(nn.Module):
    """RMSNorm (Zhang and Sennrich 2019, arXiv 1910.07467): x / rms(x) * weight."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] -> [..., width]"""
        return rms_norm(x, self.weight, self.eps)


FEW = 32
"""Rows up to which a product is taken the other way round, see `Linear`."""


class Linear(nn.Linear):
    """A matrix, with a bias only if asked for. Where a CPU decodes a few rows in fp32, weight @ rows^T is taken instead of
    rows @ weight^T: the same numbers, but that product is shared among cores and reads the weights at memory speed (LOG.md
    has both).

    Args:
        fused: outputs of each matrix, where this one is several in one; head: outputs of an attention head.
    """

    def __init__(
        self, rows: int, columns: int, bias: bool = False, *, fused: tuple[int, ...] | None = None, head: int = 0
    ) -> None:
        super().__init__(rows, columns, bias=bias)
        self._fused, self._head = fused or (columns,), head

    def matrices(self) -> list[Matrices]:
        """What its weight holds."""
        return [Matrices(self.weight, self._fused, self._head)]

    def forward(self, input: Tensor) -> Tensor:
        """[..., rows] -> [..., columns]"""
        count = input.numel() // input.shape[-1]
        if count > FEW or torch.is_grad_enabled() or input.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
            return super().forward(input)
        flat = input.reshape(count, input.shape[-1])
        if count == 1:
            flat = torch.cat([flat, flat])  # a single column would be taken as a matrix-vector product
        out = (self.weight @ flat.T)[:, :count].T.reshape(*input.shape[:-1], self.out_features)
        return out if self.bias is None else out + self.bias


class MLP(nn.Module):
    """SwiGLU (Shazeer 2020, arXiv 2002.05202): down(silu(gate(x)) * up(x)), gate and up in one projection."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_up = Linear(width, 2 * hidden, fused=(hidden, hidden))
        self.down = Linear(hidden, width)

    def forward(self, x: Tensor, norm: Callable[[Tensor], Tensor]) -> Tensor:
        """[..., width] -> [..., width]; `norm` is applied to x first."""
        return recompute_linear(swiglu, self.down, recompute_linear(norm, self.gate_up, x))
