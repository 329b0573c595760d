"""Text ids of other origin: a language model's own, and ids without text."""

from pathlib import Path

import pytest
import torch
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import Unigram, WordLevel

from small import FREE, IMAGE, picture
from transfusion.api import Transfusion
from transfusion.data.document import Document, Media, Text
from transfusion.data.tokenize import Coordinates, tokenize_document
from transfusion.data.vocabulary import BPE, Bytes, Ids, PretrainedVocabulary, SpecialToken, Vocabulary
from transfusion.generate.engine import Engine
from transfusion.generate.state import Done, Request, Token
from transfusion.model.network import ModelConfig
from transfusion.model_folder import TransfusionConfig
from transfusion.nn.transformer import TransformerConfig

TRUNK = TransformerConfig(width=32, depth=1, num_heads=2)


def language(modalities=(IMAGE,), **ids) -> Vocabulary:
    """256 bytes, <s> 256, </s> 257, <|call|> 258; three more rows that the tokenizer does not know."""
    tokenizer = Bytes().build([])
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in ("<s>", "</s>", "<|call|>")])
    return Vocabulary(tokenizer, modalities, PretrainedVocabulary(262, **ids))


def test_a_language_models_ids_frame_a_document() -> None:
    v = language(bos=256, eos=(257, 258))
    assert v.num_text == v.num_language == 262 and (v.bos, v.eos) == (256, 257)
    assert [c.role for c in v.special_tokens] == ["pad", "begin", "end"] and len(v) == 265
    tokenized = tokenize_document(Document((Text("ab"), Media(picture(0)))), v, Coordinates())
    assert tokenized.tokens.tolist() == [256, *v.encode("ab"), 263, *[262] * 4, 264, 257]
    assert (
        v.special_token(258) == v.special_token(257) == SpecialToken("eos")
        and v.special_token(256) == SpecialToken("bos")
        and v.special_token(65) is None
    )
    assert v.decode([256, *v.encode("a b"), 257, 263]) == "a b"


def test_what_a_language_model_lacks_stays_ours() -> None:
    v = language()
    assert [c.role for c in v.special_tokens] == ["bos", "pad", "eos", "begin", "end"] and v.bos == 262 and v.eos == 264
    assert v.num_language == 263, "our BOS stands before every text, so it belongs to the rows that are frozen"
    one = language(bos=257, eos=(257,))
    assert one.bos == one.eos == 257 and one.special_token(257) == SpecialToken("eos") and one.writable[257]


def test_what_may_be_written_of_a_language_models_ids() -> None:
    v = language(bos=256, eos=(257,))
    assert v.writable[:256].all() and v.writable.nonzero().flatten().tolist() == [*range(256), 257]
    own = Vocabulary(Bytes().build([]), (IMAGE,))
    assert own.writable.nonzero().flatten().tolist() == [*range(256), own.eos]


def test_no_text_spells_a_language_models_special_token() -> None:
    v = language(bos=256, eos=(257,))
    for text in ("<s>", "a </s><|call|> b", "<s"):
        ids = v.encode(text)
        assert max(ids) < 256 and v.decode(ids) == text
    words = Tokenizer(WordLevel({"a": 0, "</s>": 1}))
    with pytest.raises(ValueError, match="spells a special token"):
        Vocabulary(words, (), PretrainedVocabulary(2, eos=(1,))).encode("</s>")


@pytest.mark.parametrize("kind", ["words", "pieces"])
def test_words_that_a_language_models_tokenizer_does_not_know_are_called_so(kind: str) -> None:
    model = WordLevel({"<unk>": 0, "a": 1, "</s>": 2}, unk_token="<unk>")
    pieces = Unigram([("<unk>", 0.0), ("a", -1.0), ("</s>", -1.0)], unk_id=0)
    tokenizer = Tokenizer(model if kind == "words" else pieces)
    tokenizer.add_special_tokens(["<unk>", "</s>"])
    v = Vocabulary(tokenizer, (), PretrainedVocabulary(3, eos=(2,)))
    assert v.encode("a") == [1]
    with pytest.raises(ValueError, match="does not know"):
        v.encode("b")


@pytest.mark.parametrize("end", [257, 258])
def test_any_of_its_end_ids_ends_a_document(end: int) -> None:
    v = language(bos=256, eos=(257, 258))
    m = Transfusion(TransfusionConfig(ModelConfig(modalities=(IMAGE,), transformer=TRUNK), language=v.ids), v).eval()
    logits = torch.zeros(len(v))
    logits[256], logits[end] = 9.0, 5.0  # BOS would be likelier, and may not be written
    engine = Engine(m.network, v, cache_slots=1)
    extend = engine.runner.extend
    engine.runner.extend = lambda chunks: [logits for _ in extend(chunks)]  # type: ignore[method-assign]
    engine.add(Request(Document((Text("a"),)), max_items=0))
    events = list(engine.run())
    assert [e.token for e in events if isinstance(e, Token)] == [end]
    assert isinstance(events[-1], Done) and events[-1].reason == "end" and events[-1].document.text == "a"


@pytest.mark.parametrize("bad", [{"bos": 262}, {"eos": (1, -1)}])
def test_frames_outside_the_language_models_ids_are_refused(bad: dict) -> None:
    with pytest.raises(ValueError, match="below 262"):
        language(**bad)


def test_a_tokenizer_of_another_language_model_is_refused() -> None:
    with pytest.raises(ValueError, match="own tokenizer"):
        Vocabulary(BPE(300).build(["some words and words"]), (), PretrainedVocabulary(200))


def test_a_language_models_vocabulary_is_saved_with_the_model(tmp_path: Path) -> None:
    v = language((FREE,), bos=256, eos=(257, 258))
    m = Transfusion(TransfusionConfig(ModelConfig(modalities=(FREE,), transformer=TRUNK), language=v.ids), v)
    m.save_pretrained(tmp_path)
    again = Transfusion.from_pretrained(tmp_path)
    assert again.vocabulary.ids == v.ids and again.vocabulary.names == v.names and again.vocabulary.eos == 257
    assert torch.equal(again.loss(["one", [picture(1)]]), m.loss(["one", [picture(1)]]))
    with pytest.raises(ValueError, match="language model"):
        Transfusion(TransfusionConfig(ModelConfig(modalities=(FREE,), transformer=TRUNK)), v)


# ---- ids without text ---------------------------------------------------------------------------------------------------


def test_ids_are_written_as_numbers(tmp_path: Path) -> None:
    v = Vocabulary(Ids(12).build([]), (IMAGE,))
    assert v.num_text == 12 and v.encode((3, 11)) == [3, 11] == v.encode("3 11") and v.decode([3, 11, v.eos]) == "3 11"
    v.save(tmp_path / "t.json")
    assert Vocabulary.load(tmp_path / "t.json", (IMAGE,)).names == v.names
    for bad in ("3 12", "word", "03"):
        with pytest.raises(ValueError, match="give a tuple of ids"):
            v.encode(bad)
    with pytest.raises(ValueError, match="0 to 11"):
        v.encode((12,))


def test_no_ids_at_all() -> None:
    v = Vocabulary(Ids(0).build([]), (IMAGE,))
    assert v.num_text == 0 and v.pad == 0 and v.decode([v.bos, v.eos]) == "" and v.encode("") == []
    with pytest.raises(ValueError, match="only media"):
        v.encode((0,))
    m = Transfusion(TransfusionConfig(ModelConfig(modalities=(IMAGE,), transformer=TRUNK)), v)
    m.loss([[picture(1)]]).backward()
    assert len(m.generate(force="image", max_tokens=0)[0].media) == 1


def test_a_count_below_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="between 0 and"):
        Ids(-1)
