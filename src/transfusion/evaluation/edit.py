"""Picture, instruction -> picture: is the edit nearer to what was wanted than the untouched source is?"""

from collections.abc import Sequence

import torch

from transfusion.api import Transfusion
from transfusion.data.document import Document, Media, Text
from transfusion.evaluation.record import Metric, Proportion
from transfusion.evaluation.suite import Count, EvalContext, SuiteResult, mean, record
from transfusion.modality import IMAGE


def score(model: Transfusion, documents: Sequence[Document], how: EvalContext) -> SuiteResult:
    """Draw the last picture of documents [picture, text, picture] from what stands before it.

    `nearer` is the share of edits whose mean squared error against the target is below the source's; `error` the edits' mean
    over the sources' mean. A model that copies its source has 0 and 1.

    Raises:
        ValueError: no document has this form, with pictures of one size, or no edit changes anything.
    """
    asked = []
    for one in documents:
        match one.segments:
            case (Media() as source, Text(), Media() as target) if source.tensor().shape == target.tensor().shape:
                asked.append(one)
        if len(asked) == how.samples:
            break
    if not asked:
        raise ValueError("no document is a picture, an instruction and a picture of the same size: give edits with --data")
    seeds = [how.seed * len(asked) + i for i in range(len(asked))]
    count = Count(len(asked), how.progress)
    prompts = [Document(one.segments[:2]) for one in asked]
    edited = model.generate(prompts, force=IMAGE, seeds=seeds, dtype=how.dtype, on_event=count)
    source, drawn, target = (
        torch.stack([d.media[i].tensor() for d in some]) for some, i in ((asked, 0), (edited, -1), (asked, -1))
    )
    before, after = ((one - target).square().flatten(1).mean(1).double() for one in (source, drawn))
    changes = before > 0
    if not changes.any():
        raise ValueError("in no document does the target differ from its source")
    metrics = {
        "nearer": Metric.of(Proportion(int((after < before)[changes].sum()), int(changes.sum()))),
        "error": mean(after[changes].tolist(), how.seed, over=before[changes].tolist()),
    }
    return SuiteResult(record("edit", model, how, metrics), tuple(edited), tuple(seeds))
