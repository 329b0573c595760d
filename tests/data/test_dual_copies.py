# pyright: reportArgumentType=false, reportPossiblyUnboundVariable=false
"""Dual copies: what follows reads the clean one, the noised one takes the loss, and no number is another than it would be in
the document without copies that has the same to read."""

import math
from dataclasses import replace
from itertools import islice

import pytest
import torch
from torch.nn.attention.flex_attention import flex_attention

from small import FREE, IMAGE, drawn, model, picture, vocabulary
from transfusion.api import Transfusion
from transfusion.codec.patchers import UNetPatcherConfig
from transfusion.data.batch import Batch, collate
from transfusion.data.document import CLEAN, Document, Media, Text
from transfusion.data.loader import Loader, PackingConfig
from transfusion.data.tokenize import Coordinates, TokenSequence, max_length, tokenize_document
from transfusion.data.transforms import ConditionDropout, DocumentTransform, with_uses
from transfusion.model.losses import Losses
from transfusion.nn.attention import AttentionMetadata

ORDERS = [Coordinates("grid"), Coordinates("reset", axes=3), Coordinates("raster", axes=1)]


def two(**kw: object) -> Media:
    return Media(picture(1), **({"use": "both"} | kw))  # type: ignore[arg-type]


def dual_documents() -> list[Document]:
    return [
        Document((Text("a "), two(), Text(" b"))),
        Document((two(), Media(picture(2), use="both"), Text("some words"), Media(picture(3), use="both"))),
        Document((drawn(4, private=True), Text("x"), two(), drawn(5))),
    ]


def test_the_sequence_of_a_dual_item() -> None:
    v = vocabulary(IMAGE)
    tokenized = tokenize_document(Document((Text("a"), two(), Text("c"))), v, Coordinates())
    pad = v.pad
    assert tokenized.tokens.tolist() == [
        v.bos,
        *v.encode("a"),
        v.begin("image"),
        *[pad] * 8,
        v.end("image"),
        *v.encode("c"),
        v.eos,
    ]
    assert tokenized.spans.tolist() == [-1] * 3 + [0] * 4 + [1] * 4 + [-1] * 3
    assert tokenized.private.tolist() == [False] * 3 + [True] * 4 + [False] * 7
    assert tokenized.positions[3:7].tolist() == tokenized.positions[7:11].tolist() == [[3, 3], [3, 4], [4, 3], [4, 4]]
    assert tokenized.positions[11:].tolist() == [[5, 5], [6, 6], [7, 7]]
    noised, clean = tokenized.items
    assert (noised.copy, noised.start, noised.media.times, noised.media.private) == ("noised", 3, (0.0, 1.0), True)
    assert (clean.copy, clean.start, clean.media.is_clean, clean.media.private) == ("clean", 7, True, False)
    assert noised.index == clean.index == 0


def test_an_item_without_a_loss_stands_once_and_so_does_a_prompts() -> None:
    v = vocabulary(IMAGE)
    for media in (two(use="read"), two(use="context"), two(use=None, times=CLEAN), two(use=None, weight=0.0)):
        tokenized = tokenize_document(Document((media, Text("c"))), v, Coordinates())
        assert [item.copy for item in tokenized.items] == [""] and not tokenized.private.any()
    prompt = tokenize_document(Document((two(), Text("c"))), v, Coordinates(), add_eos=False)
    plain = tokenize_document(Document((Media(picture(1)), Text("c"))), v, Coordinates(), add_eos=False)
    assert prompt.tokens.tolist() == plain.tokens.tolist() and prompt.positions.tolist() == plain.positions.tolist()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"private": True}, 'nothing that follows sees a private item, so it is not read: its use is "draw"'),
        ({"weight": 0.0}, "takes a loss: give it a weight above 0"),
        ({"use": "draw", "times": CLEAN}, "takes a loss"),
        ({"use": "read", "times": (0.0, 0.5)}, "is clean: give it neither times nor noise"),
        ({"use": "context", "noise": picture(2)}, "is clean"),
        ({"use": "show"}, "an item's use is draw, read, both or context, not 'show'"),
    ],
)
def test_a_use_that_contradicts_the_other_fields_is_refused(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        two(**fields)


def test_the_length_is_known_before() -> None:
    for v in (vocabulary(IMAGE), vocabulary(FREE)):
        for one in dual_documents():
            assert max_length(one, v, {}) == len(tokenize_document(one, v, Coordinates()))
    with pytest.raises(ValueError, match="document 0 takes 8 tokens, the context has 7"):
        model(context_length=7).batch([[two()]])
    model(context_length=10).batch([[Media(picture(1))]])


def test_an_item_stands_once_where_two_copies_do_not_fit() -> None:
    m = model(context_length=16)
    whole = m.tokenize([[picture(1), "some"]])[0]
    assert [item.copy for item in whole.items] == ["noised", "clean"] and len(whole) == 16
    with pytest.warns(UserWarning, match="no room in the context for two copies"):
        short = m.tokenize([[picture(1), "some mor"]])[0]
    assert [(item.copy, item.media.use) for item in short.items] == [("", "draw")] and len(short) == 16


def losses(m: Transfusion, *segments: Text | Media, language_loss: bool = True) -> Losses:
    with torch.no_grad():
        return m(m.batch([Document(segments, language_loss)]))


@pytest.mark.parametrize("coordinates", ORDERS, ids=lambda c: c.order)
def test_without_later_tokens_the_loss_is_that_of_the_plain_form(coordinates: Coordinates) -> None:
    """Up to END and EOS. Float64 to 1e-9; the noise and the time of an item are the same in both forms."""
    m = model(double=True, coordinates=coordinates)
    context = (Text("a cat "), Media(picture(7), times=CLEAN))
    dual, plain = losses(m, *context, two()), losses(m, *context, drawn(1))
    assert dual.media.count == plain.media.count == 1
    assert (dual.media.sum - plain.media.sum).abs() < 1e-9 and plain.media.sum > 0.1
    clean = losses(m, *context, Media(picture(1), times=CLEAN))
    assert (dual.text.sum - clean.text.sum).abs() < 1e-9  # END and EOS stand behind the clean copy
    assert (dual.text.sum - plain.text.sum).abs() > 1e-6


@pytest.mark.parametrize("coordinates", ORDERS, ids=lambda c: c.order)
def test_later_text_reads_the_clean_copy(coordinates: Coordinates) -> None:
    m = model(double=True, coordinates=coordinates)
    dual = losses(m, two(), Text("what it shows"))
    clean = losses(m, Media(picture(1), times=CLEAN), Text("what it shows"))
    noised = losses(m, drawn(1), Text("what it shows"))
    assert (dual.text.sum - clean.text.sum).abs() < 1e-9 and (dual.text.sum - noised.text.sum).abs() > 1e-3
    assert clean.media.count == 0 and (dual.media.sum - noised.media.sum).abs() < 1e-9


@pytest.mark.parametrize(
    "options",
    [
        {"patcher": UNetPatcherConfig(channels=8)},
        {"modality_weights": "all", "adaln": True},
        {"axial": True, "residual": "hyper"},
    ],
    ids=["unet", "mixture of transformers, adaLN", "axial, hyper-connections"],
)
def test_other_options_keep_it_so(options: dict) -> None:
    m = model(double=True, **options)
    plain, dual = losses(m, Text("a"), drawn(1)), losses(m, Text("a"), two())
    assert (plain.media.sum - dual.media.sum).abs() < 1e-9
    clean = losses(m, Media(picture(1), times=CLEAN), Text("what it shows"))
    assert (losses(m, two(), Text("what it shows")).text.sum - clean.text.sum).abs() < 1e-9


def test_every_item_takes_the_loss_that_it_has_behind_clean_ones() -> None:
    m = model(double=True)
    items = [Media(picture(i), use="both") for i in range(3)]
    together = losses(m, items[0], Text("x"), items[1], items[2], Text("end"))
    assert together.media.count == 3
    apart = torch.zeros(())
    for i in range(3):
        before = [replace(one, use="read") for one in items[:i]]
        document = [*before, replace(items[i], use="draw")]
        document.insert(1 if i else len(document), Text("x"))
        apart = apart + losses(m, *document).media.sum  # item i of the document has the same key here and there
    assert (together.media.sum - apart).abs() < 1e-9


def entries(m: Transfusion, documents: list[Document]) -> list[TokenSequence]:
    tokenized = [tokenize_document(one, m.vocabulary, m.config.model.coordinates) for one in documents]
    return [one.load(lambda item, i=i: 10 * i + item) for i, one in enumerate(tokenized)]


def rows(m: Transfusion, packed: list[list[TokenSequence]], length: int) -> Batch:
    return collate(packed, length, m.vocabulary, m.config.model.coordinates.axes)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.slow
@pytest.mark.parametrize("coordinates", ORDERS, ids=lambda c: c.order)
def test_packed_is_alone_and_forms_of_attention_agree(coordinates: Coordinates, monkeypatch, unchecked) -> None:
    monkeypatch.setattr("transfusion.nn.attention._compiled_flex", lambda _: flex_attention)
    m = model(double=True, coordinates=coordinates)
    found = entries(m, dual_documents())
    packed = rows(m, [[found[0], found[2]], [found[1]]], 96)
    hidden = {}
    with torch.no_grad():
        together = m(packed)
        alone = [m(rows(m, [[one]], len(one))) for one in found]
        media = m.network.add_noise(packed)
        place = AttentionMetadata.of_rows(packed.documents, packed.spans, packed.private)
        for form in ("dense", "sdpa", "document", "flex"):
            m.network.config = replace(m.network.config, attention_backend=form)  # type: ignore[arg-type]
            h, _ = m.network.hidden(packed.tokens, packed.positions, media, metadata=place)
            hidden[form] = h[(packed.documents >= 0).flatten()]
    for name in ("text", "media"):
        parts = torch.stack([getattr(one, name).sum for one in alone]).sum()
        assert (getattr(together, name).sum - parts).abs() < 1e-9
    assert together.media.count == 1 + 3 + 3
    for form in ("sdpa", "document", "flex"):
        assert (hidden[form] - hidden["dense"]).abs().max() < 1e-9


def corpus() -> list[Document]:
    """Two images and a caption each: the first two items are read later, the third is not."""
    return [Document((Media(picture(i)), Text("ab"), Media(picture(i + 50)), Text("c"), Media(picture(i)))) for i in range(12)]


def loader(dual: float, length: int = 64) -> Loader:
    return Loader(
        corpus(),
        transform=DocumentTransform(0.0, dual=dual, condition_dropout=ConditionDropout(0.0)),
        packing=PackingConfig(length, 2, 16),
        vocabulary=vocabulary(IMAGE),
        coordinates=Coordinates(),
        seed=0,
    )


def items(loader: Loader, steps: int = 6) -> dict[int, list[tuple[float, float, float]]]:
    """Key of each item -> weight and times of its copies."""
    found: dict[int, list[tuple[float, float, float]]] = {}
    for (batch,) in islice(loader.batches(), steps):
        for group in batch.media:
            for key, weight, times in zip(group.keys.tolist(), group.loss_weights.tolist(), group.times.tolist(), strict=True):
                found.setdefault(key, []).append((weight, *times))
    return found


def test_every_item_is_drawn_from_full_noise_with_copies_and_without() -> None:
    drawn_once, with_clean = [(1.0, 0.0, 1.0)], [(1.0, 0.0, 1.0), (0.0, 0.0, 0.0)]
    once, twice, mixed = (items(loader(dual)) for dual in (0.0, 1.0, 0.5))
    assert all(copies == drawn_once for copies in once.values()) and len(once) >= 30
    # the last of three items is read by nothing: it stands once
    assert {tuple(c) for c in twice.values()} == {tuple(drawn_once), tuple(with_clean)}
    assert sum(c == with_clean for c in twice.values()) == pytest.approx(len(twice) * 2 / 3, abs=2)
    assert 0 < sum(c == with_clean for c in mixed.values()) < len(mixed) * 2 / 3 - 2
    assert once.keys() & twice.keys() == (once.keys() & twice.keys() & mixed.keys()) and len(once.keys() & twice.keys()) >= 30


def test_documents_without_room_for_two_copies_stand_once() -> None:
    whole, short = loader(1.0, length=31), loader(1.0, length=30)
    assert (whole.num_single, short.num_single) == (0, 12)
    assert all(copies == [(1.0, 0.0, 1.0)] for copies in items(short).values())
    with pytest.raises(ValueError, match="takes 23 tokens, a row has 22: raise --packing"):
        loader(1.0, length=22)


def test_uses_follow_from_what_stands_behind() -> None:
    def uses(*segments: Text | Media, language_loss: bool = True) -> list[str | None]:
        return [item.use for item in with_uses(Document(segments, language_loss)).media]

    a, b = Media(picture(1)), Media(picture(2))
    assert uses(Text("a"), a) == ["draw"] and uses(a, Text("a")) == ["both"]
    assert uses(a, Text("a", loss=False)) == ["draw"] and uses(a, Text("a", loss=False), b) == ["both", "draw"]
    assert uses(a, Text("a"), language_loss=False) == ["draw"]
    assert uses(a, Media(picture(2), weight=0.0)) == ["draw", "context"]
    assert uses(replace(a, private=True), Text("x")) == ["draw"]
    assert uses(replace(a, times=(0.2, 0.2)), Text("x")) == ["draw"]
    assert uses(replace(a, noise=picture(3)), Text("x")) == ["draw"]
    assert uses(replace(a, weight=0.0, times=(0.2, 0.3)), Text("x")) == [None]  # noised, without a loss, as it is given
    for said in ("draw", "read", "both", "context"):
        assert uses(replace(a, use=said), Text("x")) == uses(replace(a, use=said)) == [said]


def test_a_pair_in_the_other_order_is_read_or_limited_as_the_paper_has_it() -> None:
    none = ConditionDropout(0.0)
    pair = Document((Text("a"), Media(picture(1))))
    assert DocumentTransform(0.0, condition_dropout=none)(pair, 0, 0, 0).media[0].use == "draw"
    (read,) = DocumentTransform(1.0, condition_dropout=none)(pair, 0, 0, 0).media
    assert read.use == "read" and read.is_clean and not read.has_loss
    (limited,) = DocumentTransform(1.0, 0.5, condition_dropout=none)(pair, 0, 0, 0).media
    assert (limited.use, limited.times, limited.has_loss) == ("draw", (0.0, 0.5), True)
    both = Document((Text("a"), Media(picture(1), use="both")))
    assert DocumentTransform(1.0, dual=1.0, condition_dropout=none)(both, 0, 0, 0).media[0].use == "both"
    own = ({"use": "draw"}, {"use": "read"}, {"use": "context"}, {"times": (0.0, 0.5)}, {"times": (0.7, 1.0)}, {"weight": 0.0})
    for fields in (*own, {"private": True}, {"noise": picture(2)}, {"times": CLEAN}):
        for noise in (0.0, 0.5):
            said = Document((Text("a"), Media(picture(1), **fields)))
            assert isinstance(DocumentTransform(1.0, noise, condition_dropout=none)(said, 0, 0, 0).segments[0], Text)
    for text in (Text("a", loss=False), Text("a", weight=0.0), Text("")):
        assert (
            DocumentTransform(1.0, condition_dropout=none)(Document((text, Media(picture(1)))), 0, 0, 0).media[0].use == "draw"
        )


def test_a_draw_that_drops_the_caption_keeps_a_loss() -> None:
    """Also where an item is only read: a document that would learn nothing is left whole."""
    clean = Document((Text("a"), Media(picture(1), use="read"), Text("b")))
    mixed = Document((Text("a"), Media(picture(1)), Text("b"), Media(picture(2), weight=0.0), Text("c")))
    v = vocabulary(IMAGE)
    for transform in (DocumentTransform(drop) for drop in (0.0, 1.0)):
        for dropout in (ConditionDropout(0.5), ConditionDropout(0.3, 0.3, 0.3)):
            for document in (clean, mixed):
                for i in range(100):
                    composed = replace(transform, condition_dropout=dropout)(document, 0, 0, i)
                    tokenized = tokenize_document(composed, v, Coordinates())
                    learned = any(item.media.has_loss for item in tokenized.items) or (tokenized.targets >= 0).any()
                    assert learned and (composed.language_loss or composed.media[-1].use == "draw")


def test_context_is_clean_in_training_as_in_a_prompt() -> None:
    """An item of weight 0 before text, by the transform and as given."""
    m = model(double=True)
    document = Document((Text("a"), Media(picture(1), weight=0.0), Text("b")))
    for composed in (document, DocumentTransform(0.0, condition_dropout=ConditionDropout(0.0))(document, 0, 0, 0)):
        (group,) = m.batch([composed]).media
        assert group.times.tolist() == [[0.0, 0.0]] and group.loss_weights.tolist() == [0.0]


def test_a_prompt_goes_on_from_the_clean_item() -> None:
    m = model(double=True)
    for media in (two(), drawn(1)):
        made = m.generate([[Text("so "), media, Text("then ")]], force="image", max_tokens=4, seed=3)
        value = made[0].media[-1].values
        assert isinstance(value, torch.Tensor)
        if media.use == "both":
            first, said = value, made[0].text
    assert (value - first).abs().max() < 1e-9 and made[0].text == said


@pytest.mark.parametrize("shares", [{"text": math.nan}, {"media": math.nan}, {"text": 0.6, "both": 0.6}, {"both": -0.1}])
def test_shares_of_dropped_conditions_are_shares(shares: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="sum to 1 at most"):
        ConditionDropout(**shares)
