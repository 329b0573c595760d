"""Distances between two sets of pictures: Float[sample, feature] of each in, numbers out. All in float64.

frechet            means and covariances differ            0: the same Gaussian; biased upwards for few samples
kernel             any moments up to the third differ      0: the same distribution; unbiased, so it can be negative
precision_recall   which set leaves the other's support    precision: drawn ones look real; recall: all real kinds are drawn
nearest            the closest training picture of each    near 0: it is a copy
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from transfusion import rng
from transfusion.evaluation.record import Proportion

ROWS = 256
"""Rows of a matrix of pairs that are held at a time."""


def frechet(a: Tensor, b: Tensor) -> float:
    """Fréchet distance of the Gaussians through two sets of features (Heusel et al. 2017), squared as there.

    |mean a - mean b|^2 + tr(A + B - 2 (A B)^(1/2)), A and B the covariances. With A = X'X and B = Y'Y the last trace is the sum
    of the singular values of X Y', which needs no root of a matrix and stays exact where covariances lack rank.

    Args:
        a, b: Float[sample, feature], with the same features.

    Raises:
        ValueError: fewer than 2 samples in a set, other widths, NaN or infinity.
    """
    a, b = _checked(a, b, 2)
    mean = (a.mean(0) - b.mean(0)).square().sum()
    # a centred set / sqrt(n - 1) is a factor of its covariance; its R is a smaller one
    x, y = (torch.linalg.qr((s - s.mean(0)) / (len(s) - 1) ** 0.5, mode="r").R for s in (a, b))
    return max(float(mean + x.square().sum() + y.square().sum() - 2 * torch.linalg.svdvals(x @ y.T).sum()), 0.0)


@dataclass(frozen=True)
class Kernel:
    """A kernel distance.

    Args:
        mean, std: over subsets.
        whole: between the whole sets.
    """

    mean: float
    std: float
    whole: float


def kernel(a: Tensor, b: Tensor, *, subsets: int = 100, size: int = 1000, seed: int) -> Kernel:
    """Kernel distance: squared MMD, unbiased, under the kernel (x . y / width + 1)^3 (Binkowski et al. 2018).

    Args:
        a, b: Float[sample, feature], with the same features.
        subsets: how many pairs of subsets are drawn, each without replacement.
        size: samples of a subset.

    Raises:
        ValueError: a set smaller than a subset, fewer than 2 samples, other widths, NaN or infinity.
    """
    if subsets < 1 or size < 2:
        raise ValueError(f"{subsets} subsets of {size} samples: take at least 1 subset, of at least 2 samples")
    a, b = _checked(a, b, size)
    values = []
    for number in range(subsets):
        generator = rng.generator(rng.key(seed, "kernel distance", number))
        values.append(mmd(*(s[torch.from_numpy(generator.choice(len(s), size, replace=False))] for s in (a, b))))
    std, mean = torch.std_mean(torch.tensor(values, dtype=torch.float64), correction=0)
    return Kernel(float(mean), float(std), mmd(a, b))


def mmd(a: Tensor, b: Tensor) -> float:
    """Kernel distance of whole sets: unbiased squared MMD (Gretton et al. 2012, equation 3) under the kernel of `kernel`.

    Raises:
        ValueError: fewer than 2 samples in a set, other widths, NaN or infinity.
    """
    return mmd_to(b)(a)


def mmd_to(b: Tensor) -> Callable[[Tensor], float]:
    """`mmd` to one set from any others; what depends on it alone is computed once."""

    def total(x: Tensor, y: Tensor) -> Tensor:
        return torch.stack([(part @ y.T / y.shape[1] + 1).pow(3).sum() for part in x.split(ROWS)]).sum()

    def within(x: Tensor) -> Tensor:
        itself = (x.square().sum(1) / x.shape[1] + 1).pow(3).sum()
        return (total(x, x) - itself) / (len(x) * (len(x) - 1))

    _, b = _checked(b, b, 2)
    own = within(b)

    def distance(a: Tensor) -> float:
        a, _ = _checked(a, b, 2)
        return float(within(a) + own - 2 * total(a, b) / (len(a) * len(b)))

    return distance


@dataclass(frozen=True)
class PrecisionRecall:
    """Precision: drawn pictures inside the real set's support. Recall: real ones inside the drawn set's."""

    precision: Proportion
    recall: Proportion


def precision_recall(real: Tensor, drawn: Tensor, k: int = 3) -> PrecisionRecall:
    """Improved precision and recall (Kynkäänniemi et al. 2019, equation 2).

    A set's support is the union of balls around its samples, each as wide as the way to its k-th nearest neighbour. The
    interval of a share counts its own samples only: the balls are taken as given.

    Args:
        real, drawn: Float[sample, feature], with the same features; best equally many.

    Raises:
        ValueError: fewer than k + 1 samples in a set, other widths, NaN or infinity.
    """
    if k < 1:
        raise ValueError(f"k is {k}: take the first or a later neighbour")
    real, drawn = _checked(real, drawn, k + 1)

    def inside(samples: Tensor, others: Tensor) -> Proportion:
        # the sample itself is among its neighbours, at distance 0
        radii = torch.cat([ways.kthvalue(k + 1).values for ways in _ways(others, others)])
        return Proportion(sum(int((ways <= radii).any(1).sum()) for ways in _ways(samples, others)), len(samples))

    return PrecisionRecall(inside(drawn, real), inside(real, drawn))


@dataclass(frozen=True, eq=False)
class Nearest:
    """For each sample the Euclidean distance to its nearest training sample, Float64[sample], and its index, Int64[sample]."""

    distances: Tensor
    indices: Tensor


def nearest(drawn: Tensor, train: Tensor) -> Nearest:
    """The nearest training sample of each drawn one. Copies show as distances well below those of held-out real pictures.

    Args:
        drawn, train: Float[sample, feature], with the same features (pixels are features too).

    Raises:
        ValueError: an empty set, other widths, NaN or infinity.
    """
    drawn, train = _checked(drawn, train, 1)
    found = [ways.min(1) for ways in _ways(drawn, train)]
    return Nearest(torch.cat([one.values for one in found]), torch.cat([one.indices for one in found]))


def _ways(a: Tensor, b: Tensor) -> Iterator[Tensor]:
    """Euclidean distances, some rows [row, len(b)] at a time. Not through products: a copy must be at exactly 0."""
    for part in a.split(ROWS):
        yield torch.cdist(part, b, compute_mode="donot_use_mm_for_euclid_dist")


def _checked(a: Tensor, b: Tensor, least: int) -> tuple[Tensor, Tensor]:
    """Both as float64, if they can be compared."""
    for one in (a, b):
        if one.ndim != 2:
            raise ValueError(f"features are [sample, feature], not {list(one.shape)}: flatten each sample first")
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"features of {a.shape[1]} and of {b.shape[1]} numbers: take both from the same extractor")
    if min(len(a), len(b)) < least:
        raise ValueError(f"sets of {len(a)} and {len(b)} samples are too small: this needs at least {least} in each")
    if not (torch.isfinite(a).all() and torch.isfinite(b).all()):
        raise ValueError("features hold NaN or infinity: look at the pictures that they come from")
    return a.detach().double(), b.detach().double()
