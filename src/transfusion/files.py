"""Files that are read under limits, and files and folders that are replaced whole: a reader finds the old content or the new.

What is read may come from anywhere, so only regular files are opened (a pipe or a device never ends), to a size, and JSON to a
depth. A manifest holds the sizes and SHA-256 digests of the files beside it.
"""

import getpass
import hashlib
import json
import os
import shutil
import socket
import stat
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from io import BufferedReader
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

MANIFEST = "MANIFEST.json"
MAX_BYTES = 256 * 2**20
"""Larger files are not read at once: 256 MiB."""


def open_file(path: Path) -> BufferedReader:
    """Open a regular file. Raises OSError: it cannot be opened, or is a folder, a pipe, a socket or a device."""
    _check_regular(path, os.stat(path))  # opening a device may do something
    # without O_NONBLOCK, opening a pipe would wait for its other end
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        _check_regular(path, os.fstat(handle))
    except OSError:
        os.close(handle)
        raise
    return os.fdopen(handle, "rb")


def _check_regular(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise OSError(f"{path} is {'a folder' if stat.S_ISDIR(status.st_mode) else 'a pipe, a socket or a device'}, not a file")


def read_bytes(path: Path, most: int = MAX_BYTES) -> bytes:
    """The content of a regular file. Raises OSError, as `open_file` or if it has more than `most` bytes."""
    with open_file(path) as file:
        if os.fstat(file.fileno()).st_size > most:
            raise OSError(f"{path} has more than {most:,} bytes")
        return file.read()


def read_text(path: Path, most: int = MAX_BYTES) -> str:
    """The text of a UTF-8 file, with lines that end in \\n and without a byte order mark. Raises OSError as `read_bytes`, and
    UnicodeDecodeError."""
    return read_bytes(path, most).decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")


def read_json(path: Path, most: int = MAX_BYTES) -> Any:
    """What a JSON file holds. Raises OSError as `read_bytes`, ValueError as `parse_json`."""
    return parse_json(read_bytes(path, most).decode("utf-8-sig"))


def parse_json(text: str) -> Any:
    """What a JSON text means. Raises ValueError: it is none, nested too deeply, or an object has a name twice."""
    try:
        return json.loads(text, object_pairs_hook=_object)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    plain = dict(pairs)
    if len(plain) < len(pairs):
        raise ValueError(f"{Counter(name for name, _ in pairs).most_common(1)[0][0]!r} stands twice in an object")
    return plain


def inside(path: Path, folder: Path) -> Path:
    """The file that a path below a folder means, symbolic links resolved. In the cache of the Hugging Face hub, whose snapshots
    are links, the folder is the whole repository. Raises ValueError: the file lies outside."""
    real, home = Path(os.path.realpath(path)), Path(os.path.realpath(folder))
    home = next((p.parent for p in home.parents if p.name == "snapshots" and (p.parent / "blobs").is_dir()), home)
    if not real.is_relative_to(home):
        raise ValueError(f"it lies outside {folder}")
    return real


# ---- manifests ------------------------------------------------------------------------------------------------------


def manifest(files: Mapping[str, Path]) -> dict[str, dict[str, Any]]:
    """Name -> size and SHA-256 of each file."""
    return {name: {"bytes": file.stat().st_size, "sha256": sha256(file)} for name, file in sorted(files.items())}


def mismatch(folder: Path, files: Mapping[str, Any]) -> str | None:
    """The first file of a folder that differs from its entry in a manifest; None if all are as they were. Raises OSError for a
    file that cannot be read, KeyError, TypeError or AttributeError for entries of another form."""
    for name, entry in files.items():
        file = folder / name
        if file.name != name or not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != entry["bytes"]:
            return f"{name} has {file.stat().st_size} bytes, its manifest says {entry['bytes']}"
        if sha256(file) != entry["sha256"]:
            return f"{name} is damaged (its digest differs)"
    return None


def sha256(file: Path) -> str:
    """The SHA-256 of a regular file in hex digits. Raises OSError."""
    with open_file(file) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


# ---- writing --------------------------------------------------------------------------------------------------------


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
    with replacing(path) as temporary:
        save_tensors(temporary, tensors)


def save_tensors(path: Path, tensors: Mapping[str, Any]) -> None:
    """Write a safetensors file, inside `replacing`."""
    from safetensors.torch import save_file  # here: the command line writes files before it needs torch

    save_file({name: t.detach().contiguous() for name, t in tensors.items()}, path, metadata={"format": "pt"})


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, replacing it whole. Raises OSError if it can't be written."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def keep_text(path: Path, text: str) -> None:
    """As `write_text`, where the file does not hold this text yet."""
    try:
        if read_text(path) == text:
            return
    except (OSError, UnicodeDecodeError):
        pass
    write_text(path, text)


# ---- locks ----------------------------------------------------------------------------------------------------------

LOCK = "in-use"
_held: dict[str, int] = {}
"""Folders that this process holds, and by how many blocks."""


class InUse(OSError):
    """Another process works in a folder."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder, which is made if need be, for this process: its file `in-use` says who. The operating system releases a
    folder when the process ends, however it does. On Windows, and where a file system has no locks, nothing is held.

    Raises:
        InUse: another process holds it; the message names it.
        OSError: the folder can't be made or written.
    """
    name = os.path.realpath(folder)
    if _held.get(name) or fcntl is None:
        _held[name] = _held.get(name, 0) + 1
        try:
            yield
        finally:
            _held[name] -= 1
        return
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            owner = file.read(500).strip() or "another process"
            raise InUse(f"{folder} is in use by {owner}: wait for it, or choose another --out") from None
        except OSError:  # a file system without locks
            pass
        file.truncate(0)
        file.write(
            f"process {os.getpid()} of {getpass.getuser()} on {socket.gethostname()}, since {datetime.now():%Y-%m-%d %H:%M}\n"
        )
        file.flush()
        _held[name] = 1
        try:
            yield
        finally:
            _held[name] = 0
            file.truncate(0)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return "an unnamed user"


def _sync(path: Path) -> None:
    """Have the disk hold what was written before a rename makes it count."""
    if os.name == "nt":  # neither folders nor files opened for reading can be synced
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
