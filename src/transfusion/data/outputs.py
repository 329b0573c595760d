"""Documents -> a folder: `outputs.jsonl`, a document a line, and a file for each media item. `sources.jsonl` reads it back.

An image becomes a PNG, which holds its values to 8 bits; any other item an array in a .npy file.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from transfusion.data.document import Document, Text
from transfusion.data.media import to_image
from transfusion.files import replacing
from transfusion.modality import is_image

OUTPUTS = "outputs.jsonl"


def write_documents(documents: Iterable[Document], folder: Path) -> list[Document]:
    """Write documents to a folder, which is made if need be, and return them. `outputs.jsonl` is replaced once all are written;
    if `documents` is an iterator that fails on the way, the earlier file stays. Raises OSError, before the first document is
    taken, if the folder cannot be written, and ValueError for an item without values."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    with replacing(folder / OUTPUTS) as partial, partial.open("w", encoding="utf-8") as lines:
        for index, document in enumerate(documents):
            lines.write(json.dumps(_write_media(document, folder, f"{index:05d}"), ensure_ascii=False) + "\n")
            written.append(document)
    return written


def _write_media(document: Document, folder: Path, stem: str) -> dict[str, Any]:
    """Write a document's media as stem-SEGMENT.png or .npy; returns its JSONL record, with token ids separated by blanks."""
    segments: list[dict[str, Any]] = []
    for number, segment in enumerate(document.segments):
        if isinstance(segment, Text):
            content = segment.content if isinstance(segment.content, str) else " ".join(map(str, segment.content))
            segments.append({"text": content} | ({} if segment.loss else {"loss": False}))
            continue
        values = segment.tensor()
        name = f"{stem}-{number}.{'png' if is_image(values.shape) else 'npy'}"
        if is_image(values.shape):
            to_image(values).save(folder / name)
        else:
            np.save(folder / name, values.detach().cpu().numpy())
        segments.append({segment.modality: name} | ({"use": segment.use} if segment.use else {}))
    return {"segments": segments}
