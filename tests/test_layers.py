"""Imports go down the layers, and no files import each other in a circle: every import of every file is read, those inside
functions and those for type checkers too."""

import ast
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "src" / "transfusion"
LAYERS = [
    {"config", "distributed", "files", "modality", "rng"},
    {"data", "nn", "diffusion"},
    {"codec"},
    {"model"},
    {"generate"},
    {"model_folder"},
    {"api"},
    {"train", "evaluation", "compat"},
    {"run"},
    {"recipes"},
    {"commands"},
    {"cli"},
    {"__main__"},
]
"""Rooms (folders, or files beside them) from the lowest row to the highest; rooms of one row do not import each other."""
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}
LIBRARIES = {"nn": {"torch", "einops", "jaxtyping"}, "diffusion": {"torch", "jaxtyping"}}
"""The only libraries that these rooms import."""


def module(path: Path) -> str:
    parts = ("transfusion", *path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module(path): path for path in sorted(ROOT.rglob("*.py"))}
ROOMS = {name: path for name, path in MODULES.items() if name != "transfusion"}


def imports(path: Path) -> Iterator[str]:
    """What a file imports: `import a.b` as a.b, `from a import b` as a.b."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imported_files(path: Path) -> set[str]:
    """The modules of the package that a file imports: b or a of `from a import b`."""
    names = {name if name in MODULES else name.rpartition(".")[0] for name in imports(path)}
    return {name for name in names if name in MODULES}


def room(name: str) -> str:
    return name.split(".")[1]


@pytest.mark.parametrize("name", ROOMS)
def test_imports_go_down(name: str) -> None:
    for other in imported_files(ROOMS[name]):
        assert other != "transfusion", f"{name} imports from the package's face: import from the module"
        same, lower = room(other) == room(name), LEVEL[room(other)] < LEVEL[room(name)]
        assert same or lower, f"{room(name)} may not import {room(other)} ({name} imports {other})"


def test_no_cycle_of_files() -> None:
    try:
        TopologicalSorter({name: imported_files(path) for name, path in ROOMS.items()}).prepare()
    except CycleError as error:
        pytest.fail(f"files import each other: {' -> '.join(error.args[1])}")


@pytest.mark.parametrize("name", [name for name in ROOMS if room(name) in LIBRARIES])
def test_nn_and_diffusion_import_few_libraries(name: str) -> None:
    for library in {name.split(".")[0] for name in imports(ROOMS[name])} - {"transfusion"} - sys.stdlib_module_names:
        assert library in LIBRARIES[room(name)], f"{name} imports {library}"


def test_train_imports_neither_evaluation_nor_generation() -> None:
    for name, path in ROOMS.items():
        if room(name) == "train":
            assert not {room(other) for other in imported_files(path)} & {"evaluation", "generate"}, name


def test_every_room_is_in_the_table() -> None:
    assert {room(name) for name in ROOMS} <= set(LEVEL)


def test_no_drawers_for_everything() -> None:
    assert not {path.stem for path in ROOMS.values()} & {"utils", "util", "common", "misc", "helpers"}
