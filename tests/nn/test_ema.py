# pyright: reportArgumentType=false
"""The averaged model: it updates, samples, saves, serves as a teacher, and moves between devices."""

from pathlib import Path

import pytest
import torch
from torch import nn

from small import documents, model
from transfusion.api import Transfusion
from transfusion.nn.ema import EMA, Averaged

DRAW = {"force": "image", "max_tokens": 4, "seed": 3}


def stepped(m: nn.Module, seed: int) -> None:
    """Move every weight a little."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in m.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator).to(p))


def test_equals_the_trainers_ema() -> None:
    m = model()
    ema, shadows = m.create_ema(0.9), EMA(m, 0.9)
    for step in range(1, 12):
        stepped(m, step)
        ema.update()
        shadows.update(step)
    mine = dict(ema.model.named_parameters())
    assert all(torch.equal(mine[name], shadow) for name, shadow in shadows.shadows.items())
    assert not torch.equal(ema.network.embed.weight, m.network.embed.weight)


def test_every_averages_only_some_calls() -> None:
    m = model()
    often, seldom = m.create_ema(0.5), m.create_ema(0.5, every=3)
    for step in range(1, 7):
        stepped(m, step)
        seldom.update()
        if step % 3 == 0:
            often.update()
    assert torch.equal(often.network.embed.weight, seldom.network.embed.weight)


def test_it_samples_and_saves_as_the_model_would_with_its_weights(tmp_path: Path) -> None:
    m = model()
    ema, shadows = m.create_ema(0.9), EMA(m, 0.9)
    stepped(m, 0)
    ema.update()
    shadows.update(1)
    (live,), (mine,) = m.generate("a cat", **DRAW), ema.generate("a cat", **DRAW)  # type: ignore[arg-type]
    ema.save_pretrained(tmp_path)
    (saved,) = Transfusion.from_pretrained(tmp_path).generate("a cat", **DRAW)  # type: ignore[arg-type]
    shadows.write()
    (swapped,) = m.generate("a cat", **DRAW)  # type: ignore[arg-type]
    for other in (saved, swapped):
        assert torch.equal(mine.media[0].tensor(), other.media[0].tensor()) and mine.text == other.text
    assert not torch.equal(mine.media[0].tensor(), live.media[0].tensor())


def test_it_teaches_and_never_trains() -> None:
    m = model()
    batch, ema = m.batch(documents()), m.create_ema()
    assert not ema.train().model.training and not any(p.requires_grad for p in ema.parameters())
    losses = ema.network(batch)
    assert not losses.media.sum.requires_grad and torch.equal(losses.media.sum, m(batch).media.sum)
    assert not ema(batch).text.sum.requires_grad
    assert m.training is False and all(p.requires_grad for p in m.parameters())
    held = {id(p) for p in m.parameters()}
    assert not held & {id(p) for p in ema.parameters()}


def test_state_dict_resumes_and_to_moves() -> None:
    m = model()
    one = m.create_ema(0.9)
    for step in range(3):
        stepped(m, step)
        one.update()
    other = Averaged(m, 0.9)
    other.load_state_dict(one.state_dict())
    stepped(m, 9)
    one.update()
    other.update()
    assert other.calls == 4
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    moved = Averaged(m, 0.9).to("meta")
    assert moved.device.type == "meta" and m.device.type == "cpu"


def test_half_precision_is_averaged_in_fp32() -> None:
    layer = nn.Linear(4, 4).bfloat16()
    ema = Averaged(layer, 0.999)
    for _ in range(10_000):
        ema.calls += 1  # past the first updates
    before = ema.weight.clone()
    with torch.no_grad():
        layer.weight.add_(1.0)
    ema.update()
    assert ema.weight.dtype == torch.float32
    assert torch.allclose(ema.weight - before, torch.full((4, 4), 1e-3), rtol=0.02)


def test_buffers_are_copied() -> None:
    norm = nn.BatchNorm1d(3)
    ema = Averaged(norm)
    norm(torch.randn(8, 3) + 5)
    ema.update()
    assert torch.equal(ema.model.running_mean, norm.running_mean) and int(ema.model.num_batches_tracked) == 1


def test_errors_name_the_mistake() -> None:
    m = model()
    with pytest.raises(ValueError, match=r"in \[0, 1\), not 1\.0"):
        m.create_ema(1.0)
    with pytest.raises(ValueError, match="every must be at least 1"):
        m.create_ema(every=0)
    ema = m.create_ema()
    with pytest.raises(AttributeError, match="smaple"):
        _ = ema.smaple
    m.network.extra = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"other weights.*network\.extra\.bias"):
        ema.update()


@pytest.mark.parametrize(("dtype", "kept"), [(torch.float64,) * 2, (torch.float32,) * 2, (torch.bfloat16, torch.float32)])
def test_shadows_are_as_fine_as_the_weights(dtype: torch.dtype, kept: torch.dtype) -> None:
    m = nn.Linear(3, 2).to(dtype)
    ema, before = EMA(m, 0.9), m.weight.detach().clone()
    assert ema.shadows["weight"].dtype == kept
    stepped(m, 1)
    assert torch.equal(ema.shadows["weight"], before.to(kept))  # not the weights' own memory
