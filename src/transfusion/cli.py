"""The command `transfusion`: dispatches to `transfusion.commands`, and turns errors into messages and exit codes.

Exit codes: 0, or 1 for a failed run, 2 for a mistyped command line, 75 for a run that SIGTERM stopped, which is saved and wants
to be started again, 130 for an interruption. Neither the help nor the answer to an unknown command imports torch.
"""

import os
import signal
import sys
from collections.abc import Sequence

from transfusion.commands import COMMANDS, find
from transfusion.config import ConfigError
from transfusion.recipes import RECIPES, check_recipe
from transfusion.train.log import printable
from transfusion.train.stopping import Stopped


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command line; ends the process with its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        code = _run(arguments)
    except ConfigError as error:
        print(f"transfusion: {_short(error)}", file=sys.stderr)
        code = 2
    except (ValueError, OSError, RuntimeError, MemoryError, OverflowError) as error:
        print(f"transfusion: {_short(error)}", file=sys.stderr)
        code = 1
    except Stopped as stopped:
        print(f"transfusion: {stopped}", file=sys.stderr)
        code = 130 if stopped.number == signal.SIGINT else 75
    except KeyboardInterrupt:
        print("transfusion: interrupted; the same command goes on from the last checkpoint, if there is one", file=sys.stderr)
        code = 130
    sys.exit(code)


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_help())
        return 0
    command, *rest = arguments
    if command in ("train", "config") and rest and not rest[0].startswith("-"):
        check_recipe(rest[0], *(("vae", "vq", "classifier") if command == "train" else ()))
    if command == "--version":
        from importlib.metadata import version

        print(version("transfusion-kit"))
        return 0
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and (command != "train" or rest[:1] == ["classifier"]):
        raise ConfigError("only the training of recipes and autoencoders runs in several processes: leave out torchrun")
    return find(command)(rest, _log)


def _short(error: BaseException, most: int = 5000) -> str:
    """The message of an error, as a terminal may show it."""
    return printable(str(error)[:most]) or type(error).__name__


def _log(line: str) -> None:
    print(printable(line), flush=True)


def _help() -> str:
    commands = "\n".join(f"  {name:<11} {summary}" for name, summary in COMMANDS.items())
    recipes = "\n".join(f"  {name:<11} {summary}" for name, summary in RECIPES.items())
    return f"""usage: transfusion COMMAND ...

One transformer that reads and writes documents of text and images.

{commands}

recipes:
{recipes}

`transfusion COMMAND --help` has its options. Start with: transfusion quickstart"""


if __name__ == "__main__":
    main()
