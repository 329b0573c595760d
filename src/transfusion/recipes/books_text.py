"""Books by chapter, text alone, in a vocabulary of byte pairs (--data): Parquet tables with a column text.

transfusion train books_text --data PATH

A chapter is cut into documents of 1,400 characters at most, at paragraphs where it can be, which fill some 400 tokens of a
context of 512. Titles that the recipe `books` holds out are left out here too, so that it may start from this model. Measured
on the table of held-out chapters (`evaluation/running_text.py`).
"""

from collections.abc import Sequence

from transfusion.api import Transfusion
from transfusion.config import ConfigError
from transfusion.data.document import Document, Text
from transfusion.data.loader import PackingConfig
from transfusion.data.sources.read import has_held_out, read_texts
from transfusion.data.sources.texts import pieces
from transfusion.data.transforms import ConditionDropout, DocumentTransform
from transfusion.data.vocabulary import BPE
from transfusion.diffusion.guidance import Guidance
from transfusion.evaluation import running_text
from transfusion.evaluation.suite import EvalContext, SuiteResult
from transfusion.model.network import ModelConfig
from transfusion.nn.config import TransformerConfig
from transfusion.run.recipe import Recipe, SuiteTask
from transfusion.run.record import ReportConfig, Run
from transfusion.train.log import LogFn
from transfusion.train.optimizer import MuonConfig
from transfusion.train.trainer import CheckpointConfig, TrainerConfig

PIECE = 1400
"""Characters of a document at most."""
HELD_OUT_TITLES = ("Through the Looking-Glass",)
"""Titles that neither this recipe nor `books` trains on."""
PROMPT = "Once upon a time"


def run() -> Run:
    """The settings."""
    return Run(
        recipe="books_text",
        tokenizer=BPE(4096),
        model=ModelConfig(
            modalities=(),
            transformer=TransformerConfig(width=256, depth=6, num_heads=4),
            context_length=512,
        ),
        transform=DocumentTransform(condition_dropout=ConditionDropout(text=0.0)),
        packing=PackingConfig(row_length=1024, rows=2),
        trainer=TrainerConfig(steps=1800, ema_decay=0.995),
        optimizer=MuonConfig(lr=5e-3, warmup=40, weight_decay=0.1),
        checkpoint=CheckpointConfig(every=200, keep=2),
        guidance=Guidance(text=1.0),
        report=ReportConfig(images=1000),
    )


def documents(run: Run, log: LogFn) -> Sequence[Document]:
    """The pieces of all chapters. Raises ConfigError without `--data` or held-out chapters, ValueError as `read_texts`."""
    if not run.data:
        raise ConfigError(f"{run.recipe} needs --data PATH: a folder of Parquet tables with a column text")
    if not has_held_out(run.data):
        raise ConfigError(f"{run.data} needs a table to train on and one to measure on, which is named validation.parquet")
    chapters = read_texts(run.data).report(log)
    kept = [chapter for chapter in chapters if not chapter.name.startswith(HELD_OUT_TITLES)]
    return [
        Document((Text(piece),), name=f"{chapter.name}: {number}")
        for chapter in kept
        for number, piece in enumerate(pieces(chapter.text, PIECE))
    ]


def score(run: Run, model: Transfusion, context: EvalContext) -> SuiteResult:
    """The held-out chapters, measured."""
    chapters = [chapter.text for chapter in read_texts(run.data, train=False)]
    return running_text.score(model, chapters, context, prompt=PROMPT)


RECIPE = Recipe(run, documents, lambda _: [PROMPT], SuiteTask(score))
