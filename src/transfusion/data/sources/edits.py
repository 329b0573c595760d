"""Parquet tables of edits -> a source image, an instruction, and the target image.

Columns: `source_image` and `target_image` (bytes, or a struct with them), `instruction`; `source_text`, `target_text` and
`edit_type` where they are known, by which edits are grouped and measured.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from transfusion.data.corpus import Corpus, caption
from transfusion.data.document import Document, Media, MediaError, Text
from transfusion.data.media import EncodedImage, Fit
from transfusion.data.sources.parquet import read_table
from transfusion.data.sources.read import tables

COLUMNS = ("source_image", "instruction", "target_image")
NAMED = ("source_text", "target_text", "edit_type")


@dataclass(frozen=True, eq=False)
class Edit:
    """An edit.

    Args:
        document: the source, which is given; the instruction; the target, which is drawn.
        source, target: what the two images are called; empty where that is not known.
        kind: of the edit.
    """

    document: Document
    source: str
    target: str
    kind: str


def read_edits(path: str | Path, fit: Fit, *, train: bool = True) -> list[Edit]:
    """The edits of a table, or of a folder's tables of a split. Raises ValueError: no such table, or more than 5 % of its rows
    cannot be read."""
    edits: list[Edit] = []
    corpus = Corpus()
    for table in tables(path, train=train):
        rows = read_table(table, COLUMNS, NAMED, "transfusion train emoji_edit learns edits of images")
        for number, row in enumerate(rows):
            name = f"{table.name}:{number}"
            try:
                source, target = (_image(row[column], fit, name, column) for column in ("source_image", "target_image"))
                if not isinstance(row["instruction"], str):
                    raise MediaError(f"{name}: no instruction")
                text = Text(caption(row["instruction"]), loss=False)
                document = Document((Media(source, use="context"), text, Media(target)), name=name)
            except MediaError as error:
                corpus.unreadable.append(str(error))
                continue
            corpus.documents.append(document)
            edits.append(Edit(document, *(str(row.get(column) or "") for column in NAMED)))
    corpus.checked(str(path))
    return edits


def _image(cell: object, fit: Fit, name: str, column: str) -> EncodedImage:
    data = cell.get("bytes") if isinstance(cell, dict) else cell
    if not isinstance(data, bytes):
        raise MediaError(f"{name}: no bytes of an image in {column}")
    return EncodedImage(data, fit, f"{name} {column}").checked()


def as_corpus(edits: list[Edit], keep: Callable[[Edit], bool] = lambda edit: True) -> Corpus:
    """Their documents."""
    return Corpus([edit.document for edit in edits if keep(edit)])
