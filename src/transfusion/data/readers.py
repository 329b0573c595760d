"""Readers: files of the usual kinds -> a list of documents. Pictures stay undecoded until they are needed.

`read` looks at a path and takes the reader that fits:

    folder with [data/]*.parquet          Parquet, Hugging Face's convention (image bytes, text columns)
    folder with *-idx3-ubyte[.gz]         MNIST family
    folder with captions.jsonl            JSONL with files beside it
    folder of pictures                    picture.png + picture.txt, or the picture's folder as its caption
    *.jsonl, *.parquet                    that file
"""

import gzip
import json
import re
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import numpy as np

from transfusion.data.document import Document, Media, MediaError, Segment, Text
from transfusion.data.media import Fit, Picture, Pixels, check_picture

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
MAX_UNREADABLE = 0.05
"""Share of unreadable documents above which reading stops."""

Caption: TypeAlias = Callable[[str], tuple[str, ...]]
"""A caption or class name -> its wordings."""


def as_it_is(caption: str) -> tuple[str, ...]:
    """The caption alone."""
    return (caption,)


@dataclass
class Corpus(Sequence[Document]):
    """Documents, and the names of those that could not be read, with the reason."""

    documents: list[Document] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.documents)

    def __getitem__(self, index):  # type: ignore[override]
        return self.documents[index]

    def checked(self, source: str) -> "Corpus":
        """Itself, if there is enough to train on.

        Raises:
            ValueError: nothing was read, or more than 5 % could not be.
        """
        total = len(self.documents) + len(self.unreadable)
        listed = "".join(f"\n  {line}" for line in self.unreadable[:10])
        if not self.documents:
            known = "; folders of pictures, captions.jsonl, Parquet and idx files are read"
            raise ValueError(f"{source}: no documents{' could be read:' + listed if listed else known}")
        if len(self.unreadable) > MAX_UNREADABLE * total:
            raise ValueError(
                f"{source}: {len(self.unreadable)} of {total} documents cannot be read; mend or remove them:{listed}"
            )
        return self


def pair(caption: tuple[str, ...], picture: Media, name: str) -> Document:
    """Caption first, then picture; the caption's wordings are alternatives."""
    return Document((Text(caption[0], paraphrases=caption[1:]), picture), name=name)


def read(path: str | Path, fit: Fit, caption: Caption = as_it_is, *, train: bool = True) -> Corpus:
    """Documents of a path.

    Args:
        fit: size and channels that pictures get.
        caption: what to make of a caption or class name.
        train: the training part, where the path holds several.

    Raises:
        ValueError: nothing there, nothing readable, or over 5 % unreadable.
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(f"no data at {path}; give the path of a folder or file with --data")
    if path.is_file():
        if path.suffix == ".jsonl":
            corpus = read_jsonl(path, fit)
        elif path.suffix == ".parquet":
            corpus = read_parquet([path], fit, caption)
        else:
            raise ValueError(f"{path}: no reader for {path.suffix or 'files without a suffix'}; .jsonl and .parquet are read")
    elif tables := sorted(path.glob("*.parquet")) or sorted((path / "data").glob("*.parquet")):
        train_tables = [t for t in tables if not _held_out(t.stem)]
        corpus = read_parquet(train_tables if train else [t for t in tables if _held_out(t.stem)], fit, caption)
    elif list(path.glob("*-idx3-ubyte*")):
        corpus = read_idx(path, caption, train=train, fit=fit)
    elif (path / "captions.jsonl").exists():
        corpus = read_jsonl(path / "captions.jsonl", fit)
    else:
        corpus = read_folder(path, fit, caption)
    return corpus.checked(str(path))


def _held_out(stem: str) -> bool:
    return bool(set(re.split("[^a-z]+", stem.lower())) & {"valid", "validation", "val", "test", "dev"})


def read_folder(path: Path, fit: Fit, caption: Caption = as_it_is) -> Corpus:
    """Pictures below a folder. Caption: the text file of the same name, or else the name of the picture's own folder."""
    corpus = Corpus()
    for file in sorted(f for f in path.rglob("*") if f.suffix.lower() in SUFFIXES):
        name = str(file.relative_to(path))
        try:
            beside = file.with_suffix(".txt")
            if beside.exists():
                text = beside.read_text(encoding="utf-8").strip()
            elif file.parent != path:
                text = file.parent.name.replace("_", " ")
            else:
                raise MediaError(f"{name}: no caption; write one to {beside.name}, or put the picture in a folder named for it")
            if not text:
                raise MediaError(f"{name}: its caption {beside.name} is empty")
            check_picture(file, name)
            corpus.documents.append(pair(caption(text), Media(Picture(file, fit, name)), name))
        except UnicodeDecodeError:
            corpus.unreadable.append(f"{name}: its caption is not UTF-8")
        except MediaError as error:
            corpus.unreadable.append(str(error))
    return corpus


def read_jsonl(path: Path, fit: Fit) -> Corpus:
    """A document a line: {"segments": [{"text": "..."}, {"image": "a.png"}]}, or {"image": "a.png", "text": "..."}.

    Paths are relative to the file and may not leave its folder.
    """
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
    parts = record.get("segments")
    if parts is None:
        parts = [{kind: record[kind]} for kind in ("text", "image") if kind in record]
    if not isinstance(parts, list) or not parts:
        raise ValueError(f'{name}: no segments; write {{"segments": [{{"text": "..."}}, {{"image": "a.png"}}]}}')
    segments: list[Segment] = []
    for part in parts:
        if not isinstance(part, dict):
            raise ValueError(f"{name}: a segment is an object, not {type(part).__name__}")
        if isinstance(part.get("text"), str):
            segments.append(Text(part["text"], loss=bool(part.get("loss", True))))
        elif isinstance(part.get("image"), str):
            file = (folder / part["image"]).resolve()
            if not file.is_relative_to(folder.resolve()):
                raise ValueError(f"{name}: {part['image']} lies outside {folder}")
            check_picture(file, f"{name}: {part['image']}")
            segments.append(Media(Picture(file, fit, f"{name}: {part['image']}")))
        else:
            raise ValueError(f'{name}: a segment is {{"text": "..."}} or {{"image": "path"}}, not {json.dumps(part)[:80]}')
    return Document(tuple(segments), name=name)


def read_parquet(paths: Sequence[Path], fit: Fit, caption: Caption = as_it_is) -> Corpus:
    """Tables with an image column (bytes, or a struct with them) and `text` or `caption` (a string, or a list of strings:
    wordings), or a class `label` (its names from the Hugging Face metadata, else the number)."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ValueError("reading Parquet needs pyarrow: pip install 'transfusion[parquet]'") from error
    corpus = Corpus()
    for path in paths:
        table = pq.read_table(path)
        columns = {name.lower(): name for name in table.column_names}
        image = next((columns[c] for c in ("image", "picture", "jpg", "png") if c in columns), None)
        text = next((columns[c] for c in ("text", "caption") if c in columns), None)
        names: list[str] | None = None
        if text is None and "label" in columns:
            text, names = columns["label"], _class_names(table.schema.metadata, columns["label"])
        if image is None or text is None:
            raise ValueError(f"{path}: needs a column image and a column text, caption or label; it has {table.column_names}")
        words = table[text]
        if pa.types.is_string(words.type) or pa.types.is_large_string(words.type):
            words = words.cast(pa.binary())  # decoded below, a row at a time: one that is no UTF-8 must not end the rest
        for number, (picture, value) in enumerate(zip(table[image].to_pylist(), words.to_pylist(), strict=True)):
            name = f"{path.name}:{number}"
            data = picture.get("bytes") if isinstance(picture, dict) else picture
            try:
                if not isinstance(data, bytes):
                    raise MediaError(f"{name}: no image bytes")
                paraphrases = _paraphrases(value, names, name)
                check_picture(data, name)
                found = tuple(one for words in paraphrases for one in caption(words))
                corpus.documents.append(pair(found, Media(Picture(data, fit, name)), name))
            except MediaError as error:
                corpus.unreadable.append(str(error))
    return corpus


def _paraphrases(value: object, names: list[str] | None, name: str) -> list[str]:
    """What a cell says, in one or several wordings. Raises MediaError, naming the row, where it says nothing."""
    if isinstance(value, int) and not isinstance(value, bool):
        if names is None:
            return [str(value)]
        if not 0 <= value < len(names):
            raise MediaError(f"{name}: label {value} has no name; there are {len(names)}")
        return [names[value]]
    try:
        cells = value if isinstance(value, list) else [value]
        found = [cell.decode("utf-8").strip() if isinstance(cell, bytes) else cell for cell in cells]
    except UnicodeDecodeError as error:
        raise MediaError(f"{name}: its caption is not UTF-8") from error
    texts = [cell.strip() for cell in found if isinstance(cell, str)]
    if len(texts) < len(found) and value is not None:
        raise MediaError(f"{name}: a caption is text, not {str(value)[:40]!r}")
    if not any(texts):
        raise MediaError(f"{name}: empty caption")
    return [text for text in texts if text]


def _class_names(metadata: dict[bytes, bytes] | None, column: str) -> list[str] | None:
    features = json.loads((metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    return features.get(column, {}).get("names")


def read_idx(path: Path, caption: Caption = as_it_is, *, train: bool = True, fit: Fit | None = None) -> Corpus:
    """Pictures and labels of the MNIST family; captions are made from the class number.

    Args:
        fit: size and channels that pictures get (None: their own).
    """
    pixels, labels = idx_arrays(path, train=train)
    paraphrases = {int(label): caption(str(label)) for label in np.unique(labels)}
    part = "train" if train else "test"
    return Corpus(
        [
            pair(paraphrases[int(label)], Media(Pixels(one, fit)), f"{part}:{i}")
            for i, (one, label) in enumerate(zip(pixels, labels, strict=True))
        ]
    )


def idx_arrays(path: Path, *, train: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """(uint8 [picture, height, width], [label]) of a folder with the MNIST family's four files, plain or .gz.

    Raises:
        ValueError: a file is missing, empty, or holds another format.
    """
    prefix = "train" if train else "t10k"
    pixels = _read_idx(path, f"{prefix}-images-idx3-ubyte", 3)
    labels = _read_idx(path, f"{prefix}-labels-idx1-ubyte", 1)
    if len(pixels) != len(labels):
        raise ValueError(f"{path}: {len(pixels)} pictures but {len(labels)} labels in the {prefix} part")
    if not len(pixels):
        raise ValueError(f"{path}: the {prefix} part is empty")
    return pixels, labels


def _read_idx(folder: Path, name: str, axes: int) -> np.ndarray:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.exists():
            break
    else:
        raise ValueError(f"no {name}[.gz] in {folder}; --data wants the folder with the four idx files")
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        zeros, kind, ndim = struct.unpack_from(">HBB", data)
        shape = struct.unpack_from(f">{ndim}I", data, 4)
        if (zeros, kind, ndim) != (0, 8, axes):
            raise ValueError("not an idx file of unsigned bytes")
        return np.frombuffer(data, np.uint8, offset=4 + 4 * ndim).reshape(shape)
    except (EOFError, OSError, struct.error, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
