"""docs/compat.md: each test and name on it exists, each setting is one, no row is without a test or a reason.
docs/extending.md: the files and tests that it names exist."""

import dataclasses
import importlib
import inspect
import pkgutil
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import transfusion
from transfusion.commands.generate import GenerateOptions
from transfusion.compat import Transfusion
from transfusion.compat.constructor import LEFT_OUT, TRANSFORMER_OPTIONS, configure
from transfusion.recipes import find
from transfusion.run.command_line import choose_kinds, names

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "compat.md").read_text()
OPTIONS, DEFECTS = PAGE.split("\n# Defects of both libraries\n")


def rows(text: str) -> list[list[str]]:
    """The cells of all tables' rows, without heads and rules."""
    lines = text.splitlines()
    found = []
    for i, line in enumerate(lines):
        head = i + 1 < len(lines) and lines[i + 1].startswith("|---")
        if line.startswith("| ") and not head:
            found.append([cell.strip() for cell in line.strip().removeprefix("|").removesuffix("|").split(" | ")])
    return found


def defined(file: str) -> str:
    path = ROOT / file
    return path.read_text() if path.is_file() else ""


@cache
def known() -> dict[str, list[Any]]:
    """Every class, function and constant of the package, by its name."""
    found: dict[str, list[Any]] = {}
    for info in pkgutil.walk_packages(transfusion.__path__, "transfusion."):
        module = importlib.import_module(info.name)
        for name, value in vars(module).items():
            found.setdefault(name, []).append(value)
    return found


def has(value: Any, attribute: str) -> bool:
    fields = [f.name for f in dataclasses.fields(value)] if dataclasses.is_dataclass(value) else []
    if hasattr(value, attribute) or attribute in fields:
        return True
    return inspect.isclass(value) and bool(re.search(rf"self\.(\w+, self\.)*{attribute}\b", inspect.getsource(value)))


def exists(name: str) -> bool:
    """Whether a name as the page writes it is one: see the page's second paragraph."""
    if found := re.fullmatch(r"transformer=dict\((\w+)=\)", name):
        fields = {
            f.name for kind in known()["TransformerConfig"] + known()["AttentionConfig"] for f in dataclasses.fields(kind)
        }
        return found[1] in {*TRANSFORMER_OPTIONS, *fields, "dim", "dim_head", "heads", "attn_kwargs", "ff_kwargs"}
    if found := re.fullmatch(r"Transfusion\((\w+)=\)", name):
        return found[1] in inspect.signature(configure).parameters
    if found := re.fullmatch(r"model\((\w+)=\)", name):
        return found[1] in inspect.signature(Transfusion.forward).parameters
    if found := re.fullmatch(r"model\.(\w+)\((\w+)=\)", name):
        return found[2] in inspect.signature(getattr(Transfusion, found[1])).parameters
    if name == "model":
        return True
    owner, _, attribute = name.partition(".")
    if owner == "model":
        return has(Transfusion, attribute)
    return owner in known() and (not attribute or any(has(value, attribute) for value in known()[owner]))


def test_every_test_that_is_named_exists() -> None:
    named = re.findall(r"`([\w/]+\.py)::(test_\w+)`", PAGE)
    assert len(named) > 300 and "`??" not in PAGE
    for file, test in named:
        assert re.search(rf"^def {test}\(", defined(file), re.M), f"{file}::{test}"


def test_no_row_is_without_a_test_or_a_reason() -> None:
    for cells in rows(OPTIONS):
        assert len(cells) == 4, cells
        assert "::test_" in cells[3] or "left out: because" in cells[1], cells
    for cells in rows(DEFECTS):
        assert len(cells) == 3 and "::test_" in cells[2], cells


def test_every_name_exists() -> None:
    """In the second column of the options, whatever stands in backticks."""
    names = {name for cells in rows(OPTIONS) for name in re.findall(r"`([^`]+)`", cells[1])}
    assert len(names) > 150
    assert not sorted(name for name in names if not exists(name))


@pytest.mark.parametrize(
    "wrong",
    [
        "TransformerConfig.dpeth",
        "TransformerConfg",
        "Transfusion(dim=)",
        "model(time=)",
        "model.sampel",
        "transformer=dict(x=)",
    ],
)
def test_names_that_are_none_are_found(wrong: str) -> None:
    assert not exists(wrong)


def test_every_setting_exists() -> None:
    """In the third column: settings of a recipe, or of `transfusion generate`."""
    count = 0
    for cells in rows(OPTIONS):
        for line in re.findall(r"`([^`]+)`", cells[2]):
            words = line.split()
            missing = []
            for settings in (find("digits").run(), GenerateOptions()):
                try:
                    chosen, rest = choose_kinds(settings, list(words))
                except ValueError:
                    missing.append(words)
                    continue
                asked = {w.removeprefix("--").replace("-", "_") for w in rest if w.startswith("--")}
                missing.append(asked - {*names(chosen)})
            assert not all(missing), line
            count += 1
    assert count > 50


def test_nothing_is_left_off_the_page() -> None:
    """Every word of the constructor, of the call, of the methods that sample, and what is left out; every numbered defect."""
    for word in (*inspect.signature(configure).parameters, *LEFT_OUT):
        assert f"`{word}`" in OPTIONS or f"Transfusion({word}=)" in OPTIONS, word
    for word in list(inspect.signature(Transfusion.forward).parameters)[2:]:
        assert f"model({word}=)" in OPTIONS, word
    for method in ("sample_many", "generate_text_only", "generate_modality_only"):
        for word in inspect.signature(getattr(Transfusion, method)).parameters:
            if word not in ("self", "prompts", "prompt"):
                assert word in OPTIONS, (method, word)
    for word in TRANSFORMER_OPTIONS:
        assert f"transformer=dict({word}=)" in OPTIONS, word
    first = [cells[0] for cells in rows(DEFECTS)]
    for kind, count in (("sampling", 14), ("losses", 10), ("performance", 9), ("torch", 12)):
        assert [c for c in first if c.startswith(kind)] == [f"{kind} {i + 1}" for i in range(count)]


EXTENDING = (ROOT / "docs" / "extending.md").read_text()


def test_extending_names_files_and_tests_that_exist() -> None:
    """Capital letters stand for the reader's own names."""
    named = [n for n in re.findall(r"`((?:src|tests|docs)/[\w/.]+)(?:::\w+)?`", EXTENDING) if not re.search("[A-Z]{4}", n)]
    assert len(set(named)) > 15
    assert not [name for name in named if not (ROOT / name).exists()]
    tests = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", EXTENDING)
    assert tests
    for file, name in tests:
        assert re.search(rf"^def {name}\(|^{name}\b", defined(file), re.M), f"{file}::{name}"


def test_extending_has_five_checklists() -> None:
    assert len(re.findall(r"^## \d", EXTENDING, re.M)) == 5 and EXTENDING.count("**Tried.**") == 5
    assert len(EXTENDING.splitlines()) < 200
