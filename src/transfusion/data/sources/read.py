"""The documents of a path. Images stay undecoded until they are needed.

folder with [data/]*.parquet          Parquet, Hugging Face's convention (image bytes, text columns)
folder with *-idx3-ubyte[.gz]         MNIST family
folder with shards and MANIFEST.json  latents, encoded by `transfusion data encode`
folder with captions.jsonl            JSONL with files beside it
folder of images or sounds            image.png + image.txt, or the image's folder as its caption; of a sound also its own name
*.jsonl, *.parquet                    that file

Files and folders whose name begins with a dot are not seen (`.ipynb_checkpoints`, `._a.png`), links to folders are not
followed, and no link leads out of the path.
"""

import gzip
import math
import os
import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from transfusion.data.corpus import Captions, Corpus, NoCaption, caption, captioned, unchanged
from transfusion.data.document import Media
from transfusion.data.media import MAX_PIXELS, DecodedImage, EncodedImage, Fit
from transfusion.data.sound import SUFFIXES as SOUND_SUFFIXES
from transfusion.data.sound import EncodedSound, sound_notes
from transfusion.data.sources.jsonl import read_jsonl
from transfusion.data.sources.latents import has_held_out as latents_have_held_out
from transfusion.data.sources.latents import is_latents, read_latents
from transfusion.data.sources.parquet import read_parquet, read_text_tables
from transfusion.files import inside, open_file, read_text

HELD_OUT = {"valid", "validation", "val", "test", "dev"}
"""Words in the name of a Parquet file that is not trained on."""
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
"""Suffixes of the images in a folder."""
OTHER_SUFFIXES = (".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".heif", ".jfif", ".jp2", ".ppm", ".svg")
"""Suffixes of images that are not read, which is said."""
TEXTS = (
    "text alone is learned by transfusion train shakespeare (a .txt file, by character) and books_text (Parquet tables with a "
    "column text, by byte pairs)"
)
MAX_CAPTION, MAX_IDX = 4 * 2**20, 2 * 2**30
"""Bytes of a caption and of an unpacked idx file at most."""


def read(
    path: str | Path, fit: Fit, captions: Captions | None = unchanged, *, train: bool = True, uncaptioned: bool = False
) -> Corpus:
    """The documents of a path, images and sounds at `fit`; `train` picks the split, where the path has several. With `captions`
    None, items of folders and tables need none, and have those that can be read; with `uncaptioned`, those that have none are
    documents of their own. Raises ValueError: the path does not exist, none of its documents can be read, or more than 5 %
    cannot."""
    path = Path(path)
    if not path.exists():
        raise ValueError(f"no data at {path}; give the path of a folder or file with --data")
    try:
        if path.is_dir():
            corpus = _read_folder(path, fit, captions, train, uncaptioned)
        else:
            corpus = _read_file(path, fit, captions, uncaptioned)
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error}") from error
    corpus.notes += sound_notes(corpus.documents)
    return corpus.checked(str(path))


def _read_file(path: Path, fit: Fit, captions: Captions | None, uncaptioned: bool) -> Corpus:
    if path.suffix == ".jsonl":
        return read_jsonl(path, fit)
    if path.suffix == ".parquet":
        return read_parquet([path], fit, captions, uncaptioned=uncaptioned)
    if path.suffix == ".txt":
        raise ValueError(f"{path} is a text: {TEXTS}")
    raise ValueError(f"{path}: no reader for {path.suffix or 'files without a suffix'}; .jsonl and .parquet are read")


def _read_folder(path: Path, fit: Fit, captions: Captions | None, train: bool, uncaptioned: bool) -> Corpus:
    if is_latents(path):
        return read_latents(path, fit, train=train)
    if found := _tables(path):
        chosen = [_own(table, path) for table in found if _is_training(table) == train]
        return read_parquet(chosen, fit, captions, uncaptioned=uncaptioned)
    if _seen(path, "*-idx3-ubyte*"):
        return read_idx(path, captions or unchanged, train=train, fit=fit)
    if _seen(path, "captions.jsonl"):
        return read_jsonl(_own(path / "captions.jsonl", path), fit)
    return read_folder(path, fit, captions, uncaptioned=uncaptioned)


def has_held_out(path: str | Path) -> bool:
    """Whether a path has a held-out split beside the one to train on, which `read` gives for `train=False`."""
    path = Path(path)
    if is_latents(path):
        return latents_have_held_out(path)
    if found := _tables(path):
        return len({_is_training(table) for table in found}) == 2
    return bool(_seen(path, "t10k-images-idx3-ubyte*"))


def read_texts(path: str | Path, *, train: bool = True) -> Corpus:
    """The texts of a Parquet table, or of the tables of a folder; `train` picks the split, where there are both. Raises
    ValueError: there are no tables, none of their texts can be read, or more than 5 % cannot."""
    return read_text_tables(tables(path, "texts: give a Parquet table with a column text", train=train)).checked(str(path))


def tables(path: str | Path, wanted: str, *, train: bool = True) -> list[Path]:
    """A Parquet table, or the tables of a folder's split, where it has both. Raises ValueError: there are none; `wanted` is
    what they should hold."""
    path = Path(path)
    found = _tables(path) if path.is_dir() else [path] * (path.suffix == ".parquet" and path.exists())
    if not found:
        raise ValueError(f"no {wanted}, or a folder of them, with --data; {path} is none")
    return [_own(table, path) for table in found if _is_training(table) == train] if path.is_dir() else found


def _tables(path: Path) -> list[Path]:
    """The Parquet files of a folder, in Hugging Face's convention."""
    return _seen(path, "*.parquet") or _seen(path / "data", "*.parquet")


def _is_training(table: Path) -> bool:
    return HELD_OUT.isdisjoint(re.split("[^a-z]+", table.stem.lower()))


def _seen(folder: Path, pattern: str) -> list[Path]:
    """The files of a folder that match and are not hidden, in the order of their names."""
    return sorted(file for file in folder.glob(pattern) if not file.name.startswith("."))


def _own(file: Path, folder: Path) -> Path:
    """The file itself. Raises ValueError, naming it, if it is a link that leads out of the folder."""
    try:
        inside(file, folder)
    except ValueError as error:
        raise ValueError(f"{file} is a link: {error}; copy it there") from error
    return file


def read_folder(path: Path, fit: Fit, captions: Captions | None = unchanged, *, uncaptioned: bool = False) -> Corpus:
    """The images below a folder, and the sounds where `fit` has a form for them. The caption is the text file of the same name,
    or else the name of the item's own folder; a sound in the top folder has its own name. What has neither goes to
    `unreadable`, unless `captions` is None or `uncaptioned` ones are wanted; and so does what cannot be read or lies behind a
    link out of the folder. With `captions` None, a caption that cannot be read is none."""
    corpus = Corpus()
    sound = fit.sounds[0] if fit.sounds else None
    others: list[Path] = []
    for file in sorted(_below(path, corpus)):
        name, is_sound = str(file.relative_to(path)), file.suffix.lower() in SOUND_SUFFIXES
        if is_sound and sound is None:
            others.append(file)
            continue
        try:
            try:
                texts = (captions or unchanged)(caption(_caption(file, path, named=is_sound)))
            except (OSError, ValueError) as error:
                if captions and not (uncaptioned and isinstance(error, NoCaption)):
                    raise
                texts = ()
            if is_sound and sound is not None:
                item = Media(EncodedSound.open(inside(file, path), sound, name), sound.modality)
            else:
                item = Media(EncodedImage(inside(file, path), fit, name).checked())
            corpus.documents.append(captioned(texts, item, name))
        except UnicodeDecodeError:
            corpus.unreadable.append(f"{name}: its caption is not UTF-8")
        except (OSError, ValueError) as error:
            corpus.unreadable.append(str(error) if str(error).startswith(name) else f"{name}: {error}")
    if others and not corpus.documents:
        corpus.notes.append(f"it holds sounds, such as {others[0].name}: these are learned by transfusion train speech")
    elif not corpus.documents and not corpus.unreadable and (texts := _seen(path, "*.txt")):
        corpus.notes.append(f"it holds texts, such as {texts[0].name}: {TEXTS}")
    return corpus


def _caption(item: Path, folder: Path, *, named: bool = False) -> str:
    """The caption of an item; `named`: in the top folder its own name, without the underscores."""
    beside = item.with_suffix(".txt")
    if os.path.lexists(beside):  # a link to nowhere is no reason to take another caption
        return read_text(inside(beside, folder), MAX_CAPTION)
    if item.parent == folder and named:
        return item.stem.replace("_", " ")
    if item.parent == folder:
        raise NoCaption(f"no caption; write one to {beside.name}, or put the image in a folder named for it")
    return item.parent.name.replace("_", " ")


def _below(top: Path, corpus: Corpus) -> Iterator[Path]:
    """The images and sounds below a folder, without hidden files and folders. Folders that are links go to the notes of the
    corpus, those that cannot be read to `unreadable`. Raises OSError if the top cannot be read."""
    folders, others = [top], []
    while folders:
        folder = folders.pop()
        try:
            entries = [entry for entry in os.scandir(folder) if not entry.name.startswith(".")]
        except OSError as error:
            if folder == top:
                raise
            corpus.unreadable.append(f"{folder.relative_to(top)}: {error.strerror}")
            continue
        for entry in entries:
            path = folder / entry.name
            if entry.is_dir(follow_symlinks=False):
                folders.append(path)
            elif path.suffix.lower() in (*SUFFIXES, *SOUND_SUFFIXES):
                yield path
            elif path.suffix.lower() in OTHER_SUFFIXES:
                others.append(str(path.relative_to(top)))
            elif entry.is_symlink() and path.is_dir():
                corpus.notes.append(f"{path.relative_to(top)}: a link to a folder is not followed: copy that folder here")
    if others:
        names = ", ".join(sorted(others)[:3]) + ", ..." * (len(others) > 3)
        corpus.notes.append(f"{len(others):,} images of other kinds are not read ({names}): save them as PNG, JPEG or WebP")


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
    path = next((path for path in (folder / name, folder / f"{name}.gz") if os.path.lexists(path)), None)
    if path is None:
        raise ValueError(f"no {name}[.gz] in {folder}; --data wants the folder with the four idx files")
    try:
        with open_file(inside(path, folder)) as packed, gzip.open(packed) if path.suffix == ".gz" else packed as file:
            if struct.unpack(">HBB", file.read(4)) != (0, 8, axes):
                raise ValueError(f"not an idx file of unsigned bytes with {axes} axes")
            shape = struct.unpack(f">{axes}I", file.read(4 * axes))
            size = math.prod(shape)
            if size > MAX_IDX or math.prod(shape[1:]) > MAX_PIXELS:
                raise ValueError(f"{' x '.join(map(str, shape))} bytes are too many")
            if axes > 1 and not math.prod(shape[1:]):
                raise ValueError(f"images of {' x '.join(map(str, shape[1:]))} pixels are empty")
            data = file.read(size + 1)  # no more: a small file may unpack to any size
        if len(data) != size:
            raise ValueError(f"{'more' if len(data) > size else 'fewer'} than the {size:,} bytes that its header names")
        return np.frombuffer(data, np.uint8).reshape(shape)
    except (EOFError, OSError, struct.error, zlib.error, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
