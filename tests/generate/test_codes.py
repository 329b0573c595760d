"""Items of a discrete modality, generated code by code: cached = written out whole, guidance on logits, masks, neighbours."""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from small import CODED, IDS, IMAGE, drawn, model, picture
from transfusion import rng
from transfusion.api import Transfusion
from transfusion.data.batch import collate
from transfusion.data.document import Document, Media, Text, unconditional
from transfusion.data.tokenize import Coordinates, tokenize_document
from transfusion.diffusion.guidance import Guidance
from transfusion.generate.engine import generate
from transfusion.generate.logits import Greedy, Sample
from transfusion.generate.state import Event, ItemDone, Request, Token
from transfusion.nn.attention import AttentionMetadata

VARYING = replace(CODED, largest=(4, 4))
PROMPTS = [
    Document((Text("a cat"),)),
    Document((Text("x"), Media(IDS), Text("y"))),
    Document(()),
    Document((Media(IDS),)),
]
pytestmark = pytest.mark.filterwarnings("ignore:guidance is off")
GUIDED = [Guidance(text=1.0), Guidance(text=5.0), Guidance(text=5.0, media=2.0)]


def next_logits(m: Transfusion, document: Document, codes: list[int]) -> Tensor:
    """Logits of the id behind a document whose last item is being written, all of it computed at once."""
    sequence = tokenize_document(document, m.vocabulary, m.config.model.coordinates, add_eos=False)
    start = sequence.items[-1].start
    sequence = sequence.with_codes(start)
    end = start + len(codes)
    sequence.tokens[start:end] = [m.vocabulary.codes("image").start + code for code in codes]
    cut = replace(sequence, **{n: getattr(sequence, n)[:end] for n in ("tokens", "targets", "positions", "spans", "private")})
    batch = collate([[replace(cut, items=())]], end, m.vocabulary, m.config.model.coordinates.axes)
    h, _ = m.network.hidden(
        batch.tokens, batch.positions, [], metadata=AttentionMetadata.of_rows(batch.documents, batch.spans, batch.private)
    )
    return m.network.head(h[-1])


@torch.no_grad()
def written_out(m: Transfusion, prompt: Document, guidance: Guidance, seed: int) -> list[int]:
    """An item's codes without cache or engine: the guided logits of each, drawn by the item's key."""
    whole = replace(prompt, segments=(*prompt.segments, Media(None)))
    last = len(prompt.segments)
    has_text, has_media = bool(prompt.text), bool(prompt.media)
    media = guidance.media if has_media else 1.0
    text = guidance.text if has_text else media
    ids, codes = m.vocabulary.codes("image"), []
    for i in range(6):
        full = next_logits(m, whole, codes)
        no_text = next_logits(m, unconditional(whole, last), codes)
        nothing = next_logits(m, unconditional(whole, last, media=True), codes)
        logits = nothing + media * (no_text - nothing) + text * (full - no_text)
        u = torch.tensor([rng.uniform(seed, "item", 0, "code", i)])
        codes.append(int(Sample().choose(logits[ids.start : ids.stop][None].float(), u)))
    return codes


@pytest.mark.parametrize("coordinates", [Coordinates(), Coordinates("raster", axes=1)])
@pytest.mark.parametrize("guidance", GUIDED, ids=str)
def test_cached_is_written_out(guidance: Guidance, coordinates: Coordinates) -> None:
    """With the unconditional branch that training has, behind prompts with and without text and items."""
    m = model(CODED, double=True, coordinates=coordinates)
    seeds = list(range(len(PROMPTS)))
    found = m.generate(PROMPTS, force="image", guidance=guidance, seeds=seeds)
    for prompt, document, seed in zip(PROMPTS, found, seeds, strict=True):
        codes = document.media[-1].tensor()
        assert codes.shape == (1, 2, 3) and codes.flatten().tolist() == written_out(m, prompt, guidance, seed)
    assert len({tuple(d.media[-1].tensor().flatten().tolist()) for d in found}) == len(found)


def test_what_follows_an_item_reads_its_codes() -> None:
    """The text behind a generated item is the text behind the same item as a prompt."""
    m = model(CODED, double=True)
    (whole,) = m.generate([PROMPTS[0]], force="image", max_tokens=5, max_items=1, seeds=[3])
    item = whole.media[0]
    (again,) = m.generate([Document((Text("a cat"), item))], max_items=0, max_tokens=5)
    assert whole.segments[2:] == again.segments[2:] and whole.segments[2:]


@pytest.mark.parametrize("guidance", GUIDED, ids=str)
def test_many_is_one_and_order_is_nothing(guidance: Guidance) -> None:
    m = model(CODED, double=True)
    options = {"force": "image", "guidance": guidance, "max_tokens": 4}
    seeds = [5, 6, 7, 8]
    together = m.generate(PROMPTS, seeds=seeds, **options)
    few = m.generate(PROMPTS[::-1], seeds=seeds[::-1], cache_slots=3, **options)[::-1]
    exact = m.generate(PROMPTS, seeds=seeds, exact=True, **options)
    alone = [m.generate([prompt], seeds=[seed], **options)[0] for prompt, seed in zip(PROMPTS, seeds, strict=True)]
    for document, *others in zip(together, few, exact, alone, strict=True):
        for other in others:
            assert document.text == other.text
            assert all(torch.equal(a.tensor(), b.tensor()) for a, b in zip(document.media, other.media, strict=True))


@dataclass(frozen=True)
class Least:
    """What is least likely of what is allowed."""

    def choose(self, logits: Tensor, u: Tensor) -> Tensor:
        return logits.masked_fill(logits == -math.inf, math.inf).argmin(-1)


@pytest.mark.parametrize("modality", [CODED, VARYING], ids=["fixed", "varying"])
def test_codes_stand_inside_items_alone(modality: object, unchecked) -> None:
    """Whatever the logits: inside an item ids of its codebook, as many as its grid has, outside none."""
    m = model(modality, context_length=200)  # type: ignore[arg-type]
    events: list[Event] = []
    hot = Sample(temperature=1e4)
    options = {"max_tokens": 300, "decoding": hot, "force": "image", "code_decoding": Least(), "guidance": Guidance(text=1.0)}
    m.generate([Document((Text("a"),)), Document(())], on_event=events.append, **options)
    codes, begin = m.vocabulary.codes("image"), m.vocabulary.begin("image")
    assert sum(isinstance(event, ItemDone) for event in events) > 2
    for id in (1, 2):
        inside = 0
        for event in [e for e in events if e.id == id and isinstance(e, Token | ItemDone)]:
            if isinstance(event, ItemDone):
                assert inside == event.media.tensor().numel() and event.media.tensor().max() < 7
                inside = 0
            elif event.token in codes:
                inside += 1
            else:
                assert not inside
    assert begin in [event.token for event in events if isinstance(event, Token)]


def test_continuous_and_discrete_media_in_one_model() -> None:
    both = (IMAGE, replace(CODED, name="tiles"))
    m = model(*both, double=True)
    prompt = Document((Text("a"), Media(picture(1).double()), Media(IDS, "tiles")))
    requests = [
        Request(prompt, seed=i, force=name, max_tokens=0, guidance=Guidance(text=2.0))
        for i, name in enumerate(("image", "tiles"))
    ]
    found = generate(m.engine(requests), requests)
    assert [d.media[-1].modality for d in found] == ["image", "tiles"]
    assert found[0].media[-1].tensor().isfinite().all() and found[1].media[-1].tensor().shape == (1, 2, 3)
    losses = m(m.batch([Document((Text("a"), drawn(1), Media(IDS, "tiles"), Text("b")))]))
    assert losses.codes is not None and losses.codes.count == 6 and losses.media.count == 1


def test_greedy_codes_and_a_context_that_is_too_short() -> None:
    m = model(CODED)
    one, other = (m.generate([PROMPTS[0]], force="image", code_decoding=Greedy(), seeds=[s])[0] for s in (1, 2))
    assert torch.equal(one.media[0].tensor(), other.media[0].tensor())
    with pytest.raises(ValueError, match="forced item take"):
        m.generate([PROMPTS[0]], force="image", max_length=10)
    with pytest.raises(ValueError, match="holds ids of its codebook"):
        m.generate([Document((Media(IDS + 0.5),))], max_items=0)


def test_a_folder_keeps_it(tmp_path: Path) -> None:
    m = model(CODED)
    m.save_pretrained(tmp_path)
    again = Transfusion.from_pretrained(tmp_path)
    assert again.config == m.config and len(again.vocabulary) == len(m.vocabulary)
    one, other = (x.generate([PROMPTS[0]], force="image", seeds=[1])[0].media[0].tensor() for x in (m, again))
    assert torch.equal(one, other)
