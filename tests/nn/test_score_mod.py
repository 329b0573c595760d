"""Soft cap, ALiBi and LASER: all backends agree, gradients included; and the formulas."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from small import documents, model
from test_equalities import entries, rows
from transfusion.api import Transfusion
from transfusion.nn.attention import AttentionMetadata, ScoreMod, choose_backend, dense, make_attention
from transfusion.nn.config import AttentionConfig
from transfusion.nn.self_attention import laser

OPTIONS = {
    "alibi": AttentionConfig(alibi_heads=3),
    "soft cap": AttentionConfig(soft_cap=1.5),
    "both": AttentionConfig(alibi_heads=4, soft_cap=1.5),
    "laser": AttentionConfig(laser=15.0),
    "all": AttentionConfig(alibi_heads=2, soft_cap=3.0, laser=15.0, gated=True, value_residual=True),
}


def forms(heads: AttentionConfig) -> list[str]:
    return ["dense", "document"] if heads.soft_cap else ["dense", "sdpa", "document"]


def run(m: Transfusion, form: str, packed: list, length: int) -> Tensor:
    m.network.config = replace(m.network.config, attention_backend=form)  # type: ignore[arg-type]
    batch = rows(m, packed, length)
    media = m.network.add_noise(batch)
    metadata = AttentionMetadata.of_rows(batch.documents, batch.spans, batch.private)
    h, _ = m.network.hidden(batch.tokens, batch.positions, media, metadata=metadata)
    return h[(batch.documents >= 0).flatten()]


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("name", OPTIONS)
def test_backends_agree_with_every_option(name: str, monkeypatch, unchecked) -> None:
    monkeypatch.setattr("transfusion.nn.attention._compiled_flex", lambda _: flex_attention)
    m = model(double=True, attention=OPTIONS[name])
    found = entries(m, documents())
    with torch.no_grad():
        outs = [run(m, form, [found[:3], found[3:]], 128) for form in (*forms(OPTIONS[name]), "flex")]
        plain = run(model(double=True), "dense", [found[:3], found[3:]], 128)
    assert (outs[0] - plain).abs().max() > 1e-2
    for other in outs[1:]:
        assert (outs[0] - other).abs().max() < 1e-9


COMPILED = """
import torch
from torch._dynamo.utils import counters
from transfusion.nn.attention import AttentionMetadata, ScoreMod, make_attention
torch.manual_seed(0)
spans = torch.where((torch.arange(256) % 50 > 20) & (torch.arange(256) % 50 < 40), torch.arange(256) // 50, -1).expand(2, 256).contiguous()
for step, cap in enumerate((2.0, 2.0, 3.0, 2.0)):
    documents = (torch.arange(256) // (100 + step)).expand(2, 256).contiguous()
    metadata = AttentionMetadata.of_rows(documents, spans, torch.zeros(2, 256, dtype=torch.bool), torch.rand(2, 256, 2) * 40)
    q, k, v = torch.randn(2, 4, 256, 32), torch.randn(2, 2, 256, 32), torch.randn(2, 2, 256, 32)
    score_mod = ScoreMod(soft_cap=cap, alibi_heads=3, num_heads=4)
    with torch.no_grad():
        outs = [make_attention(form, metadata, score_mod=score_mod)(q, k, v) for form in ("flex", "dense")]
    assert (outs[0] - outs[1]).abs().max() < 1e-5
assert counters["stats"]["unique_graphs"] == 1, counters["stats"]
"""


@pytest.mark.slow
def test_compiled_flex_agrees_and_compiles_once() -> None:
    """Neither other documents nor another cap recompile; in a process of its own, without type checks."""
    subprocess.run([sys.executable, "-c", COMPILED], check=True, capture_output=True)


@pytest.mark.parametrize("long", [1, 128])
@pytest.mark.parametrize("name", OPTIONS)
def test_gradients_agree_with_every_option(name: str, long: int, monkeypatch, unchecked) -> None:
    """`long` 1: an attention call per document."""
    monkeypatch.setattr("transfusion.nn.attention.LONG_DOCUMENT", long)
    m = model(double=True, attention=OPTIONS[name])
    found = entries(m, documents())
    grads = []
    for form in forms(OPTIONS[name]):
        m.zero_grad()
        (run(m, form, [found[:2], found[2:]], 150) ** 2).sum().backward()
        grads.append(torch.cat([p.grad.flatten() for p in m.parameters() if p.grad is not None]))
    for other in grads[1:]:
        assert (grads[0] - other).abs().max() < 1e-9 * grads[0].abs().max()


def test_alibi_is_distance() -> None:
    """Text: the 1-D bias of the paper. Inside an image: the mean over the axes, the same both ways. Other heads: nothing."""
    text = torch.arange(5.0)[None, :, None].expand(1, 5, 2)
    bias = ScoreMod(alibi_heads=2, num_heads=3).bias(text, text)
    distance = (torch.arange(5.0)[:, None] - torch.arange(5.0)).abs()
    assert torch.equal(bias[0], -torch.tensor([2.0**-4, 2.0**-8, 0.0])[:, None, None] * distance)
    slots = torch.tensor([[[3.0, 3.0], [3.0, 5.0], [6.0, 3.0]]])
    bias = ScoreMod(alibi_heads=1, num_heads=1).bias(slots, slots)[0, 0]
    assert torch.equal(bias, bias.T) and bias[0].tolist() == [0.0, -(2.0**-8), -1.5 * 2.0**-8]
    with pytest.raises(ValueError, match="needs the coordinates"):
        metadata = AttentionMetadata.of_rows(torch.zeros(1, 4).long(), -torch.ones(1, 4).long(), torch.zeros(1, 4).bool())
        make_attention("dense", metadata, score_mod=ScoreMod(alibi_heads=1, num_heads=4))


def test_a_cap_bounds_scores() -> None:
    scores = ScoreMod(soft_cap=2.0).capped(torch.tensor([-1e3, -0.01, 0.0, 0.01, 1e3]))
    assert torch.allclose(scores, torch.tensor([-2.0, -0.01, 0.0, 0.01, 2.0]), atol=1e-6)


def test_sdpa_refuses_a_soft_cap() -> None:
    with pytest.raises(ValueError, match=r"no soft cap; use dense, document or flex \(or auto\)"):
        choose_backend("sdpa", device=torch.device("cpu"), backward=False, cached=True, capped=True)
    assert choose_backend("auto", device=torch.device("cpu"), backward=False, cached=True, capped=True) == "dense"
    assert choose_backend("auto", device=torch.device("cpu"), backward=True, cached=False, capped=True) == "document"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_laser_is_a_log_of_a_mean_of_exponentials_and_stays_finite(dtype: torch.dtype) -> None:
    q, k, v = (torch.randn(2, 2, 6, 8, dtype=dtype) for _ in range(3))
    v[0, 0, 0], v[0, 0, 1] = 1e4, -1e4
    v.requires_grad_()
    mask = torch.ones(2, 1, 6, 6, dtype=torch.bool).tril()
    out = laser(lambda q, k, v: dense(q, k, v, mask), 15.0)(q, k, v)
    share = dense(q, k, torch.eye(6, dtype=dtype).expand(2, 2, 6, 6), mask).double()
    expected = (share @ (15 * (v.double() / 15).tanh()).exp()).log()
    assert (out - expected).abs().max() < (1e-4 if dtype == torch.float32 else 0.1)
    out.float().sum().backward()
    assert v.grad is not None and v.grad.isfinite().all()
    nothing = laser(lambda q, k, v: torch.zeros_like(v) * v, 15.0)(q, k, v)  # what padding sees
    (grad,) = torch.autograd.grad(nothing.float().sum(), v)
    assert nothing.isfinite().all() and not grad.any()
