"""This package and transfusion-pytorch on the same work, in turns, each in a process of its own.

    python benchmarks/versus_peer.py                       everything (long: the peer's ragged step takes minutes)
    python benchmarks/versus_peer.py --only uniform draw-1 --dtypes fp32 --repeats 3 --json benchmarks/results/some.json

Needs the extra `bench`. Prints medians, ratios, the share of the measured matmul peak that each reaches, and each one's peak
memory.
"""

import argparse
import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import IO, Any

sys.path.insert(0, str(Path(__file__).parent))

WORK = {
    "uniform": ("uniform", 1),
    "ragged": ("ragged", 1),
    "decode-1": ("decode", 1),
    "decode-4": ("decode", 4),
    "draw-1": ("draw", 1),
    "draw-4": ("draw", 4),
}
EQUAL_PARAMETERS = ("uniform", "draw-1", "draw-4")


@dataclass(frozen=True)
class Measured:
    """One library on one workload."""

    seconds: float
    amount: float
    flops: float
    weight_bytes: int
    parameters: int
    memory: float
    """Highest resident memory of its process (on a GPU: allocated there), bytes."""


class Worker:
    """A library on one workload, in a process that waits for its turns."""

    def __init__(self, *words: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", __file__, "--worker", *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.times: list[float] = []
        self.about = self._answer()

    def _answer(self) -> dict[str, Any]:
        out: IO[str] | None = self.process.stdout
        assert out is not None
        for line in out:
            if line.startswith("{"):
                return json.loads(line)
        raise RuntimeError(f"the worker ended with {self.process.wait()}")

    def _say(self, word: str) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()
        return self._answer()

    def turn(self) -> None:
        """One repetition."""
        self.times.append(self._say("go")["seconds"])

    def end(self) -> Measured:
        """What came out."""
        memory = self._say("end")["memory"]
        self.process.wait()
        return Measured(median(self.times), **self.about, memory=memory)


def work(library: str, name: str, size: str, dtype: str) -> None:
    """A worker's life."""
    import torch

    import machine
    from work import LIBRARIES

    workload, batch = WORK[name]
    job = LIBRARIES[library](workload, batch, size, dtype)

    def once() -> float:
        began = time.perf_counter()
        job.call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter() - began

    once()
    about = {k: v for k, v in vars(job).items() if k != "call"}
    print(json.dumps(about), flush=True)
    for line in sys.stdin:
        if line.strip() == "end":
            print(json.dumps({"memory": machine.memory()}), flush=True)
            return
        print(json.dumps({"seconds": once()}), flush=True)


def compare(name: str, size: str, dtype: str, repeats: int) -> dict[str, Measured]:
    """Both libraries in turns. On one processor they never compute at the same time."""
    workers = {library: Worker(library, name, size, dtype) for library in ("ours", "peer")}
    for _ in range(repeats):
        for worker in workers.values():
            worker.turn()
    return {library: worker.end() for library, worker in workers.items()}


def main() -> None:
    """Measure, print, keep."""
    import torch

    import machine

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=WORK, default=list(WORK))
    parser.add_argument(
        "--sizes", nargs="+", choices=("equal width", "equal parameters"), default=["equal width", "equal parameters"]
    )
    parser.add_argument("--dtypes", nargs="+", choices=("fp32", "bf16"), default=["fp32", "bf16"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    peaks = {"fp32": machine.peak(torch.float32), "bf16": machine.peak(torch.bfloat16)}
    read = {"fp32": machine.bandwidth(torch.float32), "bf16": machine.bandwidth(torch.bfloat16)}
    print(machine.describe())
    for dtype in peaks:
        print(f"{dtype}: matmul peak {peaks[dtype] / 1e9:,.0f} GFLOP/s, weights read at {read[dtype] / 1e9:.1f} GB/s")
    rows = []
    print(f"\n{'work':<10} {'size':<17} {'type':<5} {'ours/s':>10} {'peer/s':>10} {'ratio':>7}", end="")
    print(f" {'of peak':>16} {'memory GB':>16} {'ratio':>6}")
    for dtype in options.dtypes:
        for size in options.sizes:
            for name in options.only:
                if size == "equal parameters" and name not in EQUAL_PARAMETERS:
                    continue
                both = compare(name, size, dtype, options.repeats)
                ours, theirs = both["ours"], both["peer"]
                rate = {k: m.amount / m.seconds for k, m in both.items()}
                share = {k: m.flops / m.seconds / peaks[dtype] for k, m in both.items()}
                row = {"work": name, "size": size, "dtype": dtype, "ratio": rate["ours"] / rate["peer"]}
                row |= {"memory_ratio": theirs.memory / ours.memory, "share_of_peak": share}
                row |= {library: asdict(m) for library, m in both.items()}
                if name == "decode-1":
                    row["share_of_memory_limit"] = rate["ours"] * ours.weight_bytes / read[dtype]
                rows.append(row)
                limit = f"  {row['share_of_memory_limit']:.0%} of the memory limit" if "share_of_memory_limit" in row else ""
                print(
                    f"{name:<10} {size:<17} {dtype:<5} {rate['ours']:>10.3g} {rate['peer']:>10.3g} {row['ratio']:>6.1f}x "
                    f"{share['ours']:>7.0%} {share['peer']:>8.0%} {ours.memory / 1e9:>7.2f} {theirs.memory / 1e9:>8.2f} "
                    f"{row['memory_ratio']:>5.1f}x{limit}",
                    flush=True,
                )
                if options.json:
                    options.json.parent.mkdir(parents=True, exist_ok=True)
                    found = {"machine": machine.describe(), "peak": peaks, "bandwidth": read, "rows": rows}
                    options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        work(*sys.argv[2:])
    else:
        main()
