"""A patcher of two modules of the user: an encoder from latents to slots, a decoder from slots to latents."""

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor, nn

from transfusion.codec.patcher import (
    Latents,
    Patcher,
    Slots,
    TimeEmbedding,
    Times,
    check_time_features,
    dry_run_items,
    wrong_slots,
)
from transfusion.modality import Modality
from transfusion.nn.ema import eval_mode

CustomModules: TypeAlias = Mapping[str, tuple[nn.Module, nn.Module]]
"""Name of a modality -> (encoder, decoder)."""

TIME_NAMES = {"t", "time", "times", "timestep", "timesteps"}
"""Names of an encoder's parameter that takes the times."""


@dataclass(frozen=True)
class CustomPatcherConfig:
    """The user's encoder and decoder: `Transfusion(..., modules={"image": (encoder, decoder)})`. Their weights are trained,
    saved and loaded with the model, their code is not: `from_pretrained` takes `modules` again.

        encoder(latents, t) or encoder(latents) -> slots, or (slots, skip)
        decoder(slots), or with a skip decoder(slots, skip) -> the prediction, shaped like the latents

    Latents are Float[item, channels, *size], times t Float[item] from 0 (clean) to 1 (noise). Slots are Float[item, slot,
    width] in raster order, or Float[item, width, *grid]; the decoder gets them in the encoder's form. (With one axis, slots ==
    width is ambiguous; [item, slot, width] is assumed.) Their number follows from the modality's `patch`. Times are passed to
    a parameter of the encoder called t, time(s) or timestep(s), or to a second parameter without default; if there is none,
    an embedding of t is added to the slots. Each item must be treated by itself.

    Args:
        encoder, decoder: names of their classes, for readers.
        time_features: number of sinusoidal features of t, if the encoder takes no times.
    """

    kind: ClassVar[str] = "modules"
    encoder: str = ""
    decoder: str = ""
    time_features: int = 256

    def __post_init__(self) -> None:
        check_time_features(self.time_features)

    def build(self, modality: Modality, width: int, eps: float) -> Patcher:
        """Raises ValueError: only the modules themselves make a patcher."""
        known = f" ({self.encoder} and {self.decoder})" if self.encoder else ""
        raise ValueError(
            f"the patcher of {modality.name!r} is a pair of modules{known} that must be passed: "
            f"Transfusion.from_pretrained(folder, modules={{{modality.name!r}: (encoder, decoder)}}), or so to Transfusion"
        )


class CustomPatcher(Patcher):
    """Latents <-> slot vectors of one modality, by a user's modules.

    Raises:
        ValueError: slots of another number or width than the modality declares; modules that mix the items of a batch.
    """

    def __init__(
        self, config: CustomPatcherConfig, modality: Modality, width: int, encoder: nn.Module, decoder: nn.Module
    ) -> None:
        super().__init__()
        self.modality, self.width = modality, width
        self.encoder, self.decoder = encoder, decoder
        for name, module in (("encoder", encoder), ("decoder", decoder)):
            if any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in module.modules()):
                which = f"the {name} of {modality.name!r}"
                raise ValueError(f"{which} normalizes over the items of a batch (BatchNorm): use GroupNorm or LayerNorm")
        self.time_argument = _time_argument(encoder)
        self.time_embedding: TimeEmbedding | None = None
        if self.time_argument is None:
            self.time_embedding = TimeEmbedding(config.time_features, width).to(_weight(encoder).device)
        self.on_grid = self._slots_on_grid()

    @torch.no_grad()
    def _slots_on_grid(self) -> bool:
        """Whether the encoder's slots are [item, width, *grid] instead of [item, slot, width], by a dry run."""
        on_grid = {False, True}
        for latents, t, grid in dry_run_items(self.modality, _weight(self.encoder)):
            slots, _ = self._call_encoder(latents, t)
            forms = {False: (1, math.prod(grid), self.width), True: (1, self.width, *grid)}
            fits = {form for form, shape in forms.items() if shape == slots.shape}
            if not fits:
                raise wrong_slots(f"encoder of {self.modality.name!r}", slots, latents, *forms.values())
            on_grid &= fits
        return on_grid == {True}

    def _call_encoder(self, latents: Tensor, t: Tensor) -> tuple[Tensor, tuple[Any, ...]]:
        name = self.time_argument
        times = [t] if name == "" else []
        out = self.encoder(latents, *times, **({name: t} if name else {}))
        return (out[0], tuple(out[1:])) if isinstance(out, tuple | list) else (out, ())

    def check_items(self) -> None:
        """Compare two items in one batch with each alone. Modules with random outputs are not compared, nor those on `meta`.

        Raises:
            ValueError: the results differ: an item depends on the rest of its batch.
        """
        like, shape = _weight(self.encoder), self.modality.shape
        if like.device.type == "meta":
            return
        latents = torch.randn(2, self.modality.channels, *shape, generator=torch.Generator().manual_seed(0)).to(like)
        t, grid = torch.tensor([0.2, 0.7], device=like.device), self.modality.slots(shape)

        def round_trip(items: slice) -> tuple[Tensor, Tensor]:
            slots, skip = self.encode(latents[items], t[items])
            return slots, self.decode(slots, skip, grid)

        with torch.no_grad(), eval_mode(self):
            batched, repeated, *alone = [round_trip(slice(*ends)) for ends in ((0, 2), (0, 2), (0, 1), (1, 2))]
        for name, result, same, *items in zip(("encoder", "decoder"), batched, repeated, *alone, strict=True):
            rounding = result.abs().max() * (0.01 if result.dtype in (torch.float32, torch.float64) else 0.05)
            if torch.equal(result, same) and (result - torch.cat(items)).abs().max() > rounding:
                raise ValueError(
                    f"the {name} of {self.modality.name!r} mixes the items of a batch, so that a document would depend on its "
                    "neighbours: let it treat each item by itself"
                )

    def encode(self, latents: Latents, t: Times) -> tuple[Slots, tuple[Any, ...]]:
        """Noised latents at times t -> slot vectors, and the encoder's other outputs as the skip."""
        dtype = _weight(self.encoder).dtype
        slots, skip = self._call_encoder(latents.to(dtype), t.to(torch.promote_types(t.dtype, dtype)))
        if self.on_grid:
            slots = slots.unsqueeze(-1).flatten(2).transpose(1, 2)
        return (slots if self.time_embedding is None else slots + self.time_embedding(t)[:, None]), skip

    def decode(self, slots: Slots, skip: tuple[Any, ...], grid: tuple[int, ...]) -> Latents:
        """The transformer's output at the items' slots, and the skip -> the prediction, shaped like the latents."""
        slots = slots.to(_weight(self.decoder).dtype)
        return self.decoder(slots.transpose(1, 2).reshape(-1, self.width, *grid) if self.on_grid else slots, *skip)


def _weight(module: nn.Module) -> Tensor:
    """The first weight of a module: its device and dtype are the module's."""
    return next((p for p in module.parameters() if p.is_floating_point()), torch.empty(()))


def _time_argument(encoder: nn.Module) -> str | None:
    """The encoder's parameter that takes the times: its name, "" for the second positional one, None if there is none."""
    parameters = list(inspect.signature(encoder.forward).parameters.values())
    plain = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if any(p.name in TIME_NAMES for p in plain[1:2]):
        return ""
    named = (p.name for p in parameters[1:] if p.name in TIME_NAMES and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY))
    return next(named, "" if len([p for p in plain if p.default is p.empty]) > 1 else None)
