"""Image, instruction -> image, where many targets are known: is the target the nearest to the result?

target_S              share of edits to which, of the source, the target and the other targets of the same figure, the target is
                      nearest (`target_chance`: of choosing one of them blindly)
target_KIND_S         the same of each kind of edit
copied_S              share to which the source is nearest
blurred_S, mean_S     what a blurred copy of the source, and the mean of all targets, would score; a copy has 0
error                 the results' mean squared error against the targets over the sources'; a blur alone brings it below 1

S is a space of `nearest.py`: pixels, or mobilenet where its file is given.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from transfusion.api import Transfusion
from transfusion.data.document import Document
from transfusion.data.sources.edits import Edit
from transfusion.evaluation.emoji import family
from transfusion.evaluation.estimate import Estimate
from transfusion.evaluation.nearest import nearest, spaces
from transfusion.evaluation.suite import EvalContext, SuiteResult, generate, make_record
from transfusion.modality import IMAGE

BLUR = 5
"""Pixels of the window over which a copy is blurred."""
NEAREST = ("source", "target", "another")


def score(model: Transfusion, edits: Sequence[Edit], known: Sequence[Edit], context: EvalContext) -> SuiteResult:
    """Edit the sources of `context.samples` edits at most. The targets of `known` edits, those that were trained on, are
    candidates too.

    Raises:
        ValueError: no edits.
    """
    edits = list(edits)[: context.samples]
    if not edits:
        raise ValueError("there are no edits to measure on: give held-out ones with --data")
    drawn = generate(model, [Document(e.document.segments[:2]) for e in edits], "emoji_edit", context, force=IMAGE)
    result = torch.stack([document.media[-1].tensor() for document in drawn])
    source, target = (torch.stack([edit.document.media[i].tensor() for edit in edits]) for i in (0, 1))
    of_family: dict[str, list[Edit]] = {}
    for edit in (*edits, *known):
        of_family.setdefault(family(edit.source), []).append(edit)
    candidates: list[torch.Tensor] = []
    among: list[list[int]] = []
    for row, edit in enumerate(edits):
        own = [source[row], target[row]]
        for other in of_family[family(edit.source)]:
            image = other.document.media[-1].tensor()
            if not any(torch.equal(image, one) for one in own):
                own.append(image)
        among.append(list(range(len(candidates), len(candidates) + len(own))))
        candidates += own
    real = torch.stack(candidates)
    kinds = [edit.kind for edit in edits]
    blurred = F.avg_pool2d(F.pad(source, (BLUR // 2,) * 4, mode="replicate"), BLUR, stride=1)
    metrics: dict[str, Estimate] = {}
    judges: dict[str, str] = {}
    verdicts: list[str] = []
    for space in spaces(context.features):
        judges |= {space.name: space.digest} if space.digest else {}
        features = space(real)

        def chosen(images: torch.Tensor, space=space, features=features) -> list[int]:
            where = nearest(space(images), features, among).tolist()
            return [index - group[0] for index, group in zip(where, among, strict=True)]

        found = chosen(result)
        metrics[f"target_{space.name}"] = Estimate.proportion(found.count(1), len(found))
        for kind in dict.fromkeys(filter(None, kinds)):
            of_kind = [index for index, k in zip(found, kinds, strict=True) if k == kind]
            metrics[f"target_{kind}_{space.name}"] = Estimate.proportion(of_kind.count(1), len(of_kind))
        metrics[f"copied_{space.name}"] = Estimate.proportion(found.count(0), len(found))
        for name, images in (("blurred", blurred), ("mean", target.mean(0, keepdim=True).expand_as(target))):
            metrics[f"{name}_{space.name}"] = Estimate.proportion(chosen(images).count(1), len(found))
        verdicts = [NEAREST[min(index, 2)] for index in found]
    chance = sum(1 / len(group) for group in among) / len(among)
    metrics["target_chance"] = Estimate(chance, None, None, len(among), "of choosing a candidate blindly")
    before, after = ((images - target).square().flatten(1).mean(1).double() for images in (source, result))
    if (before > 0).any():
        metrics["error"] = Estimate.ratio(after.numpy(), before.numpy(), seed=context.seed)
    shown = []
    for i, edit in enumerate(edits[:: max(len(edits) // 33, 1)]):
        at = i * max(len(edits) // 33, 1)
        text = edit.document.text
        shown += [(source[at], text, "source"), (result[at], text, f"drawn: {verdicts[at]}"), (target[at], text, "target")]
    record = make_record("emoji_edit", model, context, metrics, classifiers=judges)
    return SuiteResult(record, tuple(drawn), tuple(verdicts), tuple(shown))
