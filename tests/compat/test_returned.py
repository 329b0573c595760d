# ruff: noqa: C408
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false
"""What the call returns beside the loss, and its times: transfusion-pytorch's arguments have transfusion-pytorch's meaning."""

import pytest
import torch
from torch import Tensor, nn, randn

from transfusion.compat import Transfusion
from transfusion.data.transforms import once, with_uses
from transfusion.diffusion.process import Diffusion
from transfusion.diffusion.schedule import Cosine
from transfusion.diffusion.times import Uniform


@pytest.fixture(autouse=True)
def _unchecked(unchecked) -> None:
    """As a user runs it."""


WORDS = dict(num_text_tokens=16, dim_latent=8, modality_default_shape=(4,), transformer=dict(dim=32, depth=2, dim_head=16))


def ids(*numbers: int) -> Tensor:
    return torch.tensor(numbers)


def scattered(**words) -> Transfusion:
    """A model whose every weight is random."""
    torch.manual_seed(2)
    m = Transfusion(**(WORDS | words))
    with torch.no_grad():
        for p in m.network.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return m.double().eval()


BATCH = [[ids(1, 2, 3), randn(4, 8), ids(5)], [randn(6, 8), randn(4, 8)]]


def test_times_of_0_are_noise_and_noise_levels_of_0_are_clean() -> None:
    """At time 0 the latents are nothing but noise, so another item changes no loss but by its own target."""
    m = scattered()
    a, b = randn(4, 8), randn(4, 8)
    noise = [[randn(4, 8)]]

    def predicted(x: Tensor, **times) -> Tensor:
        return m([[x]], noise=noise, return_predictions=True, return_loss=False, seed=1, **times)[0][0]

    assert torch.equal(predicted(a, times=[[0.0]]), predicted(b, times=[[0.0]]))
    assert not torch.equal(predicted(a, times=[[0.25]]), predicted(b, times=[[0.25]]))
    for times in ([[0.25]], torch.tensor([[0.25]]), torch.tensor([0.25])):
        assert torch.equal(predicted(a, times=times), predicted(a, noise_levels=[[0.75]]))
    assert torch.equal(
        predicted(a, num_modalities_to_times_fn=lambda n: torch.full((len(n), 1), 0.25)), predicted(a, times=[[0.25]])
    )
    assert torch.equal(predicted(a, noise_levels=[[0.0]]), m([[a]], times=[[1.0]], noised=True)[0][0])  # 1 is clean


def test_times_come_back_as_they_are_given() -> None:
    m = scattered()
    given = torch.tensor([[0.25, 1.0], [0.5, 0.75]])
    loss, times = m(BATCH, given, return_times=True, seed=1)
    assert torch.allclose(times, given) and torch.equal(m(BATCH, times=times, seed=1), loss)
    both = m(BATCH, return_times=True, return_noise_levels=True, seed=1)
    assert torch.allclose(1 - both[1][1], torch.tensor(both[2][1])) and both[1].shape == (2, 2)


def test_logits_of_whole_sequences_are_those_by_segment() -> None:
    m = scattered()
    logits = m(BATCH, return_loss=False, seed=1)
    segments = m(BATCH, return_loss=False, return_predictions=True, seed=1)
    lengths = [len(s) for s in m.tokenize([once(with_uses(d)) for d in m.lists.documents(BATCH)])]
    assert logits.shape == (2, max(lengths), len(m.vocabulary))
    assert torch.allclose(logits[0, 1:4], segments[0][0]) and torch.allclose(
        logits[0, 1 + 3 + 1 + 1 + 4 + 1], segments[0][2][0]
    )
    assert not logits[0, lengths[0] :].any() or lengths[0] == max(lengths)


def test_embeddings_give_the_flows_that_are_predicted() -> None:
    """x0 - eps, which is the negative velocity of this project; by modality, in the order of the batch."""
    m = scattered(dim_latent=(8, 3), modality_default_shape=((4,), (2, 2)), channel_first_latent=(False, True))
    batch = [[ids(1), randn(4, 8), (1, randn(3, 2, 2))], [(1, randn(3, 2, 4)), ids(2), randn(6, 8)]]
    levels = [[0.3, 0.6], [0.5, 0.8]]
    options = dict(noise_levels=levels, seed=3)
    embed, functions = m(batch, return_loss=False, return_embed=True, **options)
    flows = m(batch, return_only_pred_flows=True, **options)
    assert embed.shape[0] == 2 and embed.shape[2] == 32 and set(functions) == {0, 1}
    for index, expected in enumerate(flows):
        assert [f.shape for f in expected] == [function(embed).shape for function in functions[index]]
        for function, flow in zip(functions[index], expected, strict=True):
            assert torch.allclose(function(embed), flow)
    moved = functions[0][0](embed + torch.randn_like(embed))
    assert not torch.allclose(moved, flows[0][0])
    hiddens = m(batch, return_loss=False, return_hiddens=True, **options)
    assert len(hiddens) == 2 and all(h.shape == embed.shape for h in hiddens)
    loss, again = m(batch, return_hiddens=True, **options)
    assert torch.equal(again[1], hiddens[1]) and torch.equal(loss, m(batch, **options))


@pytest.mark.parametrize("clean", [True, False], ids=["x0", "velocity"])
def test_forward_modality_integrates_from_noise_to_data(clean: bool) -> None:
    """Euler steps of the user's own along the flow that it gives, from time 0 to 1, are the model's own Euler sampler."""
    from transfusion.diffusion.sampler import Euler

    m = scattered(model_output_clean=clean)
    x = noise = randn(1, 4, 8).double()
    with torch.no_grad():
        for step in range(5):
            x = x + m.forward_modality(x, torch.full((1,), step / 5), return_loss=False) / 5
    drawn = m.sample_many([None], 1, force_modality_at_start=0, init_modality_noise=noise[0], sampler=Euler(5), cfg_scale=1.0)
    alone = m(noise, times=torch.zeros(1), return_loss=False)
    assert alone.shape == noise.shape and torch.isfinite(drawn[0][1].tensor).all()
    flow = m(torch.zeros(1, 4, 8), return_loss=False)  # without times they are drawn
    assert flow.shape == (1, 4, 8)
    # in a document an item stands behind its size and BEGIN, in `forward_modality` too
    assert torch.allclose(x[0], drawn[0][1].tensor.to(x), atol=1e-4)


def test_forward_text_and_forward_modality_are_the_call() -> None:
    m = scattered(reconstruction_loss_weight=0.5, velocity_consistency_loss_weight=0.5)
    text, x = torch.randint(0, 16, (2, 5)), randn(2, 4, 8)
    assert torch.equal(m.forward_text(text), m(text)) and m.forward_text(text, return_loss=False).shape == (
        2,
        5,
        len(m.vocabulary),
    )
    torch.manual_seed(0)
    loss = m.forward_modality(x, torch.tensor([0.25, 0.5]))
    torch.manual_seed(0)
    total, (flow, velocity, recon) = m.forward_modality(x, torch.tensor([0.25, 0.5]), return_loss_breakdown=True)
    assert torch.equal(loss, total) and flow > 0 and velocity == 0 and recon > 0
    with_ema = m.forward_modality(x, velocity_consistency_ema_model=scattered(velocity_consistency_loss_weight=0.5))
    assert torch.isfinite(with_ema)
    with pytest.raises(ValueError, match="an argument of the constructor here"):
        m.forward_modality(x, velocity_consistency_delta_time=0.5)
    coded = scattered(modality_encoder=nn.Linear(3, 8))
    assert torch.isfinite(coded.forward_modality(randn(2, 4, 3)))
    assert torch.isfinite(coded.forward_modality(randn(2, 4, 8), encode_modality=False))


def test_a_loss_over_a_diffusion_of_ones_own_has_flows_too() -> None:
    """Noise prediction on the cosine schedule: x0 - eps, with x0 = (x - sigma eps) / alpha."""
    m = scattered(diffusion=Diffusion(Cosine(), "eps", "eps", Uniform(num_steps=400)))
    clean, noise, t = randn(4, 8).double(), randn(4, 8).double(), torch.tensor([0.5])
    options = dict(noise=[[noise]], noise_levels=[[0.5]], seed=1)
    flow = m([[clean]], return_only_pred_flows=True, **options)[0][0]
    eps = m([[clean]], return_predictions=True, return_loss=False, **options)[0][0]
    alpha, sigma = (float(f(t)) for f in (Cosine().alpha, Cosine().sigma))
    assert torch.allclose(flow, (alpha * clean + sigma * noise - sigma * eps) / alpha - eps, atol=1e-5)
