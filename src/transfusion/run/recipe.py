"""What a recipe provides: its settings, its documents, prompts for the sample grids, and the task measured at the end."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from transfusion.api import Transfusion
from transfusion.config import ConfigError
from transfusion.data.corpus import Corpus, captioned, hold_out
from transfusion.data.document import Document, Media, Text
from transfusion.data.sources.scenes import KINDS, held_out_scenes
from transfusion.evaluation.classifier import Classifier
from transfusion.evaluation.suite import EvalContext, Progress, SuiteResult
from transfusion.run.record import Run
from transfusion.train.log import LogFn

Labelled = tuple[Tensor, Tensor]
"""Images, Float32[image, channels, height, width], and their classes, Int64[image]."""
Prompt = str | Document
"""What a document begins with: a text, or segments where there are items among them."""
LEAST_HELD_OUT, MOST_HELD_OUT = 100, 1000
"""Documents from which on a share is held out, and the most that are."""
FEWEST = 10
"""That are held out of so many, at least: fewer measure nothing."""
NUM_SCENES = 40
"""Held-out scenes of each kind that are measured on during training."""


@dataclass(frozen=True)
class ClassTask:
    """Images of classes that captions name: draw every class, caption held-out images, both judged by a classifier.

    Args:
        names: of the classes, in the order of their numbers.
        paraphrases: captions, with {} for the name.
        images: images and classes of a run's data; the flag asks for the held-out ones.
        fit_classifier: fits a classifier on real training images only.
        held_out_paraphrases: captions never trained on.
    """

    names: tuple[str, ...]
    paraphrases: tuple[str, ...]
    images: Callable[[Run, bool], Labelled]
    fit_classifier: Callable[[Run, Progress], Classifier]
    held_out_paraphrases: tuple[str, ...] = ()

    def captions(self, label: int) -> tuple[str, ...]:
        """All captions of a class."""
        return tuple(paraphrase.format(self.names[label]) for paraphrase in self.paraphrases)

    def prompts(self, paraphrases: Sequence[str], count: int) -> list[Document]:
        """Captions to draw from: every class in turn, and every paraphrase."""
        classes = len(self.names)
        pairs = ((paraphrases[i // classes % len(paraphrases)], self.names[i % classes]) for i in range(count))
        return [Document((Text(paraphrase.format(name)),)) for paraphrase, name in pairs]

    def held_out_documents(self, run: Run) -> list[Document]:
        """Held-out images with their captions."""
        images, labels = self.images(run, True)
        return [captioned(self.captions(label), Media(image), "") for image, label in zip(images, labels.tolist(), strict=True)]


@dataclass(frozen=True)
class SceneTask:
    """Composed scenes: draw every kind of scene; a checker judges objects, counts, colours and positions."""


@dataclass(frozen=True)
class AlternatingTask:
    """Labels and images in turn: documents are written from nothing, and their images judged by the label before them.

    Args:
        classes: images of the classes, and the classifier.
    """

    classes: ClassTask


@dataclass(frozen=True)
class SuiteTask:
    """A measure that only this recipe has, of its own held-out documents: `transfusion evaluate RUN --suite task`.

    Args:
        score: of a run's model; `context.samples` documents at most.
        check: refuses, before the training, documents that it could not measure, by a ValueError.
    """

    score: Callable[[Run, Transfusion, EvalContext], SuiteResult]
    check: Callable[[Run, Sequence[Document]], None] = lambda run, documents: None


@dataclass(frozen=True)
class Recipe:
    """A kind of run.

    Args:
        run: its settings.
        documents: the documents of a run to train on; reports unreadable ones to the log.
        prompts: of those documents, prompts for the sample grids drawn during training.
        task: measured at the end.
        held_out: documents of a run's data that are not trained on, where it has some and no task gives them.
        chooses: what is not set is chosen from the data and from a time (`--budget`, `run/choice.py`).
        reads_data: whether it reads `--data`; one that does not, refuses it.
    """

    run: Callable[[], Run]
    documents: Callable[[Run, LogFn], Sequence[Document]]
    prompts: Callable[[Sequence[Document]], Sequence[Prompt]]
    task: ClassTask | SceneTask | AlternatingTask | SuiteTask | None = None
    held_out: Callable[[Run], Sequence[Document]] | None = None
    chooses: bool = False
    reads_data: bool = True

    def check_data(self, run: Run) -> None:
        """Raise ConfigError where a run names data that its recipe would not read."""
        if run.data and not self.reads_data:
            raise ConfigError(
                f"{run.recipe} brings its own data, and would not read {run.data}: leave out --data, or train on yours with "
                "transfusion train pictures --data PATH"
            )

    def split(self, run: Run, log: LogFn) -> tuple[Sequence[Document], Sequence[Document]]:
        """The documents to train on, and those that are held out: the data's own split, or `run.held_out` of them."""
        documents = self.documents(run, log)
        try:
            held_out = self.held_out_documents(run)
        except ValueError as error:
            held_out = ()
            log(f"note: the held-out split cannot be read, so captions are measured on training pictures: {error}")
        if not held_out and run.held_out and isinstance(documents, Corpus) and len(documents) >= LEAST_HELD_OUT:
            documents, held_out = hold_out(documents, run.held_out, MOST_HELD_OUT, least=FEWEST)
            log(f"{run.data or 'the data'} has no held-out split: {len(held_out):,} documents are held out, by their names")
        elif not held_out and run.held_out and isinstance(documents, Corpus):
            log(
                f"note: nothing is held out of {len(documents):,} documents (some are from {LEAST_HELD_OUT} on), so what is "
                "measured is measured on documents that are trained on"
            )
        return documents, held_out

    def held_out_documents(self, run: Run) -> Sequence[Document]:
        """The data's own documents that are never trained on, for measurements during training; of scenes, those without
        held-out combinations. Empty where the data has none. Raises ValueError: they can't be read."""
        if isinstance(self.task, ClassTask):
            return self.task.held_out_documents(run)
        if isinstance(self.task, SceneTask):
            return [document for document in held_out_scenes(NUM_SCENES, run.seed) if document.name in KINDS]
        return () if self.held_out is None else self.held_out(run)
