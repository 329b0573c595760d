"""The trunk's configuration: sizes, and options that are all off by default."""

import math
from dataclasses import dataclass
from typing import Literal


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
        weights: "shared": all tokens run through the same weights. "feed_forward": text and control tokens have a feed-forward
            and its norm of their own, and so has each modality. "all": so it is with every weight (projections, norms, the last
            norm), and only the attention itself is common (mixture of transformers, arXiv 2411.04996). A token costs what it
            costs with shared weights. Text keeps the names that shared weights have, `blocks.3.feed_forward...`; those of
            modality m are `blocks.3.media.m.feed_forward...` and `media_norms.m`.
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
    weights: Literal["shared", "feed_forward", "all"] = "shared"

    def __post_init__(self) -> None:
        if self.depth < 1 or self.heads < 1:
            raise ValueError(f"depth and heads must be at least 1, not {self.depth} and {self.heads}")
        if (self.head_size is None and self.width % self.heads) or self.head_dim < 2 or self.head_dim % 2:
            raise ValueError(f"width {self.width} must be heads ({self.heads}) times an even head size, or give a head-size")
        if self.heads % self.num_kv_heads:
            raise ValueError(f"heads {self.heads} must be a multiple of kv-heads {self.num_kv_heads}")
        if self.weights not in ("shared", "feed_forward", "all"):
            raise ValueError(f"weights must be shared, feed_forward or all, not {self.weights!r}")

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
