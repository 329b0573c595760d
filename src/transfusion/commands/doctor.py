"""Describe this machine: devices, precision, versions.

usage: transfusion doctor
"""

from transfusion.config import ConfigError
from transfusion.run.command_line import HELP
from transfusion.train.device import describe
from transfusion.train.log import LogFn


def run(arguments: list[str], log: LogFn) -> int:
    """The command. Raises ConfigError for any argument."""
    if HELP & set(arguments):
        print((__doc__ or "").strip())
        return 0
    if arguments:
        raise ConfigError(f"doctor takes no arguments, not {arguments[0]!r}")
    for name, text in describe().items():
        log(f"{name:<10} {text}")
    return 0
