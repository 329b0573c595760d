"""Distances between two sets of images: features Float[sample, feature] of each in, numbers out, all in float64.

frechet            compares means and covariances          0: the same Gaussian; biased upwards for few samples
kernel             compares moments up to the third        0: the same moments; unbiased, so it can be negative
precision_recall   samples inside the other set's support  precision: drawn ones look real; recall: all real modes are drawn
nearest            the closest training image of each      near 0: a copy

All raise ValueError for sets smaller than they need, features of different widths, NaN or infinity, and numbers below 1.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from transfusion import rng
from transfusion.evaluation.estimate import Estimate

CHUNK = 256
"""Samples whose distances to all others are in memory at a time."""


def frechet(a: Tensor, b: Tensor) -> float:
    """Fréchet distance of the Gaussians through two sets of features (Heusel et al. 2017), squared as there.

    |mean a - mean b|^2 + tr(A + B - 2 (A B)^(1/2)), A and B the covariances. With A = X'X and B = Y'Y the last trace is the sum
    of the singular values of X Y', which needs no matrix square root and stays exact for covariances without full rank.
    """
    a, b = _checked(a, b, 2)
    mean = (a.mean(0) - b.mean(0)).square().sum()
    # a centred set / sqrt(n - 1) is a factor of its covariance; its R is a smaller one
    x, y = (torch.linalg.qr((s - s.mean(0)) / (len(s) - 1) ** 0.5, mode="r").R for s in (a, b))
    return max(float(mean + x.square().sum() + y.square().sum() - 2 * torch.linalg.svdvals(x @ y.T).sum()), 0.0)


@dataclass(frozen=True)
class Kernel:
    """A kernel distance: mean and standard deviation over pairs of subsets, and the distance of the full sets."""

    mean: float
    std: float
    full: float


def kernel(a: Tensor, b: Tensor, *, subsets: int = 100, size: int = 1000, seed: int) -> Kernel:
    """Kernel distance: unbiased squared MMD (Gretton et al. 2012, equation 3) under the kernel (x . y / width + 1)^3 (Binkowski
    et al. 2018).

    Args:
        subsets: number of pairs of subsets, each drawn without replacement.
        size: samples of a subset; both sets have as many or more.
        seed: random seed of the subsets.

    Raises:
        ValueError: fewer samples than a subset has, or sets of other widths.
    """
    if subsets < 1 or size < 2:
        raise ValueError(f"{subsets} subsets of {size} samples: take at least 1 subset, of at least 2 samples")
    a, b = _checked(a, b, size)
    values = []
    for number in range(subsets):
        generator = rng.generator(rng.key(seed, "kernel distance", number))
        x, y = (s[torch.from_numpy(generator.choice(len(s), size, replace=False))] for s in (a, b))
        values.append(mmd_to(y)(x))
    std, mean = torch.std_mean(torch.tensor(values, dtype=torch.float64), correction=0)
    return Kernel(float(mean), float(std), mmd_to(b)(a))


def mmd_to(b: Tensor) -> Callable[[Tensor], float]:
    """The kernel distance of a full set to b, as a function of the set; the term of b alone is computed once."""

    def total(x: Tensor, y: Tensor) -> Tensor:
        return torch.stack([(chunk @ y.T / y.shape[1] + 1).pow(3).sum() for chunk in x.split(CHUNK)]).sum()

    def within(x: Tensor) -> Tensor:
        diagonal = (x.square().sum(1) / x.shape[1] + 1).pow(3).sum()
        return (total(x, x) - diagonal) / (len(x) * (len(x) - 1))

    _, b = _checked(b, b, 2)
    within_b = within(b)

    def distance(a: Tensor) -> float:
        a, _ = _checked(a, b, 2)
        return float(within(a) + within_b - 2 * total(a, b) / (len(a) * len(b)))

    return distance


@dataclass(frozen=True)
class PrecisionRecall:
    """Precision: share of drawn images inside the real set's support. Recall: of real ones inside the drawn set's."""

    precision: Estimate
    recall: Estimate


def precision_recall(real: Tensor, drawn: Tensor, k: int = 3) -> PrecisionRecall:
    """Improved precision and recall (Kynkäänniemi et al. 2019, equation 2). A set's support is the union of balls around its
    samples, each with the distance to its k-th nearest neighbour as radius: both have more than k samples, and best equally
    many. Intervals treat the balls as fixed. Raises ValueError for k below 1, or too few samples.
    """
    if k < 1:
        raise ValueError(f"k is {k}: take the first or a later neighbour")
    real, drawn = _checked(real, drawn, k + 1)

    def inside(samples: Tensor, others: Tensor) -> Estimate:
        # kthvalue(k + 1): a sample is its own neighbour, at distance 0
        radii = torch.cat([chunk.kthvalue(k + 1).values for chunk in _pairwise(others, others)])
        hits = sum(int((chunk <= radii).any(1).sum()) for chunk in _pairwise(samples, others))
        return Estimate.proportion(hits, len(samples))

    return PrecisionRecall(inside(drawn, real), inside(real, drawn))


@dataclass(frozen=True, eq=False)
class Nearest:
    """Euclidean distance of each sample to its nearest training sample, Float64[sample], and its index, Int64[sample]."""

    distances: Tensor
    indices: Tensor


def nearest(drawn: Tensor, train: Tensor) -> Nearest:
    """The nearest training sample of each drawn one, by pixels for example. Copies are far nearer than held-out real images."""
    drawn, train = _checked(drawn, train, 1)
    minima = [chunk.min(1) for chunk in _pairwise(drawn, train)]
    return Nearest(torch.cat([chunk.values for chunk in minima]), torch.cat([chunk.indices for chunk in minima]))


def _pairwise(a: Tensor, b: Tensor) -> Iterator[Tensor]:
    """Euclidean distances in chunks [sample of a, sample of b]; without matrix products, so that a copy is at exactly 0."""
    for chunk in a.split(CHUNK):
        yield torch.cdist(chunk, b, compute_mode="donot_use_mm_for_euclid_dist")


def _checked(a: Tensor, b: Tensor, least: int) -> tuple[Tensor, Tensor]:
    """Both sets as float64, after checks that they can be compared."""
    for features in (a, b):
        if features.ndim != 2:
            raise ValueError(f"features are [sample, feature], not {list(features.shape)}: flatten each sample first")
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"features of {a.shape[1]} and of {b.shape[1]} numbers: take both from the same extractor")
    if min(len(a), len(b)) < least:
        raise ValueError(f"sets of {len(a)} and {len(b)} samples are too small: this needs at least {least} in each")
    if not (torch.isfinite(a).all() and torch.isfinite(b).all()):
        raise ValueError("features hold NaN or infinity: look at the images that they come from")
    return a.detach().double(), b.detach().double()
