"""How alike two pictures are to the eye, without any weights: SSIM and multi-scale SSIM.

For windows of 11 x 11 pixels under a Gaussian of 1.5 pixels, with means m, variances v and covariance c of two pictures a, b:

    luminance = (2 m_a m_b + C1) / (m_a^2 + m_b^2 + C1)        C1 = (0.01 range)^2
    contrast = (2 c + C2) / (v_a + v_b + C2)                    C2 = (0.03 range)^2
    SSIM = mean over windows and channels of luminance * contrast

(Wang et al. 2004). Multi-scale SSIM (Wang et al. 2003) halves the pictures between scales, takes the contrast of all but the
last and the SSIM of the last, each to the power of its weight.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

WINDOW, SIGMA = 11, 1.5
RANGE = 2.0
"""Pixels lie in [-1, 1]."""
C1, C2 = (0.01 * RANGE) ** 2, (0.03 * RANGE) ** 2
WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Of up to five scales, the finest first."""

Items = Float[Tensor, "item channels height width"]


def ssim(a: Items, b: Items) -> Float[Tensor, " item"]:
    """SSIM of each pair of pictures in [-1, 1]; 1 for equal ones. Raises ValueError for sides below 11 pixels."""
    luminance, contrast = _windows(a, b)
    return (luminance * contrast).mean((1, 2, 3))


def multi_scale_ssim(a: Items, b: Items) -> Float[Tensor, " item"]:
    """Multi-scale SSIM of each pair of pictures in [-1, 1], at as many of the five scales as leave 11 pixels of a side, their
    weights scaled to a sum of 1; 1 for equal ones. Raises ValueError for sides below 11 pixels."""
    scales = num_scales(min(a.shape[-2:]))
    total = sum(WEIGHTS[:scales])
    result = torch.ones(len(a), device=a.device)
    for scale, weight in enumerate(WEIGHTS[:scales]):
        luminance, contrast = _windows(a, b)
        similar = luminance * contrast if scale == scales - 1 else contrast
        # anticorrelated windows have no power; where the mean is 0, the power's gradient would be infinite
        result = result * similar.mean((2, 3)).clamp_min(1e-6).pow(weight / total).mean(1)
        a, b = F.avg_pool2d(a, 2), F.avg_pool2d(b, 2)
    return result


def num_scales(side: int) -> int:
    """Scales of multi-scale SSIM for pictures whose shorter side has so many pixels. Raises ValueError for fewer than 11."""
    if side < WINDOW:
        raise ValueError(f"SSIM needs pictures of at least {WINDOW} pixels a side, not {side}: use larger ones")
    return sum(side >> scale >= WINDOW for scale in range(len(WEIGHTS)))


def _windows(a: Items, b: Items) -> tuple[Tensor, Tensor]:
    """Luminance and contrast of all windows that lie inside the pictures, [item, channels, rows, columns] each."""
    num_scales(min(a.shape[-2:]))
    with torch.autocast(a.device.type, enabled=False):
        a, b = a.float(), b.float()
        down, across = _gaussian(a.shape[-2], a.device), _gaussian(a.shape[-1], a.device)
        stacked = torch.stack([a, b, a * a, b * b, a * b])
        mean_a, mean_b, square_a, square_b, product = (down @ stacked @ across.T).unbind(0)
        luminance = (2 * mean_a * mean_b + C1) / (mean_a**2 + mean_b**2 + C1)
        variances = square_a - mean_a**2 + square_b - mean_b**2
        contrast = (2 * (product - mean_a * mean_b) + C2) / (variances + C2)
    return luminance, contrast


def _gaussian(size: int, device: torch.device) -> Float[Tensor, "window position"]:
    """The weights of each window along an axis, as a matrix: a product with it is fast where a convolution of one channel is
    not."""
    offsets = torch.arange(WINDOW, device=device, dtype=torch.float32) - WINDOW // 2
    weights = torch.exp(-(offsets**2) / (2 * SIGMA**2))
    positions = torch.arange(size - WINDOW + 1, device=device)
    matrix = torch.zeros(len(positions), size, device=device)
    for offset, weight in enumerate(weights / weights.sum()):
        matrix[positions, positions + offset] = weight
    return matrix
