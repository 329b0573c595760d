"""What captioned pictures are like, before anything is chosen for them: how many, how large, in colour or grey, how captioned.

All captions and headers of files are read, and the pixels of `LOOKED_AT` pictures.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from transfusion import rng
from transfusion.data.document import Document, MediaError, Text
from transfusion.data.media import DecodedImage, EncodedImage
from transfusion.data.transforms import SIDES
from transfusion.data.vocabulary import BPE, Tokenizer

LOOKED_AT = 200
"""Pictures whose pixels are read, at most."""
THUMBNAIL = (32, 32)
NAMED = 3
"""Documents that a line names."""
GREY = 4
"""Steps of 255 between the colours of a pixel up to which it counts as grey."""


@dataclass(frozen=True)
class Spread:
    """The least, the middle and the largest of some numbers."""

    least: int
    median: int
    most: int

    @classmethod
    def of(cls, values: Sequence[int]) -> "Spread":
        """Of one number or more."""
        return cls(min(values), int(np.median(values)), max(values))

    def __str__(self) -> str:
        return f"{self.median:,}" if self.least == self.most else f"{self.median:,} ({self.least:,} to {self.most:,})"


def counted(count: int, noun: str) -> str:
    """A number of things, as people say it: 1 picture, 2 pictures."""
    return f"{count:,} {noun}{'s' * (count != 1)}"


@dataclass(frozen=True)
class Survey:
    """What was found.

    Args:
        pictures, documents: number of pictures, and of documents with one or more.
        sides: shorter sides, in pixels.
        widest: the largest ratio of a longer to a shorter side, over the same of the item that it becomes, where sizes vary.
        colour: whether some picture is not grey.
        transparent, deep, inks, moving: pictures with transparency, of 16 bits, of four inks (CMYK), of several frames, among
            those that were looked at.
        repeated: pictures whose file is that of an earlier one.
        captioned: documents with a text.
        uncaptioned: names of the first without.
        captions: captions that differ.
        words, tokens: of a document's text; tokens as the run's tokenizer, fitted on these texts, cuts the longest paraphrase.
        items: pictures of a document.
        names_sides: share of captions with a word that a mirrored picture would make untrue.
    """

    pictures: int
    documents: int
    sides: Spread
    widest: float
    colour: bool
    transparent: int
    deep: int
    inks: int
    moving: int
    repeated: int
    captioned: int
    uncaptioned: tuple[str, ...]
    captions: int
    words: Spread
    tokens: Spread
    items: Spread
    names_sides: float

    @property
    def is_uncaptioned(self) -> bool:
        """Whether captions tell nothing: there are none, or all are alike."""
        return self.captions < 2

    def lines(self) -> Iterator[str]:
        """For the log: what is there, and what becomes of what is odd."""
        sizes = f"shorter side{'s' * (self.pictures > 1)} of {self.sides} pixels"
        several = f" in {counted(self.documents, 'document')}" if self.documents < self.pictures else ""
        yield f"data: {counted(self.pictures, 'picture')}{several}, {'in colour' if self.colour else 'grey'}, {sizes}"
        if bare := self.documents - self.captioned:
            names = f" ({', '.join(self.uncaptioned)}{', ...' * (bare > len(self.uncaptioned))})"
            of, text = ("documents", "text") if several else ("them", "caption")
            fate = "has no {}: it is" if bare == 1 else "have no {}: they are"
            yield f"{bare:,} of {of} {fate.format(text)} learned without one{names}"
        words = "one word" if str(self.words) == "1" else f"{self.words} words"
        if self.captioned == 1:
            yield f"a caption of {words}"
        elif self.captions == 1:
            yield "all captions are alike: they tell nothing, so pictures will not follow them"
        elif self.captions:
            yield f"captions of {words}, {self.captions:,} different ones"
        if self.repeated == 1:
            yield "1 picture is a copy of another: it is learned that much more often"
        elif self.repeated:
            yield f"{self.repeated:,} pictures are copies of others: they are learned that much more often"
        if self.widest > 1.5:
            yield f"pictures up to {self.widest:.1f} times as long as wide: the middle is cut out of each"
        for count, kind, fate in (
            (self.transparent, "transparent", "blended with white"),
            (self.deep, "of 16 bits", "scaled to 8"),
            (self.inks, "of four inks (CMYK)", "turned into red, green and blue"),
            (self.moving, "of several frames", "the first frame is taken"),
        ):
            if count:
                yield f"{counted(count, 'picture')} {'is' if count == 1 else 'are'} {kind}: {fate}"


def survey(documents: Sequence[Document], tokenizer: Tokenizer = BPE()) -> Survey:
    """Look at captioned pictures, whose texts `tokenizer` cuts. Raises ValueError: there is no picture, or the tokenizer cannot
    be built."""
    pictures = [(d, m.values) for d in documents for m in d.media if isinstance(m.values, EncodedImage | DecodedImage)]
    if not pictures:
        raise ValueError("the data has no pictures")
    order = rng.generator(rng.key("survey")).permutation(len(pictures))[:LOOKED_AT]
    seen = [(values, found) for i in order if (found := _look(values := pictures[int(i)][1])) is not None]
    looked = [found for _, found in seen]
    if not looked:
        raise ValueError("no picture of the data can be decoded")
    captions = [text for d in documents if d.media and (text := d.text.strip())]
    uncaptioned = (d.name for d in documents if d.media and d.name and not d.text.strip())
    sizes = [found.size for found in looked]
    texts = list(map(_longest, documents))
    cut = tokenizer.build(texts).encode_batch(texts, add_special_tokens=False)
    return Survey(
        pictures=len(pictures),
        documents=sum(bool(document.media) for document in documents),
        sides=Spread.of([min(size) for size in sizes]),
        widest=max(_widest(values, found.size) for values, found in seen),
        colour=any(found.colour for found in looked),
        transparent=sum(found.transparent for found in looked),
        deep=sum(found.mode.startswith("I") for found in looked),
        inks=sum(found.mode == "CMYK" for found in looked),
        moving=sum(found.frames > 1 for found in looked),
        repeated=_repeated([values for _, values in pictures]),
        captioned=len(captions),
        uncaptioned=tuple(islice(uncaptioned, NAMED)),
        captions=len(set(captions)),
        words=Spread.of([len(text.split()) for text in captions] or [0]),
        tokens=Spread.of([len(encoding.ids) for encoding in cut]),
        items=Spread.of([len(document.media) for document in documents]),
        names_sides=sum(bool(SIDES.search(text)) for text in captions) / max(len(captions), 1),
    )


def _widest(values: EncodedImage | DecodedImage, size: tuple[int, int]) -> float:
    """How many times as long as wide a picture is; where sizes vary, beside the item that it becomes."""
    own = max(size) / min(size)
    if values.fit is None or values.fit.largest is None:
        return own
    extents = values.shape[1:]
    ratio = own / (max(extents) / min(extents))
    return max(ratio, 1 / ratio)


def _longest(document: Document) -> str:
    """The text of a document, of the longest of each segment's paraphrases."""
    texts = (s for s in document.segments if isinstance(s, Text) and isinstance(s.content, str))
    return "".join(max((str(s.content), *s.paraphrases), key=len) for s in texts)


@dataclass(frozen=True)
class _Look:
    size: tuple[int, int]
    mode: str
    frames: int
    transparent: bool
    colour: bool


def _look(values: EncodedImage | DecodedImage) -> _Look | None:
    """A picture's header, and whether a small copy of it has colours; None if it cannot be decoded."""
    if isinstance(values, DecodedImage):
        pixels = values.pixels
        return _Look((pixels.shape[1], pixels.shape[0]), "L" if pixels.ndim == 2 else "RGB", 1, False, _has_colour(pixels))
    try:
        with values.open() as image:
            size, mode, frames = image.size, image.mode, getattr(image, "n_frames", 1)
            image.draft("RGB", THUMBNAIL)
            is_deep = mode.startswith("I") or mode == "F"
            small = image.resize(THUMBNAIL, Image.Resampling.BOX) if mode not in ("P", "1") else image
            pixels = np.zeros(THUMBNAIL, np.uint8) if is_deep else np.asarray(small.convert("RGB"))
            transparent = "transparency" in image.info or (
                "A" in image.getbands() and bool((np.asarray(image.getchannel("A")) < 255).any())
            )
    except (MediaError, OSError, ValueError, TypeError):
        return None
    return _Look(size, mode, frames, transparent, _has_colour(pixels))


def _has_colour(pixels: np.ndarray) -> bool:
    if pixels.ndim == 2 or pixels.shape[2] < 3:
        return False
    rgb = pixels[..., :3].astype(np.int16)
    return bool((rgb.max(-1) - rgb.min(-1) > GREY).any())


def _repeated(pictures: Sequence[EncodedImage | DecodedImage]) -> int:
    """How many have the content of an earlier one. Files are read only where two have one size."""
    sizes: dict[object, list[EncodedImage | DecodedImage]] = {}
    for values in pictures:
        sizes.setdefault(_size(values), []).append(values)
    repeated = 0
    for same in sizes.values():
        if len(same) > 1:
            repeated += len(same) - len({_content(values) for values in same})
    return repeated


def _size(values: EncodedImage | DecodedImage) -> object:
    source = values.pixels if isinstance(values, DecodedImage) else values.source
    if isinstance(source, Path):
        try:
            return os.stat(source).st_size
        except OSError:
            return source
    return source.shape if isinstance(source, np.ndarray) else len(source)


def _content(values: EncodedImage | DecodedImage) -> object:
    if isinstance(values, DecodedImage):
        return hashlib.sha256(values.pixels.tobytes()).digest()
    if isinstance(values.source, bytes):
        return hashlib.sha256(values.source).digest()
    try:
        return hashlib.sha256(values.source.read_bytes()).digest()
    except OSError:
        return values.source
