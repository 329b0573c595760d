"""Documents -> a folder: `outputs.jsonl`, a document a line, and a file for each media item. `sources.jsonl` reads it back.

An image becomes a PNG, which holds its values to 8 bits; a sound a WAV file, which holds them to 16; any other item an array in
a .npy file.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from transfusion.data.document import Document, Text
from transfusion.data.media import to_image
from transfusion.data.sound import to_wav
from transfusion.files import replacing
from transfusion.modality import Modality, is_image

OUTPUTS = "outputs.jsonl"


def write_documents(documents: Iterable[Document], folder: Path, modalities: Sequence[Modality] = ()) -> list[Document]:
    """Write documents to a folder, which is made if need be, and return them; `modalities` say which items are sounds, and of
    which rate. `outputs.jsonl` is replaced once all are written;
    if `documents` is an iterator that fails on the way, the earlier file stays. Raises OSError, before the first document is
    taken, if the folder cannot be written, and ValueError for an item without values."""
    folder.mkdir(parents=True, exist_ok=True)
    rates = {modality.name: modality.rate for modality in modalities if modality.rate}
    written = []
    with replacing(folder / OUTPUTS) as partial, partial.open("w", encoding="utf-8") as lines:
        for index, document in enumerate(documents):
            lines.write(json.dumps(_write_media(document, folder, f"{index:05d}", rates), ensure_ascii=False) + "\n")
            written.append(document)
    return written


def _write_media(document: Document, folder: Path, stem: str, rates: Mapping[str, int]) -> dict[str, Any]:
    """Write a document's media as stem-SEGMENT.png, .wav or .npy; returns its JSONL record, with token ids separated by
    blanks."""
    segments: list[dict[str, Any]] = []
    for number, segment in enumerate(document.segments):
        if isinstance(segment, Text):
            content = segment.content if isinstance(segment.content, str) else " ".join(map(str, segment.content))
            segments.append({"text": content} | ({} if segment.loss else {"loss": False}))
            continue
        values = segment.tensor()
        rate = rates.get(segment.modality)
        name = f"{stem}-{number}.{'wav' if rate else 'png' if is_image(values.shape) else 'npy'}"
        if rate:
            (folder / name).write_bytes(to_wav(values, rate))
        elif is_image(values.shape):
            to_image(values).save(folder / name)
        else:
            np.save(folder / name, values.detach().cpu().numpy())
        segments.append({segment.modality: name} | ({"use": segment.use} if segment.use else {}))
    return {"segments": segments}
