"""Draw the training curves of runs.

usage: transfusion plot RUN ... [--metric NAME ...] [--out FILE.png]
"""

from transfusion.evaluation.curves import Plot
from transfusion.run.command_line import parse, split_positional
from transfusion.train.log import LogFn


def run(arguments: list[str], log: LogFn) -> int:
    """The command."""
    missing = "plot needs run folders first: transfusion plot RUN ... [--metric NAME ...] [--out FILE.png]"
    folders, rest = split_positional(arguments, missing, __doc__)
    log(f"curves: {parse(Plot(), rest, 'transfusion plot RUN ...').draw(folders)}")
    return 0
