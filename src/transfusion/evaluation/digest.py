"""Digests: 12 hex digits of weights, files and documents, so that records of different classifiers are never compared."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import Tensor

from transfusion.data.document import Document, Text
from transfusion.data.media import DecodedImage, EncodedImage


def of_tensors(tensors: Mapping[str, Tensor], *words: str) -> str:
    """Digest of tensors with their names, types and shapes, and of words."""
    digest = hashlib.sha256(json.dumps(words).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]


def of_files(paths: Iterable[Path]) -> str:
    """Digest of files and their names, in the order of the names."""
    digest = hashlib.sha256()
    for path in sorted(paths, key=lambda path: path.name):
        with path.open("rb") as file:
            digest.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()[:12]


def of_content(document: Document) -> tuple[str, ...]:
    """Digests by which copies of a document are recognised: one of each image as it is stored, whatever its file name, or one
    of the text without images."""
    digests = []
    for media in document.media:
        values = media.values
        if isinstance(values, EncodedImage):
            data = values.source if isinstance(values.source, bytes) else values.source.read_bytes()
        elif isinstance(values, DecodedImage):
            data = values.pixels.tobytes()
        else:
            data = media.tensor().numpy().tobytes()
        digests.append(hashlib.sha256(data).hexdigest()[:12])
    words = "".join(str(s.content) for s in document.segments if isinstance(s, Text))
    return tuple(digests) or (hashlib.sha256(words.encode()).hexdigest()[:12],)
