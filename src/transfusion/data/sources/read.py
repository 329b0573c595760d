"""The one door to data on disk: a path -> its documents. Images stay undecoded until they are needed.

folder with [data/]*.parquet          Parquet, Hugging Face's convention (image bytes, text columns)
folder with *-idx3-ubyte[.gz]         MNIST family
folder with captions.jsonl            JSONL with files beside it
folder of images                      image.png + image.txt, or the image's folder as its caption
*.jsonl, *.parquet                    that file
"""

import re
from pathlib import Path

from transfusion.data.corpus import Captions, Corpus, unchanged
from transfusion.data.media import Fit
from transfusion.data.sources.folder import read_folder
from transfusion.data.sources.idx import read_idx
from transfusion.data.sources.jsonl import read_jsonl
from transfusion.data.sources.parquet import read_parquet

HELD_OUT = {"valid", "validation", "val", "test", "dev"}
"""Words in the name of a Parquet file that is not trained on."""


def read(path: str | Path, fit: Fit, captions: Captions = unchanged, *, train: bool = True) -> Corpus:
    """The documents of a path.

    Args:
        fit: size and channels of the images.
        captions: a caption or class name -> its paraphrases.
        train: the training split, where the path has several.

    Raises:
        ValueError: the path does not exist, none of its documents can be read, or more than 5 % cannot.
    """
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
        corpus = read_parquet([t for t in tables if _held_out(t.stem) != train], fit, captions)
    elif list(path.glob("*-idx3-ubyte*")):
        corpus = read_idx(path, captions, train=train, fit=fit)
    elif (path / "captions.jsonl").exists():
        corpus = read_jsonl(path / "captions.jsonl", fit)
    else:
        corpus = read_folder(path, fit, captions)
    return corpus.checked(str(path))


def _held_out(stem: str) -> bool:
    return bool(set(re.split("[^a-z]+", stem.lower())) & HELD_OUT)
