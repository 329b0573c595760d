"""The documents of a path. Images stay undecoded until they are needed.

folder with [data/]*.parquet          Parquet, Hugging Face's convention (image bytes, text columns)
folder with *-idx3-ubyte[.gz]         MNIST family
folder with captions.jsonl            JSONL with files beside it
folder of images                      image.png + image.txt, or the image's folder as its caption
*.jsonl, *.parquet                    that file
"""

import gzip
import re
import struct
from pathlib import Path

import numpy as np

from transfusion.data.corpus import Captions, Corpus, captioned, unchanged
from transfusion.data.document import Media, MediaError
from transfusion.data.media import DecodedImage, EncodedImage, Fit
from transfusion.data.sources.jsonl import read_jsonl
from transfusion.data.sources.parquet import read_parquet

HELD_OUT = {"valid", "validation", "val", "test", "dev"}
"""Words in the name of a Parquet file that is not trained on."""
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
"""Suffixes of the images in a folder."""


def read(path: str | Path, fit: Fit, captions: Captions = unchanged, *, train: bool = True) -> Corpus:
    """The documents of a path, images at `fit`; `train` picks the split, where the path has several. Raises ValueError: the
    path does not exist, none of its documents can be read, or more than 5 % cannot."""
    path = Path(path)
    if not path.exists():
        raise ValueError(f"no data at {path}; give the path of a folder or file with --data")
    if path.is_file():
        if path.suffix == ".jsonl":
            corpus = read_jsonl(path, fit)
        elif path.suffix == ".parquet":
            corpus = read_parquet([path], fit, captions)
        else:
            raise ValueError(f"{path}: no reader for {path.suffix or 'files without a suffix'}; .jsonl and .parquet are read")
    elif tables := sorted(path.glob("*.parquet")) or sorted((path / "data").glob("*.parquet")):
        is_training = {table: HELD_OUT.isdisjoint(re.split("[^a-z]+", table.stem.lower())) for table in tables}
        corpus = read_parquet([table for table in tables if is_training[table] == train], fit, captions)
    elif list(path.glob("*-idx3-ubyte*")):
        corpus = read_idx(path, captions, train=train, fit=fit)
    elif (path / "captions.jsonl").exists():
        corpus = read_jsonl(path / "captions.jsonl", fit)
    else:
        corpus = read_folder(path, fit, captions)
    return corpus.checked(str(path))


def read_folder(path: Path, fit: Fit, captions: Captions = unchanged) -> Corpus:
    """The images below a folder. The caption is the text file of the same name, or else the name of the image's own folder. An
    image without either goes to `unreadable`."""
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
                raise MediaError(f"{name}: no caption; write one to {beside.name}, or put the image in a folder named for it")
            if not text:
                raise MediaError(f"{name}: its caption {beside.name} is empty")
            image = EncodedImage(file, fit, name).checked()
            corpus.documents.append(captioned(captions(text), Media(image), name))
        except UnicodeDecodeError:
            corpus.unreadable.append(f"{name}: its caption is not UTF-8")
        except MediaError as error:
            corpus.unreadable.append(str(error))
    return corpus


def read_idx(path: Path, captions: Captions = unchanged, *, train: bool = True, fit: Fit | None = None) -> Corpus:
    """Images, at `fit` or their own size, with captions made from the class number. Raises ValueError as `idx_arrays`."""
    pixels, labels = idx_arrays(path, train=train)
    by_label = {int(label): captions(str(label)) for label in np.unique(labels)}
    corpus, split = Corpus(), "train" if train else "test"
    for i, (image, label) in enumerate(zip(pixels, labels, strict=True)):
        corpus.documents.append(captioned(by_label[int(label)], Media(DecodedImage(image, fit)), f"{split}:{i}"))
    return corpus


def idx_arrays(path: Path, *, train: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """(uint8 [image, height, width], [label]) of a split. Raises ValueError: a file is missing, empty or of another format."""
    prefix = "train" if train else "t10k"
    pixels = _read_idx(path, f"{prefix}-images-idx3-ubyte", 3)
    labels = _read_idx(path, f"{prefix}-labels-idx1-ubyte", 1)
    if len(pixels) != len(labels):
        raise ValueError(f"{path}: {len(pixels)} images but {len(labels)} labels in the {prefix} split")
    if not len(pixels):
        raise ValueError(f"{path}: the {prefix} split is empty")
    return pixels, labels


def _read_idx(folder: Path, name: str, axes: int) -> np.ndarray:
    path = next((path for path in (folder / name, folder / f"{name}.gz") if path.exists()), None)
    if path is None:
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
