"""How cost grows: training against tokens packed in a step, decoding against the length of what stands before.

    python benchmarks/growth.py [--json F] [--png F]

Documents stay short while the batch grows, so the cost of a token should stay flat. Each point is a process of its own, with
its peak memory.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

PACKED = (1024, 2048, 4096, 8192, 16384)
PREFIX = (128, 256, 512, 1024, 2048, 4096)


def timed(call: Callable[[], object]) -> float:
    """Median of five calls, after one for warming up."""
    times = []
    for _ in range(6):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return median(times[1:])


def point(kind: str, amount: int, dtype: str) -> dict[str, float]:
    """Measured in this process."""
    import machine
    from work import documents, num_tokens, ours

    if kind == "train":
        docs: list[Any] = []
        pool = [doc for doc in documents("ragged") if sum(p.shape[-1] for p in doc if p.ndim == 1) <= 200]
        while num_tokens(docs) < amount:
            docs.append(pool[len(docs) % len(pool)])
        cost = timed(ours("growth", 1, "256x4", dtype, docs=docs).call) / num_tokens(docs)
    else:  # 129 tokens less 1 token: what stands before is run once in both
        many, one = (ours("decode", 1, "256x4", dtype, prefix=amount, context=amount + 160, tokens=n) for n in (129, 1))
        cost = (timed(many.call) - timed(one.call)) / 128
    return {"amount": amount, "seconds_per_token": cost, "memory": machine.memory()}


def main() -> None:
    """Measure, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/growth.json"))
    parser.add_argument("--png", type=Path, default=Path("benchmarks/results/growth.png"))
    options = parser.parse_args()
    found: dict[str, list[dict[str, float]]] = {}
    for kind, amounts in (("train", PACKED), ("decode", PREFIX)):
        found[kind] = []
        for amount in amounts:
            command = [sys.executable, "-W", "ignore", __file__, "--point", kind, str(amount), options.dtype]
            one = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
            found[kind].append(one)
            cost = f"{one['seconds_per_token'] * 1e3:8.3f} ms a token"
            print(f"{kind:<7} {amount:>6} tokens {cost} {one['memory'] / 1e9:6.2f} GB", flush=True)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(found, indent=1) + "\n")

    draw(found, options.png)


def draw(found: dict[str, list[dict[str, float]]], path: Path) -> None:
    """Cost of a token (line) and peak memory (dashed), for training and decoding."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    names = {"train": "tokens packed in a training step", "decode": "tokens before the one that is decoded"}
    for axis, (kind, points) in zip(axes, found.items(), strict=True):
        amounts = [int(p["amount"]) for p in points]
        other = axis.twinx()
        for side, name, factor, style in ((axis, "seconds_per_token", 1e3, "o-"), (other, "memory", 1e-9, "s--")):
            values = [p[name] * factor for p in points]
            side.plot(amounts, values, style, color="C0" if side is axis else "gray")
            side.set_ylim(0, 1.15 * max(values))
        axis.set(xscale="log", xlabel=names[kind], ylabel="ms a token", title=kind)
        axis.minorticks_off()
        axis.set_xticks(amounts, [f"{n:,}" for n in amounts])
        other.set_ylabel("peak memory, GB (dashed)")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--point"]:
        print(json.dumps(point(sys.argv[2], int(sys.argv[3]), sys.argv[4])))
    else:
        main()
