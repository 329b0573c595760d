"""Directions, conversions there and back, and the weights of errors, against definitions written out."""

import itertools
import math

import pytest
import torch

from transfusion import config, rng
from transfusion.diffusion import times
from transfusion.diffusion.process import PAPER, Diffusion, Prediction
from transfusion.diffusion.sampler import DDPM
from transfusion.diffusion.schedule import Cosine, LinearBetas, LinearInterpolant
from transfusion.diffusion.times import LogitNormal, Tabulated, Uniform, shifted

KINDS: tuple[Prediction, ...] = ("x0", "eps", "v", "velocity")
SCHEDULES = (LinearInterpolant(), Cosine(), LinearBetas())


def some(count: int = 64) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    t = torch.linspace(0.02, 0.98, count, dtype=torch.float64)
    return torch.randn(count, 3, 4).double(), torch.randn(count, 3, 4).double(), t


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: s.kind)
def test_time_runs_from_clean_to_noise(schedule) -> None:
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    left = 6.36e-3 if schedule.kind == "linear_betas" else 0.0  # of the signal, at the end
    assert torch.allclose(schedule.alpha(ends), torch.tensor([1.0, left]).double(), atol=1e-4)
    assert torch.allclose(schedule.sigma(ends), torch.tensor([0.0, (1 - left**2) ** 0.5]).double(), atol=1e-6)
    x0, eps, _ = some(2)
    noisy = Diffusion(schedule=schedule).add_noise(x0, eps, ends)
    assert torch.allclose(noisy[0], x0[0]) and torch.allclose(noisy[1], eps[1] + left * x0[1], atol=1e-3)
    t = torch.linspace(0, 1, 999, dtype=torch.float64)
    assert (schedule.alpha(t).diff() < 0).all() and (schedule.sigma(t).diff() > 0).all()


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: s.kind)
def test_rates_are_derivatives(schedule) -> None:
    t = torch.linspace(0.05, 0.95, 50, dtype=torch.float64, requires_grad=True)
    for value, rate in ((schedule.alpha, schedule.alpha_dot), (schedule.sigma, schedule.sigma_dot)):
        (slope,) = torch.autograd.grad(value(t).sum(), t)
        assert torch.allclose(slope, rate(t), atol=1e-9)


def test_cosine_is_nichol_and_dhariwals() -> None:
    """signal^2 of T = 1000 steps, built from their betas clipped at 0.999, as in their reference code's definition."""

    def f(t: float) -> float:
        return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

    betas = [min(1 - f((i + 1) / 1000) / f(i / 1000), 0.999) for i in range(1000)]
    expected = torch.tensor(list(itertools.accumulate((1 - b for b in betas), lambda a, b: a * b))).double()
    t = torch.arange(1, 1001).double() / 1000
    assert (PAPER.schedule.alpha(t) ** 2 - expected).abs().max() < 1e-6
    assert PAPER.schedule.alpha(t[-1:]).item() == pytest.approx(math.sqrt(expected[-1].item()), rel=0.02)


@pytest.mark.parametrize(
    "betas",
    [
        LinearBetas(),
        LinearBetas(beta_start=1e-3, beta_end=0.05, num_steps=200),
        LinearBetas(num_steps=100),
        LinearBetas(beta_end=0.05, num_steps=50),  # DiffWave's (arXiv 2009.09761)
        LinearBetas(beta_start=0.01, beta_end=0.01, num_steps=100),
    ],
    ids=lambda b: f"{b.beta_start}-{b.beta_end}-{b.num_steps}",
)
def test_linear_betas_are_ho_et_als(betas: LinearBetas) -> None:
    """signal^2 against the product over the betas, at every step: within 1e-5 where they end at 0.02 (measured: 8e-6 of its log)."""
    product = (1 - torch.linspace(betas.beta_start, betas.beta_end, betas.num_steps, dtype=torch.float64)).log().cumsum(0)
    t = torch.arange(1, betas.num_steps + 1).double() / betas.num_steps
    assert (2 * betas.alpha(t).log() - product).abs().max() < 1e-5 * (betas.beta_end / 0.02) ** 4
    single = betas.alpha(t.float()).double()
    assert (single - betas.alpha(t)).abs().max() < 1e-6
    assert (betas.alpha(t) ** 2 + betas.sigma(t) ** 2 - 1).abs().max() < 1e-12
    assert betas.alpha(torch.zeros(())) == 1 and betas.sigma(torch.zeros(())) == 0
    fine = torch.linspace(0, 1, 20 * betas.num_steps, dtype=torch.float64)
    assert (betas.alpha(fine).diff() < 0).all() and (betas.sigma(fine).diff() > 0).all()
    middle, width = (fine[1:] + fine[:-1]) / 2, fine[1] - fine[0]
    slope, rate = betas.alpha(fine).diff() / width, betas.alpha_dot(middle)
    away = (middle * betas.num_steps - 1).abs() > 0.1  # from a kink behind the first step
    assert ((slope - rate) / rate)[away].abs().max() < 1e-2


@pytest.mark.parametrize(
    "bad", [{"beta_start": 0.0}, {"beta_end": 0.5}, {"beta_start": 0.03}, {"num_steps": 1}, {"beta_start": float("nan")}]
)
def test_betas_that_cannot_be_are_refused(bad: dict) -> None:
    with pytest.raises(ValueError, match="betas must be above 0, must not fall"):
        LinearBetas(**bad)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: s.kind)
@pytest.mark.parametrize(("a", "b"), list(itertools.product(KINDS, KINDS)))
def test_any_prediction_to_any_other_and_back(schedule, a: Prediction, b: Prediction) -> None:
    d = Diffusion(schedule=schedule)
    x0, eps, t = some()
    x_t = d.add_noise(x0, eps, t)
    value = d.target(a, x0, eps, t)
    there = d.convert(value, a, b, x_t, t)
    assert torch.allclose(there, d.target(b, x0, eps, t), atol=1e-8)
    assert torch.allclose(d.convert(there, b, a, x_t, t), value, atol=1e-8)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: s.kind)
@pytest.mark.parametrize("kind", KINDS)
def test_at_both_ends_of_time_what_can_be_known_is_right(schedule, kind: Prediction) -> None:
    d = Diffusion(schedule=schedule)
    x0, eps, _ = some(2)
    t = torch.tensor([0.0, 1.0], dtype=torch.float64)
    x_t = d.add_noise(x0, eps, t)
    clean, sigma = d.to_x0_eps(kind, d.target(kind, x0, eps, t), x_t, t)
    if not (kind == "eps" and schedule == LinearInterpolant()):
        assert torch.allclose(clean[0], x0[0], atol=1e-6)
    if kind != "eps":  # at t = 1 eps and x_t are the same
        assert torch.allclose(clean[1], x0[1], atol=1e-6)
    if kind != "x0":  # at t = 0 x0 and x_t are the same
        assert torch.allclose(sigma[0], eps[0], atol=1e-6)
    assert torch.allclose(sigma[1], eps[1], atol=1e-3 if schedule.kind != "linear_betas" or kind != "x0" else 1e-9)


def test_kinds_are_what_their_papers_say() -> None:
    x0, eps, t = some()
    s = t[:, None, None]
    assert torch.allclose(Diffusion(schedule=LinearInterpolant()).target("velocity", x0, eps, t), eps - x0)
    a, b = Cosine().alpha(s), Cosine().sigma(s)
    assert torch.allclose(Diffusion(schedule=Cosine()).target("v", x0, eps, t), a * eps - b * x0)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: s.kind)
@pytest.mark.parametrize(("a", "b"), [(a, b) for a, b in itertools.product(KINDS, KINDS) if a != b])
def test_the_loss_weight_turns_errors_of_one_kind_into_another(schedule, a: Prediction, b: Prediction) -> None:
    if a == "eps" and schedule == LinearInterpolant():
        with pytest.raises(ValueError, match="no signal left at t = 1"):
            Diffusion(schedule=schedule, prediction=a, loss=b)
        return
    d = Diffusion(schedule=schedule, prediction=a, loss=b, min_divisor=1e-9)
    x0, eps, t = some()
    x_t = d.add_noise(x0, eps, t)
    guess = d.target(a, x0, eps, t) + 0.1 * torch.randn_like(x0)
    direct = (d.convert(guess, a, b, x_t, t) - d.target(b, x0, eps, t)).square().flatten(1).mean(1)
    weighted = (guess - d.target(a, x0, eps, t)).square().flatten(1).mean(1) * d.loss_weight(t)
    assert torch.allclose(direct, weighted, rtol=1e-6)


def test_x0_under_a_velocity_loss_is_jits_with_its_clip() -> None:
    d = Diffusion()
    t = torch.tensor([0.01, 0.05, 0.5, 1.0])
    assert torch.allclose(d.loss_weight(t), 1 / t.clamp_min(0.05) ** 2)


@pytest.mark.parametrize("min_divisor", [0.05, 0.2])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: s.kind)
@pytest.mark.parametrize(("a", "b"), list(itertools.product(KINDS, KINDS)))
def test_no_loss_weight_exceeds_its_bound(schedule, a: Prediction, b: Prediction, min_divisor: float) -> None:
    """1 / min_divisor^2 at every time, the ends included; sigma_dot of the curved schedules has no bound of its own."""
    if a == "eps" and schedule == LinearInterpolant():
        return  # refused, above
    d = Diffusion(schedule=schedule, prediction=a, loss=b, min_divisor=min_divisor)
    for dtype in (torch.float32, torch.float64):
        t = torch.cat([torch.tensor([0.0, 1e-7, 1e-5, 1e-3, 1.0]), torch.linspace(0, 1, 500)]).to(dtype)
        weight = d.loss_weight(t)
        assert weight.isfinite().all() and (weight >= 0).all() and weight.max() <= min_divisor**-2 * (1 + 1e-6)


def test_the_bound_leaves_weights_that_were_bounded_as_they_were() -> None:
    """x0 under a velocity loss on the straight path, the default, to the digit."""
    for dtype in (torch.float32, torch.float64):
        t = torch.linspace(0, 1, 20_001, dtype=dtype)
        assert torch.equal(Diffusion().loss_weight(t), (torch.ones_like(t) / t.clamp_min(0.05)) ** 2)
        away = t[t > 0.1]
        d = Diffusion(schedule=Cosine(), prediction="v", loss="velocity")
        assert torch.equal(d.loss_weight(away), (d.determinant("velocity", away) / d.determinant("v", away).abs()) ** 2)


def test_drawn_times_follow_their_distribution_and_interval() -> None:
    keys = [rng.key("t", i) for i in range(4000)]
    free = torch.tensor([[0.0, 1.0]]).expand(4000, 2)
    t = times.sample_times(LogitNormal(0.8, 0.5), keys, free)
    logit = (t / (1 - t)).log()
    assert logit.mean().item() == pytest.approx(0.8, abs=0.03) and logit.std().item() == pytest.approx(0.5, abs=0.03)
    t = times.sample_times(Uniform(1000), keys, free)
    assert t.min() >= 1 / 1000 and t.max() <= 1 and ((t * 1000).round() - t * 1000).abs().max() < 1e-3
    assert t.mean().item() == pytest.approx(0.5, abs=0.02)
    t = times.sample_times(Uniform(), keys, torch.tensor([[0.2, 0.5]]).expand(4000, 2))
    assert t.min() >= 0.2 and t.max() <= 0.5
    assert torch.equal(times.sample_times(LogitNormal(), keys[:5], torch.zeros(5, 2)), torch.zeros(5))


def test_a_time_within_an_interval_is_one_of_the_distribution_itself() -> None:
    """The paper's t <= 500 of 1,000 are the schedule's own first 500 steps; a limited logit-normal is the same curve, cut."""
    keys = [rng.key("t", i) for i in range(4000)]

    def drawn(distribution: times.TimeDistribution, low: float, high: float) -> torch.Tensor:
        return times.sample_times(distribution, keys, torch.tensor([[low, high]]).expand(4000, 2))

    steps = drawn(Uniform(1000), 0.0, 0.5) * 1000
    assert set(steps.round().long().tolist()) <= set(range(1, 501)) and (steps - steps.round()).abs().max() < 1e-3
    assert steps.max() == 500 and steps.min() == 1
    free = drawn(LogitNormal(0.8, 0.8), 0.0, 1.0)
    cut = free[(free >= 0.2) & (free <= 0.5)]
    limited = drawn(LogitNormal(0.8, 0.8), 0.2, 0.5)
    quantiles = torch.tensor([0.1, 0.5, 0.9])
    assert torch.allclose(limited.quantile(quantiles), cut.quantile(quantiles), atol=0.015)
    beyond = drawn(times.Tabulated((0.0, 0.4)), 0.6, 0.8)  # it has no such times: evenly
    assert beyond.min() >= 0.6 and beyond.max() <= 0.8 and beyond.mean().item() == pytest.approx(0.7, abs=0.01)


def test_a_time_belongs_to_its_key() -> None:
    keys = [rng.key("t", i) for i in range(6)]
    free = torch.tensor([[0.0, 1.0]]).expand(6, 2)
    t = times.sample_times(LogitNormal(), keys, free)
    assert torch.equal(times.sample_times(LogitNormal(), keys[::-1], free), t.flip(0))
    assert len(set(t.tolist())) == 6


def test_shift_moves_times_as_it_moves_a_samplers_steps() -> None:
    keys, free = [rng.key("t", i) for i in range(4000)], torch.tensor([[0.0, 1.0]]).expand(4000, 2)
    for plain, moved in (
        (Uniform(), Uniform(shift=3.0)),
        (LogitNormal(), LogitNormal(shift=3.0)),
        (Uniform(10), Uniform(10, 3.0)),
    ):
        t, s = times.sample_times(plain, keys, free), times.sample_times(moved, keys, free)
        assert torch.allclose(s, 3 * t / (1 + 2 * t), atol=1e-6) and s.mean() > t.mean() + 0.05
    higher = times.sample_times(LogitNormal(0.8 + math.log(3), 0.8), keys, free)
    assert torch.allclose(times.sample_times(LogitNormal(0.8, 0.8, shift=3.0), keys, free), higher, atol=1e-6)
    assert [shifted(t, 5.0) for t in (0.0, 1.0)] == [0.0, 1.0] and shifted(0.3, 1.0) == 0.3
    assert [DDPM(4, shift=3.0).times()[i] for i in range(5)] == [shifted(1 - i / 4, 3.0) for i in range(5)]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Uniform(shift=0.0), "shift must be positive"),
        (lambda: LogitNormal(shift=math.inf), "shift must be positive"),
        (lambda: LogitNormal(std=0.0), "std must be positive"),
        (lambda: Uniform(-1), "num_steps must be 0"),
        (lambda: Tabulated((0.5,)), "two or more times"),
        (lambda: Tabulated((0.5, 0.2)), "never fall"),
        (lambda: Tabulated((0.5, 1.2)), "never fall"),
    ],
)
def test_times_that_cannot_be_are_refused(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


class Late:
    """Times with the density 2 t."""

    def quantile(self, u: float) -> float:
        return math.sqrt(u)


def test_times_may_be_any_quantile_function() -> None:
    """An object made in Python, or its table, which a configuration can hold."""
    keys, free = [rng.key("t", i) for i in range(4000)], torch.tensor([[0.0, 1.0]]).expand(4000, 2)
    own = Diffusion(times=Late())
    t = times.sample_times(own.times, keys, free)
    assert t.mean().item() == pytest.approx(2 / 3, abs=0.01)
    table = Tabulated.of(Late().quantile)
    assert (times.sample_times(table, keys, free) - t).abs().max() < 0.04 and table.quantile(0.25) == pytest.approx(0.5)
    assert config.from_plain(Diffusion, config.to_plain(Diffusion(times=table))).times == table
    with pytest.raises(config.ConfigError, match="Late made in Python cannot be written"):
        config.to_plain(own)


def test_a_configuration_names_schedules_and_times() -> None:
    chosen = Diffusion(schedule=LinearBetas(num_steps=500), prediction="eps", loss="eps", times=Uniform(500, shift=2.0))
    assert config.from_plain(Diffusion, config.to_plain(chosen)) == chosen
    with pytest.raises(config.ConfigError, match="did you mean 'linear_betas'"):
        config.from_plain(Diffusion, {"schedule": {"kind": "linear_beta"}})
