"""The classifier that judges what a run draws: the one that is kept, or one fitted on real training items."""

from collections.abc import Callable
from pathlib import Path

from transfusion.evaluation.classifier import MANIFEST, Classifier, ConvolutionalClassifier
from transfusion.evaluation.suite import Progress
from transfusion.run.record import Run
from transfusion.train.log import progress


def kept_classifier(run: Run, names: tuple[str, ...]) -> Classifier | None:
    """The classifier in `report.classifier`, or in the run's `classifier/`; None where there is none yet.

    Args:
        names: of the classes that captions name.

    Raises:
        ValueError: it is damaged, or has other classes.
    """
    folder = _folder(run)
    if not (folder / MANIFEST).exists():
        return None
    classifier = ConvolutionalClassifier.load(folder)
    if classifier.names != names:
        raise ValueError(
            f"the classifier in {folder} has {', '.join(classifier.names)}; the captions of {run.recipe} name "
            f"{', '.join(names)}: give another --report.classifier, or fit one with these names "
            f"(transfusion train classifier --names ...)"
        )
    return classifier


def fitted_classifier(run: Run, names: tuple[str, ...], fit: Callable[[Run, Progress], Classifier]) -> Classifier:
    """The classifier that is kept, or one that `fit` fits on real training items. A convolutional one is then kept; a small one
    is the same whenever it is fitted on the same items. Raises ValueError: as `kept_classifier`."""
    if kept := kept_classifier(run, names):
        return kept
    with progress("fitting the classifier") as each:
        classifier = fit(run, each)
    if isinstance(classifier, ConvolutionalClassifier):
        classifier.save(_folder(run))
    return classifier


def _folder(run: Run) -> Path:
    return Path(run.report.classifier) if run.report.classifier else run.folder / "classifier"
