"""Which of some real images is nearest to a drawn one: images by their content, where there are too many names for classes.

Two spaces, Float[image, channels, height, width] in [-1, 1] -> Float32[image, feature]:

pixels       the mean of each 4 x 4 pixels: colour and place, not fine lines; distance is Euclidean
mobilenet    where a file of weights is given (`--features FILE`, torchvision's mobilenet_v2-*.pth): the mean over positions of
             MobileNetV2's last block (Sandler et al. 2018, arXiv 1801.04381), of length 1
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from transfusion.codec.perceptual import imagenet, load_features
from transfusion.evaluation import digest

BLOCK, SIDE, BATCH = 4, 128, 64
"""Pixels of a block along an axis; side to which images are enlarged for MobileNetV2; images per forward pass."""

Images = Float[Tensor, "image channels height width"]


@runtime_checkable
class Space(Protocol):
    """A space in which images are compared."""

    @property
    def name(self) -> str: ...

    @property
    def digest(self) -> str:
        """Of its weights; empty where it has none."""
        ...

    def __call__(self, images: Images) -> Float[Tensor, "image feature"]: ...


class Pixels:
    """Means of blocks of pixels."""

    name, digest = "pixels", ""

    def __call__(self, images: Images) -> Float[Tensor, "image feature"]:
        """Float32[image, feature]"""
        return F.avg_pool2d(images.float().clamp(-1, 1), BLOCK, ceil_mode=True).flatten(1)


class MobileNetFeatures:
    """The last block of MobileNetV2. Raises ValueError: torchvision is missing, or the file is, or holds something else."""

    name = "mobilenet"

    def __init__(self, path: str | Path) -> None:
        self._layers, _ = load_features(Path(path))
        self._layers.eval().requires_grad_(False)
        self.digest = digest.of_files([Path(path)])

    @torch.no_grad()
    def __call__(self, images: Images) -> Float[Tensor, "image feature"]:
        """Float32[image, feature], of length 1."""
        found = []
        for batch in images.float().clamp(-1, 1).split(BATCH):
            enlarged = F.interpolate(batch, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
            found.append(F.normalize(self._layers(imagenet(enlarged)).mean((2, 3)), dim=1))
        return torch.cat(found)


def spaces(features: str) -> list[Space]:
    """Pixels, and MobileNetV2 where its file is given. Raises ValueError as `MobileNetFeatures`."""
    return [Pixels(), *([MobileNetFeatures(features)] if features else [])]


def nearest(
    drawn: Float[Tensor, "drawn feature"], real: Float[Tensor, "real feature"], among: Sequence[Sequence[int]] | None = None
) -> Int[Tensor, " drawn"]:
    """For each drawn image the index of the nearest real one; of those listed for it in `among`, where that is given."""
    distances = torch.cdist(drawn.double(), real.double())
    if among is not None:
        allowed = torch.full_like(distances, torch.inf)
        for row, indices in enumerate(among):
            allowed[row, list(indices)] = 0
        distances = distances + allowed
    return distances.argmin(1)
