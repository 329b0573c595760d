"""Shape types are checked while the tests run; models here have random weights everywhere, zeros included."""

import jaxtyping
from jaxtyping import install_import_hook

install_import_hook("transfusion", "beartype.beartype")

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
