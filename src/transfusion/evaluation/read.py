"""Picture -> text: accuracy where captions name one of some classes, CIDEr where they are free text."""

from collections.abc import Sequence

from transfusion.api import Transfusion
from transfusion.data.document import Document, Text
from transfusion.evaluation.captions import cider
from transfusion.evaluation.record import Metric, Proportion
from transfusion.evaluation.suite import Count, EvalContext, SuiteResult, caption, mean, named, record

MAX_TOKENS = 48
"""Tokens of an answer at most."""


def score(model: Transfusion, documents: Sequence[Document], how: EvalContext) -> SuiteResult:
    """Have the model caption the picture of each document, greedily.

    Accuracy is the share of answers that name the class of the caption and no other. CIDEr compares with all wordings.

    Raises:
        ValueError: no document has both a picture and a caption.
    """
    asked = [one for one in documents if len(one.media) == 1 and caption(one)][: how.samples]
    if not asked:
        raise ValueError("no document has one picture and a caption: give held-out data with --data")
    seeds = [how.seed * len(asked) + i for i in range(len(asked))]
    prompts = [Document(one.media) for one in asked]
    count = Count(len(prompts), how.progress)
    answers = model.generate(prompts, max_items=0, max_tokens=MAX_TOKENS, seeds=seeds, dtype=how.dtype, on_event=count)
    texts, metrics, missing = [one.text for one in answers], {}, {}
    classes = [named(caption(one), how.names) for one in asked]
    if all(one is not None for one in classes):
        right = sum(named(text, how.names) == one for text, one in zip(texts, classes, strict=True))
        metrics["accuracy"] = Metric.of(Proportion(right, len(asked)))
    else:
        missing["accuracy"] = "not all captions name one class: give the names with --names where they do"
        try:
            found = cider(texts, [_paraphrases(one) for one in asked])
            metrics["cider"] = mean(list(found.scores), how.seed)
        except ValueError as error:
            missing["cider"] = str(error)
    return SuiteResult(record("read", model, how, metrics, missing), tuple(answers), tuple(seeds))


def _paraphrases(document: Document) -> list[str]:
    most = max(1 + len(one.paraphrases) for one in document.segments if isinstance(one, Text))
    return list(dict.fromkeys(caption(document, i) for i in range(most)))
