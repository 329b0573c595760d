"""SSIM and multi-scale SSIM, against torchmetrics."""

import pytest
import torch
from torchmetrics.functional.image import structural_similarity_index_measure

from transfusion.codec.similarity import WEIGHTS, multi_scale_ssim, num_scales, ssim


def pair(side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Smooth pictures, and the same with noise of another strength each."""
    a = torch.nn.functional.interpolate(torch.rand(3, 3, 8, 8) * 2 - 1, size=(side, side + 4), mode="bilinear")
    return a, (a + torch.randn(a.shape) * torch.tensor([0.05, 0.2, 0.6])[:, None, None, None]).clamp(-1, 1)


def reference(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """SSIM and contrast of torchmetrics, of windows inside the pictures: its SSIM itself averages padded ones too."""
    settings = {"data_range": 2.0, "reduction": "none"}
    _, full = structural_similarity_index_measure(a, b, return_full_image=True, **settings)  # type: ignore[arg-type]
    _, contrast = structural_similarity_index_measure(a, b, return_contrast_sensitivity=True, **settings)  # type: ignore[arg-type]
    return full[..., 5:-5, 5:-5].mean((1, 2, 3)), contrast


def test_ssim_is_that_of_torchmetrics() -> None:
    a, b = pair(24)
    torch.testing.assert_close(ssim(a, b), reference(a, b)[0], rtol=0, atol=2e-5)  # measured: 1e-6
    assert ssim(a, b).diff().max() < 0, "more noise is less alike"


@pytest.mark.parametrize(("side", "scales"), [(32, 2), (48, 3)])
def test_multi_scale_ssim_is_that_of_torchmetrics(side: int, scales: int) -> None:
    """Of grey pictures: the power is of each channel's mean."""
    a, b = (x.mean(1, keepdim=True) for x in pair(side))
    assert num_scales(side) == scales
    expected, c, d = torch.ones(3), a, b
    for scale, weight in enumerate(WEIGHTS[:scales]):
        expected = expected * reference(c, d)[scale < scales - 1].clamp_min(0) ** (weight / sum(WEIGHTS[:scales]))
        c, d = (torch.nn.functional.avg_pool2d(x, 2) for x in (c, d))
    torch.testing.assert_close(multi_scale_ssim(a, b), expected, rtol=0, atol=5e-5)
    assert multi_scale_ssim(a, b).diff().max() < 0


def test_equal_pictures_have_1_and_differences_a_finite_gradient() -> None:
    a = torch.rand(2, 3, 32, 32) * 2 - 1
    torch.testing.assert_close(ssim(a, a), torch.ones(2))
    torch.testing.assert_close(multi_scale_ssim(a, a), torch.ones(2))
    for b in (a.clone(), -a, torch.zeros_like(a), torch.ones_like(a)):
        b.requires_grad_(True)
        (1 - multi_scale_ssim(b, a)).sum().backward()
        assert b.grad is not None and b.grad.isfinite().all()


def test_small_pictures_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 11 pixels a side, not 8"):
        ssim(torch.zeros(1, 3, 8, 20), torch.zeros(1, 3, 8, 20))
