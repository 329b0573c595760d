"""Distributions of the time at which an item is trained."""

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import ClassVar, TypeAlias

import torch
from torch import Tensor

from transfusion import chance


@dataclass(frozen=True)
class Uniform:
    """Uniform times.

    Args:
        steps: T: times are 1/T, 2/T .. 1, the steps of DDPM (Ho et al. 2020). 0: any time in [0, 1].
    """

    kind: ClassVar[str] = "uniform"
    steps: int = 0

    def quantile(self, u: float) -> float:
        """Time of a uniform number u in [0, 1)."""
        return u if self.steps == 0 else (int(u * self.steps) + 1) / self.steps


@dataclass(frozen=True)
class LogitNormal:
    """logit(t) ~ Normal(mean, std) (Esser et al. 2024, arXiv 2403.03206, section 3.1).

    Args:
        mean: above 0: more noise. JiT's -0.8 (arXiv 2511.13720, where t = 1 is data) is +0.8 here.
        std: spread.
    """

    kind: ClassVar[str] = "logit_normal"
    mean: float = 0.8
    std: float = 0.8

    def quantile(self, u: float) -> float:
        """Time of a uniform number u in [0, 1)."""
        z = NormalDist(self.mean, self.std).inv_cdf(min(max(u, 1e-9), 1 - 1e-9))
        return 1 / (1 + math.exp(-z))


Times: TypeAlias = Uniform | LogitNormal


def draw(times: Times, keys: list[int], intervals: Tensor) -> Tensor:
    """A time for each item, Float32[item]: item i's depends on keys[i] alone, and lies in its interval (low, high)."""
    u = torch.tensor([times.quantile(chance.uniform(key, "time")) for key in keys])
    low, high = intervals.to("cpu", torch.float32).unbind(-1)
    return low + (high - low) * u
