"""Suites agree with plain computations, on small models with random weights and on stubs with fixed answers."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from small import documents, model, picture
from transfusion.api import Transfusion
from transfusion.data.document import Document, Media, Text
from transfusion.evaluation import draw, edit, read, text
from transfusion.evaluation.classifier import SmallClassifier
from transfusion.evaluation.estimate import Estimate
from transfusion.evaluation.questions import Question, read_questions
from transfusion.evaluation.suite import EvalContext, caption, class_named, generate
from transfusion.generate.failures import GenerationError

NAMES = ("dark", "bright")


def squares(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Images [count, 1, 4, 4] of two classes that anyone can tell apart."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    return (labels[:, None, None, None] * 1.2 - 0.6 + 0.3 * torch.randn(count, 1, 4, 4, generator=rng)).clamp(-1, 1), labels


def pairs(count: int, seed: int = 0) -> list[Document]:
    images, labels = squares(count, seed)
    return [
        Document((Text(f"a {NAMES[y]} one", paraphrases=(f"one that is {NAMES[y]}",)), Media(x)))
        for x, y in zip(images, labels, strict=True)
    ]


CONTEXT = EvalContext(samples=60, class_names=NAMES)


@pytest.fixture(scope="module")
def context() -> EvalContext:
    return replace(CONTEXT, classifier=SmallClassifier(*squares(200, 9)))


def drawing(m: Transfusion, monkeypatch: pytest.MonkeyPatch, make) -> None:
    """Let a model draw `make(index, prompt)` for each prompt."""

    def generate(prompts, **options):
        return [Document((*_segments(p), Media(make(i, p)))) for i, p in enumerate(prompts)]

    monkeypatch.setattr(m, "generate", generate)


def _segments(prompt: str | Document) -> tuple[Text | Media, ...]:
    return (Text(prompt),) if isinstance(prompt, str) else prompt.segments


# ---- text ---------------------------------------------------------------------------------------------------------------


def test_nats_are_those_of_the_loss() -> None:
    m = model()
    docs = [
        Document((Text("hello"),)),
        Document((Text("a longer line of text"),)),
        Document((Text("x", loss=False), Text("yz"))),
    ]
    for one, (total, count) in zip(docs, text.text_nats(m, docs, EvalContext()), strict=True):
        losses = m(m.batch([one]))
        assert count == losses.text.count and math.isclose(total, losses.text.sum.item(), rel_tol=1e-5)
    open_ended = text.text_nats(m, docs, EvalContext(), add_eos=False)
    assert [count for _, count in open_ended] == [5, 21, 2]


def test_perplexity_and_bits_of_a_model_that_knows_nothing() -> None:
    """All logits equal: the perplexity is the size of the vocabulary, and a byte-level token is a byte."""
    m = model()
    with torch.no_grad():
        m.network.head.weight.zero_()
    texts = ["abcd" * n for n in range(1, 13)]
    record = text.score(m, [Document((Text(t),)) for t in texts], EvalContext(samples=99)).record
    size = len(m.vocabulary)
    assert math.isclose(record.metrics["perplexity"].value, size, rel_tol=1e-4)
    tokens, bytes_ = sum(len(t) + 1 for t in texts), sum(len(t) for t in texts)
    assert math.isclose(record.metrics["bits_per_byte"].value, math.log2(size) * tokens / bytes_, rel_tol=1e-4)
    assert record.metrics["perplexity"].low is not None


def test_long_text_is_cut_to_the_context() -> None:
    m = model(context_length=40)
    whole = "the quick brown fox jumps over the lazy dog, and again it jumps. " * 3
    parts = text._split(m, whole)
    assert "".join(parts) == whole and all(len(m.vocabulary.encode(p)) <= 38 for p in parts)
    counts = [
        n
        for _, n in text.text_nats(
            m, [Document((Text(p),)) for p in parts], EvalContext(), add_eos=[False] * (len(parts) - 1) + [True]
        )
    ]
    assert sum(counts) == len(whole) + 1, "each byte once, and one end"
    assert text.score(m, [Document((Text(whole),))], EvalContext()).record.metrics["perplexity"].count == 1


def test_ranked_choice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all choices the likeliest a token wins, not the shortest; only the choice's tokens count."""
    known = {"of course": (4.0, 9), "no": (3.0, 2), "never": (9.0, 5)}
    monkeypatch.setattr(text, "text_nats", lambda _, docs, context, add_eos: [known[str(d.segments[1].content)] for d in docs])
    file = tmp_path / "q.jsonl"
    rows = [("why", ["no", "of course"], 1), ("how", ["never", "of course", "no"], 1), ("who", ["never", "no"], 0)]
    file.write_text("\n".join(json.dumps(dict(zip(("question", "choices", "answer"), row, strict=True))) for row in rows))
    assert text.choose(model(), read_questions(file), EvalContext()) == Estimate.proportion(2, 3)


def test_a_trained_model_answers() -> None:
    """Taught that b follows a and d follows c, it knows so."""
    m = model().train()
    optimizer = torch.optim.AdamW(m.parameters(), lr=3e-3)
    texts = [Document((Text("ab" * 8),)), Document((Text("cd" * 8),))]
    for _ in range(60):
        optimizer.zero_grad()
        m.loss(texts).backward()
        optimizer.step()
    asked = [Question("aba", ("bab", "dcd"), 0), Question("cdc", ("bab", "dcd"), 1)]
    record = text.score(m, texts, EvalContext(questions=tuple(asked))).record
    assert record.metrics["choice_accuracy"] == Estimate.proportion(2, 2) and record.metrics["perplexity"].value < 1.5


@pytest.mark.parametrize(
    "line",
    [
        "no json",
        '{"question": "a"}',
        '{"question": "a", "choices": ["b"], "answer": 0}',
        '{"question": "a", "choices": ["b", "c"], "answer": 2}',
    ],
)
def test_bad_questions_are_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "q.jsonl").write_text(line)
    with pytest.raises(ValueError, match=r"q\.jsonl:1"):
        read_questions(tmp_path / "q.jsonl")
    with pytest.raises(ValueError, match="cannot read questions"):
        read_questions(tmp_path / "none.jsonl")
    with pytest.raises(ValueError, match="holds text"):
        text.score(model(), [Document((Media(picture(1)),))], EvalContext())


# ---- draw ---------------------------------------------------------------------------------------------------------------


def test_perfect_and_wrong_drawings(monkeypatch: pytest.MonkeyPatch, context: EvalContext) -> None:
    m, docs = model(), pairs(60)
    fresh, _ = squares(60, seed=5)
    drawing(m, monkeypatch, lambda i, p: fresh[i])
    trained, _ = squares(300, seed=6)
    good = draw.score(m, docs, replace(context, trained=trained)).record
    assert good.metrics["agreement"] == Estimate.proportion(60, 60) and good.metrics["classifier_accuracy"].value == 1
    assert abs(good.metrics["nearest_training"].value - 1) < 0.1
    assert good.metrics["precision"].value > 0.7 and good.metrics["recall"].value > 0.7
    drawing(m, monkeypatch, lambda i, p: -fresh[i])
    assert draw.score(m, docs, context).record.metrics["agreement"].value == 0
    drawing(m, monkeypatch, lambda i, p: trained[i])
    copied = draw.score(m, docs, replace(context, trained=trained)).record.metrics
    assert copied["nearest_training"].value < 1e-6, "copies show"
    drawing(m, monkeypatch, lambda i, p: fresh[i % 2])
    same = draw.score(m, docs, replace(context, trained=trained)).record.metrics
    assert same["recall"].value < 0.2 < good.metrics["recall"].value, "drawing always the same shows"
    assert same["frechet_pixels"].value > 2 * good.metrics["frechet_pixels"].value


def test_captions_come_in_all_paraphrases(monkeypatch: pytest.MonkeyPatch, context: EvalContext) -> None:
    m = model()
    drawing(m, monkeypatch, lambda i, p: squares(60)[0][i])
    captions = [one.text for one in draw.score(m, pairs(4), context).documents]
    assert captions[:4] == ["a dark one", "one that is bright", "a dark one", "one that is bright"] and len(captions) == 60


def test_the_same_weights_and_seed_give_the_same_record(context: EvalContext) -> None:
    m = model()
    one, other = (draw.score(m, pairs(8), replace(context, samples=20)).record for _ in range(2))
    assert one == other and one.weights == other.weights
    assert draw.score(m, pairs(8), replace(context, samples=20, seed=1)).record != one
    with torch.no_grad():
        m.network.head.weight[0, 0] += 1
    assert draw.score(m, pairs(8), replace(context, samples=20)).record.weights != one.weights


def test_missing_metrics_have_a_reason(tmp_path: Path, context: EvalContext) -> None:
    m = model()
    few = draw.score(m, pairs(4), replace(context, samples=5)).record
    assert "too few" in few.missing["frechet_pixels"] and "agreement" in few.metrics
    none = draw.score(m, pairs(4), EvalContext(samples=2)).record
    assert "train classifier" in none.missing["agreement"] and "--inception" in none.missing["fid"]
    asked = draw.score(
        m, pairs(4), replace(context, samples=2, inception=str(tmp_path / "none.pth"), clip=str(tmp_path))
    ).record
    assert "none.pth" in asked.missing["fid"] and "no CLIP model in" in asked.missing["clip_score"] and asked.metrics
    assert "its run" in asked.missing["nearest_training"]
    with pytest.raises(ValueError, match="classifier takes"):
        draw.score(m, pairs(4), replace(context, classifier=SmallClassifier(torch.randn(8, 1, 6, 6), torch.arange(8) % 2)))
    with pytest.raises(ValueError, match="--data"):
        draw.score(m, [], context)


def test_drawings_with_nan_are_refused(context: EvalContext) -> None:
    m = model()
    with torch.no_grad():
        m.network.patchers["image"].proj_out.weight.fill_(float("nan"))  # type: ignore[union-attr]
    with pytest.raises(GenerationError, match="predictions are not finite"):
        draw.score(m, pairs(4), replace(context, samples=2))


# ---- read and edit ------------------------------------------------------------------------------------------------------


def test_reading_counts_named_classes(monkeypatch: pytest.MonkeyPatch, context: EvalContext) -> None:
    m, docs = model(), pairs(20)
    monkeypatch.setattr(m, "generate", lambda prompts, **_: [Document((*p.segments, Text("it is bright"))) for p in prompts])
    assert read.score(m, docs, context).record.metrics["accuracy"] == Estimate.proportion(10, 20)
    free = read.score(m, docs, replace(context, class_names=())).record
    assert "cider" in free.metrics and "accuracy" in free.missing
    monkeypatch.setattr(
        m,
        "generate",
        lambda prompts, **_: [Document((*p.segments, Text(caption(d)))) for p, d in zip(prompts, docs, strict=True)],
    )
    assert read.score(m, docs, replace(context, class_names=())).record.metrics["cider"].value > free.metrics["cider"].value
    with pytest.raises(ValueError, match="one image and a caption"):
        read.score(m, [documents()[3]], context)


def test_edits(monkeypatch: pytest.MonkeyPatch) -> None:
    m = model()
    before, after = squares(20)[0], squares(20, seed=3)[0]
    docs = [Document((Media(a), Text("change it"), Media(b))) for a, b in zip(before, after, strict=True)]
    for share, error, make in (
        (1.0, 0.25, lambda i, p: (before[i] + after[i]) / 2),
        (0.0, 1.0, lambda i, p: before[i]),
        (1.0, 0.0, lambda i, p: after[i]),
    ):
        drawing(m, monkeypatch, make)
        metrics = edit.score(m, docs, EvalContext()).record.metrics
        assert metrics["nearer"].value == share and math.isclose(metrics["error"].value, error, abs_tol=1e-6)
    with pytest.raises(ValueError, match="give edits"):
        edit.score(m, pairs(3), EvalContext())


def test_edits_of_a_model_are_drawn() -> None:
    docs = [Document((Media(picture(i)), Text("so"), Media(picture(i + 50)))) for i in range(3)]
    found = edit.score(model(), docs, EvalContext())
    assert len(found.documents) == 3 and found.record.metrics["nearer"].count == 3


# ---- what suites share --------------------------------------------------------------------------------------------------


def test_names_are_matched_as_whole_words_the_longest_first() -> None:
    names = ("shirt", "t-shirt", "one", "bag")
    assert class_named("a t-shirt", names) == 1 and class_named("a shirt", names) == 0
    assert class_named("someone has a bag", names) == 3
    assert class_named("a bag and a shirt", names) is None and class_named("nothing", names) is None


def test_suites_share_no_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompt i has the same seed whatever the count, and another one in another suite or under another seed."""
    m = model()
    used: list[list[int]] = []
    monkeypatch.setattr(m, "generate", lambda prompts, seeds, **_: used.append(seeds) or [Document((Text("x"),))] * len(seeds))
    for samples, options in ((4, {}), (6, {}), (6, {"suite": "other"}), (6, {"seed": 1})):
        generate(m, ["a"] * samples, "draw", EvalContext(**options))  # type: ignore[arg-type]
    assert used[0] == used[1][:4] and len({seed for seeds in used[1:] for seed in seeds}) == 18
