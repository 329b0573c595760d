"""RMSNorm, rotation and SwiGLU with hand-written backward against their plain forms and finite differences."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from transfusion.nn import pointwise
from transfusion.nn.pointwise import recomputable, recompute_linear
from transfusion.nn.positions import angles


def weights(*shape: int) -> Tensor:
    return (torch.rand(*shape, dtype=torch.float64) + 0.5).requires_grad_()


def numbers(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


TURN = tuple(t.double().unsqueeze(-2) for t in angles(torch.rand(3, 5, 2) * 9, 8, 100.0))
FORMS: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor], tuple[Any, ...]]] = {
    "norm": (pointwise.rms_norm, pointwise.plain_rms_norm, (numbers(3, 5, 8), weights(8), 1e-3)),
    "norm of heads": (pointwise.rms_norm, pointwise.plain_rms_norm, (numbers(3, 5, 2, 8), weights(2, 8), 1e-3)),
    "rotation": (pointwise.rotate, pointwise.plain_rotate, (numbers(3, 5, 2, 8), *TURN)),
    "gate": (pointwise.swiglu, pointwise.plain_swiglu, (numbers(3, 5, 12),)),
}


@pytest.mark.parametrize("name", FORMS)
def test_equals_the_plain_form(name: str) -> None:
    fast, plain, arguments = FORMS[name]
    learned = [a for a in arguments if isinstance(a, Tensor) and a.requires_grad]
    with torch.no_grad():
        assert (fast(*arguments) - plain(*arguments)).abs().max() < 1e-12
    outs = [function(*arguments) for function in (fast, plain)]
    along = torch.randn_like(outs[0])
    grads = [torch.autograd.grad((out * along).sum(), learned) for out in outs]
    for ours, theirs in zip(*grads, strict=True):
        assert ours.shape == theirs.shape and ours.abs().max() > 0.1
        assert (ours - theirs).abs().max() < 1e-12
    assert torch.autograd.gradcheck(fast, arguments)


@pytest.mark.parametrize("name", ["norm", "rotation", "gate"])
def test_inputs_that_are_views(name: str) -> None:
    fast, plain, (x, *rest) = FORMS[name]
    assert isinstance(x, Tensor)
    view = x.detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()
    grads = [torch.autograd.grad(function(view, *rest).square().sum(), view)[0] for function in (fast, plain)]
    assert (grads[0] - grads[1]).abs().max() < 1e-12


def test_half_precision_stays_near() -> None:
    """bf16 keeps 8 bits: 0.004 relative; queries come out in the precision of their angles."""
    x, weight = torch.randn(4, 6, 64), torch.rand(64) + 0.5
    exact = pointwise.plain_rms_norm(x, weight, 1e-5)
    assert ((pointwise.rms_norm(x.bfloat16(), weight, 1e-5) - exact).abs() / exact.abs().amax()).max() < 0.01
    cos, sin = angles(torch.rand(4, 6, 1) * 9, 64, 100.0)
    assert pointwise.rotate(x.bfloat16(), cos, sin).dtype == torch.float32


@pytest.mark.parametrize("autocast", [False, True])
def test_activations_are_recomputed(autocast: bool) -> None:
    """The same gradients, bit for bit, and the gate's output (300 numbers a token) is not kept."""
    torch.manual_seed(0)
    matrix, x = nn.Linear(300, 20, bias=False), torch.randn(7, 600, requires_grad=True)
    kept: list[list[int]] = []
    grads = []
    for function in (lambda: matrix(pointwise.swiglu(x)), lambda: recompute_linear(matrix, recomputable(pointwise.swiglu, x))):
        matrix.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            out = function()
        kept.append(_kept(out))
        out.float().square().sum().backward()
        assert x.grad is not None and matrix.weight.grad is not None
        grads.append((x.grad.clone(), matrix.weight.grad.clone()))
        x.grad = None
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))
    assert 7 * 300 in kept[0] and 7 * 300 not in kept[1]


def _kept(out: Tensor) -> list[int]:
    """Sizes of the tensors that the matrix product above `out` keeps. Hooked ones stay packed."""
    node, found = out.grad_fn, []
    while node is not None and "Mm" not in type(node).__name__:
        node = node.next_functions[0][0]
    for name in ("_raw_saved_self", "_raw_saved_mat1"):
        raw = getattr(node, name, None)
        if raw is not None:
            try:
                found.append(raw.data.numel() if hasattr(raw, "data") and isinstance(raw.data, Tensor) else -1)
            except RuntimeError:
                found.append(-1)
    return found
