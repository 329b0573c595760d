"""Parquet tables of edits -> a source image, an instruction, and the target image.

Columns: `source_image` and `target_image` (bytes, or a struct with them), `instruction`; `source_text`, `target_text` and
`edit_type` where they are known, by which edits are grouped and measured.
"""

from dataclasses import dataclass
from pathlib import Path

from transfusion.data.corpus import Corpus, caption
from transfusion.data.document import Document, Media, MediaError, Text
from transfusion.data.media import EncodedImage, Fit
from transfusion.data.sources.parquet import opened
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
    """The edits of a table, or of the tables of a folder's split; unreadable rows are left out. Raises ValueError: no such
    table, or more than 5 % of its rows cannot be read."""
    wanted = f"edits: give a Parquet table with columns {', '.join(COLUMNS)}"
    edits: list[Edit] = []
    corpus = Corpus()
    for table in tables(path, wanted, train=train):
        with opened(table, corpus) as file:
            if file is None:
                continue
            columns = [name for name in (*COLUMNS, *NAMED) if name in file.schema_arrow.names]
            if missing := [name for name in COLUMNS if name not in columns]:
                raise ValueError(f"it has no column {', '.join(missing)}; it has {file.schema_arrow.names}")
            rows = file.read(columns).to_pylist()
        for number, row in enumerate(rows):
            name = f"{table.name}:{number}"
            try:
                if not isinstance(row["instruction"], str):
                    raise MediaError(f"{name}: no instruction")
                source, target = (_image(row[column], fit, f"{name} {column}") for column in ("source_image", "target_image"))
                text = Text(caption(row["instruction"]), loss=False)
                document = Document((Media(source, use="context"), text, Media(target)), name=name)
            except MediaError as error:
                corpus.unreadable.append(str(error))
                continue
            corpus.documents.append(document)
            edits.append(Edit(document, *(str(row.get(column) or "") for column in NAMED)))
    corpus.checked(str(path))
    return edits


def _image(cell: object, fit: Fit, name: str) -> EncodedImage:
    data = cell.get("bytes") if isinstance(cell, dict) else cell
    if not isinstance(data, bytes):
        raise MediaError(f"{name}: no bytes of an image")
    return EncodedImage(data, fit, name).checked()
