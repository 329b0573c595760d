"""Fashion-MNIST, 28 x 28 grey, from its four idx files: drawn from captions and read.

transfusion train fashion --data PATH
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from transfusion.config import ConfigError
from transfusion.data.document import Document
from transfusion.data.loader import PackingConfig
from transfusion.data.sources.idx import idx_arrays, read_idx
from transfusion.data.transforms import ConditionDropout, DocumentTransform
from transfusion.data.vocabulary import BPE
from transfusion.diffusion.guidance import Guidance
from transfusion.diffusion.sampler import Euler
from transfusion.evaluation.classifier import Classifier, ClassifierTraining, ConvolutionalClassifier
from transfusion.modality import Modality
from transfusion.model.network import ModelConfig
from transfusion.nn.config import TransformerConfig
from transfusion.recipes.classes import Classes, progress
from transfusion.recipes.run import Report, Run
from transfusion.train.device import pick_dtype
from transfusion.train.optimizer import AdamWConfig
from transfusion.train.trainer import CheckpointConfig, TrainerConfig

NAMES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
PARAPHRASES = ("a grayscale photo of a {}", "a {}", "a picture of a {}", "this is a {}")


def run() -> Run:
    """The recipe."""
    image = Modality("image", channels=1, shape=(28, 28), patch=(4, 4))
    return Run(
        recipe="fashion",
        tokenizer=BPE(384),
        model=ModelConfig(
            modalities=(image,),
            transformer=TransformerConfig(width=192, depth=6, num_heads=6),
            media_weight=3.0,
            context_length=256,
        ),
        transform=DocumentTransform(
            image_first=0.5, condition_noise_min=0.0, condition_noise_max=0.0, condition_dropout=ConditionDropout(text=0.1)
        ),
        packing=PackingConfig(row_length=1024, rows=4),
        trainer=TrainerConfig(steps=1600, ema_decay=0.998, sample_every=400),
        optimizer=AdamWConfig(lr=1.5e-3, warmup=100, weight_decay=0.05),
        checkpoint=CheckpointConfig(every=200, keep=2),
        sampler=Euler(num_steps=25, shift=2.0),
        guidance=Guidance(text=3.0),
        report=Report(pictures=1000, readings=2000),
    )


class Fashion(Classes):
    """60,000 pictures to train on, 10,000 held out."""

    names = NAMES
    paraphrases = PARAPHRASES

    def documents(self) -> Sequence[Document]:
        """Captioned pictures."""

        def captions(label: str) -> tuple[str, ...]:
            if int(label) >= len(NAMES):
                raise ConfigError(f"{self._path} has label {label}; fashion knows 0 to {len(NAMES) - 1}: is it Fashion-MNIST?")
            return tuple(wording.format(NAMES[int(label)]) for wording in PARAPHRASES)

        return read_idx(self._path, captions).checked(str(self._path))

    @property
    def _path(self) -> Path:
        if not self.run.data:
            raise ConfigError("fashion needs --data PATH: the folder with Fashion-MNIST's four idx files")
        return Path(self.run.data)

    def held_out(self) -> tuple[Tensor, Tensor]:
        """The test pictures and their classes."""
        return _tensors(self._path, train=False)

    def trained(self) -> tuple[Tensor, Tensor]:
        """The training pictures and their classes."""
        return _tensors(self._path, train=True)

    def fit_classifier(self) -> Classifier:
        """A convolutional network fitted on the training pictures."""
        pictures, labels = self.trained()
        with progress("fitting the judge") as each:
            return ConvolutionalClassifier.fit(
                pictures,
                labels,
                seed=self.run.seed,
                names=NAMES,
                training=ClassifierTraining(shift=0.04, turn=0.0, zoom=0.0, flip=True),
                dtype=pick_dtype(self.run.dtype, pictures.device),
                each=each,
            )


def _tensors(path: Path, *, train: bool) -> tuple[Tensor, Tensor]:
    pixels, labels = idx_arrays(path, train=train)
    return torch.from_numpy(pixels.copy()).float()[:, None] / 127.5 - 1, torch.from_numpy(labels.astype("int64"))
