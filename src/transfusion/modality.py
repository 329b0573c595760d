"""A modality: a medium (images, sound, actions) and the grid of slots that an item of it fills.

An item is a latent tensor (channels, *shape); each patch of it becomes a slot of the sequence. Of a discrete modality it is a
grid of ids of a codebook, and each id a token. `Modality.slots` alone computes
the grid: tokenising, patchers and the engine all call it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

IMAGE, SOUND = "image", "sound"
"""Names of modalities: the first is that of items where none is given, the second that of sounds in tables and folders."""
IMAGE_CHANNELS = (1, 3)
"""Channels of an item that is written and shown as an image: grey or RGB."""

MAX_CHANNELS, MAX_PATCH, MAX_EXTENT, MAX_CODES = 2**16, 2**20, 2**14, 2**20
"""Channels, values of a patch, slots along an axis where sizes vary, and codes, each a token: limits before memory is taken."""
MAX_RATE = 384_000
"""Samples a second of a sound, at most."""


def is_image(shape: Sequence[int]) -> bool:
    """Whether an item of this shape, (channels, *size), can be written and shown as an image."""
    return len(shape) == 3 and shape[0] in IMAGE_CHANNELS


@dataclass(frozen=True)
class Modality:
    """A medium.

    Args:
        name: its name in documents, for example "image".
        channels: channels of its latents; an item is a tensor (channels, *shape).
        shape: default size of an item in latent elements, one number per axis (no axis: a vector).
        patch: latent elements of a slot, one number per axis.
        largest: largest size of an item, if sizes vary in steps of `patch`; size tokens then precede each item. None: every
            item has `shape`.
        codes: ids of the codebook, if the medium is discrete (0: it is continuous). An item is then a tensor (1, *shape) of
            whole numbers below it, and a patch is one of them.
        rate: samples a second, if the medium is sound (0: it is not). Its items are (1, samples), also where the model learns
            latents of them; they are read from and written to WAV files.

    Raises:
        ValueError: the name is no identifier, sizes are not positive, differ in axes, or are no multiples of the patch, or a
            sound has another number of axes than one.
    """

    name: str = IMAGE
    channels: int = 3
    shape: tuple[int, ...] = (32, 32)
    patch: tuple[int, ...] = (2, 2)
    largest: tuple[int, ...] | None = None
    codes: int = 0
    rate: int = 0

    def __post_init__(self) -> None:
        if not self.name.isidentifier() or self.name == "text":
            raise ValueError(
                f"a modality's name must be a plain word other than text, not {self.name!r}: use letters, digits, _"
            )
        if not 1 <= self.channels <= MAX_CHANNELS:
            raise ValueError(
                f"modality {self.name!r}: channels must be at least 1, not {self.channels}, and at most {MAX_CHANNELS:,}"
            )
        if len(self.patch) != len(self.shape) or any(size < 1 for size in self.patch):
            raise ValueError(f"modality {self.name!r}: patch {self.patch} must have one positive size per axis of {self.shape}")
        for label, shape in (("shape", self.shape), ("largest", self.largest)):
            if shape is not None:
                self._check(label, shape)
        if not 0 <= self.codes <= MAX_CODES:
            raise ValueError(f"modality {self.name!r}: codes must be 0 to {MAX_CODES:,}, not {self.codes}")
        if self.codes and (self.channels != 1 or any(size != 1 for size in self.patch)):
            form = f"{self.channels} channels and patches of {self.patch}"
            raise ValueError(f"modality {self.name!r}: ids of a codebook have 1 channel and patches of 1, not {form}")
        if not 0 <= self.rate <= MAX_RATE or (self.rate and len(self.shape) != 1):
            raise ValueError(
                f"modality {self.name!r}: a sound has one axis and a rate up to {MAX_RATE:,}, not {len(self.shape)} axes and "
                f"{self.rate:,}; any other medium has rate 0"
            )
        self.slots(self.shape)
        if self.patch_width > MAX_PATCH or (self.varies and max(self.extents, default=0) > MAX_EXTENT):
            raise ValueError(
                f"modality {self.name!r}: a patch has {self.patch_width:,} values, and an axis of the largest size "
                f"{max(self.extents, default=1):,} slots: take at most {MAX_PATCH:,} and {MAX_EXTENT:,}"
            )

    def _check(self, label: str, shape: tuple[int, ...]) -> None:
        if len(shape) != len(self.patch):
            raise ValueError(f"modality {self.name!r}: {label} {shape} has {len(shape)} axes, its patch has {len(self.patch)}")
        if any(size < 1 or size % step for size, step in zip(shape, self.patch, strict=True)):
            rule = f"must be a positive multiple of the patch {self.patch}; resize or pad the item"
            raise ValueError(f"modality {self.name!r}: {label} {shape} {rule}")

    @property
    def is_image(self) -> bool:
        """Whether its items can be written and shown as images."""
        return is_image((self.channels, *self.shape)) and not self.codes

    @property
    def varies(self) -> bool:
        """Whether items differ in size, so that size tokens precede them."""
        return self.largest is not None

    @property
    def extents(self) -> tuple[int, ...]:
        """The largest grid."""
        return tuple(size // step for size, step in zip(self.largest or self.shape, self.patch, strict=True))

    @property
    def patch_width(self) -> int:
        """Values of a slot: channels x latent elements of a patch."""
        return self.channels * math.prod(self.patch)

    def slots(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Grid of slots of an item of this size; it has as many slots as its product (1 for a vector). Raises ValueError: the
        size is no multiple of the patch, is too large, or is not the fixed size."""
        shape = tuple(shape)
        self._check("size", shape)
        if self.largest is None:
            if shape != self.shape:
                remedy = "resize the item, or give the modality a `largest` size so that sizes may vary"
                raise ValueError(f"modality {self.name!r}: size {shape}, but every item has {self.shape}; {remedy}")
        elif any(size > limit for size, limit in zip(shape, self.largest, strict=True)):
            raise ValueError(f"modality {self.name!r}: size {shape} exceeds the largest, {self.largest}; shrink the item")
        return tuple(size // step for size, step in zip(shape, self.patch, strict=True))

    def shape_of(self, grid: tuple[int, ...]) -> tuple[int, ...]:
        """Size in latent elements of an item with this grid of slots."""
        return tuple(count * step for count, step in zip(grid, self.patch, strict=True))
