"""Captions of moving digits -> clips, and clips -> captions: are digit and direction right?

right, right_held_out     share of drawn clips that show the digit and the direction of their caption: of combinations that were
                          trained on, and of those that never were
digit, direction          share in which one of the two is right, of all combinations
read, read_held_out       share of held-out clips whose written caption names both, and nothing else
checker                   share of held-out real clips in which the checker finds both

The checker finds the digit in each frame as the brightest window of its size. A classifier fitted on real digits reads each
frame, and most of them decide; the direction is the axis along which the light moves most from the first to the last frame, by
half of the true way at least.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from transfusion.api import Transfusion
from transfusion.data.document import Document
from transfusion.data.sources.clips import CLIP, DIRECTIONS, FRAMES, SPEED, LazyClip, is_held_out
from transfusion.data.sources.digits import NAMES, read_digits
from transfusion.evaluation.classifier import Classifier
from transfusion.evaluation.estimate import Estimate
from transfusion.evaluation.scenes import scene_classifier
from transfusion.evaluation.suite import EvalContext, SuiteResult, caption, class_named, generate, make_record

MAX_TOKENS = 24


def score(model: Transfusion, documents: Sequence[Document], context: EvalContext) -> SuiteResult:
    """Draw the clips of documents of `data.sources.clips` from their captions, and caption their own clips.

    Raises:
        ValueError: documents of another kind, or none.
    """
    clips = [d.media[-1].values for d in documents if d.media and isinstance(d.media[-1].values, LazyClip)]
    if not documents or len(clips) < len(documents):
        raise ValueError("the suite measures clips of data.sources.clips")
    classifier = scene_classifier()
    progress = context.progress
    halves = [replace(context, progress=lambda done, total, at=at: progress(done + at * total, 2 * total)) for at in (0, 1)]
    drawn = generate(model, [caption(d, i) for i, d in enumerate(documents)], "clips", halves[0], force=CLIP)
    prompts = [Document(document.media) for document in documents]
    answers = generate(model, prompts, "clips-read", halves[1], max_items=0, max_tokens=MAX_TOKENS)
    seen = see(torch.stack([document.media[-1].tensor() for document in drawn]), classifier)
    real = see(torch.stack([clip.load() for clip in clips]), classifier)
    wanted = [(clip.digit, clip.direction) for clip in clips]
    written = [_named(answer.text) for answer in answers]
    metrics: dict[str, Estimate] = {}
    for held_out, suffix in ((False, ""), (True, "_held_out")):
        at = [i for i, pair in enumerate(wanted) if is_held_out(*pair) == held_out]
        if at:
            metrics["right" + suffix] = Estimate.proportion(sum(seen[i] == wanted[i] for i in at), len(at))
            metrics["read" + suffix] = Estimate.proportion(sum(written[i] == wanted[i] for i in at), len(at))
    count = len(wanted)
    for axis, name in enumerate(("digit", "direction")):
        right = sum(found[axis] == asked[axis] for found, asked in zip(seen, wanted, strict=True))
        metrics[name] = Estimate.proportion(right, count)
    metrics["checker"] = Estimate.proportion(sum(a == b for a, b in zip(real, wanted, strict=True)), count)
    verdicts = tuple("right" if a == b else "wrong" for a, b in zip(seen, wanted, strict=True))
    shown = tuple((strip(d.media[-1].tensor()), d.text, v) for d, v in zip(drawn, verdicts, strict=True))
    record = make_record("clips", model, context, metrics, classifiers={"classifier": classifier.digest})
    return SuiteResult(record, tuple(drawn), verdicts, shown)


def _named(text: str) -> tuple[int | None, str | None]:
    direction = class_named(text, tuple(DIRECTIONS))
    return class_named(text, NAMES), None if direction is None else list(DIRECTIONS)[direction]


def see(clips: Float[Tensor, "clip 1 frame side side"], classifier: Classifier) -> list[tuple[int, str | None]]:
    """The digit in each clip, and the direction in which it moves; None for one that moves by less than half of the way."""
    size = read_digits(held_out=False).images.shape[-1]
    light = (clips.float().clamp(-1, 1) + 1) / 2
    frames = light.flatten(0, 2)[:, None]
    windows = F.unfold(frames, size)  # [frame, values, place]
    brightest = windows.sum(1).argmax(-1)
    crops = windows[torch.arange(len(frames)), :, brightest].unflatten(-1, (1, size, size)) * 2 - 1
    votes = classifier.classify(crops).unflatten(0, (-1, FRAMES)).tolist()
    axis = torch.arange(light.shape[-1], dtype=torch.float32)
    mass = light.sum((-2, -1)).clamp_min(1e-6)
    centres = torch.stack([(light.sum(-1) * axis).sum(-1), (light.sum(-2) * axis).sum(-1)], -1) / mass[..., None]
    moved = centres[:, 0, -1] - centres[:, 0, 0]  # [clip, (y, x)]
    found: list[tuple[int, str | None]] = []
    for digits, (y, x) in zip(votes, moved.tolist(), strict=True):
        along = (y, 0.0) if abs(y) > abs(x) else (0.0, x)
        sign = tuple(int(n > 0) - int(n < 0) for n in along)
        far = max(map(abs, along)) >= SPEED * (FRAMES - 1) / 2
        found.append(
            (Counter(digits).most_common(1)[0][0], next((n for n, s in DIRECTIONS.items() if s == sign and far), None))
        )
    return found


def strip(clip: Float[Tensor, "1 frame side side"]) -> Float[Tensor, "1 height width"]:
    """The frames of a clip in reading order, two by two, with a grey line between them."""
    rows = [torch.cat([F.pad(frame, (0, 1, 0, 1)) for frame in pair], -1) for pair in clip.float().clamp(-1, 1)[0].split(2)]
    return torch.cat(rows, -2)[None]
