"""Estimates: samples in; a value, its 95 % interval and the number of samples out.

proportion   a share of successes            Wilson's score interval
mean         a mean of skewed values         bootstrap, BCa
ratio        sum over sum, such as nats      the same, pairs drawn together
             over tokens
jackknife    a distance between sets, which  groups left out in turn
             samples drawn twice would bias
normal       a value with a standard error   value ± 1.96 errors
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from transfusion import rng

MIN_SAMPLES = 8
"""Fewer samples get no bootstrap interval."""
RESAMPLES = 1000
GROUPS, STUDENT_T = 20, 2.093
"""Groups of the jackknife, and Student's t for 95 % with GROUPS - 1 degrees of freedom."""
Z = 1.959964
"""Half width of a 95 % interval in standard errors."""

Values = Sequence[float] | Sequence[int] | np.ndarray


@dataclass(frozen=True)
class Estimate:
    """A measured value, its 95 % interval, its number of samples, and a note: why the interval is missing or has no width, or
    how it was measured."""

    value: float
    low: float | None
    high: float | None
    count: int
    note: str = ""

    @classmethod
    def proportion(cls, successes: float, count: int) -> "Estimate":
        """successes / count with Wilson's score interval (Wilson 1927); a tie may count as half a success. Raises ValueError
        for a count of 0."""
        if not 0 <= successes <= count or count < 1:
            raise ValueError(f"successes lie between 0 and the count, which is at least 1, not {successes} of {count}")
        n, p = count, successes / count
        centre, half = p + Z * Z / (2 * n), Z * math.sqrt(p * (1 - p) / n + Z * Z / (4 * n * n))
        return cls(p, max(0.0, (centre - half) / (1 + Z * Z / n)), min(1.0, (centre + half) / (1 + Z * Z / n)), n)

    @classmethod
    def mean(cls, values: Values, *, seed: int) -> "Estimate":
        """Mean of Float[sample]. Errors and notes as `ratio`."""
        return cls.ratio(values, np.ones(np.shape(values)), seed=seed)

    @classmethod
    def ratio(cls, values: Values, over: Values, *, seed: int) -> "Estimate":
        """sum(values) / sum(over) with a bias-corrected and accelerated bootstrap interval (BCa, Efron 1987); a sample's two
        numbers stay together. Fewer than 8 samples get no interval, samples of one ratio an interval without width, each with
        a note.

        Args:
            values: Float[sample], for example nats of each document.
            over: Float[sample], for example its tokens; 0 or more each.

        Raises:
            ValueError: no samples, different lengths, NaN or infinity, or an `over` below 0 or of zeros only.
        """
        from scipy import stats

        a, b = np.asarray(values, dtype=np.float64), np.asarray(over, dtype=np.float64)
        if a.ndim != 1 or a.shape != b.shape or not len(a):
            raise ValueError(f"give one number a sample, not {list(a.shape)} over {list(b.shape)}")
        if not (np.isfinite(a).all() and np.isfinite(b).all()):
            raise ValueError("samples hold NaN or infinity: leave them out, and report how many")
        if (b < 0).any() or not b.any():
            raise ValueError("`over` must be 0 or more for each sample, and more than 0 for one: leave the others out")
        value, count = float(a.sum() / b.sum()), len(a)
        if count < MIN_SAMPLES:
            return cls(value, None, None, count, f"{count} samples are too few for an interval: measure at least {MIN_SAMPLES}")
        if np.allclose(a, value * b, rtol=1e-9, atol=0):
            return cls(value, value, value, count, "all samples are equal")

        def ratio(x: np.ndarray, y: np.ndarray, axis: int) -> np.ndarray:
            total = np.asarray(y.sum(axis))
            # a resample of zeros only has no ratio; the value itself moves neither the median nor the acceleration
            return np.divide(x.sum(axis), total, out=np.full_like(total, value), where=total > 0)

        batch, generator = max(2_000_000 // count, 1), rng.generator(rng.key(seed, "bootstrap"))
        result = stats.bootstrap((a, b), ratio, paired=True, n_resamples=RESAMPLES, batch=batch, rng=generator)
        return cls(value, float(result.confidence_interval.low), float(result.confidence_interval.high), count)

    @classmethod
    def jackknife(cls, statistic: Callable[[np.ndarray], float], count: int) -> "Estimate":
        """A statistic of sample indices Int[sample], with an interval from leaving out each of 20 groups in turn (Efron and
        Tibshirani 1993, chapter 11). Raises ValueError for fewer than 40 samples."""
        if count < 2 * GROUPS:
            raise ValueError(f"{count} samples are too few for an interval of a distance: measure at least {2 * GROUPS}")
        indices = np.arange(count)
        # random groups: samples often come class by class, and a group must not be a class
        groups = rng.generator(rng.key("jackknife")).permutation(count) % GROUPS
        values = np.array([statistic(indices[groups != group]) for group in range(GROUPS)])
        error = math.sqrt((GROUPS - 1) / GROUPS * float(((values - values.mean()) ** 2).sum()))
        return cls.normal(float(statistic(indices)), error, count, width=STUDENT_T)

    @classmethod
    def normal(cls, value: float, error: float, count: int, *, width: float = Z) -> "Estimate":
        """A value and its standard error; the interval is value ± width * error."""
        return cls(value, value - width * error, value + width * error, count)

    def map(self, function: Callable[[float], float]) -> "Estimate":
        """The estimate of an increasing function of the value, such as a perplexity `math.exp` of nats per token."""
        low, high = (None if bound is None else function(bound) for bound in (self.low, self.high))
        return replace(self, value=function(self.value), low=low, high=high)

    def to_report(self, name: str) -> dict[str, float | int | list[float | None]]:
        """Entries of a report.json: the value, its interval and its count."""
        return {name: self.value, f"{name}_interval": [self.low, self.high], f"{name}_count": self.count}

    @property
    def interval(self) -> str:
        """ "0.950 to 0.985"; empty without an interval."""
        return "" if self.low is None or self.high is None else f"{short(self.low)} to {short(self.high)}"

    def __str__(self) -> str:
        return f"{short(self.value)}{self.interval and f' ({self.interval})'}"


def short(value: float) -> str:
    """Three decimals, or four digits from 10 on."""
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.4g}"
