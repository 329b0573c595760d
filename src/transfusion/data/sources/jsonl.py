"""JSONL, a document a line, with media files beside it -> documents. `data.outputs` writes this form.

    {"segments": [{"text": "a cat"}, {"image": "a.png"}, {"text": "why?", "loss": false}, {"sound": "a.npy"}]}
    {"image": "a.png", "text": "a cat"}

An item's key is the name of its modality. An image is an image file, or like any item an array Float[channels, *size] in a .npy
file. Paths are relative to the JSONL file and may not leave its folder.
"""

import json
from pathlib import Path

from transfusion.data.corpus import Corpus
from transfusion.data.document import Document, Media, Segment, Text
from transfusion.data.media import ArrayFile, EncodedImage, Fit
from transfusion.modality import IMAGE


def read_jsonl(path: Path, fit: Fit) -> Corpus:
    """The documents of a JSONL file; `fit` gives the size and channels of their images."""
    corpus = Corpus()
    for number, raw in enumerate(path.read_bytes().splitlines(), 1):
        name = f"{path.name}:{number}"
        if not raw.strip():
            continue
        try:
            corpus.documents.append(parse_line(raw.decode("utf-8"), path.parent, fit, name))
        except UnicodeDecodeError:
            corpus.unreadable.append(f"{name}: not UTF-8")
        except ValueError as error:
            corpus.unreadable.append(str(error) if str(error).startswith(name) else f"{name}: {error}")
    return corpus


def parse_line(line: str, folder: Path, fit: Fit, name: str) -> Document:
    """One JSONL line as a document. Raises ValueError, naming the line, if it has another form."""
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{name}: not JSON: {error}") from error
    if not isinstance(record, dict):
        raise ValueError(f"{name}: a line holds an object, not {type(record).__name__}")
    segments = record.get("segments")
    if segments is None:
        segments = [{kind: record[kind]} for kind in ("text", IMAGE) if kind in record]
    if not isinstance(segments, list) or not segments:
        raise ValueError(f'{name}: no segments; write {{"segments": [{{"text": "..."}}, {{"image": "a.png"}}]}}')
    return Document(tuple(_segment(segment, folder, fit, name) for segment in segments), name=name)


def _segment(record: object, folder: Path, fit: Fit, name: str) -> Segment:
    if not isinstance(record, dict):
        raise ValueError(f"{name}: a segment is an object, not {type(record).__name__}")
    if isinstance(record.get("text"), str):
        return Text(record["text"], loss=bool(record.get("loss", True)))
    modality, path = next(iter(record.items()), ("", None))
    is_array = isinstance(path, str) and path.endswith(".npy")
    if not isinstance(path, str) or not (is_array or modality == IMAGE):
        form = f'{{"text": "..."}}, {{"{IMAGE}": "a.png"}} or {{MODALITY: "a.npy"}}'
        raise ValueError(f"{name}: a segment is {form}, not {json.dumps(record)[:80]}")
    file = (folder / path).resolve()
    if not file.is_relative_to(folder.resolve()):
        raise ValueError(f"{name}: {path} lies outside {folder}")
    label = f"{name}: {path}"
    return Media(ArrayFile.open(file, label) if is_array else EncodedImage(file, fit, label).checked(), modality)
