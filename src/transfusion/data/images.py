"""Batches of images without captions, for what is trained on images alone: an endless stream, each batch with the position
after it.

An epoch is a keyed permutation of the images. Each image is cut and mirrored by a key of (seed, epoch, image), so a batch is a
pure function of its position.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath

import torch
from jaxtyping import Float
from torch import Tensor

from transfusion import rng
from transfusion.data.corpus import MAX_UNREADABLE, Corpus, hold_out
from transfusion.data.document import Document, MediaError
from transfusion.data.loader import TooManyUnreadable
from transfusion.data.media import DecodedImage, EncodedImage, Fit, VariedImage
from transfusion.data.sources.latents import refuse_latents
from transfusion.data.sources.read import has_held_out, read

MAX_SIDE = 4096
HELD_OUT, MAX_HELD_OUT = 0.1, 1000
"""Share of images that are held out where the data has no split of its own, and their largest number."""

Image = EncodedImage | DecodedImage


@dataclass(frozen=True)
class ImagesConfig:
    """Images of a batch, and how they are varied.

    Args:
        side: images are side x side pixels.
        batch_size: images of a step.
        crop: images are fitted to so many times the side, and a random window of the side is cut out; 1: the whole image.
        flip: mirror half of the images; not for digits or letters.
    """

    side: int = 64
    batch_size: int = 32
    crop: float = 1.0
    flip: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.side <= MAX_SIDE or self.batch_size < 1:
            raise ValueError(f"side must be 1 to {MAX_SIDE} and batch-size at least 1, not {self.side} and {self.batch_size}")
        if not 1 <= self.crop <= 4:
            raise ValueError(
                f"crop is the size that images are fitted to over the side that is cut out, 1 to 4, not {self.crop}"
            )

    def fit(self, channels: int) -> Fit:
        """The whole image at its side."""
        return Fit((self.side, self.side), channels)


@dataclass(frozen=True)
class ImagePosition:
    """The next image to read: its number in the epoch's order."""

    epoch: int = 0
    index: int = 0


@dataclass(frozen=True, eq=False)
class ImageBatch:
    """Images in [-1, 1].

    Args:
        keys: RNG key of each image, of (seed, epoch, image).
        state: the stream's position after the step.
        names: of the images.
        unreadable: lines about images that could not be read; the batch is smaller by these.
    """

    items: Float[Tensor, "item channels height width"]
    keys: tuple[int, ...]
    state: ImagePosition
    names: tuple[str, ...]
    unreadable: tuple[str, ...] = ()

    def to(self, device: torch.device) -> "ImageBatch":
        """The batch on a device."""
        return replace(self, items=self.items.to(device, non_blocking=True))


class ImageStream:
    """Batches of images: `parts` of them a step (gradient accumulation) for process `rank` of `world`.

    Args:
        channels: 1 (grey) or 3 (colour).

    Raises:
        ValueError: no images, or a batch size that is no multiple of world * parts.
    """

    start = ImagePosition()

    def __init__(
        self,
        images: Sequence[Image],
        names: Sequence[str],
        config: ImagesConfig,
        *,
        channels: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        parts: int = 1,
    ) -> None:
        if not images:
            raise ValueError("no images to train on: give others with --data")
        if config.batch_size % (world * parts):
            raise ValueError(
                f"the batch size ({config.batch_size}) must be a multiple of processes ({world}) times accumulation ({parts})"
            )
        self.rank, self.world = rank, world
        self.images, self.names, self.config = images, names, config
        self.channels, self.seed, self.parts = channels, seed, parts
        self.failed: dict[int, str] = {}
        self._seen: set[int] = set()

    def batches(self, position: ImagePosition = ImagePosition()) -> Iterator[tuple[ImageBatch, ...]]:
        """Steps from a position on. Raises TooManyUnreadable: more than 5 % of the images read so far cannot be read (3 may
        fail in the first epoch)."""
        order, epoch = rng.generator(rng.key(self.seed, position.epoch, "order")).permutation(len(self.images)), position.epoch
        while True:
            samples: list[tuple[int, int]] = []
            while len(samples) < self.config.batch_size:
                if position.index >= len(order):
                    position = ImagePosition(position.epoch + 1)
                if position.epoch != epoch:
                    epoch = position.epoch
                    order = rng.generator(rng.key(self.seed, epoch, "order")).permutation(len(self.images))
                samples.append((epoch, int(order[position.index])))
                position = replace(position, index=position.index + 1)
            share = len(samples) // (self.world * self.parts)
            mine = samples[self.rank * share * self.parts : (self.rank + 1) * share * self.parts]
            yield tuple(self._batch(mine[p * share : (p + 1) * share], position) for p in range(self.parts))

    def _batch(self, samples: Sequence[tuple[int, int]], after: ImagePosition) -> ImageBatch:
        items, keys, unreadable = [], [], []
        for epoch, sample in samples:
            self._seen.add(sample)
            key = rng.key(self.seed, epoch, sample)
            try:
                items.append(self._load(sample, key))
                keys.append(key)
            except MediaError as error:
                if sample not in self.failed:
                    self.failed[sample] = str(error)
                    unreadable.append(str(error))
        if len(self.failed) > MAX_UNREADABLE * len(self._seen) and (
            len(self.failed) > 3 or len(self._seen) == len(self.images)
        ):
            fault = f"{len(self.failed)} of {len(self._seen)} images cannot be read"
            raise TooManyUnreadable(f"{fault}, the last: {list(self.failed.values())[-1]}; mend or remove them")
        stacked = torch.stack(items) if items else torch.zeros(0, *self.config.fit(self.channels).shape)
        names = tuple(self.names[sample] for _, sample in samples)
        return ImageBatch(stacked, tuple(keys), after, names, tuple(unreadable))

    def _load(self, sample: int, key: int) -> Float[Tensor, "channels height width"]:
        image = replace(self.images[sample], fit=self.config.fit(self.channels))
        return VariedImage(image, self.config.crop, self.config.flip, key).load()


def read_images(path: str, fit: Fit) -> tuple[Corpus, Corpus, str]:
    """The documents with an image to train on, without their texts, which nothing is learned of; those that are held out, with
    the captions that they have; and a line that says how they were split where the data has no split of its own.

    Raises:
        ValueError: no path, nothing that can be read there, or no image is left on one side.
    """
    if not path:
        raise ValueError("this needs images: give the path of a folder or file with --data")
    refuse_latents(path, "an autoencoder")
    train, note = read(path, fit, captions=None), ""
    if has_held_out(path):
        held_out = read(path, fit, captions=None, train=False)
    else:
        train, held_out = hold_out(train, HELD_OUT, MAX_HELD_OUT)
        note = f"{path} has no held-out split: {len(held_out):,} of its images are held out, by their names"
    for corpus, what in ((train, "train on"), (held_out, "hold out")):
        if not images(corpus)[0]:
            raise ValueError(f"{path} has no images to {what}: give more, or a table of them with a split `validation`")
    train.documents = [replace(document, segments=document.media) for document in train if document.media]
    return train, held_out, note


def images(documents: Sequence[Document]) -> tuple[list[Image], list[str]]:
    """All images of documents, and their names."""
    found = [(media.values, d.name) for d in documents for media in d.media if isinstance(media.values, Image)]
    return [image for image, _ in found], [name for _, name in found]


def titles(documents: Sequence[Document]) -> list[str]:
    """Of each of `images`, what it shows: its document's text; else the file that it is in, or its row or line there."""
    return [_title(d) for d in documents for media in d.media if isinstance(media.values, Image)]


def _title(document: Document) -> str:
    file, _, number = document.name.rpartition(":")
    if document.text.strip() or not (file and number.isdecimal()):
        return document.text.strip() or PurePath(document.name).name
    return f"{'row' if file.endswith('.parquet') else 'line'} {number}"
