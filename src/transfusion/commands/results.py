"""Write tables of evaluation records.

usage: transfusion results FOLDER ... [--out FILE.md] [--readme README.md]
"""

from transfusion.evaluation.results import Results
from transfusion.run.command_line import parse, split_positional
from transfusion.train.log import LogFn


def run(arguments: list[str], log: LogFn) -> int:
    """The command."""
    missing = "results needs folders with records first: transfusion results runs [--out FILE.md]"
    folders, rest = split_positional(arguments, missing, __doc__)
    for path in parse(Results(), rest, "transfusion results FOLDER ...").write(folders):
        log(f"tables: {path}")
    return 0
