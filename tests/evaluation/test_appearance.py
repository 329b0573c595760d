"""Brightness and the grid of patches: 1 for real images of another sample, and far from 1 with a fault that can just be seen."""

import pytest
import torch
from torch import Tensor

from transfusion.data.sources.digits import read_digits
from transfusion.evaluation.appearance import appearance
from transfusion.evaluation.estimate import Estimate

PATCH = (4, 4)


def natural(count: int, seed: int, side: int = 28) -> Tensor:
    """Pictures as smooth as natural ones of this size: amplitude falls with frequency."""
    noise = torch.randn(count, 1, side, side, generator=torch.Generator().manual_seed(seed))
    frequency = (torch.fft.fftfreq(side)[:, None].square() + torch.fft.rfftfreq(side).square()).sqrt().clamp_min(1 / side)
    images = torch.fft.irfft2(torch.fft.rfft2(noise) / frequency**1.5, s=(side, side))
    return (images * 0.018 - 0.2).clamp(-1, 1)


def holds_one(estimate: Estimate) -> bool:
    assert estimate.low is not None and estimate.high is not None
    return estimate.low <= 1 <= estimate.high


def test_real_images_are_as_real_ones() -> None:
    """Within 5 %, and the interval holds 1 nearly always: 95 % of the time is 17 of 18."""
    held = 0
    for seed in range(6):
        found = appearance(natural(300, 2 * seed), natural(500, 2 * seed + 1), PATCH)
        assert found.keys() == {"brightness", "patch_frequency", "patch_borders"}
        assert all(abs(estimate.value - 1) < 0.05 and estimate.count == 300 for estimate in found.values())
        held += sum(map(holds_one, found.values()))
    assert held >= 16


def test_real_digits_are_as_real_ones() -> None:
    """Also where patches are of two pixels, and the edges of all images are dark."""
    train, test = (read_digits(held_out=held_out).images for held_out in (False, True))
    found = appearance(test, train, (2, 2))
    assert all(abs(estimate.value - 1) < 0.05 and holds_one(estimate) for estimate in found.values())


def test_a_pattern_that_patches_repeat() -> None:
    """A line of 1.5 % of the range along the border of each patch."""
    grid = torch.zeros(28, 28)
    grid[::4] = grid[:, ::4] = 0.03
    found = appearance(natural(300, 0) + grid, natural(500, 1), PATCH)
    assert found["patch_frequency"].low > 1.5  # type: ignore[operator]


def test_seams_between_patches() -> None:
    """Each patch a little brighter or darker than it should be, at random: no power at the patch frequency, but seams."""
    blocks = 0.08 * torch.randn(300, 1, 7, 7, generator=torch.Generator().manual_seed(5))
    found = appearance(natural(300, 0) + blocks.repeat_interleave(4, -1).repeat_interleave(4, -2), natural(500, 1), PATCH)
    assert found["patch_borders"].low > 1.5 and abs(found["patch_frequency"].value - 1) < 0.1  # type: ignore[operator]
    assert holds_one(found["brightness"])


def test_a_pattern_in_patches_of_two_pixels() -> None:
    """Which differ as much inside as across borders."""
    images = natural(300, 0)
    images[..., ::2] += 0.05
    found = appearance(images, natural(500, 1), (2, 2))
    assert found["patch_frequency"].low > 1.5 and abs(found["patch_borders"].value - 1) < 0.1  # type: ignore[operator]


def test_paling() -> None:
    found = appearance(natural(300, 0) * 0.9 + 0.1, natural(300, 1), PATCH)["brightness"]
    expected = (natural(300, 0).mean() * 0.9 + 1.1) / (natural(300, 1).mean() + 1)
    assert found.value == pytest.approx(float(expected), rel=1e-4) and found.low > 1.05  # type: ignore[operator]


def test_formulas_are_those_of_the_docstring() -> None:
    """Patches of 2 x 4 pixels, against sums written out."""
    drawn, real = natural(5, 0, 8), natural(6, 1, 8)
    found = appearance(drawn, real, (2, 4))

    def power(images: Tensor) -> float:
        spectrum = torch.fft.fft2((images.double() + 1) / 2).abs().square() / 64**2
        return float((spectrum[..., ::4, ::2].sum((-1, -2)) - spectrum[..., 0, 0]).mean())

    def seams(images: Tensor) -> float:
        down, right = (images.double().diff(dim=axis).square() for axis in (-2, -1))
        across = down[..., [1, 3, 5], :].mean() + right[..., [3]].mean()
        return float(across / (down[..., [0, 2, 4, 6], :].mean() + right[..., [0, 1, 2, 4, 5, 6]].mean()))

    assert found["patch_frequency"].value == pytest.approx(power(drawn) / power(real))
    assert found["patch_borders"].value == pytest.approx(seams(drawn) / seams(real))


def test_what_cannot_be_compared() -> None:
    images = natural(4, 0)
    assert appearance(images, images, (28, 28)).keys() == {"brightness"} == appearance(images, images, (1, 1)).keys()
    with pytest.raises(ValueError, match="too few"):
        appearance(images[:1], images, PATCH)
    with pytest.raises(ValueError, match="give real ones alike"):
        appearance(images, natural(4, 0, 32), PATCH)
    with pytest.raises(ValueError, match="no light"):
        appearance(images, torch.full_like(images, -1), PATCH)
    black = appearance(torch.full_like(images, -1), images, (28, 28))["brightness"]
    assert black.value == 0 and black.low is None and black.note
