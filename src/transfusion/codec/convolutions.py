"""Encoder and decoder of an autoencoder: convolutions between pictures [item, channels, height, width] and features of a
coarser grid.

    patches -> convolution -> [residual blocks -> halve]* -> residual blocks and attention -> norm, SiLU -> convolution

and the decoder the other way round, with a residual block more at each resolution (Esser et al. 2020, arXiv 2012.09841; Rombach
et al. 2022, arXiv 2112.10752). `patch` gathers blocks of pixels into channels first: with one width and patches of 4 pixels,
all work is done on the latents' grid, which on a processor gives most decibels a second (LOG.md).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from transfusion.modality import IMAGE_CHANNELS
from transfusion.nn.layers import HiddenConv2d
from transfusion.nn.unet import GridAttention

EPS = 1e-6
MAX_WIDTH, MAX_BLOCKS = 8192, 64


@dataclass(frozen=True)
class ConvolutionsConfig:
    """Sizes of an encoder and its decoder.

    Args:
        channels: of pictures, 1 (grey) or 3 (colour).
        patch: side, in pixels, of the blocks that are gathered into channels first.
        widths: channels at each resolution, the finest first; each but the last is halved in height and width.
        blocks: residual blocks at each resolution of the encoder; the decoder has one more.
        middle: further residual blocks at the coarsest resolution of both.
        attention: attention layers of both, each between two of the blocks that are nearest to the latents.
        heads: of each attention layer.
        groups: of the group norms; 0: no norm.
        shortcut: a linear map of each block of pixels to its latents stands beside the convolutions, and another one back; both
            begin as one random orthogonal projection, and the convolutions at 0.
    """

    channels: int = 3
    patch: int = 4
    widths: tuple[int, ...] = (128,)
    blocks: int = 2
    middle: int = 0
    attention: int = 0
    heads: int = 1
    groups: int = 8
    shortcut: bool = True

    def __post_init__(self) -> None:
        if self.channels not in IMAGE_CHANNELS:
            raise ValueError(f"pictures have 1 or 3 channels, not {self.channels}")
        if not 1 <= self.patch <= 64:
            raise ValueError(f"patch must be 1 to 64 pixels, not {self.patch}")
        if not self.widths or len(self.widths) > 8 or not all(1 <= width <= MAX_WIDTH for width in self.widths):
            raise ValueError(f"widths are 1 to 8 numbers of channels from 1 to {MAX_WIDTH}, not {self.widths}")
        if not (1 <= self.blocks <= MAX_BLOCKS and 0 <= self.middle <= MAX_BLOCKS and self.heads >= 1):
            raise ValueError(
                f"blocks must be 1 to {MAX_BLOCKS}, middle 0 to {MAX_BLOCKS} and heads at least 1, not {self.blocks}, "
                f"{self.middle} and {self.heads}"
            )
        coarsest = self.widths[len(self.widths) - 1]
        if not 0 <= self.attention < self.blocks + self.middle or coarsest % self.heads:
            raise ValueError(
                f"{self.attention} attention layers of {self.heads} heads need as many blocks and one more at the coarsest "
                f"resolution, which has {self.blocks + self.middle}, and a width ({coarsest}) that the heads divide"
            )
        if self.groups < 0 or (self.groups and any(width % self.groups for width in self.widths)):
            raise ValueError(f"widths {self.widths} must be multiples of groups ({self.groups}); 0 leaves the norms out")

    @property
    def reduction(self) -> int:
        """Pixels along each axis that one position of the coarsest grid stands for."""
        return self.patch * 2 ** (len(self.widths) - 1)


class Residual(nn.Module):
    """x + convolution(norm(convolution(norm(x)))), SiLU before each convolution; it starts as the identity."""

    def __init__(self, proj_in: int, proj_out: int, groups: int) -> None:
        super().__init__()
        self.first_norm, self.first = norm(proj_in, groups), HiddenConv2d(proj_in, proj_out, 3, padding=1)
        self.second_norm, self.second = norm(proj_out, groups), HiddenConv2d(proj_out, proj_out, 3, padding=1)
        self.around = nn.Identity() if proj_in == proj_out else nn.Conv2d(proj_in, proj_out, 1)
        nn.init.zeros_(self.second.weight)
        assert self.second.bias is not None
        nn.init.zeros_(self.second.bias)

    def forward(self, x: Float[Tensor, "item channels height width"]) -> Tensor:
        """[item, channels, height, width] -> [item, channels out, height, width]"""
        h = self.first(F.silu(self.first_norm(x)))
        return self.around(x) + self.second(F.silu(self.second_norm(h)))


class Encoder(nn.Module):
    """Pictures -> features of the coarse grid.

    Args:
        features: channels that come out.
    """

    def __init__(self, config: ConvolutionsConfig, features: int) -> None:
        super().__init__()
        widths, groups = config.widths, config.groups
        layers: list[nn.Module] = [nn.PixelUnshuffle(config.patch)] if config.patch > 1 else []
        layers.append(convolution(config.channels * config.patch**2, widths[0]))
        width = widths[0]
        for level, wider in enumerate(widths):
            is_last = level + 1 == len(widths)
            count = config.blocks + config.middle * is_last
            for block in range(count):
                if is_last and block >= count - config.attention:
                    layers.append(GridAttention(width, config.heads, EPS))
                layers.append(Residual(width, wider, groups))
                width = wider
            if not is_last:
                layers.append(Halve(width))
        self.layers = nn.Sequential(*layers)
        self.norm, self.out = norm(width, groups), convolution(width, features)
        size = config.reduction
        self.shortcut = nn.Conv2d(config.channels, features, size, stride=size, bias=False) if config.shortcut else None

    def forward(self, items: Float[Tensor, "item channels height width"]) -> Float[Tensor, "item features rows columns"]:
        """Pictures, about [-1, 1] -> features; height and width are multiples of the reduction."""
        features = self.out(F.silu(self.norm(self.layers(items))))
        return features if self.shortcut is None else features + self.shortcut(items)


class Decoder(nn.Module):
    """Features of the coarse grid -> pictures.

    Args:
        features: channels that go in.
    """

    def __init__(self, config: ConvolutionsConfig, features: int) -> None:
        super().__init__()
        widths, groups = config.widths[::-1], config.groups
        width = widths[0]
        layers: list[nn.Module] = [convolution(features, width)]
        for level, narrower in enumerate(widths):
            for block in range(config.blocks + 1 + config.middle * (level == 0)):
                layers.append(Residual(width, narrower, groups))
                width = narrower
                if level == 0 and block < config.attention:
                    layers.append(GridAttention(width, config.heads, EPS))
            if level + 1 < len(widths):
                layers.append(Double(width))
        self.layers = nn.Sequential(*layers)
        self.norm, self.out = norm(width, groups), convolution(width, config.channels * config.patch**2)
        self.unpatch = nn.PixelShuffle(config.patch)
        size = config.reduction
        self.shortcut = (
            nn.ConvTranspose2d(features, config.channels, size, stride=size, bias=False) if config.shortcut else None
        )

    def forward(self, features: Float[Tensor, "item features rows columns"]) -> Float[Tensor, "item channels height width"]:
        """Features -> pictures, about [-1, 1]"""
        items = self.unpatch(self.out(F.silu(self.norm(self.layers(features)))))
        return items if self.shortcut is None else items + self.shortcut(features)


def encoder_and_decoder(config: ConvolutionsConfig, *, features: int, latents: int) -> tuple[Encoder, Decoder]:
    """An encoder that gives so many features, and a decoder of the first `latents` of them. With shortcuts, what comes out
    first is a projection of each block of pixels: on emoji 2 dB more after 40 seconds of a core (LOG.md)."""
    encoder, decoder = Encoder(config, features), Decoder(config, latents)
    if encoder.shortcut is not None and decoder.shortcut is not None:
        for module in (encoder.out, decoder.out):
            assert module.bias is not None
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
        with torch.no_grad():
            nn.init.orthogonal_(decoder.shortcut.weight)
            nn.init.zeros_(encoder.shortcut.weight)
            encoder.shortcut.weight[:latents].copy_(decoder.shortcut.weight)
    return encoder, decoder


class Halve(nn.Module):
    """Half the height and width; sizes are even."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x: Float[Tensor, "item channels height width"]) -> Tensor:
        """[item, channels, height, width] -> [item, channels, height / 2, width / 2]"""
        return self.convolution(F.pad(x, (0, 1, 0, 1)))


class Double(nn.Module):
    """Twice the height and width: each position four times, then a convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.convolution = convolution(width, width)

    def forward(self, x: Float[Tensor, "item channels height width"]) -> Tensor:
        """[item, channels, height, width] -> [item, channels, 2 height, 2 width]"""
        return self.convolution(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def norm(width: int, groups: int) -> nn.Module:
    """Group norm; the identity for no groups."""
    return nn.GroupNorm(groups, width, EPS) if groups else nn.Identity()


def convolution(proj_in: int, proj_out: int) -> nn.Conv2d:
    """3 x 3, keeping the size."""
    return nn.Conv2d(proj_in, proj_out, 3, padding=1)
