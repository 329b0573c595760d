"""CIDEr by hand, at its extremes, and on captions that cannot be scored."""

import math
import sys

import pytest

from transfusion.evaluation.captions import cider, tokens

VARIED = [
    "a small brown dog runs over the wet grass",
    "two people sit at a table and drink coffee",
    "the red bus stops in front of an old church",
    "children play football on a sunny beach",
]


def test_the_same_words_score_ten() -> None:
    result = cider(VARIED, [[caption] for caption in VARIED])
    assert result == pytest.approx([10] * 4, abs=1e-6)
    assert cider([caption.upper() + "!" for caption in VARIED], [[caption] for caption in VARIED]) == result


def test_other_words_score_nothing() -> None:
    result = cider(VARIED[1:] + VARIED[:1], [[caption] for caption in VARIED])
    assert sum(result) / 4 < 0.3
    assert cider(["completely unrelated words here"] * 4, [[caption] for caption in VARIED]) == (0, 0, 0, 0)


def test_a_small_case_by_hand() -> None:
    """Two images. Every word of image 0's only reference weighs log 2, but for `a`, which both have.

    Unigrams: the candidate shares cat of (cat, sat): cosine 1 / (1 * sqrt 2). Bigrams: it has `a cat`, the reference `a cat` and
    `cat sat`: again 1 / sqrt 2. It has no longer n-grams: 0. Length differs by 1 bigram: exp(-1 / 72). Ten times the mean of four.
    """
    result = cider(["a cat", "a dog"], [["a cat sat"], ["a dog"]])
    assert result[0] == pytest.approx(10 * (2 / math.sqrt(2)) / 4 * math.exp(-1 / 72))
    assert result[1] == pytest.approx(10 * 2 / 4)


def test_more_references_are_averaged() -> None:
    one = cider(VARIED, [[VARIED[0], "nothing like it"], *([text] for text in VARIED[1:])])
    assert one[0] == pytest.approx(5, abs=1e-6)


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("A man's dog, running.", "a man 's dog running"),
        ("They don't, can’t & won't!", "they do n't ca n't wo n't"),
        ("A t-shirt: 3.5 cm (grey)", "a t-shirt 3.5 cm grey"),
        ("", ""),
    ],
)
def test_words(caption: str, words: str) -> None:
    assert tokens(caption) == words.split()


def test_an_empty_caption_scores_nothing() -> None:
    assert cider(["", VARIED[1]], [[VARIED[0]], [VARIED[1]]])[0] == 0


@pytest.mark.parametrize(
    ("candidates", "references", "message"),
    [
        ([], [], "at least 2"),
        (["one"], [["one"]], "at least 2"),
        (["a", "b"], [["a"]], "one set a caption"),
        (["a", "b"], [["a"], []], "image 1"),
        (["a", "b"], [["..."], ["b"]], "image 0"),
    ],
)
def test_captions_that_cannot_be_scored_are_refused(candidates: list[str], references: list[list[str]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cider(candidates, references)


def test_the_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycocoevalcap.cider.cider_scorer", None)
    with pytest.raises(ValueError, match=r"transfusion-kit\[eval\]"):
        cider(["a", "b"], [["a"], ["b"]])
