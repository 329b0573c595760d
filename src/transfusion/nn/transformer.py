"""The trunk: a Llama-type transformer (RMSNorm before each part, SwiGLU, rotary positions) over vectors of any origin.

Weights may come in sets, one for each kind of token (`Trunk.weights`); what is here says which set a token runs through, and
`nn/kinds.py` brings it there.
"""

import math
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from transfusion.nn.attention import Attend
from transfusion.nn.cache import Window
from transfusion.nn.kinds import ONE, Kinds
from transfusion.nn.layers import FeedForward, Linear, Norm
from transfusion.nn.pointwise import rms_norm, rotate, then
from transfusion.nn.trunk import Trunk


@dataclass(frozen=True, eq=False)
class Pass:
    """What all layers of one pass are told: angles [row, length, 1, dim], the form of attention, the cache's view if there is
    one, and the kinds of tokens."""

    cos: Tensor
    sin: Tensor
    attend: Attend
    window: Window | None
    kinds: Kinds


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

    def project(self, x: Tensor, norm: Norm) -> tuple[Tensor, Tensor]:
        """[..., width] -> queries and keys in one [..., heads + kv_heads, dim], before rotation, and values
        [..., kv_heads, dim]; `norm` is applied to x first."""
        heads, kv_heads = self.heads, self.kv_heads
        qk, v = then(norm, self.qkv, x).unflatten(-1, (-1, self.dim)).split([heads + kv_heads, kv_heads], -2)
        if self.q_norm is not None and self.k_norm is not None:
            weight = torch.cat([self.q_norm.weight.expand(heads, -1), self.k_norm.weight.expand(kv_heads, -1)])
            qk = rms_norm(qk, weight, self.q_norm.eps)
        return qk, v

    def look(self, qk: Tensor, v: Tensor, run: Pass, layer: int) -> Tensor:
        """What `project` gave, for all tokens [row, length, ...] -> [row, length, heads * dim], before `out`."""
        q, k = rotate(qk, run.cos, run.sin).split([self.heads, self.kv_heads], 2)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        if run.window is not None:
            k, v = run.window.update(layer, k, v)
        return run.attend(q, k, v).transpose(1, 2).flatten(2)


class Layer(nn.Module):
    """One kind's weights of a layer: feed-forward and its norm, and if `whole` attention and its norm."""

    def __init__(self, trunk: Trunk, *, whole: bool = True) -> None:
        super().__init__()
        if whole:
            self.attention_norm = Norm(trunk.width, trunk.eps)
        self.feed_norm = Norm(trunk.width, trunk.eps)
        if whole:
            self.attention = Attention(trunk)
        self.feed_forward = FeedForward(trunk.width, trunk.hidden_width)


class Block(Layer):
    """x + attention(norm(x)), then x + feed_forward(norm(x)).

    Its own weights are set 0; `media[m]`, where there are sets, is set 1 + m.
    """

    def __init__(self, trunk: Trunk, num_modalities: int) -> None:
        super().__init__(trunk)
        self.weights = trunk.weights
        if trunk.weights != "shared":
            self.media = nn.ModuleList(Layer(trunk, whole=trunk.weights == "all") for _ in range(num_modalities))

    def forward(self, x: Tensor, run: Pass, layer: int) -> Tensor:
        """[row, length, width] -> [row, length, width]"""
        x = x + self.look(x, run, layer)
        return x + self.feed(x, run)

    def look(self, x: Tensor, run: Pass, layer: int) -> Tensor:
        """Attention's part, [row, length, width] -> [row, length, width]."""
        kinds = run.kinds if self.weights == "all" else ONE
        sets = self.sets(kinds)
        projected = [s.attention.project(piece, s.attention_norm) for s, piece in zip(sets, kinds.split(x), strict=True)]
        qk, v = (kinds.join(pieces, x.shape) for pieces in zip(*projected, strict=True))
        seen = self.attention.look(qk, v, run, layer)
        return kinds.join([s.attention.out(piece) for s, piece in zip(sets, kinds.split(seen), strict=True)], x.shape)

    def feed(self, x: Tensor, run: Pass) -> Tensor:
        """The feed-forward's part, [row, length, width] -> [row, length, width]."""
        pieces = zip(self.sets(run.kinds), run.kinds.split(x), strict=True)
        return run.kinds.join([s.feed_forward(piece, s.feed_norm) for s, piece in pieces], x.shape)

    def sets(self, kinds: Kinds) -> list[Layer]:
        """The weights of each kind that occurs."""
        return [self if kind == 0 else cast(Layer, self.media[kind - 1]) for kind in kinds.present]


class Transformer(nn.Module):
    """The blocks and the last norm.

    Args:
        num_modalities: sets of weights beside that of text, where `trunk.weights` asks for sets.
    """

    def __init__(self, trunk: Trunk, num_modalities: int = 0) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(trunk, num_modalities) for _ in range(trunk.depth))
        self.norm = Norm(trunk.width, trunk.eps)
        self.weights = trunk.weights
        if trunk.weights == "all":
            self.media_norms = nn.ModuleList(Norm(trunk.width, trunk.eps) for _ in range(num_modalities))

    def forward(
        self,
        x: Float[Tensor, "row length width"],
        angles: tuple[Tensor, Tensor],
        attend: Attend,
        window: Window | None = None,
        kinds: Kinds = ONE,
        layers: list[Tensor] | None = None,
    ) -> Float[Tensor, "row length width"]:
        """Run all layers. `angles` come from `positions.angles`; `window` where keys are cached; `kinds` where weights come in
        sets; `layers` takes what each layer gives."""
        cos, sin = (a.unsqueeze(2).to(torch.promote_types(x.dtype, torch.float32)) for a in angles)
        run = Pass(cos, sin, attend, window, kinds)
        for layer, block in enumerate(self.blocks):
            x = block(x, run, layer)
            if layers is not None:
                layers.append(x)
        if self.weights != "all":
            return self.norm(x)
        norms = [self.norm if kind == 0 else self.media_norms[kind - 1] for kind in kinds.present]
        return kinds.join([norm(piece) for norm, piece in zip(norms, kinds.split(x), strict=True)], x.shape)


def initialise(module: nn.Module, depth: int) -> None:
    """Normal(0, 0.02) weights; projections back into the residual stream scaled by 1 / sqrt(2 depth) (GPT-2)."""
    for name, weight in module.named_parameters():
        if name.endswith(".bias"):
            nn.init.zeros_(weight)
        if weight.ndim < 2:
            continue
        residual = name.endswith(("attention.out.weight", "feed_forward.down.weight"))
        nn.init.normal_(weight, std=0.02 / math.sqrt(2 * depth) if residual else 0.02)
