"""Intervals cover the truth as often as they say, also for skewed samples."""

import math

import numpy as np
import pytest

from transfusion.evaluation.estimate import Estimate, bootstrap, resample


def covered(intervals: list[Estimate], truth: float) -> float:
    return float(np.mean([one.low <= truth <= one.high for one in intervals]))


def test_intervals_of_skewed_means_cover_the_truth() -> None:
    rng = np.random.default_rng(0)
    found = [bootstrap(rng.exponential(2.0, 200), seed=i) for i in range(500)]
    assert 0.93 <= covered(found, 2.0) <= 0.97


def test_intervals_of_ratios_cover_the_truth() -> None:
    """Documents of skewed lengths, long ones harder: sum of nats / sum of tokens, and its perplexity."""
    rng = np.random.default_rng(1)
    found = []
    for i in range(500):
        tokens = np.ceil(rng.lognormal(3, 0.5, 200))
        found.append(bootstrap(tokens * (2 + tokens / 100 + rng.exponential(1, 200)), tokens, seed=i))
    many = np.ceil(np.random.default_rng(2).lognormal(3, 0.5, 4_000_000))
    truth = 3 + (many**2).sum() / many.sum() / 100
    assert 0.93 <= covered(found, truth) <= 0.97
    perplexities = [one.through(math.exp) for one in found]
    assert covered(perplexities, math.exp(truth)) == covered(found, truth)


def test_a_level_is_kept() -> None:
    rng = np.random.default_rng(3)
    found = [bootstrap(rng.normal(size=50), level=0.8, seed=i, repeats=500) for i in range(500)]
    assert 0.76 <= covered(found, 0) <= 0.84


def test_values_and_sizes() -> None:
    one = bootstrap([1.0, 2.0, 3.0] * 5, [2.0, 2.0, 2.0] * 5, seed=0)
    assert one.value == 1.0 and one.low < 1 < one.high and one.count == 15
    assert one == bootstrap([1.0, 2.0, 3.0] * 5, [2.0, 2.0, 2.0] * 5, seed=0) != bootstrap([1.0, 2.0, 3.0] * 5, seed=0)
    same = bootstrap([0.1] * 9, seed=0)
    assert same.low == same.value == same.high == pytest.approx(0.1)
    assert one.plain("x") == {"x": 1.0, "x_interval": [one.low, one.high], "x_count": 15}
    assert str(Estimate(1.5, 1.0, 2.0, 10)) == "1.5  [1, 2]  of 10"


def test_any_statistic() -> None:
    values = np.random.default_rng(4).normal(size=300)
    found = resample(lambda rows: float(np.median(values[rows])), 300, seed=0)
    # the deviation of a normal sample's median is 1.2533 / sqrt(n)
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * 1.2533 / 300**0.5, rel=0.25)
    assert found.low <= found.value == np.median(values) <= found.high and found.count == 300
    with pytest.raises(ValueError, match="statistic"):
        resample(lambda rows: math.nan, 10, seed=0)


@pytest.mark.parametrize(
    ("values", "over", "message"),
    [
        ([1.0] * 7, None, "at least 8"),
        ([1.0] * 9, [1.0] * 8, "one number a sample"),
        ([1.0] * 8 + [math.nan], None, "NaN"),
        ([1.0] * 9, [0.0] * 9, "more than 0"),
        ([1.0] * 9, [-1.0] * 9, "0 or more"),
    ],
)
def test_samples_that_carry_no_interval_are_refused(values: list[float], over: list[float] | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bootstrap(values, over, seed=0)


def test_levels_and_repeats_are_checked() -> None:
    with pytest.raises(ValueError, match="level"):
        bootstrap([1.0] * 9, level=1.0, seed=0)
    with pytest.raises(ValueError, match="repeats"):
        bootstrap([1.0] * 9, repeats=5, seed=0)
