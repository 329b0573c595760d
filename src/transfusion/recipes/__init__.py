"""Recipes: one module a family of runs. `find` gives one by name; `carry_out` does all of it."""

from collections.abc import Callable
from dataclasses import dataclass

from transfusion.config import ConfigError, nearest
from transfusion.recipes import digits, fashion, pictures, scenes
from transfusion.recipes.run import Run, Say


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
    carry_out: Callable[[Run, Say], None]


RECIPES = {
    "digits": Recipe(
        "handwritten digits, 8 x 8, that come with the package",
        digits.run,
        lambda r, say: digits.Digits(r).carry_out(say),
    ),
    "fashion": Recipe(
        "Fashion-MNIST, 28 x 28, from its idx files (--data)",
        fashion.run,
        lambda r, say: fashion.Fashion(r).carry_out(say),
    ),
    "scenes": Recipe("scenes of coloured digits, 16 x 16, made on the spot", scenes.run, scenes.carry_out),
    "pictures": Recipe("your own captioned pictures (--data)", pictures.run, pictures.carry_out),
}
CLASSES = {"digits": digits.Digits, "fashion": fashion.Fashion}
"""Recipes whose captions name classes."""


def find(name: str) -> Recipe:
    """A recipe by name. Raises ConfigError, naming the nearest, if there is none."""
    if name not in RECIPES:
        raise ConfigError(f"no recipe {name!r}{nearest(name, RECIPES)}")
    return RECIPES[name]
