"""Scenes of coloured handwritten digits, 16 x 16, made on the spot: which digits, how many, where, in what colour.

transfusion train scenes
"""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from torch import Tensor

from transfusion import rng
from transfusion.data.corpus import captioned
from transfusion.data.document import Document, Media
from transfusion.data.loader import PackingConfig
from transfusion.data.sources.digits import read_digits
from transfusion.data.sources.scenes import KINDS, Scene, SceneKind, compose, draw
from transfusion.data.transforms import ConditionDropout, DocumentTransform
from transfusion.data.vocabulary import BPE
from transfusion.diffusion.guidance import Guidance
from transfusion.diffusion.sampler import Euler
from transfusion.evaluation.image_grid import sheet
from transfusion.evaluation.scenes import Scored, score, suite_result
from transfusion.evaluation.suite import EvalContext
from transfusion.modality import Modality
from transfusion.model.network import ModelConfig
from transfusion.nn.config import TransformerConfig
from transfusion.recipes.classes import progress
from transfusion.recipes.run import LogFn, Report, Run, command_line, last_losses, train, training_seconds
from transfusion.train.device import pick_device, pick_dtype
from transfusion.train.optimizer import AdamWConfig
from transfusion.train.trainer import CheckpointConfig, TrainerConfig

COUNTS: dict[SceneKind, int] = {
    "single": 4000,
    "two": 4000,
    "counting": 4000,
    "colours": 4000,
    "position": 8000,
    "attribution": 4000,
}
"""Scenes of each kind to train on."""


def run() -> Run:
    """The recipe."""
    image = Modality("image", channels=3, shape=(16, 16), patch=(8, 8))
    return Run(
        recipe="scenes",
        tokenizer=BPE(384),
        model=ModelConfig(
            modalities=(image,),
            transformer=TransformerConfig(width=128, depth=6, num_heads=4),
            media_weight=3.0,
            context_length=128,
        ),
        transform=DocumentTransform(image_first=0.0, condition_dropout=ConditionDropout(text=0.1)),
        packing=PackingConfig(row_length=512, rows=2),
        trainer=TrainerConfig(steps=5000, ema_decay=0.998, log_every=250),
        optimizer=AdamWConfig(lr=2e-3, warmup=50, weight_decay=0.05),
        checkpoint=CheckpointConfig(every=500, keep=1),
        sampler=Euler(num_steps=25, shift=2.0),
        guidance=Guidance(text=2.0),
        report=Report(pictures=1100),
    )


@dataclass(frozen=True)
class Painted:
    """A scene that is composed of training digits when it is loaded."""

    scene: Scene
    key: int

    @property
    def shape(self) -> tuple[int, ...]:
        """(channels, height, width)"""
        return (3, 16, 16)

    def load(self) -> Tensor:
        """Float32[3, 16, 16] in [-1, 1]"""
        return compose(self.scene, read_digits(held_out=False), self.key)


def documents() -> Sequence[Document]:
    """Captioned scenes, without the held-out combinations."""
    drawn = [(kind, i, draw(kind, "train", i)) for kind, count in COUNTS.items() for i in range(count)]
    return [captioned(s.captions, Media(Painted(s, rng.key("train", kind, i))), f"{kind} {i}") for kind, i, s in drawn]


def run_recipe(run: Run, log: LogFn) -> None:
    """Train, draw scenes of every kind, check them, report."""
    began = time.monotonic()
    prompts = [draw(kind, "sample", i).captions[0] for kind in KINDS for i in range(5)]
    model = train(run, documents(), prompts, log)
    report: dict[str, Any] = {"recipe": run.recipe, "seed": run.seed, "parameters": model.network.num_parameters}
    report |= last_losses(run.folder)
    spent = time.monotonic() - began
    if run.report.pictures:
        groups = 2 * len(KINDS) - 1
        dtype = pick_dtype(run.dtype, pick_device(run.device))
        with progress("drawing") as each:
            scored = score(model, count=max(run.report.pictures // groups, 1), seed=run.seed, dtype=dtype, progress=each)
        for name, share in scored.shares.items():
            report |= share.plain(name)
        how = EvalContext(seed=run.seed, dtype=dtype, command=command_line(run))
        suite_result(model, scored, how).record.save(run.folder / "records")
        _show(run, scored, log)
    report["seconds"] = max(spent, training_seconds(run.folder)) + time.monotonic() - began - spent
    (run.folder / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    log(f"{report['seconds']:.0f} seconds; numbers: {run.folder / 'report.json'}; next, draw your own:")
    log(f'  transfusion generate {run.folder} --prompt "{prompts[-1]}" --out pictures')


def _show(run: Run, scored: Scored, log: LogFn) -> None:
    """The shares as a table; ten pictures of each kind on `samples.png`, with seed and verdict."""
    table = Table("kind", "right", "95 % interval", "of", title=f"scenes, seed {run.seed}")
    for name, share in scored.shares.items():
        low, high = share.interval
        table.add_row(name.replace("_", " "), f"{share.value:.3f}", f"{low:.3f} to {high:.3f}", str(share.count))
    Console().print(table)
    count = scored.shares[KINDS[0]].count
    picked = [i for first in range(0, len(scored.scenes), count) for i in range(first, first + min(count, 10))]
    labels = [f"{scored.seeds[i]}: {'right' if scored.verdicts[i].right else 'wrong'}" for i in picked]
    captions = [scored.captions[i] for i in picked]
    sheet([scored.pictures[i] for i in picked], captions, run.folder / "samples.png", labels=labels)
    log(f"pictures: {run.folder / 'samples.png'}")
