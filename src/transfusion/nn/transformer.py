"""The trunk: a Llama-type transformer (RMSNorm before each part, SwiGLU, rotary positions) over vectors of any origin."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from transfusion.nn.attention import Attend
from transfusion.nn.cache import Window
from transfusion.nn.matrices import Matrices
from transfusion.nn.pointwise import rms_norm, rotate, swiglu, then


@dataclass(frozen=True)
class Trunk:
    """Sizes and options of the transformer.

    Args:
        width: size of a token's vector.
        depth: layers.
        heads: query heads.
        kv_heads: heads of keys and values, each shared by heads / kv_heads query heads (None: as many as `heads`).
        head_size: size of a head (None: width / heads).
        hidden: width inside the feed-forward (None: 8/3 of the width, rounded up to a multiple of `round_hidden`).
        round_hidden: see `hidden`; Llama takes 256.
        qk_norm: RMSNorm on queries and keys, per head.
        qkv_bias: a bias on queries, keys and values (Qwen 2).
        theta: base of the rotary frequencies.
        eps: of the norms.
    """

    width: int = 256
    depth: int = 6
    heads: int = 4
    kv_heads: int | None = None
    head_size: int | None = None
    hidden: int | None = None
    round_hidden: int = 32
    qk_norm: bool = True
    qkv_bias: bool = False
    theta: float = 10000.0
    eps: float = 1e-5

    def __post_init__(self) -> None:
        if self.depth < 1 or self.heads < 1:
            raise ValueError(f"depth and heads must be at least 1, not {self.depth} and {self.heads}")
        if (self.head_size is None and self.width % self.heads) or self.head_dim < 2 or self.head_dim % 2:
            raise ValueError(f"width {self.width} must be heads ({self.heads}) times an even head size, or give a head-size")
        if self.heads % self.num_kv_heads:
            raise ValueError(f"heads {self.heads} must be a multiple of kv-heads {self.num_kv_heads}")

    @property
    def head_dim(self) -> int:
        """Size of a head."""
        return self.width // self.heads if self.head_size is None else self.head_size

    @property
    def num_kv_heads(self) -> int:
        """Heads of keys and values."""
        return self.kv_heads or self.heads

    @property
    def hidden_width(self) -> int:
        """Width inside the feed-forward."""
        return self.hidden or math.ceil(self.width * 8 / 3 / self.round_hidden) * self.round_hidden


class Norm(nn.Module):
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
        flat = input.reshape(count, -1)
        if count == 1:
            flat = torch.cat([flat, flat])  # a single column would be taken as a matrix-vector product
        out = (self.weight @ flat.T)[:, :count].T.reshape(*input.shape[:-1], -1)
        return out if self.bias is None else out + self.bias


class Attention(nn.Module):
    """Multi-head attention with rotary positions; queries, keys and values in one projection."""

    def __init__(self, trunk: Trunk) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.dim = trunk.heads, trunk.num_kv_heads, trunk.head_dim
        parts = (self.heads * self.dim, self.kv_heads * self.dim, self.kv_heads * self.dim)
        self.qkv = Linear(trunk.width, sum(parts), trunk.qkv_bias, fused=parts, head=self.dim)
        self.out = Linear(self.heads * self.dim, trunk.width)
        self.q_norm = Norm(self.dim, trunk.eps) if trunk.qk_norm else None
        self.k_norm = Norm(self.dim, trunk.eps) if trunk.qk_norm else None

    def forward(
        self, x: Tensor, norm: Norm, cos: Tensor, sin: Tensor, attend: Attend, window: Window | None, layer: int
    ) -> Tensor:
        """[row, length, width] -> [row, length, width]; `norm` is applied to x first. Angles are [row, length, 1, dim]."""
        heads, kv_heads = self.heads, self.kv_heads
        qk, v = then(norm, self.qkv, x).unflatten(-1, (-1, self.dim)).split([heads + kv_heads, kv_heads], 2)
        if self.q_norm is not None and self.k_norm is not None:
            weight = torch.cat([self.q_norm.weight.expand(heads, -1), self.k_norm.weight.expand(kv_heads, -1)])
            qk = rms_norm(qk, weight, self.q_norm.eps)
        q, k = rotate(qk, cos, sin).split([heads, kv_heads], 2)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        if window is not None:
            k, v = window.update(layer, k, v)
        return self.out(attend(q, k, v).transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """SwiGLU (Shazeer 2020, arXiv 2002.05202): down(silu(gate(x)) * up(x)), gate and up in one projection."""

    def __init__(self, trunk: Trunk) -> None:
        super().__init__()
        self.gate_up = Linear(trunk.width, 2 * trunk.hidden_width, fused=(trunk.hidden_width, trunk.hidden_width))
        self.down = Linear(trunk.hidden_width, trunk.width)

    def forward(self, x: Tensor, norm: Norm) -> Tensor:
        """[..., width] -> [..., width]; `norm` is applied to x first."""
        return then(swiglu, self.down, then(norm, self.gate_up, x))


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x))."""

    def __init__(self, trunk: Trunk) -> None:
        super().__init__()
        self.attention_norm, self.feed_norm = Norm(trunk.width, trunk.eps), Norm(trunk.width, trunk.eps)
        self.attention, self.feed_forward = Attention(trunk), FeedForward(trunk)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend, window: Window | None, layer: int) -> Tensor:
        """[row, length, width] -> [row, length, width]"""
        x = x + self.attention(x, self.attention_norm, cos, sin, attend, window, layer)
        return x + self.feed_forward(x, self.feed_norm)


class Transformer(nn.Module):
    """The blocks and the last norm."""

    def __init__(self, trunk: Trunk) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(trunk) for _ in range(trunk.depth))
        self.norm = Norm(trunk.width, trunk.eps)

    def forward(
        self,
        x: Float[Tensor, "row length width"],
        angles: tuple[Tensor, Tensor],
        attend: Attend,
        window: Window | None = None,
    ) -> Float[Tensor, "row length width"]:
        """Run all layers. `angles` come from `positions.angles`; `window` where keys are cached."""
        cos, sin = (a.unsqueeze(2).to(torch.promote_types(x.dtype, torch.float32)) for a in angles)
        for layer, block in enumerate(self.blocks):
            x = block(x, cos, sin, attend, window, layer)
        return self.norm(x)


def initialise(module: nn.Module, depth: int) -> None:
    """Normal(0, 0.02) weights; projections back into the residual stream scaled by 1 / sqrt(2 depth) (GPT-2)."""
    for name, weight in module.named_parameters():
        if name.endswith(".bias"):
            nn.init.zeros_(weight)
        if weight.ndim < 2:
            continue
        residual = name.endswith(("attention.out.weight", "feed_forward.down.weight"))
        nn.init.normal_(weight, std=0.02 / math.sqrt(2 * depth) if residual else 0.02)
