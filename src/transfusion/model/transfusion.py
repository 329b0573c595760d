"""The network: token embeddings and patchers in, one trunk, a vocabulary head and patchers out.

tokens  --embed-->  x  <--patcher-- noisy latents and their times (into their slots)
                    |  trunk, under the attention rule
logits <--head--    h  --patcher--> predictions at the slots
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from transfusion import chance
from transfusion.codec.modules import Modules
from transfusion.codec.patcher import LinearPatcher, Patcher, build, choose
from transfusion.codec.patching import Patching, TimeEmbedding
from transfusion.data.batch import Batch
from transfusion.data.layout import Coordinates
from transfusion.diffusion import times
from transfusion.diffusion.process import Diffusion
from transfusion.modality import Modality
from transfusion.model.auxiliary import Auxiliary, Decoders, Passed, Representation, terms
from transfusion.model.loss import Losses, Mean, at_least_single, by_item
from transfusion.model.noised import Noised
from transfusion.nn.attention import Form, Place, attention
from transfusion.nn.axial import AxialPositions
from transfusion.nn.cache import Cache, Window
from transfusion.nn.kinds import ONE, Kinds
from transfusion.nn.layers import Linear
from transfusion.nn.matrices import matrices
from transfusion.nn.modulation import Condition
from transfusion.nn.positions import angles
from transfusion.nn.rows import Rows, RowsHead
from transfusion.nn.scores import Scores
from transfusion.nn.transformer import Transformer, initialise
from transfusion.nn.trunk import Trunk


@dataclass(frozen=True)
class Model:
    """A model's whole configuration, but for its vocabulary.

    Args:
        modalities: the continuous media it reads and writes; none: a language model.
        trunk: the transformer.
        patcher: how latents become slots.
        patchers: the same for the single modalities, in their order; those left over take `patcher`.
        diffusion: how media are noised and what is predicted.
        coordinates: where tokens and slots stand.
        axial: positions within an item are also added to its slots, by small networks of their coordinates (`nn/axial.py`).
        media_weight: lambda, the weight of the media loss beside the text loss.
        tied: one matrix for embedding tokens and for predicting them.
        attention: form of attention over whole rows; "auto" takes what the machine does best. From a cache it is sdpa, or dense
            where that is asked for.
        context: tokens at most in a sequence.
        auxiliary: losses beside the two; off by default.

    Raises:
        ValueError: numbers that make no sense; heads so small that a rotary axis would have no frequency.
    """

    modalities: tuple[Modality, ...] = field(default_factory=lambda: (Modality(),))
    trunk: Trunk = Trunk()
    patcher: Patcher = LinearPatcher()
    patchers: tuple[Patcher, ...] = ()
    diffusion: Diffusion = Diffusion()
    coordinates: Coordinates = Coordinates()
    axial: bool = False
    media_weight: float = 5.0
    tied: bool = False
    attention: Form = "auto"
    context: int = 1024
    auxiliary: Auxiliary = Auxiliary()

    def __post_init__(self) -> None:
        if not 0 <= self.media_weight < math.inf:
            raise ValueError(f"media_weight must be a finite number, 0 or more, not {self.media_weight}")
        if self.context < 1:
            raise ValueError(f"context must be at least 1 token, not {self.context}")
        axes, size = self.coordinates.axes, self.trunk.head_dim
        if size // 2 < axes:
            raise ValueError(
                f"heads of size {size} have {size // 2} rotary frequencies, too few for {axes} axes of coordinates: take heads "
                f"of size {2 * axes} or more (trunk.head_size, or fewer trunk.heads), or fewer coordinates.axes"
            )


TIME_FEATURES = 256
"""Sinusoids of the time that adaLN begins with."""

OF_MEDIA = {"media", "media_norms", "modulation"}
"""Parts of the trunk that only media run through, as their weights' names say it."""


class Network(nn.Module):
    """All weights. What a user holds is `transfusion.Transfusion`, which has one of these.

    Args:
        modules: patchers of the user's own, by modality (`ModulesPatcher` says what they must be); `Network.model` then
            records that they are there.
        language: how many ids, from the first, belong to a language model that this one goes on from; their rows are
            parameters apart (0: there is none).

    Raises:
        ValueError: a patcher that does not give the slots that its modality says, or leaves it to a trunk without adaLN to be
            told the times; modules that are missing, or for a
            modality that there is not.
    """

    def __init__(self, model: Model, vocabulary_size: int, modules: Modules | None = None, *, language: int = 0) -> None:
        super().__init__()
        modules = modules or {}
        chosen = choose(model.patcher, model.patchers, model.modalities, modules)
        self.model = replace(model, patchers=chosen) if modules else model
        self.lora: Any = None
        """What adapters stand in the trunk, see `model/lora.py`."""
        trunk = model.trunk
        new = vocabulary_size - language
        self.embed = Rows(language, new, trunk.width) if language else nn.Embedding(vocabulary_size, trunk.width)
        self.trunk = Transformer(trunk, len(model.modalities))
        self.head = RowsHead(trunk.width, language, new) if language else Linear(trunk.width, vocabulary_size)
        self.time = TimeEmbedding(TIME_FEATURES, trunk.width) if trunk.adaln else None
        self.axial: nn.ModuleDict | None = None
        if model.axial:
            gridded = (m for m in model.modalities if m.shape)
            self.axial = nn.ModuleDict({m.name: AxialPositions(m.extents, trunk.width) for m in gridded})
        for patcher, modality in zip(chosen, model.modalities, strict=True):
            if isinstance(patcher, LinearPatcher) and patcher.time == "none" and not trunk.adaln:
                raise ValueError(
                    f"nothing would be told the times of {modality.name!r}: patcher.time none needs a trunk with adaln; or "
                    "take time width or patch"
                )
        initialise(self, trunk.depth)
        patchings = (build(p, m, trunk.width, trunk.eps, modules) for p, m in zip(chosen, model.modalities, strict=True))
        self.patchers = nn.ModuleDict({m.name: p for m, p in zip(model.modalities, patchings, strict=True)})
        if model.tied:
            self.head.weight = self.embed.weight
            if isinstance(self.head, RowsHead) and isinstance(self.embed, Rows):
                self.head.new = self.embed.new
        self.representation = Representation(trunk.width) if model.auxiliary.representation > 0 else None

    def patching(self, modality: Modality | int) -> Patching:
        """The patcher of a modality, given itself or its index."""
        modality = self.model.modalities[modality] if isinstance(modality, int) else modality
        patching = self.patchers[modality.name]
        assert isinstance(patching, Patching)
        return patching

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.embed.weight.device

    @property
    def num_parameters(self) -> int:
        """Trained numbers."""
        return sum(p.numel() for p in self.parameters())

    def muon_parameters(self) -> list[nn.Parameter]:
        """The trunk's matrices: what Muon is for. Embeddings, head, patchers, norms and biases are not among them."""
        weights = [m.weight for m in matrices(self.trunk)]
        return [w for w in weights if isinstance(w, nn.Parameter)]

    def language_parameters(self) -> list[nn.Parameter]:
        """What came from a language model: its rows of embedding and head (our BOS among them, where it had none), and the
        trunk but for the weights that only media run through. Nothing where there is no language model.

        While these stay as they are, so do the logits of its ids where a document holds text alone.
        """
        if not isinstance(self.embed, Rows):
            return []
        trunk = [p for name, p in self.trunk.named_parameters() if not OF_MEDIA & set(name.split(".")) and ".lora_" not in name]
        rows = [self.embed.weight] if self.model.tied else [self.embed.weight, self.head.weight]
        return [cast(nn.Parameter, weight) for weight in (*rows, *trunk)]

    def hidden(
        self,
        tokens: Int[Tensor, "row length"],
        positions: Float[Tensor, "row length axes"],
        media: Sequence[Noised],
        *,
        place: Place | None = None,
        window: Window | None = None,
        layers: list[Tensor] | None = None,
    ) -> tuple[Float[Tensor, "row_length width"], list[Any]]:
        """The trunk's output, flat over (row, length), and what each media group's patcher keeps for its way out.

        Args:
            place: where the tokens stand, for whole rows; or
            window: a cache's view, for rows that go on.
            layers: takes what each layer gives, [row, length, width].
        """
        trunk = self.model.trunk
        x = self.embed(tokens).flatten(0, 1)
        skips: list[Any] = []
        for group in media:
            vectors, skip = self.patching(group.modality).encode(group.latents, group.times)
            if group.unseen is not None and self.representation is not None:
                vectors = torch.where(group.unseen.unsqueeze(-1), self.representation.blank.to(vectors), vectors)
            if self.axial is not None and group.grid:
                vectors = vectors + self.axial[self.model.modalities[group.modality].name](group.grid)
            x = x.index_copy(0, group.slots.flatten(), vectors.flatten(0, 1).to(x.dtype))
            skips.append(skip)
        backward = torch.is_grad_enabled() and x.requires_grad
        scores = Scores(trunk.attention.soft_cap, trunk.attention.alibi, trunk.heads)
        if window is not None:
            form = "auto" if self.model.attention in ("flex", "document") else self.model.attention
            attend = attention(form, window.query, window.key, backward=backward, scores=scores)
        else:
            assert place is not None
            place = replace(place, coordinates=positions) if scores.alibi else place
            attend = attention(self.model.attention, place, backward=backward, scores=scores)
        h = self.trunk(
            x.unflatten(0, tokens.shape),
            angles(positions, trunk.head_dim, trunk.theta, trunk.scaling),
            attend,
            window,
            kinds=self._kinds(tokens, media),
            condition=self._condition(tokens, media),
            layers=layers,
            real=place.documents >= 0 if trunk.experts.number and place is not None else None,
        )
        return h.flatten(0, 1), skips

    def _kinds(self, tokens: Tensor, media: Sequence[Noised]) -> Kinds:
        """Which tokens run through which set of the trunk's weights."""
        if self.model.trunk.weights == "shared":
            return ONE
        return Kinds.of(tokens.shape, [(1 + group.modality, group.slots) for group in media], tokens.device)

    def _condition(self, tokens: Tensor, media: Sequence[Noised]) -> Condition | None:
        """The times of all items and whose slots are where, for a trunk that wants them."""
        if self.time is None or not media:
            return None
        t = torch.cat([group.times for group in media])
        owner = torch.full((tokens.numel(),), len(t), device=tokens.device)
        first = 0
        for group in media:
            items = torch.arange(first, first + len(group.slots), device=tokens.device)
            owner[group.slots] = items[:, None].expand_as(group.slots)
            first += len(group.slots)
        return Condition(self.time(t), owner)

    def predict(self, h: Float[Tensor, "row_length width"], media: Sequence[Noised], skips: Sequence[Any]) -> list[Tensor]:
        """Each media group's prediction (of the kind that `diffusion.prediction` names), shaped like its latents."""
        return [
            self.patching(g.modality).decode(h[g.slots.flatten()].unflatten(0, g.slots.shape), skip, g.grid)
            for g, skip in zip(media, skips, strict=True)
        ]

    def noise(self, batch: Batch) -> tuple[list[Noised], list[Tensor]]:
        """A batch's media at times and with noise drawn by their keys (or given), and the noise."""
        noised, noises = [], []
        for group in batch.media:
            keys = group.keys.tolist()
            t = times.draw(self.model.diffusion.times, keys, group.times).to(group.values.device)
            eps = chance.normals([chance.key(key, "noise") for key in keys], tuple(group.values.shape[1:])).to(group.values)
            for item, given in enumerate(group.noises or ()):
                if given is not None:
                    eps[item] = given.to(eps)
            latents = self.model.diffusion.corrupt(group.values, eps, t)
            noised.append(Noised(group.modality, group.grid, latents, t, group.slots))
            noises.append(eps)
        return noised, noises

    def forward(self, batch: Batch, *, teacher: "Network | None" = None, decoders: Decoders | None = None) -> Losses:
        """The losses of a batch.

        Args:
            teacher: the network under averaged weights, for auxiliary losses that compare with it. It runs without gradient.
            decoders: by modality, for the reconstruction loss.

        Raises:
            ValueError: no teacher in training, where a loss is on that needs one.
        """
        auxiliary = self.model.auxiliary
        if auxiliary.needs_teacher and teacher is None and self.training:
            raise ValueError(
                "the consistency and representation losses need a teacher, the model under averaged weights: give one "
                "(teacher=model.create_ema() in a loop of your own), or set their weights in model.auxiliary to 0"
            )
        media, noises = self.noise(batch)
        place = Place.of_rows(batch.documents, batch.spans, batch.private)
        h, skips = self.hidden(batch.tokens, batch.positions, media, place=place)

        logits = at_least_single(self.head(h[batch.learned]))
        targets = batch.targets.flatten()[batch.learned]
        if batch.weights is None:
            nats = F.cross_entropy(logits, targets, reduction="sum")
        else:
            nats = F.cross_entropy(logits, targets, reduction="none") @ batch.weights.to(logits)
        text = Mean(nats, logits.new_tensor(len(batch.learned)))

        zero = Mean(logits.new_zeros(()), logits.new_zeros(()))
        by_modality = [zero for _ in self.model.modalities]
        diffusion = self.model.diffusion
        predictions = self.predict(h, media, skips)
        for group, noisy, eps, prediction in zip(batch.media, media, noises, predictions, strict=True):
            truth = diffusion.target(diffusion.prediction, group.values, eps, noisy.times)
            error = (at_least_single(prediction) - at_least_single(truth)).square()
            error = by_item(error, group.masks)
            weight = group.weights * diffusion.loss_weight(noisy.times)
            mean = Mean((error * weight).sum(), (group.weights > 0).sum().to(error))
            by_modality[group.modality] = by_modality[group.modality] + mean
        losses = Losses(text, sum(by_modality, zero), tuple(by_modality))
        if not auxiliary.active:
            return losses
        further = terms(
            auxiliary,
            diffusion,
            Passed(batch, place, media, noises, predictions),
            names=[modality.name for modality in self.model.modalities],
            network=self,
            representation=self.representation,
            teacher=teacher,
            decoders=decoders,
        )
        return replace(losses, auxiliary=further)

    def cache(self, rows: int, capacity: int, dtype: torch.dtype) -> Cache:
        """An empty cache for this network."""
        trunk = self.model.trunk
        return Cache(
            layers=trunk.depth,
            kv_heads=trunk.num_kv_heads,
            head_dim=trunk.head_dim,
            rows=rows,
            capacity=capacity,
            device=self.device,
            dtype=dtype,
            axes=self.model.coordinates.axes if trunk.attention.alibi else 0,
        )
