"""Image, instruction -> image: is the edit nearer to the target than the untouched source is?"""

from collections.abc import Sequence

import torch

from transfusion.api import Transfusion
from transfusion.data.document import Document, Media, Text
from transfusion.evaluation.estimate import Estimate
from transfusion.evaluation.suite import EvalContext, SuiteResult, generate, make_record
from transfusion.modality import IMAGE


def score(model: Transfusion, documents: Sequence[Document], context: EvalContext) -> SuiteResult:
    """Draw the last image of documents [image, text, image] from the first two segments.

    `nearer` is the share of edits whose mean squared error against the target is below the source's; `error` the edits' mean
    error over the sources'. A model that copies its source has 0 and 1.

    Raises:
        ValueError: no document has this form, with images of one size, or no target differs from its source.
    """
    tasks = []
    for document in documents:
        match document.segments:
            case (Media() as source, Text(), Media() as target) if source.tensor().shape == target.tensor().shape:
                tasks.append(document)
        if len(tasks) == context.samples:
            break
    if not tasks:
        raise ValueError("no document is an image, an instruction and an image of the same size: give edits with --data")
    edited = generate(model, [Document(document.segments[:2]) for document in tasks], "edit", context, force=IMAGE)
    source, drawn, target = (
        torch.stack([document.media[i].tensor() for document in group]) for group, i in ((tasks, 0), (edited, -1), (tasks, -1))
    )
    before, after = ((images - target).square().flatten(1).mean(1).double() for images in (source, drawn))
    changes = before > 0
    if not changes.any():
        raise ValueError("in no document does the target differ from its source")
    metrics = {
        "nearer": Estimate.proportion(int((after < before)[changes].sum()), int(changes.sum())),
        "error": Estimate.ratio(after[changes].numpy(), before[changes].numpy(), seed=context.seed),
    }
    return SuiteResult(make_record("edit", model, context, metrics), tuple(edited))
