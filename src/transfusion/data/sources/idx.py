"""The four idx files of the MNIST family, plain or .gz -> captioned images."""

import gzip
import struct
from pathlib import Path

import numpy as np

from transfusion.data.corpus import Captions, Corpus, captioned, unchanged
from transfusion.data.document import Media
from transfusion.data.media import Fit, Pixels


def read_idx(path: Path, captions: Captions = unchanged, *, train: bool = True, fit: Fit | None = None) -> Corpus:
    """Images and labels of the MNIST family; captions are made from the class number.

    Args:
        fit: size and channels of the images (None: their own).
    """
    pixels, labels = idx_arrays(path, train=train)
    by_label = {int(label): captions(str(label)) for label in np.unique(labels)}
    split = "train" if train else "test"
    return Corpus(
        [
            captioned(by_label[int(label)], Media(Pixels(image, fit)), f"{split}:{i}")
            for i, (image, label) in enumerate(zip(pixels, labels, strict=True))
        ]
    )


def idx_arrays(path: Path, *, train: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """(uint8 [image, height, width], [label]) of a folder with the MNIST family's four files, plain or .gz.

    Raises:
        ValueError: a file is missing, empty, or has another format.
    """
    prefix = "train" if train else "t10k"
    pixels = _read_idx(path, f"{prefix}-images-idx3-ubyte", 3)
    labels = _read_idx(path, f"{prefix}-labels-idx1-ubyte", 1)
    if len(pixels) != len(labels):
        raise ValueError(f"{path}: {len(pixels)} images but {len(labels)} labels in the {prefix} split")
    if not len(pixels):
        raise ValueError(f"{path}: the {prefix} split is empty")
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
