"""Edits: how soon a picture is copied, inverted or mirrored that was never seen, by the order of coordinates.

    python benchmarks/copying.py [--order grid reset raster] [--steps 800] [--json FILE]

Documents of a handwritten digit as context, an instruction with a varying number of polite words, and the digit as the
instruction wants it. A line for each order: mean squared error of what is drawn for held-out digits, and for noise, of which no
digit taught anything; beside them the pictures' own variance, which is the error of a mean picture. Settings and steps are
equal.
"""

import argparse
import json
import random
import time
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from transfusion.api import Transfusion
from transfusion.data.document import Document, Media, Text
from transfusion.data.loader import Loader, PackingConfig
from transfusion.data.sources.digits import read_digits
from transfusion.data.tokenize import Coordinates
from transfusion.data.transforms import ConditionDropout, DocumentTransform
from transfusion.data.vocabulary import Bytes, Vocabulary
from transfusion.diffusion.guidance import Guidance
from transfusion.diffusion.sampler import Euler
from transfusion.modality import IMAGE, Modality
from transfusion.model.network import ModelConfig
from transfusion.model_folder import TransfusionConfig
from transfusion.nn.config import TransformerConfig
from transfusion.nn.ema import EMA
from transfusion.train.device import pick_dtype
from transfusion.train.optimizer import MuonConfig

Order = Literal["grid", "reset", "raster"]
AXES: dict[str, int] = {"grid": 2, "reset": 3, "raster": 1}
EDITS = {"copy": lambda x: x, "invert": torch.neg, "mirror": lambda x: x.flip(-1)}
CPU = torch.device("cpu")


def edits(images: Tensor, count: int, seed: int) -> list[Document]:
    """Documents of a picture, an instruction and its target."""
    chosen, documents = random.Random(seed), []
    for _ in range(count):
        name, image = chosen.choice(list(EDITS)), images[chosen.randrange(len(images))]
        words = "please " * chosen.randint(0, 3) + "now " * chosen.randint(0, 3) + name
        parts = (Media(image, use="context"), Text(words, loss=False), Media(EDITS[name](image)))
        documents.append(Document(parts, name=name))
    return documents


def train(order: Order, steps: int, dtype: torch.dtype) -> Transfusion:
    """A model of edits of the training digits."""
    image = Modality(IMAGE, channels=1, shape=(8, 8), patch=(2, 2))
    transformer = TransformerConfig(width=128, depth=4, num_heads=4)
    network = ModelConfig((image,), transformer, media_weight=3.0, coordinates=Coordinates(order, AXES[order]))
    torch.manual_seed(0)
    vocabulary, dropout = Vocabulary(Bytes().build([]), network.modalities), ConditionDropout(text=0.0)
    model = Transfusion(TransfusionConfig(network, dropout, Euler(20), Guidance(1.0)), vocabulary)
    loader = Loader(
        edits(read_digits(held_out=False).images, 20_000, 0),
        transform=DocumentTransform(0.0, condition_dropout=dropout),
        packing=PackingConfig(1024, 1, 1024),
        vocabulary=vocabulary,
        coordinates=network.coordinates,
        seed=0,
    )
    muon = MuonConfig(lr=3e-3, warmup=30, weight_decay=0.05)
    optimizer, ema = muon.build(model), EMA(model, 0.99)
    for step, (batch,) in zip(range(steps), loader.batches(), strict=False):
        for group in optimizer.param_groups:
            group["lr"] = muon.rate(step, steps) * group.get("lr_scale", 1.0)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            losses = model(batch)
        model.total(losses).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ema.update(step)
    ema.write()
    return model.eval()


def errors(model: Transfusion, images: Tensor, count: int, dtype: torch.dtype) -> dict[str, float]:
    """Mean squared error of each edit of pictures, and their variance."""
    documents = edits(images, count, 1)
    drawn = model.generate([Document(d.segments[:2]) for d in documents], force=IMAGE, max_tokens=0, seed=1, dtype=dtype)
    found: dict[str, list[float]] = {name: [] for name in EDITS}
    for document, result in zip(documents, drawn, strict=True):
        found[document.name].append(float((result.media[-1].tensor() - document.media[-1].tensor()).square().mean()))
    return {name: sum(values) / len(values) for name, values in found.items()} | {"variance": float(images.var())}


def main() -> None:
    """Train and measure each order."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--order", nargs="+", default=list(get_args(Order)), choices=get_args(Order))
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--count", type=int, default=90)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    dtype, rows = pick_dtype("auto", CPU), []
    noise = torch.rand(200, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for order in options.order:
        began = time.process_time()
        model = train(order, options.steps, dtype)
        seconds = round(time.process_time() - began)
        digits = errors(model, read_digits(held_out=True).images, options.count, dtype)
        rows.append({"order": order, "digits": digits, "noise": errors(model, noise, options.count, dtype), "seconds": seconds})
        print(json.dumps(rows[-1]), flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
