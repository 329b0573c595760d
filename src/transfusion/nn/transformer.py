"""The trunk: a Llama-type transformer (RMSNorm before each part, SwiGLU, rotary positions) over vectors of any origin.

Weights may come in sets, one for each kind of token (`Trunk.weights`); what is here says which set a token runs through, and
`nn/kinds.py` brings it there. Everything else that a `Trunk` can ask for has a file of its own beside this one.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from transfusion.nn.attention import Attend
from transfusion.nn.cache import Window
from transfusion.nn.experts import MixtureOfExperts
from transfusion.nn.kinds import ONE, Kinds
from transfusion.nn.layers import FeedForward, Linear, Norm
from transfusion.nn.modulation import Change, Condition, Modulation
from transfusion.nn.pointwise import rms_norm, rotate, then
from transfusion.nn.residual import DepthAttention, HyperConnections, LongSkip, Part, noted, paired
from transfusion.nn.trunk import Trunk
from transfusion.nn.values import ValueResidual, laser


@dataclass(frozen=True, eq=False)
class Pass:
    """What all layers of one pass are told: angles [row, length, 1, dim], the form of attention, the cache's view if there is
    one, the kinds of tokens, the times of media, and which tokens are no padding; `first` keeps the first layer's values."""

    cos: Tensor
    sin: Tensor
    attend: Attend
    window: Window | None
    kinds: Kinds
    condition: Condition | None = None
    real: Bool[Tensor, "row length"] | None = None
    first: list[Tensor] = field(default_factory=list)


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
        self.gate = nn.Linear(trunk.width, self.heads) if trunk.attention.gated else None

    def project(self, x: Tensor, norm: Part) -> tuple[Tensor, ...]:
        """[..., width] -> queries and keys in one [..., heads + kv_heads, dim], before rotation; values [..., kv_heads, dim];
        and gates [..., heads, 1] if there are any. `norm` is applied to x first."""
        heads, kv_heads = self.heads, self.kv_heads
        if self.gate is not None:
            h = norm(x)
            both, gates = self.qkv(h), (self.gate(h).sigmoid().unsqueeze(-1),)
        else:
            both, gates = then(norm, self.qkv, x), ()
        qk, v = both.unflatten(-1, (-1, self.dim)).split([heads + kv_heads, kv_heads], -2)
        if self.q_norm is not None and self.k_norm is not None:
            weight = torch.cat([self.q_norm.weight.expand(heads, -1), self.k_norm.weight.expand(kv_heads, -1)])
            qk = rms_norm(qk, weight, self.q_norm.eps)
        return qk, v, *gates

    def look(self, run: Pass, layer: int, qk: Tensor, v: Tensor, gate: Tensor | None = None) -> Tensor:
        """What `project` gave, for all tokens [row, length, ...] -> [row, length, heads * dim], before `out`."""
        q, k = rotate(qk, run.cos, run.sin).split([self.heads, self.kv_heads], 2)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        if run.window is not None:
            k, v = run.window.update(layer, k, v)
        found = run.attend(q, k, v).transpose(1, 2)
        return (found if gate is None else found * gate).flatten(2)


class Layer(nn.Module):
    """One kind's weights of a layer: feed-forward and its norm, and if `whole` attention and its norm."""

    def __init__(self, trunk: Trunk, *, whole: bool = True) -> None:
        super().__init__()
        if whole:
            self.attention_norm = Norm(trunk.width, trunk.eps)
        self.feed_norm = Norm(trunk.width, trunk.eps)
        if whole:
            self.attention = Attention(trunk)
        self.feed_forward = (
            MixtureOfExperts(trunk.width, trunk.hidden_width, trunk.experts)
            if trunk.experts.number
            else FeedForward(trunk.width, trunk.hidden_width)
        )

    def fed(self, x: Tensor, norm: Part, real: Tensor | None) -> Tensor:
        """feed_forward(norm(x)); `real` where a mixture of experts is to be told what is padding."""
        return self.feed_forward(x, norm) if real is None else self.feed_forward(x, norm, real)


class Block(Layer):
    """x + attention(norm(x)), then x + feed_forward(norm(x)), or another residual stream around the two.

    Its own weights are set 0; `media[m]`, where there are sets, is set 1 + m.
    """

    def __init__(self, trunk: Trunk, num_modalities: int, layer: int) -> None:
        super().__init__(trunk)
        self.weights, self.layer = trunk.weights, layer
        unusual = trunk.experts.number or trunk.attention.value_residual or trunk.adaln or trunk.dropout
        self.plain = trunk.weights == "shared" and trunk.residual == "plain" and not unusual
        if trunk.weights != "shared":
            self.media = nn.ModuleList(Layer(trunk, whole=trunk.weights == "all") for _ in range(num_modalities))
        self.modulation = Modulation(trunk.width) if trunk.adaln else None
        self.value_residual = ValueResidual() if trunk.attention.value_residual and layer else None
        self.remembers = trunk.attention.value_residual and not layer
        self.dropout = nn.Dropout(trunk.dropout) if trunk.dropout else None
        self.skip = LongSkip(trunk.width) if trunk.long_skips and layer >= trunk.depth - paired(trunk.depth) else None
        self.streams: nn.ModuleList | None = None
        if trunk.residual == "hyper":
            parts = (2 * layer, 2 * layer + 1)
            self.streams = nn.ModuleList(HyperConnections(trunk.width, trunk.streams, i, trunk.eps) for i in parts)
        elif trunk.residual == "attention":
            self.streams = nn.ModuleList(DepthAttention(trunk.width, trunk.eps, first=i + layer == 0) for i in range(2))

    def forward(self, x: Any, run: Pass) -> Any:
        """[row, length, width] -> [row, length, width]; or the state of another residual stream to the same."""
        if self.plain:  # what follows, said directly: in decoding, the questions below would take 1 or 2 % of the time
            attention = self.attention
            x = x + attention.out(attention.look(run, self.layer, *attention.project(x, self.attention_norm)))
            return x + self.feed_forward(x, self.feed_norm)
        look, feed = None, None
        if self.modulation is not None and run.condition is not None:
            look, feed = self.modulation(run.condition, run.cos)
        if self.streams is None:
            x = x + self.look(x, run, look)
            return x + self.feed(x, run, feed)
        x = self.streams[0](x, lambda h: self.look(h, run, look))
        return self.streams[1](x, lambda h: self.feed(h, run, feed))

    def look(self, x: Tensor, run: Pass, change: Change | None) -> Tensor:
        """Attention's part, [row, length, width] -> [row, length, width]."""
        kinds = run.kinds if self.weights == "all" else ONE
        sets = self.sets(kinds)
        norms = changed([s.attention_norm for s in sets], change, kinds)
        projected = [s.attention.project(p, norm) for s, norm, p in zip(sets, norms, kinds.split(x), strict=True)]
        qk, v, *gates = (kinds.join(pieces, x.shape) for pieces in zip(*projected, strict=True))
        if self.value_residual is not None:
            v = self.value_residual(v, run.first[0])
        elif self.remembers:
            run.first.append(v)
        seen = self.attention.look(run, self.layer, qk, v, *gates)
        out = kinds.join([s.attention.out(piece) for s, piece in zip(sets, kinds.split(seen), strict=True)], x.shape)
        return self.given(out, change)

    def feed(self, x: Tensor, run: Pass, change: Change | None) -> Tensor:
        """The feed-forward's part, [row, length, width] -> [row, length, width]."""
        kinds = run.kinds
        sets = self.sets(kinds)
        norms = changed([s.feed_norm for s in sets], change, kinds)
        real = kinds.split(run.real) if run.real is not None else [None] * len(sets)
        pieces = zip(sets, norms, kinds.split(x), real, strict=True)
        out = kinds.join([s.fed(piece, norm, here) for s, norm, piece, here in pieces], x.shape)
        return self.given(out, change)

    def given(self, out: Tensor, change: Change | None) -> Tensor:
        """What a part adds to the stream: its output, gated and thinned where that is asked for."""
        if change is not None:
            out = out * change.gate
        return out if self.dropout is None else self.dropout(out)

    def sets(self, kinds: Kinds) -> list[Layer]:
        """The weights of each kind that occurs."""
        return [self if kind == 0 else cast(Layer, self.media[kind - 1]) for kind in kinds.present]


def changed(norms: Sequence[Norm], change: Change | None, kinds: Kinds) -> Sequence[Part]:
    """Each kind's norm, and behind it the scale and shift of its tokens."""
    if change is None:
        return norms
    pieces = zip(norms, kinds.split(change.scale), kinds.split(change.shift), strict=True)
    return [partial(_modulated, norm=norm, scale=scale, shift=shift) for norm, scale, shift in pieces]


def _modulated(x: Tensor, *, norm: Norm, scale: Tensor, shift: Tensor) -> Tensor:
    return norm(x) * (1 + scale) + shift


class Transformer(nn.Module):
    """The blocks and the last norm.

    Args:
        num_modalities: sets of weights beside that of text, where `trunk.weights` asks for sets.
    """

    def __init__(self, trunk: Trunk, num_modalities: int = 0) -> None:
        super().__init__()
        self.trunk = trunk
        self.blocks = nn.ModuleList(Block(trunk, num_modalities, layer) for layer in range(trunk.depth))
        self.norm = Norm(trunk.width, trunk.eps)
        if trunk.weights == "all":
            self.media_norms = nn.ModuleList(Norm(trunk.width, trunk.eps) for _ in range(num_modalities))
        self.depth_attention = DepthAttention(trunk.width, trunk.eps) if trunk.residual == "attention" else None

    def forward(
        self,
        x: Float[Tensor, "row length width"],
        angles: tuple[Tensor, Tensor],
        attend: Attend,
        window: Window | None = None,
        *,
        kinds: Kinds = ONE,
        condition: Condition | None = None,
        layers: list[Tensor] | None = None,
        real: Bool[Tensor, "row length"] | None = None,
    ) -> Float[Tensor, "row length width"]:
        """Run all layers.

        Args:
            angles: from `positions.angles`.
            window: where keys are cached.
            kinds: where weights come in sets.
            condition: the times of the media, for adaLN.
            layers: takes what each layer gives.
            real: which tokens are no padding, for the balance of experts.
        """
        trunk = self.trunk
        cos, sin = (a.unsqueeze(2).to(torch.promote_types(x.dtype, torch.float32)) for a in angles)
        if trunk.attention.laser:
            attend = laser(attend, trunk.attention.laser)
        run = Pass(cos, sin, attend, window, kinds, condition, real)
        x = self._run(x, run, layers)
        if trunk.weights != "all":
            return self.norm(x)
        norms = [self.norm if kind == 0 else self.media_norms[kind - 1] for kind in kinds.present]
        return kinds.join([norm(piece) for norm, piece in zip(norms, kinds.split(x), strict=True)], x.shape)

    def _run(self, x: Tensor, run: Pass, layers: list[Tensor] | None) -> Tensor:
        trunk, state = self.trunk, cast(Any, x)
        if trunk.residual == "hyper":
            state = HyperConnections.begin(x, trunk.streams)
        elif trunk.residual == "attention":
            state = (noted(x, trunk.eps),)
        earlier: list[Tensor] = []
        for layer, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            if block.skip is not None:
                state = block.skip(state, earlier.pop())
            state = block(state, run)
            if trunk.long_skips and layer < paired(trunk.depth):
                earlier.append(state)
            if layers is not None:
                layers.append(self._settled(state))
        return self._settled(state)

    def _settled(self, state: Any) -> Tensor:
        """The state of the residual stream as one vector a token."""
        if self.depth_attention is not None:
            return self.depth_attention.read(state)
        return HyperConnections.end(state) if self.trunk.residual == "hyper" else state


RESIDUAL = re.compile(r"(attention\.out|feed_forward(\.shared|\.experts\.\d+)?\.down)\.weight$")
"""Names of the projections that write into the residual stream."""


def initialise(module: nn.Module, depth: int) -> None:
    """Normal(0, 0.02) weights; projections back into the residual stream scaled by 1 / sqrt(2 depth) (GPT-2). A part with a
    method `start` sets its own."""
    for name, weight in module.named_parameters():
        if name.endswith(".bias"):
            nn.init.zeros_(weight)
        if weight.ndim < 2:
            continue
        nn.init.normal_(weight, std=0.02 / math.sqrt(2 * depth) if RESIDUAL.search(name) else 0.02)
    for part in module.modules():
        if hasattr(part, "start"):
            cast(Any, part).start()
