"""What a model learned: shapes of documents, and the doubt about others."""

import warnings
from pathlib import Path

import pytest

from small import model, picture
from transfusion.api import Transfusion
from transfusion.data.document import Document, Media, Text
from transfusion.data.learned import FILE, MOST_SHAPES, LearnedDocuments, shape
from transfusion.data.transforms import ConditionDropout, DocumentTransform, with_uses

PAIR = Document((Text("a cat"), Media(picture(1))))
EDIT = Document((Media(picture(1), use="context"), Text("make it red", loss=False), Media(picture(2))))


def test_shapes_of_a_corpus_are_those_that_it_is_trained_in() -> None:
    transform = DocumentTransform(image_first=0.3, condition_dropout=ConditionDropout(text=0.2))
    learned = LearnedDocuments.of([PAIR] * 500, transform, prompts=["a cat"])
    total = sum(learned.shapes.values())
    shares = {name: count / total for name, count in learned.shapes.items()}
    assert shares == {
        "text image:draw": pytest.approx(0.7 * 0.8, abs=0.06),
        "image:draw": pytest.approx(0.7 * 0.2, abs=0.05),  # the caption dropped
        "image:read text": pytest.approx(0.3, abs=0.06),
    }
    assert (learned.drawn, learned.read, learned.edited) == (("image",), ("image",), ())
    assert learned.prompts == ["a cat"] and not learned.more


def test_no_shape_is_missed_by_the_order_of_a_corpus() -> None:
    turned = Document((Media(picture(1), use="read"), Text("a cat")))
    transform = DocumentTransform(image_first=0.0, condition_dropout=ConditionDropout(0.0))
    learned = LearnedDocuments.of([PAIR, turned] * 4000 + [EDIT], transform)
    assert learned.shapes == {"text image:draw": 8000, "image:read text": 8000, "image:context text:given image:draw": 2}
    many = LearnedDocuments.of([PAIR, turned] * 10_001, transform)
    assert many.more and many.shapes["image:read text"] == pytest.approx(20_000, abs=600)


def test_the_shape_of_a_document() -> None:
    whole = Document((Text("a"), Text(""), Text("b", loss=False), Media(picture(1)), Text("c"), Media(picture(2), weight=0.0)))
    assert shape(with_uses(whole)) == "text image:both text image:context"
    assert shape(with_uses(EDIT)) == "image:context text:given image:draw"
    learned = LearnedDocuments()
    learned.note([EDIT])
    assert (learned.drawn, learned.read, learned.edited) == (("image",), (), ("image",))


@pytest.mark.parametrize(
    ("prompt", "force", "text", "sure"),
    [
        ([Text("a dog")], "image", False, True),
        ([], "image", False, False),
        ([Media(picture(1))], None, True, True),
        ([Media(picture(1)), Text("it is")], None, True, True),
        ([Text("a dog")], None, True, True),
        ([Media(picture(1)), Text("now draw")], "image", False, False),
        ([Media(picture(1))], "image", False, False),
        ([Media(picture(1)), Media(picture(2))], None, True, False),
        ([], None, False, True),
    ],
)
def test_doubt_is_about_what_no_document_had(prompt: list, force: str | None, text: bool, sure: bool) -> None:
    learned = LearnedDocuments()
    learned.note([PAIR, Document((Media(picture(1), use="read"), Text("a cat")))])
    doubt = learned.doubt(Document(tuple(prompt)), force=force, text=text)
    assert (doubt == "") is sure and (sure or "it learned [text image:draw], [image:read text]" in doubt)
    assert LearnedDocuments().doubt(Document(tuple(prompt)), force=force, text=text) == ""  # nothing is known


def test_where_not_all_shapes_are_kept_there_is_no_doubt() -> None:
    learned = LearnedDocuments()
    learned.note(Document(tuple([Text("a"), Media(picture(1))] * (i + 1))) for i in range(MOST_SHAPES + 1))
    assert learned.more and len(learned.shapes) == MOST_SHAPES
    assert learned.doubt(Document((Media(picture(1)),)), force="image", text=False) == ""


def test_a_model_notes_what_it_is_trained_on_and_warns_of_the_rest(tmp_path: Path) -> None:
    m = model()
    m.loss([PAIR])
    assert not m.learned.shapes  # evaluation is no training
    m.train().loss([PAIR, EDIT])
    ema = m.create_ema()
    m.loss([["a", picture(1)]])
    assert m.learned.shapes == {"text image:draw": 2, "image:context text:given image:draw": 1}
    ema.save_pretrained(tmp_path)
    loaded = Transfusion.from_pretrained(tmp_path)
    assert loaded.learned == m.learned and loaded.learned.prompts == ["a cat", "a"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded.generate("a cat", force="image")
        loaded.generate([[picture(1), "make it blue"]], force="image")
    with pytest.warns(UserWarning, match="never learned an item of image behind image, so what comes may mean nothing"):
        loaded.generate([picture(1)], force="image")


@pytest.mark.parametrize("text", ["[]", "{", '{"shapes": {"text": "many"}}', '{"prompts": [1]}', '{"other": 1}'])
def test_a_damaged_file_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE).write_text(text)
    with pytest.raises(ValueError, match=r"cannot read .*documents\.json"):
        LearnedDocuments.load(tmp_path)
