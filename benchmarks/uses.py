"""Items that are drawn and read: how well each is, by its place, for shares of documents in which such items stand twice.

    python benchmarks/uses.py [--dual 0 0.5 1] [--patch 2] [--steps 700] [--order grid]

Handwritten digits in three kinds of documents: three digits, each behind its name (drawn first, in the middle, last); three
digits, each before its name (read); and a digit that is drawn again behind "again" (an item read by an item). Steps hold
equally many tokens, so runs of equal steps cost about the same; documents with two copies of an item fill more of them. A
line for each share: documents a step; agreement with their names of the digits drawn at each place, behind those drawn
before; reading at each place; denoising error at each place by time, behind clean items.
"""

import argparse
import json
import math
from dataclasses import replace

import torch

from transfusion import rng
from transfusion.api import Transfusion
from transfusion.data.document import Document, Media, Text
from transfusion.data.loader import Loader, PackingConfig
from transfusion.data.sources.digits import NAMES, Digits, read_digits
from transfusion.data.tokenize import Coordinates
from transfusion.data.transforms import ConditionDropout, DocumentTransform
from transfusion.data.vocabulary import BPE, Vocabulary
from transfusion.diffusion.guidance import Guidance
from transfusion.diffusion.sampler import Euler
from transfusion.evaluation.classifier import SmallClassifier
from transfusion.modality import IMAGE, Modality
from transfusion.model.network import ModelConfig
from transfusion.model_folder import TransfusionConfig
from transfusion.nn.config import TransformerConfig
from transfusion.nn.ema import EMA
from transfusion.train.device import pick_dtype

KINDS = {"draw": 4000, "read": 2400, "again": 1600}
CPU = torch.device("cpu")


def document(digits: Digits, kind: str, number: int) -> Document:
    """A document of a kind; its digits are drawn by its number."""

    def pick(place: int, label: int | None = None) -> tuple[Media, Text, int]:
        of_label = [i for i, other in enumerate(digits.labels.tolist()) if label in (None, other)]
        index = of_label[int(rng.uniform("uses", kind, number, place) * len(of_label))]
        found = int(digits.labels[index])
        return Media(digits.images[index]), Text(NAMES[found]), found

    if kind == "again":
        first, _, label = pick(0)
        return Document((first, Text("again"), pick(1, label)[0]), name=NAMES[label])
    picked = [pick(place) for place in range(3)]
    return Document(tuple(part for item, name, _ in picked for part in ((name, item) if kind == "draw" else (item, name))))


def train(
    dual: float, patch: int, steps: int, dtype: torch.dtype, coordinates: Coordinates = Coordinates()
) -> tuple[Transfusion, float]:
    """A model trained on all kinds, and documents a step."""
    digits = read_digits(held_out=False)
    corpus = [document(digits, kind, n) for kind, count in KINDS.items() for n in range(count)]
    image = Modality(IMAGE, channels=1, shape=(8, 8), patch=(patch, patch))
    transformer = TransformerConfig(width=128, depth=4, num_heads=4)
    network = ModelConfig((image,), transformer, media_weight=3.0, context_length=512, coordinates=coordinates)
    dropout = ConditionDropout(text=0.1)
    torch.manual_seed(0)
    vocabulary = Vocabulary(BPE(300).build([*NAMES, "again"]), network.modalities)
    model = Transfusion(TransfusionConfig(network, dropout, Euler(25, shift=2.0), Guidance(2.0)), vocabulary)
    loader = Loader(
        corpus,
        transform=DocumentTransform(0.0, dual=dual, condition_dropout=dropout),
        packing=PackingConfig(512, 4, 1024),
        vocabulary=vocabulary,
        coordinates=network.coordinates,
        seed=0,
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.95), weight_decay=0.05)
    ema, seen = EMA(model, 0.998), 0
    for step, (batch,) in zip(range(steps), loader.batches(), strict=False):
        factor = min(1.0, (step + 1) / 50) * (0.525 + 0.475 * math.cos(math.pi * step / steps))
        optimizer.param_groups[0]["lr"] = 3e-3 * factor
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            losses = model(batch)
        model.total(losses).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ema.update(step)
        seen += len(batch.names)
    ema.write()
    return model.eval(), seen / steps


@torch.no_grad()
def measure(model: Transfusion, count: int, dtype: torch.dtype) -> dict[str, object]:
    """Agreement, reading and errors of held-out documents."""
    held_out, trained = read_digits(held_out=True), read_digits(held_out=False)
    judge = SmallClassifier(trained.images, trained.labels)

    def agreement(drawn: list[Document], labels: list[int]) -> float:
        images = torch.stack([one.media[-1].tensor() for one in drawn])
        return (judge.classify(images) == torch.tensor(labels)).float().mean().item()

    found: dict[str, object] = {}
    documents, prompts, drawn = [document(held_out, "draw", 10_000 + n) for n in range(count)], [Document(())] * count, []
    for place in range(3):
        prompts = [Document((*p.segments, d.segments[2 * place])) for p, d in zip(prompts, documents, strict=True)]
        prompts = model.generate(prompts, force=IMAGE, max_tokens=0, seed=place, dtype=dtype)
        drawn.append(agreement(prompts, [NAMES.index(str(d.segments[2 * place].content)) for d in documents]))  # type: ignore[union-attr]
    found["drawn"] = drawn
    again = [document(held_out, "again", 10_000 + n) for n in range(count)]
    copies = model.generate([Document(d.segments[:2]) for d in again], force=IMAGE, max_tokens=0, seed=9, dtype=dtype)
    found["again"] = agreement(copies, [NAMES.index(d.name) for d in again])
    reading = [document(held_out, "read", 10_000 + n) for n in range(3 * count)]
    read = []
    for place in range(3):
        before = [Document(d.segments[: 2 * place + 1]) for d in reading]
        written = model.generate(before, max_tokens=6, max_items=1, dtype=dtype)
        said = [next((s.content for s in w.segments[2 * place + 1 :] if isinstance(s, Text)), "") for w in written]
        read.append(sum(a == d.segments[2 * place + 1].content for a, d in zip(said, reading, strict=True)) / len(reading))  # type: ignore[union-attr]
    found["read"] = read
    for t in (0.4, 0.8, 0.95):
        errors = []
        for place in range(3):
            clean = [
                [replace(s, use="read") if isinstance(s, Media) else s for s in d.segments[: 2 * place + 1]] for d in documents
            ]
            last = [replace(d.media[place], times=(t, t)) for d in documents]
            losses = model(model.batch([Document((*c, item)) for c, item in zip(clean, last, strict=True)]))
            errors.append(losses.media.value.item())
        found[f"error at {t}"] = errors
    return found


def main() -> None:
    """Train and measure each share."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dual", type=float, nargs="+", default=[0.0, 0.5, 1.0])
    parser.add_argument("--patch", type=int, default=2)
    parser.add_argument("--steps", type=int, default=700)
    parser.add_argument("--order", default="grid", choices=["grid", "reset"])
    parser.add_argument("--count", type=int, default=100)
    options = parser.parse_args()
    torch.set_num_threads(1)
    dtype = pick_dtype("auto", CPU)
    for dual in options.dual:
        coordinates = Coordinates(options.order, 2 if options.order == "grid" else 3)
        model, a_step = train(dual, options.patch, options.steps, dtype, coordinates)
        line = {
            "dual": dual,
            "order": options.order,
            "patch": options.patch,
            "documents a step": a_step,
            **measure(model, options.count, dtype),
        }
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
