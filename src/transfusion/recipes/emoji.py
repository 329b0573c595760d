"""Emoji, 64 x 64 in colour, with their names (--data); some tones of skin and some families are held out.

transfusion train emoji --data PATH
transfusion train emoji --data PATH --autoencoder runs/vae/model

Measured by which real picture is nearest to a drawn one: of names that were trained on, of 200 variants in a tone of skin that
was not (other tones of the same figure were), and of families of which nothing was. On latents, 43 minutes of one core: 0.650,
0.720 and 0.080 by pixels; 0.310, 0.335 and 0.010 in MobileNetV2's features, which see textures.
"""

from collections.abc import Sequence
from dataclasses import replace

from transfusion.api import Transfusion
from transfusion.config import ConfigError
from transfusion.data.corpus import Corpus
from transfusion.data.document import Document
from transfusion.data.media import Fit
from transfusion.data.sources.read import has_held_out, read
from transfusion.evaluation import emoji
from transfusion.evaluation.suite import EvalContext, SuiteResult
from transfusion.recipes import pictures
from transfusion.run.recipe import Recipe, SuiteTask
from transfusion.run.record import ReportConfig, Run
from transfusion.train.log import LogFn

VARIANTS = 200
"""Variants of known families that are held out."""


def run() -> Run:
    """The settings: those of `pictures`, with more pictures read."""
    base = pictures.run()
    return replace(
        base,
        recipe="emoji",
        held_out=0.0,
        transform=replace(base.transform, image_first=0.3),
        packing=replace(base.packing, rows=4),
        trainer=replace(base.trainer, steps=2400, ema_decay=0.998, sample_every=400),
        report=ReportConfig(images=200),
    )


def split(run: Run, log: LogFn = lambda line: None) -> tuple[Corpus, Corpus]:
    """What is trained on, and the held-out variants; unreadable pictures are logged.

    Raises:
        ConfigError: no `--data`, or pictures without tones of skin or without a held-out split.
        ValueError: it cannot be read.
    """
    found = emoji.hold_out_variants(pictures.documents(run, log), VARIANTS)
    if not found[1] or not has_held_out(run.data):
        raise ConfigError(
            f"{run.data} is not the emoji that this recipe measures: a folder of Parquet tables with names in several tones of "
            "skin, and a held-out split; transfusion train pictures learns any captioned pictures"
        )
    return found


def documents(run: Run, log: LogFn) -> Sequence[Document]:
    """Named pictures to train on."""
    kept, held_out = split(run, log)
    log(f"{len(held_out)} variants in one tone of skin are held out")
    return kept


def score(run: Run, model: Transfusion, context: EvalContext) -> SuiteResult:
    """The suite `emoji` on a run's data."""
    fit = Fit.of(model.item_modalities)
    trained, variants = split(run)
    families = () if fit is None else read(run.data, fit, train=False)
    return emoji.score(model, emoji.Named(trained, variants, families), context)


RECIPE = Recipe(run, documents, pictures.prompts, SuiteTask(score), held_out=pictures.held_out)
