"""One thread a process, shape types checked, random numbers seeded.

Tests run on many small tensors: a second thread costs more than it brings, and pytest-xdist gives each core a process instead.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch starts its threads; processes that tests start inherit it

from pathlib import Path

import jaxtyping
from jaxtyping import install_import_hook

SOURCE = Path(__file__).parent.parent / "src"
# Only modules that write shapes: checking every call of every function made the tests take three times as long.
SHAPED = [
    ".".join(file.relative_to(SOURCE).with_suffix("").parts)
    for file in SOURCE.rglob("*.py")
    if "from jaxtyping" in file.read_text()
]
install_import_hook(SHAPED, "beartype.beartype")

import pytest  # noqa: E402
import torch  # noqa: E402


@pytest.fixture
def unchecked():
    """Without the checks of types, as a user runs it: for tests of what users are told about wrong types."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
