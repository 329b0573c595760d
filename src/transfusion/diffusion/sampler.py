"""Samplers: from noise to data along a schedule. Each is a frozen dataclass with one verb, `step`.

`step(schedule, predict, noise, x, t, s)` takes items from time t to an earlier time s, and returns x_s and the estimate of
x0 at t. Items of a batch may be at different times. `predict(x, t)` gives (x0, eps), `noise()` fresh noise. A sampler keeps no
state, so items join and leave between steps.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, Self, TypeAlias

import torch
from torch import Tensor

from transfusion.diffusion.schedule import Schedule, expand_like
from transfusion.diffusion.times import shifted

PredictFn: TypeAlias = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(x [item, ...], t [item]) -> (x0, eps), both [item, ...]"""
NoiseFn: TypeAlias = Callable[[], Tensor]
"""() -> standard normal noise, shaped like x"""

MAX_STEPS = 100_000


@dataclass(frozen=True)
class _TimeGrid:
    """The settings that all samplers share. Raises ValueError: fewer than 1 step or too many, a shift or clip not positive and
    finite.

    Args:
        num_steps: steps from t = 1 to t = 0.
        shift: above 1 spends more steps at high noise: t becomes shift t / (1 + (shift - 1) t).
        clip: bound on |x0| estimates (1 for pixels in [-1, 1]); None: no bound.
    """

    num_steps: int = 25
    shift: float = 1.0
    clip: float | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.num_steps <= MAX_STEPS:
            raise ValueError(f"a sampler needs at least 1 step, and at most {MAX_STEPS:,}, not {self.num_steps}")
        if not 0 < self.shift < math.inf:
            raise ValueError(f"shift must be positive and finite, not {self.shift}")
        if self.clip is not None and not 0 < self.clip < math.inf:
            raise ValueError(f"clip is a bound above 0, or None for no bound, not {self.clip}")

    def times(self) -> list[float]:
        """The num_steps + 1 times from 1 to 0."""
        return [shifted(1 - i / self.num_steps, self.shift) for i in range(self.num_steps + 1)]

    def rule(self) -> Self:
        """The sampler apart from its times: `step` is the same for samplers of equal rules, so their items share passes."""
        return replace(self, num_steps=1, shift=1.0)

    def estimate(self, schedule: Schedule, predict: PredictFn, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """(x0, eps) at x and t: x0 clamped to `clip`, and then eps = (x - alpha x0) / sigma."""
        x0, eps = predict(x, t)
        if self.clip is None:
            return x0, eps
        x0 = x0.clamp(-self.clip, self.clip)
        sigma = expand_like(schedule.sigma(t), x).clamp_min(1e-6)
        return x0, (x - expand_like(schedule.alpha(t), x) * x0) / sigma


def velocity(schedule: Schedule, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    """dx/dt = alpha_dot x0 + sigma_dot eps"""
    return expand_like(schedule.alpha_dot(t), x0) * x0 + expand_like(schedule.sigma_dot(t), x0) * eps


@dataclass(frozen=True)
class Euler(_TimeGrid):
    """First-order steps of the ODE dx/dt = velocity: x_s = x_t + (s - t) velocity(x_t, t)."""

    kind: ClassVar[str] = "euler"

    def step(
        self, schedule: Schedule, predict: PredictFn, noise: NoiseFn, x: Tensor, t: Tensor, s: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(x_s, x0 estimate) from x_t."""
        x0, eps = self.estimate(schedule, predict, x, t)
        return x + expand_like(s - t, x) * velocity(schedule, x0, eps, t), x0


@dataclass(frozen=True)
class Heun(_TimeGrid):
    """Second-order steps (Karras et al. 2022, arXiv 2206.00364, algorithm 1): an Euler step, then again with the mean velocity
    of both its ends. Two network calls a step, one at the last."""

    kind: ClassVar[str] = "heun"

    def step(
        self, schedule: Schedule, predict: PredictFn, noise: NoiseFn, x: Tensor, t: Tensor, s: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(x_s, x0 estimate) from x_t."""
        x0, eps = self.estimate(schedule, predict, x, t)
        v_t = velocity(schedule, x0, eps, t)
        euler = x + expand_like(s - t, x) * v_t
        if not (s > 0).any():
            return euler, x0
        v_s = velocity(schedule, *self.estimate(schedule, predict, euler, s), s)
        return torch.where(expand_like(s > 0, x), x + expand_like(s - t, x) * (v_t + v_s) / 2, euler), x0


@dataclass(frozen=True)
class DDIM(_TimeGrid):
    """DDIM (Song et al. 2020, arXiv 2010.02502, eq. 12), with the fresh noise z of its eq. 16:

        x_s = alpha_s x0 + sqrt(sigma_s^2 - variance) eps + sqrt(variance) z
        variance = eta^2 (sigma_t^2 - (alpha_t / alpha_s)^2 sigma_s^2) sigma_s^2 / sigma_t^2

    Args:
        eta: 0: no fresh noise; 1: the variance of q(x_s | x_t, x0), as DDPM.
    """

    kind: ClassVar[str] = "ddim"
    eta: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta must be between 0 (no fresh noise) and 1 (as DDPM), not {self.eta}")

    def step(
        self, schedule: Schedule, predict: PredictFn, noise: NoiseFn, x: Tensor, t: Tensor, s: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(x_s, x0 estimate) from x_t."""
        x0, eps = self.estimate(schedule, predict, x, t)
        if self.eta == 0.0:
            return expand_like(schedule.alpha(s), x) * x0 + expand_like(schedule.sigma(s), x) * eps, x0
        sigma_t, sigma_s = schedule.sigma(t), schedule.sigma(s)
        transition = sigma_t**2 - (schedule.alpha(t) / schedule.alpha(s)) ** 2 * sigma_s**2
        variance = self.eta**2 * transition.clamp_min(0) * sigma_s**2 / sigma_t**2
        eps_scale = (sigma_s**2 - variance).clamp_min(0).sqrt()
        mean = expand_like(schedule.alpha(s), x) * x0 + expand_like(eps_scale, x) * eps
        return mean + expand_like(variance.sqrt(), x) * noise(), x0


@dataclass(frozen=True)
class DDPM(DDIM):
    """Ancestral sampling (Ho et al. 2020, arXiv 2006.11239, eq. 6 and 7), in all T steps or fewer."""

    kind: ClassVar[str] = "ddpm"
    num_steps: int = 250
    eta: float = 1.0


Sampler: TypeAlias = Euler | Heun | DDIM | DDPM


def init_noise(schedule: Schedule, noise: Tensor) -> Tensor:
    """x at t = 1 from standard normal noise."""
    return noise * schedule.sigma(torch.ones((), dtype=noise.dtype, device=noise.device))
