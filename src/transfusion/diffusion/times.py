"""Distributions of training times, each by its quantile function: t = quantile(u) for a uniform u.

`shift` moves times towards noise, in training as in sampling: larger latents need more noise to lose as much (Esser et al.
2024, arXiv 2403.03206, eq. 23).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from typing import ClassVar, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor

from transfusion import rng


@runtime_checkable
class TimeDistribution(Protocol):
    """Any distribution of times, in Python. A model that is saved needs one of `Times`: `Tabulated.of(quantile)`."""

    def quantile(self, u: float) -> float:
        """Time in [0, 1] for u in [0, 1); it does not fall as u grows."""
        ...


def shifted(t: float, shift: float) -> float:
    """shift t / (1 + (shift - 1) t): fixes 0 and 1, and moves times between towards 1 if shift > 1 (Esser et al., eq. 23)."""
    return t if shift == 1.0 else shift * t / (1 + (shift - 1) * t)


def _check_shift(shift: float) -> None:
    if not (math.isfinite(shift) and shift > 0):
        raise ValueError(f"shift must be positive, not {shift}")


@dataclass(frozen=True)
class Uniform:
    """Uniform times.

    Args:
        num_steps: T; times are 1/T, 2/T .. 1, the steps of DDPM (Ho et al. 2020). 0: any time in [0, 1].
        shift: above 1: more noise, t becomes shift t / (1 + (shift - 1) t).
    """

    kind: ClassVar[str] = "uniform"
    num_steps: int = 0
    shift: float = 1.0

    def __post_init__(self) -> None:
        _check_shift(self.shift)
        if self.num_steps < 0:
            raise ValueError(f"num_steps must be 0 (any time) or more, not {self.num_steps}")

    def quantile(self, u: float) -> float:
        """Time for u in [0, 1)."""
        return shifted(u if self.num_steps == 0 else (int(u * self.num_steps) + 1) / self.num_steps, self.shift)


@dataclass(frozen=True)
class LogitNormal:
    """logit(t) ~ Normal(mean, std) (Esser et al. 2024, arXiv 2403.03206, section 3.1).

    Args:
        mean: above 0: more noise. JiT's -0.8 (arXiv 2511.13720, where t = 1 is data) is +0.8 here.
        std: standard deviation of logit(t).
        shift: above 1: more noise; equal to adding log(shift) to the mean.
    """

    kind: ClassVar[str] = "logit_normal"
    mean: float = 0.8
    std: float = 0.8
    shift: float = 1.0

    def __post_init__(self) -> None:
        _check_shift(self.shift)
        if not math.isfinite(self.mean) or not 0 < self.std < math.inf:
            raise ValueError(f"mean must be finite, std must be positive and finite, not {self.mean} and {self.std}")

    def quantile(self, u: float) -> float:
        """Time for u in [0, 1)."""
        z = NormalDist(self.mean, self.std).inv_cdf(min(max(u, 1e-9), 1 - 1e-9))
        return shifted(1 / (1 + math.exp(-z)), self.shift)


@dataclass(frozen=True)
class Tabulated:
    """Any distribution, by its quantiles at equal steps of u, interpolated linearly; saved with a model.

    Args:
        quantiles: times in [0, 1] at u = 0, 1/n .. 1, in non-decreasing order.
    """

    kind: ClassVar[str] = "tabulated"
    quantiles: tuple[float, ...] = (0.0, 1.0)

    def __post_init__(self) -> None:
        rising = all(a <= b for a, b in zip(self.quantiles, self.quantiles[1:], strict=False))
        if len(self.quantiles) < 2 or not rising or not 0 <= self.quantiles[0] <= self.quantiles[-1] <= 1:
            raise ValueError(f"quantiles must be two or more times that never fall, in [0, 1], not {str(self.quantiles)[:80]}")

    @classmethod
    def of(cls, quantile: Callable[[float], float], steps: int = 256) -> "Tabulated":
        """The table of a quantile function, evaluated at u = 0, 1 / steps .. just below 1."""
        return cls(tuple(quantile(min(i / steps, 1 - 1e-9)) for i in range(steps + 1)))

    def quantile(self, u: float) -> float:
        """Time for u in [0, 1)."""
        place = u * (len(self.quantiles) - 1)
        low = min(int(place), len(self.quantiles) - 2)
        return self.quantiles[low] + (place - low) * (self.quantiles[low + 1] - self.quantiles[low])


Times: TypeAlias = Uniform | LogitNormal | Tabulated


def sample_times(times: TimeDistribution, keys: list[int], intervals: Tensor) -> Tensor:
    """A time for each item, Float32[item], of the distribution within the item's interval (low, high) of `intervals` [item, 2],
    by its key alone. An interval that the distribution does not reach is filled evenly."""
    bounds = intervals.to("cpu", torch.float32).tolist()
    within = {interval: _quantile_within(times, *interval) for interval in {(low, high) for low, high in bounds}}
    drawn = [within[low, high](rng.uniform(key, "time")) for key, (low, high) in zip(keys, bounds, strict=True)]
    return torch.tensor(drawn, dtype=torch.float32)


def _quantile_within(times: TimeDistribution, low: float, high: float) -> Callable[[float], float]:
    """The quantile function of the distribution, given that the time is in [low, high]."""
    if (low, high) == (0.0, 1.0):
        return times.quantile
    if low == high:
        return lambda u: low
    start = _first(lambda u: times.quantile(u) >= low)
    end = _first(lambda u: times.quantile(u) > high)
    if start >= end:
        return lambda u: low + (high - low) * u
    return lambda u: min(max(times.quantile(start + (end - start) * u), low), high)


def _first(condition: Callable[[float], bool]) -> float:
    """The least u in [0, 1] at which a condition that stays true holds, by bisection; 1 if it never does."""
    a, b = 0.0, 1.0
    for _ in range(50):
        middle = (a + b) / 2
        a, b = (a, middle) if condition(middle) else (middle, b)
    return 0.0 if condition(0.0) else b
