"""Illustrated chapters -> documents in which texts and pictures alternate.

folder/docs.jsonl        a chapter a line: {"title": ..., "chapter": ..., "segments": [SEGMENT, ...]}, each segment
                         {"type": "text", "text": ...} or {"type": "image", "image": NAME}
folder/pairs_*.parquet   the pictures: a column image of structs with bytes and, as their path, NAME
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transfusion.data.corpus import Corpus, check_text, is_blank
from transfusion.data.document import Document, Media, Segment, Text
from transfusion.data.media import EncodedImage, Fit
from transfusion.data.sources.jsonl import read_lines
from transfusion.data.sources.parquet import read_pictures
from transfusion.data.sources.texts import pieces
from transfusion.files import parse_json

CHAPTERS, PICTURES = "docs.jsonl", "pairs_*.parquet"
LEAST = 2.25
"""Characters of a token, as English has them at least in a vocabulary that was made for it: 3.5 in the mean of 4,096 ids."""


def read_chapters(folder: str | Path, fit: Fit) -> Corpus:
    """The chapters, named "TITLE: CHAPTER", with their pictures at `fit`; each text ends in an empty line. Raises ValueError: a
    file is missing or damaged, or more than 5 % of the chapters cannot be read."""
    folder = Path(folder)
    tables = sorted(folder.glob(PICTURES))
    if not (folder / CHAPTERS).is_file() or not tables:
        raise ValueError(f"no illustrated books at {folder}: give a folder with {CHAPTERS} and {PICTURES}, with --data")
    pictures, corpus = read_pictures(tables, fit), Corpus()
    for name, line in read_lines(folder / CHAPTERS):
        try:
            corpus.documents.append(_chapter(parse_json(line.decode("utf-8")), pictures, name))
        except ValueError as error:
            corpus.unreadable.append(f"{name}: {error}")
    return corpus.checked(str(folder))


def cut(chapter: Document, slots: int, length: int, *, piece: int) -> list[Document]:
    """A chapter in documents of `length` tokens at most, cut at the borders of its segments; longer texts become segments of
    `piece` characters first.

    Args:
        slots: tokens of a picture, its copies and frame counted. A text is counted as a token in 2.25 characters.
    """
    segments: list[Segment] = []
    for segment in chapter.segments:
        text = segment.content if isinstance(segment, Text) else ""
        segments += [Text(part) for part in pieces(str(text), piece)] if text else [segment]
    documents: list[list[Segment]] = [[]]
    room = length - 2  # BOS, EOS
    for segment in segments:
        size = slots if isinstance(segment, Media) else math.ceil(len(str(segment.content)) / LEAST)
        if size > room and documents[-1]:
            documents.append([])
            room = length - 2
        documents[-1].append(segment)
        room -= size
    return [Document(tuple(own), name=f"{chapter.name}: {number}") for number, own in enumerate(documents) if own]


def _chapter(record: Any, pictures: dict[str, EncodedImage], name: str) -> Document:
    """Raises ValueError for a record of another form, or a picture that no table has."""
    try:
        title, chapter, found = str(record["title"]), str(record["chapter"]), record["segments"]
        kinds = [(segment["type"], segment["text"] if segment["type"] == "text" else segment["image"]) for segment in found]
    except (KeyError, TypeError) as error:
        raise ValueError(f'a chapter is {{"title": ..., "chapter": ..., "segments": [...]}}: {error!r}') from error
    segments: list[Segment] = []
    for kind, content in kinds:
        if kind == "text" and isinstance(content, str):
            check_text(content)
            if not is_blank(content):
                segments.append(Text(f"{content.strip()}\n\n"))
        elif kind == "image" and content in pictures:
            segments.append(Media(pictures[content]))
        else:
            raise ValueError(f"a segment is a text, or an image of a table {PICTURES}, not {kind!r} {str(content)[:60]!r}")
    if not segments:
        raise ValueError("a chapter without segments")
    return Document(tuple(segments), name=f"{title}: {chapter}")


def of_titles(chapters: Sequence[Document], titles: tuple[str, ...], *, among: bool) -> list[Document]:
    """The chapters of books that have one of the titles, or of all others."""
    return [chapter for chapter in chapters if chapter.name.startswith(titles) == among]
