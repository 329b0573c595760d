"""Checkpoints that survive accidents: a folder written aside, with a manifest of digests written last, then renamed.

    checkpoints/step-00000100/   model.safetensors  ema.safetensors  optimizer.safetensors  state.json  MANIFEST.json

The newest folder whose every file has the size and the SHA-256 of its manifest is the one that counts; a damaged one is
named, set aside as `.bad`, and the one before it is used. Old folders go only after a newer one is verified. No pickle.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

FORMAT = 1
MANIFEST = "MANIFEST.json"


class CheckpointError(ValueError):
    """There are checkpoints, and none of them can be used."""


@dataclass(frozen=True, eq=False)
class State:
    """All that a run needs to go on: tensors by group and name, and plain data."""

    step: int
    tensors: dict[str, dict[str, Tensor]]
    plain: dict[str, Any]


def save(folder: Path, state: State, keep: int) -> Path:
    """Write a checkpoint below `folder`, then delete all but the newest `keep`.

    Raises:
        OSError: it can't be written (a full or read-only disk); earlier checkpoints are untouched, nothing half is left.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob("*.tmp-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    final = folder / f"step-{state.step:08d}"
    aside = folder / f"{final.name}.tmp-{os.getpid()}"
    aside.mkdir()
    try:
        for name, tensors in state.tensors.items():
            save_file({k: t.detach().contiguous() for k, t in tensors.items()}, aside / f"{name}.safetensors")
        (aside / "state.json").write_text(json.dumps({"step": state.step, **state.plain}))
        files = {}
        for file in sorted(aside.iterdir()):
            _sync(file)
            files[file.name] = {"bytes": file.stat().st_size, "sha256": _sha256(file)}
        manifest = {"format": FORMAT, "step": state.step, "files": files, "digest": _digest(files)}
        (aside / MANIFEST).write_text(json.dumps(manifest, indent=1))
        _sync(aside / MANIFEST)
        if final.exists():
            shutil.rmtree(final)
        os.replace(aside, final)
        _sync(folder)
    except BaseException as error:
        shutil.rmtree(aside, ignore_errors=True)
        # safetensors reports a full disk in its own type
        raise error if isinstance(error, OSError | KeyboardInterrupt) else OSError(f"{final}: {error}") from error
    if problem(final) is None:
        for old in folders(folder)[keep:]:
            shutil.rmtree(old)
    return final


def folders(folder: Path) -> list[Path]:
    """Checkpoint folders, newest first."""
    found = [f for f in folder.glob("step-*") if f.is_dir() and f.name.removeprefix("step-").isdigit()]
    return sorted(found, key=lambda f: -int(f.name.removeprefix("step-")))


def problem(folder: Path) -> str | None:
    """What is wrong with a checkpoint: None if every file is what its manifest says."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        if manifest["format"] != FORMAT:
            return f"has format {manifest['format']}, this version reads {FORMAT}"
        entries = manifest["files"].items()
        if manifest["digest"] != _digest(manifest["files"]):
            return f"{MANIFEST} is damaged (its digest differs)"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{MANIFEST}: {error!r}"
    for name, entry in entries:
        file = folder / name
        if file.name != name or not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != entry["bytes"]:
            return f"{name} has {file.stat().st_size} bytes, its manifest says {entry['bytes']}"
        if _sha256(file) != entry["sha256"]:
            return f"{name} is damaged (its digest differs)"
    return None


def latest(folder: Path, log: Callable[[str], None]) -> State | None:
    """The newest checkpoint that is whole; None where there is none at all.

    Args:
        say: takes a line for each damaged one, which is set aside.

    Raises:
        CheckpointError: all are damaged. A run never starts anew silently.
    """
    found = folders(folder)
    for one in found:
        wrong = problem(one)
        if wrong is None:
            plain = json.loads((one / "state.json").read_text())
            tensors = {file.stem: load_file(file) for file in sorted(one.glob("*.safetensors"))}
            return State(plain.pop("step"), tensors, plain)
        log(f"checkpoint {one}: {wrong}; set aside as {one.name}.bad, trying the one before")
        shutil.rmtree(one.with_name(one.name + ".bad"), ignore_errors=True)
        os.replace(one, one.with_name(one.name + ".bad"))
    if found or list(folder.glob("step-*.bad")):
        raise CheckpointError(f"no usable checkpoint is left in {folder}; restore one, or choose another --out to start anew")
    return None


def _digest(files: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
