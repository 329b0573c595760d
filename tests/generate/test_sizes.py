"""Sizes that the model writes: read where they can be used, else the default in their place as if it had been written."""

from dataclasses import dataclass, field

import pytest
import torch
from jaxtyping import Float, Int
from torch import Tensor

from small import FREE, IMAGE, SOUND, model, picture
from transfusion.api import Transfusion
from transfusion.data.document import Document, Media, Text
from transfusion.data.tokenize import tokenize_document
from transfusion.data.vocabulary import SpecialToken
from transfusion.diffusion.guidance import Guidance
from transfusion.diffusion.sampler import Euler
from transfusion.generate.engine import Engine, generate
from transfusion.generate.logits import Sample
from transfusion.generate.state import Done, Event, ItemDone, Request, Token


@dataclass(frozen=True, eq=False)
class Script(Sample):
    """Writes given ids, then draws."""

    ids: tuple[int, ...] = ()
    said: list[int] = field(default_factory=list)
    __eq__ = object.__eq__  # each its own  # type: ignore[assignment]
    __hash__ = object.__hash__

    def choose(self, logits: Float[Tensor, "row id"], u: Float[Tensor, " row"]) -> Int[Tensor, " row"]:
        assert len(logits) == 1  # a script for each row
        if len(self.said) == len(self.ids):
            return super().choose(logits, u)
        self.said.append(self.ids[len(self.said)])
        assert logits[0, self.said[-1]] > float("-inf"), "masked"
        return torch.tensor(self.said[-1:])


def ids(m: Transfusion, written: str) -> tuple[int, ...]:
    """Ids of "ab 0:2 1:3 begin": texts, sizes by axis and extent, control tokens by role, of images unless "role-modality"."""
    found: list[int] = []
    for word in written.split():
        role, _, modality = word.partition("-")
        if ":" in word:
            axis, _, extent = word.partition(":")
            found.append(m.vocabulary.id(SpecialToken("size", "image", int(axis), int(extent))))
        elif role in ("begin", "end"):
            found.append(m.vocabulary.id(SpecialToken(role, modality or "image")))  # type: ignore[arg-type]
        elif role in ("eos", "pad"):
            found.append(m.vocabulary.id(SpecialToken(role)))  # type: ignore[arg-type]
        else:
            found += m.vocabulary.encode(word)
    return tuple(found)


def request(m: Transfusion, written: str, prompt: str = "a cat", **kw) -> Request:
    kw = {"max_tokens": 9, "max_items": 1, "sampler": Euler(2), "guidance": Guidance(3.0), "seed": 5} | kw
    return Request(Document((Text(prompt),)), decoding=Script(ids=ids(m, written)), **kw)


def run(m: Transfusion, *requests: Request, **kw) -> tuple[Engine, list[Event]]:
    engine = Engine(m.network, m.vocabulary, cache_slots=3 * len(requests), **kw)
    for one in requests:
        engine.add(one)
    return engine, list(engine.run())


def items(events: list[Event]) -> list[ItemDone]:
    return [e for e in events if isinstance(e, ItemDone)]


def finished(events: list[Event]) -> Done:
    (done,) = [e for e in events if isinstance(e, Done)]
    return done


def same(one: Document, other: Document, tolerance: float = 1e-9) -> None:
    assert [type(s) for s in one.segments] == [type(s) for s in other.segments]
    for a, b in zip(one.segments, other.segments, strict=True):
        if isinstance(a, Text):
            assert isinstance(b, Text) and a.content == b.content
        else:
            assert isinstance(b, Media) and a.size == b.size and a.tensor().shape == b.tensor().shape
            assert (a.tensor() - b.tensor()).abs().max() < tolerance


BROKEN = (
    "begin",  # too early
    "1:2",  # no size of the first axis
    "0:3 begin",  # one size short
    "0:3 0:3",  # the first axis again
    "0:3 1:1 x",  # text where BEGIN belongs
    "0:3 1:1 1:1",
    "0:4 eos",
    "0:4 pad",
    "0:1 1:4 begin-sound",
    "0:4 1:4 end",
)


def test_sizes_are_read_as_they_are_written() -> None:
    m = model(FREE, SOUND)
    grids = [(rows, columns) for rows in range(1, 5) for columns in range(1, 5)]
    engine, events = run(m, *(request(m, f"x 0:{rows} 1:{columns} begin", max_tokens=2) for rows, columns in grids))
    for id, (rows, columns) in enumerate(grids, 1):
        own = [e for e in events if e.id == id]
        (item,) = items(own)
        assert item.media.tensor().shape == (1, 2 * rows, 2 * columns) and item.fallback is None
        tokens = [e.token for e in own if isinstance(e, Token)]
        assert tokens[:4] == list(ids(m, f"x 0:{rows} 1:{columns} begin")) and not engine.fallbacks
    assert m.vocabulary.modality("image").shape == (4, 4)


@pytest.mark.parametrize("broken", BROKEN)
def test_what_cannot_be_read_is_the_default_as_if_it_had_been_written(broken: str) -> None:
    """The same document, tokens, later draws and committed keys as after the default's own sizes."""
    m = model(FREE, SOUND, double=True)
    engine, events = run(m, request(m, "hm " + broken))
    other, expected = run(m, request(m, "hm 0:2 1:2 begin"))
    same(finished(events).document, finished(expected).document)
    assert [e.token for e in events if isinstance(e, Token)] == [e.token for e in expected if isinstance(e, Token)]
    assert [e.fallback for e in items(events)] == ["malformed"] and [e.fallback for e in items(expected)] == [None]
    assert engine.fallbacks == {"malformed": 1} and not other.fallbacks
    assert engine.runner.cache.lengths == other.runner.cache.lengths
    length = engine.runner.cache.lengths[0]  # the document's own row; its branch has the next
    for mine, theirs in zip(engine.runner.cache.keys, other.runner.cache.keys, strict=True):
        assert (mine[0, :, :length] - theirs[0, :, :length]).abs().max() < 1e-9
    assert length > 5


def test_what_does_not_fit_is_the_default_too() -> None:
    """BOS and "a cat" are 6 tokens. A 4 x 4 grid takes 16 + 4 more, the default's 2 x 2 takes 4 + 4."""
    m = model(FREE, double=True)
    for limit, fallback in ((26, None), (25, "too large"), (14, "too large")):
        engine, events = run(m, request(m, "0:4 1:4 begin", max_length=limit))
        (item,) = items(events)
        assert item.fallback == fallback and item.media.tensor().shape[1:] == ((8, 8) if fallback is None else (4, 4))
        assert engine.fallbacks == ({} if fallback is None else {fallback: 1})
    for written in ("0:4 1:4 begin", "begin", "0:3 x"):
        engine, events = run(m, request(m, written, max_length=13))
        done = finished(events)
        assert done.reason == "context" and not done.document.media and not items(events)
        assert engine.fallbacks.total() == 1 and engine.runner.cache.num_free == 3
        assert [s.content for s in done.document.segments] == ["a cat"]  # type: ignore[union-attr]
    _, events = run(m, request(m, "0:1 1:1 begin", max_length=13))  # a smaller one fits where the default would not
    assert items(events)[0].media.tensor().shape == (1, 2, 2)


@pytest.mark.slow
def test_many_is_one_whatever_falls_back() -> None:
    m = model(FREE, SOUND, double=True)
    written = ["0:4 1:1 begin", *BROKEN, "hm 0:1 1:4 begin", "hm ho 1:1", "x 0:4 1:4 begin"]

    def asked() -> list[Request]:
        return [
            request(m, one, prompt="p" * (1 + i % 4), seed=i, max_items=2, max_length=40, max_tokens=6)
            for i, one in enumerate(written)
        ]

    engine = Engine(m.network, m.vocabulary, cache_slots=14)
    together = generate(engine, asked())
    alone = [generate(Engine(m.network, m.vocabulary, cache_slots=2), [one])[0] for one in asked()]
    for one, other in zip(alone, together, strict=True):
        same(one, other)
    assert engine.fallbacks["malformed"] >= len(BROKEN) + 1 and sum(len(d.media) for d in together) >= len(written)


@pytest.mark.parametrize("written", ["x 0:3 1:2 begin", "x 0:3 begin", "x 1:1"])
def test_a_finished_document_goes_on_as_a_prompt(written: str) -> None:
    """What stands in the cache after an item is what a prompt with that item puts there."""
    m = model(FREE, SOUND, double=True)
    first = Engine(m.network, m.vocabulary, cache_slots=3)
    script = Script(temperature=1e-9, ids=ids(m, written))  # after the script: the most likely
    begun = Request(Document((Text("a cat"),)), max_tokens=12, max_items=1, sampler=Euler(2), decoding=script)
    (drawn,) = generate(first, [begun])
    before, after = drawn.segments[:3], drawn.segments[3:]
    assert isinstance(before[2], Media) and after
    (again,) = generate(Engine(m.network, m.vocabulary, cache_slots=3), [Request(Document(before), max_items=0, max_tokens=11)])
    assert [s.content for s in after] == [s.content for s in again.segments[3:]]  # type: ignore[union-attr]


def test_a_wished_size_is_every_items_size() -> None:
    m = model(FREE, SOUND, double=True)
    wished = {"image": (8, 2)}
    engine, events = run(m, request(m, "x 0:2 y begin z 1:1", sizes=wished, max_items=3, max_tokens=12))
    assert [e.media.tensor().shape for e in items(events)] == [(1, 8, 2)] * 3 and not engine.fallbacks
    _, expected = run(m, request(m, "x 0:4 1:1 begin y 0:4 1:1 begin z 0:4 1:1 begin", max_items=3, max_tokens=12))
    same(finished(events).document, finished(expected).document)
    assert [e.token for e in events if isinstance(e, Token)] == [e.token for e in expected if isinstance(e, Token)]
    (forced,) = m.generate("x", force="image", sizes=wished)
    (other,) = m.generate("x", force="image", sizes=wished, size=(2, 8))
    assert forced.media[0].tensor().shape == (1, 8, 2) and other.media[0].tensor().shape == (1, 2, 8)
    # one that has no room is not begun
    _, events = run(m, request(m, "x y", sizes=wished, max_length=13, max_tokens=50, max_items=None, allow_eos=False))
    assert not items(events) and finished(events).reason == "context"


def test_a_sequence_is_never_longer_than_asked_for() -> None:
    m = model(FREE, SOUND)
    with torch.no_grad():  # likes control tokens
        m.network.head.weight[m.vocabulary.num_text :] *= 3
    drawn, limits = 0, [limit for limit in (2, 3, 7, 8, 9, 12, 15, 20, 33) for _ in range(6)]
    kw = {"max_tokens": 100, "sampler": Euler(1), "guidance": Guidance(1.0), "decoding": Sample(3.0)}
    asked = [Request(Document(()), seed=i % 6, max_length=limit, **kw) for i, limit in enumerate(limits)]  # type: ignore[arg-type]
    written = generate(Engine(m.network, m.vocabulary, cache_slots=len(asked), decode_text=False), asked)
    for limit, document in zip(limits, written, strict=True):
        assert len(tokenize_document(document, m.vocabulary, m.config.model.coordinates, add_eos=False)) <= limit
        drawn += len(document.media)
    assert drawn > 5
    (document,) = m.generate("ab", max_length=5, max_items=0, decoding=Sample(3.0), guidance=Guidance(1.0))
    assert len(m.vocabulary.encode(document.text)) <= 4 * 3  # ids that are no UTF-8 come back as 3 bytes
    with pytest.raises(ValueError, match="take 6 tokens, max_length is 5"):
        m.generate("a cat", max_length=5)


def test_given_noise_is_the_forced_items_alone() -> None:
    m = model(FREE)
    noise = picture(3, 1, 8, 6)
    asked = request(m, "x 0:1 1:1 begin", force="image", size=(8, 6), noise=noise, max_items=2)
    _, events = run(m, asked)
    assert [tuple(e.media.tensor().shape) for e in items(events)] == [(1, 8, 6), (1, 2, 2)]


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"video": (4, 4)}, "no modality 'video'"),
        ({"image": (4, 3)}, "multiple of the patch"),
        ({"image": (16, 4)}, "exceeds the largest"),
        ({"still": (8, 8)}, "every item has"),
    ],
)
def test_sizes_that_cannot_be(sizes: dict[str, tuple[int, ...]], message: str) -> None:
    still = type(IMAGE)("still", channels=1, shape=(4, 4), patch=(2, 2))
    with pytest.raises(ValueError, match=message):
        model(FREE, still).generate("a", sizes=sizes)
