"""What every patcher is: noisy latents and their time -> slot vectors, and the trunk's answer -> a prediction."""

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from transfusion.modality import Modality


class Patcher(nn.Module, ABC):
    """The patcher of one modality. What `encode` keeps beside the slots (`skip`), `decode` gets back: so the noised latents go
    through the way in once, and what was found there is at hand on the way out."""

    @abstractmethod
    def encode(
        self, latents: Float[Tensor, "item channels ..."], t: Float[Tensor, " item"]
    ) -> tuple[Float[Tensor, "item slot width"], Any]:
        """Noisy latents [item, channels, *size] at times t -> slot vectors in raster order, and what is kept."""

    @abstractmethod
    def decode(
        self, slots: Float[Tensor, "item slot width"], skip: Any, grid: tuple[int, ...]
    ) -> Float[Tensor, "item channels ..."]:
        """The trunk's vectors at an item's slots, and what was kept -> the prediction, shaped like the latents."""


def check_features(features: int) -> None:
    """Raises ValueError: features of the time that are not pairs of a sine and a cosine."""
    if features < 2 or features % 2:
        raise ValueError(f"features of the time are sines and cosines, an even number of at least 2, not {features}")


def time_features(t: Float[Tensor, " item"], count: int) -> Float[Tensor, "item count"]:
    """Sinusoids of 1000 t at `count` / 2 frequencies from 1 to 1 / 10000 (Vaswani et al. 2017; the scale is DDPM's T)."""
    half = count // 2
    frequency = torch.exp(-math.log(10000.0) / half * torch.arange(half, dtype=torch.float32, device=t.device))
    angle = 1000.0 * t.float()[:, None] * frequency
    return torch.cat([angle.cos(), angle.sin()], -1)


class TimeEmbedding(nn.Module):
    """Features of the time through a two-layer network."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.features = features
        self.first, self.second = nn.Linear(features, width), nn.Linear(width, width)

    def forward(self, t: Tensor) -> Tensor:
        """[item] -> [item, width]"""
        return self.second(F.silu(self.first(time_features(t, self.features).to(self.first.weight.dtype))))


def sizes(modality: Modality) -> list[tuple[int, ...]]:
    """Sizes that stand for all of a modality's: its own; where they vary, also the smallest, the largest, and one that is
    large on the first axis and small on the others."""
    found = [modality.shape]
    if modality.largest is not None:
        found += [modality.patch, modality.largest, (*modality.largest[:1], *modality.patch[1:])]
    return list(dict.fromkeys(found))


def check(patcher_of: Patcher, modality: Modality, width: int) -> None:
    """A dry run of each of `sizes`: the patcher must give as many slots as the modality says, and latents back.

    Raises:
        ValueError: it does not; the message has both shapes.
    """
    weight = next(patcher_of.parameters(), torch.empty(()))
    for size in sizes(modality):
        grid = modality.slots(size)
        latents = torch.zeros(1, modality.channels, *size, device=weight.device, dtype=weight.dtype)
        with torch.no_grad():
            slots, skip = patcher_of.encode(latents, torch.zeros(1, device=weight.device))
            expected = (1, math.prod(grid), width)
            if tuple(slots.shape) != expected:
                raise ValueError(
                    f"the patcher of {modality.name!r} gives slots {tuple(slots.shape)} for latents {tuple(latents.shape)}, "
                    f"its modality says {expected}: {REMEDY}"
                )
            back = patcher_of.decode(slots, skip, grid)
        if back.shape != latents.shape:
            raise ValueError(
                f"the patcher of {modality.name!r} gives back {tuple(back.shape)} for latents {tuple(latents.shape)}: let its "
                "way out undo what its way in does to the size, and end with the latents' channels"
            )


REMEDY = (
    "one slot of the model's width for each patch, as Modality.slots counts them; change the modality's patch, or what the "
    "patcher puts out"
)
