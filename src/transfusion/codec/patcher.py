"""The interface of patchers, noised latents <-> slot vectors; the embedding of the time; the check of a new patcher."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from transfusion.modality import Modality

Latents: TypeAlias = Float[Tensor, "item channels ..."]
Times: TypeAlias = Float[Tensor, " item"]
Slots: TypeAlias = Float[Tensor, "item slot width"]


class Patcher(nn.Module, ABC):
    """The patcher of one modality. `encode` returns a `skip` beside the slots, features that `decode` takes again, so that the
    noised latents are encoded once (None if there are none)."""

    @abstractmethod
    def encode(self, latents: Latents, t: Times) -> tuple[Slots, Any]:
        """Noised latents [item, channels, *size] at times t -> slot vectors in raster order, and the skip."""

    @abstractmethod
    def decode(self, slots: Slots, skip: Any, grid: tuple[int, ...]) -> Latents:
        """The transformer's output at the slots of a grid, and the skip -> the prediction, shaped like the latents."""


def check_time_features(count: int) -> None:
    """Raises ValueError if features of the time are not pairs of a sine and a cosine."""
    if count < 2 or count % 2:
        raise ValueError(f"time_features are sines and cosines, an even number of at least 2, not {count}")


class TimeEmbedding(nn.Module):
    """Sinusoids of 1000 t at `features` / 2 frequencies from 1 to 1 / 10000 (Vaswani et al. 2017; the scale is DDPM's T),
    through a two-layer MLP."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.features = features
        self.first, self.second = nn.Linear(features, width), nn.Linear(width, width)

    def forward(self, t: Float[Tensor, " item"]) -> Float[Tensor, "item width"]:
        """Embeddings of the times."""
        half = self.features // 2
        frequency = torch.exp(-math.log(10000.0) / half * torch.arange(half, dtype=torch.float32, device=t.device))
        angle = 1000.0 * t.float()[:, None] * frequency
        features = torch.cat([angle.cos(), angle.sin()], -1)
        return self.second(F.silu(self.first(features.to(self.first.weight.dtype))))


MAX_DRY_RUN = 1 << 14
"""Slots of a dry run at most: at width 2,048 these are 128 MiB."""


def dry_run_items(modality: Modality, like: Tensor) -> Iterator[tuple[Tensor, Tensor, tuple[int, ...]]]:
    """Latents of zeros, t = 0 and the grid, for sizes that represent all of a modality's: its default; if sizes vary, also the
    smallest, the largest (or where that has more than `MAX_DRY_RUN` slots, one that is the largest on each axis in turn), and a
    size that is large on the first axis and small on the others."""
    sizes = [modality.shape]
    if modality.largest is not None:
        long = [
            tuple(
                most if i == axis else step for i, (most, step) in enumerate(zip(modality.largest, modality.patch, strict=True))
            )
            for axis in range(len(modality.patch))
        ]
        whole = math.prod(modality.extents) <= MAX_DRY_RUN
        sizes += [modality.patch, *([modality.largest] if whole else long), *long[:1]]
    for size in dict.fromkeys(sizes):
        latents = torch.zeros(1, modality.channels, *size, device=like.device, dtype=like.dtype)
        yield latents, torch.zeros(1, device=like.device), modality.slots(size)


def wrong_slots(module: str, slots: Tensor, latents: Tensor, *declared: tuple[int, ...]) -> ValueError:
    """The error for slots of another shape than the modality declares."""
    return ValueError(
        f"the {module} gives {tuple(slots.shape)} for latents {tuple(latents.shape)}, its modality declares "
        f"{' or '.join(map(str, declared))}: one slot of the model's width for each patch, as Modality.slots counts them; "
        "change the modality's patch, or the patcher's output"
    )


@torch.no_grad()
def check_slots(patcher: Patcher, modality: Modality, width: int) -> None:
    """A dry run: the patcher must give as many slots as its modality declares, and the latents' shape back.

    Raises:
        ValueError: it does not; the message names both shapes.
    """
    for latents, t, grid in dry_run_items(modality, next(patcher.parameters(), torch.empty(()))):
        slots, skip = patcher.encode(latents, t)
        if slots.shape != (expected := (1, math.prod(grid), width)):
            raise wrong_slots(f"patcher of {modality.name!r}", slots, latents, expected)
        prediction = patcher.decode(slots, skip, grid)
        if prediction.shape != latents.shape:
            raise ValueError(
                f"the patcher of {modality.name!r} gives back {tuple(prediction.shape)} for latents {tuple(latents.shape)}: "
                "let decode undo what encode does to the size, and end with the latents' channels"
            )
