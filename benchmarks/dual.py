"""Dual copies against clean or limited pictures, where documents hold several that are read later. Handwritten digits.

    python benchmarks/dual.py --out runs/dual [--steps 300]

A document is three digits: two that are read ("[picture] is three. ") and one that is drawn from its name. Three runs, alike
but for what is done with pictures that later text or pictures are learned from: they stand clean and without a loss
(condition_noise_max 0),
their noise is limited to 0.5, or they stand twice. Rows are of one length, so that a step costs the same; a dual document
fills more of them. Printed, of held-out digits: nats a token of the text behind clean pictures, and the denoising loss at all
times behind clean ones, of the last picture (which each run learned) and of all three.
"""

import argparse
from dataclasses import replace

import torch

from transfusion import rng
from transfusion.api import Transfusion
from transfusion.commands.train import train
from transfusion.data.document import CLEAN, Document, Media, Text
from transfusion.data.loader import PackingConfig
from transfusion.data.sources.digits import NAMES, read_digits
from transfusion.data.transforms import ConditionDropout, DocumentTransform
from transfusion.data.vocabulary import BPE
from transfusion.modality import Modality
from transfusion.model.network import ModelConfig
from transfusion.nn.config import TransformerConfig
from transfusion.run.record import Run
from transfusion.train.log import training_seconds
from transfusion.train.optimizer import AdamWConfig
from transfusion.train.trainer import CheckpointConfig, TrainerConfig

READ = {
    "clean, no loss": DocumentTransform(0.0, condition_noise_max=0.0, condition_dropout=ConditionDropout(0.0)),
    "noise to 0.5": DocumentTransform(0.0, condition_noise_max=0.5, condition_dropout=ConditionDropout(0.0)),
    "dual copies": DocumentTransform(0.0, dual=True, condition_dropout=ConditionDropout(0.0)),
}


def run(out: str, steps: int, compose: DocumentTransform) -> Run:
    """The run: width 96, depth 3, patches of 2 x 2, so 16 slots a picture."""
    image = Modality("image", channels=1, shape=(8, 8), patch=(2, 2))
    return Run(
        recipe="dual",
        out=out,
        dtype="fp32",
        tokenizer=BPE(300),
        model=ModelConfig(
            modalities=(image,),
            transformer=TransformerConfig(width=96, depth=3, num_heads=3),
            media_weight=3.0,
            context_length=160,
        ),
        transform=compose,
        packing=PackingConfig(row_length=512, rows=4),
        trainer=TrainerConfig(steps=steps, ema_decay=0.98, log_every=100),
        optimizer=AdamWConfig(lr=3e-3, warmup=30, weight_decay=0.05),
        checkpoint=CheckpointConfig(every=steps, keep=1),
    )


def documents(count: int, *, held_out: bool) -> list[Document]:
    """Documents of three digits, drawn by their number."""
    digits = read_digits(held_out=held_out)
    found = []
    for index in range(count):
        picked = [int(rng.uniform("dual", held_out, index, i) * len(digits.labels)) for i in range(3)]
        pictures, names = [Media(digits.images[i]) for i in picked], [NAMES[int(digits.labels[i])] for i in picked]
        read = [part for i in (0, 1) for part in (pictures[i], Text(f" is {names[i]}. "))]
        found.append(Document((*read, Text(f"draw {names[2]}: "), pictures[2]), name=f"three digits {index}"))
    return found


@torch.no_grad()
def held_out(model: Transfusion, count: int = 240) -> tuple[float, float, float]:
    """Nats a token of text, and the denoising loss of the last picture and of all; what stands before is clean."""
    last, every = None, None
    for first in range(0, count, 40):
        some = documents(count, held_out=True)[first : first + 40]
        for_last = [_with(one, [{"times": CLEAN}, {"times": CLEAN}, {}]) for one in some]
        for_every = [_with(one, [{"dual": True}] * 3) for one in some]
        found = model(model.batch(for_last, seed=first)), model(model.batch(for_every, seed=first))
        last = found[0] if last is None else last + found[0]
        every = found[1] if every is None else every + found[1]
    assert last is not None and every is not None
    return every.text.value.item(), last.media.value.item(), every.media.value.item()


def _with(one: Document, changes: list[dict]) -> Document:
    each = iter(changes)
    return replace(one, segments=tuple(replace(s, **next(each)) if isinstance(s, Media) else s for s in one.segments))


def main() -> None:
    """Train the three, and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="runs/dual")
    parser.add_argument("--steps", type=int, default=300)
    options = parser.parse_args()
    for name, compose in READ.items():
        asked = run(f"{options.out}/{name.split()[0].strip(',')}", options.steps, compose)
        model = train(asked, documents(2000, held_out=False), [], lambda line: None)
        text, last, every = held_out(model)
        seconds = training_seconds(asked.folder)
        print(f"{name:<16} text {text:.3f}  last picture {last:.3f}  all {every:.3f}  ({seconds:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
