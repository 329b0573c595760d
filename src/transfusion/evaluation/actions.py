"""An instruction and a picture -> a path: does it end on the mark that is named?

right, right_held_out        share of paths that end on the named mark: of new placements, and where the named mark lies at a
                             place at which its colour was never trained on (chance: 0.25 for a model that always reaches one)
marked, marked_held_out      share that end on any mark
starts                       share of all paths that begin on the white mark
bends                        how far paths bend aside, their standard deviation over that of real ones: a model of their mean
                             has 0

Of paths of another's data, whose marks are not known: mean squared distance of drawn paths to the real ones (path_error), and
of their last points (end_error), over those of the mean of all real paths.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from transfusion.api import Transfusion
from transfusion.data.document import Document, Text
from transfusion.data.sources.actions import PATH, POINTS, RADIUS, SIDE, LazyPath, Task
from transfusion.evaluation.estimate import Estimate
from transfusion.evaluation.suite import EvalContext, SuiteResult, caption, generate, make_record


def score(model: Transfusion, documents: Sequence[Document], context: EvalContext) -> SuiteResult:
    """Draw the paths of documents of `data.sources.actions`; those whose name says so are held-out placements.

    Raises:
        ValueError: documents of another kind, or none.
    """
    tasks = [d.media[-1].values.task for d in documents if d.media and isinstance(d.media[-1].values, LazyPath)]
    if not documents or len(tasks) < len(documents):
        raise ValueError("the suite measures documents of data.sources.actions: an instruction, a picture and a path")
    prompts = [Document((Text(caption(document, i)), document.media[0])) for i, document in enumerate(documents)]
    drawn = generate(model, prompts, "actions", context, force=PATH)
    paths = [document.media[-1].tensor() for document in drawn]
    real = [document.media[-1].tensor() for document in documents]
    reached = [task.reached(path) for task, path in zip(tasks, paths, strict=True)]
    metrics: dict[str, Estimate] = {}
    for held_out, suffix in ((False, ""), (True, "_held_out")):
        kind = [(t, r) for t, r, d in zip(tasks, reached, documents, strict=True) if ("held out" in d.name) == held_out]
        if kind:
            metrics["right" + suffix] = Estimate.proportion(sum(r == t.named for t, r in kind), len(kind))
            metrics["marked" + suffix] = Estimate.proportion(sum(r is not None for _, r in kind), len(kind))
    starts = sum(_near(path[:, 0], task.start) for path, task in zip(paths, tasks, strict=True))
    metrics["starts"] = Estimate.proportion(starts, len(paths))
    metrics["bends"] = Estimate(float(_bend(paths).std() / _bend(real).std()), None, None, len(paths))
    verdicts = ["right" if r == t.named else "wrong" for t, r in zip(tasks, reached, strict=True)]
    shown = tuple((picture(t, p), d.text, v) for t, p, d, v in zip(tasks, paths, drawn, verdicts, strict=True))
    return SuiteResult(make_record("actions", model, context, metrics), tuple(drawn), tuple(verdicts), shown)


def errors(model: Transfusion, documents: Sequence[Document], context: EvalContext) -> SuiteResult:
    """Draw the last path of documents of any data from all that stands before it.

    Raises:
        ValueError: fewer than two documents end in a path, or all their paths are one.
    """
    tasks = [d for d in documents if d.media and d.segments[-1] is d.media[-1] and d.media[-1].modality == PATH]
    tasks = tasks[: context.samples]
    if len(tasks) < 2:
        raise ValueError(f"{len(tasks)} documents end in an item {PATH!r}: two or more are needed to measure on")
    drawn = generate(model, [Document(d.segments[:-1]) for d in tasks], "actions", context, force=PATH)
    paths, real = (torch.stack([d.media[-1].tensor() for d in group]).double() for group in (drawn, tasks))
    metrics = {}
    for name, points in (("path_error", slice(None)), ("end_error", slice(-1, None))):
        found, mean = ((x - real)[..., points].square().sum(1).mean(1).numpy() for x in (paths, real.mean(0, keepdim=True)))
        metrics[name] = Estimate.ratio(found, mean, seed=context.seed)
    return SuiteResult(make_record("actions", model, context, metrics), tuple(drawn))


def _near(point: Tensor, mark: tuple[int, int]) -> bool:
    place = (point + 1) * SIDE / 2
    return bool((place - torch.tensor(mark)).abs().max() <= RADIUS)


def _bend(paths: Sequence[Tensor]) -> Tensor:
    """How far the middle of each path is from the line between its ends, over their distance, to the left or to the right."""
    stacked = torch.stack(list(paths))
    start, end, middle = stacked[..., 0], stacked[..., -1], stacked[..., POINTS // 2]
    ahead = end - start
    aside = torch.stack([-ahead[:, 1], ahead[:, 0]], 1)
    return ((middle - start) * aside).sum(1) / ahead.square().sum(1).clamp_min(1e-4)


def picture(task: Task, path: Tensor, scale: int = 3) -> Tensor:
    """The picture of a task with a path drawn in, Float32[3, 24 scale, 24 scale] in [-1, 1]."""
    image = task.picture().repeat_interleave(scale, 1).repeat_interleave(scale, 2)
    steps = torch.linspace(0, POINTS - 1, 12 * POINTS)
    low = steps.long().clamp(max=POINTS - 2)
    fine = path[:, low] + (path[:, low + 1] - path[:, low]) * (steps - low)
    x, y = ((fine + 1) * SIDE * scale / 2).round().long().clamp(0, SIDE * scale - 1)
    image[:, y, x] = 1.0
    return image
