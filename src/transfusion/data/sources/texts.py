"""A plain text, whose last tenth is held out; and long texts, cut into documents."""

from pathlib import Path

from transfusion.data.corpus import check_text, is_blank
from transfusion.data.document import Document, Text
from transfusion.files import read_text

HELD_OUT = 0.1
"""Share of a text, its end, that is not trained on."""
NAME = "input.txt"


def read_plain(path: str | Path) -> tuple[str, str]:
    """The text to train on and the held-out text, of a .txt file or of `input.txt` in a folder.

    Raises:
        ValueError: no such file, no UTF-8, no text, or more of it than a document may have.
    """
    path = Path(path)
    file = path / NAME if path.is_dir() else path
    if not file.exists():
        raise ValueError(f"no text at {file}; give a .txt file, or a folder with {NAME}, with --data")
    if file.suffix != ".txt":
        raise ValueError(f"{file} is no plain text: give a .txt file, or a folder with {NAME}, with --data")
    try:
        text = read_text(file)
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 ({error.reason} at byte {error.start:,}): save it as UTF-8") from error
    except OSError as error:
        raise ValueError(f"cannot read {file}: {error}") from error
    if is_blank(text):
        raise ValueError(f"{file} is empty: it needs text to train on")
    first = len(text) - int(HELD_OUT * len(text))
    return text[:first], text[first:]


def windows(text: str, length: int, step: int) -> list[Document]:
    """All windows of `length` characters that begin a multiple of `step` after the first character, and the last one. Raises
    ValueError: the text is shorter than two windows, or holds NUL."""
    if len(text) < 2 * length:
        raise ValueError(f"{len(text):,} characters of text are too few: {2 * length:,} or more are needed")
    documents = []
    for start in (*range(0, len(text) - length, step), len(text) - length):
        check_text(window := text[start : start + length])
        documents.append(Document((Text(window),), name=f"character {start}"))
    return documents


def pieces(text: str, most: int) -> list[str]:
    """A text in pieces of `most` characters at most, each cut behind the last paragraph, else the last line, sentence or word,
    that ends in the second half of what would fit. Joined, they are the text."""
    found = []
    while len(text) > most:
        ends = (text.rfind(mark, most // 2, most) + len(mark) for mark in ("\n\n", "\n", ". ", " "))
        cut = next((end for end in ends if end > most // 2 + 1), most)
        found.append(text[:cut])
        text = text[cut:]
    return [*found, text] if text else found
