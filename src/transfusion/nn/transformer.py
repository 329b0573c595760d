"""The trunk: a Llama-type transformer (RMSNorm before each part, SwiGLU, rotary positions) over vectors of any origin.

Weights may come in sets, one for each kind of token (`TransformerConfig.modality_weights`); what is here says which set a token
runs through, and `nn/routing.py` brings it there.
Everything else that a `TransformerConfig` can ask for has a file of its own beside this one.
"""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from transfusion.nn.adaln import AdaLN, AdaLNParameters, TimeCondition
from transfusion.nn.attention import AttentionFn
from transfusion.nn.cache import Window
from transfusion.nn.config import TransformerConfig
from transfusion.nn.layers import MLP, Linear, RMSNorm
from transfusion.nn.moe import MixtureOfExperts
from transfusion.nn.pointwise import recompute_linear, rms_norm, rotate
from transfusion.nn.residual import DepthAttention, HyperConnections, LongSkip, Sublayer, noted, paired
from transfusion.nn.routing import ONE, ModalityRouting
from transfusion.nn.values import ValueResidual, laser


@dataclass(frozen=True, eq=False)
class ForwardContext:
    """What all layers of one pass are told: angles [row, length, 1, dim], the form of attention, the cache's view if there is
    one, the kinds of tokens, the times of media, and which tokens are no padding; `first` keeps the first layer's values."""

    cos: Tensor
    sin: Tensor
    attend: AttentionFn
    window: Window | None
    routing: ModalityRouting
    condition: TimeCondition | None = None
    real: Bool[Tensor, "row length"] | None = None
    first: list[Tensor] = field(default_factory=list)


class Attention(nn.Module):
    """Multi-head attention with rotary positions; queries, keys and values in one projection."""

    def __init__(self, transformer: TransformerConfig) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.dim = transformer.num_heads, transformer.sizes.num_kv_heads, transformer.sizes.head_dim
        parts = (self.heads * self.dim, self.kv_heads * self.dim, self.kv_heads * self.dim)
        self.qkv = Linear(transformer.width, sum(parts), transformer.qkv_bias, fused=parts, head=self.dim)
        self.out = Linear(self.heads * self.dim, transformer.width)
        self.q_norm = RMSNorm(self.dim, transformer.norm_eps) if transformer.qk_norm else None
        self.k_norm = RMSNorm(self.dim, transformer.norm_eps) if transformer.qk_norm else None
        self.gate = nn.Linear(transformer.width, self.heads) if transformer.attention.gated else None

    def project(self, x: Tensor, norm: Sublayer) -> tuple[Tensor, ...]:
        """[..., width] -> queries and keys in one [..., heads + kv_heads, dim], before rotation; values [..., kv_heads, dim];
        and gates [..., heads, 1] if there are any. `norm` is applied to x first."""
        heads, kv_heads = self.heads, self.kv_heads
        if self.gate is not None:
            h = norm(x)
            both, gates = self.qkv(h), (self.gate(h).sigmoid().unsqueeze(-1),)
        else:
            both, gates = recompute_linear(norm, self.qkv, x), ()
        qk, v = both.unflatten(-1, (-1, self.dim)).split([heads + kv_heads, kv_heads], -2)
        if self.q_norm is not None and self.k_norm is not None:
            weight = torch.cat([self.q_norm.weight.expand(heads, -1), self.k_norm.weight.expand(kv_heads, -1)])
            qk = rms_norm(qk, weight, self.q_norm.eps)
        return qk, v, *gates

    def attend_to(self, run: ForwardContext, layer: int, qk: Tensor, v: Tensor, gate: Tensor | None = None) -> Tensor:
        """What `project` gave, for all tokens [row, length, ...] -> [row, length, heads * dim], before `out`."""
        q, k = rotate(qk, run.cos, run.sin).split([self.heads, self.kv_heads], 2)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        if run.window is not None:
            k, v = run.window.update(layer, k, v)
        found = run.attend(q, k, v).transpose(1, 2)
        return (found if gate is None else found * gate).flatten(2)


class Layer(nn.Module):
    """One kind's weights of a layer: feed-forward and its norm, and if `whole` attention and its norm."""

    def __init__(self, transformer: TransformerConfig, *, whole: bool = True) -> None:
        super().__init__()
        if whole:
            self.attention_norm = RMSNorm(transformer.width, transformer.norm_eps)
        self.mlp_norm = RMSNorm(transformer.width, transformer.norm_eps)
        if whole:
            self.attention = Attention(transformer)
        self.mlp = (
            MixtureOfExperts(transformer.width, transformer.sizes.mlp_width, transformer.moe)
            if transformer.moe.num_experts
            else MLP(transformer.width, transformer.sizes.mlp_width)
        )

    def mlp_of(self, x: Tensor, norm: Sublayer, real: Tensor | None) -> Tensor:
        """feed_forward(norm(x)); `real` where a mixture of experts is to be told what is padding."""
        return self.mlp(x, norm) if real is None else self.mlp(x, norm, real)


class Block(Layer):
    """x + attention(norm(x)), then x + feed_forward(norm(x)), or another residual stream around the two.

    Its own weights are set 0; `media[m]`, where there are sets, is set 1 + m.
    """

    def __init__(self, transformer: TransformerConfig, num_modalities: int, layer: int) -> None:
        super().__init__(transformer)
        self.modality_weights, self.layer = transformer.modality_weights, layer
        unusual = (
            transformer.moe.num_experts or transformer.attention.value_residual or transformer.adaln or transformer.dropout
        )
        self.plain = transformer.modality_weights == "none" and transformer.residual == "plain" and not unusual
        if transformer.modality_weights != "none":
            self.media = nn.ModuleList(
                Layer(transformer, whole=transformer.modality_weights == "all") for _ in range(num_modalities)
            )
        self.adaln_modulation = AdaLN(transformer.width) if transformer.adaln else None
        self.value_residual = ValueResidual() if transformer.attention.value_residual and layer else None
        self.remembers = transformer.attention.value_residual and not layer
        self.dropout = nn.Dropout(transformer.dropout) if transformer.dropout else None
        self.skip = (
            LongSkip(transformer.width)
            if transformer.long_skips and layer >= transformer.depth - paired(transformer.depth)
            else None
        )
        self.streams: nn.ModuleList | None = None
        if transformer.residual == "hyper":
            parts = (2 * layer, 2 * layer + 1)
            self.streams = nn.ModuleList(
                HyperConnections(transformer.width, transformer.num_streams, i, transformer.norm_eps) for i in parts
            )
        elif transformer.residual == "attention":
            self.streams = nn.ModuleList(
                DepthAttention(transformer.width, transformer.norm_eps, first=i + layer == 0) for i in range(2)
            )

    def forward(self, x: Any, run: ForwardContext) -> Any:
        """[row, length, width] -> [row, length, width]; or the state of another residual stream to the same."""
        if self.plain:  # what follows, said directly: in decoding, the questions below would take 1 or 2 % of the time
            attention = self.attention
            x = x + attention.out(attention.attend_to(run, self.layer, *attention.project(x, self.attention_norm)))
            return x + self.mlp(x, self.mlp_norm)
        attend_to, feed = None, None
        if self.adaln_modulation is not None and run.condition is not None:
            attend_to, feed = self.adaln_modulation(run.condition, run.cos)
        if self.streams is None:
            x = x + self.attend_to(x, run, attend_to)
            return x + self.feed(x, run, feed)
        x = self.streams[0](x, lambda h: self.attend_to(h, run, attend_to))
        return self.streams[1](x, lambda h: self.feed(h, run, feed))

    def attend_to(self, x: Tensor, run: ForwardContext, change: AdaLNParameters | None) -> Tensor:
        """Attention's part, [row, length, width] -> [row, length, width]."""
        routing = run.routing if self.modality_weights == "all" else ONE
        sets = self.sets(routing)
        norms = changed([s.attention_norm for s in sets], change, routing)
        projected = [s.attention.project(p, norm) for s, norm, p in zip(sets, norms, routing.split(x), strict=True)]
        qk, v, *gates = (routing.join(pieces, x.shape) for pieces in zip(*projected, strict=True))
        if self.value_residual is not None:
            v = self.value_residual(v, run.first[0])
        elif self.remembers:
            run.first.append(v)
        seen = self.attention.attend_to(run, self.layer, qk, v, *gates)
        out = routing.join([s.attention.out(piece) for s, piece in zip(sets, routing.split(seen), strict=True)], x.shape)
        return self.given(out, change)

    def feed(self, x: Tensor, run: ForwardContext, change: AdaLNParameters | None) -> Tensor:
        """The feed-forward's part, [row, length, width] -> [row, length, width]."""
        routing = run.routing
        sets = self.sets(routing)
        norms = changed([s.mlp_norm for s in sets], change, routing)
        real = routing.split(run.real) if run.real is not None else [None] * len(sets)
        pieces = zip(sets, norms, routing.split(x), real, strict=True)
        out = routing.join([s.mlp_of(piece, norm, here) for s, norm, piece, here in pieces], x.shape)
        return self.given(out, change)

    def given(self, out: Tensor, change: AdaLNParameters | None) -> Tensor:
        """What a part adds to the stream: its output, gated and thinned where that is asked for."""
        if change is not None:
            out = out * change.gate
        return out if self.dropout is None else self.dropout(out)

    def sets(self, routing: ModalityRouting) -> list[Layer]:
        """The weights of each kind that occurs."""
        return [self if kind == 0 else cast(Layer, self.media[kind - 1]) for kind in routing.present]


def changed(norms: Sequence[RMSNorm], change: AdaLNParameters | None, routing: ModalityRouting) -> Sequence[Sublayer]:
    """Each kind's norm, and behind it the scale and shift of its tokens."""
    if change is None:
        return norms
    pieces = zip(norms, routing.split(change.scale), routing.split(change.shift), strict=True)
    return [partial(_modulated, norm=norm, scale=scale, shift=shift) for norm, scale, shift in pieces]


def _modulated(x: Tensor, *, norm: RMSNorm, scale: Tensor, shift: Tensor) -> Tensor:
    return norm(x) * (1 + scale) + shift


class Transformer(nn.Module):
    """The blocks and the last norm.

    Args:
        num_modalities: sets of weights beside that of text, where `transformer.modality_weights` asks for sets.
    """

    def __init__(self, transformer: TransformerConfig, num_modalities: int = 0) -> None:
        super().__init__()
        self.transformer = transformer
        self.blocks = nn.ModuleList(Block(transformer, num_modalities, layer) for layer in range(transformer.depth))
        self.norm = RMSNorm(transformer.width, transformer.norm_eps)
        if transformer.modality_weights == "all":
            self.media_norms = nn.ModuleList(RMSNorm(transformer.width, transformer.norm_eps) for _ in range(num_modalities))
        self.depth_attention = (
            DepthAttention(transformer.width, transformer.norm_eps) if transformer.residual == "attention" else None
        )

    def forward(
        self,
        x: Float[Tensor, "row length width"],
        angles: tuple[Tensor, Tensor],
        attend: AttentionFn,
        window: Window | None = None,
        *,
        routing: ModalityRouting = ONE,
        condition: TimeCondition | None = None,
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
        transformer = self.transformer
        cos, sin = (a.unsqueeze(2).to(torch.promote_types(x.dtype, torch.float32)) for a in angles)
        if transformer.attention.laser:
            attend = laser(attend, transformer.attention.laser)
        run = ForwardContext(cos, sin, attend, window, routing, condition, real)
        x = self._run(x, run, layers)
        if transformer.modality_weights != "all":
            return self.norm(x)
        norms = [self.norm if kind == 0 else self.media_norms[kind - 1] for kind in routing.present]
        return routing.join([norm(piece) for norm, piece in zip(norms, routing.split(x), strict=True)], x.shape)

    def text_counterparts(self) -> dict[str, tuple[int, str]]:
        """Name of each modality-specific weight -> (index of its modality, name of the text's weight in the same place)."""
        lists: list[tuple[str, str, Any]] = [("media_norms.", "norm.", getattr(self, "media_norms", ()))]
        lists += [(f"blocks.{i}.media.", f"blocks.{i}.", getattr(block, "media", ())) for i, block in enumerate(self.blocks)]
        return {
            f"{own}{m}.{name}": (m, text + name)
            for own, text, modules in lists
            for m, module in enumerate(modules)
            for name in module.state_dict()
        }

    def media_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters that only media slots pass through: modality-specific weights, and the modulation of adaLN."""
        for module in (*self.blocks, self):
            for name in ("media", "media_norms", "adaln_modulation"):
                if isinstance(child := getattr(module, name, None), nn.Module):
                    yield from child.parameters()

    def _run(self, x: Tensor, run: ForwardContext, layers: list[Tensor] | None) -> Tensor:
        transformer, state = self.transformer, cast(Any, x)
        if transformer.residual == "hyper":
            state = HyperConnections.begin(x, transformer.num_streams)
        elif transformer.residual == "attention":
            state = (noted(x, transformer.norm_eps),)
        earlier: list[Tensor] = []
        for layer, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            if block.skip is not None:
                state = block.skip(state, earlier.pop())
            state = block(state, run)
            if transformer.long_skips and layer < paired(transformer.depth):
                earlier.append(state)
            if layers is not None:
                layers.append(self._settled(state))
        return self._settled(state)

    def _settled(self, state: Any) -> Tensor:
        """The state of the residual stream as one vector a token."""
        if self.depth_attention is not None:
            return self.depth_attention.read(state)
        return HyperConnections.end(state) if self.transformer.residual == "hyper" else state


RESIDUAL = re.compile(r"(attention\.out|mlp(\.shared|\.experts\.\d+)?\.down)\.weight$")
"""Names of the projections that write into the residual stream."""


def init_weights(module: nn.Module, depth: int) -> None:
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
