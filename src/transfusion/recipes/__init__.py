"""Recipes: a module each, which holds a `RECIPE`. The names and summaries are read without importing torch."""

from importlib import import_module
from typing import TYPE_CHECKING

from transfusion.config import ConfigError, nearest

if TYPE_CHECKING:
    from transfusion.run.recipe import Recipe

RECIPES = {
    "digits": "Handwritten digits, 8 x 8 grey, that come with a dependency.",
    "mnist": "MNIST, 28 x 28 grey, from its four idx files (--data).",
    "fashion": "Fashion-MNIST, 28 x 28 grey, from its four idx files (--data).",
    "alternating": "Labels and their images in turn, two of each in a document, from idx files (--data).",
    "scenes": "Scenes of coloured digits, 16 x 16, composed while they are loaded.",
    "shakespeare": "Shakespeare by character, text alone (--data): a .txt file, whose last tenth is held out.",
    "shakespeare_pictures": "Shakespeare by character together with MNIST's digits, documents of both kinds (--data).",
    "books_text": "Books by chapter, text alone, in a vocabulary of byte pairs (--data): Parquet tables with a column text.",
    "books": "Illustrated books: chapters in which texts and pictures alternate (--data), started from `books_text` (--init).",
    "actions": "Instructions and pictures, and paths to the mark that is named: actions as a modality, composed on the spot.",
    "clips": "Clips of moving digits, 4 frames of 16 x 16 grey, composed on the spot: a modality of three axes.",
    "speech": "Spoken digits, or other words: sounds of a second with their captions (--data).",
    "emoji": "Emoji, 64 x 64 in colour, with their names (--data); some tones of skin and some families are held out.",
    "emoji_edit": "Edits of emoji: a picture, an instruction, the edited picture (--data), by fine-tuning `emoji` (--init).",
    "pictures": "Your own captioned images, in colour (--data): a folder, JSONL or Parquet.",
}
"""Name -> first line of the module's docstring."""


def check_recipe(name: str, *others: str) -> None:
    """Raise ConfigError, with the nearest name, for what is neither a recipe nor one of the other names."""
    if name not in (*RECIPES, *others):
        raise ConfigError(f"no recipe {name!r}{nearest(name, (*RECIPES, *others))}")


def find(name: str) -> "Recipe":
    """A recipe by name. Raises ConfigError, with the nearest name, if there is none."""
    check_recipe(name)
    return import_module(f"transfusion.recipes.{name}").RECIPE
