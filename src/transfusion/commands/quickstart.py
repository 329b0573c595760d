"""Train on handwritten digits, draw and read them, report (about 3 minutes).

usage: transfusion quickstart [--out FOLDER] [--section.name VALUE ...]

The same as `transfusion train digits --out quickstart`.
"""

from transfusion.commands.train import train_recipe
from transfusion.recipes import digits
from transfusion.run.command_line import flag, parse_run
from transfusion.train.log import LogFn


def run(arguments: list[str], log: LogFn) -> int:
    """The command."""
    out = [] if any(flag(word) == "out" for word in arguments) else ["--out", "quickstart"]
    return train_recipe(parse_run(digits.run(), [*out, *arguments], "transfusion quickstart"), log)
