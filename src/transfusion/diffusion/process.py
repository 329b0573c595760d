"""Noising and what a network may predict of it: clean data, noise, v, or velocity, and any of them from any other.

Every kind is a fixed mix of clean data and noise, kind = p * x0 + q * eps:

    x0        p = 1             q = 0
    eps       p = 0             q = 1
    v         p = -noise        q = signal        (Salimans and Ho 2022, arXiv 2202.00512, appendix D)
    velocity  p = signal_rate   q = noise_rate    (dx_t / dt: the flow-matching target)

Together with x_t = signal * x0 + noise * eps that is two equations for two unknowns, with determinant
d = signal * q - noise * p:

    x0 = (q * x_t - noise * kind) / d,   eps = (signal * kind - p * x_t) / d

and at fixed x_t an error in kind a is an error d_b / d_a as large in kind b.
"""

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from transfusion.diffusion.schedule import Cosine, LinearInterpolant, Schedule
from transfusion.diffusion.times import LogitNormal, TimeDistribution, Times, Uniform

Prediction: TypeAlias = Literal["x0", "eps", "v", "velocity"]


def _over(t: Tensor, like: Tensor) -> Tensor:
    return t.reshape(t.shape + (1,) * (like.ndim - t.ndim))


@dataclass(frozen=True)
class Diffusion:
    """What is noised how, what the network predicts, and what its error is measured on.

    Args:
        schedule: signal and noise by time.
        prediction: what the network puts out.
        loss: the kind on which the squared error is taken.
        times: at which times items are trained. In Python also any object with a `quantile(u)`.
        min_divisor: least |d| of the prediction in the loss, which bounds the weight of nearly clean items. JiT (arXiv
            2511.13720) takes 0.05 for x0 under a velocity loss.
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
            raise ValueError(
                "on this schedule no signal is left at t = 1, where noise says nothing of the data: predict x0, v or velocity"
            )

    def add_noise(
        self, x0: Float[Tensor, "item ..."], eps: Float[Tensor, "item ..."], t: Float[Tensor, " item"]
    ) -> Float[Tensor, "item ..."]:
        """x_t"""
        return _over(self.schedule.alpha(t), x0) * x0 + _over(self.schedule.sigma(t), x0) * eps

    def coefficients(self, kind: Prediction, t: Tensor) -> tuple[Tensor, Tensor]:
        """(p, q) of a kind at times t."""
        s = self.schedule
        if kind == "x0":
            return torch.ones_like(t), torch.zeros_like(t)
        if kind == "eps":
            return torch.zeros_like(t), torch.ones_like(t)
        if kind == "v":
            return -s.sigma(t), s.alpha(t)
        if kind == "velocity":
            return s.alpha_dot(t), s.sigma_dot(t)
        raise ValueError(f"no prediction {kind!r}: there are x0, eps, v and velocity")

    def target(self, kind: Prediction, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """The kind, from clean data and noise [item, ...] and times [item]."""
        p, q = self.coefficients(kind, t)
        return _over(p, x0) * x0 + _over(q, x0) * eps

    def determinant(self, kind: Prediction, t: Tensor) -> Tensor:
        """d = signal * q - noise * p"""
        p, q = self.coefficients(kind, t)
        return self.schedule.alpha(t) * q - self.schedule.sigma(t) * p

    def to_x0_eps(self, kind: Prediction, value: Tensor, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """(x0, eps) that a value of a kind means at x_t. Values and x_t are [item, ...], t is [item].

        What is given comes back as it is. |d| is kept above 1e-6: x0 says nothing of the noise at t = 0, and eps nothing of the
        data where no signal is left.
        """
        p, q = self.coefficients(kind, t)
        d = self.determinant(kind, t)
        d = torch.where(d.abs() < 1e-6, torch.where(d < 0, -1e-6, 1e-6).to(d), d)
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        x0 = (_over(q, value) * x_t - _over(sigma, value) * value) / _over(d, value)
        eps = (_over(alpha, value) * value - _over(p, value) * x_t) / _over(d, value)
        return value if kind == "x0" else x0, value if kind == "eps" else eps

    def convert(self, value: Tensor, source: Prediction, kind: Prediction, x_t: Tensor, t: Tensor) -> Tensor:
        """A value of one kind as another, at x_t [item, ...] and t [item]."""
        x0, eps = self.to_x0_eps(source, value, x_t, t)
        return self.target(kind, x0, eps, t)

    def loss_weight(self, t: Float[Tensor, " item"]) -> Float[Tensor, " item"]:
        """Factor that turns a squared error of `prediction` into one of `loss`: (d_loss / d_prediction)^2."""
        if self.loss == self.prediction:
            return torch.ones_like(t)
        d = self.determinant(self.prediction, t).abs().clamp_min(self.min_divisor)
        return (self.determinant(self.loss, t) / d) ** 2

    def conversion_weight(self, kind: Prediction, t: Float[Tensor, " item"]) -> Float[Tensor, " item"]:
        """Share of a squared error of `kind`, made from a prediction, that is counted: (|d| / max(|d|, min_divisor))^2 of the
        prediction, as `min_divisor` bounds the loss; all of it where the prediction is of that kind."""
        if kind == self.prediction:
            return torch.ones_like(t)
        d = self.determinant(self.prediction, t).abs()
        return (d / d.clamp_min(self.min_divisor)) ** 2


PAPER = Diffusion(schedule=Cosine(), prediction="eps", loss="eps", times=Uniform(num_steps=1000))
"""The paper's: DDPM, cosine schedule, noise prediction, T = 1000."""
