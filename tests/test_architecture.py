"""docs/architecture.md is written from the source, docs/references.md lists every work that the source cites."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parent.parent


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_tree_and_the_walks_are_those_of_the_source() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert text == script("write_architecture").page(text), "run: python scripts/write_architecture.py"


def test_files_named_in_the_tables_exist() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = text.partition("## Where a fact")[2].partition("## From a document")[0]
    files = re.findall(r"`([\w/]+\.py)`", table)
    assert len(files) > 10
    assert not [file for file in files if not (ROOT / "src" / "transfusion" / file).is_file()]


def test_every_cited_work_is_listed() -> None:
    page = (ROOT / "docs" / "references.md").read_text(encoding="utf-8")
    source = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py"))
    numbers = set(re.findall(r"\b(\d{4}\.\d{5})\b", source))
    assert len(numbers) > 30
    assert not sorted(numbers - set(re.findall(r"\b(\d{4}\.\d{5})\b", page)))
    assert not [file for file in re.findall(r"`([\w/]+\.(?:py|md))`", page) if not (ROOT / file).is_file()]


def test_the_drawings_are_made(tmp_path: Path) -> None:
    drawings = script("draw_docs")
    for name, draw in (("attention", drawings.draw_attention), ("network", drawings.draw_network)):
        draw(tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000
        assert (ROOT / "docs" / f"{name}.png").is_file()
