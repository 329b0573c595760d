"""Scenes of handwritten digits, composed on the spot: which digits, how many, where, in what colour.

The six kinds are GenEval's tasks (Ghosh et al. 2023, arXiv 2310.11513), on a grid of 2 x 2 cells:

    single       a three                        one digit, anywhere, in any colour
    two          a three and a seven
    counting     four threes
    colours      a red three
    position     a three left of a seven
    attribution  a red three and a blue seven

Some combinations (a pair of digits, a digit and its number, its colour, an order in a line, two digits in two colours) are held
out: training scenes have none of them, test scenes exactly one. `evaluation.scene_checker` checks what an image shows.
"""

from collections import Counter
from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations, product
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from transfusion import rng
from transfusion.data.document import Document, Media, Text
from transfusion.data.sources.digits import NAMES, Digits, read_digits

SceneKind = Literal["single", "two", "counting", "colours", "position", "attribution"]
Fact = Literal["presence", "count", "place", "colour"]
KINDS: tuple[SceneKind, ...] = get_args(SceneKind)
ROWS, COLUMNS = 2, 2
COLOURS = {
    "red": (1.0, 0.0, 0.0),
    "yellow": (1.0, 1.0, 0.0),
    "green": (0.0, 1.0, 0.0),
    "cyan": (0.0, 1.0, 1.0),
    "blue": (0.0, 0.0, 1.0),
    "magenta": (1.0, 0.0, 1.0),
}
"""Six hues, 60 degrees apart; the largest channel of each is 1, so that it shows the digit as it was in grey."""
STATED: dict[SceneKind, tuple[Fact, ...]] = dict.fromkeys(KINDS, ("presence", "count"))
STATED["colours"] = STATED["attribution"] = ("presence", "count", "colour")
STATED["position"] = ("presence", "count", "place")
"""The facts that the captions of each kind state; they are checked."""
NOVEL = {"two": "pair", "counting": "number", "colours": "colour", "position": "order", "attribution": "colours"}
"""What is new in a held-out scene of each kind."""
HELD_OUT = 0.15
"""Share of the combinations of each sort that are held out."""
NUMBERS = ("no", "one", "two", "three", "four")
RELATIONS = ("left of", "right of", "above", "below")
PARAPHRASES: dict[SceneKind, tuple[str, ...]] = {
    "single": ("{a}", "the digit {d0}", "a picture of {a}"),
    "two": ("{a} and {b}", "{d0} and {d1}", "a picture of {a} and {b}"),
    "counting": ("{n} {s0}", "a picture of {n} {s0}", "the digit {d0}, {n} times"),
    "colours": ("a {c0} {d0}", "{a} in {c0}", "a picture of a {c0} {d0}"),
    "position": ("{a} {r} {b}", "{d0} {r} {d1}", "a picture of {a} {r} {b}"),
    "attribution": ("a {c0} {d0} and a {c1} {d1}", "{a} in {c0} and {b} in {c1}", "a picture of a {c0} {d0} and a {c1} {d1}"),
}


@dataclass(frozen=True, order=True)
class Thing:
    """A digit in a colour, in a cell of the grid counted row by row; `colour` is None where none was recognised."""

    digit: int
    colour: str | None
    cell: int

    def __str__(self) -> str:
        return f"{self.colour or 'colourless'} {NAMES[self.digit]} in cell {self.cell}"


@dataclass(frozen=True)
class Scene:
    """What an image shows: things in the order of its captions, each in its own cell; the kind decides what captions state.
    Raises ValueError: two things in a cell, an unknown digit, colour or cell, or a kind that these things do not fit."""

    kind: SceneKind
    things: tuple[Thing, ...]

    def __post_init__(self) -> None:
        for thing in self.things:
            if not (0 <= thing.digit < len(NAMES) and thing.colour in COLOURS and 0 <= thing.cell < ROWS * COLUMNS):
                raise ValueError(f"no such thing: {thing!r}; digits are 0 to 9, cells 0 to 3, colours {', '.join(COLOURS)}")
        if not self.things or len({thing.cell for thing in self.things}) < len(self.things):
            raise ValueError("a scene has one thing at least, and each its own cell")
        if self.kind in ("position", "attribution") and len(self.things) != 2:
            raise ValueError(f"a scene of kind {self.kind} has two things, not {len(self.things)}")
        if self.kind == "position" and relation(*self.things) is None:
            raise ValueError("the things of a position stand in one row or one column")

    @property
    def captions(self) -> tuple[str, ...]:
        """Three paraphrases of its caption."""
        (d0, c0), (d1, c1) = ((NAMES[thing.digit], thing.colour) for thing in (self.things[0], self.things[-1]))
        a, b = (f"{'an' if digit == 'eight' else 'a'} {digit}" for digit in (d0, d1))
        s0 = f"{d0}{'es' if d0 == 'six' else 's'}"
        n, r = NUMBERS[len(self.things)], relation(self.things[0], self.things[-1])
        return tuple(t.format(a=a, b=b, d0=d0, d1=d1, s0=s0, c0=c0, c1=c1, n=n, r=r) for t in PARAPHRASES[self.kind])


def relation(thing: Thing, other: Thing) -> str | None:
    """Relation of a thing to another in its row or column; None where they share neither."""
    (row, column), (other_row, other_column) = divmod(thing.cell, COLUMNS), divmod(other.cell, COLUMNS)
    if (row == other_row) == (column == other_column):
        return None
    return RELATIONS[column > other_column] if row == other_row else RELATIONS[2 + (row > other_row)]


def draw(kind: SceneKind, *key: rng.KeyPart, held_out: bool = False) -> Scene:
    """Draw a scene of a kind by key. If `held_out`, only its kind's own combination is held out, otherwise none of them. Raises
    ValueError: a held-out single digit: one digit alone combines nothing."""
    if held_out and kind not in NOVEL:
        raise ValueError(f"scenes of kind {kind} combine nothing that could be held out; ask for one of {', '.join(NOVEL)}")
    generator = rng.generator(rng.key("scene", kind, *key))
    wanted = {NOVEL[kind]} if held_out else set()
    while True:
        scene = _random(kind, generator)
        if scene is not None and {c[0] for c in combined(scene) if is_held_out(*c)} == wanted:
            return scene


def _random(kind: SceneKind, generator: np.random.Generator) -> Scene | None:
    count = {"single": 1, "colours": 1, "counting": int(generator.integers(2, 5))}.get(kind, 2)
    digits = generator.permutation(len(NAMES))[:count].tolist()
    colours = [list(COLOURS)[i] for i in generator.integers(len(COLOURS), size=count)]
    cells = generator.permutation(ROWS * COLUMNS)[:count].tolist()
    if kind == "counting":
        digits = digits[:1] * count
    things = tuple(map(Thing, digits, colours, cells))
    if (kind == "position" and relation(*things) is None) or (kind == "attribution" and colours[0] == colours[1]):
        return None
    return Scene(kind, things)


def combined(scene: Scene) -> set[tuple[str | int, ...]]:
    """All combinations in a scene, stated or not, each with its sort first: ("colour", "red", 3), ("pair", 3, 7), ..."""
    things = sorted(scene.things)
    result: set[tuple[str | int, ...]] = {("colour", str(t.colour), t.digit) for t in things}
    result |= {("number", n, digit) for digit, n in Counter(t.digit for t in things).items() if n > 1}
    for a, b in combinations(things, 2):
        if a.digit != b.digit:
            result |= {("pair", a.digit, b.digit), ("colours", str(a.colour), a.digit, str(b.colour), b.digit)}
            if place := relation(a, b):
                result.add(("order", place, a.digit, b.digit))
    return result


@cache
def is_held_out(*combination: str | int) -> bool:
    """Whether a combination is held out of training."""
    return rng.uniform("scenes", "held out", *combination) < HELD_OUT


def compose(scene: Scene, digits: Digits, key: int) -> Float[Tensor, "3 height width"]:
    """The image of a scene in [-1, 1], composed of digits that the key draws from a set."""
    side = digits.images.shape[-1]
    image = torch.full((3, ROWS * side, COLUMNS * side), -1.0)
    for thing in scene.things:
        pool = (digits.labels == thing.digit).nonzero()[:, 0]
        grey = digits.images[pool[int(rng.uniform(key, thing.cell) * len(pool))]]
        y, x = (side * i for i in divmod(thing.cell, COLUMNS))
        colour = torch.tensor(COLOURS[str(thing.colour)])[:, None, None]
        image[:, y : y + side, x : x + side] = (grey + 1) * colour - 1
    return image


@dataclass(frozen=True)
class LazyScene:
    """The image of a scene, 16 x 16, composed when it is loaded: of training digits, or of held-out ones."""

    scene: Scene
    key: int
    held_out: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """(channels, height, width)"""
        return (3, 16, 16)

    def load(self) -> Tensor:
        """Float32[3, 16, 16] in [-1, 1]"""
        return compose(self.scene, read_digits(held_out=self.held_out), self.key)


def held_out_scenes(count: int, seed: int) -> list[Document]:
    """Captioned scenes of held-out digits, each named for its kind: `count` of each kind ("two"), and as many with a held-out
    combination ("two_held_out")."""
    documents = []
    for kind, held_out in product(KINDS, (False, True)):
        if held_out and kind not in NOVEL:
            continue
        name = f"{kind}_held_out" if held_out else kind
        for i in range(count):
            scene = draw(kind, "score", seed, i, held_out=held_out)
            image = LazyScene(scene, rng.key("score", seed, name, i), held_out=True)
            documents.append(Document((Text(scene.captions[i % len(scene.captions)]), Media(image)), name=name))
    return documents


def swap(scene: Scene) -> Scene | None:
    """The scene with its two digits exchanged, where its captions say which stands where or has which colour, so that they are
    false of the original; None for other kinds."""
    if scene.kind not in ("position", "attribution"):
        return None
    a, b = scene.things
    return replace(scene, things=(replace(a, digit=b.digit), replace(b, digit=a.digit)))


def change(scene: Scene, fact: Fact, key: int) -> Scene:
    """A scene with a fact changed, so that the original's captions are false of it: another digit or colour for a thing, one
    thing more or less, or two that swap places. Only for `compose`. Raises ValueError if captions of its kind do not state the
    fact."""
    if fact not in STATED[scene.kind]:
        raise ValueError(f"captions of kind {scene.kind} state no {fact}, only {', '.join(STATED[scene.kind])}")
    generator, things = rng.generator(key), list(scene.things)
    at = int(generator.integers(len(things)))
    if fact == "presence":
        others = sorted(set(range(len(NAMES))) - {t.digit for t in things})
        things[at] = replace(things[at], digit=int(generator.choice(others)))
    elif fact == "colour":
        others = sorted(set(COLOURS) - {str(things[at].colour)})
        things[at] = replace(things[at], colour=str(generator.choice(others)))
    elif fact == "place":
        things = [replace(a, cell=b.cell) for a, b in zip(things, reversed(things), strict=True)]
    elif len(things) > 1 and (generator.random() < 0.5 or len(things) == ROWS * COLUMNS):
        del things[at]
    else:
        free = sorted(set(range(ROWS * COLUMNS)) - {t.cell for t in things})
        things.append(replace(things[at], cell=int(generator.choice(free))))
    return Scene("counting", tuple(things))
