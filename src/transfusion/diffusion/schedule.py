"""Schedules: how much of clean data x0 and of noise eps is left at time t.

    x_t = alpha(t) x0 + sigma(t) eps,   t = 0: clean data, t = 1: noise

The direction of time is stated here, and holds everywhere. `alpha_dot` and `sigma_dot` are the derivatives by t.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import torch
from torch import Tensor


def expand_like(t: Tensor, x: Tensor) -> Tensor:
    """Times [item] as [item, 1, ...], with as many axes as x."""
    return t.reshape(t.shape + (1,) * (x.ndim - t.ndim))


@dataclass(frozen=True)
class LinearInterpolant:
    """The straight path of flow matching (Lipman et al. 2022, arXiv 2210.02747) and rectified flow (Liu et al. 2022, arXiv
    2209.03003, eq. 1): alpha = 1 - t, sigma = t."""

    kind: ClassVar[str] = "linear"

    def alpha(self, t: Tensor) -> Tensor:
        """1 - t"""
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        """t"""
        return t

    def alpha_dot(self, t: Tensor) -> Tensor:
        """-1"""
        return torch.full_like(t, -1.0)

    def sigma_dot(self, t: Tensor) -> Tensor:
        """1"""
        return torch.ones_like(t)


@dataclass(frozen=True)
class Cosine:
    """The variance-preserving cosine schedule of Nichol and Dhariwal 2021, arXiv 2102.09672, eq. 17.

        alpha(t)^2 = f(t) / f(0),  f(t) = cos^2((t + s) / (1 + s) * pi / 2),  alpha^2 + sigma^2 = 1

    Args:
        offset: s, 0 or more; it keeps the noise of the first steps from being too small.
        min_alpha: alpha at t = 1, in (0, 1). The paper clips beta at 0.999, which for T = 1000 gives alpha(1) = 4.9e-5.
    """

    kind: ClassVar[str] = "cosine"
    offset: float = 0.008
    min_alpha: float = 4.9e-5

    def __post_init__(self) -> None:
        if not 0 <= self.offset < math.inf or not 0 < self.min_alpha < 1:
            values = f"{self.offset} and {self.min_alpha}"
            raise ValueError(f"offset must be finite, 0 or more, and min_alpha between 0 and 1, not {values}")

    def _phase(self, t: Tensor | float) -> Tensor:
        return (torch.as_tensor(t) + self.offset) / (1 + self.offset) * (math.pi / 2)

    def alpha(self, t: Tensor) -> Tensor:
        """cos(phase(t)) / cos(phase(0)), at least `min_alpha`"""
        return (self._phase(t).cos() / self._phase(0.0).cos()).clamp(self.min_alpha, 1.0)

    def sigma(self, t: Tensor) -> Tensor:
        """sqrt(1 - alpha^2)"""
        return (1 - self.alpha(t) ** 2).clamp_min(0.0).sqrt()

    def alpha_dot(self, t: Tensor) -> Tensor:
        """-sin(phase(t)) / cos(phase(0)) * dphase/dt"""
        return -self._phase(t).sin() / self._phase(0.0).cos() * (math.pi / 2 / (1 + self.offset))

    def sigma_dot(self, t: Tensor) -> Tensor:
        """-alpha alpha_dot / sigma; infinite at t = 0, so sigma is clamped to 1e-4"""
        return -self.alpha(t) * self.alpha_dot(t) / self.sigma(t).clamp_min(1e-4)


@dataclass(frozen=True)
class LinearBetas:
    """The variance-preserving schedule of DDPM (Ho et al. 2020, arXiv 2006.11239, section 4): T betas in equal steps.

        alpha(t)^2 = product of (1 - beta_i) over the first t T steps,  alpha^2 + sigma^2 = 1

    In continuous time: log alpha^2 = sum of log(1 - beta_i) = -sum of (beta_i + beta_i^2 / 2 + beta_i^3 / 3), each sum an
    integral by the midpoint rule. With n = t T, b and e the line of betas at half a step and at n + half a step:

        sum of beta = n (b + e) / 2,  of beta^2 = n (b^2 + be + e^2) / 3,  of beta^3 = n (b^3 + b^2 e + b e^2 + e^3) / 4

    At all T steps log alpha^2 is within 1e-5 of the product's. alpha(1) is above 0: 6.4e-3 for the defaults. Betas that rise by
    more than twice the first in a step have b < 0, with which alpha would grow at first: there log alpha^2 is a straight line
    within the first step.

    Args:
        beta_start, beta_end: the first and the last beta.
        num_steps: T.

    Raises:
        ValueError: betas that fall, are not positive, or reach 0.1, where the third-order series is too short; T < 2.
    """

    kind: ClassVar[str] = "linear_betas"
    beta_start: float = 1e-4
    beta_end: float = 0.02
    num_steps: int = 1000

    def __post_init__(self) -> None:
        if self.num_steps < 2 or not 0 < self.beta_start <= self.beta_end < 0.1:
            betas = f"from {self.beta_start} to {self.beta_end} in {self.num_steps} steps"
            raise ValueError(f"betas must be above 0, must not fall and must stay below 0.1, in 2 steps or more; not {betas}")

    @property
    def _slope(self) -> float:
        return (self.beta_end - self.beta_start) / (self.num_steps - 1)

    @property
    def _steep(self) -> bool:
        return self.beta_start <= self._slope / 2

    def _log_alpha_squared(self, t: Tensor) -> Tensor:
        n, b = t * self.num_steps, self.beta_start - self._slope / 2
        e = b + self._slope * n
        log = -n * ((b + e) / 2 + (b * b + b * e + e * e) / 6 + (b**3 + b * b * e + b * e * e + e**3) / 12)
        return torch.where(n < 1, n * math.log1p(-self.beta_start), log) if self._steep else log

    def alpha(self, t: Tensor) -> Tensor:
        """exp(log alpha^2 / 2)"""
        return (self._log_alpha_squared(t) / 2).exp()

    def sigma(self, t: Tensor) -> Tensor:
        """sqrt(1 - alpha^2)"""
        return (-torch.expm1(self._log_alpha_squared(t))).clamp_min(0.0).sqrt()

    def alpha_dot(self, t: Tensor) -> Tensor:
        """alpha / 2 * d(log alpha^2)/dt"""
        e = self.beta_start + self._slope * (t * self.num_steps - 0.5)
        rate = e + e**2 / 2 + e**3 / 3
        if self._steep:
            rate = torch.where(t * self.num_steps < 1, -math.log1p(-self.beta_start), rate)
        return -self.alpha(t) * (self.num_steps / 2) * rate

    def sigma_dot(self, t: Tensor) -> Tensor:
        """-alpha alpha_dot / sigma; infinite at t = 0, so sigma is clamped to 1e-4"""
        return -self.alpha(t) * self.alpha_dot(t) / self.sigma(t).clamp_min(1e-4)


Schedule: TypeAlias = LinearInterpolant | Cosine | LinearBetas
