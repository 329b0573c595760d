"""Commands as they are typed, and settings that make a training short."""

import pytest

from transfusion.cli import main

SHORT = "--trainer.steps 4 --checkpoint.every 2 --model.transformer.width 32 --model.transformer.depth 1 --model.transformer.num-heads 2 --packing.rows 2 --optimizer.warmup 1 --dtype fp32 --device cpu"
"""4 steps of a network of one block."""
QUICKSTART = f"{SHORT} --trainer.sample-every 2 --report.images 20 --report.readings 10 --sampler.num-steps 2"
"""The same with samples on the way, and a short report."""


def command(line: str) -> int:
    """Run a command line; its exit code."""
    with pytest.raises(SystemExit) as ended:
        main(line.split())
    return int(ended.value.code or 0)
