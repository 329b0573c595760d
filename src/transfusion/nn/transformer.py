"""The transformer: a Llama-like stack (pre-norm, SwiGLU, RoPE) over vectors of any origin.

vectors [row, length, width], their positions, and what attention needs to know of the tokens (`AttentionMetadata`, or a view of
a cache) go in; vectors come out. `BlockWithOptions` replaces `Block` in all
layers where an option outside attention is on.
"""

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from transfusion.nn.adaln import AdaLN, AdaLNParameters, TimeCondition, modulated_norm
from transfusion.nn.attention import AttentionBackend, AttentionMetadata
from transfusion.nn.cache import CacheView
from transfusion.nn.config import TransformerConfig
from transfusion.nn.layers import MLP, RMSNorm
from transfusion.nn.moe import MixtureOfExperts
from transfusion.nn.pointwise import recomputable
from transfusion.nn.positions import angles
from transfusion.nn.residual import LongSkip, residual
from transfusion.nn.routing import UNROUTED, ModalityRouting
from transfusion.nn.self_attention import AttentionWeights, ForwardContext, SelfAttention, attention_fns


class BlockWeights(nn.Module):
    """The weights of a layer that one modality's tokens use: MLP and its norm, and unless `attention` is None that and its
    norm."""

    def __init__(self, config: TransformerConfig, attention: AttentionWeights | None) -> None:
        super().__init__()
        if attention is not None:
            self.attention_norm = RMSNorm(config.width, config.norm_eps)
        self.mlp_norm = RMSNorm(config.width, config.norm_eps)
        if attention is not None:
            self.attention = attention
        hidden = config.sizes.mlp_width
        self.mlp = MixtureOfExperts(config.width, hidden, config.moe) if config.moe.num_experts else MLP(config.width, hidden)


class Block(BlockWeights):
    """A layer: x + attention(norm(x)), then x + mlp(norm(x))."""

    attention: SelfAttention

    def __init__(self, config: TransformerConfig, layer: int) -> None:
        super().__init__(config, SelfAttention(config, layer))

    def forward(self, x: Any, context: ForwardContext) -> Any:
        """[row, length, width] -> [row, length, width]"""
        x = x + self.attention(self.attention_norm(x), context)
        return x + self.mlp(self.mlp_norm(x))


class BlockWithOptions(Block):
    """A layer with modality-specific weights, experts, another residual stream or order of norms, long skips, adaLN or dropout.

    Its own weights are those of text; `media[m]` holds those of modality m.
    """

    def __init__(self, config: TransformerConfig, num_modalities: int, layer: int) -> None:
        super().__init__(config, layer)
        self.modality_weights, self.norm_is_last = config.modality_weights, config.norm_order == "post"
        self.media = nn.ModuleList(
            BlockWeights(config, AttentionWeights(config) if config.modality_weights == "all" else None)
            for _ in range(num_modalities if config.modality_weights != "none" else 0)
        )
        self.adaln = AdaLN(config.width) if config.adaln else None
        self.dropout = nn.Dropout(config.dropout)
        skips = (config.depth - 1) // 2 if config.long_skips else 0  # one or two layers in the middle have none
        self.saves_skip = layer < skips
        self.skip = LongSkip(config.width) if layer >= config.depth - skips else None
        self.residuals = nn.ModuleList(residual(config, index) for index in (2 * layer, 2 * layer + 1))

    def forward(self, x: Any, context: ForwardContext, skip: Any = None) -> Any:
        """The state of the residual stream -> the same; for the plain stream [row, length, width]. `skip`: the state behind the
        layer of the first half that this one is joined to. It changes nothing of `context`, so it may be recomputed."""
        for_attention, for_mlp = None, None
        if self.adaln is not None and context.condition is not None:
            for_attention, for_mlp = self.adaln(context.condition, context.cos)
        if self.skip is not None:
            x = self.skip(x, skip)
        x = self.residuals[0](x, lambda h: self._attention(h, context, for_attention))
        return self.residuals[1](x, lambda h: self._mlp(h, context, for_mlp))

    def _attention(self, x: Tensor, context: ForwardContext, modulation: AdaLNParameters | None) -> Tensor:
        """attention(norm(x)), or norm(attention(x)), each modality's tokens by its own weights."""
        routing = context.routing if self.modality_weights == "all" else UNROUTED
        weights = self._weights(routing)
        norms = [w.attention_norm for w in weights]
        inputs = routing.split(x) if self.norm_is_last else _normalize(norms, x, modulation, routing)
        projected = [w.attention.project(h) for w, h in zip(weights, inputs, strict=True)]
        y = self.attention.attend(context, *(routing.join(pieces, x.shape) for pieces in zip(*projected, strict=True)))
        pieces = [w.attention.out(piece) for w, piece in zip(weights, routing.split(y), strict=True)]
        return self._finish(norms, routing.join(pieces, x.shape), modulation, routing)

    def _mlp(self, x: Tensor, context: ForwardContext, modulation: AdaLNParameters | None) -> Tensor:
        """mlp(norm(x)), or norm(mlp(x)), each modality's tokens by its own weights."""
        routing = context.routing
        weights = self._weights(routing)
        norms = [w.mlp_norm for w in weights]
        inputs = routing.split(x) if self.norm_is_last else _normalize(norms, x, modulation, routing)
        if context.is_token is None:
            pieces = [w.mlp(h) for w, h in zip(weights, inputs, strict=True)]
        else:
            is_token = routing.split(context.is_token)
            pieces = [w.mlp(h, real) for w, h, real in zip(weights, inputs, is_token, strict=True)]
        return self._finish(norms, routing.join(pieces, x.shape), modulation, routing)

    def _finish(
        self, norms: Sequence[RMSNorm], y: Tensor, modulation: AdaLNParameters | None, routing: ModalityRouting
    ) -> Tensor:
        """A sublayer's output as it is added to the stream: normalised, if its norm is the last, gated and dropped out."""
        if self.norm_is_last:
            y = routing.join(_normalize(norms, y, modulation, routing), y.shape)
        return self.dropout(y if modulation is None else y * modulation.gate)

    def _weights(self, routing: ModalityRouting) -> list[BlockWeights]:
        """The weights of each modality that occurs."""
        return [self if index == 0 else cast(BlockWeights, self.media[index - 1]) for index in routing.present]


def _normalize(
    norms: Sequence[RMSNorm], x: Tensor, modulation: AdaLNParameters | None, routing: ModalityRouting
) -> list[Tensor]:
    """The tokens of each modality by its norm, shifted and scaled if there is a modulation."""
    pieces = routing.split(x)
    if modulation is None:
        return [norm(piece) for norm, piece in zip(norms, pieces, strict=True)]
    scales, shifts = routing.split(modulation.scale), routing.split(modulation.shift)
    return [recomputable(modulated_norm, *arguments) for arguments in zip(pieces, norms, scales, shifts, strict=True)]


class Transformer(nn.Module):
    """The blocks and the final norm.

    Args:
        num_modalities: modalities beside text, for `config.modality_weights`.
    """

    def __init__(self, config: TransformerConfig, num_modalities: int = 0) -> None:
        super().__init__()
        self.config = config
        options = (config.moe.num_experts, config.long_skips, config.adaln, config.dropout, config.norm_order == "post")
        plain = config.modality_weights == "none" and config.residual == "plain" and not any(options)
        self.blocks = nn.ModuleList(
            Block(config, layer) if plain else BlockWithOptions(config, num_modalities, layer) for layer in range(config.depth)
        )
        self.norm = RMSNorm(config.width, config.norm_eps)
        self.media_norms = nn.ModuleList(
            RMSNorm(config.width, config.norm_eps) for _ in range(num_modalities if config.modality_weights == "all" else 0)
        )
        self.residual = residual(config)

    def forward(
        self,
        x: Float[Tensor, "row length width"],
        positions: Float[Tensor, "row length axes"],
        tokens: AttentionMetadata | CacheView,
        *,
        backend: AttentionBackend = "auto",
        routing: ModalityRouting = UNROUTED,
        condition: TimeCondition | None = None,
        layers: list[Tensor] | None = None,
    ) -> Float[Tensor, "row length width"]:
        """Run all layers.

        Args:
            tokens: documents, spans and privacy of whole rows; or a view of a cache, for sequences that go on: their new
                tokens are flat, in one row.
            backend: attention backend. With a cache, flex and document fall back to auto.
            layers: receives the output of each layer.
        """
        config = self.config
        cos, sin = angles(positions, config.sizes.head_dim, config.rope_theta, config.rope_scaling)
        dtype = torch.promote_types(x.dtype, torch.float32)
        # the input alone does not tell: with frozen embeddings, as under LoRA, text comes without a gradient
        backward = torch.is_grad_enabled() and (x.requires_grad or any(p.requires_grad for p in self.parameters()))
        view = tokens if isinstance(tokens, CacheView) else None
        is_token = tokens.documents >= 0 if config.moe.num_experts and not isinstance(tokens, CacheView) else None
        cos, sin = cos.unsqueeze(2).to(dtype), sin.unsqueeze(2).to(dtype)
        attentions = attention_fns(config, positions, tokens, backend, backward=backward)
        context = ForwardContext(cos, sin, attentions, view, routing, condition, is_token)
        state = self.residual.begin(x)
        skips: list[Any] = []  # states behind the first half's layers, for long skips
        for block in self.blocks:  # which may be wrapped: their attributes are asked for, not their class
            joined = (skips.pop(),) if getattr(block, "skip", None) is not None else ()
            state = block(state, context, *joined)
            if getattr(block, "saves_skip", False):
                skips.append(state)
            if layers is not None:
                layers.append(self.residual.end(state))
        x = self.residual.end(state)
        if not self.media_norms:
            return self.norm(x)
        norms = [self.norm if index == 0 else self.media_norms[index - 1] for index in routing.present]
        return routing.join([norm(piece) for norm, piece in zip(norms, routing.split(x), strict=True)], x.shape)

    def text_counterparts(self) -> dict[str, tuple[int, str]]:
        """Name of each modality-specific weight -> (index of its modality, name of the text's weight in the same place)."""
        lists: list[tuple[str, str, Any]] = [("media_norms.", "norm.", self.media_norms)]
        lists += [(f"blocks.{i}.media.", f"blocks.{i}.", getattr(block, "media", ())) for i, block in enumerate(self.blocks)]
        return {
            f"{own}{m}.{name}": (m, text + name)
            for own, text, modules in lists
            for m, module in enumerate(modules)
            for name in module.state_dict()
        }

    def media_parameters(self) -> list[nn.Parameter]:
        """The weights that only media use: modality-specific ones and adaLN."""
        modules: list[nn.Module] = [module for module in self.modules() if isinstance(module, AdaLN)]
        modules += [self.media_norms, *(block.media for block in self.blocks if hasattr(block, "media"))]  # wrapped ones too
        return [p for module in modules for p in module.parameters()]


def init_weights(module: nn.Module, depth: int) -> None:
    """Matrices from Normal(0, 0.02), biases 0. Projections into the residual stream (`Linear.residual`) have their standard
    deviation scaled by 1 / sqrt(2 depth) (GPT-2). A module's own `init_weights` overrides this."""
    for child in module.modules():
        std = 0.02 / math.sqrt(2 * depth) if getattr(child, "residual", None) is True else 0.02
        for name, weight in child.named_parameters(recurse=False):
            if name == "bias":
                nn.init.zeros_(weight)
            if weight.ndim >= 2:
                nn.init.normal_(weight, std=std)
    for child in module.modules():
        if hasattr(child, "init_weights"):
            cast(Any, child).init_weights()
