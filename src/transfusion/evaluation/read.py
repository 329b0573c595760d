"""Image -> text: accuracy where captions name a class, CIDEr where they are free text."""

from collections.abc import Sequence

from transfusion.api import Transfusion
from transfusion.data.document import Document, Text
from transfusion.evaluation.captions import cider
from transfusion.evaluation.estimate import Estimate
from transfusion.evaluation.suite import EvalContext, SuiteResult, caption, class_named, generate, make_record

MAX_TOKENS = 48
"""Longest answer."""


def score(model: Transfusion, documents: Sequence[Document], context: EvalContext) -> SuiteResult:
    """Let the model caption the image of each document by greedy decoding. Accuracy is the share of answers that name the class
    of the caption and no other. CIDEr compares with all paraphrases.

    Raises:
        ValueError: no document has one image and a caption.
    """
    tasks = [document for document in documents if len(document.media) == 1 and caption(document)][: context.samples]
    if not tasks:
        raise ValueError("no document has one image and a caption: give held-out data with --data")
    prompts = [Document(document.media) for document in tasks]
    answers = generate(model, prompts, "read", context, max_items=0, max_tokens=MAX_TOKENS)
    texts, metrics, missing = [answer.text for answer in answers], {}, {}
    classes = [class_named(caption(document), context.class_names) for document in tasks]
    if None not in classes:
        right = sum(class_named(text, context.class_names) == label for text, label in zip(texts, classes, strict=True))
        metrics["accuracy"] = Estimate.proportion(right, len(tasks))
    else:
        missing["accuracy"] = "not all captions name one class: give the names with --names where they do"
        try:
            scores = cider(texts, [_references(document) for document in tasks])
            metrics["cider"] = Estimate.mean(scores, seed=context.seed)
        except ValueError as error:
            missing["cider"] = str(error)
    return SuiteResult(make_record("read", model, context, metrics, missing), tuple(answers))


def _references(document: Document) -> list[str]:
    count = max(1 + len(segment.paraphrases) for segment in document.segments if isinstance(segment, Text))
    return list(dict.fromkeys(caption(document, i) for i in range(count)))
