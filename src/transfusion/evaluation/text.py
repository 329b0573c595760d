"""Language: perplexity and bits per byte of held-out text, and questions answered by ranking their choices."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F

from transfusion.api import Transfusion
from transfusion.data.batch import Batch
from transfusion.data.document import Document, Text
from transfusion.evaluation.record import Metric, Proportion
from transfusion.evaluation.suite import EvalContext, SuiteResult, mean, record
from transfusion.nn.attention import AttentionMetadata
from transfusion.nn.eval_mode import eval_mode

TOKENS = 8192
"""Tokens of a pass, unless a document has more."""


@dataclass(frozen=True)
class Question:
    """A question with its choices; `answer` is the index of the right one."""

    question: str
    choices: tuple[str, ...]
    answer: int


def read_questions(path: str | Path) -> list[Question]:
    """Questions of a JSONL file, one a line: {"question": "...", "choices": ["...", "..."], "answer": 0}.

    Raises:
        ValueError: the file is missing or empty, or a line has another form; the message names it.
    """
    path, found = Path(path), []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read questions from {path}: {error}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            plain = json.loads(line)
            one = Question(str(plain["question"]), tuple(map(str, plain["choices"])), int(plain["answer"]))
            if len(one.choices) < 2 or not all(one.choices) or not 0 <= one.answer < len(one.choices):
                raise ValueError("two choices at least, none empty, and an answer among them are wanted")
        except (ValueError, TypeError, KeyError) as error:
            form = '{"question": "...", "choices": ["...", "..."], "answer": 0}'
            raise ValueError(f"{path.name}:{number}: {error}; a line is {form}") from error
        found.append(one)
    if not found:
        raise ValueError(f"{path} holds no questions")
    return found


def score(
    model: Transfusion, documents: Sequence[Document], how: EvalContext, questions: Sequence[Question] = ()
) -> SuiteResult:
    """Perplexity a token and bits a byte of the documents' text, the end of the document counted as a token; and the share of
    questions whose right choice is the likeliest.

    Documents longer than the context are cut; each part is predicted from its own beginning, and only the last
    has an end. Pictures are left out.

    Raises:
        ValueError: there is neither text nor a question.
    """
    texts = [
        "".join(s.content for s in one.segments if isinstance(s, Text) and isinstance(s.content, str)) for one in documents
    ]
    texts = [text for text in texts if text][: how.samples]
    metrics: dict[str, Metric] = {}
    missing: dict[str, str] = {}
    if not texts and not questions:
        raise ValueError("no document holds text: give held-out text with --data, or questions with --questions")
    if texts:
        parts = [(i, part, last) for i, text in enumerate(texts) for part, last in _marked(_parts(model, text))]
        found = nats(model, [Document((Text(part),)) for _, part, _ in parts], how, add_eos=[last for *_, last in parts])
        sums, counts = [0.0] * len(texts), [0.0] * len(texts)
        for (i, _, _), (total, count) in zip(parts, found, strict=True):
            sums[i], counts[i] = sums[i] + total, counts[i] + count
        token = mean(sums, how.seed, over=counts)
        byte = mean([one / math.log(2) for one in sums], how.seed, over=[float(len(text.encode())) for text in texts])
        metrics["perplexity"] = replace(
            token,
            value=math.exp(token.value),
            low=None if token.low is None else math.exp(token.low),
            high=None if token.high is None else math.exp(token.high),
        )
        metrics["bits_per_byte"] = byte
    if questions:
        try:
            metrics["choice_accuracy"] = Metric.of(choose(model, questions, how))
        except ValueError as error:
            missing["choice_accuracy"] = str(error)
    return SuiteResult(record("text", model, how, metrics, missing))


def choose(model: Transfusion, questions: Sequence[Question], how: EvalContext) -> Proportion:
    """Ranked choice, as language models are compared (and the paper's suite is): of all choices, written behind the question,
    the one whose tokens are likeliest on average is the answer."""
    asked = [(q, choice) for q in questions for choice in q.choices]
    context = model.config.model.context_length
    for one, choice in asked:
        length = len(model.vocabulary.encode(one.question)) + len(model.vocabulary.encode(choice)) + 2
        if length > context:
            raise ValueError(f"question {one.question[:40]!r} with a choice takes {length} tokens, the context has {context}")
    documents = [Document((Text(q.question, loss=False), Text(choice))) for q, choice in asked]
    found = nats(model, documents, how, add_eos=False)
    at = right = 0
    for one in questions:
        ranked = [total / count for total, count in found[at : at + len(one.choices)]]
        right += ranked.index(min(ranked)) == one.answer
        at += len(one.choices)
    return Proportion(right, len(questions))


@torch.no_grad()
def nats(
    model: Transfusion, documents: Sequence[Document], how: EvalContext, *, add_eos: bool | Sequence[bool] = True
) -> list[tuple[float, int]]:
    """Of each document of text: nats of its loss-bearing tokens, and how many there are.

    Args:
        closed: whether the end of the document counts as one; one answer for all, or one each.
    """
    ends = [add_eos] * len(documents) if isinstance(add_eos, bool) else list(add_eos)
    found: list[tuple[float, int]] = []
    group: list[Document] = []
    length = 0
    with eval_mode(model):
        for i, one in enumerate(documents):
            group.append(one)
            length += sum(len(model.vocabulary.encode(str(s.content))) for s in one.segments if isinstance(s, Text)) + 2
            if length >= TOKENS or i + 1 == len(documents):
                found += _nats(model, model.batch(group), ends[len(found) : i + 1], how)
                how.progress(i + 1, len(documents))
                group, length = [], 0
    return found


def _nats(model: Transfusion, batch: Batch, ends: Sequence[bool], how: EvalContext) -> list[tuple[float, int]]:
    targets = batch.targets.flatten()
    counted = torch.tensor(ends, device=targets.device)[batch.documents.flatten()[batch.loss_index]]
    where = batch.loss_index[counted | (targets[batch.loss_index] != model.vocabulary.eos)]
    metadata = AttentionMetadata.of_rows(batch.documents, batch.spans, batch.private)
    bf16 = how.dtype == torch.bfloat16
    with torch.autocast(model.device.type, torch.bfloat16, enabled=bf16):
        h, _ = model.network.hidden(batch.tokens, batch.positions, [], metadata=metadata)
        losses = F.cross_entropy(model.network.head(h[where]).float(), targets[where], reduction="none").double()
    owner = batch.documents.flatten()[where]
    totals = torch.zeros(len(ends), dtype=torch.float64, device=owner.device).index_add(0, owner, losses)
    return list(zip(totals.tolist(), torch.bincount(owner, minlength=len(ends)).tolist(), strict=True))


def _marked(parts: Sequence[str]) -> list[tuple[str, bool]]:
    """Each part, and whether it is the last."""
    return [(part, i + 1 == len(parts)) for i, part in enumerate(parts)]


def _parts(model: Transfusion, text: str) -> list[str]:
    """A text in parts that fit the context, cut between tokens."""
    room, ids = model.config.model.context_length - 2, model.vocabulary.encode(text)
    if len(ids) <= room or len(text) < 2:
        return [text]
    # a byte-level token may hold part of a letter: such halves are put together again by cutting the text, not the tokens
    middle = len(text) // 2
    cut = text.rfind(" ", 1, middle) + 1 or middle
    return [*_parts(model, text[:cut]), *_parts(model, text[cut:])]
