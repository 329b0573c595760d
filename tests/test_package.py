"""The package's face: public names resolve lazily, checkers see their types, importing it costs nothing."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import transfusion

SOURCE = Path(transfusion.__file__).read_text()
TYPED = {  # name -> module, of the imports that only type checkers read
    (alias.asname, f"{node.module}.{alias.name}")
    for node in ast.walk(ast.parse(SOURCE))
    if isinstance(node, ast.ImportFrom) and str(node.module).startswith("transfusion.")
    for alias in node.names
}


def fresh(code: str) -> list[str]:
    """What a new process prints, split into words."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()


@pytest.mark.parametrize("name", transfusion.__all__)
def test_every_public_name_resolves(name: str) -> None:
    value = getattr(transfusion, name)
    assert value.__name__ == name and name in dir(transfusion) and vars(transfusion)[name] is value


def test_type_checkers_see_what_is_imported() -> None:
    assert {(name, f"transfusion.{module}.{name}") for name, module in transfusion._MODULE_OF.items()} == TYPED


def test_a_star_brings_the_public_names_and_no_room() -> None:
    names: dict[str, object] = {}
    exec("from transfusion import *", names)
    assert {*names} - {"__builtins__"} == {*transfusion.__all__} and "nn" not in transfusion.__all__


def test_rooms_and_public_names_share_no_name() -> None:
    """An imported submodule becomes an attribute of the package and would hide a public name."""
    rooms = {path.stem for path in Path(transfusion.__file__).parent.iterdir()}
    assert not rooms & {*transfusion.__all__}
    from transfusion import config

    assert config.__name__ == "transfusion.config"


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Transfusoin'"):
        _ = transfusion.Transfusoin  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(ImportError, match="Transfusoin"):
        exec("from transfusion import Transfusoin")


def test_importing_the_package_imports_no_library() -> None:
    loaded = fresh("import sys; before = set(sys.modules); import transfusion; print(*(set(sys.modules) - before))")
    assert {name.partition(".")[0] for name in loaded} <= {*sys.stdlib_module_names, "transfusion"}


@pytest.mark.slow
def test_public_names_cost_little_more_than_torch() -> None:
    """Optional and heavy packages are imported where they are needed, not with the public names."""
    loaded = fresh(
        "import sys, torch; before = set(sys.modules); from transfusion import *; print(*(set(sys.modules) - before))"
    )
    heavy = "sklearn scipy pyarrow tyro rich tensorboard diffusers sympy matplotlib peft transformers huggingface_hub"
    assert not {name.partition(".")[0] for name in loaded} & {*heavy.split()}
