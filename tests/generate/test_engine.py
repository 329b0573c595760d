"""What generation may write, when it ends, and what it depends on."""

import warnings

import pytest
import torch

from small import FREE, IMAGE, SOUND, model, picture
from transfusion.api import Transfusion
from transfusion.data.document import Document, Media, Text
from transfusion.data.transforms import ConditionDropout
from transfusion.diffusion.guidance import Guidance
from transfusion.diffusion.sampler import DDPM, Euler
from transfusion.generate.engine import Engine, generate
from transfusion.generate.logits import Sample
from transfusion.generate.state import Denoising, Done, ItemDone, Request, Token


def free_running(m: Transfusion, count: int = 24, **kw) -> list[list]:
    """Events of documents that begin from nothing, by document."""
    engine = Engine(m.network, m.vocabulary, cache_slots=count)
    kw = {"max_tokens": 12, "max_items": 2, "sampler": Euler(2), "guidance": Guidance(1.0), "decoding": Sample(3.0)} | kw
    ids = [engine.add(Request(Document(()), seed=i, **kw)) for i in range(count)]
    events: dict[int, list] = {i: [] for i in ids}
    for event in engine.run():
        events[event.id].append(event)
    return [events[i] for i in ids]


def with_bias(m: Transfusion, amount: float = 12.0) -> Transfusion:
    """A model that likes control tokens, so that the grammar is tried."""
    rows = slice(m.vocabulary.num_text, len(m.vocabulary))
    with torch.no_grad():
        m.network.head.weight[rows] *= amount / 4
    return m


def test_only_legal_tokens_are_written() -> None:
    """Any document is text, then sizes in order, BEGIN, an item, text, EOS; never PAD, BOS or END by choice."""
    m = with_bias(model(FREE, SOUND))
    items = texts = 0
    for events in free_running(m):
        expected: list[tuple[str, int]] = []
        for event in events:
            if not isinstance(event, Token):
                items += isinstance(event, ItemDone)
                continue
            control = m.vocabulary.special_token(event.token)
            if control is None:
                texts += 1
                assert not expected
                continue
            assert control.role in ("size", "begin", "eos")
            if control.role == "size":
                if not expected:
                    assert control.axis == 0
                    axes = len(m.vocabulary.modality(control.modality).extents)
                    expected = [(control.modality, axis) for axis in range(1, axes)] + [(control.modality, -1)]
                else:
                    assert (control.modality, control.axis) == expected.pop(0)
            elif control.role == "begin" and m.vocabulary.modality(control.modality).varies:
                assert expected == [(control.modality, -1)]
                expected = []
        assert not expected or events[-1].reason == "context"
        assert isinstance(events[-1], Done)
    assert items > 10 and texts > 10


def test_an_item_never_exceeds_the_context() -> None:
    m = with_bias(model(FREE, context_length=24))
    for events in free_running(m, max_tokens=100, max_items=None):
        done = events[-1]
        assert isinstance(done, Done)
        length = 1 + sum(isinstance(e, Token) for e in events)
        length += sum(
            int(torch.tensor(FREE.slots(tuple(e.media.tensor().shape[1:]))).prod()) + 1
            for e in events
            if isinstance(e, ItemDone)
        )
        assert length <= 24


def test_limits_are_exact() -> None:
    m = model()
    for limit in (0, 1, 7):
        (document,) = m.generate("x", max_tokens=limit, max_items=0, guidance=Guidance(1.0), decoding=Sample(5.0), seed=limit)
        written = document.segments[1:]
        assert sum(len(m.vocabulary.encode(s.content)) if isinstance(s, Text) else 99 for s in written) <= 3 * limit
    engine = Engine(m.network, m.vocabulary, cache_slots=1)
    engine.add(Request(Document((Text("x"),)), max_tokens=7, max_items=0, guidance=Guidance(1.0)))
    events = list(engine.run())
    tokens = [e for e in events if isinstance(e, Token)]
    assert len(tokens) == 7 or m.vocabulary.special_token(tokens[-1].token) is not None


def test_a_prompt_that_is_too_long_is_refused_before_any_work() -> None:
    m = model(context_length=32)
    with pytest.raises(ValueError, match="take 41 tokens, the context has 32"):
        m.generate("x" * 40, max_items=0)
    with pytest.raises(ValueError, match="forced item take 33 tokens"):
        m.generate("x" * 26, force="image")
    m.generate("x" * 25, force="image")


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request(Document((Media(None),))), "need values"),
        (Request(Document(()), force="video"), "no modality 'video'"),
        (Request(Document(()), force="image", size=(6, 6)), "every item has"),
        (Request(Document((Media(torch.zeros(1, 4, 4), "sound"),))), "no modality 'sound'"),
        (Request(Document(()), guidance=Guidance(3.0, 2.0)), "cache slots"),
    ],
)
def test_requests_that_cannot_be_met(request_: Request, message: str) -> None:
    m = model(IMAGE)
    with pytest.raises(ValueError, match=message):
        Engine(m.network, m.vocabulary, cache_slots=2).add(request_)


def test_a_document_depends_on_its_seed_alone() -> None:
    m = model(double=True)
    ask = {"force": "image", "max_tokens": 5, "decoding": Sample(2.0), "sampler": DDPM(3, clip=1.0)}
    one, two, again = m.generate(["a", "a", "a"], seeds=[1, 2, 1], **ask)  # type: ignore[arg-type]
    (alone,) = m.generate(["a"], seeds=[1], **ask)  # type: ignore[arg-type]
    assert (one.media[0].tensor() - again.media[0].tensor()).abs().max() < 1e-9
    assert (one.media[0].tensor() - alone.media[0].tensor()).abs().max() < 1e-9
    assert (one.media[0].tensor() - two.media[0].tensor()).abs().max() > 1e-2
    assert one.segments[-1].content == alone.segments[-1].content  # type: ignore[union-attr]


def test_the_noise_of_an_image_does_not_depend_on_the_text_before_it() -> None:
    """Prompts of other lengths begin their image from the same noise under one seed, and from what they are given."""
    m = model(double=True)
    given = torch.randn(1, 4, 4)

    def start(prompt: str, seed: int, noise: torch.Tensor | None = None) -> torch.Tensor:
        engine = Engine(m.network, m.vocabulary, cache_slots=2)
        engine.add(Request(Document((Text(prompt),)), seed=seed, force="image", max_tokens=0, noise=noise, sampler=Euler(3)))
        engine._admit()
        (doc,) = engine._active.values()
        engine._extend([doc])
        assert doc.item is not None
        return doc.item.latents

    with torch.no_grad():
        assert torch.equal(start("a", 1), start("a much longer prompt", 1))
        assert not torch.equal(start("a", 1), start("a", 2))
        assert torch.equal(start("a", 1, given), given.double()) and torch.equal(start("other", 2, given), given.double())


def test_a_bad_request_is_refused_before_it_is_among_others() -> None:
    m = model()
    engine = Engine(m.network, m.vocabulary, cache_slots=4)
    engine.add(Request(Document((Text("a"),)), force="image", max_tokens=0, sampler=Euler(2)))
    with pytest.raises(ValueError, match="NaN"):
        engine.add(Request(Document((Media(torch.full((1, 4, 4), float("nan"))),)), max_items=0))
    with pytest.raises(ValueError, match=r"initial noise has shape \(1, 2, 2\)"):
        engine.add(Request(Document((Text("a"),)), force="image", noise=torch.zeros(1, 2, 2)))
    assert sum(isinstance(e, Done) for e in engine.run()) == 1 and not engine.busy
    assert engine.runner.cache.num_free == 4


def test_guidance_that_the_model_was_not_trained_for_is_said_to_be_left_out() -> None:
    m = model(drop=ConditionDropout(text=0.0))
    with pytest.warns(UserWarning, match="guidance for text is left out"):
        m.generate(["a"], force="image", sampler=Euler(1), guidance=Guidance(3.0))


def test_events_tell_the_whole_story() -> None:
    m = model()
    engine = Engine(m.network, m.vocabulary, cache_slots=2)
    id = engine.add(Request(Document((Text("a"),)), force="image", max_tokens=3, max_items=1, sampler=Euler(4)))
    events = list(engine.run())
    assert all(e.id == id for e in events)
    steps = [e for e in events if isinstance(e, Denoising)]
    assert [(e.step, e.num_steps) for e in steps] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert all(e.estimate.shape == (1, 4, 4) and torch.isfinite(e.estimate).all() for e in steps)
    kinds = [type(e) for e in events]
    assert kinds.index(ItemDone) == 4 and kinds[-1] is Done
    done = events[-1]
    assert isinstance(done, Done) and [type(s) for s in done.document.segments[:2]] == [Text, Media]


def test_guidance_changes_the_image_and_scale_one_does_not() -> None:
    m = model(double=True)

    def draw(g: Guidance) -> torch.Tensor:
        request = Request(Document((Text("a"),)), seed=1, force="image", max_tokens=0, guidance=g, sampler=Euler(8))
        return generate(Engine(m.network, m.vocabulary, cache_slots=3), [request])[0].media[0].tensor()

    plain = draw(Guidance(1.0))
    assert (draw(Guidance(3.0)) - plain).abs().max() > 1e-2
    assert (draw(Guidance(3.0, low=0.99, high=0.995)) - plain).abs().max() < 1e-6  # an interval that holds no step
    assert (draw(Guidance(1.0, media=2.0)) - plain).abs().max() < 1e-6  # no image stands before it


def test_guidance_is_the_formula_written_out() -> None:
    """One Euler step from noise, by hand: three branches, each run as a whole document."""
    m = model(double=True)
    g, before = Guidance(text=3.0, media=2.0), Document((Media(picture(7)), Text("b")))
    request = Request(before, seed=1, force="image", max_tokens=0, guidance=g, sampler=Euler(1))
    (drawn,) = generate(Engine(m.network, m.vocabulary, cache_slots=3), [request])
    noise = torch.randn(1, 4, 4)
    request = Request(before, seed=1, force="image", max_tokens=0, guidance=g, sampler=Euler(1), noise=noise)
    (drawn,) = generate(Engine(m.network, m.vocabulary, cache_slots=3), [request])

    def alone(*segments) -> torch.Tensor:
        plain = Request(
            Document(tuple(segments)), force="image", max_tokens=0, guidance=Guidance(1.0), sampler=Euler(1), noise=noise
        )
        return generate(Engine(m.network, m.vocabulary, cache_slots=1), [plain])[0].media[-1].tensor()

    nothing, media, both = alone(), alone(before.segments[0]), alone(*before.segments)
    expected = nothing + 2.0 * (media - nothing) + 3.0 * (both - media)
    assert (drawn.media[-1].tensor() - expected).abs().max() < 1e-5  # one step to t = 0 gives the estimate itself


def test_guidance_that_is_off_warns_where_the_model_was_trained_for_it() -> None:
    with pytest.warns(UserWarning, match="guidance is off"):
        model().generate("a", force="image", guidance=Guidance(1.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model().generate("a", max_items=0, max_tokens=1, guidance=Guidance(1.0))
        model(drop=ConditionDropout(0.0)).generate("a", force="image", guidance=Guidance(1.0))


def test_nothing_several_images_and_all_media() -> None:
    m = model(IMAGE, SOUND)
    (document,) = m.generate(max_tokens=4, max_items=1)
    assert isinstance(document, Document)
    (document,) = m.generate([[picture(1), "and", picture(2), "now"]], force="image")  # type: ignore[list-item]
    assert len(document.media) == 3
    (document,) = m.generate("hear", force="sound")
    assert document.media[0].tensor().shape == (3, 6)


def test_bf16_matrices_are_what_autocast_would_make_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kept in bf16 or converted at every step: the same tokens, the same images, bit for bit; the model stays as it was."""
    m = model()
    before = {name: p.clone() for name, p in m.named_parameters()}

    def written() -> tuple[str, torch.Tensor]:
        drawn = m.generate("a cat", force="image", dtype=torch.bfloat16, max_tokens=8, seed=3)[0]
        return drawn.text, drawn.media[0].tensor()

    kept = written()
    monkeypatch.setattr("transfusion.generate.weights.in_bf16", lambda network: network)
    converted = written()
    assert kept[0] == converted[0] and torch.equal(kept[1], converted[1])
    assert all(torch.equal(p, before[name]) and p.dtype == torch.float32 for name, p in m.named_parameters())


def test_a_document_that_may_not_end_has_all_its_tokens_as_ids() -> None:
    m = with_bias(model(IMAGE))

    def written(allow_eos: bool) -> list[tuple[int, ...]]:
        log = Sample(3.0)
        asked = [Request(Document(()), seed=i, max_tokens=30, max_items=0, allow_eos=allow_eos, decoding=log) for i in range(8)]
        done = generate(Engine(m.network, m.vocabulary, cache_slots=24, decode_text=False), asked)
        return [tuple(i for s in d.segments if isinstance(s, Text) for i in s.content if isinstance(i, int)) for d in done]

    endless = written(allow_eos=False)
    assert {len(ids) for ids in endless} == {30}
    assert min(len(ids) for ids in written(allow_eos=True)) < 30
    assert all(0 <= i < m.vocabulary.num_text for ids in endless for i in ids)


def test_no_prompts_give_no_documents_and_lists_are_no_batch(unchecked) -> None:
    m = model()
    assert m.generate([]) == []
    with pytest.raises(ValueError, match=r"call model\.loss\(documents\), or use transfusion\.compat"):
        m([[torch.randn(1, 4, 4)]])  # type: ignore[arg-type]
