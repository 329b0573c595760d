"""Scenes of handwritten digits, and a checker: does a picture show which digits, how many, where, in what colour?

The six kinds of task are GenEval's (Ghosh et al. 2023, arXiv 2310.11513), on a grid of 2 x 2 cells:

    single       a three                        one digit, anywhere, in any colour
    two          a three and a seven
    counting     four threes
    colours      a red three
    position     a three left of a seven
    attribution  a red three and a blue seven

Some combinations (a pair of digits, a digit and its number, its colour, an order in a line, two digits in two colours) are held
out: `draw` gives scenes without any of them, to train on, or with one of the kind's own, to ask for what was never seen whole.
The checker reads a picture cell by cell: full or empty by brightness, the digit by a judge fitted on real ones, the colour by
hue. How often it is right about real scenes (`checker`) belongs beside every number that it gives.
"""

from collections import Counter
from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations
from typing import Literal, get_args

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from transfusion import rng
from transfusion.api import Transfusion
from transfusion.data.document import Document, Media, Text
from transfusion.data.handwritten import NAMES, Digits, handwritten
from transfusion.evaluation.classifier import Classifier, SmallClassifier
from transfusion.evaluation.record import Metric, Proportion
from transfusion.evaluation.suite import Count, EvalContext, Progress, SuiteResult, record

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
STATED: dict[SceneKind, tuple[Fact, ...]] = {
    "single": ("presence", "count"),
    "two": ("presence", "count"),
    "counting": ("presence", "count"),
    "colours": ("presence", "count", "colour"),
    "position": ("presence", "count", "place"),
    "attribution": ("presence", "count", "colour"),
}
"""The facts that a caption of each kind states, and that are checked."""
NOVEL: dict[SceneKind, str] = {
    "two": "pair",
    "counting": "number",
    "colours": "colour",
    "position": "order",
    "attribution": "colours",
}
"""What is new in a held-out scene of each kind."""
HELD_OUT = 0.15
"""Share of the combinations of each sort that are held out."""
FULL = 0.09
"""Mean brightness above which a cell counts as full: half of what the faintest real digit has."""
VIVID = 0.5
"""Saturation below which a digit has no colour."""
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
    """What a picture is to show.

    Args:
        kind: decides which of the facts its captions state.
        things: in the order in which captions name them, each in its own cell.

    Raises:
        ValueError: two things in a cell, an unknown digit, colour or cell, or a kind that these things do not fit.
    """

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
        """What it says, in three wordings."""
        first, last = self.things[0], self.things[-1]
        words = {
            "a": _a(first.digit),
            "b": _a(last.digit),
            "d0": NAMES[first.digit],
            "d1": NAMES[last.digit],
            "s0": f"{NAMES[first.digit]}{'es' if first.digit == 6 else 's'}",
            "c0": first.colour,
            "c1": last.colour,
            "n": NUMBERS[len(self.things)],
            "r": relation(first, last),
        }
        return tuple(wording.format(**words) for wording in PARAPHRASES[self.kind])


def _a(digit: int) -> str:
    return f"{'an' if digit == 8 else 'a'} {NAMES[digit]}"


def relation(one: Thing, other: Thing) -> str | None:
    """How one thing stands to another in its row or column; None where they share neither."""
    (row, column), (other_row, other_column) = divmod(one.cell, COLUMNS), divmod(other.cell, COLUMNS)
    if (row == other_row) == (column == other_column):
        return None
    return RELATIONS[column > other_column] if row == other_row else RELATIONS[2 + (row > other_row)]


# ---- drawing scenes ---------------------------------------------------------------------------------------------------------


def draw(kind: SceneKind, *key: rng.KeyPart, held_out: bool = False) -> Scene:
    """The scene of a kind that belongs to a key.

    Args:
        held_out: True: the kind's own combination in it is held out, all else in it is not; False: nothing in it is.

    Raises:
        ValueError: a held-out single digit: one digit alone combines nothing.
    """
    if held_out and kind not in NOVEL:
        raise ValueError(f"scenes of kind {kind} combine nothing that could be held out; ask for one of {', '.join(NOVEL)}")
    generator = rng.generator(rng.key("scene", kind, *key))
    wanted = {NOVEL[kind]} if held_out else set()
    while True:
        scene = _any(kind, generator)
        if scene is not None and {c[0] for c in combined(scene) if is_held_out(*c)} == wanted:
            return scene


def _any(kind: SceneKind, generator: np.random.Generator) -> Scene | None:
    count = {"single": 1, "colours": 1, "counting": int(generator.integers(2, 5))}.get(kind, 2)
    digits = generator.permutation(len(NAMES))[:count].tolist()
    colours = [list(COLOURS)[i] for i in generator.integers(len(COLOURS), size=count)]
    cells = generator.permutation(ROWS * COLUMNS)[:count].tolist()
    if kind == "counting":
        digits = digits[:1] * count
    things = tuple(Thing(*one) for one in zip(digits, colours, cells, strict=True))
    if (kind == "position" and relation(*things) is None) or (kind == "attribution" and colours[0] == colours[1]):
        return None
    return Scene(kind, things)


def combined(scene: Scene) -> set[tuple[str | int, ...]]:
    """All that a scene combines, stated or not, each named for its sort first: ("colour", "red", 3), ("pair", 3, 7), ..."""
    things = sorted(scene.things)
    found: set[tuple[str | int, ...]] = {("colour", str(t.colour), t.digit) for t in things}
    found |= {("number", n, digit) for digit, n in Counter(t.digit for t in things).items() if n > 1}
    for one, other in combinations(things, 2):
        if one.digit != other.digit:
            found |= {
                ("pair", one.digit, other.digit),
                ("colours", str(one.colour), one.digit, str(other.colour), other.digit),
            }
            if place := relation(one, other):
                found.add(("order", place, one.digit, other.digit))
    return found


@cache
def is_held_out(*combination: str | int) -> bool:
    """Whether a combination is never trained on."""
    return rng.uniform("scenes", "held out", *combination) < HELD_OUT


def compose(scene: Scene, digits: Digits, key: int) -> Tensor:
    """A picture of a scene: Float[3, 2 side, 2 side] in [-1, 1], of digits of the given set that a key draws."""
    side = digits.pictures.shape[-1]
    picture = torch.full((3, ROWS * side, COLUMNS * side), -1.0)
    for thing in scene.things:
        pool = (digits.labels == thing.digit).nonzero()[:, 0]
        grey = digits.pictures[pool[int(rng.uniform(key, thing.cell) * len(pool))]]
        y, x = (side * i for i in divmod(thing.cell, COLUMNS))
        colour = torch.tensor(COLOURS[str(thing.colour)])[:, None, None]
        picture[:, y : y + side, x : x + side] = (grey + 1) * colour - 1
    return picture


# ---- checking pictures ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verdict:
    """What a picture shows and what is wrong with it.

    Args:
        seen: the things in it.
        wrong: the facts that do not hold, each with its reason.
    """

    seen: tuple[Thing, ...]
    wrong: dict[Fact, str]

    @property
    def right(self) -> bool:
        """Whether all that the caption states holds."""
        return not self.wrong


def see(pictures: Tensor, judge: Classifier) -> list[tuple[Thing, ...]]:
    """The things in each picture, Float[picture, 3, 2 side, 2 side] in [-1, 1]. To the judge, all that fills a cell is a digit.

    Raises:
        ValueError: pictures without colour or that the grid does not divide.
    """
    if pictures.shape[1] != 3 or pictures.shape[2] % ROWS or pictures.shape[3] % COLUMNS:
        raise ValueError(f"scenes are pictures of 3 channels and even height and width, not {tuple(pictures.shape[1:])}")
    light = (pictures.float().cpu().clamp(-1, 1) + 1) / 2
    cells = rearrange(light, "picture c (row y) (column x) -> (picture row column) c y x", row=ROWS, column=COLUMNS)
    grey = cells.amax(1, keepdim=True)
    full = (grey.mean((1, 2, 3)) > FULL).nonzero()[:, 0].tolist()
    found: list[list[Thing]] = [[] for _ in pictures]
    if full:
        mean = cells[full].mean((-2, -1))
        high, low = mean.amax(1), mean.amin(1)
        hues = torch.tensor(list(COLOURS.values()))
        near = torch.cosine_similarity(_chroma(mean)[:, None], _chroma(hues), dim=-1).argmax(1)
        vivid = (high - low) / high >= VIVID
        for index, digit, hue, clear in zip(full, judge.classify(grey[full] * 2 - 1), near, vivid, strict=True):
            colour = list(COLOURS)[int(hue)] if clear else None
            found[index // (ROWS * COLUMNS)].append(Thing(int(digit), colour, index % (ROWS * COLUMNS)))
    return [tuple(things) for things in found]


def _chroma(rgb: Tensor) -> Tensor:
    """What is left of colours without their grey: its direction is the hue."""
    return rgb - rgb.mean(-1, keepdim=True)


def compare(scene: Scene, seen: tuple[Thing, ...]) -> Verdict:
    """A scene's stated facts, held against what was seen."""
    wrong: dict[Fact, str] = {}
    shown = ", ".join(map(str, seen)) or "nothing"
    if missing := Counter(t.digit for t in scene.things) - Counter(t.digit for t in seen):
        wrong["presence"] = f"no {', '.join(NAMES[digit] for digit in missing.elements())}; there is {shown}"
    if len(seen) != len(scene.things):
        wrong["count"] = f"{len(seen)} instead of {len(scene.things)}: {shown}"
    stated = STATED[scene.kind]
    if "place" in stated:
        one, other = scene.things
        found = [relation(a, b) for a in seen for b in seen if (a.digit, b.digit) == (one.digit, other.digit)]
        if relation(one, other) not in found:
            wrong["place"] = f"no {NAMES[one.digit]} {relation(one, other)} a {NAMES[other.digit]}; there is {shown}"
    if "colour" in stated:
        pairs = Counter((t.digit, t.colour) for t in scene.things) - Counter((t.digit, t.colour) for t in seen)
        if pairs:
            wrong["colour"] = f"no {', '.join(f'{colour} {NAMES[digit]}' for digit, colour in pairs)}; there is {shown}"
    return Verdict(seen, wrong)


def check(scene: Scene, pictures: Tensor, judge: Classifier) -> list[Verdict]:
    """Whether each of some pictures of one scene, Float[picture, 3, 2 side, 2 side], shows what it states."""
    return [compare(scene, seen) for seen in see(pictures, judge)]


@cache
def scene_classifier() -> Classifier:
    """A classifier of cells, fitted on the training digits and their shifts by a pixel (0.994 on held-out ones; without the
    shifts 0.978, and a scene has up to four)."""
    digits = handwritten(held_out=False)
    padded = torch.nn.functional.pad(digits.pictures, (1, 1, 1, 1), value=-1.0)
    side, shifts = digits.pictures.shape[-1], ((1, 1), (0, 1), (2, 1), (1, 0), (1, 2))
    moved = [padded[..., y : y + side, x : x + side] for y, x in shifts]
    return SmallClassifier(torch.cat(moved), digits.labels.repeat(len(shifts)))


# ---- the checker's own accuracy ---------------------------------------------------------------------------------------------


def change(scene: Scene, fact: Fact, key: int) -> Scene:
    """A scene with one fact changed, so that the captions of the first are false of it: another digit or colour for one thing,
    one thing more or less, or two things that change places. It is for `compose` only: its own captions say little.

    Raises:
        ValueError: a fact that captions of this kind do not state.
    """
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


def checker(judge: Classifier, *, count: int, seed: int = 0) -> dict[str, Proportion]:
    """How often the checker is right on scenes of held-out digits: that true ones are right ("checker_true", `count` a kind),
    and that those with one fact changed are wrong ("checker_changed", `count` for each fact that a kind states)."""
    asked: list[tuple[Scene, Scene]] = []
    for kind in KINDS:
        for i in range(count):
            scene, key = draw(kind, "checker", seed, i), rng.key("checker", seed, kind, i)
            asked += [(scene, scene), *((scene, change(scene, fact, key)) for fact in STATED[kind])]
    digits = handwritten(held_out=True)
    pictures = [compose(shown, digits, rng.key("checker", seed, i)) for i, (_, shown) in enumerate(asked)]
    said = [compare(scene, seen).right for (scene, _), seen in zip(asked, see(torch.stack(pictures), judge), strict=True)]
    true = [one for one, (scene, shown) in zip(said, asked, strict=True) if scene is shown]
    changed = [not one for one, (scene, shown) in zip(said, asked, strict=True) if scene is not shown]
    return {"checker_true": Proportion(sum(true), len(true)), "checker_changed": Proportion(sum(changed), len(changed))}


# ---- a model ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Scored:
    """How well a model draws scenes.

    Args:
        shares: of right pictures, for each kind ("two", "two_held_out", ...), over all kinds ("all", "all_held_out"), and the
            checker's own accuracy ("checker_true", "checker_changed").
        scenes, captions, seeds, pictures, verdicts: what was asked for, drawn, and found; kind by kind, seen before held-out.
    """

    shares: dict[str, Proportion]
    scenes: tuple[Scene, ...]
    captions: tuple[str, ...]
    seeds: tuple[int, ...]
    pictures: Tensor
    verdicts: tuple[Verdict, ...]


def score(
    model: Transfusion,
    *,
    count: int,
    seed: int,
    dtype: torch.dtype,
    progress: Progress = lambda done, total: None,
) -> Scored:
    """Draw `count` scenes of each kind, and as many held-out ones, from their captions, with the model's own sampler and
    guidance; check them."""
    groups: list[tuple[SceneKind, bool]] = [(k, held) for k in KINDS for held in (False, True) if k in NOVEL or not held]
    names = [f"{kind}_held_out" if held_out else kind for kind, held_out in groups for _ in range(count)]
    scenes = [draw(kind, "score", seed, i, held_out=held_out) for kind, held_out in groups for i in range(count)]
    captions = [scene.captions[i % len(scene.captions)] for i, scene in enumerate(scenes)]
    seeds = [seed * len(scenes) + i for i in range(len(scenes))]
    documents = model.generate(captions, force="image", seeds=seeds, dtype=dtype, each=Count(len(scenes), progress))
    pictures = torch.stack([document.media[-1].tensor() for document in documents])
    judge = scene_classifier()
    verdicts = [compare(scene, seen) for scene, seen in zip(scenes, see(pictures, judge), strict=True)]

    def share(wanted: set[str]) -> Proportion:
        right = [verdict.right for verdict, name in zip(verdicts, names, strict=True) if name in wanted]
        return Proportion(sum(right), len(right))

    shares = {name: share({name}) for name in dict.fromkeys(names)}
    shares |= {"all": share(set(KINDS)), "all_held_out": share(set(names) - set(KINDS))}
    shares |= checker(judge, count=max(count, 50), seed=seed)
    return Scored(shares, tuple(scenes), tuple(captions), tuple(seeds), pictures, tuple(verdicts))


def suite_result(model: Transfusion, scored: Scored, how: EvalContext) -> SuiteResult:
    """What `score` found, as a suite's record."""
    metrics = {name: Metric.of(share) for name, share in scored.shares.items()}
    said = record("scenes", model, how, metrics, judges={"judge": scene_classifier().digest})
    shown = (Document((Text(words), Media(one))) for words, one in zip(scored.captions, scored.pictures, strict=True))
    return SuiteResult(said, tuple(shown), scored.seeds)
