"""Commands: a module each, with `run(arguments, log) -> exit code`. Names and summaries are read without importing torch."""

from collections.abc import Callable
from importlib import import_module

from transfusion.config import ConfigError, nearest

COMMANDS = {
    "quickstart": "Train on handwritten digits, draw and read them, report (about 3 minutes).",
    "train": "Train a recipe, an autoencoder or a classifier of images.",
    "generate": "Continue prompts with text, images and sounds.",
    "evaluate": "Measure a model on held-out data.",
    "reconstruct": "Measure an autoencoder on held-out images.",
    "data": "Encode pictures as latents once, or measure an autoencoder's latents.",
    "results": "Write tables of evaluation records.",
    "plot": "Draw the training curves of runs.",
    "config": "Print all settings of a recipe as YAML.",
    "doctor": "Describe this machine: devices, precision, versions.",
}
"""Name -> first line of the module's docstring."""


def find(name: str) -> Callable[[list[str], Callable[[str], None]], int]:
    """A command by name: it takes arguments and a log, and returns an exit code.

    Raises:
        ConfigError: there is none; the message has the nearest name.
    """
    if name not in COMMANDS:
        raise ConfigError(f"no command {name!r}{nearest(name, COMMANDS)}")
    return import_module(f"transfusion.commands.{name}").run
