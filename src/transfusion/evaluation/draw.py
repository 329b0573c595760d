"""Text -> picture: do drawings show what their captions say, are they like real ones, and are they copies?

agreement           share whose class, to the judge, is the one that the caption names; `judge` is its accuracy on real pictures
frechet_classifier        Fréchet distance to real held-out pictures in a convolutional judge's layer before the classes
                    (`frechet_pixels` where the judge has none and pixels are compared); `frechet_classifier_real`: training
                    pictures'
kernel_mini         kernel distance there (or `kernel_pixels`)
precision, recall   by 3 nearest neighbours there
nearest_training    mean distance in pixels to the nearest training picture, over that of real held-out pictures (1: as far)
fid, kid            in Inception's features, where its weights are given (torchmetrics)
clip_score          100 cos(picture, caption), where a CLIP model is given

An interval says what drawing as many pictures anew would change. Fréchet distances are biased upwards where pictures are few:
compare only what was measured on equally many.
"""

from collections.abc import Callable, Sequence
from itertools import islice

import torch
from torch import Tensor

from transfusion.api import Transfusion
from transfusion.data.document import Document
from transfusion.evaluation import distance
from transfusion.evaluation.classifier import Classifier
from transfusion.evaluation.estimate import jackknife
from transfusion.evaluation.features import ClipScore, InceptionFeatures
from transfusion.evaluation.record import Metric, Proportion
from transfusion.evaluation.suite import Count, EvalContext, SuiteResult, TooFew, caption, mean, named, record
from transfusion.modality import IMAGE

COMPARED = 1000
"""Pictures that are looked up among the training pictures, at most."""


def score(model: Transfusion, documents: Sequence[Document], how: EvalContext) -> SuiteResult:
    """Draw a picture from the caption of each document, with the model's own sampler and guidance, and compare with real ones.

    Where there are fewer documents than samples, captions are used again under other seeds.

    Raises:
        ValueError: no documents, pictures that the judge does not know, or drawings with NaN.
    """
    if not documents:
        raise ValueError("there are no captions to draw from: give held-out data with --data")
    real, said = _real(documents, how)
    if how.judge is not None and real is not None:
        how.judge.classify(real[:1])  # one that does not know such pictures says so before any are drawn
    metrics: dict[str, Metric] = {}
    missing: dict[str, str] = {}
    judges: dict[str, str] = {}
    inception = clip = None
    try:  # what is missing is known before anything is drawn
        inception = InceptionFeatures(how.inception, model.device) if how.inception else None
    except ValueError as error:
        missing |= dict.fromkeys(("fid", "kid"), str(error))
    try:
        clip = ClipScore(how.clip, model.device) if how.clip else None
    except ValueError as error:
        missing["clip_score"] = str(error)

    captions = [caption(documents[i % len(documents)], i) for i in range(how.samples)]
    seeds = [how.seed * len(captions) + i for i in range(len(captions))]
    count = Count(len(captions), how.progress)
    drawn = model.generate(captions, force=IMAGE, seeds=seeds, dtype=how.dtype, on_event=count)
    pictures = torch.stack([one.media[-1].tensor() for one in drawn])  # refuses NaN

    def take(function: Callable[..., dict[str, Metric]], *arguments: object, names: tuple[str, ...]) -> None:
        try:
            metrics.update(function(*arguments))
        except ValueError as error:
            missing.update(dict.fromkeys(names, str(error)))

    if how.judge is not None:
        judges["judge"] = how.judge.digest
        classes = [named(one, how.names) for one in captions]
        if any(one is not None for one in classes):
            metrics["agreement"] = _agreement(how.judge, pictures, classes)
            if (kept := getattr(how.judge, "accuracy", None)) is not None:
                metrics["judge"] = Metric.of(kept)
            elif real is not None and any(one is not None for one in said):
                metrics["judge"] = _agreement(how.judge, real, said)
        else:
            missing["agreement"] = "no caption names one of the judge's classes: give --names, or a judge of these classes"
        if real is not None:
            space = how.judge.space
            names = (f"frechet_{space}", f"kernel_{space}", "precision", "recall")
            take(_classifier_metrics, how.judge, pictures, real, how.trained, names=names)
    else:
        reason = "no judge: make one with transfusion train judge, and give its folder with --judge"
        missing |= dict.fromkeys(("agreement", "frechet_classifier", "kernel_mini", "precision", "recall"), reason)
    if real is None:
        reason = "the documents hold no real pictures of one size to compare with"
        missing |= dict.fromkeys(("frechet_classifier", "kernel_mini", "precision", "recall", "nearest_training"), reason)
    elif how.trained is not None:
        take(_copies, pictures, real, how.trained, names=("nearest_training",))
    else:
        missing["nearest_training"] = "it is not known what the model was trained on: give the folder of its run"
    if inception is not None and real is not None:
        judges["inception"] = inception.digest
        take(_inception, inception, pictures, real, how.seed, names=("fid", "kid"))
    else:
        reason = "no Inception weights: give their file with --inception" if real is not None else "there are no real pictures"
        missing = dict.fromkeys(("fid", "kid"), reason) | missing
    if clip is not None:
        judges["clip"] = clip.digest
        metrics["clip_score"] = mean(clip.score(pictures, captions).tolist(), how.seed)
    else:
        missing.setdefault("clip_score", "no CLIP model: give its folder with --clip")
    return SuiteResult(record("draw", model, how, metrics, missing, judges), tuple(drawn), tuple(seeds))


def _real(documents: Sequence[Document], how: EvalContext, most: int = 10_000) -> tuple[Tensor | None, list[int | None]]:
    """Held-out real pictures, and the classes that are known of them."""
    if how.real is not None:
        return how.real, [None] * len(how.real) if how.real_classes is None else how.real_classes.tolist()
    found = list(islice((one for one in documents if one.media), most))
    pictures = [one.media[-1].tensor() for one in found]
    if not pictures or any(one.shape != pictures[0].shape for one in pictures):
        return None, []
    return torch.stack(pictures), [named(caption(one), how.names) for one in found]


def _agreement(judge: Classifier, pictures: Tensor, classes: Sequence[int | None]) -> Metric:
    """Share of pictures whose class is known that the judge finds to be of it."""
    known = [i for i, one in enumerate(classes) if one is not None]
    right = int((judge.classify(pictures[known]) == torch.tensor([classes[i] for i in known])).sum())
    return Metric.of(Proportion(right, len(known)))


def _classifier_metrics(judge: Classifier, pictures: Tensor, real: Tensor, trained: Tensor | None) -> dict[str, Metric]:
    a, b = judge.features(pictures), judge.features(real)
    if len(a) <= a.shape[1] or len(b) <= b.shape[1]:
        raise TooFew(
            f"{len(a)} drawn and {len(b)} real pictures are too few for distances in {a.shape[1]} features: more than that "
            "are needed of each (--samples)"
        )
    kernel = distance.mmd_to(b)
    found = {
        "frechet": jackknife(lambda kept: distance.frechet(a[kept], b), len(a)),
        "kernel": jackknife(lambda kept: kernel(a[kept]), len(a)),
    }
    metrics = {f"{name}_{judge.space}": Metric(one.value, one.count, one.low, one.high) for name, one in found.items()}
    both = distance.precision_recall(b[: len(a)], a[: len(b)])
    metrics |= {"precision": Metric.of(both.precision), "recall": Metric.of(both.recall)}
    if trained is not None:
        c = judge.features(trained)
        if len(c) > c.shape[1]:
            metrics[f"frechet_{judge.space}_real"] = Metric(distance.frechet(c, b), len(c))
    return metrics


def _copies(pictures: Tensor, real: Tensor, trained: Tensor) -> dict[str, Metric]:
    """Mean distance to the nearest training picture of drawn ones over that of real held-out ones."""
    count = min(len(pictures), len(real), COMPARED)
    drawn, kept = (distance.nearest(x[:count].flatten(1), trained.flatten(1)).distances for x in (pictures, real))
    if not kept.any():
        raise ValueError("all held-out pictures are training pictures: hold out others")
    value = float(drawn.mean() / kept.mean())
    if count < 2:
        return {"nearest_training": Metric(value, count)}
    parts = [float(one.var() / count / one.mean().square().clamp_min(1e-30)) for one in (drawn, kept)]
    half = 1.96 * value * sum(parts) ** 0.5  # of a ratio of two means, by the delta method
    return {"nearest_training": Metric(value, count, value - half, value + half)}


def _inception(inception: InceptionFeatures, pictures: Tensor, real: Tensor, seed: int) -> dict[str, Metric]:
    a, b = inception(pictures), inception(real)
    if min(len(a), len(b)) <= a.shape[1]:
        raise TooFew(
            f"{len(a)} drawn and {len(b)} real pictures are too few for FID in {a.shape[1]} features: more than that are "
            "needed of each; published numbers take 10,000 and more (--samples)"
        )
    kid = distance.kernel(a, b, size=min(1000, len(a), len(b)), seed=seed)
    fid = jackknife(lambda kept: distance.frechet(a[kept], b), len(a))
    half = 1.96 * kid.std
    return {
        "fid": Metric(fid.value, fid.count, fid.low, fid.high),
        "kid": Metric(kid.mean, len(a), kid.mean - half, kid.mean + half),
    }
