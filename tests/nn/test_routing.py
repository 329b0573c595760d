"""Modality-specific weights: which tokens use which weights, and that FLOPs stay the same."""

import re
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from small import IMAGE, SOUND, VECTOR, documents, model, picture
from test_equalities import cached_is_full, entries, many_is_one, packed_is_alone, requests, rows
from transfusion.api import Transfusion
from transfusion.data.document import Document, Media, Text
from transfusion.nn.attention import AttentionMetadata
from transfusion.nn.config import TransformerConfig
from transfusion.nn.routing import ModalityRouting

SETS = ["mlp", "all"]


def sound(seed: int) -> Media:
    return Media(picture(seed, 3, 6), "sound")


def both(count: int = 5) -> list[Document]:
    """Documents with two modalities."""
    mixed = [Document((sound(1), Text("and"), Media(picture(8)))), Document((Text("hm"), sound(2)))]
    return [*documents()[:3], *mixed][:count]


def change(m: Transfusion, function: Callable[[Transfusion], Tensor], where: Callable[[str], bool]) -> float:
    """How much the value of a function changes when the weights of these names do."""
    with torch.no_grad():
        before = function(m)
        kept = {name: p.clone() for name, p in m.named_parameters() if where(name)}
        assert kept
        for name, p in m.named_parameters():
            if name in kept:
                p.add_(torch.randn_like(p) * 0.1)
        after = function(m)
        for name, p in m.named_parameters():
            if name in kept:
                p.copy_(kept[name])
    return (after - before).abs().max().item()


def contains(part: str, name: str) -> bool:
    return part in name


def text_logits(m: Transfusion) -> Tensor:
    batch = rows(m, entries_of(m, [Document((Text("words and words"),))]), 24)
    place = AttentionMetadata.of_rows(batch.documents, batch.spans, batch.private)
    return m.network.head(m.network.hidden(batch.tokens, batch.positions, [], metadata=place)[0])


def entries_of(m: Transfusion, docs: list[Document]) -> list:
    return [[one] for one in entries(m, docs)]


@pytest.mark.parametrize("weights", SETS)
def test_equalities_hold(weights: str) -> None:
    m = model(IMAGE, SOUND, double=True, modality_weights=weights)
    packed_is_alone(m, both())
    cached_is_full(m, both())
    many_is_one(m, requests())


@pytest.mark.parametrize("weights", SETS)
def test_text_keeps_the_names_of_shared_weights(weights: str) -> None:
    shared, apart = set(model(IMAGE, SOUND).state_dict()), set(model(IMAGE, SOUND, modality_weights=weights).state_dict())
    assert shared < apart
    parts = "mlp_norm|mlp" + ("|attention_norm|attention" if weights == "all" else "")
    own = re.compile(rf"network\.transformer\.(blocks\.[01]\.media\.[01]\.({parts})\..+|media_norms\.[01]\.weight)")
    assert all(own.fullmatch(name) for name in apart - shared)


@pytest.mark.parametrize("weights", SETS)
def test_text_depends_on_its_own_weights_alone(weights: str) -> None:
    """Not one bit of the logits of text alone changes with the media's weights; everything else changes them."""
    m = model(IMAGE, SOUND, modality_weights=weights)
    assert change(m, text_logits, lambda name: ".media" in name or "patchers" in name) == 0.0
    own = [name for name, _ in m.named_parameters() if ".media" not in name and "patchers" not in name]
    for part in {name.rsplit(".", 2)[-2] for name in own}:
        assert change(m, text_logits, lambda name, part=part: name in own and f".{part}." in f".{name}") > 1e-4, part


@pytest.mark.parametrize("weights", SETS)
def test_each_modality_has_weights_of_its_own(weights: str) -> None:
    m = model(IMAGE, SOUND, double=True, modality_weights=weights)

    def loss(modality: int, docs: list[Document]) -> Callable[[Transfusion], Tensor]:
        return lambda m: m(rows(m, entries_of(m, docs), 64)).by_modality[modality].sum

    alone = {0: [Document((Text("a"), Media(picture(1))))], 1: [Document((Text("b"), sound(1)))]}
    for modality, docs in alone.items():
        assert change(m, loss(modality, docs), partial(contains, f".media.{modality}.")) > 1e-3
        assert change(m, loss(modality, docs), partial(contains, f".media.{1 - modality}.")) == 0.0
        if weights == "all":
            assert change(m, loss(modality, docs), partial(contains, f"media_norms.{modality}.")) > 1e-3


@pytest.mark.parametrize("weights", SETS)
def test_equal_weights_give_the_shared_model(weights: str) -> None:
    """With the same numbers in every modality the output is that of shared weights."""
    shared, apart = model(IMAGE, SOUND, double=True), model(IMAGE, SOUND, double=True, modality_weights=weights)
    own = shared.state_dict()
    apart.load_state_dict(
        {
            k: own[re.sub(r"media\.\d\.|media_norms\.\d", "", k).replace("transformer..", "transformer.norm.")]
            for k in apart.state_dict()
        }
    )
    batches = [rows(m, [entries(m, both())], 160) for m in (shared, apart)]
    one, other = (m(batch).total(1.0) for m, batch in zip((shared, apart), batches, strict=True))
    assert (one - other).abs() < 1e-10


@pytest.mark.parametrize("weights", SETS)
def test_flops_are_those_of_shared_weights(weights: str) -> None:
    counts = []
    for one in ("none", weights):
        m = model(IMAGE, SOUND, modality_weights=one)
        batch = rows(m, [entries(m, both())], 160)
        with FlopCounterMode(display=False) as counter:
            m(batch).total(1.0).backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 1e6


def test_one_modality_is_not_moved() -> None:
    slots = torch.arange(12).reshape(2, 6)
    assert ModalityRouting.of((2, 6), [], slots.device).order is None
    routing = ModalityRouting.of((2, 6), [(2, slots)], slots.device)
    x = torch.randn(2, 6, 3)
    assert routing.present == (2,) and routing.split(x)[0] is x and routing.join([x], x.shape) is x
    routing = ModalityRouting.of((2, 6), [(2, slots[:1, 1:3]), (1, slots[1:]), (2, slots[:1, 5:])], slots.device)
    assert routing.present == (0, 1, 2) and routing.sizes == (3, 6, 3)
    pieces = routing.split(x)
    assert torch.equal(pieces[2], x.flatten(0, 1)[[1, 2, 5]])
    assert torch.equal(routing.join(pieces, x.shape), x)


@pytest.mark.parametrize("weights", SETS)
def test_every_weight_learns(weights: str, unchecked) -> None:
    torch.manual_seed(0)
    m = model(IMAGE, SOUND, modality_weights=weights)
    for p in m.parameters():
        nn.init.normal_(p, std=0.1) if p.ndim > 1 else nn.init.ones_(p)
    batch = rows(m, [entries(m, both()[3:])], 48)  # both modalities
    optimizer = torch.optim.Adam(m.parameters(), 1e-2)
    losses = []
    for _ in range(16):
        loss = m(batch).total(1.0)
        optimizer.zero_grad()
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in m.parameters())
    assert losses[-1] < losses[0] / 3, losses


def test_an_unknown_value_is_refused(unchecked) -> None:
    with pytest.raises(ValueError, match="none, mlp or all"):
        TransformerConfig(modality_weights="both")  # type: ignore[arg-type]


@pytest.mark.parametrize("weights", SETS)
def test_new_weights_start_as_copies_of_shared_weights(weights: str) -> None:
    there, here = model(IMAGE, SOUND, modality_weights="none"), model(IMAGE, SOUND, modality_weights=weights)
    taken = here.init_from(there)
    assert not taken.new and not taken.dropped
    documents = [["a text", picture(0)]]
    assert torch.allclose(here.loss(documents), there.loss(documents), rtol=1e-5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="another transformer"):
        there.init_from(here)


@pytest.mark.parametrize("weights", SETS)
def test_a_modality_takes_its_own_weights_from_another_model(weights: str) -> None:
    """Whatever their order, and with one more modality here than there."""
    there, here = model(IMAGE, SOUND, modality_weights=weights), model(VECTOR, SOUND, IMAGE, modality_weights=weights)
    with torch.no_grad():
        for p in here.parameters():
            p.zero_()
    taken = here.init_from(there)
    mine, theirs = here.network.state_dict(), there.network.state_dict()
    moved = {0: None, 1: 1, 2: 0}
    seen = 0
    for name, tensor in mine.items():
        if (found := re.search(r"\bmedia(?:_norms)?\.(\d)\.", name)) is None:
            continue
        seen += 1
        source = moved[int(found[1])]
        if source is None:
            assert tensor.abs().sum() == 0 and name in taken.new
        else:
            assert torch.equal(tensor, theirs[name[: found.start(1)] + str(source) + name[found.end(1) :]])
    assert seen and not [name for name in taken.dropped if "media" in name]
