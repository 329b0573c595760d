"""Discrete media: items of ids of a codebook as tokens, their targets by use, and the losses of a model on them."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from small import CODED, FREE, IDS, IMAGE, drawn, model, vocabulary
from transfusion.api import Transfusion
from transfusion.data.batch import Batch, collate
from transfusion.data.document import Document, Media, MediaError, Text, unconditional
from transfusion.data.tokenize import IGNORE, Coordinates, TokenSequence, max_length, tokenize_document
from transfusion.data.transforms import ConditionDropout, DocumentTransform
from transfusion.data.vocabulary import SpecialToken
from transfusion.modality import Modality
from transfusion.model.network import ModelConfig
from transfusion.nn.attention import AttentionMetadata

VARYING = replace(CODED, largest=(4, 4))
RASTER = Coordinates("raster", axes=1)


def coded(use: str | None = None, **options: object) -> Media:
    return Media(IDS, use=use, **options)  # type: ignore[arg-type]


def tokens(document: Document, *modalities: Modality) -> TokenSequence:
    return tokenize_document(document, vocabulary(*(modalities or (CODED,))), RASTER).load(lambda item: item)


def test_codes_are_typed_ids_behind_all_others() -> None:
    words = vocabulary(CODED, replace(VARYING, name="sound"), replace(FREE, name="other"))
    plain = vocabulary(IMAGE, replace(VARYING, name="sound", codes=0), replace(FREE, name="other"))
    codes = words.codes("image")
    assert len(words) == len(plain) + 14 and codes.start == len(plain) and words.codes("sound") == range(codes.stop, len(words))
    assert not words.codes("other") and words.begin("other") == plain.begin("other")
    assert words.special_token(codes.start + 2) == SpecialToken("code", "image", code=2)
    assert words.special_token(len(words) - 1) == SpecialToken("code", "sound", code=6)
    assert words.names[codes.start + 2] == "<CODE image 2>" and len(set(words.names)) == len(words)
    assert not words.writable[codes.start :].any() and words.decode([97, codes.start]) == words.decode([97])
    with pytest.raises(ValueError, match="is no text id"):
        words.encode((codes.start,))


@pytest.mark.parametrize("use, learned", [("draw", True), ("both", True), (None, True), ("read", False), ("context", False)])
def test_the_sequence_and_its_targets_by_use(use: str | None, learned: bool) -> None:
    """BOS a BEGIN 6 codes END b EOS: one copy for every use, codes as targets from BEGIN on where the item is drawn."""
    words, found = vocabulary(CODED), tokens(Document((Text("a"), coded(use), Text("b"))))
    codes = [words.codes("image").start + i for i in (3, 0, 6, 1, 1, 2)]
    a, b = words.encode("ab")
    assert found.tokens.tolist() == [words.bos, a, words.begin("image"), *codes, words.end("image"), b, words.eos]
    under = codes if learned else [IGNORE] * 6
    assert found.targets.tolist() == [a, words.begin("image"), *under, IGNORE, b, words.eos, IGNORE]
    assert (found.spans == -1).all() and not found.private.any()
    assert found.positions[:, 0].tolist() == list(range(len(found))) and found.position == len(found)
    assert max_length(Document((Text("a"), coded(use), Text("b"))), words, {}) == len(found)


def test_the_unconditional_branch_learns_codes_and_no_text() -> None:
    whole = Document((Text("a"), coded("both"), Text("b")))
    words, found = vocabulary(CODED), tokens(unconditional(whole, 1))
    assert found.targets.tolist() == [IGNORE, *(words.codes("image").start + i for i in (3, 0, 6, 1, 1, 2)), *[IGNORE] * 3]


def test_weights_and_sizes() -> None:
    found = tokens(Document((Text("a"), coded(weight=2.0))), VARYING)
    assert found.target_weights is not None and found.target_weights.tolist() == [1] * 4 + [2] * 6 + [0, 1, 0]
    assert [vocabulary(VARYING).special_token(int(i)).role for i in found.tokens[2:5]] == ["size", "size", "begin"]  # type: ignore[union-attr]
    assert (tokens(Document((Text("a"), coded(weight=0.0)))).targets[2:8] == IGNORE).all()


def test_pairs_are_turned_and_captions_dropped_as_with_other_media() -> None:
    transform = DocumentTransform(image_first=1.0, image_first_noise=1.0, condition_dropout=ConditionDropout(0.0))
    turned = tokens(transform(Document((Text("a"), coded())), 0, 0, 0))
    assert (turned.targets[1:7] >= vocabulary(CODED).codes("image").start).all()
    read = tokens(replace(transform, image_first_noise=0.0)(Document((Text("a"), coded())), 0, 0, 0))
    assert (read.targets[1:7] == IGNORE).all() and read.targets[8] == vocabulary(CODED).encode("a")[0]


@pytest.mark.parametrize(
    "values, message",
    [(IDS + 0.5, "whole numbers from 0 to 6"), (IDS - 1, "from -1 to 5"), (IDS + 1, "from 1 to 7")],
)
def test_values_that_are_no_ids_are_refused(values: torch.Tensor, message: str) -> None:
    with pytest.raises(MediaError, match=message):
        tokens(Document((Media(values),)))


@pytest.mark.parametrize(
    "item, message",
    [
        (Media(IDS, noise=IDS), "cannot have noise"),
        (Media(IDS, mask=torch.ones(2, 3)), "cannot have a mask"),
        (Media(IDS, private=True), "cannot have privacy"),
        (Media(torch.zeros(1, 3, 3)), "size"),
    ],
)
def test_what_only_noised_items_have_is_refused(item: Media, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tokens(Document((item,)))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"channels": 3}, "1 channel and patches of 1"),
        ({"patch": (2, 3)}, "1 channel and patches of 1"),
        ({"codes": -1}, "codes must be 0"),
    ],
)
def test_senseless_modalities_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(CODED, **options)


def test_senseless_models_are_refused(unchecked) -> None:
    with pytest.raises(ValueError, match="no codes: give an autoencoder"):
        Transfusion(replace(model().config, model=replace(model().config.model, kind="chameleon")), vocabulary(IMAGE))
    with pytest.raises(ValueError, match="use the weights of text"):
        model(CODED, modality_weights="mlp")
    for wrong in ({"kind": "other"}, {"z_loss": -1.0}):
        with pytest.raises(ValueError, match="must be"):
            ModelConfig(**wrong)  # type: ignore[arg-type]


DOCUMENTS = [
    Document((Text("a"), coded(), Text("bcd"))),
    Document((coded("read"), Text("xyz", weight=0.5))),
    Document((Text("only text"),)),
]


@torch.no_grad()
def test_the_loss_is_one_mean_over_text_and_codes() -> None:
    """By hand, from the logits of each document alone; no attention reaches a later code."""
    m = model(CODED, double=True)
    losses, nats, counts = m(m.batch(DOCUMENTS)), [0.0, 0.0], [0, 0]
    first = m.vocabulary.codes("image").start
    for document in DOCUMENTS:
        (one,) = m.tokenize([document])
        weights = one.target_weights
        for end in range(1, len(one)):  # each target from what stands before it alone
            target = int(one.targets[end - 1])
            if target != IGNORE:
                cut = replace(
                    one,
                    target_weights=None,
                    items=(),
                    **{n: getattr(one, n)[:end] for n in ("tokens", "targets", "positions", "spans", "private")},
                )
                alone = collate([[cut]], end, m.vocabulary, 2)
                metadata = attention(alone)
                h, _ = m.network.hidden(alone.tokens, alone.positions, [], metadata=metadata)
                weight = 1.0 if weights is None else float(weights[end - 1])
                nats[target >= first] += weight * float(F.cross_entropy(m.network.head(h[-1]), torch.tensor(target)))
                counts[target >= first] += 1
    assert (
        losses.codes is not None
        and not m.batch(DOCUMENTS).media
        and counts == [int(losses.text.count), int(losses.codes.count)]
        and counts[1] == 6
    )
    assert float(losses.text.sum) == pytest.approx(nats[0], rel=1e-9)
    assert float(losses.codes.sum) == pytest.approx(nats[1], rel=1e-9)
    assert float(m.total(losses)) == pytest.approx(sum(nats) / sum(counts), rel=1e-9)


def attention(batch: Batch) -> AttentionMetadata:
    return AttentionMetadata.of_rows(batch.documents, batch.spans, batch.private)


@torch.no_grad()
def test_z_loss_is_the_mean_square_of_the_log_denominator() -> None:
    m = model(CODED, double=True)
    batch = m.batch(DOCUMENTS)
    plain = m.total(m(batch))
    h, _ = m.network.hidden(batch.tokens, batch.positions, [], metadata=attention(batch))
    expected = m.network.head(h[batch.loss_index]).exp().sum(-1).log().square().mean()
    m.network.config = replace(m.network.config, z_loss=1e-2)
    assert torch.allclose(m.total(m(batch)) - plain, 1e-2 * expected, rtol=1e-8) and expected > 1
    n = model(IMAGE, double=True)
    n.network.config = replace(n.network.config, z_loss=1e-2)  # also without codes, beside media
    assert [term.name for term in n(n.batch([Document((Text("a"), drawn(1)))])).auxiliary] == ["z"]
