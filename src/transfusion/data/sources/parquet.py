"""Parquet tables, Hugging Face's convention -> captioned images."""

import json
from collections.abc import Sequence
from pathlib import Path

from transfusion.data.corpus import Captions, Corpus, captioned, unchanged
from transfusion.data.document import Media, MediaError
from transfusion.data.media import EncodedImage, Fit


def read_parquet(paths: Sequence[Path], fit: Fit, captions: Captions = unchanged) -> Corpus:
    """Tables with an image column (bytes, or a struct with them) and `text` or `caption` (a string, or a list of paraphrases),
    or a class `label` (named in the Hugging Face metadata, or not). Raises ValueError: pyarrow or a column is missing."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ValueError("reading Parquet needs pyarrow: pip install 'transfusion-kit[parquet]'") from error
    corpus = Corpus()
    for path in paths:
        table = pq.read_table(path)
        columns = {name.lower(): name for name in table.column_names}
        image = next((columns[c] for c in ("image", "picture", "jpg", "png") if c in columns), None)
        text = next((columns[c] for c in ("text", "caption") if c in columns), None)
        class_names: list[str] | None = None
        if text is None and "label" in columns:
            text = columns["label"]
            features = json.loads((table.schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features", {})
            class_names = features.get(text, {}).get("names")
        if image is None or text is None:
            raise ValueError(f"{path}: needs a column image and a column text, caption or label; it has {table.column_names}")
        texts = table[text]
        if pa.types.is_string(texts.type) or pa.types.is_large_string(texts.type):
            texts = texts.cast(pa.binary())  # decoded by row in `_texts`, so that a row of invalid UTF-8 fails alone
        for number, (cell, value) in enumerate(zip(table[image].to_pylist(), texts.to_pylist(), strict=True)):
            name = f"{path.name}:{number}"
            data = cell.get("bytes") if isinstance(cell, dict) else cell
            try:
                if not isinstance(data, bytes):
                    raise MediaError(f"{name}: no image bytes")
                paraphrases = tuple(p for caption in _texts(value, class_names, name) for p in captions(caption))
                corpus.documents.append(captioned(paraphrases, Media(EncodedImage(data, fit, name).checked()), name))
            except MediaError as error:
                corpus.unreadable.append(str(error))
    return corpus


def _texts(value: object, class_names: list[str] | None, name: str) -> list[str]:
    """The captions of a cell. Raises MediaError, naming the row, where it has none."""
    if isinstance(value, int) and not isinstance(value, bool):
        if class_names is None:
            return [str(value)]
        if not 0 <= value < len(class_names):
            raise MediaError(f"{name}: label {value} has no name; there are {len(class_names)}")
        return [class_names[value]]
    try:
        values = value if isinstance(value, list) else [value]
        cells = [cell.decode("utf-8") if isinstance(cell, bytes) else cell for cell in values]
    except UnicodeDecodeError as error:
        raise MediaError(f"{name}: its caption is not UTF-8") from error
    texts = [cell.strip() for cell in cells if isinstance(cell, str)]
    if len(texts) < len(cells) and value is not None:
        raise MediaError(f"{name}: a caption is text, not {str(value)[:40]!r}")
    if not any(texts):
        raise MediaError(f"{name}: empty caption")
    return [text for text in texts if text]
