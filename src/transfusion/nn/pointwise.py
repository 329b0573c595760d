"""Pointwise functions between matrix products: RMSNorm, rotation, SwiGLU.

Each has two forms, tested equal: a plain one (`plain_*`), and one with a hand-written backward for training on a CPU, which
takes fewer passes over memory, saves fewer activations and recomputes the rest.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def plain_rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / rms(x) * weight over the last axis (RMSNorm, Zhang and Sennrich 2019, arXiv 1910.07467). A weight of more axes is
    broadcast against x."""
    if weight.ndim == 1:
        return F.rms_norm(x, weight.shape, weight.to(x.dtype), eps)
    return F.rms_norm(x, x.shape[-1:], None, eps) * weight.to(x.dtype)


def plain_rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x * cos + swap_halves(x) * sin, in the higher precision of the two; for angles see `positions.angles`."""
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([second, first], -1) * sin


def plain_swiglu(gate_up: Tensor) -> Tensor:
    """silu(gate) * up, both in one tensor (SwiGLU, Shazeer 2020, arXiv 2002.05202)."""
    gate, up = gate_up.chunk(2, -1)
    return F.silu(gate) * up


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`plain_rms_norm`, faster on a CPU."""
    if fused(x):
        return _RMSNorm.apply(x, weight, eps)  # pyright: ignore[reportReturnType]
    return (x * _scale(x, eps)).mul_(weight) if _eager(x) else plain_rms_norm(x, weight, eps)


def _scale(x: Tensor, eps: float) -> Tensor:
    """1 / rms(x)"""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32))
    return torch.addcmul(norm.new_full((), eps), norm, norm, value=1 / x.shape[-1]).rsqrt_().to(x.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`plain_rotate`, faster on a CPU. Angles broadcast against [..., head_dim] and get no gradient."""
    return _Rotate.apply(x, cos, sin) if fused(x) else plain_rotate(x, cos, sin)  # pyright: ignore[reportReturnType]


def swiglu(gate_up: Tensor) -> Tensor:
    """`plain_swiglu`, faster on a CPU."""
    return _SwiGLU.apply(gate_up) if fused(gate_up) else plain_swiglu(gate_up)  # pyright: ignore[reportReturnType]


def _eager(x: Tensor) -> bool:
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def fused(x: Tensor) -> bool:
    """Whether the functions with a backward of their own run: on a CPU, in training, uncompiled."""
    return torch.is_grad_enabled() and _eager(x)  # this order saves decoding 8 % of its Python calls


def recomputable(function: Callable[..., Tensor], x: Tensor, *args: Any) -> Tensor:
    """function(x, *args), marked for `recompute_linear`, which then keeps the mark instead of the result for backward.

    A linear layer keeps its input for the gradient of its weight; a norm or a gate of something that is kept anyway is cheaper
    to compute again. Measured in LOG.md: peak memory of training 3.38 -> 3.25 GB in the same time.
    """
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


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        scale = _scale(x, eps)
        ctx.save_for_backward(x, weight, scale)
        return (x * scale).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (grad,) = grads
        x, weight, scale = ctx.saved_tensors
        unit, weight = x * scale, weight.to(grad.dtype)
        buffer = grad * unit
        weight_grad = buffer.sum_to_size(weight.shape)
        along = buffer.mul_(weight).sum(-1, keepdim=True).mul_(-1 / x.shape[-1])
        return torch.mul(grad, weight, out=buffer).addcmul_(unit, along).mul_(scale), weight_grad, None


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.dtype = x.dtype
        half = x.shape[-1] // 2
        out = x * cos
        out[..., :half].addcmul_(x[..., half:], sin[..., :half])
        out[..., half:].addcmul_(x[..., :half], sin[..., half:])
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (grad,) = grads
        cos, sin = ctx.saved_tensors
        half = grad.shape[-1] // 2
        out = grad * cos
        out[..., half:].addcmul_(grad[..., :half], sin[..., :half])
        out[..., :half].addcmul_(grad[..., half:], sin[..., half:])
        return out.to(ctx.dtype), None, None


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up)
        gate, up = gate_up.chunk(2, -1)
        return F.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        (grad,) = grads
        (gate_up,) = ctx.saved_tensors
        gate, up = gate_up.chunk(2, -1)
        out = torch.empty_like(gate_up)
        gate_grad, up_grad = out.chunk(2, -1)
        torch.mul(grad, F.silu(gate), out=up_grad)
        torch.ops.aten.silu_backward.grad_input(grad * up, gate, grad_input=gate_grad)
        return out
