"""Pictures of coloured marks, instructions to go to one of them, and paths there, composed on the spot: a third modality beside
text and images, as a robot's actions are.

    "go to the red mark"   a picture of 24 x 24: a white start and four marks   a path: 16 points (x, y) in [-1, 1]

A path starts on the white mark, bends to one side or the other by chance, and ends on the named mark: the mean of all paths is
none, so a model that learned their mean would be seen. For each colour, some cells of a grid of 6 x 6 are held out: in training
its mark is never there.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from transfusion import rng
from transfusion.data.document import Document, Media, Text

SIDE, CELLS, POINTS, RADIUS = 24, 6, 16, 2
"""Pixels of a picture and cells of its grid along an axis; points of a path; half the side of a mark, in pixels."""
COLOURS = {"red": (1, -1, -1), "green": (-1, 1, -1), "blue": (-1, -1, 1), "yellow": (1, 1, -1)}
PARAPHRASES = ("go to the {} mark", "move to {}", "the {} one")
PATH = "path"
TRIED = 32
"""Placements that are drawn at a time, of which the first that fits is taken."""
HELD_OUT, BEND = 0.15, 0.5
"""Share of the cells of each colour that are held out; how far a path bends, over its length, at most."""


@dataclass(frozen=True)
class Task:
    """Where the start and the marks are, and which mark is named.

    Args:
        start: its centre, (x, y) in pixels.
        marks: centres by colour.
        named: the colour to go to.
    """

    start: tuple[int, int]
    marks: dict[str, tuple[int, int]]
    named: str

    @property
    def captions(self) -> tuple[str, ...]:
        """The instruction, in several wordings."""
        return tuple(paraphrase.format(self.named) for paraphrase in PARAPHRASES)

    def picture(self) -> Float[Tensor, "3 side side"]:
        """In [-1, 1]."""
        image = torch.full((3, SIDE, SIDE), -1.0)
        for (x, y), colour in (*((self.marks[name], COLOURS[name]) for name in self.marks), (self.start, (1, 1, 1))):
            square = image[:, y - RADIUS : y + RADIUS, x - RADIUS : x + RADIUS]
            square[:] = torch.tensor(colour, dtype=torch.float32)[:, None, None]
        return image

    def path(self, key: int) -> Float[Tensor, "2 point"]:
        """A path to the named mark, (x, y) in [-1, 1]; the key decides how far it bends, and to which side."""
        start, end = (torch.tensor(p, dtype=torch.float32) * 2 / SIDE - 1 for p in (self.start, self.marks[self.named]))
        steps = torch.linspace(0, 1, POINTS)
        ahead = end - start
        aside = torch.stack([-ahead[1], ahead[0]])
        bend = BEND * (2 * rng.uniform(key, "bend") - 1)
        return start[:, None] + ahead[:, None] * steps + bend * aside[:, None] * (4 * steps * (1 - steps))

    def reached(self, path: Float[Tensor, "2 point"]) -> str | None:
        """The mark on which a path ends; None where there is none."""
        end = ((path[:, -1] + 1) * SIDE / 2).tolist()
        return next(
            (n for n, mark in self.marks.items() if max(abs(a - b) for a, b in zip(end, mark, strict=True)) <= RADIUS), None
        )


@cache
def is_held_out(colour: str, cell: int) -> bool:
    """Whether marks of a colour never lie in a cell, counted row by row, when they are trained on."""
    return rng.uniform("actions", "held out", colour, cell) < HELD_OUT


def draw_task(*key: rng.KeyPart, held_out: bool = False) -> Task:
    """A task by key: five squares that do not touch. If `held_out`, the named mark lies where its colour was never trained on;
    all others lie where theirs was."""
    generator = rng.generator(rng.key("actions", *key))
    while True:
        tried = generator.integers(RADIUS, SIDE - RADIUS + 1, (TRIED, len(COLOURS) + 1, 2))
        apart = np.abs(tried[:, :, None] - tried[:, None]).max(-1) + 2 * SIDE * np.eye(len(COLOURS) + 1, dtype=int)
        for places in tried[apart.min((1, 2)) > 2 * RADIUS].tolist():
            start, *others = [(int(x), int(y)) for x, y in places]
            marks = dict(zip(COLOURS, others, strict=True))
            named = list(COLOURS)[int(generator.integers(len(COLOURS)))]
            if [colour for colour, place in marks.items() if is_held_out(colour, _cell(place))] == [named] * held_out:
                return Task(start, marks, named)


def _cell(place: tuple[int, int]) -> int:
    x, y = (min(n * CELLS // SIDE, CELLS - 1) for n in place)
    return y * CELLS + x


@dataclass(frozen=True)
class LazyPicture:
    """The picture of a task, drawn when it is loaded."""

    task: Task
    shape: tuple[int, ...] = (3, SIDE, SIDE)

    def load(self) -> Tensor:
        """Float32[3, 24, 24] in [-1, 1]"""
        return self.task.picture()


@dataclass(frozen=True)
class LazyPath:
    """A path of a task, computed when it is loaded."""

    task: Task
    key: int
    shape: tuple[int, ...] = (2, POINTS)

    def load(self) -> Tensor:
        """Float32[2, 16] in [-1, 1]"""
        return self.task.path(self.key)


def documents(count: int, *key: rng.KeyPart, held_out: bool = False) -> list[Document]:
    """Instruction, picture and path: the first two are given, the path is drawn."""
    found = []
    for i in range(count):
        task = draw_task(*key, i, held_out=held_out)
        first, *others = task.captions
        text = Text(first, loss=False, paraphrases=tuple(others))
        path = Media(LazyPath(task, rng.key("path", *key, i)), PATH)
        name = " ".join(map(str, (*key, "held out" if held_out else "seen", i)))
        found.append(Document((text, Media(LazyPicture(task), use="context"), path), name=name))
    return found
