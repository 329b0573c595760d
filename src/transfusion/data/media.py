"""Files and pixels <-> tensors. Files are decoded when they are loaded, under limits, from an allow-list of formats; sounds by
`sound.py`.

Images become Float32[channels, height, width] in [-1, 1], upright as their EXIF says; `to_image` is the inverse.
"""

import io
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from torch import Tensor

from transfusion import rng
from transfusion.data.document import MediaError
from transfusion.files import open_file
from transfusion.modality import IMAGE_CHANNELS, Modality, is_image

FORMATS = ("PNG", "JPEG", "WEBP")
"""Image formats that are opened; Pillow has 70, and most flaws of its decoders are in the others."""
MAX_PIXELS = 4096 * 4096
"""Images with more pixels are refused before they are decoded."""
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> what undoes it."""
DEEP = ("I", "I;16", "I;16B", "I;16L", "I;16N")
"""Pillow's modes of grey images of 16 bits."""


@dataclass(frozen=True)
class SoundFit:
    """The form of a modality's sounds.

    Args:
        modality: its name.
        rate: samples a second.
        step: a sound has a multiple of this many samples.
        longest: samples at most, a multiple of `step`.
        option: that sets `longest`.
    """

    modality: str
    rate: int
    step: int
    longest: int
    option: str = field(default="", compare=False)

    @property
    def seconds(self) -> float:
        """The length of the longest."""
        return self.longest / self.rate

    def samples(self, length: int) -> int:
        """Samples of a sound of this length, once it is cut at the longest and filled up to a whole step."""
        return min(math.ceil(length / self.step) * self.step, self.longest)


@dataclass(frozen=True)
class Fit:
    """Resize and centre-crop an image of any size to one size and number of channels; with `largest`, to the size in whole
    patches that is nearest to its own form.

    Args:
        size: (height, width); without meaning where there are no images. With `largest` it gives the area: an image has no more
            patches than one of this size.
        channels: 1 (grey) or 3 (RGB); transparency is blended with white.
        sounds: the forms of the sounds that may be beside them or in their place; without any, sounds are refused.
        patch: (height, width) of which sizes are multiples, where they vary.
        largest: (height, width) at most, where sizes vary; None: all images have `size`.
    """

    size: tuple[int, int] = (1, 1)
    channels: int = 3
    sounds: tuple[SoundFit, ...] = ()
    patch: tuple[int, int] = (1, 1)
    largest: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.channels not in IMAGE_CHANNELS:
            raise ValueError(f"images have 1 or 3 channels, not {self.channels}")

    @classmethod
    def of(cls, modalities: Sequence[Modality]) -> "Fit | None":
        """The fit of the first modality that holds images, and of all that hold sounds; None if none does."""
        sounds = tuple(
            SoundFit(
                m.name,
                m.rate,
                m.patch[0] if m.varies else m.shape[0],
                (m.largest or m.shape)[0],
                f"--model.modalities.{index}.{'largest' if m.varies else 'shape'}",
            )
            for index, m in enumerate(modalities)
            if m.rate
        )
        image = next((m for m in modalities if m.is_image), None)
        if image is not None:
            fit = cls((image.shape[0], image.shape[1]), image.channels, sounds)
            if image.largest is None:
                return fit
            patch, largest = (image.patch[0], image.patch[1]), (image.largest[0], image.largest[1])
            return replace(fit, patch=patch, largest=largest)
        return cls(sounds=sounds) if sounds else None

    def sound(self, modality: str) -> SoundFit | None:
        """The form of a modality's sounds; None where it holds none."""
        return next((fit for fit in self.sounds if fit.modality == modality), None)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width)"""
        return (self.channels, *self.size)

    def at(self, height: int, width: int) -> "Fit":
        """The fit of one image of this size, upright: itself; with `largest`, that of the size which the image gets: of about
        the area of `size`, and of those whole patches whose ratio is nearest to the image's."""
        if self.largest is None:
            return self
        area = math.prod(self.size)
        scale = min(math.sqrt(area / (height * width)), self.largest[0] / height, self.largest[1] / width)
        rows, columns = height * scale / self.patch[0], width * scale / self.patch[1]
        most = area // math.prod(self.patch)
        grids = [
            (r, min(max(c, 1), self.largest[1] // self.patch[1], most // r))
            for r in (min(max(near, 1), self.largest[0] // self.patch[0], most) for near in (int(rows), math.ceil(rows)))
            for c in (int(columns), math.ceil(columns))
        ]

        def error(grid: tuple[int, int]) -> tuple[float, int]:
            return round(abs(math.log(grid[0] / grid[1]) - math.log(rows / columns)), 6), -math.prod(grid)

        best = min(grids, key=error)
        return replace(self, size=(best[0] * self.patch[0], best[1] * self.patch[1]), largest=None)

    def __call__(self, image: Image.Image) -> Tensor:
        """Float32[channels, height, width] in [-1, 1]. Raises ValueError for pixels in floating point."""
        image = _eight_bits(_upright(image))
        if self.largest is not None:
            return self.at(image.height, image.width)(image)
        if "A" in image.getbands() or "transparency" in image.info:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        image = image.convert("L" if self.channels == 1 else "RGB")
        size = (self.size[1], self.size[0])
        if image.size != size:
            image = ImageOps.fit(image, size, Image.Resampling.LANCZOS)
        return from_bytes(np.asarray(image))


def _upright(image: Image.Image) -> Image.Image:
    """The image turned as its EXIF says, whatever format carries it. A damaged EXIF says nothing."""
    image.load()  # in a PNG, EXIF may stand behind the pixels
    try:
        with warnings.catch_warnings(action="ignore"):
            orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # Pillow has no exception class for it
        return image
    return image.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else image


def _upright_size(image: Image.Image) -> tuple[int, int]:
    """(height, width) of an image once it is turned as its EXIF says; a PNG is decoded for it."""
    try:
        with warnings.catch_warnings(action="ignore"):
            orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # see `_upright`
        orientation = None
    return (image.width, image.height) if orientation in (5, 6, 7, 8) else (image.height, image.width)


def _eight_bits(image: Image.Image) -> Image.Image:
    """A grey image of 16 bits scaled to 8, where Pillow would cut it off at 255; any other image unchanged."""
    if image.mode == "F":
        raise ValueError("pixels in floating point have no known range: save the image with 8 or 16 bits")
    clear = image.info.get("transparency")
    if image.mode in DEEP:
        deep = np.asarray(image).astype(np.int64)
        pixels = ((deep.clip(0, 65535) * 255 + 32767) // 65535).astype(np.uint8)
        return Image.fromarray(pixels if clear is None else np.where(deep == clear, 255, pixels).astype(np.uint8))
    if isinstance(clear, tuple) and max(clear) > 255:  # a transparent colour of 16 bits, whose image Pillow has read as 8
        image.info["transparency"] = tuple(value >> 8 for value in clear)
    return image


def from_bytes(pixels: np.ndarray) -> Tensor:
    """uint8 [height, width] or [height, width, channels] -> Float32[channels, height, width] in [-1, 1]"""
    pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1), dtype=np.float32)) / 127.5 - 1


def to_image(values: Tensor) -> Image.Image:
    """Float[1 or 3, height, width], clamped to [-1, 1] -> an image. Raises ValueError for any other shape."""
    if not is_image(values.shape):
        raise ValueError(f"an image is (1 or 3, height, width), not {tuple(values.shape)}")
    pixels = ((values.detach().float().cpu().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).numpy()
    return Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))


@contextmanager
def media_errors(name: str) -> Iterator[None]:
    """Turn an error of reading an item into a MediaError that names it."""
    try:
        yield
    except MediaError:
        raise
    except FileNotFoundError as error:
        raise MediaError(f"{name}: no such file") from error
    except Image.UnidentifiedImageError as error:
        raise MediaError(f"{name}: not an image in {', '.join(FORMATS)}") from error
    except OSError as error:
        raise MediaError(f"{name}: {error.strerror or error}") from error
    except Exception as error:  # a damaged file makes decoders raise nearly anything
        raise MediaError(f"{name}: {error or type(error).__name__}") from error


@dataclass(frozen=True)
class EncodedImage:
    """An image in a file, or the bytes of one, decoded when it is loaded; `fit` gives its size and channels as an item. Where
    sizes vary, `size` is its own, (height, width), which `checked` reads."""

    source: Path | bytes
    fit: Fit
    name: str = ""
    size: tuple[int, int] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """(channels, height, width). Raises MediaError where sizes vary and its own cannot be read."""
        if self.fit.largest is None:
            return self.fit.shape
        return self.checked().shape if self.size is None else self.fit.at(*self.size).shape

    @property
    def _label(self) -> str:
        return self.name or (str(self.source) if isinstance(self.source, Path) else "image")

    @contextmanager
    def open(self) -> Iterator[Image.Image]:
        """The image, its header alone read. Raises MediaError, naming it, here or while it is decoded: it is missing, no file,
        empty, too large, damaged or of another format."""
        source = self.source
        with media_errors(self._label), io.BytesIO(source) if isinstance(source, bytes) else open_file(source) as file:
            with warnings.catch_warnings(action="ignore"):  # of a damaged EXIF, for one
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                image = Image.open(file, formats=FORMATS)
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{image.width} x {image.height} pixels exceed the limit of {MAX_PIXELS}; shrink it")
            yield image

    def checked(self) -> "EncodedImage":
        """Itself, if its header can be read; raises MediaError as `open`."""
        with self.open() as image:
            return self if self.fit.largest is None else replace(self, size=_upright_size(image))

    def load(self) -> Tensor:
        """Float32[channels, height, width] in [-1, 1]. Raises MediaError, naming it, if it cannot be decoded."""
        with self.open() as image:
            return self.fit(image)


@dataclass(frozen=True, eq=False)
class DecodedImage:
    """Pixels, uint8 [height, width] or [height, width, channels], and their size and channels as an item (None: their own)."""

    pixels: np.ndarray
    fit: Fit | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """(channels, height, width)"""
        height, width = self.pixels.shape[:2]
        own = (1 if self.pixels.ndim == 2 else self.pixels.shape[2], height, width)
        return own if self.fit is None else self.fit.at(height, width).shape

    def load(self) -> Tensor:
        """Float32[channels, height, width] in [-1, 1]"""
        if self.fit is None or self.shape == replace(self, fit=None).shape:
            return from_bytes(self.pixels)
        return self.fit(Image.fromarray(self.pixels))


@dataclass(frozen=True, eq=False)
class VariedImage:
    """An image as one epoch sees it.

    Args:
        image: fitted to the size of the item.
        crop: it is fitted to so many times the size, and a random window of the size is cut out; 1: the whole image.
        flip: it is mirrored, or not, by chance.
        key: of the window and the mirroring.
    """

    image: EncodedImage | DecodedImage
    crop: float
    flip: bool
    key: int

    @property
    def shape(self) -> tuple[int, ...]:
        """(channels, height, width)"""
        return self.image.shape

    def load(self) -> Tensor:
        """Float32[channels, height, width] in [-1, 1]. Raises MediaError, naming it, if it cannot be decoded."""
        channels, height, width = self.image.shape
        larger = Fit((round(height * self.crop), round(width * self.crop)), channels)
        pixels = replace(self.image, fit=larger).load()
        offsets = rng.generator(rng.key(self.key, "crop"))
        top, left = (int(offsets.integers(0, room + 1)) for room in (larger.size[0] - height, larger.size[1] - width))
        pixels = pixels[:, top : top + height, left : left + width]
        return pixels.flip(-1) if self.flip and rng.uniform(self.key, "flip") < 0.5 else pixels


@dataclass(frozen=True)
class ArrayFile:
    """An item of any modality in a .npy file, read when it is loaded. Make it with `open`, which reads its header."""

    path: Path
    name: str
    shape: tuple[int, ...]

    @classmethod
    def open(cls, path: Path, name: str) -> "ArrayFile":
        """Read the file's header. Raises MediaError if it is missing or no array."""
        return cls(path, name, _load_array(path, name).shape)

    def load(self) -> Tensor:
        """Float32[channels, *size]. Raises MediaError, naming it, if it cannot be read."""
        return torch.from_numpy(np.array(_load_array(self.path, self.name), dtype=np.float32))


def _load_array(path: Path, name: str) -> np.ndarray:
    with media_errors(name):
        open_file(path).close()  # a regular file
        array = np.lib.format.open_memmap(path, mode="r")  # raises ValueError for objects, and for less than its header says
        if array.dtype.kind not in "fiu":
            raise ValueError(f"an array of {array.dtype} is not numbers")
        return array
