"""How well an autoencoder keeps pictures: held-out ones in, estimates and a sheet of reconstructions out.

psnr             20 log10(range / root mean squared error) of each picture, mean over pictures, in decibels
ssim             structural similarity (`codec/similarity.py`), mean over pictures
frechet          Fréchet distance between features of pictures and of their reconstructions, under a kept extractor
bicubic_psnr     of a bicubic reduction to as many numbers as the latents of a VAE, or to as many bits as the ids of a VQ: the
                 depth of 4 to 8 bits a number that is best; what an autoencoder must be above
psnr_gain        psnr - bicubic_psnr, of the same pictures
codes_used       share of the codebook that stands in the ids of any picture; perplexity: e to the entropy of their frequencies

All intervals are over pictures.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from transfusion.codec.autoencoder import Autoencoder
from transfusion.codec.similarity import WINDOW, ssim
from transfusion.codec.vq import VQ
from transfusion.evaluation.distance import frechet
from transfusion.evaluation.estimate import Estimate
from transfusion.evaluation.image_grid import image_grid

BATCH = 32
"""Pictures per pass."""
DEPTHS = (8, 7, 6, 5, 4)
"""Bits a number that a bicubic reduction is kept in."""
LEAST_ERROR = 1e-10
"""Mean squared error below which PSNR does not rise: 106 dB."""

Items = Float[Tensor, "item channels height width"]
Features = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Reconstructions:
    """Pictures, what an autoencoder makes of them, clamped to [-1, 1], and their ids where it has a codebook."""

    items: Items
    drawn: Items
    ids: Int[Tensor, "item rows columns"] | None = None


@torch.no_grad()
def reconstruct(autoencoder: Autoencoder, items: Items) -> Reconstructions:
    """Encode and decode pictures in [-1, 1], in batches, on the device of the weights; results are on the CPU. Raises
    ValueError as `Autoencoder.encode`, and for reconstructions that are not finite."""
    drawn, ids = [], []
    for batch in items.split(BATCH):
        batch = batch.to(autoencoder.latent_mean.device)
        if isinstance(autoencoder, VQ):
            ids.append(autoencoder.ids(batch).cpu())
        drawn.append(autoencoder.decode(autoencoder.encode(batch)).cpu())
    pictures = torch.cat(drawn)
    if not pictures.isfinite().all():
        raise ValueError("reconstructions hold NaN or infinity: the autoencoder's weights are damaged")
    return Reconstructions(items.cpu(), pictures.clamp(-1, 1), torch.cat(ids) if ids else None)


def score(
    autoencoder: Autoencoder, found: Reconstructions, *, seed: int, features: Mapping[str, Features] | None = None
) -> dict[str, Estimate]:
    """The metrics of reconstructions that can be measured: SSIM from 11 pixels a side on, distances of at least 40 pictures.

    Args:
        features: extractors by name, [item, channels, height, width] in [-1, 1] -> [item, feature]; their distances are
            `frechet_NAME`.
        seed: of the intervals.
    """
    items, drawn = found.items, found.drawn
    psnrs, (reduced, note) = psnr(drawn, items), bicubic(autoencoder, items)
    base = psnr(reduced, items)
    metrics = {"psnr": Estimate.mean(psnrs.tolist(), seed=seed)}
    if min(items.shape[-2:]) >= WINDOW:
        similar = torch.cat([ssim(a, b) for a, b in zip(drawn.split(BATCH), items.split(BATCH), strict=True)])
        metrics["ssim"] = Estimate.mean(similar.tolist(), seed=seed)
    baseline = Estimate.mean(base.tolist(), seed=seed)
    metrics["bicubic_psnr"] = Estimate(baseline.value, baseline.low, baseline.high, baseline.count, note)
    metrics["psnr_gain"] = Estimate.mean((psnrs - base).tolist(), seed=seed)
    for name, extract in (features or {}).items():
        real, made = extract(items).double(), extract(drawn).double()

        def distance(chosen: np.ndarray, real: Tensor = real, made: Tensor = made) -> float:
            index = torch.from_numpy(chosen)
            return frechet(real[index], made[index])

        if len(items) >= 40:
            metrics[f"frechet_{name}"] = Estimate.jackknife(distance, len(items))
    if isinstance(autoencoder, VQ) and found.ids is not None:
        metrics |= _codes(found.ids, autoencoder.num_codes)
    return metrics


def psnr(drawn: Items, items: Items) -> Float[Tensor, " item"]:
    """Decibels of each picture, both in [-1, 1]."""
    pairs = zip(drawn.split(BATCH), items.split(BATCH), strict=True)
    errors = torch.cat([(a.double() - b.double()).square().flatten(1).mean(1) for a, b in pairs])
    return 10 * torch.log10(4 / errors.clamp_min(LEAST_ERROR))


def bicubic(autoencoder: Autoencoder, items: Items) -> tuple[Items, str]:
    """Pictures reduced to as many numbers as their latents (of a VQ: to as many bits as their ids), and enlarged again, both by
    bicubic interpolation; and how."""
    shape = autoencoder.latent_shape(items.shape[-2:])
    if not isinstance(autoencoder, VQ):
        reduced, size = _reduced(items, math.prod(shape))
        return _enlarged(reduced, items), f"bicubic to {size[0]} x {size[1]}"
    bits = autoencoder.bits * math.prod(shape[1:])
    best: tuple[float, Tensor, str] | None = None
    for depth in DEPTHS:
        reduced, size = _reduced(items, int(bits / depth))
        levels = 2**depth - 1
        rounded = ((reduced.clamp(-1, 1) + 1) / 2 * levels).round() / levels * 2 - 1
        enlarged = _enlarged(rounded, items)
        value = float(psnr(enlarged, items).mean())
        if best is None or value > best[0]:
            best = value, enlarged, f"bicubic to {size[0]} x {size[1]} of {depth} bits"
    assert best is not None
    return best[1:]


def _reduced(items: Items, numbers: int) -> tuple[Tensor, tuple[int, int]]:
    """Pictures of the largest size of their shape with at most so many numbers."""
    channels, height, width = items.shape[1:]
    scale = min(math.sqrt(numbers / (channels * height * width)), 1.0)
    size = max(int(height * scale), 1), max(int(width * scale), 1)
    return F.interpolate(items, size=size, mode="bicubic", antialias=True, align_corners=False), size


def _enlarged(reduced: Tensor, items: Items) -> Items:
    size = (items.shape[-2], items.shape[-1])
    return F.interpolate(reduced, size=size, mode="bicubic", align_corners=False).clamp(-1, 1)


def _codes(ids: Int[Tensor, "item rows columns"], num_codes: int) -> dict[str, Estimate]:
    counts = torch.bincount(ids.flatten(), minlength=num_codes).double()
    frequencies = counts[counts > 0] / counts.sum()
    perplexity, note = float((-(frequencies * frequencies.log()).sum()).exp()), "no interval: a number of this set of pictures"
    used = float((counts > 0).double().mean())
    return {
        "codes_used": Estimate(used, None, None, len(ids), note),
        "perplexity": Estimate(perplexity, None, None, len(ids), note),
    }


def sheet(found: Reconstructions, path: Path, titles: Sequence[str], *, count: int = 20) -> None:
    """Write a PNG of the first pictures: each row of originals, with their titles, above one of what became of them, with
    decibels."""
    decibels = psnr(found.drawn, found.items)
    images: list[Tensor] = []
    captions: list[str] = []
    columns = 10
    for first in range(0, min(count, len(found.items)), columns):
        row = range(first, min(first + columns, count, len(found.items)))
        empty = [torch.ones_like(found.items[0])] * (columns - len(row))
        images += [found.items[i] for i in row] + empty + [found.drawn[i] for i in row] + empty
        blank = [""] * len(empty)
        captions += [titles[i] for i in row] + blank + [f"{float(decibels[i]):.1f} dB" for i in row] + blank
    side = max(72, max(found.items.shape[-2:]))
    image_grid(images, captions, path, columns=columns, side=side)
