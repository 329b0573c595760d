"""Configuration of the transformer: sizes, and options that are all off by default."""

import math
from dataclasses import dataclass
from typing import Literal

from transfusion.nn.moe import MoEConfig
from transfusion.nn.positions import Scaling, Unscaled

MAX_DEPTH, MAX_SIZE = 1000, 2**20
"""Layers, and any other size of the transformer: limits before memory is taken."""


@dataclass(frozen=True)
class AttentionConfig:
    """Options of attention. They combine freely.

    Args:
        alibi_heads: number of query heads, the first ones, with ALiBi (arXiv 2108.12409) beside RoPE, symmetric inside a media
            item and 1-D for text; the formula is in nn/attention.py.
        soft_cap: scores become soft_cap * tanh(score / soft_cap), before ALiBi (Gemma 2, arXiv 2408.00118, uses 50). 0: off.
        value_residual: mix each layer's values with the first layer's (ResFormer, arXiv 2410.17897).
        gated: multiply each head's output by a sigmoid gate, linear in the layer's input (arXiv 2505.06708).
        laser: LASER attention (arXiv 2411.03493): log of attention over exponentials of values that are soft-clamped to
            (-laser, laser); 15 is usual. 0: off.
    """

    alibi_heads: int = 0
    soft_cap: float = 0.0
    value_residual: bool = False
    gated: bool = False
    laser: float = 0.0

    def __post_init__(self) -> None:
        if self.alibi_heads < 0 or not 0 <= self.soft_cap < math.inf or not 0 <= self.laser <= 40:
            raise ValueError(
                f"alibi_heads must be 0 or more, soft_cap 0 or more and finite, and laser between 0 (off) and 40, above which "
                f"exponentials overflow, not {self.alibi_heads}, {self.soft_cap} and {self.laser}"
            )


@dataclass(frozen=True)
class Sizes:
    """The sizes of a `TransformerConfig` with every default filled in."""

    num_kv_heads: int
    head_dim: int
    mlp_width: int


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes and options of the transformer.

    Args:
        width: size of a token's vector.
        depth: number of layers.
        num_heads: query heads.
        num_kv_heads: key and value heads, each shared by num_heads / num_kv_heads query heads (None: num_heads).
        head_dim: size of a head (None: width / num_heads).
        mlp_width: hidden width of the MLP (None: 8/3 of the width, rounded up to a multiple of `mlp_multiple_of`).
        mlp_multiple_of: see `mlp_width`; Llama uses 256.
        qk_norm: RMSNorm on queries and keys, per head.
        norm_order: "pre": x + f(norm(x)); "post": x + norm(f(x)), so that no layer adds much more than another, as in Swin V2
            (arXiv 2111.09883) and Chameleon (arXiv 2405.09818).
        qkv_bias: bias on queries, keys and values (Qwen 2).
        rope_theta: base of the rotary frequencies.
        rope_scaling: RoPE scaling for context extension.
        norm_eps: epsilon of the norms.
        modality_weights: modality-specific weights (Mixture-of-Transformers, arXiv 2411.04996): "none", "mlp" (MLPs and their
            norms) or "all" (projections and norms too; only attention itself is shared). The FLOPs per token stay the same.
            Text and control tokens use `blocks.3.mlp...`, modality m uses `blocks.3.media.m.mlp...` and `media_norms.m`.
        moe: mixture of experts in place of each MLP.
        attention: options of attention.
        residual: residual stream: "plain", "hyper" (hyper-connections, arXiv 2409.19606) or "attention" (each sublayer reads a
            weighted mean of all earlier outputs: "Attention Residuals", Kimi team, 2026).
        num_streams: streams of hyper-connections.
        long_skips: join the last layer with the first, the second last with the second, and so on (U-ViT, arXiv 2209.12152).
        adaln: condition each layer on the time of each media item, by shift, scale and gate on its slots (adaLN-zero, DiT,
            arXiv 2212.09748). `patcher.time` can then be "none". Adds a 6 width x width matrix per layer.
        dropout: dropout on the output of each attention and MLP.
    """

    width: int = 256
    depth: int = 6
    num_heads: int = 4
    num_kv_heads: int | None = None
    head_dim: int | None = None
    mlp_width: int | None = None
    mlp_multiple_of: int = 32
    qk_norm: bool = True
    norm_order: Literal["pre", "post"] = "pre"
    qkv_bias: bool = False
    rope_theta: float = 10000.0
    rope_scaling: Scaling = Unscaled()
    norm_eps: float = 1e-5
    modality_weights: Literal["none", "mlp", "all"] = "none"
    moe: MoEConfig = MoEConfig()
    attention: AttentionConfig = AttentionConfig()
    residual: Literal["plain", "hyper", "attention"] = "plain"
    num_streams: int = 4
    long_skips: bool = False
    adaln: bool = False
    dropout: float = 0.0

    def __post_init__(self) -> None:
        for name in ("width", "depth", "num_heads", "num_kv_heads", "head_dim", "mlp_width", "mlp_multiple_of", "num_streams"):
            number, most = getattr(self, name), MAX_DEPTH if name == "depth" else MAX_SIZE
            if number is not None and not 1 <= number <= most:
                raise ValueError(f"{name} must be at least 1 and at most {most:,}, not {number}")
        for name in ("norm_eps", "rope_theta"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be a finite number above 0, not {getattr(self, name)}")
        heads, sizes = self.num_heads, self.sizes
        if (self.head_dim is None and self.width % heads) or sizes.head_dim < 2 or sizes.head_dim % 2:
            raise ValueError(f"width {self.width} must be num_heads ({heads}) times an even head_dim; or set head_dim")
        if heads % sizes.num_kv_heads:
            raise ValueError(f"num_heads {heads} must be a multiple of num_kv_heads {sizes.num_kv_heads}")
        if self.modality_weights not in ("none", "mlp", "all"):
            raise ValueError(f"modality_weights must be none, mlp or all, not {self.modality_weights!r}")
        if self.norm_order not in ("pre", "post"):
            raise ValueError(f"norm_order must be pre or post, not {self.norm_order!r}")
        if self.norm_order == "post" and self.moe.num_experts and self.moe.top_k == 1 and not self.moe.shared:
            raise ValueError(
                'norm_order "post" cancels the weight of a single expert, so its router would learn nothing: take '
                "moe.top_k 2, or moe.shared"
            )
        if self.residual not in ("plain", "hyper", "attention"):
            raise ValueError(f"residual must be plain, hyper or attention, not {self.residual!r}")
        if self.attention.alibi_heads > heads:
            raise ValueError(f"attention.alibi_heads is {self.attention.alibi_heads}, more than num_heads {heads}")
        if self.long_skips and self.residual == "attention":
            raise ValueError('residual "attention" reads all earlier layers already: use long_skips with "plain" or "hyper"')
        if self.long_skips and self.depth < 3:
            raise ValueError(f"long_skips need a depth of at least 3, not {self.depth}: they join two halves around a middle")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), not {self.dropout}")

    @property
    def sizes(self) -> Sizes:
        """Sizes with the defaults filled in."""
        multiple = self.mlp_multiple_of
        return Sizes(
            self.num_kv_heads or self.num_heads,
            self.width // self.num_heads if self.head_dim is None else self.head_dim,
            self.mlp_width or math.ceil(self.width * 8 / 3 / multiple) * multiple,
        )
