"""Edits of emoji: a picture, an instruction, the edited picture (--data), by fine-tuning `emoji` (--init).

transfusion train emoji_edit --data PATH --init runs/emoji

The source is given, clean; the target is drawn. Measured by whether the target is the nearest to the result, among the source,
the target and the other targets of the same figure: 0.660 of held-out edits by pixels, by chance 0.308, after 5.6 passes and 18
minutes of one core (docs/uses.md).
"""

from collections.abc import Sequence
from dataclasses import replace

from transfusion.api import Transfusion
from transfusion.config import ConfigError
from transfusion.data.corpus import Corpus
from transfusion.data.document import Document
from transfusion.data.media import Fit
from transfusion.data.sources.edits import Edit, read_edits
from transfusion.data.sources.read import has_held_out
from transfusion.data.transforms import ConditionDropout
from transfusion.diffusion.guidance import Guidance
from transfusion.evaluation import edits
from transfusion.evaluation.suite import EvalContext, SuiteResult
from transfusion.recipes import emoji
from transfusion.run.recipe import Recipe, SuiteTask
from transfusion.run.record import ReportConfig, Run
from transfusion.train.log import LogFn


def run() -> Run:
    """The settings: those of `emoji`, with a lower rate, and both conditions dropped now and then."""
    base = emoji.run()
    return replace(
        base,
        recipe="emoji_edit",
        transform=replace(base.transform, image_first=0.0, condition_dropout=ConditionDropout(text=0.1, media=0.05)),
        trainer=replace(base.trainer, steps=1200, sample_every=0),
        optimizer=replace(base.optimizer, lr=1e-3),
        guidance=Guidance(text=2.0),
        report=ReportConfig(images=1000),
    )


def read(run: Run, *, train: bool = True) -> list[Edit]:
    """The edits of a split. Raises ConfigError: no `--data`, or no held-out split; ValueError: it cannot be read."""
    if not run.data:
        raise ConfigError("emoji_edit needs --data PATH: a folder of Parquet tables of edits")
    fit = Fit.of(run.model.modalities)
    if fit is None:
        raise ConfigError("emoji_edit needs a modality of images: two axes, and 1 or 3 channels")
    found = read_edits(run.data, fit, train=train)
    if not has_held_out(run.data):
        raise ConfigError(f"{run.data} has no held-out split to measure on: name a table train.parquet, one validation.parquet")
    return found


def documents(run: Run, log: LogFn) -> Sequence[Document]:
    """The edits to train on."""
    if not run.init:
        log("note: without --init the pictures are learned from these edits alone; the recipe fine-tunes emoji's")
    return Corpus([edit.document for edit in read(run)])


def score(run: Run, model: Transfusion, context: EvalContext) -> SuiteResult:
    """The suite `edits` on the held-out edits of a run's data."""
    return edits.score(model, read(run, train=False), read(run), context)


RECIPE = Recipe(run, documents, lambda _: [], SuiteTask(score))
