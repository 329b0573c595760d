"""Atomic checkpoints: a folder is written under a temporary name, its manifest of digests last, then renamed.

    checkpoints/step-00000100/   model.safetensors  ema.safetensors  optimizer.safetensors  state.json  MANIFEST.json

The newest folder whose files all match the sizes and SHA-256 digests of its manifest is loaded; a damaged one is reported and
renamed to `.bad`, and the one before it is tried. Old folders are deleted only after a newer one is verified. No pickle.
"""

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from transfusion.files import replacing
from transfusion.train.log import LogFn

FORMAT = 1
MANIFEST = "MANIFEST.json"


class CheckpointError(ValueError):
    """Every checkpoint is damaged."""


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
            save_file({k: t.detach().contiguous() for k, t in tensors.items()}, partial / f"{name}.safetensors")
        (partial / "state.json").write_text(json.dumps({"step": state.step, **state.plain}))
        files = {file.name: {"bytes": file.stat().st_size, "sha256": _sha256(file)} for file in sorted(partial.iterdir())}
        manifest = {"format": FORMAT, "step": state.step, "files": files, "digest": _digest(files)}
        (partial / MANIFEST).write_text(json.dumps(manifest, indent=1))
    if problem(final) is None:
        for old in folders(folder)[keep:]:
            shutil.rmtree(old)
    return final


def folders(folder: Path) -> list[Path]:
    """Checkpoint folders, newest first."""
    steps = [f for f in folder.glob("step-*") if f.is_dir() and f.name.removeprefix("step-").isdigit()]
    return sorted(steps, key=lambda f: -int(f.name.removeprefix("step-")))


def problem(folder: Path) -> str | None:
    """The first mismatch between a checkpoint and its manifest; None if it is intact."""
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
            plain = json.loads((candidate / "state.json").read_text())
            tensors = {file.stem: load_file(file) for file in sorted(candidate.glob("*.safetensors"))}
            return State(plain.pop("step"), tensors, plain)
        bad = candidate.with_name(candidate.name + ".bad")
        log(f"checkpoint {candidate}: {damage}; renamed to {bad.name}, trying the one before")
        shutil.rmtree(bad, ignore_errors=True)
        candidate.rename(bad)
    if candidates or list(folder.glob("step-*.bad")):
        raise CheckpointError(f"no usable checkpoint is left in {folder}; restore one, or choose another --out to start over")
    return None


def _digest(files: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
