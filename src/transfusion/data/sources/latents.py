"""Latents that were encoded once (`codec/encoding.py`) <-> documents. A folder holds shards and a manifest:

    train-00000.safetensors      tensors of latents (and of items without an autoencoder), some documents each
    held-out-00000.safetensors   the held-out split, where the source has one
    MANIFEST.json                how they were made, by which autoencoder, and the size and SHA-256 of each shard

A shard's tensors are Float32[item, channels, *size], one for each modality and size; its documents are JSON in the file's
metadata: `{"name": ..., "segments": [{"text": ...}, {"item": TENSOR, "rows": [...]}]}`.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from transfusion.config import short
from transfusion.data.corpus import Corpus
from transfusion.data.document import Document, Media, Segment, Text, Use
from transfusion.data.latents import StoredLatents
from transfusion.data.media import Fit
from transfusion.files import MANIFEST, parse_json, read_bytes, read_json, replacing

KIND, FORMAT = "latents", 1
TRAIN, HELD_OUT = "train", "held-out"
MAX_SHARD = 2**33
"""Bytes of a shard at most: they are read at once."""
REMEDY = "encode it again, with the same command (transfusion data encode): shards that are whole are kept"


@dataclass(frozen=True)
class StoredItem:
    """An item in a shard: rows of a tensor; `digest` is that of its autoencoder, empty where it has none."""

    modality: str
    tensor: str
    rows: tuple[int, ...]
    digest: str
    use: Use | None = None


def is_latents(folder: Path) -> bool:
    """Whether a folder holds encoded latents, finished or not, damaged or not."""
    try:
        if read_json(folder / MANIFEST, 2**26)["kind"] == KIND:
            return True
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return any((folder / shard(split, 0)).exists() for split in (TRAIN, HELD_OUT))


def refuse_latents(path: str | Path, taker: str, *, option: str = " with --data") -> None:
    """Raise ValueError if a path holds encoded latents, where `taker` takes pictures; `option` says how those are given."""
    folder = Path(path)
    if not is_latents(folder):
        return
    try:
        source = read_json(folder / MANIFEST, 2**26)["source"]
    except (OSError, ValueError, KeyError, TypeError):
        source = ""
    origin = f" ({short(source)})" if source else ""
    raise ValueError(
        f"{path} holds latents, as transfusion data encode writes them, and {taker} takes pictures: give those that the "
        f"latents were made from{origin}{option}"
    )


def read_latents(folder: Path, fit: Fit | None = None, *, train: bool = True) -> Corpus:
    """The documents of a folder of latents, each shard checked against its digest and for numbers that are not finite.

    Args:
        fit: of the run's pictures; the same size must have been encoded.
        train: which split.

    Raises:
        ValueError: encoding did not finish, a shard is missing, damaged or not finite, or pictures had another size.
    """
    try:
        plain = read_json(folder / MANIFEST, 2**26)
        if plain["format"] != FORMAT:
            raise ValueError(f"format {short(plain['format'])}, this version reads {FORMAT}")
        size, counts, files = tuple(plain["size"]), dict(plain["shards"]), dict(plain["files"])
        names = [shard(split, i) for split in (TRAIN, HELD_OUT) for i in range(int(counts.get(split, 0)))]
        entries = {name: (files[name]["bytes"], files[name]["sha256"]) for name in names if name in files}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"{folder / MANIFEST} is missing or damaged ({error!r}): encode into another folder") from error
    if missing := [name for name in names if name not in entries]:
        raise ValueError(f"{folder}: encoding did not finish, {len(missing)} of {len(names)} shards are missing: {REMEDY}")
    if fit is not None and tuple(fit.size) != size:
        raise ValueError(
            f"{folder} was encoded from pictures of {size}, this run has {tuple(fit.size)}: give --model.modalities.0.shape "
            f"{' '.join(map(str, size))}, or encode that size"
        )
    corpus = Corpus()
    for name in names:
        if name.startswith(TRAIN if train else HELD_OUT):
            corpus.documents += _read_shard(folder / name, *entries[name])
        elif train:  # what is held out is missed before training, too
            _check_shard(folder / name, *entries[name])
    return corpus


def has_held_out(folder: Path) -> bool:
    """Whether the folder has a held-out split; not if its manifest cannot be read."""
    try:
        return bool(read_json(folder / MANIFEST, 2**26)["shards"].get(HELD_OUT))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def shard(split: str, index: int) -> str:
    """The name of a shard."""
    return f"{split}-{index:05d}.safetensors"


def _check_shard(file: Path, size: int, digest: str) -> bytes:
    """The content of a shard that is as the manifest says. Raises ValueError."""
    try:
        content = read_bytes(file, MAX_SHARD)
    except OSError as error:
        raise ValueError(f"{file} is missing or cannot be read ({error}): {REMEDY}") from error
    if len(content) != size or hashlib.sha256(content).hexdigest() != digest:
        raise ValueError(f"{file} is damaged, it is not as its {MANIFEST} says: {REMEDY}")
    return content


def _read_shard(file: Path, size: int, digest: str) -> list[Document]:
    content = _check_shard(file, size, digest)
    try:
        tensors = load(content)
        length = int.from_bytes(content[:8], "little")
        plain = parse_json(parse_json(content[8 : 8 + length].decode())["__metadata__"]["documents"])
        shapes = {name: tuple(tensor.shape[1:]) for name, tensor in tensors.items()}
        documents = [_document(record, file, shapes) for record in plain]
    except (SafetensorError, KeyError, TypeError, ValueError, IndexError) as error:
        raise ValueError(f"{file} is of another form ({error!r}): {REMEDY}") from error
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{file}: {name} has NaN or infinity: check the autoencoder's weights, then {REMEDY}")
    return documents


def _document(plain: Mapping[str, Any], file: Path, shapes: Mapping[str, tuple[int, ...]]) -> Document:
    segments: list[Segment] = []
    for record in plain["segments"]:
        if "text" in record:
            paraphrases = tuple(record.get("paraphrases", ()))
            segments.append(Text(record["text"], loss=record.get("loss", True), paraphrases=paraphrases))
            continue
        use, tensor = record.get("use"), record["item"]
        if use not in (None, *get_args(Use)):
            raise ValueError(f"an item's use is not {use!r}")
        stored = StoredLatents(file, tensor, tuple(record["rows"]), shapes[tensor], record["digest"])
        segments.append(Media(stored, record["modality"], use=use))
    return Document(tuple(segments), name=plain["name"])


def write_shard(
    file: Path, documents: Sequence[tuple[str, Sequence[Text | StoredItem]]], tensors: Mapping[str, Tensor]
) -> None:
    """Write a shard, replacing it whole. Raises OSError."""
    from safetensors.torch import save_file

    records = [{"name": name, "segments": [_record(segment) for segment in segments]} for name, segments in documents]
    metadata = {"documents": json.dumps(records, ensure_ascii=False)}  # one entry: the order of several is not fixed
    with replacing(file) as partial:
        save_file(dict(tensors), partial, metadata=metadata)


def _record(segment: Text | StoredItem) -> dict[str, Any]:
    if isinstance(segment, Text):
        more = {"loss": False} if not segment.loss else {}
        return {"text": segment.content} | more | ({"paraphrases": segment.paraphrases} if segment.paraphrases else {})
    record = {"modality": segment.modality, "item": segment.tensor, "rows": segment.rows, "digest": segment.digest}
    return record | ({"use": segment.use} if segment.use else {})
