# pyright: reportArgumentType=false, reportPossiblyUnboundVariable=false
"""Dual copies: what follows reads the clean one, the noised one takes the loss, and no number is another than it would be in
the document without copies that has the same to read."""

from dataclasses import replace
from itertools import islice

import pytest
import torch
from torch.nn.attention.flex_attention import flex_attention

from small import FREE, IMAGE, model, picture, vocabulary
from transfusion.api import Transfusion
from transfusion.codec.patchers import UNetPatcherConfig
from transfusion.data.batch import Batch, collate
from transfusion.data.document import CLEAN, Document, Media, Text
from transfusion.data.loader import Loader, PackingConfig
from transfusion.data.tokenize import Coordinates, TokenSequence, max_length, tokenize_document
from transfusion.data.transforms import ConditionDropout, DocumentTransform
from transfusion.model.losses import Losses
from transfusion.nn.attention import AttentionMetadata

ORDERS = [Coordinates("grid"), Coordinates("raster", axes=1)]


def two(**kw: object) -> Media:
    return Media(picture(1), **({"dual": True} | kw))  # type: ignore[arg-type]


def dual_documents() -> list[Document]:
    return [
        Document((Text("a "), two(), Text(" b"))),
        Document((two(), Media(picture(2), dual=True), Text("some words"), Media(picture(3), dual=True))),
        Document((Media(picture(4), private=True), Text("x"), two(), Media(picture(5)))),
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
    assert (clean.copy, clean.start, clean.media.times, clean.media.private) == ("clean", 7, CLEAN, False)
    assert noised.index == clean.index == 0


def test_an_item_without_a_loss_stands_once_and_so_does_a_prompts() -> None:
    v = vocabulary(IMAGE)
    for media in (two(times=CLEAN), two(weight=0.0)):
        tokenized = tokenize_document(Document((media, Text("c"))), v, Coordinates())
        assert [item.copy for item in tokenized.items] == [""] and not tokenized.private.any()
    prompt = tokenize_document(Document((two(), Text("c"))), v, Coordinates(), add_eos=False)
    plain = tokenize_document(Document((Media(picture(1)), Text("c"))), v, Coordinates(), add_eos=False)
    assert prompt.tokens.tolist() == plain.tokens.tolist() and prompt.positions.tolist() == plain.positions.tolist()
    with pytest.raises(ValueError, match="dual or private, not both"):
        two(private=True)


def test_the_length_is_known_before() -> None:
    for v in (vocabulary(IMAGE), vocabulary(FREE)):
        for one in dual_documents():
            assert max_length(one, v, {}) == len(tokenize_document(one, v, Coordinates()))
    with pytest.raises(ValueError, match="document 0 takes 12 tokens, the context has 10"):
        model(context_length=10).batch([[two()]])
    model(context_length=10).batch([[Media(picture(1))]])


def losses(m: Transfusion, *segments: Text | Media, language_loss: bool = True) -> Losses:
    with torch.no_grad():
        return m(m.batch([Document(segments, language_loss)]))


@pytest.mark.parametrize("coordinates", ORDERS, ids=lambda c: c.order)
def test_without_later_tokens_the_loss_is_that_of_the_plain_form(coordinates: Coordinates) -> None:
    """Up to END and EOS. Float64 to 1e-9; the noise and the time of an item are the same in both forms."""
    m = model(double=True, coordinates=coordinates)
    context = (Text("a cat "), Media(picture(7), times=CLEAN))
    dual, plain = losses(m, *context, two()), losses(m, *context, Media(picture(1)))
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
    noised = losses(m, Media(picture(1)), Text("what it shows"))
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
    plain, dual = losses(m, Text("a"), Media(picture(1))), losses(m, Text("a"), two())
    assert (plain.media.sum - dual.media.sum).abs() < 1e-9
    clean = losses(m, Media(picture(1), times=CLEAN), Text("what it shows"))
    assert (losses(m, two(), Text("what it shows")).text.sum - clean.text.sum).abs() < 1e-9


def test_every_item_takes_the_loss_that_it_has_behind_clean_ones() -> None:
    m = model(double=True)
    items = [Media(picture(i), dual=True) for i in range(3)]
    together = losses(m, items[0], Text("x"), items[1], items[2], Text("end"))
    assert together.media.count == 3
    apart = torch.zeros(())
    for i in range(3):
        before = [replace(one, dual=False, times=CLEAN) for one in items[:i]]
        document = [*before, replace(items[i], dual=False)]
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


def loader(dual: bool, length: int = 64) -> Loader:
    return Loader(
        corpus(),
        transform=DocumentTransform(0.0, condition_noise_max=0.0, dual=dual, condition_dropout=ConditionDropout(0.0)),
        packing=PackingConfig(length, 2, 16),
        vocabulary=vocabulary(IMAGE),
        coordinates=Coordinates(),
        seed=0,
    )


def test_composed_documents_read_clean_copies_and_learn_every_image() -> None:
    """Without them, images that are read stand clean and only the last one is learned. Keys are those of the plain form."""
    found = {}
    for dual in (False, True):
        keys: dict[int, float] = {}
        for (batch,) in islice(loader(dual).batches(), 6):
            for group in batch.media:
                for key, weight, times in zip(
                    group.keys.tolist(), group.loss_weights.tolist(), group.times.tolist(), strict=True
                ):
                    keys[key] = max(keys.get(key, 0.0), weight)
                    assert times == [0.0, 1.0] if weight else times == [0.0, 0.0]
        found[dual] = keys
    shared = found[True].keys() & found[False].keys()
    assert len(shared) >= 30
    assert sum(found[False][key] for key in shared) <= len(shared) / 3 + 2 and all(found[True][key] == 1 for key in shared)


def test_rows_must_have_room_for_the_copies() -> None:
    loader(False, length=26)
    with pytest.raises(ValueError, match="takes 31 tokens, a row has 30"):
        loader(True, length=30)
    assert (
        max(
            len(tokenize_document(DocumentTransform(1.0, dual=True).longest(one), vocabulary(IMAGE), Coordinates()))
            for one in corpus()
        )
        == 31
    )


def test_compose_leaves_alone_what_nothing_noised_is_read_of() -> None:
    transform = DocumentTransform(0.0, condition_noise_max=0.0, condition_dropout=ConditionDropout(0.0))
    documents = Document((two(), Media(picture(2), private=True), Media(picture(3)), Text("x")))
    dual, private, plain = transform(documents, 0, 0, 0).media
    assert dual.times == private.times == (0.0, 1.0) and plain.times == CLEAN
    first, hidden, third = DocumentTransform(0.0, dual=True, condition_dropout=ConditionDropout(0.0))(documents, 0, 0, 0).media
    assert first.dual and third.dual and not hidden.dual and third.times == (0.0, 1.0)
    pair = Document((Text("a"), Media(picture(1))))
    assert not DocumentTransform(0.0, dual=True, condition_dropout=ConditionDropout(0.0))(pair, 0, 0, 0).media[0].dual
    assert DocumentTransform(1.0, dual=True, condition_dropout=ConditionDropout(0.0))(pair, 0, 0, 0).media[0].dual


def test_a_prompt_goes_on_from_the_clean_item() -> None:
    m = model(double=True)
    for media in (two(), Media(picture(1))):
        made = m.generate([[Text("so "), media, Text("then ")]], force="image", max_tokens=4, seed=3)
        value = made[0].media[-1].values
        assert isinstance(value, torch.Tensor)
        if media.dual:
            first, said = value, made[0].text
    assert (value - first).abs().max() < 1e-9 and made[0].text == said
