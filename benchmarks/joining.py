"""What it costs an engine that rows join and leave: against fixed batches of the same work, in turns, in processor time.

    OMP_NUM_THREADS=1 python benchmarks/joining.py [--rounds 5] [--dtype bf16]

All keep 64 rows busy for the same number of steps, and read and write the same number of tokens. Fixed: 64 documents begin
together and end together, then the next 64. Staggered: the same documents, but one begins and one ends at every step (of
pictures four). Mixed: prompts of 4 to 28 tokens that write a quarter to seven quarters as much; the longest is what
attention is padded to. Pictures are items of 16 slots under guidance. Printed: text tokens and denoising steps a processor
second, and ratios.
"""

import argparse
import time
from collections.abc import Iterator
from statistics import median

import torch

import machine
from transfusion import rng
from transfusion.api import Transfusion
from transfusion.data.document import Document, Text
from transfusion.data.vocabulary import Bytes, Vocabulary
from transfusion.diffusion.guidance import Guidance
from transfusion.diffusion.sampler import Euler
from transfusion.generate.engine import Engine
from transfusion.generate.state import Denoising, Done, Request, Token
from transfusion.modality import Modality
from transfusion.model.network import ModelConfig
from transfusion.model_folder import TransfusionConfig
from transfusion.nn.config import TransformerConfig

KINDS = "fixed", "staggered", "mixed"
ROWS, PROMPT, LENGTH = 64, 16, {"text": 64, "pictures": 16}


def model(width: int, depth: int) -> Transfusion:
    """Heads of 32, pictures of 16 slots."""
    image = Modality("image", channels=1, shape=(8, 8), patch=(2, 2))
    transformer = TransformerConfig(width=width, depth=depth, num_heads=width // 32)
    torch.manual_seed(0)
    config = TransfusionConfig(ModelConfig((image,), transformer, context_length=256))
    return Transfusion(config, Vocabulary(Bytes().build([]), (image,))).eval()


def request(work: str, prompt: int, length: int) -> Request:
    """A document that reads `prompt` tokens and writes `length` tokens, or an item in `length` steps."""
    document = Document((Text(tuple([65] * (prompt - 1))),))  # and BOS
    if work == "text":
        return Request(document, max_tokens=length, max_items=0, allow_eos=False, guidance=Guidance(1.0))
    return Request(document, max_tokens=0, force="image", sampler=Euler(length), guidance=Guidance(3.0))


def requests(work: str, kind: str) -> Iterator[Request]:
    """Staggered: equal requests, apart from the first ROWS, which end one after the other. Mixed: of all lengths, whose means
    are PROMPT and LENGTH."""
    if kind == "staggered":
        yield from (request(work, PROMPT, 1 + i * LENGTH[work] // ROWS) for i in range(ROWS))
        while True:
            yield request(work, PROMPT, LENGTH[work])
    low, high = LENGTH[work] // 4, LENGTH[work] * 7 // 4
    index = 0
    while True:
        u, v = rng.uniform("joining", index, 0), rng.uniform("joining", index, 1)
        yield request(work, 4 + int(u * 25), low + int(v * (high - low + 1)))
        index += 1


def count(events: list) -> int:
    """Text tokens and denoising steps."""
    return sum(isinstance(event, Token | Denoising) for event in events)


def fixed(engine: Engine, work: str, steps: int) -> float:
    """Advances a processor second of whole batches."""
    began, advances = time.process_time(), 0
    for _ in range(steps // LENGTH[work]):
        for _ in range(ROWS):
            engine.add(request(work, PROMPT, LENGTH[work]))
        advances += sum(count([event]) for event in engine.run())
    return advances / (time.process_time() - began)


def joining(engine: Engine, work: str, steps: int, kind: str) -> float:
    """Advances a processor second where a document begins for each that ends; the first steps, to mix them, are not counted."""
    coming, advances, began = requests(work, kind), 0, 0.0
    for _ in range(ROWS):
        engine.add(next(coming))
    for step in range(-LENGTH[work] * (1 if kind == "staggered" else 2), steps):
        if step == 0:
            began, advances = time.process_time(), 0
        events = engine.step()
        advances += count(events)
        for event in events:
            if isinstance(event, Done):
                engine.add(next(coming))
    seconds = time.process_time() - began
    for id in (*engine._queue, *engine._active):
        engine.cancel(id)
    return advances / seconds


@torch.no_grad()
def main() -> None:
    """Measure in turns, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=128)
    parser.add_argument("--only", nargs="+", choices=LENGTH, default=list(LENGTH))
    parser.add_argument("--size", default="128x4", help="width x depth")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--exact", action="store_true", help="engines whose documents do not depend on their neighbours")
    options = parser.parse_args()
    width, depth = map(int, options.size.split("x"))
    m = model(width, depth)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[options.dtype]
    print(f"{machine.describe()}; width {width}, depth {depth}, {options.dtype}{', exact' * options.exact}")
    for work in options.only:
        slots = ROWS * request(work, 1, 1).cache_slots
        engines = {kind: Engine(m.network, m.vocabulary, cache_slots=slots, dtype=dtype, exact=options.exact) for kind in KINDS}
        rates: dict[str, list[float]] = {kind: [] for kind in KINDS}
        fixed(engines["fixed"], work, options.steps)  # warms up
        for _ in range(options.rounds):
            for kind, engine in engines.items():
                steps = engine, work, options.steps
                rates[kind].append(fixed(*steps) if kind == "fixed" else joining(*steps, kind))
        print(f"{work:<9} {'fixed':<9} {median(rates['fixed']):>7,.0f} a second")
        for kind in KINDS[1:]:
            ratios = [a / b for a, b in zip(rates["fixed"], rates[kind], strict=True)]
            about = f"{median(ratios):.2f} times fixed ({min(ratios):.2f} to {max(ratios):.2f} in {len(ratios)} rounds)"
            print(f"{'':<9} {kind:<9} {median(rates[kind]):>7,.0f} a second, costs {about}", flush=True)


if __name__ == "__main__":
    main()
