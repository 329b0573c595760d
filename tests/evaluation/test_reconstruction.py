"""Measures of reconstructions: PSNR, bicubic baselines, use of codes, Fréchet distance, sheets."""

import math
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from transfusion.codec.autoencoder import Autoencoder
from transfusion.codec.convolutions import ConvolutionsConfig
from transfusion.codec.vq import VQConfig
from transfusion.evaluation.reconstruction import Reconstructions, bicubic, psnr, reconstruct, score, sheet


class Blocks(Autoencoder):
    """Mean of each 2 x 2 block, and back."""

    def __init__(self) -> None:
        super().__init__(channels=3, latent_channels=3, reduction=2)

    def to_latents(self, items: Tensor) -> Tensor:
        return torch.nn.functional.avg_pool2d(items, 2)

    def to_items(self, latents: Tensor) -> Tensor:
        return latents.repeat_interleave(2, -1).repeat_interleave(2, -2)


def pictures(count: int = 48, side: int = 16) -> Tensor:
    return torch.nn.functional.interpolate(torch.rand(count, 3, 5, 5) * 2 - 1, size=(side, side), mode="bilinear")


def test_psnr_is_the_mean_of_decibels() -> None:
    a, b = torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4)
    a[0], a[1] = 0.2, 0.02  # 10 log10(4 / 0.04) and 10 log10(4 / 0.0004)
    torch.testing.assert_close(psnr(a, b), torch.tensor([20.0, 40.0], dtype=torch.float64), rtol=0, atol=1e-4)
    assert psnr(b, b).tolist() == pytest.approx([106.02, 106.02], abs=0.01)


def test_scores_and_their_intervals() -> None:
    items, model = pictures(), Blocks()
    found = reconstruct(model, items)
    metrics = score(model, found, seed=0, features={"means": lambda x: x.flatten(2).mean(2)})
    assert set(metrics) == {"psnr", "ssim", "bicubic_psnr", "psnr_gain", "frechet_means"}
    for name in ("psnr", "ssim", "psnr_gain"):
        m = metrics[name]
        assert m.low is not None and m.high is not None and m.low < m.value < m.high and m.count == 48
    assert metrics["psnr"].value == pytest.approx(float(psnr(found.drawn, items).mean()), abs=1e-6)
    assert metrics["psnr_gain"].value == pytest.approx(metrics["psnr"].value - metrics["bicubic_psnr"].value, abs=1e-6)
    assert metrics["frechet_means"].value == pytest.approx(0, abs=1e-9), "blocks keep the mean"
    assert metrics["bicubic_psnr"].note == "bicubic to 8 x 8"
    assert "frechet_means" not in score(
        model, reconstruct(model, items[:20]), seed=0, features={"means": lambda x: x.flatten(1)}
    )


def test_bicubic_takes_as_many_bits_as_ids() -> None:
    settings = VQConfig(ConvolutionsConfig(patch=2, widths=(8,), blocks=1), num_codes=64, code_channels=3)
    model, items = settings.build(), pictures(6)
    drawn, how = bicubic(model, items)
    side, depth = int(how.split()[2]), int(how.split()[-2])
    bits = 64 * 6  # 8 x 8 ids of 6 bits
    assert side * side * 3 * depth <= bits < (side + 1) ** 2 * 3 * depth
    assert float(psnr(drawn, items).mean()) > 10
    found = reconstruct(model, items)
    assert found.ids is not None and torch.equal(found.ids, model.ids(items))
    metrics = score(model, found, seed=0)
    assert metrics["codes_used"].value == len(found.ids.unique()) / 64
    counts = torch.bincount(found.ids.flatten()).double()
    p = counts[counts > 0] / counts.sum()
    assert metrics["perplexity"].value == pytest.approx(math.exp(-float((p * p.log()).sum())))


def test_no_ssim_of_tiny_pictures_and_no_numbers_of_broken_ones() -> None:
    items = pictures(8, 8)
    assert "ssim" not in score(Blocks(), reconstruct(Blocks(), items), seed=0)

    class Broken(Blocks):
        def to_items(self, latents: Tensor) -> Tensor:
            return super().to_items(latents) * torch.nan

    with pytest.raises(ValueError, match="NaN or infinity"):
        reconstruct(Broken(), items)


def test_a_sheet_has_originals_above_reconstructions(tmp_path: Path) -> None:
    items = torch.ones(12, 3, 8, 8) * torch.linspace(-1, 1, 12)[:, None, None, None]
    sheet(Reconstructions(items, -items), tmp_path / "sheet.png", [f"picture {i}" for i in range(12)], count=12)
    image = Image.open(tmp_path / "sheet.png")
    assert image.width == 10 * 78 + 6 and image.getpixel((6 + 36, 6 + 36)) == (0, 0, 0)
