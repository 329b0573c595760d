"""An engine computes with the network's current weights, in every precision."""

from collections.abc import Callable

import pytest
import torch

from small import documents, model
from transfusion.api import Transfusion
from transfusion.data.document import Document, Text
from transfusion.diffusion.guidance import Guidance
from transfusion.diffusion.sampler import Euler
from transfusion.generate.engine import Engine, generate
from transfusion.generate.state import Request
from transfusion.nn.ema import EMA
from transfusion.train.optimizer import AdamWConfig


def train(m: Transfusion) -> None:
    """A step that changes every weight a good deal, by the fused optimizer that runs have."""
    optimizer = AdamWConfig(lr=0.1).build(m)
    m.loss(documents()).backward()
    optimizer.step()


def load(m: Transfusion) -> None:
    m.load_state_dict({name: t * 1.5 for name, t in m.state_dict().items()})


def assign(m: Transfusion) -> None:
    m.load_state_dict({name: t * 1.5 for name, t in m.state_dict().items()}, assign=True)


def replace_data(m: Transfusion) -> None:
    for p in m.parameters():
        p.data = p.data * 1.5


def average(m: Transfusion) -> None:
    ema = EMA(m, 0.9)
    for shadow in ema.shadows.values():
        shadow *= 1.5
    ema.write()  # as `swapped` does


def adapt(m: Transfusion) -> None:
    pytest.importorskip("peft")
    from transfusion.model import lora

    lora.add(m.network, lora.LoRAConfig(rank=2))
    with torch.no_grad():
        for name, p in m.network.named_parameters():
            if "lora_" in name:
                p.copy_(torch.randn(p.shape))


def drawn(engine: Engine) -> torch.Tensor:
    prompt = Document((Text("a cat"),))
    request = Request(prompt, seed=1, force="image", max_tokens=0, sampler=Euler(3), guidance=Guidance(3.0))
    return generate(engine, [request])[0].media[0].tensor()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("change", [train, load, assign, replace_data, average, adapt], ids=lambda f: f.__name__)
def test_a_change_of_the_weights_is_noticed(change: Callable[[Transfusion], None], dtype: torch.dtype) -> None:
    m = model()
    engine = Engine(m.network, m.vocabulary, cache_slots=3, dtype=dtype)
    before = drawn(engine)
    assert torch.equal(drawn(engine), before)
    change(m)
    m.eval()
    after = drawn(engine)
    assert torch.equal(after, drawn(Engine(m.network, m.vocabulary, cache_slots=3, dtype=dtype)))
    assert not torch.equal(after, before)


def test_the_copy_is_made_once_for_each_change_and_shares_what_is_not_converted() -> None:
    m = model()
    engine = Engine(m.network, m.vocabulary, cache_slots=3, dtype=torch.bfloat16)
    drawn(engine)
    copied = engine.runner.network
    drawn(engine)
    assert engine.runner.network is copied and copied is not m.network
    ours, theirs = m.network.state_dict(keep_vars=True), copied.state_dict(keep_vars=True)
    converted = {name for name in ours if ours[name] is not theirs[name]}
    assert converted == {name for name, weight in theirs.items() if weight.dtype == torch.bfloat16}
    assert "head.weight" in converted and not any(name.startswith(("embed", "patchers")) for name in converted)
    assert all(weight.dtype == torch.float32 for weight in ours.values())
    train(m)
    drawn(engine)
    assert engine.runner.network is not copied


def test_a_change_that_pytorch_does_not_count_can_be_told() -> None:
    m = model()
    engine = Engine(m.network, m.vocabulary, cache_slots=3, dtype=torch.bfloat16)
    before = drawn(engine)
    for p in m.parameters():
        p.data.mul_(1.5)
    engine.runner.weights.forget()
    assert not torch.equal(drawn(engine), before)
