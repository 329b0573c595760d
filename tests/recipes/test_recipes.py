"""Recipes: their table, and documents without anything that is held out."""

import ast
from pathlib import Path

import pytest

import transfusion.recipes
from transfusion.data.sources.scenes import KINDS, LazyScene, combined, is_held_out
from transfusion.evaluation.suite import class_named
from transfusion.recipes import RECIPES, digits, find, scenes
from transfusion.recipes.digits import NAMES
from transfusion.run.recipe import Recipe


def test_the_table_has_each_recipe_with_the_first_line_of_its_module() -> None:
    folder = Path(transfusion.recipes.__file__).parent
    summaries = {p.stem: ast.get_docstring(ast.parse(p.read_text())) for p in folder.glob("*.py") if p.stem != "__init__"}
    assert {name: (text or "").splitlines()[0] for name, text in summaries.items()} == RECIPES
    for name in RECIPES:
        assert isinstance(find(name), Recipe) and find(name).run().recipe == name


def test_held_out_digits_are_never_trained_on() -> None:
    trained = {d.media[0].tensor().numpy().tobytes() for d in digits.documents()}
    pictures, labels = digits.labelled(held_out=True)
    assert len(trained) == 1437 and len(pictures) == 360 and len(set(labels.tolist())) == 10
    assert not [p for p in pictures if p.numpy().tobytes() in trained]
    assert {class_named(d.text, NAMES) for d in digits.documents()} == set(range(10))


def test_documents_are_without_what_is_held_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenes, "COUNTS", dict.fromkeys(KINDS, 20))
    documents = scenes.documents()
    assert len(documents) == 120 == len({d.name for d in documents})
    for document in documents:
        picture = document.media[0].values
        assert isinstance(picture, LazyScene) and picture.load().shape == picture.shape
        assert document.text == picture.scene.captions[0]
        assert not [c for c in combined(picture.scene) if is_held_out(*c)]
