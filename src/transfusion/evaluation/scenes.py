"""A checker of scenes (`data.sources.scenes`): does a picture show which digits, how many, where, in what colour?

It reads a picture cell by cell: full or empty by brightness, the digit by a classifier fitted on real ones, the colour by hue.
How often it is right about real scenes (`checker`) belongs beside every number that it gives.
"""

from collections import Counter
from dataclasses import dataclass
from functools import cache

import torch
from einops import rearrange
from torch import Tensor

from transfusion import rng
from transfusion.api import Transfusion
from transfusion.data.document import Document, Media, Text
from transfusion.data.sources.digits import NAMES, read_digits
from transfusion.data.sources.scenes import (
    COLOURS,
    COLUMNS,
    KINDS,
    NOVEL,
    ROWS,
    STATED,
    Fact,
    Scene,
    SceneKind,
    Thing,
    change,
    compose,
    draw,
    relation,
)
from transfusion.evaluation.classifier import Classifier, SmallClassifier
from transfusion.evaluation.record import Metric, Proportion
from transfusion.evaluation.suite import Count, EvalContext, Progress, SuiteResult, record
from transfusion.modality import IMAGE

FULL = 0.09
"""Mean brightness above which a cell counts as full: half of what the faintest real digit has."""
VIVID = 0.5
"""Saturation below which a digit has no colour."""


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
    digits = read_digits(held_out=False)
    padded = torch.nn.functional.pad(digits.images, (1, 1, 1, 1), value=-1.0)
    side, shifts = digits.images.shape[-1], ((1, 1), (0, 1), (2, 1), (1, 0), (1, 2))
    moved = [padded[..., y : y + side, x : x + side] for y, x in shifts]
    return SmallClassifier(torch.cat(moved), digits.labels.repeat(len(shifts)))


# ---- the checker's own accuracy ---------------------------------------------------------------------------------------------


def checker(judge: Classifier, *, count: int, seed: int = 0) -> dict[str, Proportion]:
    """How often the checker is right on scenes of held-out digits: that true ones are right ("checker_true", `count` a kind),
    and that those with one fact changed are wrong ("checker_changed", `count` for each fact that a kind states)."""
    asked: list[tuple[Scene, Scene]] = []
    for kind in KINDS:
        for i in range(count):
            scene, key = draw(kind, "checker", seed, i), rng.key("checker", seed, kind, i)
            asked += [(scene, scene), *((scene, change(scene, fact, key)) for fact in STATED[kind])]
    digits = read_digits(held_out=True)
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
    documents = model.generate(captions, force=IMAGE, seeds=seeds, dtype=dtype, on_event=Count(len(scenes), progress))
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
