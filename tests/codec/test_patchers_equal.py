"""The equalities of tests/test_equalities.py with the U-Net (with and without attention) and with custom modules.

Random weights everywhere, zero-initialised ones too: `small.model` sees to it.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import test_equalities
from small import FREE, IMAGE, SOUND, VECTOR, documents, model, picture
from transfusion.api import Transfusion
from transfusion.codec.patchers import UNetPatcherConfig
from transfusion.data.document import Document, Media, Text
from transfusion.data.tokenize import Coordinates
from transfusion.diffusion.guidance import Guidance
from transfusion.diffusion.sampler import DDIM, DDPM, Euler, Heun, Sampler
from transfusion.generate.engine import Engine, generate
from transfusion.generate.state import Request

WIDTH = 32


class Inward(nn.Module):
    """An encoder with times, slots on a grid and a skip."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.shrink, self.time = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, WIDTH, 2, stride=2), nn.Linear(1, WIDTH)

    def forward(self, latents: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        wide = self.wide(latents).tanh()
        return self.shrink(wide) + self.time(t[:, None])[..., None, None], wide


class Outward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.grow, self.last = nn.ConvTranspose2d(WIDTH, 8, 2, stride=2), nn.Conv2d(16, 1, 3, padding=1)

    def forward(self, slots: Tensor, skip: Tensor) -> Tensor:
        return self.last(torch.cat([self.grow(slots).tanh(), skip], 1))


def plain() -> tuple[nn.Module, nn.Module]:
    """Modules without times and skip."""
    return nn.Conv2d(1, WIDTH, 2, stride=2), nn.ConvTranspose2d(WIDTH, 1, 2, stride=2)


def unet(**options: Any) -> Callable[..., Transfusion]:
    return lambda *modalities, **kw: model(*modalities, patcher=UNetPatcherConfig(channels=8, **options), **kw)


MODELS: dict[str, Callable[..., Transfusion]] = {
    "unet": unet(),
    "unet with attention": unet(attention=2, blocks=2),
    "modules": lambda *modalities, **kw: model(*modalities, modules={"image": (Inward(), Outward())}, **kw),
    "modules without times": lambda *modalities, **kw: model(*modalities, modules={"image": plain()}, **kw),
}


@pytest.fixture(params=MODELS)
def made(request, monkeypatch) -> Callable[..., Transfusion]:
    """The tests of test_equalities on such a model."""
    monkeypatch.setattr(test_equalities, "model", MODELS[request.param])
    return MODELS[request.param]


several = pytest.mark.parametrize("made", ["unet with attention", "modules"], indirect=True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_packed_is_alone(made, dtype: torch.dtype) -> None:
    test_equalities.test_packed_is_alone(dtype)


def test_neighbours_change_nothing_at_all(made) -> None:
    test_equalities.test_neighbours_change_nothing_at_all()


def test_cached_is_full(made) -> None:
    test_equalities.test_cached_is_full(torch.float64, Coordinates("grid"), {})


SAMPLERS = [("unet with attention", Heun(2)), ("unet", DDIM(2)), ("unet with attention", DDPM(2)), ("modules", Heun(2))]


@pytest.mark.parametrize(("made", "sampler"), SAMPLERS, indirect=["made"], ids=lambda v: getattr(v, "kind", v))
def test_many_is_one_under_any_sampler(made, sampler: Sampler) -> None:
    test_equalities.test_many_is_one(sampler, torch.float64)


def test_many_is_one(made) -> None:
    test_equalities.test_many_is_one(Euler(2), torch.float64)


@pytest.mark.parametrize("made", ["unet with attention"], indirect=True)
def test_many_is_one_in_single_precision(made) -> None:
    test_equalities.test_many_is_one(Euler(2), torch.float32)


def test_many_is_one_where_sizes_vary(made) -> None:
    """The U-Net takes pictures, sound and vectors here; modules are given for pictures, the others are linear."""
    m = made(FREE, SOUND, VECTOR, double=True)
    wanted = [("image", (8, 6)), ("image", (2, 4)), ("image", (2, 4)), ("sound", None), ("vector", None)]
    asked = [
        Request(Document((Text("ab"[: i % 3]),)), seed=i, force=name, size=size, max_tokens=3, sampler=Euler(2))
        for i, (name, size) in enumerate(wanted, start=1)
    ]
    for request, together in zip(asked, generate(Engine(m.network, m.vocabulary, cache_slots=15), asked), strict=True):
        (alone,) = generate(Engine(m.network, m.vocabulary, cache_slots=3), [request])
        test_equalities.same(alone, together, 1e-9)
        assert together.media


@several
def test_joining_late_is_alone(made) -> None:
    test_equalities.test_joining_late_is_alone(torch.float64)


def test_cached_sampling_equals_denoising_whole_documents(made) -> None:
    """Each step of cached, guided sampling against whole documents without a cache."""
    m = made(FREE, double=True)
    guidance, noise = Guidance(text=3.0), picture(7, 1, 8, 6)
    request = Request(
        Document((Text("a"),)), force="image", size=(8, 6), max_tokens=0, guidance=guidance, sampler=Euler(4), noise=noise
    )
    (drawn,) = generate(Engine(m.network, m.vocabulary, cache_slots=2), [request])
    x, diffusion = noise.double(), m.config.model.diffusion
    for now, after in zip(Euler(4).times(), Euler(4).times()[1:], strict=False):
        estimates = []
        for segments in ((Text("a"),), ()):
            (entry,) = test_equalities.entries(m, [Document((*segments, Media(x, times=(now, now))))])
            batch = test_equalities.rows(m, [[entry]], len(entry))
            with torch.no_grad():
                (noised,) = m.network.add_noise(batch)
                noised.latents.copy_(x)
                place = test_equalities.AttentionMetadata.of_rows(batch.documents, batch.spans, batch.private)
                h, skips = m.network.hidden(batch.tokens, batch.positions, [noised], metadata=place)
                estimates.append(m.network.predict(h, [noised], skips)[0])
        total = guidance.text * estimates[0] + (1 - guidance.text) * estimates[1]
        t = torch.tensor([now], dtype=torch.float64)
        velocity = diffusion.convert(total, diffusion.prediction, "velocity", x[None], t)[0]
        x = x + (after - now) * velocity
    assert (drawn.media[0].tensor() - x).abs().max() < 1e-5  # the times are kept in single precision; measured: 4e-7
    assert x.abs().max() > 0.1


def test_encoder_and_decoder_run_once_a_pass(made) -> None:
    """Once a group in training; once a step for all branches and documents in sampling."""
    m = made(IMAGE)
    calls = {"in": 0, "out": 0}
    patcher_of = m.network.patcher_of(0)
    parts = (patcher_of.first, patcher_of.last) if hasattr(patcher_of, "first") else (patcher_of.encoder, patcher_of.decoder)
    for name, part in zip(calls, parts, strict=True):
        part.register_forward_hook(lambda *_, name=name: calls.update({name: calls[name] + 1}))
    m(m.batch(documents()))
    assert calls == {"in": 1, "out": 1}
    calls.update({"in": 0, "out": 0})
    m.generate(["a", "bc"], force="image", sampler=Euler(5), guidance=Guidance(text=2.0))
    assert calls == {"in": 5, "out": 5}
    calls.update({"in": 0, "out": 0})
    m.generate([["a", picture(1)]], force="image", sampler=Euler(5), max_tokens=1, guidance=Guidance(text=2.0, media=1.5))
    assert calls == {"in": 7, "out": 5}  # the prompts of document and branches, five steps, the clean picture


def test_every_weight_has_a_gradient(made) -> None:
    m = made(FREE)
    m.loss([*documents(), Document((Text("big"), Media(picture(9, 1, 8, 6))))]).backward()
    missing = [name for name, p in m.named_parameters() if p.grad is None or p.grad.abs().sum() == 0]
    assert not missing


def test_bf16_is_near_fp32(made) -> None:
    """Under autocast, in training and sampling."""
    m = made(IMAGE)
    batch = m.batch(documents())
    plain = m(batch).total(1.0).item()
    with torch.autocast("cpu", torch.bfloat16):
        losses = m(batch)
    losses.total(1.0).backward()
    assert losses.total(1.0).item() == pytest.approx(plain, rel=0.02)  # measured: 0.002 at most
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in m.parameters())
    (drawn,) = m.generate("a", force="image", dtype=torch.bfloat16, sampler=Euler(2))
    (exact,) = m.generate("a", force="image", sampler=Euler(2))
    difference = (drawn.media[0].tensor() - exact.media[0].tensor()).abs().mean()
    assert difference < 0.1 * exact.media[0].tensor().abs().mean()  # measured: 0.024 at most
