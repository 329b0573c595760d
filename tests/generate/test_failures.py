"""A pass that fails ends its own documents, with an event that names them; all others go on."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch

from small import IMAGE, model, picture
from transfusion.api import Transfusion
from transfusion.data.document import Document, Media, Text
from transfusion.diffusion.guidance import Guidance
from transfusion.diffusion.sampler import DDIM, Euler
from transfusion.generate.engine import Engine, generate
from transfusion.generate.failures import GenerationError, is_out_of_memory
from transfusion.generate.logits import Sample
from transfusion.generate.state import Denoising, Done, Event, Failed, Request


def texts(count: int, **kw) -> list[Request]:
    kw = {"max_tokens": 5, "max_items": 0, "allow_eos": False, "guidance": Guidance(1.0)} | kw
    return [Request(Document((Text("abc" * (i % 3 + 1)),)), seed=i, decoding=Sample(), **kw) for i in range(count)]


def drawing(count: int, **kw) -> list[Request]:
    return [Request(Document((Text("a"),)), seed=i, force="image", max_tokens=2, max_items=1, **kw) for i in range(count)]


def failing(m: Transfusion, when: Callable[[int, int], bool], error: Exception) -> list[int]:
    """Raise in the transformer's forward where `when(call, tokens)`; returns the tokens of each call."""
    calls: list[int] = []

    def hook(module: object, args: tuple[torch.Tensor, ...]) -> None:
        calls.append(args[0].shape[1])
        if when(len(calls), args[0].shape[1]):
            raise error

    m.network.transformer.register_forward_pre_hook(hook)
    return calls


def run(engine: Engine, limit: int = 200) -> list[Event]:
    """All events; every step of a busy engine gives some."""
    events: list[Event] = []
    for _ in range(limit):
        if not engine.busy:
            return events
        now = engine.step()
        assert now
        events += now
    raise AssertionError("the engine does not end")


def outcome(events: list[Event]) -> dict[int, type]:
    ended = [(e.id, type(e)) for e in events if isinstance(e, Done | Failed)]
    assert len(ended) == len(dict(ended))
    return dict(ended)


@pytest.mark.parametrize("call", [1, 2, 4])
def test_documents_of_a_failed_pass_are_named_and_the_others_go_on(call: int) -> None:
    m = model(IMAGE)
    engine = Engine(m.network, m.vocabulary, cache_slots=4)
    failing(m, lambda number, tokens: number == call, RuntimeError("a fuse blew"))
    ids = [engine.add(request) for request in texts(10)]
    events = run(engine)
    ended = outcome(events)
    failed = [e for e in events if isinstance(e, Failed)]
    assert set(ended) == set(ids) and len(failed) == 4 and engine.runner.cache.num_free == 4
    assert all("a fuse blew" in e.reason and isinstance(e.error, RuntimeError) for e in failed)
    assert all(e.document.segments[0] == texts(10)[ids.index(e.id)].document.segments[0] for e in failed)
    later = [engine.add(request) for request in texts(10)]
    events = run(engine)
    assert outcome(events) == dict.fromkeys(later, Done)
    by_id = {e.id: e.document for e in events if isinstance(e, Done)}
    clean = model(IMAGE)
    for id, expected in zip(later, generate(Engine(clean.network, clean.vocabulary, cache_slots=4), texts(10)), strict=True):
        assert by_id[id].segments == expected.segments


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()])
def test_a_pass_without_enough_memory_is_tried_again_in_halves(error: Exception) -> None:
    """All documents finish as they would have, in passes that memory suffices for."""
    expected = generate(Engine((m := model(double=True)).network, m.vocabulary, cache_slots=32), texts(6) + drawing(4))
    m = model(double=True)
    calls = failing(m, lambda number, tokens: tokens > 16, error)
    engine = Engine(m.network, m.vocabulary, cache_slots=32)
    found = generate(engine, texts(6) + drawing(4))
    assert max(calls) > 16
    for one, other in zip(found, expected, strict=True):
        for a, b in zip(one.segments, other.segments, strict=True):
            if isinstance(a, Media):
                assert isinstance(b, Media) and (a.tensor() - b.tensor()).abs().max() < 1e-9
            else:
                assert a == b


def test_a_document_that_alone_takes_too_much_memory_fails_alone() -> None:
    m = model()
    failing(m, lambda number, tokens: tokens > 60, RuntimeError("[enforce fail at alloc_cpu.cpp] can't allocate memory"))
    engine = Engine(m.network, m.vocabulary, cache_slots=8)
    ids = [engine.add(r) for r in (*texts(3), Request(Document((Text("x" * 70),)), max_items=0, guidance=Guidance(1.0)))]
    assert outcome(run(engine)) == dict.fromkeys(ids[:3], Done) | {ids[3]: Failed}
    assert engine.runner.cache.num_free == 8


def test_a_denoising_pass_that_fails_ends_the_items_of_that_pass() -> None:
    """Documents at text, and items of another sampler, are in other passes."""
    m = model()
    engine = Engine(m.network, m.vocabulary, cache_slots=16)
    whole, calls = engine.runner.denoise, []

    def denoise(chunks):  # type: ignore[no-untyped-def]
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("no")
        return whole(chunks)

    engine.runner.denoise = denoise  # type: ignore[method-assign]
    ids = [engine.add(r) for r in (*texts(2), *drawing(2, sampler=Euler(4)), *drawing(2, sampler=DDIM(4)))]
    events = run(engine)
    assert outcome(events) == dict.fromkeys((*ids[:2], *ids[4:]), Done) | dict.fromkeys(ids[2:4], Failed)
    assert engine.runner.cache.num_free == 16


def test_documents_that_succeeded_are_not_lost_with_those_that_failed() -> None:
    m = model()
    failing(m, lambda number, tokens: tokens > 60, MemoryError("too long"))
    engine = Engine(m.network, m.vocabulary, cache_slots=8)
    asked = [*texts(2), Request(Document((Text("x" * 70),)), max_items=0, guidance=Guidance(1.0))]
    with pytest.raises(GenerationError, match=r"1 of 3 documents failed \(prompt 2\): MemoryError: too long") as raised:
        generate(engine, asked)
    first, second, third = raised.value.documents
    assert first is not None and second is not None and third is None


def test_numbers_that_are_not_finite_end_their_document_and_infect_none() -> None:
    """A prompt's item so large that its values overflow; the next document gets its cache slot."""
    m = model()
    engine = Engine(m.network, m.vocabulary, cache_slots=2)
    huge = Request(Document((Media(torch.full((1, 4, 4), 3e38)), Text("a"))), max_items=0, guidance=Guidance(1.0))
    ids = [engine.add(huge), engine.add(texts(1)[0])]
    events = run(engine)
    assert outcome(events) == {ids[0]: Failed, ids[1]: Done}
    assert any(isinstance(e, Failed) and "not finite" in e.reason for e in events)
    long = Request(Document((Text("x" * 60),)), max_items=0, max_tokens=5, guidance=Guidance(1.0))
    (together, _) = generate(engine, [texts(1)[0], long])  # the short one reads columns behind its end, masked
    assert together.segments == next(e.document for e in events if isinstance(e, Done)).segments


def test_events_of_a_step_that_was_interrupted_are_given_by_the_next() -> None:
    m = model()

    def events(interrupt: bool) -> list[type]:
        engine = Engine(m.network, m.vocabulary, cache_slots=8)
        for request in (*texts(2), *drawing(1, sampler=Euler(3))):
            engine.add(request)
        if interrupt:
            denoise, engine.runner.denoise = engine.runner.denoise, interrupted  # type: ignore[method-assign]
            with pytest.raises(KeyboardInterrupt):
                engine.step()
            engine.runner.denoise = denoise  # type: ignore[method-assign]
        return sorted((type(event) for event in run(engine)), key=str)

    def interrupted(chunks):  # type: ignore[no-untyped-def]
        raise KeyboardInterrupt

    assert events(True) == events(False) and Denoising in events(True)


def test_what_is_an_error_of_memory() -> None:
    assert is_out_of_memory(torch.OutOfMemoryError("x")) and is_out_of_memory(MemoryError())
    assert is_out_of_memory(RuntimeError("MPS backend out of memory"))
    assert not is_out_of_memory(RuntimeError("shapes differ")) and not is_out_of_memory(ValueError("out of memory"))


GOOD = {"document": Document((Text("a"),)), "max_items": 0, "max_tokens": 2, "guidance": Guidance(1.0)}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("document", "a prompt"),
        ("document", Document(("text",))),  # type: ignore[arg-type]
        ("document", Document([Text("a")])),  # type: ignore[arg-type]
        ("document", Document((Media([[1.0]]),))),  # type: ignore[arg-type]
        ("seed", "7"),
        ("seed", 1.5),
        ("seed", None),
        ("max_tokens", None),
        ("max_tokens", "3"),
        ("max_tokens", 2.0),
        ("max_tokens", -1),
        ("max_tokens", True),
        ("max_items", "1"),
        ("max_items", -1),
        ("allow_eos", "no"),
        ("allow_eos", None),
        ("force", 0),
        ("size", 4),
        ("size", (4, "4")),
        ("size", (4.0, 4.0)),
        ("sizes", [("image", (4, 4))]),
        ("sizes", {"image": 4}),
        ("max_length", "9"),
        ("max_length", 0),
        ("max_new", 1.5),
        ("noise", [0.0]),
        ("noise", torch.zeros(1, 4, 4, dtype=torch.int64)),
        ("noise", torch.full((1, 4, 4), float("nan"))),
        ("decoding", None),
        ("decoding", "greedy"),
        ("decoding", Sample),
        ("sampler", None),
        ("sampler", Euler),
        ("sampler", 25),
        ("sampler", Euler(2.5)),  # type: ignore[arg-type]
        ("guidance", None),
        ("guidance", 3.0),
    ],
)
def test_a_wrong_type_is_refused_before_anything_starts(unchecked, field: str, value: object) -> None:
    m = model()
    engine = Engine(m.network, m.vocabulary, cache_slots=4)
    with pytest.raises(ValueError, match=field):
        engine.add(Request(**(GOOD | {field: value})))  # type: ignore[arg-type]
    assert not engine.busy and engine.runner.cache.num_free == 4


def test_what_is_no_request_is_refused(unchecked) -> None:
    m = model()
    with pytest.raises(ValueError, match="takes a Request"):
        Engine(m.network, m.vocabulary, cache_slots=4).add("a prompt")  # type: ignore[arg-type]


def test_integers_of_numpy_are_those_of_python() -> None:
    import numpy as np

    m = model()

    def written(seed: object) -> object:
        asked = Request(Document((Text("a"),)), seed=seed, max_items=0, max_tokens=9, guidance=Guidance(1.0), decoding=Sample())  # type: ignore[arg-type]
        return generate(Engine(m.network, m.vocabulary, cache_slots=1), [asked])[0].segments

    from jaxtyping import config

    config.update("jaxtyping_disable", True)
    try:
        assert written(np.int64(5)) == written(5) != written(6)
    finally:
        config.update("jaxtyping_disable", False)


def test_prompts_with_items_share_a_failure_and_free_all_their_rows() -> None:
    m = model()
    failing(m, lambda number, tokens: number == 2, RuntimeError("no"))
    engine = Engine(m.network, m.vocabulary, cache_slots=9)
    both = Guidance(text=3.0, media=2.0)
    for i in range(5):
        engine.add(Request(Document((Media(picture(i)), Text("b"))), seed=i, force="image", max_tokens=0, guidance=both))
    assert set(outcome(run(engine)).values()) == {Done, Failed} and engine.runner.cache.num_free == 9


@dataclass
class Unhashable:
    """A decoding that no dictionary takes."""

    def choose(self, logits: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        return logits.argmax(-1)


@dataclass(frozen=True)
class Illegal:
    """A decoding that chooses ids that do not exist."""

    def choose(self, logits: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        return torch.full_like(logits.argmax(-1), 10**6)


class WithoutRule:
    """A sampler that cannot be grouped with others."""

    num_steps = 2

    def step(self) -> None:
        raise AssertionError

    def times(self) -> list[float]:
        return [1.0, 0.5, 0.0]


def test_what_cannot_be_grouped_is_refused_and_an_illegal_choice_ends_its_own_document_alone(unchecked) -> None:
    m = model()
    engine = Engine(m.network, m.vocabulary, cache_slots=4)
    with pytest.raises(ValueError, match="cannot be told from others"):
        engine.add(Request(Document((Text("b"),)), decoding=Unhashable()))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="with step and times and rule"):
        engine.add(Request(Document((Text("b"),)), sampler=WithoutRule()))  # type: ignore[arg-type]
    asked = [Request(Document((Text("a"),)), max_tokens=3), Request(Document((Text("b"),)), max_tokens=3, decoding=Illegal())]  # type: ignore[arg-type]
    first, second = [engine.add(request) for request in asked]
    ends = {event.id: event for event in engine.run() if isinstance(event, Done | Failed)}
    assert isinstance(ends[first], Done) and isinstance(ends[second], Failed) and "1000000" in ends[second].reason


def wrong_shape(name: str, size: tuple[int, ...]) -> torch.Tensor:
    return torch.zeros(3)


def no_tensor(name: str, size: tuple[int, ...]) -> torch.Tensor:
    return "noise"  # type: ignore[return-value]


def raising(name: str, size: tuple[int, ...]) -> torch.Tensor:
    raise RuntimeError("no noise today")


@pytest.mark.parametrize("noise", [wrong_shape, no_tensor, raising])
def test_a_noise_function_that_fails_ends_its_own_document_alone(noise: Callable[..., torch.Tensor]) -> None:
    m = model()
    engine = Engine(m.network, m.vocabulary, cache_slots=8)
    asked = drawing(4)
    asked[2] = replace(asked[2], noise=noise)
    ids = [engine.add(request) for request in asked]
    ends = {event.id: event for event in run(engine) if isinstance(event, Done | Failed)}
    failed = ends.pop(ids[2])
    assert isinstance(failed, Failed) and ("noise function" in failed.reason or "no noise today" in failed.reason)
    alone = Engine(m.network, m.vocabulary, cache_slots=8)
    for id, request in zip(ids, asked, strict=True):
        if id != ids[2]:
            (expected,) = generate(alone, [request])
            assert isinstance(ends[id], Done)
            assert torch.allclose(ends[id].document.media[-1].tensor(), expected.media[-1].tensor(), atol=1e-5)
