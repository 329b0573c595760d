"""Patchers: noisy latents and their time -> slot vectors, and the trunk's answer -> a prediction. Trained with the model."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from transfusion.modality import Modality
from transfusion.nn.transformer import Norm


@dataclass(frozen=True)
class LinearPatcher:
    """One linear layer in, one out.

    Args:
        time: where the embedding of the time is added: "width": to the slot's vector, at the model's width (as BAGEL,
            arXiv 2505.14683); "patch": to the patch, before the linear layer (the paper's footnote 6).
        features: sinusoidal features of the time.
    """

    kind: ClassVar[str] = "linear"
    time: Literal["width", "patch"] = "width"
    features: int = 256

    def build(self, modality: Modality, width: int, eps: float) -> "Patching":
        """The module for one modality."""
        return Patching(self, modality, width, eps)


Patcher: TypeAlias = LinearPatcher


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


class Patching(nn.Module):
    """Latents <-> slot vectors of one modality, by linear layers.

    `encode` may hand `decode` something of its own (`skip`); here there is nothing.
    """

    def __init__(self, options: LinearPatcher, modality: Modality, width: int, eps: float) -> None:
        super().__init__()
        self.modality, self.options = modality, options
        self.inward = nn.Linear(modality.patch_width, width)
        self.norm = Norm(width, eps)
        self.outward = nn.Linear(width, modality.patch_width)
        self.time = TimeEmbedding(options.features, width if options.time == "width" else modality.patch_width)
        self.initialise()

    def initialise(self) -> None:
        """Xavier's scale on the way in (as DiT, arXiv 2212.09748): a patch has few numbers, and weights as small as the
        trunk's would leave slots so faint beside the tokens that reading is learned late (LOG.md has the measurement)."""
        nn.init.xavier_normal_(self.inward.weight)
        for layer in (self.outward, self.time.first, self.time.second):
            nn.init.normal_(layer.weight, std=0.02)
        for layer in (self.inward, self.outward, self.time.first, self.time.second):
            nn.init.zeros_(layer.bias)

    def patches(self, latents: Float[Tensor, "item channels ..."]) -> Float[Tensor, "item slot patch"]:
        """Latents as rows of patches, in raster order."""
        sizes = self.modality.patch
        if not sizes:
            return latents[:, None]
        axes = " ".join(f"(g{i} p{i})" for i in range(len(sizes)))
        grid = " ".join(f"g{i}" for i in range(len(sizes)))
        patch = " ".join(f"p{i}" for i in range(len(sizes)))
        return rearrange(latents, f"n c {axes} -> n ({grid}) (c {patch})", **{f"p{i}": s for i, s in enumerate(sizes)})

    def latents(self, patches: Float[Tensor, "item slot patch"], grid: tuple[int, ...]) -> Float[Tensor, "item channels ..."]:
        """The inverse of `patches`."""
        sizes = self.modality.patch
        if not sizes:
            return patches[:, 0]
        axes = " ".join(f"(g{i} p{i})" for i in range(len(sizes)))
        names = " ".join(f"g{i}" for i in range(len(sizes)))
        patch = " ".join(f"p{i}" for i in range(len(sizes)))
        known = {f"p{i}": s for i, s in enumerate(sizes)} | {f"g{i}": g for i, g in enumerate(grid)}
        return rearrange(patches, f"n ({names}) (c {patch}) -> n c {axes}", **known)

    def encode(self, latents: Tensor, t: Float[Tensor, " item"]) -> tuple[Float[Tensor, "item slot width"], None]:
        """Noisy latents [item, channels, *size] at times t -> slot vectors."""
        patches, time = self.patches(latents.to(self.inward.weight.dtype)), self.time(t)[:, None]
        if self.options.time == "patch":
            return self.inward(patches + time), None
        return self.inward(patches) + time, None

    def decode(self, slots: Float[Tensor, "item slot width"], skip: None, grid: tuple[int, ...]) -> Float[Tensor, "item ..."]:
        """The trunk's vectors at an item's slots -> the prediction, shaped like the latents."""
        return self.latents(self.outward(self.norm(slots)), grid)


def check(patching: Patching, modality: Modality, width: int) -> None:
    """One dry run: the patcher must take as many slots as the modality says, and give latents back.

    Raises:
        ValueError: it does not.
    """
    grid = modality.slots(modality.shape)
    weight = next(patching.parameters())
    latents = torch.zeros(1, modality.channels, *modality.shape, device=weight.device, dtype=weight.dtype)
    with torch.no_grad():
        slots, skip = patching.encode(latents, torch.zeros(1, device=weight.device))
        expected = (1, math.prod(grid), width)
        if tuple(slots.shape) != expected:
            raise ValueError(f"the patcher of {modality.name!r} gives slots {tuple(slots.shape)}, its modality says {expected}")
        back = patching.decode(slots, skip, grid)
    if back.shape != latents.shape:
        raise ValueError(f"the patcher of {modality.name!r} gives back {tuple(back.shape)} for latents {tuple(latents.shape)}")
