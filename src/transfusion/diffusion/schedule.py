"""Schedules: how much signal and noise a latent holds at time t.

    x_t = signal(t) * x0 + noise(t) * eps,   t = 0: clean data, t = 1: noise

This file is where the direction of time is stated. `signal_rate` and `noise_rate` are the derivatives by t.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import torch
from torch import Tensor


@dataclass(frozen=True)
class Linear:
    """The straight path of flow matching (Lipman et al. 2022, arXiv 2210.02747): signal 1 - t, noise t."""

    kind: ClassVar[str] = "linear"

    def signal(self, t: Tensor) -> Tensor:
        """1 - t"""
        return 1 - t

    def noise(self, t: Tensor) -> Tensor:
        """t"""
        return t

    def signal_rate(self, t: Tensor) -> Tensor:
        """-1"""
        return torch.full_like(t, -1.0)

    def noise_rate(self, t: Tensor) -> Tensor:
        """1"""
        return torch.ones_like(t)


@dataclass(frozen=True)
class Cosine:
    """The variance-preserving cosine schedule of Nichol and Dhariwal 2021, arXiv 2102.09672, eq. 17.

        signal(t)^2 = f(t) / f(0),  f(t) = cos^2((t + s) / (1 + s) * pi / 2),  signal^2 + noise^2 = 1

    Args:
        offset: s, which keeps the first steps from being too small.
        least: least signal, at t = 1. Their beta is clipped at 0.999, which for T = 1000 leaves signal(1) = 4.9e-5.
    """

    kind: ClassVar[str] = "cosine"
    offset: float = 0.008
    least: float = 4.9e-5

    def _phase(self, t: Tensor | float) -> Tensor:
        return (torch.as_tensor(t) + self.offset) / (1 + self.offset) * (math.pi / 2)

    def signal(self, t: Tensor) -> Tensor:
        """cos of the phase, relative to that of t = 0"""
        return (self._phase(t).cos() / self._phase(0.0).cos()).clamp(self.least, 1.0)

    def noise(self, t: Tensor) -> Tensor:
        """sqrt(1 - signal^2)"""
        return (1 - self.signal(t) ** 2).clamp_min(0.0).sqrt()

    def signal_rate(self, t: Tensor) -> Tensor:
        """-sin of the phase, scaled by the phase's rate"""
        return -self._phase(t).sin() / self._phase(0.0).cos() * (math.pi / 2 / (1 + self.offset))

    def noise_rate(self, t: Tensor) -> Tensor:
        """-signal * signal_rate / noise; infinite at t = 0, where it is cut at noise = 1e-4"""
        return -self.signal(t) * self.signal_rate(t) / self.noise(t).clamp_min(1e-4)


Schedule: TypeAlias = Linear | Cosine
