"""Samplers: from noise to data along a schedule. Each is a frozen choice with one verb, `step`.

`step` moves items from time t to an earlier time s. Items of a batch may stand at different times. It asks `predict(x, t)`
for (x0, eps) and `draw()` for fresh noise; it keeps no state, so items join and leave between steps.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import torch
from torch import Tensor

from transfusion.diffusion.schedule import Schedule
from transfusion.diffusion.times import shifted

Predict: TypeAlias = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(x [item, ...], t [item]) -> (x0, eps), both [item, ...]"""
Draw: TypeAlias = Callable[[], Tensor]


@dataclass(frozen=True)
class _Steps:
    """What all samplers share.

    Args:
        num_steps: steps from t = 1 to t = 0.
        shift: above 1 spends more steps at high noise: t' = shift t / (1 + (shift - 1) t) (Esser et al. 2024, eq. 23).
        clip: bound on clean estimates (1 for pixels in [-1, 1]); None: no bound.
    """

    num_steps: int = 25
    shift: float = 1.0
    clip: float | None = None

    def __post_init__(self) -> None:
        if self.num_steps < 1:
            raise ValueError(f"a sampler needs at least 1 step, not {self.num_steps}")
        if not 0 < self.shift < math.inf:
            raise ValueError(f"shift must be positive and finite, not {self.shift}")
        if self.clip is not None and not 0 < self.clip < math.inf:
            raise ValueError(f"clip is a bound above 0, or None for no bound, not {self.clip}")

    def times(self) -> list[float]:
        """The times from 1 to 0, num_steps + 1 of them."""
        raw = [1 - i / self.num_steps for i in range(self.num_steps + 1)]
        return [shifted(t, self.shift) for t in raw]

    def estimate(self, schedule: Schedule, predict: Predict, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """(x0, eps) at x and t, with x0 inside `clip` and eps what then follows from x."""
        x0, eps = predict(x, t)
        if self.clip is None:
            return x0, eps
        x0 = x0.clamp(-self.clip, self.clip)
        noise = _over(schedule.sigma(t), x).clamp_min(1e-6)
        return x0, (x - _over(schedule.alpha(t), x) * x0) / noise


def _over(t: Tensor, like: Tensor) -> Tensor:
    return t.reshape(-1, *[1] * (like.ndim - 1))


def _velocity(schedule: Schedule, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    return _over(schedule.alpha_dot(t), x0) * x0 + _over(schedule.sigma_dot(t), x0) * eps


@dataclass(frozen=True)
class Euler(_Steps):
    """First-order steps along dx/dt."""

    kind: ClassVar[str] = "euler"

    def step(self, schedule: Schedule, predict: Predict, draw: Draw, x: Tensor, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """(x_s, clean estimate) from x_t."""
        x0, eps = self.estimate(schedule, predict, x, t)
        return x + _over(s - t, x) * _velocity(schedule, x0, eps, t), x0


@dataclass(frozen=True)
class Heun(_Steps):
    """Second-order steps: Euler, then the mean of the slopes at both ends (two network calls a step, one at the last)."""

    kind: ClassVar[str] = "heun"

    def step(self, schedule: Schedule, predict: Predict, draw: Draw, x: Tensor, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """(x_s, clean estimate) from x_t."""
        x0, eps = self.estimate(schedule, predict, x, t)
        slope = _velocity(schedule, x0, eps, t)
        first = x + _over(s - t, x) * slope
        if not (s > 0).any():
            return first, x0
        other = _velocity(schedule, *self.estimate(schedule, predict, first, s), s)
        return torch.where(_over(s > 0, x), x + _over(s - t, x) * (slope + other) / 2, first), x0


@dataclass(frozen=True)
class DDIM(_Steps):
    """DDIM (Song et al. 2020, arXiv 2010.02502, eq. 12): to the time s along the estimated clean data and noise.

    Args:
        eta: 0: no fresh noise; 1: as much as DDPM's posterior.
    """

    kind: ClassVar[str] = "ddim"
    eta: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta must be between 0 (no fresh noise) and 1 (as DDPM), not {self.eta}")

    def step(self, schedule: Schedule, predict: Predict, draw: Draw, x: Tensor, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """(x_s, clean estimate) from x_t."""
        x0, eps = self.estimate(schedule, predict, x, t)
        if self.eta == 0.0:
            return _over(schedule.alpha(s), x) * x0 + _over(schedule.sigma(s), x) * eps, x0
        # Variance of q(x_s | x_t, x0): (noise_t^2 - (signal_t / signal_s)^2 noise_s^2) * noise_s^2 / noise_t^2
        noise_t, noise_s = schedule.sigma(t), schedule.sigma(s)
        between = noise_t**2 - (schedule.alpha(t) / schedule.alpha(s)) ** 2 * noise_s**2
        variance = self.eta**2 * between.clamp_min(0) * noise_s**2 / noise_t**2
        kept = (noise_s**2 - variance).clamp_min(0).sqrt()
        mean = _over(schedule.alpha(s), x) * x0 + _over(kept, x) * eps
        return mean + _over(variance.sqrt(), x) * draw(), x0


@dataclass(frozen=True)
class DDPM(DDIM):
    """Ancestral sampling (Ho et al. 2020, arXiv 2006.11239, eq. 6 and 7), also over a part of the T steps."""

    kind: ClassVar[str] = "ddpm"
    num_steps: int = 250
    eta: float = 1.0


Sampler: TypeAlias = Euler | Heun | DDIM | DDPM


def init_noise(schedule: Schedule, noise: Tensor) -> Tensor:
    """x at t = 1: pure noise."""
    return noise * schedule.sigma(torch.ones((), dtype=noise.dtype, device=noise.device))
