"""Imports go down, never up or sideways: the table of the rooms, held by reading every import, those inside functions too."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "src" / "transfusion"
LAYERS = [
    {"config", "files", "modality", "rng"},
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
]
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}
FOREIGN = {
    "nn": {"torch", "einops", "jaxtyping"},
    "diffusion": {"torch", "jaxtyping"},
}
LAZY = {"pyarrow", "sklearn.datasets", "tyro", "torch.utils.tensorboard", "rich"}


def room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


FILES = sorted(p for p in ROOT.rglob("*.py") if p != ROOT / "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_down(path: Path) -> None:
    here = room(path)
    for name in imports(path):
        parts = name.split(".")
        if parts[0] != "transfusion":
            continue
        # `from transfusion import rng` names a room, `from transfusion import Transfusion` the public surface
        assert len(parts) > 1 and parts[1] in LEVEL, f"{path.name} imports {name}: inside the package, name the module"
        assert parts[1] == here or LEVEL[parts[1]] < LEVEL[here], f"{here} may not import {parts[1]} ({path.name})"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_inner_rooms_know_few_libraries(path: Path) -> None:
    allowed = FOREIGN.get(room(path))
    if allowed is None:
        return
    import sys

    for name in imports(path):
        top = name.split(".")[0]
        assert top in allowed | {"transfusion"} or top in sys.stdlib_module_names, f"{path.name} imports {name}"


def test_every_room_is_in_the_table() -> None:
    assert {room(p) for p in FILES} == set(LEVEL)


def test_no_drawers_for_everything() -> None:
    assert not [p for p in FILES if p.stem in {"utils", "util", "common", "misc", "helpers"}]
