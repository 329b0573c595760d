"""What the eye sees first: are drawn images as bright as real ones, and does a grid of blocks lie over them?

Each is a number of the drawn images over that of the real ones, with an interval for both sets being samples: 1 is as real.
Light is (pixel + 1) / 2, clamped to [0, 1], as the images are shown; patches are p x q pixels.

brightness       the mean of all light
patch_frequency  a pattern that every patch of an image repeats: the variance of the image's mean patch over its p x q pixels.
                 By Parseval this is the power sum |X(k / p, l / q)|^2 / pixels^2 at the frequencies k / p and l / q cycles a
                 pixel, (k, l) != (0, 0), with X the image's discrete Fourier transform; mean over channels
patch_borders    seams between patches: the mean squared difference of neighbouring pixels on two sides of a patch border, over
                 that of neighbours inside a patch; mean over axes

The last two complete each other: where every patch has a brightness of its own, the mean patch shows nothing of it, and where
patches of two pixels repeat a pattern, they differ as much inside as across their borders.
"""

import math

import torch
from einops import reduce
from jaxtyping import Float
from torch import Tensor

from transfusion.evaluation.estimate import Estimate

Images = Float[Tensor, "image channels height width"]


def appearance(
    drawn: Float[Tensor, "drawn channels height width"], real: Float[Tensor, "real _ _ _"], patch: tuple[int, ...]
) -> dict[str, Estimate]:
    """`brightness`, `patch_frequency` and `patch_borders` of drawn images over real ones, both in [-1, 1]. The last two are
    left out where there are no two patches along any axis, or patches of one pixel.

    Args:
        patch: pixels of a patch along height and width; images are whole patches.

    Raises:
        ValueError: images of two sizes, fewer than two of each, or real ones without any light or power to compare with.
    """
    if drawn.shape[1:] != real.shape[1:]:
        raise ValueError(
            f"drawn images are {tuple(drawn.shape[1:])} and real ones {tuple(real.shape[1:])}: give real ones alike"
        )
    if min(len(drawn), len(real)) < 2:
        raise ValueError(f"{len(drawn)} drawn and {len(real)} real images are too few to compare: two of each are needed")
    sets = [_light(images) for images in (drawn, real)]
    ones = [torch.ones(len(light), dtype=torch.float64) for light in sets]
    metrics = {"brightness": _ratio([light.mean((1, 2, 3)) for light in sets], ones)}
    axes = [axis for axis, size in ((-2, patch[0]), (-1, patch[1])) if 1 < size < sets[0].shape[axis]]
    if axes:
        metrics["patch_frequency"] = _ratio([_pattern(light, patch) for light in sets], ones)
        across = [[_differences(light, axis, patch[axis], border=True) for axis in axes] for light in sets]
        inside = [[_differences(light, axis, patch[axis], border=False) for axis in axes] for light in sets]
        metrics["patch_borders"] = _ratio([_total(x) for x in across], [_total(x) for x in inside])
    return metrics


def _light(images: Images) -> Images:
    return (images.detach().cpu().double().clamp(-1, 1) + 1) / 2


def _pattern(light: Images, patch: tuple[int, ...]) -> Float[Tensor, " image"]:
    """Variance of the mean patch over its pixels, mean over channels."""
    mean = reduce(light, "image c (row y) (column x) -> image c (y x)", "mean", y=patch[0], x=patch[1])
    return mean.var(-1, correction=0).mean(-1)


def _differences(light: Images, axis: int, patch: int, *, border: bool) -> Float[Tensor, " image"]:
    """Mean squared differences of neighbours along an axis, across patch borders or inside patches."""
    squares = light.diff(dim=axis).square().movedim(axis, -1)
    at_border = torch.arange(1, squares.shape[-1] + 1) % patch == 0
    return squares[..., at_border == border].mean((1, 2, 3))


def _total(of_axes: list[Tensor]) -> Tensor:
    return torch.stack(of_axes).sum(0)


def _ratio(values: list[Tensor], over: list[Tensor]) -> Estimate:
    """mean(values) / mean(over) of the drawn images, over the same of the real ones; the interval by the delta method on its
    logarithm."""
    means = [(float(a.mean()), float(b.mean())) for a, b in zip(values, over, strict=True)]
    if min(means[1]) <= 0 or means[0][1] <= 0:
        raise ValueError("the images have no light, or no differences between pixels, to compare")
    (a, b), (real_a, real_b) = means
    value = a / b * real_b / real_a
    if not a:
        return Estimate(0.0, None, None, len(values[0]), "the drawn images have none of it")
    errors = [float((x / m - y / n).var() / len(x)) for x, y, (m, n) in zip(values, over, means, strict=True)]
    return Estimate.normal(0.0, sum(errors) ** 0.5, len(values[0])).map(lambda log: value * math.exp(log))
