"""What `test_processes.py` has trained by one process and by several: `torchrun ... processes.py FOLDER` writes the losses of
each step, and what the weights became, as JSON."""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from test_autoencoding import DISCRIMINATOR, LOSSES, images
from test_autoencoding import objective as autoencoding

from small import FREE, SOUND, drawn, model
from transfusion import distributed
from transfusion.api import Transfusion
from transfusion.data.batch import Batch, Position
from transfusion.data.document import Document, Text
from transfusion.data.images import ImagesConfig, ImageStream
from transfusion.nn.moe import MoEConfig
from transfusion.train import muon
from transfusion.train.objective import Objective, Stream, TransfusionObjective
from transfusion.train.optimizer import AdamWConfig, MuonConfig, OptimizerConfig
from transfusion.train.trainer import CheckpointConfig, Optimization, Trainer, TrainerConfig

assert DISCRIMINATOR and LOSSES
STEPS, CPU = 20, torch.device("cpu")


def rows(step: int) -> list[list[Document]]:
    """Four rows of a step: two of text alone, then items of three sizes and two modalities; now and then no item at all."""
    seed = 100 * step
    texts = [
        [Document((Text(f"text alone {step}"),)), Document((Text("more"),))],
        [Document((Text("words " * (1 + step % 3)),))],
    ]
    if step % 7 == 3:
        return [*texts, [Document((Text("no items"),))], [Document((Text("here"),))]]
    pictures = [drawn(seed + 1, 1, 4, 4), drawn(seed + 2, 1, 8, 6), drawn(seed + 3, 1, 2, 4)]
    many = [Document((Text("a"), pictures[0], pictures[1])), Document((pictures[2], Text("long")))]
    return [*texts, many, [Document((Text("hear"), drawn(seed + 4, 3, 6, modality="sound")))]]


@dataclass
class Rows:
    """A stream of these rows; each process takes its share of them, in `parts` micro-batches."""

    model: Transfusion
    world: distributed.World
    parts: int = 1
    seed: int = 0
    start: Position = Position()

    def __post_init__(self) -> None:
        self.failed: dict[int, str] = {}

    def batches(self, position: Position) -> Iterator[tuple[Batch, ...]]:
        step = position.row
        while True:
            made = rows(step)
            step += 1
            share = len(made) // (self.world.size * self.parts)
            first = self.world.rank * share * self.parts
            cut = [made[first + p * share : first + (p + 1) * share] for p in range(self.parts)]
            sequences = [[self.model.tokenize(row, seed=step) for row in part] for part in cut]
            yield tuple(replace(self.collate(part), state=Position(0, 0, step)) for part in sequences)

    def collate(self, part: list[Any]) -> Batch:
        from transfusion.data.batch import collate

        vocabulary, axes = self.model.vocabulary, self.model.config.model.coordinates.axes
        return collate(part, 96, vocabulary, axes)


def trained(folder: Path, objective: Objective[Any], stream: Stream[Any], *optimizations: Optimization) -> dict[str, Any]:
    """Losses of the steps, and a digest of weights and averages."""
    trainer = Trainer(
        objective,
        stream,
        optimizers=optimizations,
        config=TrainerConfig(steps=STEPS, ema_decay=0.9, log_every=1000),
        checkpoint_config=CheckpointConfig(every=10),
        folder=folder,
        digest="",
        device=CPU,
        dtype=torch.float32,
    )
    resumed = trainer.resume(print)
    trainer.run()
    sums = [float(p.double().abs().sum()) for p in objective.state_dict().values()]
    averages = [float(shadow.double().abs().sum()) for shadow in trainer.ema.shadows.values()]
    return {"weights": sums, "averages": averages, "resumed": resumed}


def method(folder: Path, optimizer: OptimizerConfig, parts: int = 1, **transformer: Any) -> dict[str, Any]:
    """The method on those rows."""
    made = model(FREE, SOUND, **transformer).train()
    objective = TransfusionObjective(made, media_weight=2.0)
    return trained(folder, objective, Rows(made, distributed.world(), parts), Optimization(made, optimizer))


def autoencoder(folder: Path, kind: str) -> dict[str, Any]:
    """An autoencoder with a discriminator from its third step."""
    made, here, rate = autoencoding(kind, update="ema"), distributed.world(), AdamWConfig(lr=1e-3, warmup=1)
    assert made.discriminator is not None
    config = ImagesConfig(side=16, batch_size=4)
    stream = ImageStream(images(), list(map(str, range(10))), config, channels=3, seed=0, rank=here.rank, world=here.size)
    optimizations = (Optimization(made.model, rate), Optimization(made.discriminator, rate, name="discriminator", start=2))
    return trained(folder, made, stream, *optimizations)


def main(folder: Path) -> None:
    """All of them."""
    torch.set_num_threads(1)
    muon.has_bf16 = lambda device: False  # bf16's rounding would tell the two apart
    adamw, found = AdamWConfig(lr=1e-3, warmup=2), {}
    accumulate = 4 // distributed.world().size
    found["adamw"] = method(folder / "adamw", adamw)
    found["muon"] = method(folder / "muon", MuonConfig(lr=1e-3, warmup=2))
    found["parts"] = method(folder / "parts", adamw, parts=accumulate)
    found["experts"] = method(folder / "experts", adamw, double=True, moe=MoEConfig(4, aux_loss_weight=0.5))
    found["vae"] = autoencoder(folder / "vae", "vae")
    found["vq"] = autoencoder(folder / "vq", "vq")
    if distributed.world().is_main:
        (folder / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    with distributed.joined():
        main(Path(sys.argv[1]))
