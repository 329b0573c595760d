"""What a recipe provides: its settings, its documents, prompts for the sample grids, and the task measured at the end."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from transfusion.data.corpus import captioned
from transfusion.data.document import Document, Media, Text
from transfusion.evaluation.classifier import Classifier
from transfusion.evaluation.suite import Progress
from transfusion.run.record import Run
from transfusion.train.log import LogFn

Labelled = tuple[Tensor, Tensor]
"""Images, Float32[image, channels, height, width], and their classes, Int64[image]."""


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
class Recipe:
    """A kind of run.

    Args:
        run: its settings.
        documents: the documents of a run to train on; reports unreadable ones to the log.
        prompts: of those documents, prompts for the sample grids drawn during training.
        task: measured at the end.
    """

    run: Callable[[], Run]
    documents: Callable[[Run, LogFn], Sequence[Document]]
    prompts: Callable[[Sequence[Document]], list[str]]
    task: ClassTask | SceneTask | None = None
