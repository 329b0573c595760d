"""The network: token embeddings and patchers in, one transformer, a vocabulary head and patchers out.

tokens  --embed-->  x  <--patcher.encode-- noised latents and their times, into their slots
                    |  transformer, under the attention rule
logits <--head--    h  --patcher.decode--> predictions, from the slots

`Network.forward` makes of a batch its losses; noise and the loss of media are in `denoising.py`, the text loss in `losses.py`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from transfusion.codec.custom_patcher import CustomModules
from transfusion.codec.patcher import Patcher, TimeEmbedding
from transfusion.codec.patchers import LinearPatcherConfig, PatcherConfig, UNetPatcherConfig, build, choose
from transfusion.data.batch import Batch
from transfusion.data.tokenize import Coordinates
from transfusion.diffusion.process import Diffusion
from transfusion.modality import Modality
from transfusion.model.auxiliary import AuxiliaryLossConfig, Decoders, ForwardPass, RepresentationHead, auxiliary_losses
from transfusion.model.denoising import NoisedGroup, add_noise, denoising_loss
from transfusion.model.losses import Losses, Mean, Term, text_and_codes, text_loss, z_loss
from transfusion.nn.adaln import TimeCondition
from transfusion.nn.attention import AttentionBackend, AttentionMetadata
from transfusion.nn.cache import CacheView, KVCache
from transfusion.nn.config import TransformerConfig
from transfusion.nn.layers import Linear, PriorHead, SplitEmbedding, SplitHead, hidden_matrices
from transfusion.nn.positions import AxialPositions
from transfusion.nn.routing import UNROUTED, ModalityRouting
from transfusion.nn.transformer import Transformer, init_weights

MAX_CONTEXT = 2**24
"""Tokens: a limit before memory is taken."""


@dataclass(frozen=True)
class ModelConfig:
    """Configuration of a network, apart from its vocabulary.

    Args:
        modalities: the media that it reads and writes; none: a language model.
        transformer: sizes and options of the transformer.
        patcher: latents <-> slots.
        patchers: the same for each modality, in order; modalities beyond these take `patcher`.
        diffusion: noise schedule, prediction, loss and training times.
        coordinates: rotary coordinates of tokens and slots.
        axial: add a learned embedding of the position inside the item to each slot (`nn/positions.py`): to those of all
            modalities, or said for each.
        media_weight: lambda, the weight of the media loss beside the text loss.
        tie_embeddings: one matrix for token embeddings and head.
        attention_backend: how attention over whole rows is computed; "auto" picks the fastest for the machine. With a
            cache it is sdpa, or dense if that is set or scores have a soft cap.
        opening_prior: nats by which the tokens that open an item (its sizes together, and BEGIN) are less likely than one other
            token before training, so that a vocabulary of many sizes does not outweigh the text (see
            `Vocabulary.opening_prior`). 0: all tokens alike.
        context_length: largest number of tokens and slots in a sequence.
        z_loss: weight of the squared logarithm of the softmax's denominator, a mean over targets (`model/losses.py`). 0: off.
        auxiliary: auxiliary losses; off by default.
        kind: what media are. "transfusion": latents that are denoised as a whole. "chameleon": ids of a codebook that are
            predicted one by one, as text is (Chameleon, arXiv 2405.09818); then `patcher`, `diffusion` and `media_weight` do
            nothing, and the modalities have `codes`.

    Raises:
        ValueError: a number out of its range; heads too small for a rotary frequency on each axis; modality-specific weights
            with a discrete modality.
    """

    modalities: tuple[Modality, ...] = field(default_factory=lambda: (Modality(),))
    transformer: TransformerConfig = TransformerConfig()
    patcher: PatcherConfig = LinearPatcherConfig()
    patchers: tuple[PatcherConfig, ...] = ()
    diffusion: Diffusion = Diffusion()
    coordinates: Coordinates = Coordinates()
    axial: bool | tuple[bool, ...] = False
    media_weight: float = 5.0
    tie_embeddings: bool = False
    attention_backend: AttentionBackend = "auto"
    opening_prior: float = 0.0
    context_length: int = 1024
    z_loss: float = 0.0
    auxiliary: AuxiliaryLossConfig = AuxiliaryLossConfig()
    kind: Literal["transfusion", "chameleon"] = "transfusion"

    def __post_init__(self) -> None:
        if not 0 <= self.media_weight < math.inf:
            raise ValueError(f"media_weight must be a finite number, 0 or more, not {self.media_weight}")
        if self.kind not in ("transfusion", "chameleon"):
            raise ValueError(f"kind must be transfusion or chameleon, not {self.kind!r}")
        if not 0 <= self.z_loss < math.inf:
            raise ValueError(f"z_loss must be a finite number, 0 or more, not {self.z_loss}")
        if self.transformer.modality_weights != "none" and any(modality.codes for modality in self.modalities):
            raise ValueError('codes of a discrete modality use the weights of text: set transformer.modality_weights to "none"')
        if not 0 <= self.opening_prior < math.inf:
            raise ValueError(f"opening_prior is a number of nats, 0 or more, not {self.opening_prior}")
        if not 1 <= self.context_length <= MAX_CONTEXT:
            raise ValueError(f"context_length must be at least 1 token and at most {MAX_CONTEXT:,}, not {self.context_length}")
        if isinstance(self.axial, tuple) and len(self.axial) != len(self.modalities):
            raise ValueError(
                f"axial has {len(self.axial)} entries for {len(self.modalities)} modalities: give one each, or one"
            )
        needed = max((len(modality.shape) for modality in self.modalities), default=0) + 1
        if self.coordinates.order == "reset" and self.coordinates.axes < needed:
            raise ValueError(f"coordinates of order 'reset' need {needed} axes here: set coordinates.axes")
        axes, size = self.coordinates.axes, self.transformer.sizes.head_dim
        if size // 2 < axes:
            raise ValueError(
                f"heads of size {size} have {size // 2} rotary frequencies, too few for {axes} axes of coordinates: take heads "
                f"of size {2 * axes} or more (transformer.head_dim, fewer transformer.num_heads, or fewer coordinates.axes)"
            )


class Network(nn.Module):
    """All weights of a model; `transfusion.Transfusion` is a network with its vocabulary and autoencoders.

    Args:
        config: sizes and options.
        vocabulary_size: number of token ids.
        modules: the user's own patchers, by modality (see `CustomPatcherConfig`); recorded in `Network.config.patchers`.
        num_pretrained_ids: the first ids; their rows of embedding and head are separate parameters. 0: none.
        prior: what is added to each id's logit, see `ModelConfig.opening_prior`; None: nothing.

    Raises:
        ValueError: a patcher whose slots differ from its modality's; a modality without time conditioning; modules that are
            missing, or of an unknown modality.
    """

    def __init__(
        self,
        config: ModelConfig,
        vocabulary_size: int,
        modules: CustomModules | None = None,
        *,
        num_pretrained_ids: int = 0,
        prior: Float[Tensor, " id"] | None = None,
    ) -> None:
        super().__init__()
        if config.kind == "chameleon" and (continuous := [m.name for m in config.modalities if not m.codes]):
            raise ValueError(
                f"a model of kind chameleon has discrete media alone, and {continuous[0]!r} has no codes: give an autoencoder "
                "with a codebook, or the modality's `codes`"
            )
        self.first_code = vocabulary_size - sum(modality.codes for modality in config.modalities)
        """The least id of a code; where there are none, the number of ids."""
        modules = modules or {}
        patchers = choose(config.patcher, config.patchers, config.modalities, modules)
        self.config = replace(config, patchers=patchers) if modules else config
        self.lora: Any = None
        """The configuration of the LoRA adapters, if there are any (`model/lora.py`)."""
        transformer, width = config.transformer, config.transformer.width
        ids = num_pretrained_ids, vocabulary_size - num_pretrained_ids
        self.embed = SplitEmbedding(*ids, width) if num_pretrained_ids else nn.Embedding(vocabulary_size, width)
        self.transformer = Transformer(transformer, len(config.modalities))
        if num_pretrained_ids and prior is not None:
            raise ValueError("opening_prior is for models that begin untrained, not for those of a language model: set it to 0")
        plain = Linear(width, vocabulary_size) if prior is None else PriorHead(width, prior)
        self.head = SplitHead(width, *ids) if num_pretrained_ids else plain
        self.time_embedding = TimeEmbedding(256, width) if transformer.adaln else None
        self.axial: nn.ModuleDict | None = None
        each = config.axial if isinstance(config.axial, tuple) else (config.axial,) * len(config.modalities)
        axial = [m for m, has_axial in zip(config.modalities, each, strict=True) if has_axial and m.shape and not m.codes]
        if config.axial is True or axial:
            self.axial = nn.ModuleDict({m.name: AxialPositions(m.extents, width) for m in axial})
        init_weights(self, transformer.depth)
        self.patchers = nn.ModuleDict()
        for patcher, modality in zip(patchers, config.modalities, strict=True):
            if modality.codes:
                continue
            if isinstance(patcher, LinearPatcherConfig) and patcher.time == "none" and not transformer.adaln:
                raise ValueError(
                    f"no time conditioning for {modality.name!r}: patcher.time='none' needs transformer.adaln; or take time "
                    "'width' or 'patch'"
                )
            if isinstance(patcher, UNetPatcherConfig) and config.diffusion.prediction != "x0":
                patcher = replace(patcher, fade=False)
            self.patchers[modality.name] = build(patcher, modality, width, transformer.norm_eps, modules)
        if config.tie_embeddings:
            self.head.weight = self.embed.weight
            if isinstance(self.head, SplitHead) and isinstance(self.embed, SplitEmbedding):
                self.head.new = self.embed.new
        self.representation = RepresentationHead(width) if config.auxiliary.representation > 0 else None

    def patcher_of(self, modality: Modality | int) -> Patcher:
        """The patcher of a modality or of its index."""
        modality = self.config.modalities[modality] if isinstance(modality, int) else modality
        patcher = self.patchers[modality.name]
        assert isinstance(patcher, Patcher)
        return patcher

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.embed.weight.device

    @property
    def num_parameters(self) -> int:
        """Number of parameters."""
        return sum(p.numel() for p in self.parameters())

    def muon_parameters(self) -> list[nn.Parameter]:
        """The transformer's hidden matrices, for Muon; embeddings, head, patchers, norms and biases are for AdamW."""
        weights = [m.weight for m in hidden_matrices(self.transformer)]
        return [w for w in weights if isinstance(w, nn.Parameter)]

    def language_parameters(self) -> list[nn.Parameter]:
        """Parameters that came from a language model: its rows of embedding and head (with BOS, if that was added), and the
        transformer's without those of media and LoRA. Empty if there is no language model.

        While these are frozen, the logits of pretrained ids stay the same on documents of text alone.
        """
        if not isinstance(self.embed, SplitEmbedding):
            return []
        media = {id(p) for p in self.transformer.media_parameters()}
        named = self.transformer.named_parameters()
        transformer = [p for name, p in named if id(p) not in media and ".lora_" not in name]
        rows = [self.embed.weight] if self.config.tie_embeddings else [self.embed.weight, self.head.weight]
        return [cast(nn.Parameter, weight) for weight in (*rows, *transformer)]

    def hidden(
        self,
        tokens: Int[Tensor, "row length"],
        positions: Float[Tensor, "row length axes"],
        media: Sequence[NoisedGroup],
        *,
        metadata: AttentionMetadata | None = None,
        view: CacheView | None = None,
        layers: list[Tensor] | None = None,
    ) -> tuple[Float[Tensor, "row_length width"], list[Any]]:
        """The transformer's output, flat over (row, length), and the skip of each media group for its patcher's `decode`.

        Args:
            metadata: documents and spans of whole rows; or
            view: of a cache, for sequences that continue; their new tokens are flat, in one row.
            layers: a list to which each layer's output [row, length, width] is appended.
        """
        x = self.embed(tokens).flatten(0, 1)
        skips: list[Any] = []
        for group in media:
            vectors, skip = self.patcher_of(group.modality).encode(group.latents, group.times)
            if group.masked is not None and self.representation is not None:
                vectors = torch.where(group.masked.unsqueeze(-1), self.representation.mask_vector.to(vectors), vectors)
            name = self.config.modalities[group.modality].name
            if self.axial is not None and name in self.axial:
                vectors = vectors + self.axial[name](group.grid)
            x = x.index_copy(0, group.slots.flatten(), vectors.flatten(0, 1).to(x.dtype))
            skips.append(skip)
        attended = metadata if view is None else view
        assert attended is not None
        routing = UNROUTED
        if self.config.transformer.modality_weights != "none":
            routing = ModalityRouting.of(tokens.shape, [(1 + g.modality, g.slots) for g in media], tokens.device)
        h = self.transformer(
            x.unflatten(0, tokens.shape),
            positions,
            attended,
            backend=self.config.attention_backend,
            routing=routing,
            condition=self._condition(tokens, media),
            layers=layers,
        )
        return h.flatten(0, 1), skips

    def _condition(self, tokens: Tensor, media: Sequence[NoisedGroup]) -> TimeCondition | None:
        """The embedded times of all items and the item of each slot, for adaLN."""
        if self.time_embedding is None or not media:
            return None
        t = torch.cat([group.times for group in media])
        owner = torch.full((tokens.numel(),), len(t), device=tokens.device)
        items = torch.arange(len(t), device=tokens.device).split([len(group.slots) for group in media])
        for group, indices in zip(media, items, strict=True):
            owner[group.slots] = indices[:, None].expand_as(group.slots)
        return TimeCondition(self.time_embedding(t), owner)

    def predict(self, h: Float[Tensor, "row_length width"], media: Sequence[NoisedGroup], skips: Sequence[Any]) -> list[Tensor]:
        """Each media group's prediction, of kind `diffusion.prediction` and shaped like its latents."""
        return [
            self.patcher_of(g.modality).decode(h[g.slots.flatten()].unflatten(0, g.slots.shape), skip, g.grid)
            for g, skip in zip(media, skips, strict=True)
        ]

    def add_noise(self, batch: Batch) -> list[NoisedGroup]:
        """The batch's media, noised at times drawn by their keys."""
        return [add_noise(self.config.diffusion, group) for group in batch.media]

    def forward(
        self,
        batch: Batch,
        *,
        teacher: "Network | None" = None,
        decoders: Decoders | None = None,
        teacher_is_optional: bool = False,
        num_ids: int | None = None,
    ) -> Losses:
        """The losses of a batch: text (`losses.py`), media (`denoising.py`), and the auxiliary ones that are on.

        Args:
            teacher: the network with EMA weights, for auxiliary losses that compare with it. It runs without gradient.
            decoders: by modality, for the reconstruction loss.
            teacher_is_optional: without a teacher, leave out the losses that need one, in training too.
            num_ids: the targets are among the first so many ids, and no other is counted on (None: all ids).

        Raises:
            ValueError: a loss that needs a teacher is on, and training has none.
        """
        auxiliary, diffusion = self.config.auxiliary, self.config.diffusion
        if auxiliary.needs_ema_teacher and teacher is None and self.training and not teacher_is_optional:
            raise ValueError(
                "the consistency and representation losses need a teacher, the model under averaged weights: give one "
                "(teacher=model.create_ema() in a loop of your own), or set their weights in model.auxiliary to 0"
            )
        media = self.add_noise(batch)
        metadata = AttentionMetadata.of_rows(batch.documents, batch.spans, batch.private)
        h, skips = self.hidden(batch.tokens, batch.positions, media, metadata=metadata)
        logits = self.head(h[batch.loss_index])[:, :num_ids]
        targets, codes = batch.targets.flatten()[batch.loss_index], None
        if any(modality.codes for modality in self.config.modalities):
            text, codes = text_and_codes(logits, targets, batch.target_weights, self.first_code)
        else:
            text = text_loss(logits, targets, batch.target_weights)
        predictions = self.predict(h, media, skips)
        zero = Mean(text.sum.new_zeros(()), text.sum.new_zeros(()))
        by_modality = [zero for _ in self.config.modalities]
        for group, noised, prediction in zip(batch.media, media, predictions, strict=True):
            by_modality[group.modality] += denoising_loss(diffusion, group, noised, prediction)
        run = ForwardPass(batch, metadata, media, predictions)
        by_index = [(decoders or {}).get(modality.name) for modality in self.config.modalities]
        terms = auxiliary_losses(auxiliary, diffusion, run, self, self.representation, teacher, by_index)
        if self.config.z_loss:
            terms = (*terms, Term("z", self.config.z_loss, z_loss(logits), per="text"))
        return Losses(text, sum(by_modality, zero), tuple(by_modality), terms, codes)

    def cache(self, slots: int, capacity: int, dtype: torch.dtype) -> KVCache:
        """An empty key-value cache for this network."""
        axes = self.config.coordinates.axes
        return KVCache(self.config.transformer, slots, capacity, axes=axes, device=self.device, dtype=dtype)
