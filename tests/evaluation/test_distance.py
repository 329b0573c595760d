"""Distances agree with torchmetrics on the same features, and with loops that follow the definitions."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from transfusion.evaluation.distance import frechet, kernel, nearest, precision_recall


class Same(nn.Module):
    """A feature extractor that takes features."""

    num_features = 24

    def forward(self, x: Tensor) -> Tensor:
        return x


def sets(n: int = 300, m: int = 260, width: int = 24) -> tuple[Tensor, Tensor]:
    """Of full rank, with other means and covariances."""
    mix = torch.randn(2, width, width)
    return torch.randn(n, width) @ mix[0] + torch.randn(width), torch.randn(m, width) @ mix[1] * 0.7 + torch.randn(width)


@pytest.mark.slow  # torchmetrics takes 3 seconds to import
def test_frechet_is_that_of_torchmetrics() -> None:
    from torchmetrics.image.fid import FrechetInceptionDistance

    a, b = sets()
    other = FrechetInceptionDistance(feature=Same())
    other.set_dtype(torch.float64)
    other.update(a.double(), real=True)
    other.update(b.double(), real=False)
    assert frechet(a, b) == pytest.approx(other.compute().item(), rel=1e-6)  # at most 3e-13 in 20 trials
    assert frechet(a, b) == pytest.approx(frechet(b, a), rel=1e-12)


def test_frechet_of_one_axis_is_known() -> None:
    """(difference of means)^2 + (difference of deviations)^2."""
    a, b = torch.randn(50, 1), 3 * torch.randn(70, 1) + 1
    known = (a.mean() - b.mean()) ** 2 + (a.std() - b.std()) ** 2
    assert frechet(a, b) == pytest.approx(known.item(), rel=1e-5)


def test_frechet_where_covariances_lack_rank() -> None:
    """Fewer samples than features: 0 to itself, and a shift costs its square, nothing else."""
    a = torch.randn(20, 100, dtype=torch.float64)
    shift = torch.randn(100, dtype=torch.float64)
    assert frechet(a, a) < 1e-10
    assert frechet(a, a + shift) == pytest.approx(shift.square().sum().item(), rel=1e-10)
    turned = torch.linalg.qr(torch.randn(100, 100, dtype=torch.float64)).Q
    assert frechet(a @ turned, (2 * a + shift) @ turned) == pytest.approx(frechet(a, 2 * a + shift), rel=1e-9)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Metric `Kernel Inception Distance`")
def test_kernel_is_that_of_torchmetrics() -> None:
    from torchmetrics.image.kid import KernelInceptionDistance

    a, b = sets(200, 200)
    other = KernelInceptionDistance(feature=Same(), subsets=1, subset_size=200)
    other.update(a.double(), real=True)
    other.update(b.double(), real=False)
    mean, _ = other.compute()
    found = kernel(a, b, subsets=2, size=200, seed=0)
    assert found.full == pytest.approx(mean.item(), rel=1e-10) and found.mean == pytest.approx(mean.item(), rel=1e-10)
    assert found.std == pytest.approx(0, abs=1e-9 * abs(found.mean))


def test_kernel_over_subsets() -> None:
    a, b = sets(400, 300)
    found = kernel(a, b, subsets=200, size=100, seed=0)
    assert found == kernel(a, b, subsets=200, size=100, seed=0) != kernel(a, b, subsets=200, size=100, seed=1)
    assert abs(found.mean - found.full) < 4 * found.std / 200**0.5 and found.std > 0
    c = torch.randn(600, 24)
    same = [kernel(c[i], c[~i], subsets=1, size=2, seed=0).full for i in (torch.rand(50, 600) < 0.5)]
    assert abs(np.mean(same)) < 4 * np.std(same) / 50**0.5 + 1e-3, "unbiased: 0 between samples of one distribution"


def test_precision_and_recall_by_hand() -> None:
    real, drawn = sets(60, 50, 3)
    k = 3

    def share(samples: Tensor, others: Tensor) -> float:
        points, centers = samples.double().numpy(), others.double().numpy()
        balls = []
        for i, center in enumerate(centers):
            ways = sorted(np.linalg.norm(center - other) for j, other in enumerate(centers) if j != i)
            balls.append((center, ways[k - 1]))
        inside = [any(np.linalg.norm(point - center) <= radius for center, radius in balls) for point in points]
        return sum(inside) / len(samples)

    found = precision_recall(real, drawn, k)
    assert (found.precision.value, found.recall.value) == (share(drawn, real), share(real, drawn))
    assert 0 < found.precision.value < 1 and found.precision.count == 50 and found.recall.count == 60


def test_precision_and_recall_of_known_sets() -> None:
    """More than one part of rows; the same set: 1 and 1; half of the kinds drawn: 1 and a half; elsewhere: 0 and 0."""
    real = torch.cat([torch.randn(300, 4), torch.randn(300, 4) + 100])
    same = precision_recall(real, real)
    assert same.precision.value == same.recall.value == 1
    half = precision_recall(real, real[:300])
    assert half.precision.value == 1 and half.recall.value == 0.5
    away = precision_recall(real, real + 1000)
    assert away.precision.value == away.recall.value == 0


def test_a_copy_is_its_own_nearest() -> None:
    train = torch.randn(700, 30)
    drawn = torch.cat([train[[5, 600]], torch.randn(300, 30)])
    found = nearest(drawn, train)
    assert found.indices[:2].tolist() == [5, 600] and found.distances[:2].tolist() == [0, 0]
    assert (found.distances[2:] > 1).all() and len(found.distances) == 302
    ways = (drawn[300].double() - train.double()).norm(dim=1)
    assert found.distances[300].item() == pytest.approx(ways.min().item()) and found.indices[300] == ways.argmin()


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (torch.zeros(1, 4), torch.zeros(9, 4), "at least"),
        (torch.zeros(9, 4), torch.zeros(9, 5), "same extractor"),
        (torch.zeros(9, 4, 4), torch.zeros(9, 4), "flatten"),
        (torch.full((9, 4), torch.nan), torch.zeros(9, 4), "NaN"),
        (torch.zeros(9, 4), torch.full((9, 4), torch.inf), "infinity"),
    ],
)
def test_features_that_cannot_be_compared_are_refused(a: Tensor, b: Tensor, message: str) -> None:
    measures = [frechet, precision_recall, lambda a, b: kernel(a, b, subsets=1, size=4, seed=0)]
    for measure in measures + [nearest] * (len(a) > 1):
        with pytest.raises(ValueError, match=message):
            measure(a, b)


def test_the_number_of_samples_needed_is_named() -> None:
    a = torch.randn(3, 4)
    with pytest.raises(ValueError, match="at least 1000"):
        kernel(a, a, seed=0)
    with pytest.raises(ValueError, match="at least 4"):
        precision_recall(a, a)
    with pytest.raises(ValueError, match="at least 1 in"):
        nearest(a, a[:0])
    with pytest.raises(ValueError, match="subset"):
        kernel(a, a, subsets=0, seed=0)
    with pytest.raises(ValueError, match="neighbour"):
        precision_recall(a, a, 0)
