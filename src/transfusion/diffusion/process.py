"""The diffusion process: noising, and the four quantities that a network may predict, each convertible into any other.

Every kind of prediction is a linear combination of clean data and noise, kind = p x0 + q eps:

    x0        p = 1           q = 0
    eps       p = 0           q = 1
    v         p = -sigma      q = alpha        (Salimans and Ho 2022, arXiv 2202.00512, appendix D)
    velocity  p = alpha_dot   q = sigma_dot    (dx_t/dt: Lipman et al. 2022, arXiv 2210.02747, the flow-matching target)

With x_t = alpha x0 + sigma eps these are two equations for two unknowns, of determinant d = alpha q - sigma p:

    x0 = (q x_t - sigma kind) / d,   eps = (alpha kind - p x_t) / d

At fixed x_t, an error in kind a becomes an error in kind b times d_b / d_a.
"""

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from transfusion.diffusion.schedule import Cosine, LinearInterpolant, Schedule, expand_like
from transfusion.diffusion.times import LogitNormal, TimeDistribution, Times, Uniform

Prediction: TypeAlias = Literal["x0", "eps", "v", "velocity"]


@dataclass(frozen=True)
class Diffusion:
    """Schedule, prediction, loss and training times of a diffusion process.

    Args:
        schedule: alpha and sigma by time.
        prediction: the kind that the network outputs.
        loss: the kind whose squared error is the loss.
        times: distribution of the training times; in Python also any object with a `quantile(u)`.
        min_divisor: |d| of the prediction is clamped to this in `loss_weight`, and no weight exceeds 1 / min_divisor^2,
            whatever the schedule and the kinds: 400 by default. JiT (Li and He 2025, arXiv 2511.13720) takes 0.05 for x0 under
            a velocity loss.

    Raises:
        ValueError: `min_divisor` not above 0, or noise prediction on a schedule with alpha(1) = 0.
    """

    schedule: Schedule = LinearInterpolant()
    prediction: Prediction = "x0"
    loss: Prediction = "velocity"
    times: Times | TimeDistribution = LogitNormal()
    min_divisor: float = 0.05

    def __post_init__(self) -> None:
        if not 0 < self.min_divisor < math.inf:
            raise ValueError(f"min_divisor must be a finite number above 0, not {self.min_divisor}")
        if self.prediction == "eps" and float(self.schedule.alpha(torch.ones(()))) == 0.0:
            fault = "this schedule has no signal left at t = 1, so x0 cannot be computed from eps there"
            raise ValueError(f"{fault}: predict x0, v or velocity")

    def add_noise(
        self, x0: Float[Tensor, "item ..."], eps: Float[Tensor, "item ..."], t: Float[Tensor, " item"]
    ) -> Float[Tensor, "item ..."]:
        """x_t = alpha x0 + sigma eps"""
        return expand_like(self.schedule.alpha(t), x0) * x0 + expand_like(self.schedule.sigma(t), x0) * eps

    def coefficients(self, kind: Prediction, t: Tensor) -> tuple[Tensor, Tensor]:
        """(p, q) of a kind at times t: kind = p x0 + q eps. Raises ValueError for another kind."""
        s = self.schedule
        if kind == "x0":
            return torch.ones_like(t), torch.zeros_like(t)
        if kind == "eps":
            return torch.zeros_like(t), torch.ones_like(t)
        if kind == "v":
            return -s.sigma(t), s.alpha(t)
        if kind == "velocity":
            return s.alpha_dot(t), s.sigma_dot(t)
        raise ValueError(f"no prediction {kind!r}: take x0, eps, v or velocity")

    def target(self, kind: Prediction, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """p x0 + q eps, from clean data and noise [item, ...] and times [item]."""
        p, q = self.coefficients(kind, t)
        return expand_like(p, x0) * x0 + expand_like(q, x0) * eps

    def determinant(self, kind: Prediction, t: Tensor) -> Tensor:
        """d = alpha q - sigma p"""
        p, q = self.coefficients(kind, t)
        return self.schedule.alpha(t) * q - self.schedule.sigma(t) * p

    def to_x0_eps(self, kind: Prediction, value: Tensor, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """(x0, eps) from a value of a kind at x_t. Value and x_t are [item, ...], t is [item].

        A value of kind x0 or eps is returned unchanged. |d| is clamped to 1e-6: eps cannot be computed from x0 at t = 0, nor x0
        from eps where alpha = 0.
        """
        p, q = self.coefficients(kind, t)
        d = self.determinant(kind, t)
        d = torch.where(d.abs() < 1e-6, torch.where(d < 0, -1e-6, 1e-6).to(d), d)
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        x0 = (expand_like(q, value) * x_t - expand_like(sigma, value) * value) / expand_like(d, value)
        eps = (expand_like(alpha, value) * value - expand_like(p, value) * x_t) / expand_like(d, value)
        return value if kind == "x0" else x0, value if kind == "eps" else eps

    def convert(self, value: Tensor, source: Prediction, kind: Prediction, x_t: Tensor, t: Tensor) -> Tensor:
        """A value of kind `source` as `kind`, at x_t [item, ...] and t [item]."""
        x0, eps = self.to_x0_eps(source, value, x_t, t)
        return self.target(kind, x0, eps, t)

    def loss_weight(self, t: Float[Tensor, " item"]) -> Float[Tensor, " item"]:
        """min(|d_loss| / max(|d_prediction|, min_divisor), 1 / min_divisor)^2: turns a squared error of `prediction` into one
        of `loss`, at most 1 / min_divisor^2 times as large. 1 where both are of one kind."""
        if self.loss == self.prediction:
            return torch.ones_like(t)
        d = self.determinant(self.prediction, t).abs().clamp_min(self.min_divisor)
        ratio = self.determinant(self.loss, t).abs() / d
        # d_velocity has sigma_dot, which grows without bound where a variance-preserving schedule is nearly clean
        return torch.minimum(ratio, torch.ones_like(t) / torch.full_like(t, self.min_divisor)) ** 2

    def conversion_weight(self, kind: Prediction, t: Float[Tensor, " item"]) -> Float[Tensor, " item"]:
        """(|d| / max(|d|, min_divisor))^2 of the prediction; 1 where the prediction is of that kind.

        Weight for a squared error of a `kind` converted from a prediction: it down-weights errors where the conversion divides
        by less than `min_divisor`, as `loss_weight` does.
        """
        if kind == self.prediction:
            return torch.ones_like(t)
        d = self.determinant(self.prediction, t).abs()
        return (d / d.clamp_min(self.min_divisor)) ** 2


PAPER = Diffusion(schedule=Cosine(), prediction="eps", loss="eps", times=Uniform(num_steps=1000))
"""The Transfusion paper's (arXiv 2408.11039): DDPM, cosine schedule, noise prediction, T = 1000."""
