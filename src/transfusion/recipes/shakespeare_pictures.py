"""Shakespeare by character together with MNIST's digits, documents of both kinds (--data).

transfusion train shakespeare_pictures --data FOLDER

FOLDER holds `input.txt` and MNIST's four idx files. The settings are those of `shakespeare`, with so many more rows in a step
that as much of the text is learned: what pictures cost the text is the difference of the two runs in nats per character.
"""

from collections.abc import Sequence
from dataclasses import replace

from transfusion.api import Transfusion
from transfusion.data.document import Document
from transfusion.data.transforms import ConditionDropout, DocumentTransform
from transfusion.diffusion.guidance import Guidance
from transfusion.diffusion.sampler import Euler
from transfusion.evaluation import draw
from transfusion.evaluation.suite import EvalContext, SuiteResult
from transfusion.modality import IMAGE, Modality
from transfusion.recipes import mnist, shakespeare
from transfusion.run.idx import IdxImages
from transfusion.run.recipe import Recipe, SuiteTask
from transfusion.run.record import Run
from transfusion.train.log import LogFn

NUM_DRAWN = 100
ROWS = 13
"""Rows of a step, of which 0.61 are text: of 60,000 images three fill a row, of 31,364 windows each."""


def run() -> Run:
    """The settings."""
    base = shakespeare.run()
    image = Modality(IMAGE, channels=1, shape=(28, 28), patch=(4, 4))
    return replace(
        base,
        recipe="shakespeare_pictures",
        model=replace(base.model, modalities=(image,), media_weight=1.0),
        transform=DocumentTransform(image_first=0.5, condition_dropout=ConditionDropout(text=0.1)),
        packing=replace(base.packing, rows=ROWS),
        sampler=Euler(num_steps=25, shift=2.0),
        guidance=Guidance(text=2.0),
    )


def documents(run: Run, log: LogFn) -> Sequence[Document]:
    """Windows of the text, and captioned images. Raises ConfigError and ValueError as the recipes of each."""
    return [*shakespeare.documents(run, log), *IMAGES.documents(run, log)]


def prompts(documents: Sequence[Document]) -> list[str]:
    """A caption of every digit."""
    return [mnist.PARAPHRASES[0].format(name) for name in mnist.NAMES]


def score(run: Run, model: Transfusion, context: EvalContext) -> SuiteResult:
    """The last tenth of the text, measured, and images drawn from captions."""
    written = shakespeare.score(run, model, context)
    images, labels = IMAGES.labelled(run, held_out=True)
    captions = IMAGES.task.prompts(mnist.PARAPHRASES, NUM_DRAWN)
    real = replace(context, samples=NUM_DRAWN, real=images, real_classes=labels, captioned=held_out(run))
    drawn = draw.score(model, captions, real)
    metrics = {**written.record.metrics, **drawn.record.metrics}
    record = replace(written.record, metrics=metrics, missing=drawn.record.missing)
    return SuiteResult(record, written.documents, shown=tuple(drawn.grid))


def held_out(run: Run) -> Sequence[Document]:
    """The test images with their captions."""
    return IMAGES.task.held_out_documents(run)


IMAGES = IdxImages("shakespeare_pictures", "MNIST", mnist.NAMES, mnist.PARAPHRASES, mnist.IMAGES.training)
RECIPE = Recipe(run, documents, prompts, SuiteTask(score), held_out)
