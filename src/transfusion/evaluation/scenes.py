"""Captions of composed scenes -> images: the share that shows what the caption states, for each of GenEval's six kinds. And, of
the scenes' own images, whether captions are used at all: caption preference, also against the two things exchanged
(`preference.py`).

The checker reads an image cell by cell: full or empty by brightness, the digit by a classifier fitted on real ones, the colour
by hue. `checker_accuracy` measures the checker itself on real scenes; report it beside every number that the checker gives.
"""

from collections import Counter
from collections.abc import Sequence
from functools import cache

import torch
from einops import rearrange
from torch import Tensor

from transfusion import rng
from transfusion.api import Transfusion
from transfusion.data.document import Document
from transfusion.data.sources.digits import NAMES, read_digits
from transfusion.data.sources.scenes import (
    COLOURS,
    COLUMNS,
    KINDS,
    ROWS,
    STATED,
    Fact,
    LazyScene,
    Scene,
    Thing,
    change,
    compose,
    draw,
    relation,
)
from transfusion.evaluation.classifier import Classifier, SmallClassifier
from transfusion.evaluation.estimate import Estimate
from transfusion.evaluation.preference import caption_errors, caption_preference, error_measured, preference, swapped_captions
from transfusion.evaluation.suite import EvalContext, SuiteResult, generate, make_record
from transfusion.modality import IMAGE

FULL = 0.09
"""Mean brightness above which a cell counts as full: half that of the faintest real digit."""
VIVID = 0.5
"""Saturation below which a digit has no colour."""
MIN_CHECKED = 50
"""Real scenes of a kind that the checker itself is measured on, at least."""


def score(model: Transfusion, documents: Sequence[Document], context: EvalContext) -> SuiteResult:
    """Draw the scenes of `data.sources.scenes.held_out_scenes` from their captions, with the model's sampler and guidance.

    Metrics are shares of right images: of each kind ("two", "two_held_out", ...), of all kinds ("all", "all_held_out"), and
    the checker's own accuracy ("checker_true", "checker_changed"). Then caption preference, and that of each kind against the
    two things exchanged ("position_swapped", "attribution_held_out_swapped", ...).

    Raises:
        ValueError: no documents, or one without a scene.
    """
    scenes = [d.media[-1].values.scene for d in documents if d.media and isinstance(d.media[-1].values, LazyScene)]
    if not documents or len(scenes) < len(documents):
        raise ValueError("the suite draws composed scenes only: give it documents of held_out_scenes")
    drawn = generate(model, [document.text for document in documents], "scenes", context, force=IMAGE)
    classifier = scene_classifier()
    seen = see(torch.stack([document.media[-1].tensor() for document in drawn]), classifier)
    right = [not compare(scene, things) for scene, things in zip(scenes, seen, strict=True)]
    kinds = [document.name for document in documents]
    groups: dict[str, list[bool]] = {}
    for names in (kinds, ["all_held_out" if kind.endswith("_held_out") else "all" for kind in kinds]):
        for name, verdict in zip(names, right, strict=True):
            groups.setdefault(name, []).append(verdict)
    metrics = {name: Estimate.proportion(sum(verdicts), len(verdicts)) for name, verdicts in groups.items()}
    count = max(MIN_CHECKED, metrics[kinds[0]].count)
    metrics |= checker_accuracy(classifier, count=count, seed=context.seed)
    metrics |= _preferences(model, documents, context)
    record = make_record("scenes", model, context, metrics, classifiers={"classifier": classifier.digest})
    return SuiteResult(record, tuple(drawn), tuple("right" if verdict else "wrong" for verdict in right))


def _preferences(model: Transfusion, documents: Sequence[Document], context: EvalContext) -> dict[str, Estimate]:
    """Caption preference on all scenes, and against exchanged things on those of each kind that states which is which."""
    metrics = caption_preference(model, documents, samples=len(documents), seed=context.seed, dtype=context.dtype)
    for kind in dict.fromkeys(document.name for document in documents):
        of_kind = [document for document in documents if document.name == kind]
        pairs = swapped_captions(of_kind, samples=len(of_kind), seed=context.seed)
        if pairs:
            errors = caption_errors(model, pairs, seed=context.seed, dtype=context.dtype)
            metrics[f"{kind}_swapped"] = preference(errors, error_measured(model, pairs))
    return metrics


def see(images: Tensor, classifier: Classifier) -> list[tuple[Thing, ...]]:
    """The things in each image, Float[image, 3, 2 side, 2 side] in [-1, 1]. Whatever fills a cell counts as a digit.

    Raises:
        ValueError: images without colour, or of odd height or width.
    """
    if images.shape[1] != 3 or images.shape[2] % ROWS or images.shape[3] % COLUMNS:
        raise ValueError(f"scenes are images of 3 channels and even height and width, not {tuple(images.shape[1:])}")
    light = (images.float().cpu().clamp(-1, 1) + 1) / 2
    cells = rearrange(light, "image c (row y) (column x) -> (image row column) c y x", row=ROWS, column=COLUMNS)
    grey = cells.amax(1, keepdim=True)
    full = (grey.mean((1, 2, 3)) > FULL).nonzero()[:, 0].tolist()
    things: list[list[Thing]] = [[] for _ in images]
    if full:
        mean = cells[full].mean((-2, -1))
        high, low = mean.amax(1), mean.amin(1)
        hues = torch.tensor(list(COLOURS.values()))
        nearest = torch.cosine_similarity(_chroma(mean)[:, None], _chroma(hues), dim=-1).argmax(1)
        vivid = (high - low) / high >= VIVID
        for index, digit, hue, coloured in zip(full, classifier.classify(grey[full] * 2 - 1), nearest, vivid, strict=True):
            colour = list(COLOURS)[int(hue)] if coloured else None
            things[index // (ROWS * COLUMNS)].append(Thing(int(digit), colour, index % (ROWS * COLUMNS)))
    return [tuple(content) for content in things]


def _chroma(rgb: Tensor) -> Tensor:
    """Colours minus their grey; the direction is the hue."""
    return rgb - rgb.mean(-1, keepdim=True)


def compare(scene: Scene, seen: tuple[Thing, ...]) -> dict[Fact, str]:
    """The facts that a scene's captions state and that the things in an image contradict, each with its reason."""
    wrong: dict[Fact, str] = {}
    shown = ", ".join(map(str, seen)) or "nothing"
    if missing := Counter(t.digit for t in scene.things) - Counter(t.digit for t in seen):
        wrong["presence"] = f"no {', '.join(NAMES[digit] for digit in missing.elements())}; the image shows {shown}"
    if len(seen) != len(scene.things):
        wrong["count"] = f"{len(seen)} instead of {len(scene.things)}: {shown}"
    stated = STATED[scene.kind]
    if "place" in stated:
        a, b = scene.things
        relations = [relation(x, y) for x in seen for y in seen if (x.digit, y.digit) == (a.digit, b.digit)]
        if relation(a, b) not in relations:
            wrong["place"] = f"no {NAMES[a.digit]} {relation(a, b)} a {NAMES[b.digit]}; the image shows {shown}"
    if "colour" in stated:
        pairs = Counter((t.digit, t.colour) for t in scene.things) - Counter((t.digit, t.colour) for t in seen)
        if pairs:
            missing = ", ".join(f"{colour} {NAMES[digit]}" for digit, colour in pairs)
            wrong["colour"] = f"no {missing}; the image shows {shown}"
    return wrong


@cache
def scene_classifier() -> Classifier:
    """A classifier of cells, fitted on the training digits and their shifts by a pixel (accuracy 0.994 on held-out digits;
    0.978 without the shifts, and a scene has up to four digits)."""
    digits = read_digits(held_out=False)
    padded = torch.nn.functional.pad(digits.images, (1, 1, 1, 1), value=-1.0)
    side, shifts = digits.images.shape[-1], ((1, 1), (0, 1), (2, 1), (1, 0), (1, 2))
    shifted = [padded[..., y : y + side, x : x + side] for y, x in shifts]
    return SmallClassifier(torch.cat(shifted), digits.labels.repeat(len(shifts)))


def checker_accuracy(classifier: Classifier, *, count: int, seed: int = 0) -> dict[str, Estimate]:
    """Accuracy of the checker on scenes of held-out digits: on true ones ("checker_true", `count` of each kind), and on those
    with one fact changed, which must be wrong ("checker_changed", `count` for each fact that a kind states)."""
    pairs: list[tuple[Scene, Scene]] = []
    for kind in KINDS:
        for i in range(count):
            scene, key = draw(kind, "checker", seed, i), rng.key("checker", seed, kind, i)
            pairs += [(scene, scene), *((scene, change(scene, fact, key)) for fact in STATED[kind])]
    digits = read_digits(held_out=True)
    images = torch.stack([compose(shown, digits, rng.key("checker", seed, i)) for i, (_, shown) in enumerate(pairs)])
    right: dict[bool, list[bool]] = {True: [], False: []}
    for (scene, shown), seen in zip(pairs, see(images, classifier), strict=True):
        right[scene is shown].append((not compare(scene, seen)) == (scene is shown))
    names = {"checker_true": True, "checker_changed": False}
    return {name: Estimate.proportion(sum(right[true]), len(right[true])) for name, true in names.items()}
