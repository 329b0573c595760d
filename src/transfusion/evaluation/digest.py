"""Digests: 12 hex digits that name weights and files in a report, so that numbers of different judges are never compared."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import Tensor

from transfusion.data.document import Document, Text
from transfusion.data.media import Picture, Pixels


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


def of_content(document: Document) -> tuple[str, ...]:
    """What makes two documents the same to a model: each picture as it is stored, whatever its name; the text where there is
    no picture."""
    found = []
    for media in document.media:
        values = media.values
        if isinstance(values, Picture):
            data = values.source if isinstance(values.source, bytes) else values.source.read_bytes()
        elif isinstance(values, Pixels):
            data = values.pixels.tobytes()
        else:
            data = media.tensor().numpy().tobytes()
        found.append(hashlib.sha256(data).hexdigest()[:12])
    words = "".join(str(s.content) for s in document.segments if isinstance(s, Text))
    return tuple(found) or (hashlib.sha256(words.encode()).hexdigest()[:12],)
