# ruff: noqa: C408
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false
"""What is known to be wrong in the two public implementations, each shown to be right here. docs/options.md has the whole list."""

import copy
import gc
import weakref

import pytest
import torch
from torch import randn

from small import IMAGE, model, picture
from transfusion import Document, Engine, Euler, Guidance, Media, Request, Text, Transfusion
from transfusion.data.layout import Coordinates, lay_out
from transfusion.generate.engine import generate


@pytest.fixture(autouse=True)
def _unchecked(unchecked) -> None:
    """As a user runs it."""


WORDS = dict(num_text_tokens=16, dim_latent=8, modality_default_shape=(4,), transformer=dict(dim=32, depth=2, dim_head=16))


def ids(*numbers: int) -> torch.Tensor:
    return torch.tensor(numbers)


def test_a_prompt_is_laid_out_as_in_training() -> None:
    m = model(IMAGE)
    parts = (Text("see "), Media(picture(1)), Text(" and "))
    whole = lay_out(Document((*parts, Media(picture(2)))), m.vocabulary, Coordinates())
    prompt = lay_out(Document(parts), m.vocabulary, Coordinates(), closed=False)
    assert (whole.tokens[: len(prompt)] == prompt.tokens).all() and (whole.positions[: len(prompt)] == prompt.positions).all()


def test_pictures_of_a_prompt_are_clean_while_text_is_written() -> None:
    """A greedy caption does not depend on the seed."""
    m = model(IMAGE)
    written = {m.generate([[picture(1)]], seed=s, max_items=0, max_tokens=12, guidance=Guidance(1.0))[0].text for s in range(6)}
    assert len(written) == 1


def test_the_loss_of_an_item_does_not_grow_with_its_channels() -> None:
    found = []
    for channels in (8, 64):
        torch.manual_seed(0)
        m = Transfusion(**(WORDS | {"dim_latent": channels})).eval()
        found.append(
            torch.stack([m([[ids(1), randn(4, channels)]], seed=s, return_breakdown=True)[1].flow[0] for s in range(40)]).mean()
        )
    assert 0.7 < found[1] / found[0] < 1.4


def test_the_loss_of_a_text_does_not_depend_on_the_slots_beside_it() -> None:
    torch.manual_seed(0)
    m = Transfusion(**WORDS).eval()
    text = torch.randint(0, 16, (20,))
    found = [m([[text, randn(n, 8)]], seed=1, return_breakdown=True)[1].text for n in (4, 64, 512)]
    # one target more than the text's: the size, which is what differs
    assert max(found) - min(found) < 0.2
    alone = m(text[None], return_breakdown=True)[1].text
    assert abs(alone - found[0]) < 0.5


def test_lists_and_latents_alone_have_one_loss() -> None:
    """Also for clean-data prediction, in the space of the latents."""
    for clean in (True, False):
        m = Transfusion(**WORDS, model_output_clean=clean).double().eval()
        x = randn(3, 4, 8)
        alone = m(x, times=[[0.4]] * 3, seed=1, return_breakdown=True)[1].flow[0]
        lists = m([[one] for one in x], times=[[0.4]] * 3, seed=1, return_breakdown=True)[1].flow[0]
        assert torch.equal(alone, lists)


def test_slots_know_their_place() -> None:
    """Exchanging two slots of an item changes more than their order."""
    m = Transfusion(**WORDS).eval()
    with torch.no_grad():
        for p in m.network.parameters():
            p.copy_(torch.randn(p.shape) * 0.3 + (p.ndim == 1))
    x = randn(1, 4, 8)
    order = torch.tensor([2, 1, 0, 3])
    said = m(x, times=[[0.5]], noised=True)
    other = m(x[:, order], times=[[0.5]], noised=True)
    assert (said[:, order] - other).abs().max() > 1e-2


def test_equal_seeds_give_equal_losses_at_first_sight_and_later() -> None:
    m = Transfusion(**WORDS)
    batch = [[ids(1, 2), randn(4, 8)], [randn(6, 8), ids(3)]]
    found = set()
    for _ in range(3):
        torch.manual_seed(3)
        found.add(float(m(batch).detach()))
    assert len(found) == 1


def test_max_length_is_never_exceeded() -> None:
    m = Transfusion(**WORDS)
    for length in (1, 2, 7, 20):
        for seed in range(6):
            sample = m.sample(max_length=length, modality_steps=1, seed=seed, text_temperature=3.0)
            used = 1 + sum(len(e) if isinstance(e, torch.Tensor) else len(e.tensor) + 3 for e in sample)
            assert used <= length + 1  # an END may be left unwritten behind the last item


def test_nothing_keeps_a_model_alive() -> None:
    m = Transfusion(**WORDS)
    m([[ids(1), randn(4, 8)]]).backward()
    m.sample(max_length=12, modality_steps=1)
    seen = weakref.ref(m)
    del m
    gc.collect()
    assert seen() is None


def test_models_are_copied_and_pickled_whole(tmp_path) -> None:
    m = Transfusion(**WORDS).eval()
    batch = [[ids(1), randn(4, 8)]]
    torch.save(m, tmp_path / "model.pt")
    for other in (copy.deepcopy(m), torch.load(tmp_path / "model.pt", weights_only=False)):
        assert torch.equal(other(batch, seed=1), m(batch, seed=1))


def test_bf16_weights_train_and_draw() -> None:
    m = Transfusion(**WORDS).bfloat16()
    loss = m([[ids(1), randn(4, 8)]])
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(m.sample(force_modality_at_start=0, max_length=12, modality_steps=2)[0].tensor).all()


def test_a_batch_of_many_costs_one_pass_of_each_layer() -> None:
    """No loop over documents or items: 24 documents, one call of every matrix."""
    m = Transfusion(**WORDS)
    calls = []
    m.network.trunk.blocks[0].attention.qkv.register_forward_hook(lambda *_: calls.append(1))
    m([[ids(1, 2), randn(4, 8)] for _ in range(24)])
    assert len(calls) == 1


def test_unequal_lengths_are_no_trouble_where_text_begins_to_be_written() -> None:
    """Prompts that differ in length are answered as they are alone."""
    m = model(IMAGE, double=True)
    prompts = [Document((Text("a"),)), Document((Text("a much longer one"), Media(picture(1)), Text("so")))]
    asked = [Request(p, max_tokens=8, max_items=0, sampler=Euler(2)) for p in prompts]
    many = generate(Engine(m.network, m.vocabulary, rows=6), asked)
    for request, together in zip(asked, many, strict=True):
        (alone,) = generate(Engine(m.network, m.vocabulary, rows=3), [request])
        assert alone.text == together.text
