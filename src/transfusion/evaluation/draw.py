"""Text -> image: do drawings show what their captions say, do they look like real ones, and are they copies?

agreement              share of drawings that the classifier gives the class named in the caption
classifier_accuracy    its accuracy on held-out real images
caption_preference     share of held-out pictures that are denoised better behind their own caption than behind another's
                       (`preference.py`; also `caption_gap`): whether captions are used at all
frechet_classifier     Fréchet distance to held-out real images in the features of a convolutional classifier
                       (`frechet_pixels` under one on pixels); `frechet_classifier_real`: the same of training images
kernel_classifier      kernel distance in the same features (or `kernel_pixels`)
precision, recall      by 3 nearest neighbours in the same features
brightness             mean light of drawings over that of real images (`appearance.py`; 1: as real)
patch_frequency        a grid of blocks, as a pattern that each patch repeats, over the same in real images
patch_borders          a grid of blocks, as seams between patches, over the same in real images
nearest_training       mean pixel distance to the nearest training image, over that of held-out real images (1: as far)
fid, kid               in Inception's features, where its weights are given
clip_score             100 cos(image, caption), where a CLIP model is given

Intervals cover drawing as many images again under other seeds. Fréchet distances of few images are biased upwards: compare
them only at equal counts.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from transfusion.api import Transfusion
from transfusion.data.document import Document
from transfusion.evaluation import distance
from transfusion.evaluation.appearance import appearance
from transfusion.evaluation.classifier import Classifier, accuracy
from transfusion.evaluation.estimate import Estimate
from transfusion.evaluation.features import ClipScore, InceptionFeatures
from transfusion.evaluation.preference import PICTURES, caption_preference
from transfusion.evaluation.suite import (
    MAX_REAL,
    EvalContext,
    SuiteResult,
    caption,
    class_named,
    generate,
    make_record,
    stack_images,
)
from transfusion.modality import IMAGE

MAX_COMPARED = 1000
"""Images that are looked up among the training images, and pictures that caption preference is measured on, at most."""
SEEN = ("brightness", "patch_frequency", "patch_borders")
NO_CLASSIFIER = "no classifier: make one with transfusion train classifier, and give its folder with --classifier"
NO_REAL = "the documents hold no real images of one size to compare with"
NO_TRAINED = "the training images are not known: evaluate a model in the folder of its run"
NO_INCEPTION = "no Inception weights: give their file with --inception"
NO_CLIP = "no CLIP model: give its folder with --clip"


class Metrics:
    """Metrics that could be measured, the reasons why others could not, and digests of the networks that measured them."""

    def __init__(self) -> None:
        self.metrics: dict[str, Estimate] = {}
        self.missing: dict[str, str] = {}
        self.classifiers: dict[str, str] = {}

    def miss(self, reason: str, *names: str) -> None:
        """Note why metrics are missing; the first reason stays."""
        self.missing = dict.fromkeys(names, reason) | self.missing

    def measure(self, function: Callable[[], dict[str, Estimate]], *names: str) -> None:
        """Add the metrics of a function; its ValueError is the reason why those of these names are missing."""
        try:
            self.metrics |= function()
        except ValueError as error:
            self.miss(str(error), *names)


def score(model: Transfusion, documents: Sequence[Document], context: EvalContext) -> SuiteResult:
    """Draw an image from the caption of each document, with the model's own sampler and guidance, and compare with real ones.
    With fewer documents than samples, captions are used again under other seeds.

    Raises:
        ValueError: no documents, images that the classifier does not take, or drawings with NaN.
    """
    if not documents:
        raise ValueError("there are no captions to draw from: give held-out data with --data")
    real, real_classes = _real(documents, context)
    classifier, trained = context.classifier, context.trained
    if classifier is not None and real is not None:
        classifier.classify(real[:1])  # images of another size are refused before any are drawn
    captions = [caption(documents[i % len(documents)], i) for i in range(context.samples)]
    drawn = generate(model, captions, "draw", context, force=IMAGE)
    images = torch.stack([document.media[-1].tensor() for document in drawn])  # refuses NaN

    results = Metrics()
    results.measure(lambda: _caption_preference(model, context.captioned or documents, context), "caption_preference")
    space = "classifier" if classifier is None else classifier.space
    names = (f"frechet_{space}", f"kernel_{space}", "precision", "recall")
    if classifier is None:
        results.miss(NO_CLASSIFIER, "agreement", *names)
    else:
        results.classifiers["classifier"] = classifier.digest
        classes = [class_named(text, context.class_names) for text in captions]
        results.measure(lambda: agreement(classifier, images, classes, real, real_classes), "agreement")
        if real is not None:
            results.measure(lambda: feature_metrics(classifier, images, real, trained), *names)
    if real is None:
        results.miss(NO_REAL, *names, *SEEN, "nearest_training", "fid", "kid")
    elif trained is None:
        results.miss(NO_TRAINED, "nearest_training")
    else:
        results.measure(lambda: nearest_training(images, real, trained), "nearest_training")
    if real is not None:
        patch = next(modality.patch for modality in model.item_modalities if modality.name == IMAGE)
        results.measure(lambda: appearance(images, real, patch), *SEEN)
    if not context.inception:
        results.miss(NO_INCEPTION, "fid", "kid")
    elif real is not None:
        results.measure(lambda: _inception_metrics(model, context, images, real, results.classifiers), "fid", "kid")
    if context.clip:
        results.measure(lambda: _clip_score(model, context, images, captions, results.classifiers), "clip_score")
    else:
        results.miss(NO_CLIP, "clip_score")
    record = make_record("draw", model, context, results.metrics, results.missing, results.classifiers)
    return SuiteResult(record, tuple(drawn))


def _real(documents: Sequence[Document], context: EvalContext) -> tuple[Tensor | None, list[int | None]]:
    """Held-out real images, and their classes where those are known."""
    if context.real is not None:
        classes = context.real_classes
        return context.real, [None] * len(context.real) if classes is None else classes.tolist()
    captions = [caption(document) for document in documents if document.media][:MAX_REAL]
    return stack_images(documents), [class_named(text, context.class_names) for text in captions]


def _caption_preference(model: Transfusion, documents: Sequence[Document], context: EvalContext) -> dict[str, Estimate]:
    samples = min(max(context.samples, PICTURES), MAX_COMPARED)  # they are not drawn, and cost little
    return caption_preference(model, documents, samples=samples, seed=context.seed, dtype=context.dtype)


def agreement(
    classifier: Classifier,
    images: Tensor,
    classes: Sequence[int | None],
    real: Tensor | None,
    real_classes: Sequence[int | None],
) -> dict[str, Estimate]:
    """Share of images that get the class of their caption, and the classifier's accuracy on real ones."""

    def share(images: Tensor, classes: Sequence[int | None]) -> Estimate | None:
        known = [i for i, label in enumerate(classes) if label is not None]
        return accuracy(classifier, images[known], torch.tensor([classes[i] for i in known])) if known else None

    agreement = share(images, classes)
    if agreement is None:
        raise ValueError("no caption names a class of the classifier: give --names, or a classifier of these classes")
    measured = getattr(classifier, "accuracy", None) or (None if real is None else share(real, real_classes))
    return {"agreement": agreement} | ({} if measured is None else {"classifier_accuracy": measured})


def feature_metrics(classifier: Classifier, images: Tensor, real: Tensor, trained: Tensor | None) -> dict[str, Estimate]:
    """Distances of images to real ones in the features of a classifier. Raises ValueError: too few of either."""
    a, b = classifier.features(images), classifier.features(real)
    if len(a) <= a.shape[1] or len(b) <= b.shape[1]:
        sizes = f"{len(a)} drawn and {len(b)} real images are too few for distances in {a.shape[1]} features"
        raise ValueError(f"{sizes}: more than that are needed of each (--samples)")
    space, kernel = classifier.space, distance.mmd_to(b)
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


def nearest_training(images: Tensor, real: Tensor, trained: Tensor) -> dict[str, Estimate]:
    """Mean distance of drawn images to the nearest training image, over that of held-out real ones."""
    count = min(len(images), len(real), MAX_COMPARED)
    drawn, kept = (distance.nearest(x[:count].flatten(1), trained.flatten(1)).distances for x in (images, real))
    if not kept.any():
        raise ValueError("all held-out images are training images: hold out others")
    value = float(drawn.mean() / kept.mean())
    if count < 2:
        return {"nearest_training": Estimate(value, None, None, count, "one image has no interval")}
    # standard error of a ratio of two means, by the delta method
    variances = [float(x.var() / count / x.mean().square().clamp_min(1e-30)) for x in (drawn, kept)]
    return {"nearest_training": Estimate.normal(value, value * sum(variances) ** 0.5, count)}


def _inception_metrics(
    model: Transfusion, context: EvalContext, images: Tensor, real: Tensor, digests: dict[str, str]
) -> dict[str, Estimate]:
    inception = InceptionFeatures(context.inception, model.device)
    digests["inception"] = inception.digest
    a, b = inception(images), inception(real)
    if min(len(a), len(b)) <= a.shape[1]:
        sizes = f"{len(a)} drawn and {len(b)} real images are too few for FID in {a.shape[1]} features"
        raise ValueError(f"{sizes}: more than that are needed of each; published numbers take 10,000 and more (--samples)")
    kid = distance.kernel(a, b, size=min(1000, len(a), len(b)), seed=context.seed)
    return {
        "fid": Estimate.jackknife(lambda kept: distance.frechet(a[kept], b), len(a)),
        "kid": Estimate.normal(kid.mean, kid.std, len(a)),
    }


def _clip_score(
    model: Transfusion, context: EvalContext, images: Tensor, captions: Sequence[str], digests: dict[str, str]
) -> dict[str, Estimate]:
    clip = ClipScore(context.clip, model.device)
    digests["clip"] = clip.digest
    return {"clip_score": Estimate.mean(clip.score(images, captions).numpy(), seed=context.seed)}
