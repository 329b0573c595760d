"""Labels and their images in turn, two of each in a document, from idx files (--data).

transfusion train alternating --data PATH

The documents of Transfusion.torch's demonstration: "3", an image of a three, "7", an image of a seven. PATH holds the four idx
files of MNIST or of Fashion-MNIST, whose labels are their numbers. Measured by documents that are written from nothing: on
MNIST all 1,000 are of the form, and all their images agree with the label before them.
"""

from collections.abc import Sequence

from transfusion import rng
from transfusion.data.document import Document
from transfusion.data.loader import PackingConfig
from transfusion.data.transforms import ConditionDropout, DocumentTransform
from transfusion.data.vocabulary import Bytes
from transfusion.diffusion.guidance import Guidance
from transfusion.diffusion.sampler import Euler
from transfusion.evaluation.classifier import ClassifierTraining
from transfusion.modality import IMAGE, Modality
from transfusion.model.network import ModelConfig
from transfusion.nn.config import TransformerConfig
from transfusion.run.idx import IdxImages
from transfusion.run.recipe import AlternatingTask, Recipe
from transfusion.run.record import ReportConfig, Run
from transfusion.train.log import LogFn
from transfusion.train.optimizer import MuonConfig
from transfusion.train.trainer import CheckpointConfig, TrainerConfig

NAMES = tuple("0123456789")


def run() -> Run:
    """The settings."""
    image = Modality(IMAGE, channels=1, shape=(28, 28), patch=(4, 4))
    return Run(
        recipe="alternating",
        tokenizer=Bytes(),
        model=ModelConfig(
            modalities=(image,),
            transformer=TransformerConfig(width=192, depth=6, num_heads=6),
            media_weight=3.0,
            context_length=256,
        ),
        transform=DocumentTransform(image_first=0.0, condition_dropout=ConditionDropout(text=0.1)),
        packing=PackingConfig(row_length=1024, rows=2),
        trainer=TrainerConfig(steps=3000, ema_decay=0.998, sample_every=1000),
        optimizer=MuonConfig(lr=3e-3, warmup=100, weight_decay=0.05),
        checkpoint=CheckpointConfig(every=200, keep=2),
        sampler=Euler(num_steps=25, shift=2.0),
        guidance=Guidance(text=2.0),
        report=ReportConfig(images=1000),
    )


def documents(run: Run, log: LogFn) -> Sequence[Document]:
    """A document for each training image: its label and itself, then the label and the image of another, drawn by the seed."""
    singles = IMAGES.documents(run, log)
    others = rng.generator(rng.key(run.seed, "alternating")).permutation(len(singles))
    pairs = ((single, singles[int(other)]) for single, other in zip(singles, others, strict=True))
    return [Document((*first.segments, *second.segments), name=f"{first.name}+{second.name}") for first, second in pairs]


IMAGES = IdxImages("alternating", "MNIST or Fashion-MNIST", NAMES, ("{}",), ClassifierTraining(shift=0.05, turn=0.0, zoom=0.0))
RECIPE = Recipe(run, documents, lambda _: list(NAMES), AlternatingTask(IMAGES.task))
