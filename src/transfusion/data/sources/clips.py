"""Clips of a handwritten digit that moves, composed on the spot: a modality of three axes, (time, y, x).

    "a three moving left"    4 frames of 16 x 16, grey; the digit moves by two pixels a frame

Some combinations of a digit and a direction are held out: training clips have none of them.
"""

from dataclasses import dataclass
from functools import cache
from itertools import product

import torch
from jaxtyping import Float
from torch import Tensor

from transfusion import rng
from transfusion.data.corpus import captioned
from transfusion.data.document import Document, Media
from transfusion.data.sources.digits import NAMES, read_digits

CLIP = "clip"
FRAMES, SIDE, SPEED = 4, 16, 2
"""Frames; pixels of one along an axis; pixels that the digit moves from one to the next."""
DIRECTIONS = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}
"""Steps along (y, x)."""
PARAPHRASES = ("a {} moving {}", "a {} that moves {}", "the digit {} goes {}")
HELD_OUT = 0.15
"""Share of the combinations that are held out."""
PAIRS = tuple(product(range(len(NAMES)), DIRECTIONS))
"""All combinations of a digit and a direction."""


@cache
def is_held_out(digit: int, direction: str) -> bool:
    """Whether a combination is held out of training."""
    return rng.uniform("clips", "held out", digit, direction) < HELD_OUT


def captions(digit: int, direction: str) -> tuple[str, ...]:
    """The caption, in several wordings."""
    return tuple(paraphrase.format(NAMES[digit], direction) for paraphrase in PARAPHRASES)


@dataclass(frozen=True)
class LazyClip:
    """A clip, composed when it is loaded: of a training digit, or of a held-out one.

    Args:
        key: of the image of the digit, and of where it starts.
    """

    digit: int
    direction: str
    key: int
    held_out: bool = False
    shape: tuple[int, ...] = (1, FRAMES, SIDE, SIDE)

    def load(self) -> Float[Tensor, "1 frame side side"]:
        """In [-1, 1]."""
        digits = read_digits(held_out=self.held_out)
        pool = (digits.labels == self.digit).nonzero()[:, 0]
        image = digits.images[pool[int(rng.uniform(self.key, "digit") * len(pool))]]
        size, clip = image.shape[-1], torch.full(self.shape, -1.0)
        step = tuple(SPEED * n for n in DIRECTIONS[self.direction])
        start = []
        for axis, n in enumerate(step):
            room = SIDE - size - abs(n) * (FRAMES - 1)
            first = int(rng.uniform(self.key, "start", axis) * (room + 1))
            start.append(first - min(n, 0) * (FRAMES - 1))
        for frame in range(FRAMES):
            y, x = (first + n * frame for first, n in zip(start, step, strict=True))
            clip[:, frame, y : y + size, x : x + size] = image
        return clip


def trained_documents(count: int) -> list[Document]:
    """Captioned clips of training digits, of every combination that is not held out in turn."""
    pairs = [pair for pair in PAIRS if not is_held_out(*pair)]
    return [_document(*pairs[i % len(pairs)], "train", i) for i in range(count)]


def held_out_documents(count: int, seed: int) -> list[Document]:
    """Captioned clips of held-out digits, of every combination in turn."""
    return [_document(*PAIRS[i % len(PAIRS)], f"score {seed}", i, held_out=True) for i in range(count)]


def _document(digit: int, direction: str, split: str, index: int, *, held_out: bool = False) -> Document:
    clip = LazyClip(digit, direction, rng.key("clip", split, index), held_out)
    return captioned(captions(digit, direction), Media(clip, CLIP), f"{split} {index}")
