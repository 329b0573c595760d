"""Print all settings of a recipe as YAML.

usage: transfusion config RECIPE [--preset NAME] [--size NAME] [--section.name VALUE ...]
"""

from transfusion import config
from transfusion.commands.train import recipe_settings
from transfusion.train.log import LogFn


def run(arguments: list[str], log: LogFn) -> int:
    """The command."""
    settings = recipe_settings("config", arguments, __doc__)
    if settings is not None:
        print(config.to_yaml(settings), end="")
    return 0
