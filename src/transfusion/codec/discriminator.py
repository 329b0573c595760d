"""A discriminator of patches (Isola et al. 2016, arXiv 1611.07004): pictures in, a score for each of their overlapping patches
out, above 0 where they look real; and its hinge losses (Lim and Ye 2017, arXiv 1705.02894).
"""

from dataclasses import dataclass

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from transfusion.nn.unet import norm

MAX_WIDENING = 8
"""Channels grow to this many times the first width."""


@dataclass(frozen=True)
class DiscriminatorConfig:
    """Sizes of the discriminator.

    Args:
        width: channels after the first convolution; they double with each next one, to 8 times this width.
        layers: convolutions of stride 2; with three, a score sees 70 x 70 pixels.
    """

    width: int = 64
    layers: int = 3

    def __post_init__(self) -> None:
        if self.width < 1 or not 1 <= self.layers <= 8:
            raise ValueError(
                f"a discriminator needs a width of at least 1 and 1 to 8 layers, not {self.width} and {self.layers}"
            )

    def check(self, side: int) -> None:
        """Raise ValueError where pictures of a side are too small for the layers."""
        if side >> self.layers < 4:
            raise ValueError(
                f"a discriminator of {self.layers} layers needs pictures of at least {4 << self.layers} pixels a side, "
                f"not {side}: take fewer layers"
            )


class Discriminator(nn.Module):
    """Convolutions of 4 x 4 pixels. The norm is over each picture alone, so a score does not depend on the rest of the batch.

    Args:
        channels: of the pictures.
    """

    def __init__(self, config: DiscriminatorConfig, channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(channels, config.width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        width = config.width
        for layer in range(1, config.layers + 1):
            wider = config.width * min(2**layer, MAX_WIDENING)
            stride = 2 if layer < config.layers else 1
            layers += [nn.Conv2d(width, wider, 4, stride=stride, padding=1, bias=False), norm(wider, 1e-5), nn.LeakyReLU(0.2)]
            width = wider
        self.layers = nn.Sequential(*layers, nn.Conv2d(width, 1, 4, padding=1))
        for module in self.layers:
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.02)

    def forward(self, items: Float[Tensor, "item channels height width"]) -> Float[Tensor, "item rows columns"]:
        """Scores of the patches of pictures in [-1, 1]"""
        return self.layers(items).squeeze(1)


def generator_loss(scores: Float[Tensor, "item rows columns"]) -> Float[Tensor, " item"]:
    """What the generator minimises, of the scores of its pictures: their negative mean."""
    return -scores.float().mean((1, 2))


def discriminator_loss(
    real: Float[Tensor, "item rows columns"], generated: Float[Tensor, "item rows columns"]
) -> Float[Tensor, " item"]:
    """What the discriminator minimises: half the hinge losses of real scores, which should be above 1, and of generated ones,
    which should be below -1."""
    hinge = F.relu(1 - real.float()).mean((1, 2)) + F.relu(1 + generated.float()).mean((1, 2))
    return hinge / 2
