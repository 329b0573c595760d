"""A corpus: the documents that a source holds, and the names of those that cannot be read."""

import hashlib
import os
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor

from transfusion import rng
from transfusion.data.document import Document, Media, MediaError, Text
from transfusion.data.latents import StoredLatents
from transfusion.data.media import ArrayFile, DecodedImage, EncodedImage
from transfusion.data.sound import EncodedSound
from transfusion.files import sha256

MAX_UNREADABLE = 0.05
"""Share of unreadable documents above which reading fails."""
MAX_TEXT = 1_000_000
"""Characters of a document's text at most; no row holds so many."""
INVISIBLE = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0") | {chr(c) for c in range(0xFE00, 0xFE10)}
"""Characters that show nothing, though Unicode classes them as letters, marks or symbols."""

Captions: TypeAlias = Callable[[str], tuple[str, ...]]
"""A caption or class name -> its paraphrases, the first of them the caption itself."""


def unchanged(caption: str) -> tuple[str, ...]:
    """The caption alone."""
    return (caption,)


def _is_blank(character: str) -> bool:
    """Whether it shows nothing: a space, a control or format character (byte order mark, joiner of width zero), a filler."""
    return unicodedata.category(character) in ("Zs", "Zl", "Zp", "Cc", "Cf") or character in INVISIBLE


def is_blank(text: str) -> bool:
    """Whether a text shows nothing."""
    return all(map(_is_blank, text))


def check_text(text: str) -> None:
    """Raise MediaError for what is no text: NUL, half a surrogate pair, or more characters than any row holds."""
    if len(text) > MAX_TEXT:
        raise MediaError(f"{len(text):,} characters of text are more than {MAX_TEXT:,}: cut it into several documents")
    if "\0" in text:
        raise MediaError("its text holds NUL, as binary files and UTF-16 do: save it as UTF-8")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise MediaError("its text holds half a surrogate pair, as names that are not UTF-8 do: it is no character") from error


class NoCaption(MediaError):
    """An item has no caption, or one that shows nothing."""


def caption(text: str) -> str:
    """A caption without what shows nothing at its ends. Raises MediaError: nothing is left (NoCaption), or as `check_text`."""
    check_text(text)
    start = next((i for i, character in enumerate(text) if not _is_blank(character)), None)
    if start is None:
        raise NoCaption("its caption is empty")
    end = next(i for i in range(len(text), 0, -1) if not _is_blank(text[i - 1]))
    return text[start:end]


@dataclass
class Corpus(Sequence[Document]):
    """Documents, a line for each that cannot be read (its name and the reason), and a line for each file without any."""

    documents: list[Document] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.documents)

    def __getitem__(self, index):  # type: ignore[override]
        return self.documents[index]

    def checked(self, source: str) -> "Corpus":
        """Itself. Raises ValueError if no document can be read, or more than 5 % cannot."""
        total = len(self.documents) + len(self.unreadable)
        listed = "".join(f"\n  {line}" for line in (*self.unreadable[:10], *self.notes[:10]))
        if not self.documents:
            formats = "; folders of images or sounds, captions.jsonl, Parquet and idx files are read"
            raise ValueError(f"{source}: no documents{' can be read:' + listed if listed else formats}")
        if len(self.unreadable) > MAX_UNREADABLE * total:
            count = f"{len(self.unreadable)} of {total} documents"
            raise ValueError(f"{source}: {count} cannot be read; mend or remove them:{listed}")
        return self

    def report(self, log: Callable[[str], None]) -> "Corpus":
        """Itself, after what was left out has been said to a log."""
        if self.unreadable:
            log(f"left out {len(self.unreadable)} unreadable documents:")
        for line in (*self.unreadable[:20], *self.notes[:20]):
            log(f"  {line}")
        return self


def captioned(captions: tuple[str, ...], media: Media, name: str) -> Document:
    """The first caption, then the item; the other captions are its paraphrases. Without captions, the item alone."""
    texts = (Text(captions[0], paraphrases=captions[1:]),) if captions else ()
    return Document((*texts, media), name=name)


def hold_out(corpus: Corpus, share: float, most: int, *, least: int = 0) -> tuple[Corpus, Corpus]:
    """The documents to train on, and a share of them, from `least` to `most`, that are held out: by a digest of their names, so
    the same ones when others come or go, as far as `least` and `most` allow."""
    order = {name: rng.uniform("images", "held out", name) for name in {d.name for d in corpus}}
    drawn = {name for name in order if order[name] < share}
    drawn = set(sorted(order, key=order.__getitem__)[: min(max(len(drawn), least), most)])
    kept = [d for d in corpus if d.name not in drawn]
    return Corpus(kept, corpus.unreadable, corpus.notes), Corpus([d for d in corpus if d.name in drawn])


# ---- digests --------------------------------------------------------------------------------------------------------


def text_digest(documents: Iterable[Document]) -> str:
    """Hex digits of the names, texts and kinds of media of documents, in their order."""
    contents = ((d.name, *(s.content if isinstance(s, Text) else s.modality for s in d.segments)) for d in documents)
    return f"{rng.key(*(repr(content) for content in contents)):x}"


def learning_digest(documents: Iterable[Document]) -> str:
    """16 hex digits of what documents say of their learning beside names, texts and media: paraphrases, losses, weights, uses,
    times, noise and masks."""

    def parts() -> Iterator[bytes]:
        for document in documents:
            yield repr(document.language_loss).encode()
            for s in document.segments:
                if isinstance(s, Text):
                    yield repr((s.loss, s.paraphrases, s.weight)).encode()
                else:
                    yield repr((s.use, s.times, float(s.weight), s.private, s.size)).encode()
                    for tensor in (s.noise, s.mask):
                        yield b"" if tensor is None else tensor.detach().cpu().double().contiguous().numpy().tobytes()

    return _digest(parts())


def media_digest(documents: Iterable[Document]) -> str:
    """16 hex digits of all media that documents hold in memory; of a `LazyMedia` of another kind, its shape alone."""

    def parts() -> Iterator[bytes]:
        for values in (media.values for document in documents for media in document.media):
            yield b"" if values is None else repr(tuple(values.shape)).encode()
            if isinstance(values, Tensor):
                yield values.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
            elif isinstance(values, DecodedImage):
                yield values.pixels.tobytes()
            elif isinstance(values, EncodedImage | EncodedSound) and isinstance(values.source, bytes):
                yield values.source

    return _digest(parts())


_FILES = {ArrayFile: "path", EncodedImage: "source", EncodedSound: "source", StoredLatents: "file"}
"""Kinds of media that may be in a file, and where they hold its path."""


def media_files(documents: Iterable[Document]) -> list[Path]:
    """The files that hold media of documents, each once, in their order."""
    values = [media.values for document in documents for media in document.media]
    sources = [getattr(v, _FILES[type(v)]) if type(v) in _FILES else None for v in values]
    return list(dict.fromkeys(source for source in sources if isinstance(source, Path)))


def status_digest(files: Iterable[Path]) -> str:
    """16 hex digits by which files are taken as unchanged without reading them: sizes, times, places on the disk."""

    def status(file: Path) -> bytes:
        try:
            found = os.stat(file)
        except OSError as error:
            return str(error.errno).encode()
        return repr((found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_dev)).encode()

    return _digest(map(status, files))


def files_digest(files: Iterable[Path]) -> str:
    """16 hex digits of the content of files, each read whole; one that cannot be read counts as such."""

    def content(file: Path) -> bytes:
        try:
            return sha256(file).encode()
        except OSError as error:
            return str(error.errno).encode()

    return _digest(map(content, files))


def _digest(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()[:16]
