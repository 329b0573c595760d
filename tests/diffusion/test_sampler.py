"""Samplers on data whose best prediction is known: a Gaussian, and two points. Every one must bring noise to them, whatever the
schedule and whatever the network predicts."""

import itertools
from itertools import pairwise
from typing import get_args

import pytest
import torch

from transfusion.diffusion.guidance import Guidance, rescaled
from transfusion.diffusion.process import Diffusion, Prediction
from transfusion.diffusion.sampler import DDIM, DDPM, Euler, Heun, Sampler, init_noise
from transfusion.diffusion.schedule import Cosine, LinearBetas, LinearInterpolant

MEAN, STD = 0.7, 0.4


def exact(schedule):
    """(x0, eps) in expectation given x_t, where x0 ~ Normal(MEAN, STD^2)."""

    def predict(x: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        a, b = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
        gain = a * STD**2 / (a**2 * STD**2 + b**2)
        x0 = MEAN + gain * (x - a * MEAN)
        return x0, (x - a * x0) / b.clamp_min(1e-9)

    return predict


def run(sampler, schedule, count: int = 20_000) -> torch.Tensor:
    g = torch.Generator().manual_seed(0)
    x = init_noise(schedule, torch.randn(count, 1, generator=g).double())
    times = sampler.times()
    for now, later in pairwise(times):
        t, s = torch.full((count,), now).double(), torch.full((count,), later).double()
        x, _ = sampler.step(schedule, exact(schedule), lambda: torch.randn(count, 1, generator=g).double(), x, t, s)
    return x


SAMPLERS: list[Sampler] = [Euler(200), Heun(60), DDIM(100), DDIM(100, eta=0.5), DDPM(250)]


def test_every_sampler_is_tested() -> None:
    assert {type(sampler) for sampler in SAMPLERS} == {*get_args(Sampler)} == {type(s) for _, _, s in COMBINATIONS}


@pytest.mark.parametrize("schedule", [LinearInterpolant(), Cosine(), LinearBetas()], ids=lambda s: s.kind)
@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda s: f"{s.kind}")
def test_noise_comes_to_the_data(schedule, sampler) -> None:
    x = run(sampler, schedule)
    assert x.mean().item() == pytest.approx(MEAN, abs=0.02)
    assert x.std().item() == pytest.approx(STD, abs=0.02)


SHARE, HIGH, LOW, WIDTH = 0.7, 1.0, -0.5, 0.15
"""Two narrow peaks: HIGH in 70 % of the data, LOW in the rest."""
COMBINATIONS = [
    (schedule, prediction, sampler)
    for schedule, prediction, sampler in itertools.product(
        (LinearInterpolant(), Cosine(), LinearBetas()),
        ("x0", "eps", "v", "velocity"),
        (Euler(100), Heun(80), DDIM(60), DDPM(250)),
    )
    if (schedule, prediction) != (LinearInterpolant(), "eps")  # refused: x0 cannot be computed from eps at t = 1
]


@pytest.mark.parametrize(("schedule", "prediction", "sampler"), COMBINATIONS, ids=lambda p: getattr(p, "kind", p))
def test_every_schedule_prediction_and_sampler_finds_both_peaks(schedule, prediction: Prediction, sampler) -> None:
    """The network's answer, of the kind that it predicts, is the exact expectation: it is split as in generation. DDPM
    takes 250 of its 1000 steps; fewer do for the others."""
    diffusion = Diffusion(schedule=schedule, prediction=prediction, loss=prediction)

    def predict(x: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        a, b = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
        variance = (a * WIDTH) ** 2 + b**2
        means = torch.tensor([HIGH, LOW]).double()
        odds = (-((x - a * means) ** 2) / (2 * variance) + torch.tensor([SHARE, 1 - SHARE]).double().log()).softmax(-1)
        x0 = (odds * (means + a * WIDTH**2 / variance * (x - a * means))).sum(-1, keepdim=True)
        answer = diffusion.target(prediction, x0, (x - a * x0) / b.clamp_min(1e-9), t)
        return diffusion.to_x0_eps(prediction, answer, x, t)

    g, count = torch.Generator().manual_seed(1), 3000
    x = init_noise(schedule, torch.randn(count, 1, generator=g).double())
    for now, later in pairwise(sampler.times()):
        t, s = torch.full((count,), now).double(), torch.full((count,), later).double()
        x, _ = sampler.step(schedule, predict, lambda: torch.randn(count, 1, generator=g).double(), x, t, s)
    high = x > (HIGH + LOW) / 2
    assert high.double().mean().item() == pytest.approx(SHARE, abs=0.03)  # 4 standard errors of the draw
    for peak, mean in ((x[high], HIGH), (x[~high], LOW)):
        assert peak.mean().item() == pytest.approx(mean, abs=0.02)
        assert peak.std().item() == pytest.approx(WIDTH, abs=0.02)


def test_steps_of_a_part_are_steps_of_the_whole() -> None:
    """250 of DDPM's T = 1000: every fourth time."""
    whole = DDPM(1000).times()
    assert DDPM(250).times() == pytest.approx(whole[::4], abs=1e-12) and DDPM().num_steps == 250


def test_heun_is_of_second_order() -> None:
    """Doubling the steps divides Euler's error by 2 and Heun's by 4."""
    schedule = LinearInterpolant()
    best = run(Heun(800), schedule, 200)
    error = {s: (run(s, schedule, 200) - best).abs().mean().item() for s in (Euler(20), Euler(40), Heun(20), Heun(40))}
    assert error[Euler(20)] / error[Euler(40)] == pytest.approx(2, rel=0.2)
    assert error[Heun(20)] / error[Heun(40)] > 3


def test_items_at_different_times_move_as_each_would_alone() -> None:
    schedule, predict = Cosine(), exact(Cosine())
    x, t, s = torch.randn(3, 1).double(), torch.tensor([1.0, 0.5, 0.1]).double(), torch.tensor([0.9, 0.4, 0.0]).double()
    for sampler in (Euler(10), Heun(10), DDIM(10)):
        together, _ = sampler.step(schedule, predict, lambda: x, x, t, s)
        for i in range(3):
            alone, _ = sampler.step(schedule, predict, lambda: x, x[i : i + 1], t[i : i + 1], s[i : i + 1])
            assert torch.allclose(together[i], alone[0], atol=1e-12)


def test_clipping_bounds_the_estimate() -> None:
    schedule = LinearInterpolant()
    x, t = torch.full((1, 1), 5.0), torch.tensor([0.5])
    _, clean = Euler(2, clip=1.0).step(schedule, lambda x, t: (x * 3, x), lambda: x, x, t, torch.tensor([0.0]))
    assert clean.item() == 1.0


def test_times_run_from_noise_to_clean_and_shift_towards_noise() -> None:
    assert Euler(4).times() == [1.0, 0.75, 0.5, 0.25, 0.0]
    shifted = Euler(4, shift=3.0).times()
    assert (
        shifted[0] == 1.0
        and shifted[-1] == 0.0
        and all(a > b for a, b in zip(shifted[1:-1], Euler(4).times()[1:-1], strict=True))
    )
    with pytest.raises(ValueError, match="at least 1 step"):
        Euler(0)


def test_guidance_weights_are_those_of_the_formula() -> None:
    def total(g: Guidance, has_text: bool, has_media: bool) -> dict[tuple[bool, bool], float]:
        branches = g.branches(has_text=has_text, has_media=has_media)
        assert len(branches) <= 1 + g.max_branches
        return {(b.drop_text, b.drop_media): b.weight for b in branches}

    assert total(Guidance(text=3.0), True, False) == {(False, False): 3.0, (True, False): -2.0}
    both = total(Guidance(text=3.0, media=2.0), True, True)
    assert both == {(False, False): 3.0, (True, False): -1.0, (True, True): -1.0}
    assert total(Guidance(text=3.0, media=2.0), False, True) == {(False, False): 2.0, (False, True): -1.0}
    assert total(Guidance(text=3.0, media=2.0), False, False) == {(False, False): 1.0}
    assert total(Guidance(text=1.0), True, True) == {(False, False): 1.0}
    for g in (Guidance(3.0, 2.0), Guidance(2.0, 2.0), Guidance(1.0, 4.0)):
        for text in (True, False):
            for media in (True, False):
                assert sum(total(g, text, media).values()) == pytest.approx(1.0)
    assert Guidance(3.0, low=0.2, high=0.8).active(0.5) and not Guidance(3.0, low=0.2, high=0.8).active(0.9)
    with pytest.raises(ValueError, match="interval"):
        Guidance(low=0.5, high=0.2)
    with pytest.raises(ValueError, match="share"):
        Guidance(rescale=1.5)


def test_rescaled_estimates_have_the_moments_of_the_unguided_ones() -> None:
    guided, conditional = 3 * torch.randn(3, 2, 4, 6) + 1, torch.randn(3, 2, 4, 6)
    found = rescaled(guided, conditional, torch.tensor([1.0, 0.0, 0.5]))
    for statistic in (torch.mean, torch.std):
        torch.testing.assert_close(statistic(found[0], (1, 2)), statistic(conditional[0], (1, 2)))
    assert torch.equal(found[1], guided[1])
    torch.testing.assert_close(found[2].mean((1, 2)), (guided[2].mean((1, 2)) + conditional[2].mean((1, 2))) / 2)
    flat = rescaled(torch.ones(1, 2, 4), conditional[:1, :, 0, :4], torch.ones(1))  # no deviation: nothing is divided by 0
    torch.testing.assert_close(flat, conditional[:1, :, 0, :4].mean(2, keepdim=True).expand(1, 2, 4))
    vector = torch.randn(3, 5)
    assert torch.equal(rescaled(vector, torch.randn(3, 5), torch.ones(3)), vector)
