"""Multi-head self-attention, and every option of it: QK norm, RoPE, value residual, LASER, gates, and the
`ScoreMod` (ALiBi, soft cap) that `nn/attention.py` applies.

project   per token: queries and keys (normalised), values, gates      (weights may differ by modality)
attend    between tokens: value residual, rotation, cache, attention, gates
out       per token: back into the residual stream                      (weights may differ by modality)
"""

from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from transfusion.nn.adaln import TimeCondition
from transfusion.nn.attention import AttentionBackend, AttentionFn, AttentionMetadata, ScoreMod, make_attention
from transfusion.nn.cache import CacheView
from transfusion.nn.config import TransformerConfig
from transfusion.nn.layers import Linear, RMSNorm
from transfusion.nn.pointwise import recompute_linear, rms_norm, rotate
from transfusion.nn.routing import ModalityRouting


@dataclass(frozen=True, eq=False)
class ForwardContext:
    """What all layers of one forward pass share."""

    cos: Float[Tensor, "row length 1 head_dim"]
    sin: Float[Tensor, "row length 1 head_dim"]
    attentions: tuple[AttentionFn, ...]  # of whole rows, or one for each block of the view
    view: CacheView | None  # where keys and values are cached, if they are
    routing: ModalityRouting
    condition: TimeCondition | None = None  # for adaLN
    is_token: Bool[Tensor, "row length"] | None = None  # False for padding, for the load balance of experts
    first_values: list[Tensor] = field(default_factory=list)  # the first layer's, for the value residual


def attention_fns(
    config: TransformerConfig,
    positions: Float[Tensor, "row length axes"],
    tokens: AttentionMetadata | CacheView,
    backend: AttentionBackend = "auto",
    *,
    backward: bool = False,
) -> tuple[AttentionFn, ...]:
    """The attention functions of all layers, one for whole rows or one for each block of a view: ALiBi, soft cap and LASER act
    inside them, not in `SelfAttention`."""
    options = config.attention
    score_mod = ScoreMod(options.soft_cap, options.alibi_heads, config.num_heads)
    if isinstance(tokens, CacheView):
        backend = "auto" if backend in ("flex", "document") else backend
        parts = [make_attention(backend, block.query, block.key, score_mod=score_mod) for block in tokens.blocks]
    else:
        rows = replace(tokens, coordinates=positions) if score_mod.alibi_heads else tokens
        parts = [make_attention(backend, rows, backward=backward, score_mod=score_mod)]
    return tuple(laser(attention, options.laser) if options.laser else attention for attention in parts)


class AttentionWeights(nn.Module):
    """The per-token weights of attention: one projection for queries, keys and values, their norms, the gate, the output."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        sizes = config.sizes
        self.num_heads, self.num_kv_heads, self.head_dim = config.num_heads, sizes.num_kv_heads, sizes.head_dim
        splits = (self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim, self.num_kv_heads * self.head_dim)
        self.qkv = Linear(config.width, sum(splits), config.qkv_bias, splits=splits, head_dim=self.head_dim)
        self.out = Linear(self.num_heads * self.head_dim, config.width, residual=True)
        self.q_norm = RMSNorm(self.head_dim, config.norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(self.head_dim, config.norm_eps) if config.qk_norm else None
        self.gate = nn.Linear(config.width, self.num_heads) if config.attention.gated else None

    def project(self, x: Tensor) -> tuple[Tensor, ...]:
        """[..., width] -> queries and keys together [..., num_heads + num_kv_heads, head_dim], before rotation; values
        [..., num_kv_heads, head_dim]; and, if gated, gates [..., num_heads, 1]."""
        heads, kv_heads = self.num_heads, self.num_kv_heads
        qk, v = recompute_linear(self.qkv, x).unflatten(-1, (-1, self.head_dim)).split([heads + kv_heads, kv_heads], -2)
        if self.q_norm is not None and self.k_norm is not None:
            weight = torch.cat([self.q_norm.weight.expand(heads, -1), self.k_norm.weight.expand(kv_heads, -1)])
            qk = rms_norm(qk, weight, self.q_norm.eps)
        return (qk, v) if self.gate is None else (qk, v, self.gate(x).sigmoid().unsqueeze(-1))


class SelfAttention(AttentionWeights):
    """Self-attention of layer number `layer`, under the attention rule (`nn/attention.py`)."""

    def __init__(self, config: TransformerConfig, layer: int) -> None:
        super().__init__(config)
        self.layer = layer
        self.value_residual = ValueResidual() if config.attention.value_residual and layer else None
        self.keeps_values = config.attention.value_residual and not layer

    def forward(self, x: Float[Tensor, "row length width"], context: ForwardContext) -> Float[Tensor, "row length width"]:
        """[row, length, width] -> [row, length, width]"""
        return self.out(self.attend(context, *self.project(x)))

    def attend(self, context: ForwardContext, qk: Tensor, v: Tensor, gate: Tensor | None = None) -> Tensor:
        """The results of `project` for all tokens [row, length, ...] -> [row, length, num_heads * head_dim], before `out`."""
        if self.value_residual is not None:
            v = self.value_residual(v, context.first_values[0])
        elif self.keeps_values:
            context.first_values.append(v)
        q, k = rotate(qk, context.cos, context.sin).split([self.num_heads, self.num_kv_heads], 2)
        if context.view is not None:
            y = context.view.attend(self.layer, context.attentions, q, k, v)
        else:
            (attention,) = context.attentions
            y = attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)).transpose(1, 2)
        return (y if gate is None else y * gate).flatten(2)


class ValueResidual(nn.Module):
    """Mix a layer's values with the first layer's, by two learned weights (ResFormer, arXiv 2410.17897)."""

    def __init__(self) -> None:
        super().__init__()
        self.shares = nn.Parameter(torch.full((2,), 0.5))

    def forward(self, values: Tensor, first: Tensor) -> Tensor:
        """shares[0] * first + shares[1] * values"""
        shares = self.shares.to(values.dtype)
        return shares[0] * first + shares[1] * values


def laser(attention: AttentionFn, clamp: float) -> AttentionFn:
    """LASER (arXiv 2411.03493) around any attention: the log of attention over exponentials of the values. More gradient passes
    where attention is sharp.

    Values are soft-clamped to (-clamp, clamp) first, so that exponentials neither overflow nor vanish: with 15 they lie between
    3e-7 and 3e6. A query without visible keys (padding) gets a finite result and no gradient.
    """

    def transformed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = attention(q, k, (clamp * (v / clamp).tanh()).exp())
        exact = out.to(torch.promote_types(out.dtype, torch.float32))
        return exact.clamp_min(torch.tensor(-clamp - 1.0).exp().item()).log().to(v.dtype)

    return transformed
