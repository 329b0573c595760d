"""Recipes: one module a family of runs. `find` gives one by name; `run_recipe` does all of it."""

from collections.abc import Callable
from dataclasses import dataclass

from transfusion.config import ConfigError, nearest
from transfusion.recipes import digits, fashion, pictures, scenes
from transfusion.recipes.run import LogFn, Run


@dataclass(frozen=True)
class Recipe:
    """A family of runs.

    Args:
        summary: one line for `--help`.
        run: its settings.
        carry_out: does a run.
    """

    summary: str
    run: Callable[[], Run]
    run_recipe: Callable[[Run, LogFn], None]


RECIPES = {
    "digits": Recipe(
        "handwritten digits, 8 x 8, that come with the package",
        digits.run,
        lambda r, log: digits.Digits(r).run_recipe(log),
    ),
    "fashion": Recipe(
        "Fashion-MNIST, 28 x 28, from its idx files (--data)",
        fashion.run,
        lambda r, log: fashion.Fashion(r).run_recipe(log),
    ),
    "scenes": Recipe("scenes of coloured digits, 16 x 16, made on the spot", scenes.run, scenes.run_recipe),
    "pictures": Recipe("your own captioned pictures (--data)", pictures.run, pictures.run_recipe),
}
CLASSES = {"digits": digits.Digits, "fashion": fashion.Fashion}
"""Recipes whose captions name classes."""


def find(name: str) -> Recipe:
    """A recipe by name. Raises ConfigError, naming the nearest, if there is none."""
    if name not in RECIPES:
        raise ConfigError(f"no recipe {name!r}{nearest(name, RECIPES)}")
    return RECIPES[name]
