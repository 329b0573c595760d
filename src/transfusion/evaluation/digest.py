"""Digests: 12 hex digits that name weights and files in a report, so that numbers of different judges are never compared."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import Tensor


def of_tensors(tensors: Mapping[str, Tensor], *words: str) -> str:
    """Of tensors with their names, types and shapes, and of words."""
    found = hashlib.sha256(json.dumps(words).encode())
    for name, tensor in sorted(tensors.items()):
        found.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        found.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()[:12]


def of_files(paths: Iterable[Path]) -> str:
    """Of files with their names, in the order of these."""
    found = hashlib.sha256()
    for path in sorted(paths, key=lambda one: one.name):
        with path.open("rb") as file:
            found.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return found.hexdigest()[:12]
