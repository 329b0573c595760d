"""The interface of patchers, the embedding of the time, and the check of a new patcher.

encode   noised latents [item, channels, *size] and times [item] -> slot vectors [item, slot, width]
decode   the transformer's output at these slots -> prediction, shaped like the latents
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from transfusion.modality import Modality


class Patcher(nn.Module, ABC):
    """The patcher of one modality. `encode` returns a `skip` beside the slots, features that `decode` takes again, so that the
    noised latents are encoded once (None if there are none)."""

    @abstractmethod
    def encode(
        self, latents: Float[Tensor, "item channels ..."], t: Float[Tensor, " item"]
    ) -> tuple[Float[Tensor, "item slot width"], Any]:
        """Noised latents [item, channels, *size] at times t -> slot vectors in raster order, and the skip."""

    @abstractmethod
    def decode(
        self, slots: Float[Tensor, "item slot width"], skip: Any, grid: tuple[int, ...]
    ) -> Float[Tensor, "item channels ..."]:
        """The transformer's output at the slots of a grid, and the skip -> the prediction, shaped like the latents."""


def check_time_features(count: int) -> None:
    """Raises ValueError if features of the time are not pairs of a sine and a cosine."""
    if count < 2 or count % 2:
        raise ValueError(f"time_features are sines and cosines, an even number of at least 2, not {count}")


class TimeEmbedding(nn.Module):
    """Sinusoidal features of t through a two-layer MLP.

    The features are sinusoids of 1000 t at `features` / 2 frequencies from 1 to 1 / 10000 (Vaswani et al. 2017; the scale is
    DDPM's T).
    """

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


def dry_run_items(modality: Modality, like: Tensor) -> Iterator[tuple[Tensor, Tensor, tuple[int, ...]]]:
    """Latents of zeros, t = 0 and the grid, for sizes that represent all of a modality's: its default; if sizes vary, also the
    smallest, the largest, and a size that is large on the first axis and small on the others."""
    sizes = [modality.shape]
    if modality.largest is not None:
        sizes += [modality.patch, modality.largest, (*modality.largest[:1], *modality.patch[1:])]
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
