"""Shakespeare by character, text alone (--data): a .txt file, whose last tenth is held out.

transfusion train shakespeare --data PATH

PATH is a text, or a folder with `input.txt` (tiny Shakespeare: 1,115,394 characters). Documents are windows of 256 characters,
which begin at every 32nd. Measured on the whole last tenth (`evaluation/running_text.py`).
"""

from collections.abc import Sequence

from transfusion.api import Transfusion
from transfusion.config import ConfigError
from transfusion.data.document import Document
from transfusion.data.loader import PackingConfig
from transfusion.data.sources.texts import read_plain, windows
from transfusion.data.transforms import ConditionDropout, DocumentTransform
from transfusion.data.vocabulary import Bytes
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

WINDOW, STEP = 256, 32
"""Characters of a document, and between the beginnings of two."""
PROMPT = "ROMEO:"


def run() -> Run:
    """The settings."""
    return Run(
        recipe="shakespeare",
        tokenizer=Bytes(),
        model=ModelConfig(
            modalities=(),
            transformer=TransformerConfig(width=256, depth=6, num_heads=4, dropout=0.1),
            context_length=WINDOW + 2,
        ),
        transform=DocumentTransform(condition_dropout=ConditionDropout(text=0.0)),
        packing=PackingConfig(row_length=WINDOW + 2, rows=8),
        trainer=TrainerConfig(steps=2400, ema_decay=0.995),
        optimizer=MuonConfig(lr=5e-3, warmup=50, weight_decay=0.1),
        checkpoint=CheckpointConfig(every=200, keep=2),
        guidance=Guidance(text=1.0),
        report=ReportConfig(images=1000),
    )


def documents(run: Run, log: LogFn) -> Sequence[Document]:
    """Windows of the text before its last tenth. Raises ConfigError without `--data`, ValueError as `read_plain`."""
    return windows(_texts(run)[0], WINDOW, STEP)


def score(run: Run, model: Transfusion, context: EvalContext) -> SuiteResult:
    """The last tenth, measured."""
    return running_text.score(model, [_texts(run)[1]], context, prompt=PROMPT)


def _texts(run: Run) -> tuple[str, str]:
    if not run.data:
        raise ConfigError(f"{run.recipe} needs --data PATH: a .txt file, or a folder with input.txt")
    return read_plain(run.data)


RECIPE = Recipe(run, documents, lambda _: [PROMPT], SuiteTask(score))
