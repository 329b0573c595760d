"""The trunk's configuration: sizes, and options that are all off by default."""

import math
from dataclasses import dataclass
from typing import Literal

from transfusion.nn.moe import MoEConfig
from transfusion.nn.positions import Scaling, Unscaled


@dataclass(frozen=True)
class AttentionConfig:
    """Options of attention, all off by default; together they make any combination.

    Args:
        alibi: query heads, the first ones, whose scores fall with distance (ALiBi, arXiv 2108.12409, over several axes), beside
            the rotation that all have: score - slope * mean over the axes of |difference of coordinates|, in both directions
            inside an item, with slopes 2^(-8 i / alibi), i = 1 .. alibi. For text that is 1-D ALiBi.
        soft_cap: scores are bent into (-soft_cap, soft_cap) by a tanh, before ALiBi (Gemma 2, arXiv 2408.00118; 50 there).
            0: none.
        value_residual: a layer's values are mixed with those of the first layer (arXiv 2410.17897).
        gated: what a head found is multiplied by a sigmoid gate, a linear function of the token (arXiv 2505.06708).
        laser: attention over exponentials of values, softly clamped to this, and the logarithm of what is found (LASER, arXiv
            2411.03493; 15 is usual). 0: plain values.
    """

    alibi: int = 0
    soft_cap: float = 0.0
    value_residual: bool = False
    gated: bool = False
    laser: float = 0.0

    def __post_init__(self) -> None:
        if self.alibi < 0 or not 0 <= self.soft_cap < math.inf or not 0 <= self.laser <= 40:
            raise ValueError(
                f"alibi and soft_cap must not be negative, soft_cap be finite, and laser lie between 0 (off) and 40, beyond "
                f"which exponentials overflow; not {self.alibi}, {self.soft_cap} and {self.laser}"
            )


@dataclass(frozen=True)
class TransformerConfig:
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
        scaling: of these frequencies, for a language model that was made to read longer texts than it first learned from.
        eps: of the norms.
        modality_weights: "none": all tokens run through the same weights. "mlp": text and control tokens have a feed-forward
            and its norm of their own, and so has each modality. "all": so it is with every weight (projections, norms, the last
            norm), and only the attention itself is common (mixture of transformers, arXiv 2411.04996). A token costs what it
            costs with shared weights. Text keeps the names that shared weights have, `blocks.3.mlp...`; those of
            modality m are `blocks.3.media.m.mlp...` and `media_norms.m`.
        moe: a mixture of experts instead of each feed-forward.
        attention: options of attention.
        residual: "plain": each part adds to x. "hyper": hyper-connections (arXiv 2409.19606), `streams` of them. "attention":
            each part reads a weighted mean of all earlier parts' outputs ("Attention Residuals", Kimi team, 2026).
        streams: of hyper-connections.
        long_skips: layers of the second half also get what left the first half, the last from the first and so on (U-ViT,
            arXiv 2209.12152).
        adaln: every layer is told the time of each media item, by shifts, scales and gates on that item's slots (adaLN-zero,
            DiT, arXiv 2212.09748). The third way beside the two that add the time once, before the trunk (`patcher.time`,
            which can then be "none"). It is a square matrix of 6 widths more in each layer.
        dropout: share of the numbers that each part adds to x, left out in training.
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
    scaling: Scaling = Unscaled()
    eps: float = 1e-5
    modality_weights: Literal["none", "mlp", "all"] = "none"
    moe: MoEConfig = MoEConfig()
    attention: AttentionConfig = AttentionConfig()
    residual: Literal["plain", "hyper", "attention"] = "plain"
    streams: int = 4
    long_skips: bool = False
    adaln: bool = False
    dropout: float = 0.0

    def __post_init__(self) -> None:
        for name in ("width", "depth", "heads", "kv_heads", "hidden", "round_hidden"):
            number = getattr(self, name)
            if number is not None and number < 1:
                raise ValueError(f"{name} must be at least 1, not {number}")
        for name in ("eps", "theta"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be a finite number above 0, not {getattr(self, name)}")
        if (self.head_size is None and self.width % self.heads) or self.head_dim < 2 or self.head_dim % 2:
            raise ValueError(f"width {self.width} must be heads ({self.heads}) times an even head size, or give a head-size")
        if self.heads % self.num_kv_heads:
            raise ValueError(f"heads {self.heads} must be a multiple of kv-heads {self.num_kv_heads}")
        if self.modality_weights not in ("none", "mlp", "all"):
            raise ValueError(f"modality_weights must be none, mlp or all, not {self.modality_weights!r}")
        if self.residual not in ("plain", "hyper", "attention"):
            raise ValueError(f"residual must be plain, hyper or attention, not {self.residual!r}")
        if self.residual == "hyper" and self.streams < 1:
            raise ValueError(f"hyper-connections need at least 1 stream, not {self.streams}")
        if self.attention.alibi > self.heads:
            raise ValueError(f"attention.alibi asks for {self.attention.alibi} of {self.heads} heads: give at most as many")
        if self.long_skips and self.residual == "attention":
            raise ValueError('residual "attention" reads all earlier layers already: take long_skips with "plain" or "hyper"')
        if self.long_skips and self.depth < 3:
            raise ValueError(f"long_skips join layers of two halves around a middle: {self.depth} layers are too few, take 3")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is a share from 0 to below 1, not {self.dropout}")

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
