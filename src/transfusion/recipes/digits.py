"""The quickstart: handwritten digits, 8 x 8 grey, that scikit-learn ships; drawn from captions and read.

transfusion quickstart            (the same as: transfusion train digits --out quickstart)
"""

from collections.abc import Sequence

from torch import Tensor

from transfusion.data.compose import Compose, Drop
from transfusion.data.document import Document, Media
from transfusion.data.handwritten import NAMES, handwritten
from transfusion.data.loader import Packing
from transfusion.data.readers import pair
from transfusion.data.vocabulary import BPE
from transfusion.diffusion.guidance import Guidance
from transfusion.diffusion.sampler import Euler
from transfusion.evaluation.judge import Judge, SmallJudge
from transfusion.modality import Modality
from transfusion.model.transfusion import Model
from transfusion.nn.trunk import Trunk
from transfusion.recipes.classes import Classes
from transfusion.recipes.run import Run
from transfusion.train.optim import Optim
from transfusion.train.trainer import Checkpointing, Train

WORDINGS = (
    "a handwritten {}",
    "the digit {}",
    "a picture of the number {}",
    "{} written by hand",
    "this is a {}",
    "someone wrote the number {} here",
)
HELD_OUT_WORDINGS = ("a picture of a handwritten {}", "the number {} written here")


def run() -> Run:
    """The recipe."""
    image = Modality("image", channels=1, shape=(8, 8), patch=(2, 2))
    return Run(
        recipe="digits",
        tokenizer=BPE(512),
        model=Model(modalities=(image,), trunk=Trunk(width=128, depth=4, heads=4), media_weight=3.0, context=128),
        compose=Compose(picture_first=0.5, read_low=0.0, read_high=0.0, drop=Drop(text=0.1)),
        packing=Packing(row_length=512, rows=4),
        train=Train(steps=1200, ema=0.998, log_every=100),
        optim=Optim(lr=3e-3, warmup=50, decay=0.05),
        checkpoint=Checkpointing(every=300, keep=1),
        sampler=Euler(num_steps=25, shift=2.0),
        guidance=Guidance(text=2.0),
    )


class Digits(Classes):
    """1,437 digits to train on, 360 held out."""

    names = NAMES
    wordings = WORDINGS
    held_out_wordings = HELD_OUT_WORDINGS

    def documents(self) -> Sequence[Document]:
        """Captioned digits."""
        digits = handwritten(held_out=False)
        captions = [tuple(w.format(name) for w in WORDINGS) for name in NAMES]
        pairs = enumerate(zip(digits.labels.tolist(), digits.pictures, strict=True))
        return [pair(captions[label], Media(picture), f"digit {i}") for i, (label, picture) in pairs]

    def held_out(self) -> tuple[Tensor, Tensor]:
        """Pictures and classes that are never trained on."""
        digits = handwritten(held_out=True)
        return digits.pictures, digits.labels

    def trained(self) -> tuple[Tensor, Tensor]:
        """Pictures and classes to train on."""
        digits = handwritten(held_out=False)
        return digits.pictures, digits.labels

    def fit_judge(self) -> Judge:
        """A classifier fitted on the training digits."""
        return SmallJudge(*self.trained())
