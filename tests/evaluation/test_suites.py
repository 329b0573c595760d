"""Suites against plain computations, on small models with random weights and on stubs that always say the same."""

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
from transfusion.evaluation import draw, edit, estimate, read, results, text
from transfusion.evaluation.classifier import SmallClassifier
from transfusion.evaluation.record import Metric, Proportion, Record
from transfusion.evaluation.suite import EvalContext, caption

NAMES = ("dark", "bright")


def squares(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Pictures [count, 1, 4, 4] of two classes that anyone can tell apart."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    return (labels[:, None, None, None] * 1.2 - 0.6 + 0.3 * torch.randn(count, 1, 4, 4, generator=rng)).clamp(-1, 1), labels


def pairs(count: int, seed: int = 0) -> list[Document]:
    pictures, labels = squares(count, seed)
    return [
        Document((Text(f"a {NAMES[y]} one", paraphrases=(f"one that is {NAMES[y]}",)), Media(x)))
        for x, y in zip(pictures, labels, strict=True)
    ]


def how(**options: object) -> EvalContext:
    return replace(EvalContext(samples=60, judge=SmallClassifier(*squares(200, 9)), names=NAMES), **options)  # type: ignore[arg-type]


def drawing(m: Transfusion, monkeypatch: pytest.MonkeyPatch, make) -> None:
    """Let a model draw what `make` says of each prompt."""

    def generate(prompts, **options):
        return [
            Document(((p,) if isinstance(p, str) else p.segments) and (*_segments(p), Media(make(i, p))))
            for i, p in enumerate(prompts)
        ]

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
    for one, (total, count) in zip(docs, text.nats(m, docs, EvalContext()), strict=True):
        losses = m(m.batch([one]))
        assert count == losses.text.count and math.isclose(total, losses.text.sum.item(), rel_tol=1e-5)
    open_ended = text.nats(m, docs, EvalContext(), add_eos=False)
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
    parts = text._parts(m, whole)
    assert "".join(parts) == whole and all(len(m.vocabulary.encode(p)) <= 38 for p in parts)
    counts = [
        n
        for _, n in text.nats(
            m, [Document((Text(p),)) for p in parts], EvalContext(), add_eos=[False] * (len(parts) - 1) + [True]
        )
    ]
    assert sum(counts) == len(whole) + 1, "each byte once, and one end"
    assert text.score(m, [Document((Text(whole),))], EvalContext()).record.metrics["perplexity"].count == 1


def test_ranked_choice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all choices the likeliest a token wins, not the shortest; only the choice's tokens count."""
    known = {"of course": (4.0, 9), "no": (3.0, 2), "never": (9.0, 5)}
    monkeypatch.setattr(text, "nats", lambda _, docs, how, add_eos: [known[str(d.segments[1].content)] for d in docs])
    file = tmp_path / "q.jsonl"
    rows = [("why", ["no", "of course"], 1), ("how", ["never", "of course", "no"], 1), ("who", ["never", "no"], 0)]
    file.write_text("\n".join(json.dumps(dict(zip(("question", "choices", "answer"), row, strict=True))) for row in rows))
    assert text.choose(model(), text.read_questions(file), EvalContext()) == Proportion(2, 3)


def test_a_trained_model_answers() -> None:
    """Taught that b follows a and d follows c, it knows so."""
    m = model().train()
    optimizer = torch.optim.AdamW(m.parameters(), lr=3e-3)
    needs_ema_teacher = [Document((Text("ab" * 8),)), Document((Text("cd" * 8),))]
    for _ in range(60):
        optimizer.zero_grad()
        m.loss(needs_ema_teacher).backward()
        optimizer.step()
    asked = [text.Question("aba", ("bab", "dcd"), 0), text.Question("cdc", ("bab", "dcd"), 1)]
    record = text.score(m, needs_ema_teacher, EvalContext(), asked).record
    assert record.metrics["choice_accuracy"] == Metric.of(Proportion(2, 2)) and record.metrics["perplexity"].value < 1.5


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
        text.read_questions(tmp_path / "q.jsonl")
    with pytest.raises(ValueError, match="cannot read questions"):
        text.read_questions(tmp_path / "none.jsonl")
    with pytest.raises(ValueError, match="holds text"):
        text.score(model(), [Document((Media(picture(1)),))], EvalContext())


# ---- draw ---------------------------------------------------------------------------------------------------------------


def test_perfect_and_wrong_drawings(monkeypatch: pytest.MonkeyPatch) -> None:
    m, docs = model(), pairs(60)
    fresh, _ = squares(60, seed=5)
    drawing(m, monkeypatch, lambda i, p: fresh[i])
    trained, _ = squares(300, seed=6)
    good = draw.score(m, docs, how(trained=trained)).record
    assert good.metrics["agreement"] == Metric.of(Proportion(60, 60)) and good.metrics["judge"].value == 1
    assert abs(good.metrics["nearest_training"].value - 1) < 0.1
    assert good.metrics["precision"].value > 0.7 and good.metrics["recall"].value > 0.7
    drawing(m, monkeypatch, lambda i, p: -fresh[i])
    assert draw.score(m, docs, how()).record.metrics["agreement"].value == 0
    drawing(m, monkeypatch, lambda i, p: trained[i])
    copied = draw.score(m, docs, how(trained=trained)).record.metrics
    assert copied["nearest_training"].value < 1e-6, "copies show"
    drawing(m, monkeypatch, lambda i, p: fresh[i % 2])
    same = draw.score(m, docs, how(trained=trained)).record.metrics
    assert same["recall"].value < 0.2 < good.metrics["recall"].value, "drawing always the same shows"
    assert same["frechet_pixels"].value > 2 * good.metrics["frechet_pixels"].value


def test_captions_come_in_all_wordings(monkeypatch: pytest.MonkeyPatch) -> None:
    m = model()
    drawing(m, monkeypatch, lambda i, p: squares(60)[0][i])
    said = [one.text for one in draw.score(m, pairs(4), how()).documents]
    assert said[:4] == ["a dark one", "one that is bright", "a dark one", "one that is bright"] and len(said) == 60


def test_the_same_weights_and_seed_give_the_same_record() -> None:
    m = model()
    one, other = (draw.score(m, pairs(8), how(samples=20)).record for _ in range(2))
    assert one == other and one.weights == other.weights
    assert draw.score(m, pairs(8), how(samples=20, seed=1)).record != one
    with torch.no_grad():
        m.network.head.weight[0, 0] += 1
    assert draw.score(m, pairs(8), how(samples=20)).record.weights != one.weights


def test_what_cannot_be_measured_says_why(tmp_path: Path) -> None:
    m = model()
    few = draw.score(m, pairs(4), how(samples=5)).record
    assert "too few" in few.missing["frechet_pixels"] and "agreement" in few.metrics
    none = draw.score(m, pairs(4), EvalContext(samples=2)).record
    assert "train classifier" in none.missing["agreement"] and "--inception" in none.missing["fid"]
    asked = draw.score(m, pairs(4), how(samples=2, inception=str(tmp_path / "none.pth"), clip=str(tmp_path))).record
    assert "none.pth" in asked.missing["fid"] and "no CLIP model in" in asked.missing["clip_score"] and asked.metrics
    assert "its run" in asked.missing["nearest_training"]
    with pytest.raises(ValueError, match="judge knows"):
        draw.score(m, pairs(4), how(judge=SmallClassifier(torch.randn(8, 1, 6, 6), torch.arange(8) % 2)))
    with pytest.raises(ValueError, match="--data"):
        draw.score(m, [], how())


def test_drawings_with_nan_are_refused() -> None:
    m = model()
    with torch.no_grad():
        m.network.patchers["image"].proj_out.weight.fill_(float("nan"))  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="NaN"):
        draw.score(m, pairs(4), how(samples=2))


# ---- read and edit ------------------------------------------------------------------------------------------------------


def test_reading_counts_named_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    m, docs = model(), pairs(20)
    monkeypatch.setattr(m, "generate", lambda prompts, **_: [Document((*p.segments, Text("it is bright"))) for p in prompts])
    assert read.score(m, docs, how()).record.metrics["accuracy"] == Metric.of(Proportion(10, 20))
    free = read.score(m, docs, how(names=())).record
    assert "cider" in free.metrics and "accuracy" in free.missing
    monkeypatch.setattr(
        m,
        "generate",
        lambda prompts, **_: [Document((*p.segments, Text(caption(d)))) for p, d in zip(prompts, docs, strict=True)],
    )
    assert read.score(m, docs, how(names=())).record.metrics["cider"].value > free.metrics["cider"].value
    with pytest.raises(ValueError, match="one picture and a caption"):
        read.score(m, [documents()[3]], how())


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


# ---- records, intervals, tables -----------------------------------------------------------------------------------------


def test_records_come_back_as_they_were(tmp_path: Path) -> None:
    record = draw.score(model(), pairs(8), how(samples=20, command="transfusion evaluate x")).record
    assert Record.load(record.save(tmp_path)) == record
    (tmp_path / "draw.json").write_text(json.dumps({"suite": "draw"}))
    with pytest.raises(ValueError, match=r"draw\.json is no record"):
        Record.load(tmp_path / "draw.json")


def test_the_jackknife_of_a_mean_is_its_standard_error() -> None:
    x = torch.randn(2000, generator=torch.Generator().manual_seed(0)).double().numpy()
    found = estimate.jackknife(lambda kept: float(x[kept].mean()), len(x))
    half = (found.high - found.low) / 2
    assert math.isclose(found.value, x.mean()) and 0.6 < half / (2.093 * x.std() / math.sqrt(len(x))) < 1.5
    classes = (torch.arange(2000) % 10).double().numpy()  # in turn: leaving out a group must not leave out a class
    inturn = estimate.jackknife(lambda kept: float(classes[kept].mean()), len(classes))
    assert (inturn.high - inturn.low) / 2 < 2 * 2.093 * classes.std() / math.sqrt(len(classes))
    with pytest.raises(ValueError, match="at least 40"):
        estimate.jackknife(lambda kept: 0.0, 39)


def test_tables_come_from_records(tmp_path: Path) -> None:
    record = draw.score(model(), pairs(8), how(samples=20, command="transfusion evaluate x")).record
    record.save(tmp_path / "one" / "records")
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{results.OPEN}\nold\n{results.CLOSE}\nafter\n")
    results.Results(out=str(tmp_path / "results.md"), readme=str(readme)).write([tmp_path])
    assert "| one | " in readme.read_text() and "old" not in readme.read_text() and "after" in readme.read_text()
    said = (tmp_path / "results.md").read_text()
    assert record.weights in said and "`transfusion evaluate x`" in said
    assert f"| agreement | {record.metrics['agreement'].value:.3f} |" in said
    with pytest.raises(ValueError, match="no records below"):
        results.Results().write([tmp_path / "two"])


ROOT = Path(__file__).parent.parent.parent


def test_published_tables_are_those_of_the_records() -> None:
    """`make results` was run after the last change of a record."""
    runs = results.find([ROOT / "docs" / "records"])
    assert runs and (ROOT / "docs" / "results.md").read_text() == results.tables(runs)
    readme = (ROOT / "README.md").read_text()
    assert readme == results.within(readme, runs) and results.OPEN in readme
