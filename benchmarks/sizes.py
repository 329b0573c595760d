"""Does the model write the size that the caption names? Handwritten digits, resized to 16 sizes that their captions say.

    python benchmarks/sizes.py --out runs/sizes [--steps 500] [--prompts 200]

Each of scikit-learn's 1,437 digits to train on stands in the data twice, at two sizes of {8, 12, 16, 20} x {8, 12, 16, 20},
with captions such as "a three, 8 wide and 12 high". The model is given captions alone: it opens the item, writes its size (a
token an axis) and draws. Prints the share of prompts whose picture has the size that is named, how often a written size could
not be used and the default, 8 x 8, was drawn instead, and the share in which a judge of real digits sees the digit that is
named; writes an image grid, `sizes.png`.
"""

import argparse
import json
import time
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from transfusion import rng
from transfusion.commands.train import train
from transfusion.data.corpus import captioned
from transfusion.data.document import Document, Media, Text
from transfusion.data.loader import PackingConfig
from transfusion.data.sources.digits import NAMES, read_digits
from transfusion.data.transforms import ConditionDropout, DocumentTransform
from transfusion.data.vocabulary import BPE
from transfusion.diffusion.guidance import Guidance
from transfusion.diffusion.sampler import Euler
from transfusion.evaluation.classifier import SmallClassifier, accuracy
from transfusion.evaluation.estimate import Estimate
from transfusion.evaluation.image_grid import image_grid
from transfusion.generate.engine import Engine
from transfusion.generate.logits import Decoding, Greedy, Sample
from transfusion.generate.state import Done, ItemDone, Request
from transfusion.modality import Modality
from transfusion.model.network import ModelConfig
from transfusion.nn.transformer import TransformerConfig
from transfusion.run.record import Run
from transfusion.train.log import training_seconds
from transfusion.train.optimizer import AdamWConfig
from transfusion.train.trainer import CheckpointConfig, TrainerConfig

SIZES = (8, 12, 16, 20)
PARAPHRASES = ("a {0}, {1} wide and {2} high", "a handwritten {0}: {1} wide, {2} high", "the digit {0}, {2} high and {1} wide")
COPIES = 2


def run(out: str, steps: int) -> Run:
    """The run: width 128, depth 4, patches of 4 x 4, so 4 to 25 slots a picture."""
    image = Modality("image", channels=1, shape=(8, 8), patch=(4, 4), largest=(max(SIZES), max(SIZES)))
    return Run(
        recipe="sizes",
        out=out,
        tokenizer=BPE(400),
        model=ModelConfig(
            modalities=(image,),
            transformer=TransformerConfig(width=128, depth=4, num_heads=4),
            media_weight=3.0,
            context_length=96,
        ),
        transform=DocumentTransform(image_first=0.0, condition_dropout=ConditionDropout(text=0.1)),
        packing=PackingConfig(row_length=512, rows=4),
        trainer=TrainerConfig(steps=steps, ema_decay=0.99, log_every=100),
        optimizer=AdamWConfig(lr=3e-3, warmup=50, weight_decay=0.05),
        checkpoint=CheckpointConfig(every=steps, keep=1),
        sampler=Euler(num_steps=25, shift=2.0),
        guidance=Guidance(text=2.0),
    )


def resized(picture: Tensor, size: Sequence[int]) -> Tensor:
    """A digit [1, height, width] at another size."""
    return F.interpolate(picture[None], size=tuple(size), mode="bilinear", align_corners=False)[0].clamp(-1, 1)


def drawn_size(*names: str | int) -> tuple[int, int]:
    """A size (height, width) that a key names."""
    height, width = (SIZES[int(rng.uniform("size", *names, axis) * len(SIZES))] for axis in ("high", "wide"))
    return height, width


def documents() -> list[Document]:
    """Captioned digits at two sizes each."""
    digits = read_digits(held_out=False)
    found = []
    for index, (label, picture) in enumerate(zip(digits.labels.tolist(), digits.images, strict=True)):
        for copy in range(COPIES):
            height, width = drawn_size("train", index, copy)
            said = tuple(caption.format(NAMES[label], width, height) for caption in PARAPHRASES)
            found.append(captioned(said, Media(resized(picture, (height, width))), f"digit {index}.{copy}"))
    return found


def main() -> None:
    """Train, draw, count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="runs/sizes")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--prompts", type=int, default=200)
    options = parser.parse_args()
    asked = run(options.out, options.steps)
    began = time.process_time()
    model = train(asked, documents(), [], print)
    trained = time.process_time() - began
    real = read_digits(held_out=False)
    classifier = SmallClassifier(real.images, real.labels)
    report: dict[str, object] = {"steps": options.steps, "seconds": training_seconds(asked.folder), "cpu_seconds": trained}

    choices: dict[str, Decoding] = {"most likely": Greedy(), "sampled": Sample()}
    for name, decoding in choices.items():
        engine = Engine(model.network, model.vocabulary, cache_slots=128)
        wanted: dict[int, tuple[int, tuple[int, int]]] = {}
        for i in range(options.prompts):
            label, (height, width) = i % len(NAMES), drawn_size("prompt", i)
            caption = PARAPHRASES[i // len(NAMES) % len(PARAPHRASES)].format(NAMES[label], width, height)
            request = Request(
                Document((Text(caption),), name=caption),
                seed=i,
                max_tokens=1,
                max_items=1,
                sampler=asked.sampler,
                guidance=asked.guidance,
                decoding=decoding,
            )
            wanted[engine.add(request)] = (label, (height, width))
        items: dict[int, ItemDone] = {}
        captions: dict[int, str] = {}
        for event in engine.run():
            if isinstance(event, ItemDone):
                items[event.id] = event
            elif isinstance(event, Done):
                captions[event.id] = event.document.name or ""
        right = sum(tuple(items[id].media.tensor().shape[1:]) == size for id, (_, size) in wanted.items() if id in items)
        pictures = torch.stack([resized(items[id].media.tensor(), (8, 8)) for id in items])
        labels = torch.tensor([wanted[id][0] for id in items])
        sizes, seen = Estimate.proportion(right, len(wanted)), accuracy(classifier, pictures, labels)
        fallen = sum(one.fallback is not None for one in items.values())
        print(f"{name}: size as named {sizes}; drawn {len(items)}; fallen back {fallen} {dict(engine.fallbacks)}; digit {seen}")
        report[name] = {"size": str(sizes), "drawn": len(items), "fallbacks": dict(engine.fallbacks), "digit": str(seen)}
        some = list(items)[:60]
        canvas = [_on_canvas(items[id].media.tensor()) for id in some]
        file = asked.folder / ("sizes.png" if name == "most likely" else "sizes-sampled.png")
        image_grid(canvas, [captions[id] for id in some], file, side=100)
    (asked.folder / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    print(f"{report['seconds']:.0f} s of training ({trained:.0f} s of processor); sheets in {asked.folder}")


def _on_canvas(picture: Tensor) -> Tensor:
    """In the upper left of a grey square, so that its size is seen."""
    high, wide = picture.shape[1:]
    return F.pad(picture, (0, max(SIZES) - wide, 0, max(SIZES) - high), value=0.2)


if __name__ == "__main__":
    main()
