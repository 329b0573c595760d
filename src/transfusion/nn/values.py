"""What is done to values on their way through attention: mixing in the first layer's, and LASER."""

import torch
from torch import Tensor, nn

from transfusion.nn.attention import AttentionFn


class ValueResidual(nn.Module):
    """A layer's values mixed with those of the first layer, by two learned shares (ResFormer, arXiv 2410.17897)."""

    def __init__(self) -> None:
        super().__init__()
        self.shares = nn.Parameter(torch.full((2,), 0.5))

    def forward(self, values: Tensor, first: Tensor) -> Tensor:
        """shares[0] * first + shares[1] * values"""
        shares = self.shares.to(values.dtype)
        return shares[0] * first + shares[1] * values


def laser(attend: AttentionFn, clamp: float) -> AttentionFn:
    """LASER (arXiv 2411.03493) around any form of attention: log of attention over the exponentials of the values, which lets
    more gradient through where attention is sharp.

    Values are first bent softly into (-clamp, clamp), so that exponentials neither overflow nor vanish: with 15 they lie
    between 3e-7 and 3e6. What attends to nothing (a row of padding) gets a finite number and no gradient.
    """

    def transformed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = attend(q, k, (clamp * (v / clamp).tanh()).exp())
        exact = out.to(torch.promote_types(out.dtype, torch.float32))
        return exact.clamp_min(torch.tensor(-clamp - 1.0).exp().item()).log().to(v.dtype)

    return transformed
