"""Losses beside the method's two, each with a weight of its own and all off by default: nothing is computed then.

consistency      the velocity here against a teacher's a little nearer to the data, on the same noise
reconstruction   the clean estimate against the clean latents, both decoded, with gradient through the decoder
representation   hidden states of an early layer, some slots unseen, against those of a teacher's later layer

The teacher is the model under averaged weights. Like the denoising loss each is a mean over the items that take a loss, of each
item's own mean, times the item's weight.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeAlias, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transfusion import rng
from transfusion.data.batch import Batch, MediaGroup
from transfusion.diffusion.process import Diffusion
from transfusion.model.losses import Mean, Term, mean_per_item, upcast
from transfusion.model.noised import NoisedGroup
from transfusion.nn.attention import AttentionMetadata
from transfusion.nn.moe import balancing

Decoders: TypeAlias = Mapping[str, Callable[[Tensor], Tensor]]
"""Modality name -> what turns latents [item, channels, *size] into something to compare, such as pixels."""


@dataclass(frozen=True)
class AuxiliaryLossConfig:
    """Weights of the further losses, 0: off, and their settings.

    Args:
        consistency: velocity consistency with the averaged model (the velocity term of Consistency Flow Matching, Yang et al.
            2024, arXiv 2407.02398). One more pass, of the teacher.
        delta: how much nearer to the data the teacher looks, in time.
        reconstruction: error of the decoded clean estimate; of the latents themselves where a modality has no decoder.
        representation: 1 - cosine between what an early layer sees, through a small network, and what a later layer of the
            averaged model sees of the same noise at the same times (after Self-Flow, arXiv 2603.06507). Two more passes.
        student_depth, teacher_depth: the two layers, as shares of the trunk's depth.
        unseen: share of an item's slots that are hidden from the early layer in its pass, and not from the teacher.
    """

    consistency: float = 0.0
    delta: float = 0.01
    reconstruction: float = 0.0
    representation: float = 0.0
    student_depth: float = 0.3
    teacher_depth: float = 0.7
    masked: float = 0.25

    def __post_init__(self) -> None:
        for name in ("consistency", "reconstruction", "representation"):
            weight = getattr(self, name)
            if not (math.isfinite(weight) and weight >= 0):
                raise ValueError(f"{name} is a weight, 0 (off) or more, not {weight}")
        if not 0 <= self.delta < 1:
            raise ValueError(f"delta is a difference of times, in [0, 1), not {self.delta}")
        if not 0 < self.student_depth <= self.teacher_depth <= 1:
            raise ValueError(
                f"student-depth and teacher-depth are shares of the trunk in (0, 1], the teacher's no less than the student's; "
                f"not {self.student_depth} and {self.teacher_depth}"
            )
        if not 0 <= self.masked < 1:
            raise ValueError(f"unseen is a share of the slots, in [0, 1), not {self.masked}")

    @property
    def active(self) -> bool:
        """Whether anything is on."""
        return self.needs_ema_teacher or self.reconstruction > 0

    @property
    def needs_ema_teacher(self) -> bool:
        """Whether a loss is on that compares with the averaged model."""
        return self.consistency > 0 or self.representation > 0


class Representation(nn.Module):
    """What the representation loss trains beside the network: the projector, and the vector that stands in unseen slots. It is
    there only if that loss is on."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)
        self.blank = nn.Parameter(torch.randn(width) * 0.02)

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] -> [..., width]"""
        return self.second(F.silu(self.first(x)))


@runtime_checkable
class Runs(Protocol):
    """What student and teacher do here: `Network`'s two passes."""

    def hidden(
        self,
        tokens: Tensor,
        positions: Tensor,
        media: Sequence[NoisedGroup],
        *,
        metadata: AttentionMetadata | None = None,
        layers: list[Tensor] | None = None,
    ) -> tuple[Tensor, list[Any]]:
        """The trunk's output; each layer's is added to `layers`."""
        ...

    def predict(self, h: Tensor, media: Sequence[NoisedGroup], skips: Sequence[Any]) -> list[Tensor]:
        """Each group's prediction."""
        ...


@dataclass(frozen=True, eq=False)
class Passed:
    """A batch that went through the network: its media as they were noised, with what noise, and what was predicted."""

    batch: Batch
    metadata: AttentionMetadata
    media: Sequence[NoisedGroup]
    noises: Sequence[Tensor]
    predictions: Sequence[Tensor]


def terms(
    auxiliary: AuxiliaryLossConfig,
    diffusion: Diffusion,
    passed: Passed,
    *,
    names: Sequence[str],
    network: Runs,
    representation: Representation | None,
    teacher: Runs | None,
    decoders: Decoders | None,
) -> tuple[Term, ...]:
    """The losses that are on. Those that need a teacher are left out where there is none.

    Args:
        names: of the modalities.
    """
    found: list[Term] = []
    if auxiliary.consistency > 0 and teacher is not None:
        found.append(Term("consistency", auxiliary.consistency, consistency(auxiliary.delta, diffusion, passed, teacher)))
    if auxiliary.reconstruction > 0:
        mean = reconstruction(diffusion, passed, [(decoders or {}).get(name) for name in names])
        found.append(Term("reconstruction", auxiliary.reconstruction, mean))
    if auxiliary.representation > 0 and teacher is not None:
        assert representation is not None
        mean = agreement(auxiliary, passed, network, representation, teacher)
        found.append(Term("representation", auxiliary.representation, mean))
    return tuple(found)


def _mean(errors: Sequence[Tensor], groups: Sequence[MediaGroup], like: Tensor) -> Mean:
    """Errors [item] of each group, as the mean over the items that take a loss."""
    total = Mean(upcast(like.new_zeros(())), upcast(like.new_zeros(())))
    for error, group in zip(errors, groups, strict=True):
        total = total + Mean((error * group.loss_weights).sum(), (group.loss_weights > 0).sum().to(error))
    return total


def consistency(delta: float, diffusion: Diffusion, passed: Passed, teacher: Runs) -> Mean:
    """The velocity at (x_t, t) against the teacher's at (x_s, s), s = t - delta or 0, where x_s has the same noise.

    A prediction that is no velocity is made one, and where that would divide by less than `diffusion.min_divisor` the error
    counts as much less as in the denoising loss.
    """
    batch, kind = passed.batch, diffusion.prediction
    earlier: list[NoisedGroup] = []
    for group, noisy, eps in zip(batch.media, passed.media, passed.noises, strict=True):
        s = (noisy.times - delta).clamp_min(0)
        earlier.append(replace(noisy, times=s, latents=diffusion.add_noise(group.values, eps, s)))
    with torch.no_grad():
        h, skips = teacher.hidden(batch.tokens, batch.positions, earlier, metadata=passed.metadata)
        needs_ema_teacher = teacher.predict(h, earlier, skips)
    errors = []
    for group, now, prediction, before, target in zip(
        batch.media, passed.media, passed.predictions, earlier, needs_ema_teacher, strict=True
    ):
        here = diffusion.convert(upcast(prediction), kind, "velocity", upcast(now.latents), now.times)
        there = diffusion.convert(upcast(target), kind, "velocity", upcast(before.latents), before.times)
        share = torch.minimum(
            diffusion.conversion_weight("velocity", now.times), diffusion.conversion_weight("velocity", before.times)
        )
        errors.append(mean_per_item((here - there).square(), group.masks) * share)
    return _mean(errors, batch.media, batch.positions)


def reconstruction(diffusion: Diffusion, passed: Passed, decoders: Sequence[Callable[[Tensor], Tensor] | None]) -> Mean:
    """decoder(clean estimate) against decoder(clean latents), one decoder or none a modality. Its gradient reaches the network
    through the decoder, and not the decoder's own weights.

    Where there is no decoder elements count as an item's mask says. What a decoder gives cannot be matched with elements of
    latents: there the whole item counts.

    Raises:
        ValueError: a decoder without gradient.
    """
    errors = []
    for group, noisy, prediction in zip(passed.batch.media, passed.media, passed.predictions, strict=True):
        latents, decoder = upcast(noisy.latents), decoders[group.modality]
        estimate, _ = diffusion.to_x0_eps(diffusion.prediction, upcast(prediction), latents, noisy.times)
        clean = upcast(group.values).to(estimate)
        chosen = (group.loss_weights > 0).nonzero().squeeze(1)
        error = estimate.new_zeros(len(clean))
        if decoder is None:
            error = mean_per_item((estimate - clean).square(), group.masks)
        elif len(chosen):  # a decoder is costly: what takes no loss is not decoded
            found = decoded_error(decoder, estimate[chosen], clean[chosen])
            error = error.index_copy(0, chosen, found.to(error))
        errors.append(error * diffusion.conversion_weight("x0", noisy.times))
    return _mean(errors, passed.batch.media, passed.batch.positions)


def decoded_error(decoder: Callable[[Tensor], Tensor], estimate: Tensor, clean: Tensor) -> Tensor:
    """Each item's mean squared difference of what is decoded, [item]; `estimate` alone gets its gradient.

    Whatever the decoder is (a module, a method, a lambda around one), its weights get none: the gradient is taken at once, with
    respect to the latents only, and handed on when the error passes backward. So nothing of the decoder is kept until then.
    It must treat each item by itself.

    Raises:
        ValueError: no gradient comes through the decoder.
    """
    with torch.no_grad():
        target = upcast(decoder(clean))
    wanted = torch.is_grad_enabled() and estimate.requires_grad
    latents = estimate.detach().requires_grad_(wanted)
    decoded = upcast(decoder(latents))
    error = (decoded - target).square().flatten(1).mean(1)
    if not wanted:
        return error.detach()
    gradient = torch.autograd.grad(error.sum(), latents, allow_unused=True)[0] if error.requires_grad else None
    if gradient is None:
        raise ValueError("this decoder stops gradients (torch.no_grad inside?), which the reconstruction loss needs")
    return error.detach() + (gradient * (estimate - latents.detach())).flatten(1).sum(1)


def agreement(
    auxiliary: AuxiliaryLossConfig, passed: Passed, network: Runs, representation: Representation, teacher: Runs
) -> Mean:
    """1 - cosine between the projected hidden states of the student's layer and the teacher's, mean over an item's slots.

    Both see the same noise at the same times; of each item that takes a loss a share of the slots, drawn by the item's key, is
    unseen by the student. Slots whose elements all have weight 0 in an item's mask take no part. The student has a pass of its
    own, so that the other losses are what they are without this one.
    """
    batch = passed.batch
    partly = [
        replace(noisy, masked=masked(group, auxiliary.masked)) for group, noisy in zip(batch.media, passed.media, strict=True)
    ]
    early: list[Tensor] = []
    with balancing(0.0):  # experts are kept equally busy in the pass that all losses share, once
        network.hidden(batch.tokens, batch.positions, partly, metadata=passed.metadata, layers=early)
    late: list[Tensor] = []
    with torch.no_grad():
        teacher.hidden(batch.tokens, batch.positions, passed.media, metadata=passed.metadata, layers=late)
    shallow, deep = layers(auxiliary, len(early))
    student, needs_ema_teacher = early[shallow].flatten(0, 1), late[deep].flatten(0, 1)
    errors = []
    for group, noisy in zip(batch.media, passed.media, strict=True):
        projected = upcast(representation(student[noisy.slots]))
        error = 1 - F.cosine_similarity(projected, upcast(needs_ema_teacher[noisy.slots]), dim=-1)
        counted = weighed(group)
        errors.append(error.mean(1) if counted is None else mean_per_item(error[:, None], counted.to(error)))
    return _mean(errors, batch.media, batch.positions)


def layers(auxiliary: AuxiliaryLossConfig, count: int) -> tuple[int, int]:
    """Indices of the student's layer and the teacher's in a trunk of `count` layers, behind which these shares of it are done.

    Where the shares differ the layers do too, though rounding makes them one, if there are two layers at all.
    """
    shallow, deep = (max(1, round(share * count)) - 1 for share in (auxiliary.student_depth, auxiliary.teacher_depth))
    if shallow == deep and auxiliary.student_depth < auxiliary.teacher_depth:
        return (shallow, deep + 1) if deep + 1 < count else (max(shallow - 1, 0), deep)
    return shallow, deep


def weighed(group: MediaGroup) -> Tensor | None:
    """Which slots cover an element that its item's mask weighs, Bool[item, slot]; None where there are no masks."""
    if group.masks is None:
        return None
    found = group.masks > 0
    for axis, count in enumerate(group.grid, 1):
        found = found.unflatten(axis, (count, -1)).any(axis + 1)
    return found.flatten(1) if group.grid else found[:, None]


def masked(group: MediaGroup, share: float) -> Tensor:
    """Which slots are hidden, Bool[item, slot]: as near to the share as whole slots allow, drawn by each item's key; none of an
    item that takes no loss."""
    count, counted = group.slots.shape[1], weighed(group)
    hidden = torch.zeros(group.slots.shape, dtype=torch.bool)
    for item, key in enumerate(group.keys.tolist()):
        order = torch.from_numpy(rng.generator(rng.key(key, "unseen")).permutation(count))
        order = order if counted is None else order[counted[item].cpu()[order]]
        hidden[item, order[: round(share * len(order))]] = True
    return hidden.to(group.slots.device) & (group.loss_weights > 0)[:, None]
