"""The quickstart: handwritten digits, 8 x 8 grey, that scikit-learn ships; drawn from captions and read.

transfusion quickstart            (the same as: transfusion train digits --out quickstart)
"""

from collections.abc import Sequence

from torch import Tensor

from transfusion.data.corpus import captioned
from transfusion.data.document import Document, Media
from transfusion.data.loader import PackingConfig
from transfusion.data.sources.digits import NAMES, read_digits
from transfusion.data.transforms import ConditionDropout, DocumentTransform
from transfusion.data.vocabulary import BPE
from transfusion.diffusion.guidance import Guidance
from transfusion.diffusion.sampler import Euler
from transfusion.evaluation.classifier import Classifier, SmallClassifier
from transfusion.modality import Modality
from transfusion.model.network import ModelConfig
from transfusion.nn.config import TransformerConfig
from transfusion.recipes.classes import Classes
from transfusion.recipes.run import Run
from transfusion.train.optimizer import AdamWConfig
from transfusion.train.trainer import CheckpointConfig, TrainerConfig

PARAPHRASES = (
    "a handwritten {}",
    "the digit {}",
    "a picture of the number {}",
    "{} written by hand",
    "this is a {}",
    "someone wrote the number {} here",
)
HELD_OUT_PARAPHRASES = ("a picture of a handwritten {}", "the number {} written here")


def run() -> Run:
    """The recipe."""
    image = Modality("image", channels=1, shape=(8, 8), patch=(2, 2))
    return Run(
        recipe="digits",
        tokenizer=BPE(512),
        model=ModelConfig(
            modalities=(image,),
            transformer=TransformerConfig(width=128, depth=4, num_heads=4),
            media_weight=3.0,
            context_length=128,
        ),
        transform=DocumentTransform(
            image_first=0.5, condition_noise_min=0.0, condition_noise_max=0.0, condition_dropout=ConditionDropout(text=0.1)
        ),
        packing=PackingConfig(row_length=512, rows=4),
        trainer=TrainerConfig(steps=1200, ema_decay=0.998, log_every=100),
        optimizer=AdamWConfig(lr=3e-3, warmup=50, weight_decay=0.05),
        checkpoint=CheckpointConfig(every=300, keep=1),
        sampler=Euler(num_steps=25, shift=2.0),
        guidance=Guidance(text=2.0),
    )


class Digits(Classes):
    """1,437 digits to train on, 360 held out."""

    names = NAMES
    paraphrases = PARAPHRASES
    held_out_paraphrases = HELD_OUT_PARAPHRASES

    def documents(self) -> Sequence[Document]:
        """Captioned digits."""
        digits = read_digits(held_out=False)
        captions = [tuple(w.format(name) for w in PARAPHRASES) for name in NAMES]
        pairs = enumerate(zip(digits.labels.tolist(), digits.images, strict=True))
        return [captioned(captions[label], Media(picture), f"digit {i}") for i, (label, picture) in pairs]

    def held_out(self) -> tuple[Tensor, Tensor]:
        """Pictures and classes that are never trained on."""
        digits = read_digits(held_out=True)
        return digits.images, digits.labels

    def trained(self) -> tuple[Tensor, Tensor]:
        """Pictures and classes to train on."""
        digits = read_digits(held_out=False)
        return digits.images, digits.labels

    def fit_classifier(self) -> Classifier:
        """A classifier fitted on the training digits."""
        return SmallClassifier(*self.trained())
