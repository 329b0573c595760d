"""Instructions and pictures, and paths to the mark that is named: actions as a modality, composed on the spot.

transfusion train actions

A document is an instruction, a picture of four coloured marks, and a path of 16 points (x, y) that ends on the named one. The
first two are given; the path is denoised, all points at once. Measured where marks lie at new places: all
of 500 paths end on the named mark, and 0.996 where the named colour's mark never lay.

transfusion train actions --data FOLDER

learns your own, of JSONL whose paths are arrays Float[2, 16] in .npy files (`--model.modalities.0.shape`, `.channels`).
"""

from collections.abc import Sequence

from transfusion.api import Transfusion
from transfusion.config import ConfigError
from transfusion.data.document import Document
from transfusion.data.loader import PackingConfig
from transfusion.data.media import Fit
from transfusion.data.sources import actions as source
from transfusion.data.sources.actions import PATH, POINTS, SIDE
from transfusion.data.sources.read import read
from transfusion.data.transforms import ConditionDropout, DocumentTransform
from transfusion.data.vocabulary import BPE
from transfusion.diffusion.guidance import Guidance
from transfusion.diffusion.sampler import Euler
from transfusion.evaluation import actions
from transfusion.evaluation.suite import EvalContext, SuiteResult
from transfusion.modality import IMAGE, Modality
from transfusion.model.network import ModelConfig
from transfusion.nn.config import TransformerConfig
from transfusion.run.recipe import Recipe, SuiteTask
from transfusion.run.record import ReportConfig, Run
from transfusion.train.log import LogFn
from transfusion.train.optimizer import MuonConfig
from transfusion.train.trainer import CheckpointConfig, TrainerConfig

TRAINED = 20_000
"""Tasks to train on."""


def run() -> Run:
    """The settings."""
    return Run(
        recipe="actions",
        held_out=0.1,
        tokenizer=BPE(300),
        model=ModelConfig(
            modalities=(
                Modality(PATH, channels=2, shape=(POINTS,), patch=(4,)),
                Modality(IMAGE, channels=3, shape=(SIDE, SIDE), patch=(4, 4)),
            ),
            transformer=TransformerConfig(width=128, depth=4, num_heads=4),
            media_weight=3.0,
            context_length=128,
        ),
        transform=DocumentTransform(image_first=0.0, condition_dropout=ConditionDropout(text=0.0)),
        packing=PackingConfig(row_length=512, rows=4),
        trainer=TrainerConfig(steps=2000, ema_decay=0.998, log_every=100),
        optimizer=MuonConfig(lr=3e-3, warmup=50, weight_decay=0.05),
        checkpoint=CheckpointConfig(every=300, keep=1),
        sampler=Euler(num_steps=25),
        guidance=Guidance(text=1.0),
        report=ReportConfig(images=1000),
    )


def held_out_documents(count: int, seed: int) -> list[Document]:
    """Tasks to measure on: a half with new placements, a half with the named mark where its colour never was."""
    tasks = (source.documents(count // 2, "score", seed), source.documents(count // 2, "score", seed, held_out=True))
    return [document for group in tasks for document in group]


def documents(run: Run, log: LogFn) -> Sequence[Document]:
    """Tasks to train on: composed ones, or those of `--data`; unreadable ones are logged. Raises ConfigError: none of these has
    a path."""
    if not run.data:
        return source.documents(TRAINED, "train")
    found = read(run.data, Fit.of(run.model.modalities) or Fit()).report(log)
    if not any(media.modality == PATH for document in found for media in document.media):
        raise ConfigError(
            f"{run.data} holds no item {PATH!r}: give JSONL with lines such as "
            '{"segments": [{"text": "go there", "loss": false}, {"image": "a.png", "use": "context"}, {"path": "a.npy"}]}'
        )
    return found


def score(run: Run, model: Transfusion, context: EvalContext) -> SuiteResult:
    """Paths to marks; of other data, their distances to the real ones."""
    if not run.data:
        return actions.score(model, held_out_documents(context.samples, run.seed), context)
    trained, held_out = RECIPE.split(run, lambda line: None)
    return actions.errors(model, held_out or trained, context)


RECIPE = Recipe(run, documents, lambda _: [], SuiteTask(score))
