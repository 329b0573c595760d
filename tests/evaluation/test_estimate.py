"""Estimates agree with scipy's intervals, and cover the truth as often as measured."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from transfusion.evaluation.estimate import Estimate


def coverage(estimates: list[Estimate], truth: float) -> float:
    inside = [e.low <= truth <= e.high for e in estimates if e.low is not None and e.high is not None]
    assert len(inside) == len(estimates)
    return float(np.mean(inside))


@pytest.mark.parametrize(("successes", "count"), [(0, 10), (10, 10), (1, 7), (92, 100), (4999, 5000)])
def test_wilson_is_that_of_scipy(successes: int, count: int) -> None:
    other = stats.binomtest(successes, count).proportion_ci(0.95, method="wilson")
    estimate = Estimate.proportion(successes, count)
    assert (estimate.value, estimate.count) == (successes / count, count)
    assert estimate.low == pytest.approx(other.low, abs=1e-7) and estimate.high == pytest.approx(other.high, abs=1e-7)


def test_wilson_intervals_cover_the_truth() -> None:
    """4,000 repetitions of 200 draws: 95 % within the usual variation of discrete counts."""
    rng = np.random.default_rng(0)
    for p in (0.5, 0.9, 0.97):
        shares = [Estimate.proportion(int(k), 200) for k in rng.binomial(200, p, 4000)]
        assert 0.93 < coverage(shares, p) < 0.98


def test_the_bootstrap_is_that_of_scipy() -> None:
    """Under other random numbers and ten times as many resamples: within 5 % of the interval's width."""
    rng = np.random.default_rng(0)
    tokens = np.ceil(rng.lognormal(3, 0.5, 80))
    nats = tokens * (2 + rng.exponential(1, 80))
    for estimate, data, statistic in (
        (Estimate.mean(nats, seed=0), (nats,), lambda x, axis: x.mean(axis)),
        (Estimate.ratio(nats, tokens, seed=0), (nats, tokens), lambda x, y, axis: x.sum(axis) / y.sum(axis)),
    ):
        other = stats.bootstrap(data, statistic, paired=True, n_resamples=9999, rng=1).confidence_interval
        assert estimate.value == pytest.approx(float(statistic(*data, axis=-1)))
        assert estimate.low == pytest.approx(other.low, abs=0.05 * (other.high - other.low))
        assert estimate.high == pytest.approx(other.high, abs=0.05 * (other.high - other.low))


@pytest.mark.slow
def test_intervals_of_skewed_means_cover_the_truth() -> None:
    """Exponential samples of 200: 0.946 of 1,000 trials, 0.954 of these 500, whose two standard errors are 0.020."""
    rng = np.random.default_rng(0)
    assert 0.93 <= coverage([Estimate.mean(rng.exponential(2.0, 200), seed=i) for i in range(500)], 2.0) <= 0.97


@pytest.mark.slow
def test_intervals_of_ratios_cover_the_truth() -> None:
    """Documents of skewed lengths, long ones harder: nats over tokens, and the perplexity. 0.931 of 1,000 trials, 0.932 of these
    500, whose two standard errors are 0.023."""
    rng = np.random.default_rng(1)
    estimates = []
    for i in range(500):
        tokens = np.ceil(rng.lognormal(3, 0.5, 200))
        estimates.append(Estimate.ratio(tokens * (2 + tokens / 100 + rng.exponential(1, 200)), tokens, seed=i))
    many = np.ceil(np.random.default_rng(2).lognormal(3, 0.5, 4_000_000))
    truth = 3 + (many**2).sum() / many.sum() / 100
    assert 0.908 <= coverage(estimates, truth) <= 0.954
    assert coverage([e.map(math.exp) for e in estimates], math.exp(truth)) == coverage(estimates, truth)


def test_values_sizes_and_seeds() -> None:
    estimate = Estimate.ratio([1.0, 2.0, 3.0] * 5, [2.0] * 15, seed=0)
    assert estimate.value == 1.0 and estimate.count == 15 and estimate.low is not None and estimate.high is not None
    assert estimate.low < 1 < estimate.high
    assert estimate == Estimate.ratio([1.0, 2.0, 3.0] * 5, [2.0] * 15, seed=0)
    values = np.random.default_rng(0).normal(size=15)
    assert Estimate.mean(values, seed=0) == Estimate.mean(values, seed=0) != Estimate.mean(values, seed=1)
    assert estimate.to_report("x") == {"x": 1.0, "x_interval": [estimate.low, estimate.high], "x_count": 15}
    assert str(Estimate(1.5, 1.0, 2.0, 10)) == "1.500 (1.000 to 2.000)" and str(Estimate(12.345, None, None, 1)) == "12.35"


def test_equal_samples_get_an_interval_without_width() -> None:
    for estimate in (Estimate.mean([0.1] * 9, seed=0), Estimate.ratio([0.1, 0.2, 0.3] * 3, [1, 2, 3] * 3, seed=0)):
        assert estimate.low == estimate.value == estimate.high == pytest.approx(0.1)
        assert estimate.note == "all samples are equal"
    assert not Estimate.mean([0.1] * 8 + [0.2], seed=0).note


def test_samples_may_have_nothing_to_count_but_not_all() -> None:
    """Documents without tokens change nothing but the number of samples; a resample of such documents only has no ratio."""
    nats, tokens = [1.0, 2.0, 3.0] * 5, [2.0] * 15
    estimate = Estimate.ratio(nats + [0.0] * 5, tokens + [0.0] * 5, seed=0)
    assert estimate.value == 1.0 and estimate.count == 20 and estimate.low is not None and estimate.high is not None
    assert 0.7 < estimate.low < 1 < estimate.high < 1.3
    # of resamples of 10, (8 / 10)^10 = 11 % hold neither of the two documents with tokens
    rare = Estimate.ratio([3.0, 1.0] + [0.0] * 8, [2.0, 2.0] + [0.0] * 8, seed=0)
    assert (rare.value, rare.low, rare.high) == (1.0, 0.5, 1.5)
    alone = Estimate.ratio([3.0] + [0.0] * 8, [2.0] + [0.0] * 8, seed=0)
    assert alone.low == alone.value == alone.high == 1.5


def test_few_samples_get_no_interval() -> None:
    estimate = Estimate.mean([1.0, 2.0] * 3 + [3.0], seed=0)
    assert estimate.value == pytest.approx(12 / 7) and estimate.low is estimate.high is None
    assert "at least 8" in estimate.note and estimate.map(math.exp).low is None


@pytest.mark.parametrize(
    ("values", "over", "message"),
    [
        ([], [], "one number a sample"),
        ([1.0] * 9, [1.0] * 8, "one number a sample"),
        ([1.0] * 8 + [math.nan], [1.0] * 9, "NaN"),
        ([1.0] * 9, [0.0] * 9, "more than 0"),
        ([1.0] * 9, [-1.0] * 9, "0 or more"),
        ([1.0] * 9, [3.0] * 8 + [-1.0], "0 or more"),
    ],
)
def test_samples_without_an_estimate_are_refused(values: list[float], over: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Estimate.ratio(values, over, seed=0)


def test_the_jackknife_of_a_mean_is_its_standard_error() -> None:
    x = torch.randn(2000, generator=torch.Generator().manual_seed(0)).double().numpy()

    def half_width(values: np.ndarray) -> float:
        estimate = Estimate.jackknife(lambda kept: float(values[kept].mean()), len(values))
        assert math.isclose(estimate.value, values.mean()) and estimate.low is not None and estimate.high is not None
        return (estimate.high - estimate.low) / 2

    assert 0.6 < half_width(x) / (2.093 * x.std() / math.sqrt(len(x))) < 1.5
    classes = (np.arange(2000) % 10).astype(float)  # in turn: leaving out a group must not leave out a class
    assert half_width(classes) < 2 * 2.093 * classes.std() / math.sqrt(len(classes))
    with pytest.raises(ValueError, match="at least 40"):
        Estimate.jackknife(lambda kept: 0.0, 39)


@pytest.mark.parametrize(("successes", "count"), [(0, 0), (3, 2), (-1, 4)])
def test_a_share_of_nothing_is_refused(successes: int, count: int) -> None:
    with pytest.raises(ValueError, match=f"at least 1, not {successes} of {count}"):
        Estimate.proportion(successes, count)
