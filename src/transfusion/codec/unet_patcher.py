"""The U-Net patcher (arXiv 2408.11039, section 3): down blocks from latents to slots, up blocks from slots to latents.

    latents --down--> features at every size --> slots --> transformer --> slots --up--> prediction
                          \\____________ the long skip __________________________/

The noised latents are encoded once; every up block takes the transformer's output and the features of the same size.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transfusion.codec.patcher import Latents, Patcher, Slots, TimeEmbedding, Times, check_time_features
from transfusion.modality import Modality
from transfusion.nn import unet

MAX_BLOCKS = 100


@dataclass(frozen=True)
class UNetPatcherConfig:
    """Residual convolution blocks at each size from the latents' to the grid's; a patch of 4 is two steps of 2. For a modality
    without axes (a vector) the convolutions are linear layers.

    Args:
        channels: of the features at the latents' size; doubled at every step down, up to the model's width (None: a quarter
            of the model's width).
        blocks: residual blocks at each size, down and up.
        attention: heads of self-attention over an item's slots, after the last down block and before the first up block
            (0: none).
        time_features: number of sinusoidal features of t, whose embedding is added in each block.

    Raises:
        ValueError: a number out of its range; in `build`, more than 3 axes, or heads that do not divide the channels.
    """

    kind: ClassVar[str] = "unet"
    channels: int | None = None
    blocks: int = 1
    attention: int = 0
    time_features: int = 256

    def __post_init__(self) -> None:
        check_time_features(self.time_features)
        if (self.channels is not None and self.channels < 1) or not 1 <= self.blocks <= MAX_BLOCKS or self.attention < 0:
            numbers = f"{self.channels}, {self.blocks} and {self.attention}"
            sizes = f"channels and blocks of at least 1 (blocks: at most {MAX_BLOCKS}) and 0 or more attention heads"
            raise ValueError(f"a U-Net needs {sizes}, not {numbers}")

    def build(self, modality: Modality, width: int, eps: float) -> "UNetPatcher":
        """The module for one modality. Raises ValueError for more axes than the U-Net takes."""
        if (axes := len(modality.shape)) > unet.AXES:
            too_many = f"modality {modality.name!r} has {axes} axes, the U-Net takes up to {unet.AXES}"
            raise ValueError(f"{too_many}: give it a linear patcher (ModelConfig.patchers)")
        return UNetPatcher(self, modality, width, eps)


class UNetPatcher(Patcher):
    """Latents <-> slot vectors of one modality, by a U-Net around the transformer."""

    def __init__(self, config: UNetPatcherConfig, modality: Modality, width: int, eps: float) -> None:
        super().__init__()
        axes, steps = len(modality.shape), unet.stages(modality.patch)
        base = max(1, width // 4) if config.channels is None else config.channels
        counts = [max(base, min(base * 2**i, width)) for i in range(len(steps) + 1)]
        deepest, time = counts[-1], 4 * base
        self.time_embedding = TimeEmbedding(config.time_features, time)

        def blocks(proj_in: int, proj_out: int) -> nn.ModuleList:
            sizes = [proj_in] + [proj_out] * config.blocks
            return nn.ModuleList(unet.Residual(axes, a, b, time, eps) for a, b in pairwise(sizes))

        def attention() -> nn.Module:
            return unet.GridAttention(deepest, config.attention, eps) if config.attention else nn.Identity()

        self.first = unet.convolution(axes, modality.channels, base)
        self.down = nn.ModuleList(blocks(count, count) for count in counts)
        self.shrink = nn.ModuleList(unet.shrink(f, a, b) for f, (a, b) in zip(steps, pairwise(counts), strict=True))
        self.down_attention = attention()
        self.inward_norm, self.proj_in = unet.norm(deepest, eps), nn.Linear(deepest, width)

        self.proj_out = nn.Linear(width, deepest)
        self.up = nn.ModuleList(blocks(2 * count, count) for count in counts)
        self.up_attention = attention()
        self.grow = nn.ModuleList(unet.grow(f, b, a) for f, (a, b) in zip(steps, pairwise(counts), strict=True))
        self.last_norm, self.last = unet.norm(base, eps), unet.convolution(axes, base, modality.channels)
        self.vector = axes == 0
        unet.init_weights(self)
        self.init_weights()

    def init_weights(self) -> None:
        """Slots of the linear patcher's scale (see there), and a first prediction near 0."""
        nn.init.xavier_normal_(self.proj_in.weight)
        for layer in (self.last, self.time_embedding.first, self.time_embedding.second):
            assert isinstance(layer.weight, Tensor)
            nn.init.normal_(layer.weight, std=0.02)

    def encode(self, latents: Latents, t: Times) -> tuple[Slots, tuple[list[Tensor], Tensor]]:
        """Noised latents at times t -> slot vectors; the skip: features at every size, and the time's embedding."""
        time = self.time_embedding(t)
        latents = latents.to(self.proj_in.weight.dtype)
        x = self.first(latents.unsqueeze(-1) if self.vector else latents)
        features: list[Tensor] = []
        for level, blocks in enumerate(self.down):
            x = self.shrink[level - 1](x) if level else x
            for block in blocks:  # type: ignore[attr-defined]
                x = block(x, time)
            x = self.down_attention(x) if level == len(self.shrink) else x
            features.append(x)
        slots = self.proj_in(self.inward_norm(x).flatten(2).transpose(1, 2))
        return slots, (features, time)

    def decode(self, slots: Slots, skip: tuple[list[Tensor], Tensor], grid: tuple[int, ...]) -> Latents:
        """The transformer's output at the slots of a grid, and the skip -> the prediction, shaped like the latents."""
        features, time = skip
        x = self.proj_out(slots).transpose(1, 2).unflatten(2, grid or (1,))
        for level in reversed(range(len(features))):
            x = torch.cat([x.to(features[level].dtype), features[level]], 1)
            for index, block in enumerate(self.up[level]):  # type: ignore[arg-type]
                x = block(x, time)
                x = self.up_attention(x) if index == 0 and level == len(self.grow) else x
            x = self.grow[level - 1](x) if level else x
        out: Any = self.last(F.silu(self.last_norm(x)))
        return out[..., 0] if self.vector else out
