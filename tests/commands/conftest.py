"""Each test of a command runs in an empty folder; a trained quickstart is made once and copied."""

import contextlib
import io
import shutil
from pathlib import Path

import pytest

from command import QUICKSTART, command


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def _trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A short quickstart with samples on the way and a report, and what it printed."""
    folder, output = tmp_path_factory.mktemp("trained"), io.StringIO()
    line = f"quickstart {QUICKSTART}"
    with contextlib.chdir(folder), contextlib.redirect_stdout(output):
        assert command(line) == 0
    return folder / "quickstart", output.getvalue()


@pytest.fixture
def quickstart(_trained: tuple[Path, str], tmp_path: Path) -> str:
    """A copy of the trained quickstart in the test's folder; what it printed."""
    shutil.copytree(_trained[0], tmp_path / "quickstart")
    return _trained[1]
