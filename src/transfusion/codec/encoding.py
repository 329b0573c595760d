"""A corpus of pictures -> a folder of latents, shard by shard (`data/sources/latents.py` says the form, and reads it).

A shard is written aside and renamed, then the manifest is, with its digest. Repeated after it was stopped, the same command
keeps the shards that are whole and makes the others: latents depend on their picture alone, so the folder comes out the same.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from transfusion import rng
from transfusion.codec.codecs import Codecs
from transfusion.codec.latent_corpus import LatentCorpus
from transfusion.config import ConfigError
from transfusion.data.corpus import MAX_UNREADABLE, Corpus, media_digest, media_files, status_digest, text_digest
from transfusion.data.document import Document, LazyMedia, Media, MediaError, Text
from transfusion.data.media import DecodedImage, EncodedImage, Fit
from transfusion.data.sources.latents import FORMAT, KIND, StoredItem, shard, write_shard
from transfusion.files import MANIFEST, manifest, read_json, sha256, write_text

ROOM = 5 / 4
"""How much larger than its crops a picture is, along each axis."""
MAX_VIEWS = 1000


@dataclass(frozen=True)
class Views:
    """The views of each picture that are encoded: the one that training on pictures would have, and more on request.

    Args:
        crops: random crops beside it, of 4/5 of the picture along each axis.
        flips: whether each is encoded as its mirror image too.
        seed: random seed of the crops.
    """

    crops: int = 0
    flips: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.crops <= MAX_VIEWS:
            raise ValueError(f"crops must be 0 to {MAX_VIEWS}, not {self.crops}")

    def of(self, values: Tensor | LazyMedia, document: int, item: int) -> Iterator[Tensor]:
        """The views of a picture, Float[channels, height, width]; the numbers of document and item key its crops. Raises
        MediaError, and ValueError for crops of what is no image file."""
        for number in range(1 + self.crops):
            view = Media(values).tensor() if number == 0 else self._crop(values, document, item, number)
            yield view
            if self.flips:
                yield view.flip(-1)

    def _crop(self, values: Tensor | LazyMedia, document: int, item: int, number: int) -> Tensor:
        if not isinstance(values, EncodedImage | DecodedImage):
            raise ValueError("only images in files or tables can be cropped: leave out --crops")
        height, width = values.shape[1:]
        larger = Fit((round(height * ROOM), round(width * ROOM)), values.shape[0])
        picture = Media(replace(values, fit=larger)).tensor()
        y, x = (
            int(rng.uniform(self.seed, document, item, "crop", number, axis) * (extent - size + 1))
            for axis, extent, size in (("y", picture.shape[1], height), ("x", picture.shape[2], width))
        )
        return picture[:, y : y + height, x : x + width]


def encode(
    splits: Mapping[str, Corpus],
    codecs: Codecs,
    out: Path,
    *,
    size: Sequence[int],
    source: str,
    autoencoder: str,
    views: Views = Views(),
    per_shard: int = 1024,
    log: Callable[[str], None] = lambda line: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Encode the documents of each split into a folder.

    Args:
        size: of the pictures.
        source, autoencoder: where they come from, for messages.
        per_shard: documents of a shard.
        progress: called with the number of finished documents, and of all.

    Raises:
        ConfigError: the folder holds other latents, or other files.
        ValueError: a picture does not fit the autoencoder, its latents are not finite, or more than 5 % cannot be read.
        OSError: the folder can't be written.
    """
    if per_shard < 1:
        raise ConfigError(f"per-shard must be at least 1, not {per_shard}")
    head = {
        "format": FORMAT,
        "kind": KIND,
        "autoencoders": codecs.digests,
        "size": list(size),
        "views": asdict(views),
        "per_shard": per_shard,
        "documents": {split: len(corpus) for split, corpus in splits.items()},
        "data": {split: _data(corpus) for split, corpus in splits.items()},
        "shards": {split: -(-len(corpus) // per_shard) for split, corpus in splits.items()},
    }
    for corpus in splits.values():
        LatentCorpus(corpus, codecs, room=0)  # an autoencoder of damaged weights is found on the first picture
    files = _finished(out, head)
    head |= {"source": source, "autoencoder": autoencoder}
    write_text(out / MANIFEST, json.dumps(head | {"files": files}, indent=1) + "\n")  # so that it can be started again
    done, total = 0, sum(map(len, splits.values()))
    failed: list[str] = []
    for split, corpus in splits.items():
        for index in range(head["shards"][split]):
            name, first = shard(split, index), index * per_shard
            documents = corpus.documents[first : first + per_shard]
            if name not in files:
                failed += _encode_shard(out / name, documents, codecs, views, first)
                if len(failed) > MAX_UNREADABLE * total:
                    raise ValueError(f"{len(failed)} of {total} documents cannot be encoded, the last: {failed[-1]}; mend them")
                files |= manifest({name: out / name})
                write_text(out / MANIFEST, json.dumps(head | {"files": files}, indent=1) + "\n")
            done += len(documents)
            progress(done, total)
    for line in failed[:20]:
        log(f"left out: {line}")


def _data(corpus: Corpus) -> str:
    """Hex digits by which the same documents are known again."""
    parts = text_digest(corpus), media_digest(corpus), status_digest(media_files(corpus))
    return f"{rng.key(*parts):x}"


def _finished(out: Path, head: Mapping[str, Any]) -> dict[str, Any]:
    """The shards that a folder has already, of the same latents: name -> size and digest. Raises ConfigError: of others."""
    if not (out / MANIFEST).exists():
        if out.exists() and any(out.iterdir()):
            raise ConfigError(f"{out} holds other files: choose another --out")
        out.mkdir(parents=True, exist_ok=True)
        return {}
    try:
        found = dict(read_json(out / MANIFEST, 2**26))
        files = dict(found["files"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"cannot read {out / MANIFEST} ({error!r}): choose another --out") from error
    differ = [name for name, value in head.items() if found.get(name) != value]
    if differ:
        raise ConfigError(f"{out} holds other latents ({', '.join(differ)} differ): choose another --out, or delete it")
    return {name: entry for name, entry in files.items() if _is_whole(out / name, entry)}


def _is_whole(file: Path, entry: Mapping[str, Any]) -> bool:
    return file.is_file() and file.stat().st_size == entry["bytes"] and sha256(file) == entry["sha256"]


def _encode_shard(file: Path, documents: Sequence[Document], codecs: Codecs, views: Views, first: int) -> list[str]:
    """Write the documents of a shard; returns a line for each that cannot be read. Raises ValueError: one that does not fit."""
    rows: dict[str, list[Tensor]] = {}
    written: list[tuple[str, list[Text | StoredItem]]] = []
    failed: list[str] = []
    for number, document in enumerate(documents, first):
        segments: list[Text | StoredItem] = []
        made: list[tuple[str, Tensor]] = []
        name = document.name or f"document {number}"
        try:
            for place, segment in enumerate(document.segments):
                if isinstance(segment, Text):
                    segments.append(segment)
                    continue
                digest = codecs.digests.get(segment.modality, "")
                first_row = len(made)
                for latents in _views(segment, codecs, views, number, place):
                    kind = f"{segment.modality}.{'x'.join(map(str, latents.shape))}"
                    made.append((kind, latents))
                kind = made[first_row][0]
                start = len(rows.get(kind, ())) + sum(other == kind for other, _ in made[:first_row])
                views_of = tuple(range(start, start + len(made) - first_row))
                segments.append(StoredItem(segment.modality, kind, views_of, digest, segment.use))
        except MediaError as error:
            failed.append(f"{name}: {error}" if name not in str(error) else str(error))
            continue
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        for kind, latents in made:
            rows.setdefault(kind, []).append(latents)
        written.append((document.name, segments))
    write_shard(file, written, {kind: torch.stack(latents) for kind, latents in rows.items()})
    return failed


def _views(item: Media, codecs: Codecs, views: Views, number: int, place: int) -> Iterator[Tensor]:
    if item.values is None:
        raise ValueError("an item without values cannot be encoded")
    if item.modality not in codecs.digests:
        yield item.tensor()
        return
    for view in views.of(item.values, number, place):
        yield codecs.encoded_item(replace(item, values=view, mask=None), now=True).tensor()
