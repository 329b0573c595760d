"""Held-out text -> perplexity and bits per byte; questions -> accuracy of ranked choice."""

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from transfusion.api import Transfusion
from transfusion.data.batch import Batch
from transfusion.data.document import Document, Text
from transfusion.evaluation.estimate import Estimate
from transfusion.evaluation.questions import Question
from transfusion.evaluation.suite import EvalContext, SuiteResult, make_record
from transfusion.nn.attention import AttentionMetadata
from transfusion.nn.ema import eval_mode

MAX_TOKENS = 8192
"""Tokens of a forward pass, unless a document has more."""


def score(model: Transfusion, documents: Sequence[Document], context: EvalContext) -> SuiteResult:
    """Perplexity per token and bits per byte of the documents' text, the end of a document counted as a token; and the share of
    `context.questions` whose right choice is the likeliest.

    Documents longer than the model's context are split; each piece is predicted from its own beginning, and only the last one
    has an end. Images are left out.

    Raises:
        ValueError: neither text nor questions.
    """
    texts = ["".join(s.content for s in d.segments if isinstance(s, Text) and isinstance(s.content, str)) for d in documents]
    texts = [text for text in texts if text][: context.samples]
    metrics: dict[str, Estimate] = {}
    missing: dict[str, str] = {}
    if not texts and not context.questions:
        raise ValueError("no document holds text: give held-out text with --data, or questions with --questions")
    if texts:
        pieces = [_split(model, text) for text in texts]
        owners = [i for i, own in enumerate(pieces) for _ in own]
        last = [n == len(own) for own in pieces for n in range(1, len(own) + 1)]
        results = text_nats(model, [Document((Text(piece),)) for own in pieces for piece in own], context, add_eos=last)
        nats, counts = (np.bincount(owners, column) for column in zip(*results, strict=True))
        lengths = [len(text.encode()) for text in texts]
        metrics["perplexity"] = Estimate.ratio(nats, counts, seed=context.seed).map(math.exp)
        metrics["bits_per_byte"] = Estimate.ratio(nats / math.log(2), lengths, seed=context.seed)
    if context.questions:
        try:
            metrics["choice_accuracy"] = choose(model, context.questions, context)
        except ValueError as error:
            missing["choice_accuracy"] = str(error)
    return SuiteResult(make_record("text", model, context, metrics, missing))


def choose(model: Transfusion, questions: Sequence[Question], context: EvalContext) -> Estimate:
    """Accuracy of ranked choice, by which language models, the paper's among them, are compared: the answer is the choice whose
    tokens, after the question, have the highest mean log likelihood. Raises ValueError if a question with a choice is longer
    than the model's context."""
    pairs = [(q, choice) for q in questions for choice in q.choices]
    limit = model.config.model.context_length
    for question, choice in pairs:
        length = len(model.vocabulary.encode(question.question)) + len(model.vocabulary.encode(choice)) + 2
        if length > limit:
            start = question.question[:40]
            raise ValueError(f"question {start!r} with a choice takes {length} tokens, the context has {limit}")
    documents = [Document((Text(q.question, loss=False), Text(choice))) for q, choice in pairs]
    means = iter([total / count for total, count in text_nats(model, documents, context, add_eos=False)])
    right = 0
    for question in questions:
        ranked = [next(means) for _ in question.choices]
        right += ranked.index(min(ranked)) == question.answer
    return Estimate.proportion(right, len(questions))


@torch.no_grad()
def text_nats(
    model: Transfusion, documents: Sequence[Document], context: EvalContext, *, add_eos: bool | Sequence[bool] = True
) -> list[tuple[float, int]]:
    """Nats and number of the loss-bearing tokens of each document of text. `add_eos`: whether the end of a document counts as a
    token, for all documents or for each."""
    ends = [add_eos] * len(documents) if isinstance(add_eos, bool) else list(add_eos)
    results: list[tuple[float, int]] = []
    group: list[Document] = []
    length = 0
    with eval_mode(model):
        for i, document in enumerate(documents):
            group.append(document)
            length += sum(len(model.vocabulary.encode(s.content)) for s in document.segments if isinstance(s, Text)) + 2
            if length >= MAX_TOKENS or i + 1 == len(documents):
                results += _batch_nats(model, model.batch(group), ends[len(results) : i + 1], context)
                context.progress(i + 1, len(documents))
                group, length = [], 0
    return results


def _batch_nats(model: Transfusion, batch: Batch, ends: Sequence[bool], context: EvalContext) -> list[tuple[float, int]]:
    targets = batch.targets.flatten()
    with_end = torch.tensor(ends, device=targets.device)[batch.documents.flatten()[batch.loss_index]]
    where = batch.loss_index[with_end | (targets[batch.loss_index] != model.vocabulary.eos)]
    metadata = AttentionMetadata.of_rows(batch.documents, batch.spans, batch.private)
    with torch.autocast(model.device.type, torch.bfloat16, enabled=context.dtype == torch.bfloat16):
        h, _ = model.network.hidden(batch.tokens, batch.positions, [], metadata=metadata)
        losses = F.cross_entropy(model.network.head(h[where]).float(), targets[where], reduction="none").double()
    owner = batch.documents.flatten()[where]
    totals = torch.zeros(len(ends), dtype=torch.float64, device=owner.device).index_add(0, owner, losses)
    return list(zip(totals.tolist(), torch.bincount(owner, minlength=len(ends)).tolist(), strict=True))


def _split(model: Transfusion, text: str) -> list[str]:
    """A text in pieces that fit the model's context."""
    if len(model.vocabulary.encode(text)) <= model.config.model.context_length - 2 or len(text) < 2:
        return [text]
    # text is cut, not tokens: a byte-level token may hold half a character
    middle = len(text) // 2
    cut = text.rfind(" ", 1, middle) + 1 or middle
    return [*_split(model, text[:cut]), *_split(model, text[cut:])]
