"""Auxiliary losses, each with its own weight. All are off by default, and cost nothing then.

consistency      the velocity against an EMA teacher's at a slightly smaller t, on the same noise
reconstruction   the clean estimate against the clean latents, both decoded; gradients pass through the decoder
representation   hidden states of an early layer, with some slots masked, against a later layer of the EMA teacher

Like the denoising loss each is a mean over elements, then over items with a loss, times item weight.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeAlias, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from transfusion import rng
from transfusion.data.batch import Batch, MediaGroup
from transfusion.diffusion.process import Diffusion
from transfusion.model.denoising import NoisedGroup
from transfusion.model.losses import Mean, MediaMean, Term, mean_over_items, mean_per_item, upcast
from transfusion.nn.attention import AttentionMetadata
from transfusion.nn.moe import balancing

Decoder: TypeAlias = Callable[[Tensor], Tensor]
"""A function from latents [item, channels, *size] to what is compared, such as pixels."""
Decoders: TypeAlias = Mapping[str, Decoder]
"""Name of a modality -> its decoder."""


@dataclass(frozen=True)
class AuxiliaryLossConfig:
    """Weights of the auxiliary losses (0: off) and their settings.

    Args:
        consistency: weight of the velocity consistency with the EMA teacher (the velocity term of Consistency Flow Matching,
            Yang et al. 2024, arXiv 2407.02398). Costs one more forward pass, of the teacher.
        delta: difference of t between student and teacher.
        reconstruction: weight of the error of the decoded clean estimate; of the latents if a modality has no decoder.
        representation: weight of 1 - cosine between a projected early layer and a later layer of the EMA teacher, at the same
            noise and times (after Self-Flow, arXiv 2603.06507). Costs two more forward passes.
        student_depth: the early layer, as a fraction of the transformer's depth.
        teacher_depth: the later layer of the teacher, likewise.
        mask_ratio: fraction of an item's slots that are masked for the student.

    Raises:
        ValueError: a number out of its range.
    """

    consistency: float = 0.0
    delta: float = 0.01
    reconstruction: float = 0.0
    representation: float = 0.0
    student_depth: float = 0.3
    teacher_depth: float = 0.7
    mask_ratio: float = 0.25

    def __post_init__(self) -> None:
        for name in ("consistency", "reconstruction", "representation"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is a weight, 0 (off) or more, not {getattr(self, name)}")
        if not 0 <= self.delta < 1:
            raise ValueError(f"delta is a difference of times, in [0, 1), not {self.delta}")
        if not 0 < self.student_depth <= self.teacher_depth <= 1:
            raise ValueError(
                "student_depth and teacher_depth are fractions of the depth in (0, 1], the teacher's no less than the "
                f"student's; not {self.student_depth} and {self.teacher_depth}"
            )
        if not 0 <= self.mask_ratio < 1:
            raise ValueError(f"mask_ratio is a fraction of the slots, in [0, 1), not {self.mask_ratio}")

    @property
    def needs_ema_teacher(self) -> bool:
        """Whether a loss is on that compares with the EMA teacher."""
        return self.consistency > 0 or self.representation > 0


class RepresentationHead(nn.Module):
    """Trained weights of the representation loss: the projector, and the vector of masked slots."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)
        self.mask_vector = nn.Parameter(torch.randn(width) * 0.02)

    def forward(self, x: Float[Tensor, "... width"]) -> Float[Tensor, "... width"]:
        """Projected hidden states."""
        return self.second(F.silu(self.first(x)))


@runtime_checkable
class DenoisingNetwork(Protocol):
    """What a student or teacher computes: the two halves of `Network`."""

    def hidden(
        self,
        tokens: Tensor,
        positions: Tensor,
        media: Sequence[NoisedGroup],
        *,
        metadata: AttentionMetadata | None = None,
        layers: list[Tensor] | None = None,
    ) -> tuple[Tensor, list[Any]]:
        """The transformer's output; the output of each layer is appended to `layers`."""
        ...

    def predict(self, h: Tensor, media: Sequence[NoisedGroup], skips: Sequence[Any]) -> list[Tensor]:
        """Each group's prediction."""
        ...


@dataclass(frozen=True, eq=False)
class ForwardPass:
    """A batch, its noised media, and what the network predicted of them; one entry a media group."""

    batch: Batch
    metadata: AttentionMetadata
    media: Sequence[NoisedGroup]
    predictions: Sequence[Tensor]

    def mean(self, errors: Sequence[Float[Tensor, " item"]]) -> MediaMean:
        """The mean of all groups' errors, times the items' weights."""
        zero = upcast(self.batch.positions.new_zeros(()))
        means = [Mean(zero, zero)] * (1 + max((group.modality for group in self.batch.media), default=-1))
        for group, error in zip(self.batch.media, errors, strict=True):
            means[group.modality] += mean_over_items(error * group.loss_weights, group.loss_weights)
        total = sum(means, Mean(zero, zero))
        return MediaMean(total.sum, total.count, tuple(means))


def auxiliary_losses(
    config: AuxiliaryLossConfig,
    diffusion: Diffusion,
    run: ForwardPass,
    network: DenoisingNetwork,
    head: RepresentationHead | None,
    teacher: DenoisingNetwork | None,
    decoders: Sequence[Decoder | None],
) -> tuple[Term, ...]:
    """The losses that are on; without a teacher, those that need none. `decoders`: one or None for each modality."""
    terms: list[Term] = []
    if config.consistency > 0 and teacher is not None:
        terms.append(Term("consistency", config.consistency, consistency_loss(config.delta, diffusion, run, teacher)))
    if config.reconstruction > 0:
        terms.append(Term("reconstruction", config.reconstruction, reconstruction_loss(diffusion, run, decoders)))
    if config.representation > 0 and teacher is not None:
        assert head is not None
        terms.append(Term("representation", config.representation, representation_loss(config, run, network, head, teacher)))
    return tuple(terms)


def consistency_loss(delta: float, diffusion: Diffusion, run: ForwardPass, teacher: DenoisingNetwork) -> Mean:
    """|velocity(x_t, t) - teacher's velocity(x_s, s)|^2 with s = max(t - delta, 0), both from the same noise.

    Other predictions are converted to velocities; where that divides by less than `diffusion.min_divisor` the error is weighted
    down as in the denoising loss.
    """
    batch, earlier = run.batch, []
    for group, noised in zip(batch.media, run.media, strict=True):
        assert noised.noise is not None
        s = (noised.times - delta).clamp_min(0)
        earlier.append(replace(noised, times=s, latents=diffusion.add_noise(group.values, noised.noise, s)))
    with torch.no_grad():
        h, skips = teacher.hidden(batch.tokens, batch.positions, earlier, metadata=run.metadata)
        targets = teacher.predict(h, earlier, skips)

    def velocity(prediction: Tensor, noised: NoisedGroup) -> tuple[Tensor, Tensor]:
        x_t, t = upcast(noised.latents), noised.times
        v = diffusion.convert(upcast(prediction), diffusion.prediction, "velocity", x_t, t)
        return v, diffusion.conversion_weight("velocity", t)

    errors = []
    for group, now, prediction, before, target in zip(batch.media, run.media, run.predictions, earlier, targets, strict=True):
        (student, weight), (expected, teacher_weight) = velocity(prediction, now), velocity(target, before)
        error = mean_per_item((student - expected).square(), group.masks)
        errors.append(error * torch.minimum(weight, teacher_weight))
    return run.mean(errors)


def reconstruction_loss(diffusion: Diffusion, run: ForwardPass, decoders: Sequence[Decoder | None]) -> Mean:
    """|decoder(clean estimate) - decoder(clean latents)|^2, with one decoder or None for each modality.

    Without a decoder the latents are compared, weighted by the item's mask. Decoded elements cannot be matched with a mask of
    latents: there the whole item counts. Raises ValueError for a decoder without gradient.
    """
    errors = []
    for group, noised, prediction in zip(run.batch.media, run.media, run.predictions, strict=True):
        latents, decoder = upcast(noised.latents), decoders[group.modality]
        estimate, _ = diffusion.to_x0_eps(diffusion.prediction, upcast(prediction), latents, noised.times)
        clean, error = upcast(group.values).to(estimate), estimate.new_zeros(len(estimate))
        if decoder is None:
            error = mean_per_item((estimate - clean).square(), group.masks)
        elif len(items := (group.loss_weights > 0).nonzero().squeeze(1)):  # decoding is costly: only items with a loss
            error = error.index_copy(0, items, decoded_error(decoder, estimate[items], clean[items]).to(error))
        errors.append(error * diffusion.conversion_weight("x0", noised.times))
    return run.mean(errors)


def decoded_error(
    decoder: Decoder, estimate: Float[Tensor, "item ..."], clean: Float[Tensor, "item ..."]
) -> Float[Tensor, " item"]:
    """Each item's mean squared difference after decoding; only `estimate` gets a gradient.

    The decoder (a module, a method, any function) gets none for its weights: the gradient with respect to the latents is taken
    at once and returned in backward, so no activations of the decoder are kept. It must treat each item by itself.
    Raises ValueError if no gradient comes through the decoder.
    """
    with torch.no_grad():
        target = upcast(decoder(clean))
    needs_gradient = torch.is_grad_enabled() and estimate.requires_grad
    latents = estimate.detach().requires_grad_(needs_gradient)
    decoded = upcast(decoder(latents))
    error = (decoded - target).square().flatten(1).mean(1)
    if not needs_gradient:
        return error.detach()
    gradient = torch.autograd.grad(error.sum(), latents, allow_unused=True)[0] if error.requires_grad else None
    if gradient is None:
        raise ValueError("this decoder stops gradients (torch.no_grad inside?), which the reconstruction loss needs")
    return error.detach() + (gradient * (estimate - latents.detach())).flatten(1).sum(1)


def representation_loss(
    config: AuxiliaryLossConfig,
    run: ForwardPass,
    network: DenoisingNetwork,
    head: RepresentationHead,
    teacher: DenoisingNetwork,
) -> Mean:
    """1 - cosine(head(student's layer), teacher's layer), mean over an item's slots.

    Both read the same noise at the same times; for the student `mask_ratio` of the slots of each item with a loss are masked,
    drawn by the item's key. Slots whose elements all have weight 0 in the item's mask do not count. The student's pass is a
    second one, so that the other losses do not depend on this one.
    """
    batch, masks = run.batch, [draw_mask(group, config.mask_ratio) for group in run.batch.media]
    masked = [replace(noised, masked=mask) for noised, mask in zip(run.media, masks, strict=True)]
    early, late = [], []
    with balancing(0.0):  # experts are balanced once, by the pass that all losses share
        network.hidden(batch.tokens, batch.positions, masked, metadata=run.metadata, layers=early)
    with torch.no_grad():
        teacher.hidden(batch.tokens, batch.positions, run.media, metadata=run.metadata, layers=late)
    student_layer, teacher_layer = layer_indices(config, len(early))
    student, target = early[student_layer].flatten(0, 1), late[teacher_layer].flatten(0, 1)
    errors = []
    for group in batch.media:
        error = 1 - F.cosine_similarity(upcast(head(student[group.slots])), upcast(target[group.slots]), dim=-1)
        counted = counted_slots(group)
        errors.append(error.mean(1) if counted is None else mean_per_item(error[:, None], counted.to(error)))
    return run.mean(errors)


def layer_indices(config: AuxiliaryLossConfig, depth: int) -> tuple[int, int]:
    """Indices of the student's and the teacher's layer, at these fractions of the depth. Different fractions give different
    layers wherever there are two."""
    student, teacher = (max(1, round(fraction * depth)) - 1 for fraction in (config.student_depth, config.teacher_depth))
    if student == teacher and config.student_depth < config.teacher_depth:
        return (student, teacher + 1) if teacher + 1 < depth else (max(student - 1, 0), teacher)
    return student, teacher


def counted_slots(group: MediaGroup) -> Bool[Tensor, "item slot"] | None:
    """Slots that cover an element whose weight in the item's mask is above 0; None without masks."""
    if group.masks is None:
        return None
    counted = group.masks > 0
    for axis, count in enumerate(group.grid, 1):
        counted = counted.unflatten(axis, (count, -1)).any(axis + 1)
    return counted.flatten(1) if group.grid else counted[:, None]


def draw_mask(group: MediaGroup, ratio: float) -> Bool[Tensor, "item slot"]:
    """Slots to mask, the fraction `ratio` rounded to whole slots, drawn by the item's key; none of an item without a loss."""
    counted = counted_slots(group)
    mask = torch.zeros(group.slots.shape, dtype=torch.bool)
    for item, key in enumerate(group.keys.tolist()):
        order = torch.from_numpy(rng.generator(rng.key(key, "unseen")).permutation(mask.shape[1]))
        order = order if counted is None else order[counted[item].cpu()[order]]
        mask[item, order[: round(ratio * len(order))]] = True
    return mask.to(group.slots.device) & (group.loss_weights > 0)[:, None]
