"""Text -> picture: do drawings show what their captions say, do they look like real ones, and are they copies?

agreement              share of drawings that the classifier gives the class named in the caption
classifier_accuracy    its accuracy on held-out real pictures
frechet_classifier     Fréchet distance to held-out real pictures in the features of a convolutional classifier
                       (`frechet_pixels` under one on pixels); `frechet_classifier_real`: the same of training pictures
kernel_classifier      kernel distance in the same features (or `kernel_pixels`)
precision, recall      by 3 nearest neighbours in the same features
nearest_training       mean pixel distance to the nearest training picture, over that of held-out real pictures (1: as far)
fid, kid               in Inception's features, where its weights are given
clip_score             100 cos(picture, caption), where a CLIP model is given

Intervals cover drawing as many pictures again under other seeds. Fréchet distances of few pictures are biased upwards: compare
them only at equal counts.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from transfusion.api import Transfusion
from transfusion.data.document import Document
from transfusion.evaluation import distance
from transfusion.evaluation.classifier import Classifier, accuracy
from transfusion.evaluation.estimate import Estimate
from transfusion.evaluation.features import ClipScore, InceptionFeatures
from transfusion.evaluation.suite import (
    MAX_REAL,
    EvalContext,
    SuiteResult,
    TooFewSamples,
    caption,
    class_named,
    generate,
    make_record,
    stack_pictures,
)
from transfusion.modality import IMAGE

MAX_COMPARED = 1000
"""Pictures that are looked up among the training pictures, at most."""
NO_CLASSIFIER = "no classifier: make one with transfusion train classifier, and give its folder with --classifier"
NO_REAL = "the documents hold no real pictures of one size to compare with"
NO_INCEPTION = "no Inception weights: give their file with --inception"
NO_CLIP = "no CLIP model: give its folder with --clip"


Result = TypeVar("Result")


class _Metrics:
    """Metrics that could be measured, and the reasons why others could not."""

    def __init__(self) -> None:
        self.metrics: dict[str, Estimate] = {}
        self.missing: dict[str, str] = {}

    def miss(self, reason: str, *names: str) -> None:
        """Note why metrics are missing; the first reason stays."""
        self.missing = dict.fromkeys(names, reason) | self.missing

    def attempt(self, function: Callable[[], Result], *names: str) -> Result | None:
        """The result of a function; its ValueError is the reason why metrics are missing."""
        try:
            return function()
        except ValueError as error:
            self.miss(str(error), *names)
            return None


def score(model: Transfusion, documents: Sequence[Document], context: EvalContext) -> SuiteResult:
    """Draw a picture from the caption of each document, with the model's own sampler and guidance, and compare with real ones.

    With fewer documents than samples, captions are used again under other seeds.

    Raises:
        ValueError: no documents, pictures that the classifier does not take, or drawings with NaN.
    """
    if not documents:
        raise ValueError("there are no captions to draw from: give held-out data with --data")
    real, real_classes = _real(documents, context)
    classifier = context.classifier
    if classifier is not None and real is not None:
        classifier.classify(real[:1])  # pictures of another size are refused before any are drawn
    results, classifiers = _Metrics(), {}
    inception = clip = None
    if context.inception:
        inception = results.attempt(lambda: InceptionFeatures(context.inception, model.device), "fid", "kid")
    if context.clip:
        clip = results.attempt(lambda: ClipScore(context.clip, model.device), "clip_score")

    captions = [caption(documents[i % len(documents)], i) for i in range(context.samples)]
    drawn = generate(model, captions, "draw", context, force=IMAGE)
    pictures = torch.stack([document.media[-1].tensor() for document in drawn])  # refuses NaN

    if classifier is not None:
        classifiers["classifier"] = classifier.digest
        named = [class_named(text, context.class_names) for text in captions]
        agreement = results.attempt(lambda: _agreement(classifier, pictures, named, real, real_classes), "agreement")
        results.metrics |= agreement or {}
    space = classifier.space if classifier is not None else "classifier"
    names = (f"frechet_{space}", f"kernel_{space}", "precision", "recall")
    if classifier is None:
        results.miss(NO_CLASSIFIER, "agreement", *names)
    elif real is not None:
        results.metrics |= results.attempt(lambda: _feature_metrics(classifier, pictures, real, context.trained), *names) or {}
    if real is None:
        results.miss(NO_REAL, *names, "nearest_training", "fid", "kid")
    elif (trained := context.trained) is None:
        results.miss("the training pictures are not known: evaluate a model in the folder of its run", "nearest_training")
    else:
        results.metrics |= results.attempt(lambda: _nearest_training(pictures, real, trained), "nearest_training") or {}
    if inception is not None and real is not None:
        classifiers["inception"] = inception.digest
        scores = results.attempt(lambda: _inception_metrics(inception, pictures, real, context.seed), "fid", "kid")
        results.metrics |= scores or {}
    results.miss(NO_INCEPTION, *(name for name in ("fid", "kid") if inception is None))
    if clip is not None:
        classifiers["clip"] = clip.digest
        results.metrics["clip_score"] = Estimate.mean(clip.score(pictures, captions).numpy(), seed=context.seed)
    else:
        results.miss(NO_CLIP, "clip_score")
    return SuiteResult(make_record("draw", model, context, results.metrics, results.missing, classifiers), tuple(drawn))


def _real(documents: Sequence[Document], context: EvalContext) -> tuple[Tensor | None, list[int | None]]:
    """Held-out real pictures, and their classes where those are known."""
    if context.real is not None:
        classes = context.real_classes
        return context.real, [None] * len(context.real) if classes is None else classes.tolist()
    captions = [caption(document) for document in documents if document.media][:MAX_REAL]
    return stack_pictures(documents), [class_named(text, context.class_names) for text in captions]


def _agreement(
    classifier: Classifier,
    pictures: Tensor,
    classes: Sequence[int | None],
    real: Tensor | None,
    real_classes: Sequence[int | None],
) -> dict[str, Estimate]:
    """Share of pictures that get the class of their caption, and the classifier's accuracy on real ones."""

    def share(pictures: Tensor, classes: Sequence[int | None]) -> Estimate | None:
        known = [i for i, label in enumerate(classes) if label is not None]
        return accuracy(classifier, pictures[known], torch.tensor([classes[i] for i in known])) if known else None

    agreement = share(pictures, classes)
    if agreement is None:
        raise ValueError("no caption names a class of the classifier: give --names, or a classifier of these classes")
    measured = getattr(classifier, "accuracy", None) or (None if real is None else share(real, real_classes))
    return {"agreement": agreement} | ({} if measured is None else {"classifier_accuracy": measured})


def _feature_metrics(classifier: Classifier, pictures: Tensor, real: Tensor, trained: Tensor | None) -> dict[str, Estimate]:
    a, b = classifier.features(pictures), classifier.features(real)
    if len(a) <= a.shape[1] or len(b) <= b.shape[1]:
        raise TooFewSamples(
            f"{len(a)} drawn and {len(b)} real pictures are too few for distances in {a.shape[1]} features: more than that "
            "are needed of each (--samples)"
        )
    kernel, space = distance.mmd_to(b), classifier.space
    neighbours = distance.precision_recall(b[: len(a)], a[: len(b)])
    metrics = {
        f"frechet_{space}": Estimate.jackknife(lambda kept: distance.frechet(a[kept], b), len(a)),
        f"kernel_{space}": Estimate.jackknife(lambda kept: kernel(a[kept]), len(a)),
        "precision": neighbours.precision,
        "recall": neighbours.recall,
    }
    if trained is not None:
        c = classifier.features(trained)
        if len(c) > c.shape[1]:
            metrics[f"frechet_{space}_real"] = Estimate(distance.frechet(c, b), None, None, len(c))
    return metrics


def _nearest_training(pictures: Tensor, real: Tensor, trained: Tensor) -> dict[str, Estimate]:
    """Mean distance of drawn pictures to the nearest training picture, over that of held-out real ones."""
    count = min(len(pictures), len(real), MAX_COMPARED)
    drawn, kept = (distance.nearest(x[:count].flatten(1), trained.flatten(1)).distances for x in (pictures, real))
    if not kept.any():
        raise ValueError("all held-out pictures are training pictures: hold out others")
    value = float(drawn.mean() / kept.mean())
    if count < 2:
        return {"nearest_training": Estimate(value, None, None, count, "one picture has no interval")}
    # standard error of a ratio of two means, by the delta method
    variances = [float(x.var() / count / x.mean().square().clamp_min(1e-30)) for x in (drawn, kept)]
    return {"nearest_training": Estimate.normal(value, value * sum(variances) ** 0.5, count)}


def _inception_metrics(inception: InceptionFeatures, pictures: Tensor, real: Tensor, seed: int) -> dict[str, Estimate]:
    a, b = inception(pictures), inception(real)
    if min(len(a), len(b)) <= a.shape[1]:
        raise TooFewSamples(
            f"{len(a)} drawn and {len(b)} real pictures are too few for FID in {a.shape[1]} features: more than that are "
            "needed of each; published numbers take 10,000 and more (--samples)"
        )
    kid = distance.kernel(a, b, size=min(1000, len(a), len(b)), seed=seed)
    return {
        "fid": Estimate.jackknife(lambda kept: distance.frechet(a[kept], b), len(a)),
        "kid": Estimate.normal(kid.mean, kid.std, len(a)),
    }
