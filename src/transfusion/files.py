"""Files and folders that are replaced whole: a reader finds the old content or the new, never half of either."""

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a path to write a file or a folder to. It replaces `path` at the end of the block; if the block raises, it is
    removed and `path` stays as it was. Raises OSError if it can't be written (also where safetensors raises its own type)."""
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    try:
        yield temporary
        for file in sorted(temporary.iterdir()) if temporary.is_dir() else [temporary]:
            _sync(file)
        if path.is_dir():
            shutil.rmtree(path)
        os.replace(temporary, path)
        _sync(path.parent)
    except BaseException as error:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)
        if isinstance(error, SafetensorError):
            raise OSError(f"{path} cannot be written: {error}") from error
        raise


def write_tensors(path: Path, tensors: Mapping[str, Any]) -> None:
    """Write tensors by name as a safetensors file, replacing it whole. Raises OSError if it can't be written."""
    from safetensors.torch import save_file  # here: the command line writes files before it needs torch

    with replacing(path) as temporary:
        save_file({name: t.detach().contiguous() for name, t in tensors.items()}, temporary, metadata={"format": "pt"})


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, replacing it whole. Raises OSError if it can't be written."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _sync(path: Path) -> None:
    """Have the disk hold what was written before a rename makes it count."""
    if os.name == "nt":  # neither folders nor files opened for reading can be synced
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
