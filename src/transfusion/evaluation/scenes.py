"""Captions of composed scenes -> pictures: the share that shows what the caption states, for each of GenEval's six kinds."""

from collections.abc import Sequence

import torch

from transfusion.api import Transfusion
from transfusion.data.document import Document
from transfusion.data.sources.scenes import LazyScene
from transfusion.evaluation.estimate import Estimate
from transfusion.evaluation.scene_checker import checker_accuracy, compare, scene_classifier, see
from transfusion.evaluation.suite import EvalContext, SuiteResult, generate, make_record
from transfusion.modality import IMAGE

MIN_CHECKED = 50
"""Real scenes of a kind that the checker itself is measured on, at least."""


def score(model: Transfusion, documents: Sequence[Document], context: EvalContext) -> SuiteResult:
    """Draw the scenes of `data.sources.scenes.held_out_scenes` from their captions, with the model's sampler and guidance.

    Metrics are shares of right pictures: of each kind ("two", "two_held_out", ...), of all kinds ("all", "all_held_out"), and
    the checker's own accuracy ("checker_true", "checker_changed").

    Raises:
        ValueError: no documents, or one without a scene.
    """
    scenes = [d.media[-1].values.scene for d in documents if d.media and isinstance(d.media[-1].values, LazyScene)]
    if not documents or len(scenes) < len(documents):
        raise ValueError("the suite draws composed scenes only: give it documents of held_out_scenes")
    drawn = generate(model, [document.text for document in documents], "scenes", context, force=IMAGE)
    classifier = scene_classifier()
    seen = see(torch.stack([document.media[-1].tensor() for document in drawn]), classifier)
    right = [compare(scene, things).right for scene, things in zip(scenes, seen, strict=True)]
    groups: dict[str, list[bool]] = {}
    for document, verdict in zip(documents, right, strict=True):
        groups.setdefault(document.name, []).append(verdict)
    for document, verdict in zip(documents, right, strict=True):
        groups.setdefault("all_held_out" if document.name.endswith("_held_out") else "all", []).append(verdict)
    metrics = {name: Estimate.proportion(sum(verdicts), len(verdicts)) for name, verdicts in groups.items()}
    count = max(MIN_CHECKED, metrics[documents[0].name].count)
    metrics |= checker_accuracy(classifier, count=count, seed=context.seed)
    record = make_record("scenes", model, context, metrics, classifiers={"classifier": classifier.digest})
    return SuiteResult(record, tuple(drawn), tuple("right" if verdict else "wrong" for verdict in right))
