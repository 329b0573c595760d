"""Sequences, targets, coordinates; the unconditional branch; control tokens that no text can spell."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from small import FREE, IMAGE, SOUND, VECTOR, model, picture, vocabulary
from transfusion.data.document import Document, Media, Text, document, unconditional
from transfusion.data.tokenize import IGNORE, Coordinates, tokenize_document
from transfusion.data.transforms import ConditionDropout, DocumentTransform
from transfusion.data.vocabulary import BPE, TokenizerFile, Vocabulary
from transfusion.diffusion.guidance import Guidance
from transfusion.diffusion.sampler import Euler
from transfusion.generate.engine import Engine
from transfusion.generate.state import Request
from transfusion.modality import Modality
from transfusion.model.network import ModelConfig
from transfusion.nn.attention import AttentionMetadata, visible
from transfusion.nn.pointwise import rotate
from transfusion.nn.positions import angles


def names(v: Vocabulary, tokens: np.ndarray) -> list[str]:
    return [c.name if (c := v.special_token(int(t))) else v.decode([int(t)]) for t in tokens]


def test_the_sequence_of_a_document() -> None:
    v = vocabulary(IMAGE)
    tokenized = tokenize_document(Document((Text("ab"), Media(picture(0)), Text("c"))), v, Coordinates())
    pad = "<PAD>"
    assert names(v, tokenized.tokens) == ["<BOS>", "a", "b", "<BEGIN image>", pad, pad, pad, pad, "<END image>", "c", "<EOS>"]
    # learned: a, b, BEGIN (from b), c (from END), EOS (from c); not learned: at BEGIN, under slots, so END is never predicted
    assert [names(v, np.array([t]))[0] if t != IGNORE else "-" for t in tokenized.targets] == [
        "a",
        "b",
        "<BEGIN image>",
        "-",
        "-",
        "-",
        "-",
        "-",
        "c",
        "<EOS>",
        "-",
    ]
    assert tokenized.spans.tolist() == [-1, -1, -1, -1, 0, 0, 0, 0, -1, -1, -1]
    assert tokenized.positions.tolist() == [
        [0, 0],
        [1, 1],
        [2, 2],
        [3, 3],
        [4, 4],
        [4, 5],
        [5, 4],
        [5, 5],
        [6, 6],
        [7, 7],
        [8, 8],
    ]
    raster = tokenize_document(Document((Text("ab"), Media(picture(0)), Text("c"))), v, Coordinates("raster", axes=1))
    assert raster.positions[:, 0].tolist() == list(range(11))


def test_equal_places_of_two_items_have_equal_coordinates_however_much_text_is_between() -> None:
    v, reset = vocabulary(IMAGE), Coordinates("reset", axes=3)
    edit = Document((Media(picture(0), use="context"), Text("any words", loss=False), Media(picture(1))))
    tokenized = tokenize_document(edit, v, reset)
    before, after = (tokenized.positions[item.start : item.start + 4] for item in tokenized.items)
    assert before.tolist() == [[2, 0, 0], [2, 0, 1], [2, 1, 0], [2, 1, 1]]
    assert (after[:, 1:] == before[:, 1:]).all() and set(after[:, 0].tolist()) == {
        before[0, 0] + 1 + 2 + len(v.encode("any words"))
    }
    text = tokenized.positions[tokenized.spans < 0]  # one-dimensional RoPE
    assert (text == text[:, :1]).all()
    assert np.unique(np.concatenate([text[:, 0], [2, after[0, 0]]])).tolist() == list(range(int(text.max()) + 1))
    with pytest.raises(ValueError, match="3 rotary axes"):
        tokenize_document(edit, v, Coordinates("reset"))
    with pytest.raises(ValueError, match="need 3 axes"):
        ModelConfig((IMAGE,), coordinates=Coordinates("reset"))


def test_sizes_stand_before_begin_and_are_learned_where_they_vary() -> None:
    v = vocabulary(FREE)
    tokenized = tokenize_document(Document((Text("a"), Media(picture(0, 1, 8, 2)))), v, Coordinates())
    assert names(v, tokenized.tokens)[:5] == ["<BOS>", "a", "<SIZE image 0:4>", "<SIZE image 1:1>", "<BEGIN image>"]
    assert tokenized.targets[1:4].tolist() == tokenized.tokens[2:5].tolist()
    assert tokenized.targets[4] == IGNORE and tokenized.items[0].grid == (4, 1)


def test_context_text_and_dropped_documents_are_not_learned() -> None:
    v = vocabulary(IMAGE)
    tokenized = tokenize_document(Document((Text("ask", loss=False), Text("ok"))), v, Coordinates())
    assert [t for t in tokenized.targets.tolist() if t != IGNORE] == [*v.encode("ok"), v.eos]
    dropped = tokenize_document(unconditional(Document((Text("a"), Media(picture(0)))), 1), v, Coordinates())
    assert (dropped.targets == IGNORE).all()


def test_slots_come_from_the_modality_alone() -> None:
    assert (
        IMAGE.slots((4, 4)) == (2, 2) and SOUND.slots((6,)) == (3,) and VECTOR.slots(()) == () and FREE.slots((8, 2)) == (4, 1)
    )
    for bad in ((4, 2), (4,), (5, 4)):
        with pytest.raises(ValueError, match="image"):
            IMAGE.slots(bad)
    with pytest.raises(ValueError, match="exceeds the largest"):
        FREE.slots((10, 2))
    with pytest.raises(ValueError, match="multiple of the patch"):
        Modality("image", 1, (5, 4), (2, 2))


def test_rows_of_text_are_llamas_one_dimensional_rope() -> None:
    """Against the textbook rotation of pairs (j, j + d / 2) by position * theta^(-2j / d)."""
    v = vocabulary(IMAGE)
    tokenized = tokenize_document(Document((Text("some text of no picture"),)), v, Coordinates(axes=2))
    x = torch.randn(1, len(tokenized), 16).double()
    cos, sin = angles(torch.from_numpy(tokenized.positions)[None], 16, 10000.0)
    expected = torch.empty_like(x)
    for p in range(len(tokenized)):
        for j in range(8):
            a = p * 10000.0 ** (-2 * j / 16)
            first, second = x[0, p, j], x[0, p, j + 8]
            expected[0, p, j] = first * math.cos(a) - second * math.sin(a)
            expected[0, p, j + 8] = second * math.cos(a) + first * math.sin(a)
    assert (rotate(x, cos, sin) - expected).abs().max() < 1e-4  # angles are fp32: 2e-6 at position 1, 1e-5 at 24
    one, _ = angles(torch.from_numpy(tokenized.positions)[None, :, :1], 16, 10000.0)
    assert torch.equal(cos, one) and cos.dtype == torch.float32


def test_slots_differ_by_their_place_in_the_grid() -> None:
    tokenized = tokenize_document(Document((Media(picture(0)),)), vocabulary(IMAGE), Coordinates())
    assert len({tuple(p) for p in tokenized.positions[tokenized.spans == 0].tolist()}) == 4


# ---- the unconditional branch -------------------------------------------------------------------------------------------


def test_training_and_sampling_have_one_unconditional_branch() -> None:
    """The ids, coordinates and mask of a training document whose caption is dropped are those that guidance runs."""
    m = model(IMAGE)
    trained = DocumentTransform(image_first=0.0, condition_dropout=ConditionDropout(text=1.0))(
        Document((Text("a cat"), Media(picture(1)))), 0, 0, 0
    )
    tokenized = tokenize_document(trained, m.vocabulary, Coordinates())
    engine = Engine(m.network, m.vocabulary, cache_slots=2)
    seen: dict[str, object] = {}
    extend, denoise = engine.runner.extend, engine.runner.denoise

    def extended(chunks):
        if any(c.cache_slot in doc.guidance_slots for c in chunks for doc in engine._active.values()):
            seen["prefix"] = chunks[-1]
        return extend(chunks)

    def denoised(chunks):
        seen["slots"] = chunks[-1]
        return denoise(chunks)

    engine.runner.extend, engine.runner.denoise = extended, denoised  # type: ignore[method-assign]
    engine.add(Request(Document((Text("a cat"),)), force="image", max_tokens=0, sampler=Euler(2), guidance=Guidance(3.0)))
    engine.step()
    prefix, slots = seen["prefix"], seen["slots"]
    tokens = np.concatenate([prefix.tokens, slots.tokens])  # type: ignore[attr-defined]
    positions = np.concatenate([prefix.positions, slots.positions])  # type: ignore[attr-defined]
    spans = np.concatenate([prefix.spans, slots.spans])  # type: ignore[attr-defined]
    count = len(tokens)
    assert (
        tokens.tolist()
        == tokenized.tokens[:count].tolist()
        == [m.vocabulary.bos, m.vocabulary.begin("image"), *[m.vocabulary.pad] * 4]
    )
    assert positions.tolist() == tokenized.positions[:count].tolist()

    def mask(spans: np.ndarray) -> torch.Tensor:
        s = torch.from_numpy(spans)[None]
        place = AttentionMetadata.of_rows(torch.zeros_like(s), s, torch.zeros_like(s).bool())
        return visible(place, place)

    assert torch.equal(mask(spans), mask(tokenized.spans[:count]))


def test_text_and_earlier_images_are_separately_droppable() -> None:
    one, two, three = Media(picture(1)), Media(picture(2)), Media(picture(3))
    whole = Document((Text("a"), one, Text("b"), two, Text("c"), three))
    branch = unconditional(whole, 3)
    assert [type(s) for s in branch.segments] == [Media, Media] and branch.segments[1] is two
    assert branch.media[0].values is one.values and branch.media[0].use == "context"
    assert unconditional(whole, 3, text=False, media=True).segments == (whole.segments[0], whole.segments[2], two)
    assert unconditional(whole, 3, media=True).segments == (two,)
    with pytest.raises(ValueError, match="is text"):
        unconditional(whole, 0)


def test_drop_rates_are_kept() -> None:
    transform = DocumentTransform(image_first=0.0, condition_dropout=ConditionDropout(text=0.2, media=0.1, both=0.3))
    whole = Document((Text("a"), Media(picture(1)), Text("b"), Media(picture(2))))
    kinds: dict[tuple[bool, bool], int] = {}
    for i in range(2000):
        found = transform(whole, 0, 0, i)
        if found.language_loss:
            continue
        before = found.segments[:-1]
        key = (any(isinstance(s, Text) for s in before), any(isinstance(s, Media) for s in before))
        kinds[key] = kinds.get(key, 0) + 1
    # the target is the second image in half of the draws; only there can earlier media be kept or dropped
    assert kinds[(False, True)] / 2000 == pytest.approx(0.1, abs=0.02)  # text dropped, earlier image kept
    assert kinds[(True, False)] / 2000 == pytest.approx(0.05, abs=0.02)  # image dropped, text kept
    assert kinds[(False, False)] / 2000 == pytest.approx(0.1 + 0.15 + 0.15, abs=0.03)


def test_the_papers_share_of_pairs_is_turned_and_limited_in_noise() -> None:
    pair = Document((Text("a"), Media(picture(1))))
    transform = DocumentTransform(0.2, 0.5, condition_dropout=ConditionDropout(0.0))
    composed = [transform(pair, 0, 0, i) for i in range(2000)]
    turned = [one.segments[0] for one in composed if isinstance(one.segments[0], Media)]
    assert len(turned) / 2000 == pytest.approx(0.2, abs=0.02) and all(item.times == (0.0, 0.5) for item in turned)
    assert all(one.media[0].times == (0.0, 1.0) for one in composed if isinstance(one.segments[0], Text))


def test_a_source_image_is_clean_before_its_edit() -> None:
    """Dropped text or not; the edit itself has any noise."""
    transform = DocumentTransform(0.0, condition_dropout=ConditionDropout(text=0.5))
    source = Media(torch.zeros(1, 4, 4), use="context")
    edit = Document((source, Text("make it red", loss=False), Media(torch.ones(1, 4, 4))))
    lengths = set()
    for epoch in range(40):
        composed = transform(edit, 0, epoch, 0)
        lengths.add(len(composed.segments))
        source, target = composed.media
        assert source.is_clean and target.use == "draw" and target.times == (0.0, 1.0)
    assert lengths == {2, 3}


# ---- control tokens -----------------------------------------------------------------------------------------------------


SPELLINGS = [c.name for c in vocabulary(FREE, SOUND).special_tokens]


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.one_of(st.sampled_from(SPELLINGS), st.text(max_size=8), st.sampled_from(["<|boi|>", "</s>", "[PAD]"])), max_size=6
    )
)
def test_no_text_spells_a_control_token(parts: list[str]) -> None:
    text = "".join(parts).encode("utf-8", "ignore").decode()
    for v in VOCABULARIES:
        ids = v.encode(text)
        assert all(v.special_token(i) is None for i in ids)
        assert v.decode(ids) == text


VOCABULARIES = [
    vocabulary(FREE, SOUND),
    Vocabulary(BPE(300).build(["<BEGIN image> and other captions", "<EOS>"]), [FREE, SOUND]),
]


def test_a_tokenizer_files_own_special_tokens_are_plain_text(tmp_path) -> None:
    from tokenizers import AddedToken

    tokenizer = BPE(300).build(["some words"])
    tokenizer.add_special_tokens([AddedToken("<|boi|>", special=True)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    v = Vocabulary(TokenizerFile(str(tmp_path / "tokenizer.json")).build([]), [IMAGE])
    special = v.tokenizer.token_to_id("<|boi|>")
    assert special is not None and special not in v.encode("a <|boi|> b")
    assert v.decode(v.encode("a <|boi|> b")) == "a <|boi|> b"


def test_saved_and_loaded_vocabularies_agree(tmp_path) -> None:
    for v in VOCABULARIES:
        v.save(tmp_path / "t.json")
        again = Vocabulary.load(tmp_path / "t.json", v.modalities)
        assert again.names == v.names and again.encode("a word <EOS>") == v.encode("a word <EOS>")


def test_ids_out_of_range_are_named() -> None:
    v = vocabulary(IMAGE)
    for bad in (-1, 256, 100000):
        with pytest.raises(ValueError, match="0 to 255"):
            tokenize_document(document([Text((1, bad))]), v, Coordinates())


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([torch.zeros(3, 4, 4)], "1 channels"),
        ([torch.zeros(1, 4)], "axes"),
        ([torch.zeros(1, 4, 5)], "multiple of the patch"),
        ([torch.zeros(1, 8, 8)], "every item has"),
        ([Media(torch.zeros(1, 4, 4), "sound")], "no modality 'sound'"),
        ([object()], "segment 0 is of type object"),
        ([np.zeros((1, 4, 4))], "segment 0 is of type ndarray"),
    ],
)
def test_items_that_do_not_fit_are_named(parts: list, message: str, unchecked) -> None:
    with pytest.raises(ValueError, match=message):
        tokenize_document(document(parts), vocabulary(IMAGE), Coordinates())


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_latents_that_are_no_numbers_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match="NaN or infinity"):
        model().loss([[torch.full((1, 4, 4), value)]])


def test_integer_images_are_refused_with_the_remedy() -> None:
    with pytest.raises(ValueError, match="scale images"):
        model().loss([[Media(torch.zeros(1, 4, 4, dtype=torch.uint8))]])


def test_a_tokenizer_with_gaps_reaches_no_control_token(tmp_path: Path) -> None:
    found = Tokenizer(WordLevel({"[UNK]": 0, "a": 1, "dog": 7}, unk_token="[UNK]"))
    found.pre_tokenizer = Whitespace()  # type: ignore[assignment]
    (tmp_path / "tokenizer.json").write_text(found.to_str())
    v = Vocabulary(TokenizerFile(str(tmp_path / "tokenizer.json")).build([]), (IMAGE,))
    assert v.encode("a dog") == [1, 7] and v.special_token(7) is None and v.num_text == 8
    assert len(set(v.names)) == len(v) == 8 + 5
    (tmp_path / "tokenizer.json").write_text("{nope")
    with pytest.raises(ValueError, match="cannot read the tokenizer"):
        TokenizerFile(str(tmp_path / "tokenizer.json")).build([])


@pytest.mark.parametrize(
    "part", [torch.zeros(1, 8, 8, dtype=torch.uint8), torch.ones(4, dtype=torch.bool), torch.zeros(2, 2).long()]
)
def test_tensors_that_are_neither_ids_nor_media_are_refused(part: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="token ids are int64"):
        document(["a", part])


def test_text_holds_whole_numbers(unchecked) -> None:
    with pytest.raises(ValueError, match=r"token ids \(integers\)"):
        Text((5.5, 3))  # type: ignore[arg-type]
