"""Documents of labels and images in turn, written from nothing: are all labels written, and do the images show them?

well_formed            share of documents of the form label, image, label, image
first_agreement        share of first images that the classifier gives the class of the label before them
second_agreement       the same of second images
label_NAME             share of a class among all labels
labels_least, _most    the smallest and the largest of these shares
classifier_accuracy    on held-out real images

Text is sampled at temperature 1: what is measured is what the model believes, not its most likely document.
"""

from collections import Counter
from collections.abc import Sequence

import torch

from transfusion.api import Transfusion
from transfusion.data.document import Document, Media, Text
from transfusion.evaluation.classifier import accuracy
from transfusion.evaluation.estimate import Estimate
from transfusion.evaluation.suite import EvalContext, SuiteResult, class_named, generate, make_record
from transfusion.generate.logits import Sample

TURNS = 2
"""Labels, and images, of a document."""
MAX_TOKENS = 16


def score(model: Transfusion, documents: Sequence[Document], context: EvalContext) -> SuiteResult:
    """Write `context.samples` documents from nothing.

    Args:
        documents: none are needed.

    Raises:
        ValueError: no classifier, or images that it does not take.
    """
    if context.classifier is None:
        raise ValueError("documents of labels and images need a classifier: give its folder with --classifier")
    if context.real is not None:
        context.classifier.classify(context.real[:1])
    written = generate(
        model,
        [Document(())] * context.samples,
        "alternating",
        context,
        decoding=Sample(),
        max_tokens=MAX_TOKENS,
        max_items=TURNS,
    )
    turns = [_turns(document, context.class_names) for document in written]
    complete = [[label for label, _ in found] for found in turns if len(found) == TURNS]
    counts = Counter(label for found in turns for label, _ in found)
    total = sum(counts.values())
    metrics = {"well_formed": Estimate.proportion(len(complete), len(written))}
    missing: dict[str, str] = {}
    verdicts = [""] * len(written)
    for turn, name in enumerate(("first", "second")):
        seen = [(i, *found[turn]) for i, found in enumerate(turns) if len(found) > turn]
        if not seen:
            missing[f"{name}_agreement"] = f"no document has a {name} label with an image"
            continue
        given = context.classifier.classify(torch.stack([image.tensor() for _, _, image in seen])).tolist()
        metrics[f"{name}_agreement"] = Estimate.proportion(
            sum(found == label for found, (_, label, _) in zip(given, seen, strict=True)), len(seen)
        )
        for found, (i, label, _) in zip(given, seen, strict=True):
            verdicts[i] += "+" if found == label else "-"
    if total:
        shares = {name: Estimate.proportion(counts[i], total) for i, name in enumerate(context.class_names)}
        metrics["labels_least"] = min(shares.values(), key=lambda share: share.value)
        metrics["labels_most"] = max(shares.values(), key=lambda share: share.value)
        metrics |= {f"label_{name}": share for name, share in shares.items()}
    if context.real is not None and context.real_classes is not None:
        metrics["classifier_accuracy"] = accuracy(context.classifier, context.real, context.real_classes)
    digests = {"classifier": context.classifier.digest}
    return SuiteResult(make_record("alternating", model, context, metrics, missing, digests), tuple(written), tuple(verdicts))


def _turns(document: Document, names: Sequence[str]) -> list[tuple[int, Media]]:
    """Labels and the images behind them, up to the first that is neither."""
    found: list[tuple[int, Media]] = []
    text = ""
    for segment in document.segments:
        if isinstance(segment, Text):
            text += segment.content if isinstance(segment.content, str) else ""
            continue
        label = class_named(text.strip(), names)
        if label is None:
            break
        found.append((label, segment))
        text = ""
    return found
