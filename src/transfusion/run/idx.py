"""Recipes of idx files: images of ten classes, read from the four files of the MNIST family."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from transfusion.config import ConfigError
from transfusion.data.document import Document
from transfusion.data.sources.latents import refuse_latents
from transfusion.data.sources.read import idx_arrays, read_idx
from transfusion.evaluation.classifier import Classifier, ClassifierTraining, ConvolutionalClassifier
from transfusion.evaluation.suite import Progress
from transfusion.run.recipe import ClassTask, Labelled, Recipe
from transfusion.run.record import Run
from transfusion.train.device import pick_dtype
from transfusion.train.log import LogFn


@dataclass(frozen=True)
class IdxImages:
    """Images of a set in idx files, with captions that name their class.

    Args:
        recipe: its name.
        title: of the set.
        names: of the classes, in the order of their labels.
        paraphrases: captions, with {} for the name.
        training: of the classifier.
    """

    recipe: str
    title: str
    names: tuple[str, ...]
    paraphrases: tuple[str, ...]
    training: ClassifierTraining

    @property
    def task(self) -> ClassTask:
        """Draw and read every class."""
        return ClassTask(self.names, self.paraphrases, self.labelled, self.fit_classifier)

    def documents(self, run: Run, log: LogFn) -> Sequence[Document]:
        """Captioned images. Raises ConfigError without `--data`, or for labels that the set does not have."""
        path = self._path(run)

        def captions(label: str) -> tuple[str, ...]:
            if int(label) >= len(self.names):
                known = f"{self.recipe} knows 0 to {len(self.names) - 1}"
                raise ConfigError(f"{path} has label {label}; {known}: is it {self.title}?")
            return self.task.captions(int(label))

        return read_idx(path, captions).checked(str(path))

    def labelled(self, run: Run, held_out: bool) -> Labelled:
        """The training or test images, Float32[image, 1, height, width] in [-1, 1], and their classes."""
        pixels, labels = idx_arrays(self._path(run), train=not held_out)
        return torch.from_numpy(pixels.copy()).float()[:, None] / 127.5 - 1, torch.from_numpy(labels.astype("int64"))

    def fit_classifier(self, run: Run, progress: Progress) -> Classifier:
        """A convolutional network fitted on the training images; the same for runs of all seeds."""
        images, labels = self.labelled(run, held_out=False)
        return ConvolutionalClassifier.fit(
            images,
            labels,
            seed=0,
            names=self.names,
            training=self.training,
            dtype=pick_dtype(run.dtype, images.device),
            progress=progress,
        )

    def make(self, run: Run) -> Recipe:
        """The recipe of settings."""
        return Recipe(lambda: run, self.documents, lambda _: [self.paraphrases[0].format(n) for n in self.names], self.task)

    def _path(self, run: Run) -> Path:
        if not run.data:
            raise ConfigError(f"{self.recipe} needs --data PATH: the folder with {self.title}'s four idx files")
        refuse_latents(run.data, self.recipe)
        return Path(run.data)
