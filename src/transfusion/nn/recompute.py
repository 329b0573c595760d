"""Recompute cheap activations in backward instead of keeping them: norm, then linear; gate, then linear.

A linear layer keeps its input for the gradient of its weight. Where that input is a norm or a gate of something that is kept
anyway, `recomputable` marks it with how it was made, and `recompute_linear` keeps the mark in its place. Measured in LOG.md:
peak memory of training 3.38 -> 3.25 GB in the same time.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from transfusion.nn.pointwise import fused


def recomputable(function: Callable[..., Tensor], x: Tensor, *args: Any) -> Tensor:
    """function(x, *args), marked for `recompute_linear`."""
    out = function(x, *args)
    if fused(out):
        out.made_by = (function, x, *args)  # type: ignore[attr-defined]
    return out


def recompute_linear(linear: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """linear(x); an x from `recomputable` is not kept for backward but computed again. `linear` may be an adapted layer."""
    made_by = getattr(x, "made_by", None) if torch.is_grad_enabled() else None
    if made_by is None:
        return linear(x)
    function, *args = made_by
    if torch.is_autocast_enabled("cpu"):
        x = x.to(torch.get_autocast_dtype("cpu"))
    address, size, dtype = x.data_ptr(), x.numel(), x.dtype

    def pack(kept: Tensor) -> Tensor | torch.Size:
        return kept.shape if kept.data_ptr() == address and kept.numel() == size else kept

    def unpack(kept: Tensor | torch.Size) -> Tensor:
        return kept if isinstance(kept, Tensor) else function(*args).to(dtype).view(kept)

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        return linear(x)
