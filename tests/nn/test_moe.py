"""Mixture of experts: routing, FLOPs, load balancing."""

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from small import documents, model
from test_equalities import entries, rows
from transfusion.nn.moe import MixtureOfExperts, MoEConfig, balancing


def layer(config: MoEConfig) -> MixtureOfExperts:
    moe = MixtureOfExperts(8, 16, config).double()
    for p in moe.parameters():
        nn.init.normal_(p)
    return moe


@pytest.mark.parametrize("config", [MoEConfig(4, 2), MoEConfig(3, 1, shared=False), MoEConfig(2, 2)])
def test_equals_the_sum_over_all_experts(config: MoEConfig) -> None:
    """Experts outside the top k have weight 0."""
    moe, x = layer(config), torch.randn(3, 7, 8).double()
    weight = (x @ moe.router.weight.T).softmax(-1)
    weight = weight * (weight >= weight.topk(config.top_k).values[..., -1:])
    expected = torch.stack([expert(x) for expert in moe.experts], -1) @ weight.unsqueeze(-1)
    expected = expected.squeeze(-1) + (0 if moe.shared is None else moe.shared(x))
    assert (moe(x) - expected).abs().max() < 1e-10


def test_a_token_costs_its_experts() -> None:
    counts = []
    for number in (2, 8):
        moe, x = layer(MoEConfig(number, 2, shared=False)), torch.randn(50, 8).double()
        with FlopCounterMode(display=False) as counter:
            moe(x)
        counts.append(counter.get_total_flops() - 2 * 50 * 8 * number)  # without the router
    assert counts[0] == counts[1] == 2 * 50 * 2 * 3 * 8 * 16


def load_balancing_loss(probabilities: Tensor, chosen: Tensor) -> Tensor:
    """Number of experts * sum over experts of (share of the choices) * (mean probability): arXiv 2401.06066, eq. 12 to 14."""
    num_experts = probabilities.shape[-1]
    shares = torch.stack([(chosen == expert).double().mean() for expert in range(num_experts)])
    return num_experts * (shares * probabilities.mean(0)).sum()


def test_the_load_balancing_loss_is_one_for_equal_load_and_its_gradient_is_added() -> None:
    even = torch.full((8, 4), 0.25).double()
    chosen = torch.arange(8)[:, None] % 4
    assert load_balancing_loss(even, chosen).item() == pytest.approx(1.0)
    assert load_balancing_loss(torch.eye(4)[[0] * 8].double(), chosen * 0).item() == pytest.approx(4.0)

    config = MoEConfig(4, 2, aux_loss_weight=0.3)
    moe, x, along = layer(config).train(), torch.randn(20, 8).double(), torch.randn(20, 8).double()
    is_token = torch.arange(20) < 15

    def gradient(total: Tensor) -> Tensor:
        return torch.autograd.grad(total, moe.router.weight)[0]

    added = gradient((moe(x, is_token) * along).sum())
    plain = gradient((moe.eval()(x, is_token) * along).sum())
    probabilities = (x @ moe.router.weight.T).softmax(-1)
    # padding is routed but not counted
    expected = gradient(0.3 * load_balancing_loss(probabilities[:15], probabilities[:15].topk(2).indices))
    assert (added - plain - expected).abs().max() < 1e-10 and expected.abs().max() > 1e-3


def test_micro_batches_are_balanced_by_their_shares() -> None:
    """Four equal micro-batches give the gradient of the whole batch; a share of 0 gives none."""
    moe, x = layer(MoEConfig(4, 2, aux_loss_weight=0.3)).train(), torch.randn(20, 8).double()

    def gradient(x: Tensor, share: float | None = None) -> Tensor:
        with nullcontext() if share is None else balancing(share):
            out = moe(x)
        return torch.autograd.grad((out * 0).sum(), moe.router.weight)[0]

    whole = gradient(x.repeat(4, 1))
    assert whole.abs().max() > 1e-3 and torch.allclose(whole, gradient(x))
    assert torch.allclose(4 * gradient(x, 0.25), whole)
    assert not gradient(x, 0.0).any() and torch.equal(gradient(x), gradient(x, 1.0))


def test_training_keeps_experts_busy() -> None:
    """All tokens prefer one expert at first; the load-balancing loss spreads them."""
    torch.manual_seed(0)
    moe, x = MixtureOfExperts(8, 8, MoEConfig(4, 1, aux_loss_weight=1.0)).train(), torch.randn(200, 8)
    x[:, 0] += 3
    nn.init.normal_(moe.router.weight, std=0.1)
    with torch.no_grad():
        moe.router.weight[0, 0] = 2.0

    def busiest() -> float:
        chosen = (x @ moe.router.weight.T).argmax(-1)
        return torch.bincount(chosen, minlength=4).max().item() / 200

    assert busiest() > 0.95
    optimizer = torch.optim.Adam(moe.parameters(), 0.05)
    for _ in range(40):
        optimizer.zero_grad()
        (moe(x) * 0).sum().backward()
        optimizer.step()
    assert busiest() < 0.5


def test_padding_does_not_count_in_a_model() -> None:
    """More padding leaves the router's gradient unchanged."""
    grads = []
    for length in (130, 160):
        m = model(double=True, moe=MoEConfig(4, 1, aux_loss_weight=1.0)).train()
        m(rows(m, [entries(m, documents())], length)).total(1.0).backward()
        grads.append(torch.cat([p.grad.flatten() for n, p in m.named_parameters() if "router" in n and p.grad is not None]))
    assert (grads[0] - grads[1]).abs().max() < 1e-9 * grads[0].abs().max() and grads[0].any()
