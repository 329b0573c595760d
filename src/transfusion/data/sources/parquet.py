"""Parquet tables, Hugging Face's convention -> captioned images, or sounds; or texts alone."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transfusion.data.corpus import Captions, Corpus, NoCaption, caption, captioned, is_blank, unchanged
from transfusion.data.document import Document, Media, MediaError, Text
from transfusion.data.media import EncodedImage, Fit, SoundFit
from transfusion.data.sound import EncodedSound
from transfusion.files import open_file, parse_json

IMAGES, SOUNDS = ("image", "picture", "jpg", "png"), ("audio", "sound", "speech", "wav")
"""Names of columns of images and of sounds."""
MAX_ROWS = 50_000_000
"""Rows of a table at most: they are held in memory, and a file of a few kilobytes can name any number."""


def read_parquet(
    paths: Sequence[Path], fit: Fit, captions: Captions | None = unchanged, *, uncaptioned: bool = False
) -> Corpus:
    """Tables with a column of images, or of sounds where `fit` has any (bytes, or a struct with them), and `text` or `caption`
    (a string, or a list of paraphrases), or a class `label` (named in the Hugging Face metadata, or not); with `uncaptioned`,
    rows and tables need no caption, and with `captions` None they have it only where it can be read. Empty tables are noted.
    Raises ValueError: pyarrow or a column is missing, or a table is damaged."""
    corpus = Corpus()
    for path in paths:
        with opened(path, corpus) as table:
            if table is None:
                continue
            item, text, class_names, sound = _columns(
                table.schema_arrow, fit, needed=captions is not None and not uncaptioned, checked=captions is not None
            )
            table = table.read([item, text] if text else [item])
            texts = _bytes(table[text]) if text else [None] * len(table)
            rows = zip(table[item].to_pylist(), texts, strict=True)
        for number, (cell, value) in enumerate(rows):
            name = f"{path.name}:{number}"
            data = cell.get("bytes") if isinstance(cell, dict) else cell
            try:
                if not isinstance(data, bytes):
                    raise MediaError(f"{name}: no bytes of {'an image' if sound is None else 'a sound'}")
                if sound is None:
                    media = Media(EncodedImage(data, fit, name).checked())
                else:
                    media = Media(EncodedSound.open(data, sound, name), sound.modality)
                try:
                    found = _texts(value, class_names, name) if text else []
                except MediaError as error:
                    if captions and not (uncaptioned and isinstance(error, NoCaption)):
                        raise
                    found = []
                paraphrases = tuple(p for one in found for p in (captions or unchanged)(one))
                corpus.documents.append(captioned(paraphrases, media, name))
            except MediaError as error:
                corpus.unreadable.append(str(error))
    return corpus


def read_text_tables(paths: Sequence[Path]) -> Corpus:
    """Tables with a column `text`: a document for each row, named by its `title` and `chapter` where there are such columns.
    Raises ValueError: pyarrow or the column is missing, or a table is damaged."""
    corpus = Corpus()
    for path in paths:
        with opened(path, corpus) as table:
            if table is None:
                continue
            columns = [name for name in ("text", "title", "chapter") if name in table.schema_arrow.names]
            if columns[:1] != ["text"]:
                raise ValueError(f"it needs a column text; it has {table.schema_arrow.names}")
            if others := [name for name in table.schema_arrow.names if name.lower() in (*IMAGES, *SOUNDS)]:
                corpus.notes.append(f"{path.name}: its texts alone are learned, not its column {', '.join(others)}")
            table = table.read(columns)
            texts, named = _bytes(table["text"]), table.select(columns[1:]).to_pylist()
        for number, (value, names) in enumerate(zip(texts, named, strict=True)):
            name = ": ".join(map(str, names.values())) or f"{path.name}:{number}"
            try:
                (text,) = _texts(value, None, name)
                corpus.documents.append(Document((Text(text),), name=name))
            except ValueError as error:
                corpus.unreadable.append(str(error))
    return corpus


def read_pictures(paths: Sequence[Path], fit: Fit) -> dict[str, EncodedImage]:
    """The images of tables with a column `image` of structs, by their path in it. Raises ValueError: pyarrow or the column is
    missing, a table or an image is damaged, or two have one path."""
    found: dict[str, EncodedImage] = {}
    for path in paths:
        with opened(path, Corpus()) as table:
            if table is None:
                continue
            if "image" not in table.schema_arrow.names:
                raise ValueError(f"it needs a column image; it has {table.schema_arrow.names}")
            for number, cell in enumerate(table.read(["image"])["image"].to_pylist()):
                data, name = (cell.get("bytes"), cell.get("path")) if isinstance(cell, dict) else (None, None)
                if not isinstance(data, bytes) or not isinstance(name, str) or name in found:
                    raise ValueError(f"row {number} needs the bytes of an image, and a path of its own")
                found[name] = EncodedImage(data, fit, f"{path.name}: {name}").checked()
    return found


@contextmanager
def opened(path: Path, corpus: Corpus) -> Iterator[Any]:
    """A table, opened; None, and a note in the corpus, if it is empty. Raises ValueError: no pyarrow, or, naming the file, for
    what fails while it is open."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ValueError("reading Parquet needs pyarrow: pip install 'transfusion-kit[parquet]'") from error
    try:
        with open_file(path) as file:
            if not file.read(1):
                corpus.notes.append(f"{path.name}: an empty file")
                yield None
                return
            table = pq.ParquetFile(file)
            if table.metadata.num_rows > MAX_ROWS:
                raise ValueError(f"{table.metadata.num_rows:,} rows are more than {MAX_ROWS:,}: cut it into several tables")
            if not table.metadata.num_rows:
                corpus.notes.append(f"{path.name}: a table without rows")
            yield table if table.metadata.num_rows else None
    except (pa.ArrowException, OSError, ValueError) as error:
        raise ValueError(f"cannot read {path}: {error}") from error


def _bytes(column: Any) -> list[Any]:
    """The cells of a column of texts; strings as bytes, which `_texts` decodes by row: one of invalid UTF-8 fails alone."""
    return (column.cast("binary") if str(column.type) in ("string", "large_string") else column).to_pylist()


def _columns(
    schema: Any, fit: Fit, *, needed: bool, checked: bool
) -> tuple[str, str | None, list[str] | None, SoundFit | None]:
    """The columns of items and of texts, the names of classes where the texts are their numbers, and the form of the items if
    they are sounds; no texts where those names are of another form, unless this is `checked`. Raises ValueError: there are none
    and they are needed, or that form."""
    columns = {name.lower(): name for name in schema.names}
    image, audio = (next((columns[c] for c in names if c in columns), None) for names in (IMAGES, SOUNDS))
    sound = fit.sounds[0] if fit.sounds and audio is not None else None
    item = image if sound is None else audio
    if item is None and audio is not None:
        raise ValueError(f"its column {audio} holds sounds, and images are wanted: transfusion train speech learns sounds")
    text = next((columns[c] for c in ("text", "caption", "label") if c in columns), None)
    if item is None or (text is None and needed):
        kind = "audio" if fit.sounds else "image"
        other = "emoji_edit learns edits" if "target_image" in columns else "books_text learns texts" * ("text" in columns)
        raise ValueError(
            f"it needs a column {kind}{' and a column text, caption or label' * needed}; it has {schema.names}"
            + f": transfusion train {other}" * bool(other and item is None)
        )
    if text is None or text.lower() != "label":
        return item, text, None, sound
    try:
        return item, text, _class_names(schema, text), sound
    except ValueError:
        if checked:
            raise
        return item, None, None, sound


def _class_names(schema: Any, text: str) -> list[str] | None:
    names: Any = parse_json((schema.metadata or {}).get(b"huggingface", b"{}").decode("utf-8"))
    for name in ("info", "features", text, "names"):
        names = {} if names is None else names
        if not isinstance(names, dict):
            raise ValueError(f"its Hugging Face metadata is of another form at {name!r}; mend or remove it")
        names = names.get(name)
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise ValueError(f"its Hugging Face metadata has no list of names for the classes of {text!r}; mend or remove it")
    return names


def _texts(value: object, class_names: list[str] | None, name: str) -> list[str]:
    """The captions of a cell. Raises MediaError, naming the row, where it has none."""
    if isinstance(value, int) and not isinstance(value, bool):
        if class_names is None:
            return [str(value)]
        if not 0 <= value < len(class_names):
            raise MediaError(f"{name}: label {value} has no name; there are {len(class_names)}")
        value = class_names[value]
    try:
        values = value if isinstance(value, list) else [value]
        cells = [cell.decode("utf-8") if isinstance(cell, bytes) else cell for cell in values]
        texts = [caption(cell) for cell in cells if isinstance(cell, str) and not is_blank(cell)]
    except UnicodeDecodeError as error:
        raise MediaError(f"{name}: its caption is not UTF-8") from error
    except MediaError as error:
        raise MediaError(f"{name}: {error}") from error
    if value is not None and not all(isinstance(cell, str) for cell in cells):
        raise MediaError(f"{name}: a caption is text, not {str(value)[:40]!r}")
    if not texts:
        raise NoCaption(f"{name}: empty caption")
    return texts
