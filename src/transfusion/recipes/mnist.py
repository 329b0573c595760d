"""MNIST, 28 x 28 grey, from its four idx files (--data).

transfusion train mnist --data PATH

60,000 digits to train on, 10,000 held out. The settings are Fashion-MNIST's, with fewer steps and less guidance: 0.996 of the
images show what their caption names, 0.981 of the held-out ones are captioned correctly.
"""

from dataclasses import replace

from transfusion.diffusion.guidance import Guidance
from transfusion.evaluation.classifier import ClassifierTraining
from transfusion.recipes import fashion
from transfusion.run.idx import IdxImages
from transfusion.run.record import Run

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PARAPHRASES = ("the digit {}", "a handwritten {}", "a picture of the number {}", "this is a {}")


def run() -> Run:
    """The settings."""
    base = fashion.run()
    trainer = replace(base.trainer, steps=2400, sample_every=600)
    return replace(base, recipe="mnist", trainer=trainer, guidance=Guidance(text=2.0))


IMAGES = IdxImages("mnist", "MNIST", NAMES, PARAPHRASES, ClassifierTraining(shift=0.08, turn=8.0, zoom=0.08, flip=False))
RECIPE = IMAGES.make(run())
