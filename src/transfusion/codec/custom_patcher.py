"""A patcher of two modules that the user brings: one makes slots of latents, one latents of slots."""

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn

from transfusion.codec.patcher import REMEDY, Patcher, TimeEmbedding, check_features, sizes
from transfusion.modality import Modality
from transfusion.nn.eval_mode import eval_mode

CustomModules: TypeAlias = Mapping[str, tuple[nn.Module, nn.Module]]
"""Name of a modality -> (way in, way out)."""

TIMES = {"t", "time", "times", "timestep", "timesteps"}
"""Names of a parameter by which a module says that it takes the times."""


@dataclass(frozen=True)
class CustomPatcherConfig:
    """A pair of modules that are given to the model when it is made: `Transfusion(..., modules={"image": (encoder,
    decoder)})`. They are trained, saved and loaded with it, but their code is not: who loads the model gives them again.

        encoder(latents, t) or encoder(latents) -> slots, or (slots, skip)
        decoder(slots) or, where a skip was kept, decoder(slots, skip) -> the prediction, shaped like the latents

    Latents are Float[item, channels, *size], times t Float[item] from 0 (clean) to 1 (noise). Slots are Float[item, slot,
    width], in raster order, or Float[item, width, *grid]: the decoder is given what the encoder gives. (One axis of as many
    slots as the model is wide could be either, and is taken for the first.) Their number is what the modality's `patch`
    declares. An encoder takes the times if it has a parameter called t, time or times, by which name it is given them, or a
    second one without default; otherwise the time's embedding is added to its slots. Each item must be treated by itself.

    Args:
        encoder: class of the way in, a note for readers.
        decoder: class of the way out.
        features: sinusoidal features of the time, where the encoder takes none.
    """

    kind: ClassVar[str] = "modules"
    encoder: str = ""
    decoder: str = ""
    features: int = 256

    def __post_init__(self) -> None:
        check_features(self.features)

    def build(self, modality: Modality, width: int, eps: float) -> Patcher:
        """Raises ValueError: this needs the modules."""
        known = f" ({self.encoder} and {self.decoder})" if self.encoder else ""
        raise ValueError(
            f"the patcher of {modality.name!r} is a pair of modules{known} that must be given: "
            f"Transfusion.from_pretrained(folder, modules={{{modality.name!r}: (encoder, decoder)}}), or the same argument of "
            "Transfusion"
        )


class CustomPatcher(Patcher):
    """Latents <-> slot vectors of one modality, by a user's modules.

    Raises:
        ValueError: slots of another number or width than the modality says; modules that mix the items of a batch.
    """

    def __init__(
        self, options: CustomPatcherConfig, modality: Modality, width: int, encoder: nn.Module, decoder: nn.Module
    ) -> None:
        super().__init__()
        self.modality, self.width = modality, width
        self.encoder, self.decoder = encoder, decoder
        for name, part in (("encoder", encoder), ("decoder", decoder)):
            if any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in part.modules()):
                raise ValueError(
                    f"the {name} of {modality.name!r} norms over the items of a batch, so that a document would depend on what "
                    "stands beside it: use GroupNorm or LayerNorm"
                )
        where = _weight(encoder).device
        told = _told(encoder)
        self.told = told or ""
        self.time = TimeEmbedding(options.features, width).to(where) if told is None else None
        self.spread = self._spread()

    def _spread(self) -> bool:
        """Whether the encoder's slots are spread over the grid's axes, which a dry run tells."""
        like = _weight(self.encoder)
        spread: set[bool] = set()
        for size in sizes(self.modality):
            latents = torch.zeros(1, self.modality.channels, *size, device=like.device, dtype=like.dtype)
            grid = self.modality.slots(size)
            with torch.no_grad():
                slots, _ = self._encoded(latents, torch.zeros(1, device=like.device))
            forms = {False: (1, math.prod(grid), self.width), True: (1, self.width, *grid)}
            fits = {form for form, shape in forms.items() if shape == tuple(slots.shape)}
            if not fits:
                raise ValueError(
                    f"the encoder of {self.modality.name!r} gives {tuple(slots.shape)} for latents {tuple(latents.shape)}, its "
                    f"modality says {forms[False]} or {forms[True]}: {REMEDY}"
                )
            spread = fits if not spread else spread & fits
        return spread == {True}

    def _encoded(self, latents: Tensor, t: Tensor) -> tuple[Tensor, tuple[Any, ...]]:
        if self.time is not None:
            out = self.encoder(latents)
        else:
            out = self.encoder(latents, **{self.told: t}) if self.told else self.encoder(latents, t)
        return (out[0], tuple(out[1:])) if isinstance(out, tuple | list) else (out, ())

    def check_items(self) -> None:
        """Two items together against each alone. Modules that draw chance are not compared, nor is what is on no device.

        Raises:
            ValueError: they are not the same: an item depends on what stands beside it.
        """
        like = _weight(self.encoder)
        if like.device.type == "meta":
            return
        size, rng = sizes(self.modality)[0], torch.Generator().manual_seed(0)
        latents = torch.randn(2, self.modality.channels, *size, generator=rng).to(like)
        t, grid = torch.tensor([0.2, 0.7], device=like.device), self.modality.slots(size)
        with torch.no_grad(), eval_mode(self):
            both, again = self._both_ways(latents, t, grid), self._both_ways(latents, t, grid)
            alone = [self._both_ways(latents[i : i + 1], t[i : i + 1], grid) for i in range(2)]
        for name, one, same, *items in zip(("encoder", "decoder"), both, again, *alone, strict=True):
            if torch.equal(one, same) and _differ(one, torch.cat(items)):
                raise ValueError(
                    f"the {name} of {self.modality.name!r} mixes the items of a batch, so that a document would depend on what "
                    "stands beside it: let it treat each item by itself"
                )

    def _both_ways(self, latents: Tensor, t: Tensor, grid: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        slots, skip = self.encode(latents, t)
        return slots, self.decode(slots, skip, grid)

    def encode(
        self, latents: Float[Tensor, "item channels ..."], t: Float[Tensor, " item"]
    ) -> tuple[Float[Tensor, "item slot width"], tuple[Any, ...]]:
        """Noisy latents at times t -> slot vectors, and what else the encoder gave."""
        dtype = _weight(self.encoder).dtype
        slots, skip = self._encoded(latents.to(dtype), t.to(torch.promote_types(t.dtype, dtype)))
        slots = slots.flatten(2).transpose(1, 2) if self.spread and self.modality.shape else slots
        slots = slots[:, None] if self.spread and not self.modality.shape else slots
        return (slots if self.time is None else slots + self.time(t)[:, None]), skip

    def decode(
        self, slots: Float[Tensor, "item slot width"], skip: tuple[Any, ...], grid: tuple[int, ...]
    ) -> Float[Tensor, "item channels ..."]:
        """The trunk's vectors at an item's slots, and what the encoder kept -> the prediction, shaped like the latents."""
        slots = slots.to(_weight(self.decoder).dtype)
        return self.decoder(slots.transpose(1, 2).reshape(-1, self.width, *grid) if self.spread else slots, *skip)


def _weight(module: nn.Module) -> Tensor:
    """The first of a module's weights: what says where and in which precision it computes."""
    return next((p for p in module.parameters() if p.is_floating_point()), torch.empty(()))


def _differ(one: Tensor, other: Tensor) -> bool:
    """By more than what rounding makes."""
    share = 0.01 if one.dtype in (torch.float32, torch.float64) else 0.05
    return bool((one - other).abs().max() > share * one.abs().max())


def _told(encoder: nn.Module) -> str | None:
    """How an encoder is given the times: by the name of a parameter, as its second one (""), or not at all."""
    found = list(inspect.signature(encoder.forward).parameters.values())
    plain = [p for p in found if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    for p in found:
        if p.name in TIMES and p is not found[0] and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY):
            return "" if p in plain[1:2] else p.name
    named = any(p.name in TIMES for p in plain[1:2])
    return "" if named or len([p for p in plain if p.default is p.empty]) > 1 else None
