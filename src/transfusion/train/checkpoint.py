"""Atomic checkpoints: a folder is written under a temporary name, its manifest of digests last, then renamed.

    checkpoints/step-00000100/   model.safetensors  ema.safetensors  optimizer.safetensors  state.json  MANIFEST.json

The newest folder whose files all match the sizes and SHA-256 digests of its manifest is loaded; a damaged one is reported and
renamed to `.bad`, and the one before it is tried. Old folders are deleted only after a newer one is verified. No pickle.
"""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from transfusion.files import MANIFEST, manifest, mismatch, read_json, replacing, save_tensors
from transfusion.train.log import LogFn

FORMAT = 1
STATE = "state.json"
UNREADABLE = "cannot be read"


class CheckpointError(ValueError):
    """Every checkpoint is damaged, or the newest is of another run."""


@dataclass(frozen=True, eq=False)
class State:
    """The state of a run: tensors by group (model, ema, optimizer) and name, and plain data."""

    step: int
    tensors: dict[str, dict[str, Tensor]]
    plain: dict[str, Any]


def save(folder: Path, state: State, keep: int) -> Path:
    """Write a checkpoint below `folder`, then delete all but the newest `keep`.

    Raises:
        OSError: it can't be written (a full or read-only disk); earlier checkpoints stay, no partial one is left.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob("*.tmp-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    final = folder / f"step-{state.step:08d}"
    with replacing(final) as partial:
        partial.mkdir()
        for name, tensors in state.tensors.items():
            save_tensors(partial / f"{name}.safetensors", tensors)
        (partial / STATE).write_text(json.dumps({"step": state.step, **state.plain}))
        files = manifest({file.name: file for file in partial.iterdir()})
        contents = {"format": FORMAT, "step": state.step, "files": files, "digest": _digest(files)}
        (partial / MANIFEST).write_text(json.dumps(contents, indent=1))
    if problem(final) is None:
        for old in folders(folder)[keep:]:
            shutil.rmtree(old)
    return final


def check(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], group: str) -> None:
    """Raise CheckpointError, naming the first, unless a group of tensors has exactly these names, shapes and types."""
    for name in sorted(found.keys() | wanted.keys()):
        one, other = ("none" if t is None else f"{t.dtype} {list(t.shape)}" for t in (found.get(name), wanted.get(name)))
        if one != other:
            raise CheckpointError(f"the checkpoint is of another model: in {group}, {name} is {one}, not {other}")


def folders(folder: Path) -> list[Path]:
    """Checkpoint folders, newest first. Raises OSError: the folder cannot be read, which is not the same as none."""
    steps = [folder / name for name in _names(folder) if name.removeprefix("step-").isdigit()]
    return sorted((f for f in steps if f.is_dir()), key=lambda f: -int(f.name.removeprefix("step-")))


def has_some(folder: Path) -> bool:
    """Whether there is a checkpoint, or what is left of a damaged one. Raises OSError as `folders`."""
    return bool(_names(folder))


def _names(folder: Path) -> list[str]:
    try:
        return [name for name in os.listdir(folder) if name.startswith("step-") and ".tmp-" not in name]
    except FileNotFoundError:
        return []


def problem(folder: Path) -> str | None:
    """The first mismatch between a checkpoint and its manifest; None if it is intact."""
    try:
        contents = read_json(folder / MANIFEST)
        if contents["format"] != FORMAT:
            return f"has format {contents['format']}, this version reads {FORMAT}"
        if contents["digest"] != _digest(contents["files"]):
            return f"{MANIFEST} is damaged (its digest differs)"
        if STATE not in contents["files"]:
            return f"{MANIFEST} lists no {STATE}"
        return mismatch(folder, contents["files"])
    except PermissionError as error:
        return f"{UNREADABLE} ({error})"
    except OSError as error:
        return f"{UNREADABLE} ({error})" if error.errno == errno.EIO else f"{MANIFEST}: {error!r}"
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{MANIFEST}: {error!r}"


def latest(folder: Path, log: LogFn) -> State | None:
    """The newest intact checkpoint; None if the folder has no checkpoints.

    Args:
        log: takes a line for each damaged one, which is renamed to `.bad`.

    Raises:
        CheckpointError: every checkpoint is damaged. A run never restarts from scratch silently.
    """
    candidates = folders(folder)
    for candidate in candidates:
        damage = problem(candidate)
        if damage is None:
            return _read(candidate)
        if damage.startswith(UNREADABLE):  # perhaps only now
            log(f"checkpoint {candidate} {damage}; trying the one before")
            continue
        bad = candidate.with_name(candidate.name + ".bad")
        log(f"checkpoint {candidate}: {damage}; renamed to {bad.name}, trying the one before")
        shutil.rmtree(bad, ignore_errors=True)
        candidate.rename(bad)
    if candidates or list(folder.glob("step-*.bad")):
        raise CheckpointError(f"no usable checkpoint is left in {folder}; restore one, or choose another --out to start over")
    return None


def _read(folder: Path) -> State:
    """What the manifest of an intact checkpoint lists, and no other file. Raises CheckpointError if it is no state of a run."""
    try:
        files = [folder / name for name in read_json(folder / MANIFEST)["files"]]
        tensors = {file.stem: load_file(file) for file in files if file.suffix == ".safetensors"}
        plain = read_json(folder / STATE)
        return State(plain.pop("step"), tensors, plain)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise CheckpointError(f"{folder} holds no state of a run ({error!r}): choose another --out to start over") from error


def _digest(files: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
