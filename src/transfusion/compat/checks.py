"""Checks of arguments. A wrong value is a ValueError that names the argument and what it takes."""

import math
from typing import Any


class ArgumentError(ValueError, AssertionError):
    """A wrong value of an argument that transfusion-pytorch checks by assertion: code that expects either error gets it."""


def check_number(name: str, value: Any, low: float = 0, high: float = math.inf, *, whole: bool = False) -> None:
    """Raises ValueError unless `value` is a finite number (a whole one) from `low` to `high`."""
    kinds = int if whole else int | float
    if isinstance(value, bool) or not isinstance(value, kinds) or not math.isfinite(value) or not low <= value <= high:
        least = "" if low == -math.inf else f" of at least {low}"
        bounds = least if high == math.inf else f" from {low} to {high}"
        raise ValueError(f"{name} must be a {'whole' if whole else 'finite'} number{bounds}, not {value!r}")


def size(name: str, value: Any) -> tuple[int, ...]:
    """A size in latent elements as a tuple. Raises ValueError for anything but positive whole numbers."""
    if not isinstance(value, tuple | list) or any(isinstance(v, bool) or not isinstance(v, int) or v < 1 for v in value):
        raise ValueError(f"{name}: a size is a tuple of positive whole numbers, one an axis, such as (4,), not {value!r}")
    return tuple(value)
