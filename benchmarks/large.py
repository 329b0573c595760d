"""The paper's sizes at sequence 4096, for a GPU: training against the measured matmul peak, decoding against memory.

    python benchmarks/large.py [--sizes 0.16B 0.76B 1.4B] [--length 4096] [--peer] [--json benchmarks/results/large.json]

A step is one row of documents of 32 text tokens and a 16 x 16 x 16 latent, in bf16. With --peer, transfusion-pytorch of the
same width and depth takes the same documents in turn. A size may also be WIDTHxDEPTHxHEADS.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))


def main() -> None:
    """Measure and print."""
    import torch

    import machine
    import work
    from transfusion.run.presets import PAPER_SIZES

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["0.16B", "0.76B", "1.4B"])
    parser.add_argument("--length", type=int, default=4096)
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="bf16")
    parser.add_argument("--peer", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    kind = torch.bfloat16 if options.dtype == "bf16" else torch.float32
    peak, read = machine.peak(kind), machine.bandwidth(kind)
    print(machine.describe())
    print(f"{options.dtype}: matmul peak {peak / 1e12:,.2f} TFLOP/s, weights read at {read / 1e9:,.0f} GB/s")
    print(
        f"{'size':<10} {'parameters':>13} {'tokens/s':>10} {'of peak':>8} {'peer':>10} {'ratio':>6} "
        f"{'decode/s':>9} {'of memory':>10}"
    )
    docs: list[Any] = []
    while work.num_tokens(docs) + 32 + 256 <= options.length:
        docs.append(work.documents("uniform")[len(docs) % 8])
    rows = []
    for size in options.sizes:
        if size in PAPER_SIZES:
            shape = (PAPER_SIZES[size].width, PAPER_SIZES[size].depth, PAPER_SIZES[size].num_heads)
        else:
            shape = tuple(int(n) for n in size.split("x"))
        width, depth, heads = shape
        job = work.ours("growth", 1, f"{width}x{depth}", options.dtype, docs=docs, heads=heads, context=options.length)
        seconds = machine.seconds(job.call)
        row = {"size": size, "parameters": job.parameters, "tokens_per_second": job.amount / seconds}
        row["share_of_peak"] = job.flops / seconds / peak
        del job
        if options.peer:
            other = work.peer("growth", 1, size, options.dtype, docs=docs, width=width, depth=depth, heads=heads)
            row["peer"] = other.amount / machine.seconds(other.call)
            row["ratio"] = row["tokens_per_second"] / row["peer"]
            del other
        job = work.ours("decode", 1, f"{width}x{depth}", options.dtype, heads=heads)
        row["decoded_per_second"] = job.amount / machine.seconds(job.call)
        row["share_of_memory_limit"] = row["decoded_per_second"] * job.weight_bytes / read
        rows.append(row)
        peer = f"{row['peer']:>10,.0f} {row['ratio']:>5.1f}x" if options.peer else f"{'':>10} {'':>6}"
        print(
            f"{size:<10} {row['parameters']:>13,} {row['tokens_per_second']:>10,.0f} {row['share_of_peak']:>8.0%} {peer} "
            f"{row['decoded_per_second']:>9,.1f} {row['share_of_memory_limit']:>10.0%}",
            flush=True,
        )
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        found = {"machine": machine.describe(), "peak": peak, "bandwidth": read, "rows": rows}
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
