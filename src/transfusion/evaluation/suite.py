"""What all suites share: how is measured, and what comes out. A suite is `score(model, documents, how) -> SuiteResult`.

text    held-out text                          perplexity, bits per byte, ranked choices
draw    captions, with their real pictures     agreement, distances, precision and recall, copies, FID, KID, CLIP score
read    pictures with their captions           accuracy where captions name classes, CIDEr where they are free text
edit    picture, instruction, picture          share of edits nearer to the target than the source is
scenes  composed digits (`scenes.py`)          share of right pictures by kind of task
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from transfusion import config
from transfusion.api import Transfusion
from transfusion.data.document import Document, Text
from transfusion.evaluation import digest
from transfusion.evaluation.classifier import Classifier
from transfusion.evaluation.estimate import LEAST, bootstrap
from transfusion.evaluation.record import Metric, Record
from transfusion.generate.state import Done, Event

Progress = Callable[[int, int], None]
"""Called with how many documents are done, and of how many."""


class TooFew(ValueError):
    """Too few samples for what was asked for."""


@dataclass(frozen=True, eq=False)
class EvalContext:
    """How a suite measures.

    Args:
        samples: documents to measure on; fewer where there are fewer to read.
        seed: names all chance.
        dtype: fp32 or bf16.
        judge: says the class of pictures; its features are what distances are taken in.
        names: of the classes; captions that name one of them are judged by it.
        real: real pictures that were held out, Float[picture, channels, height, width] (None: those of the documents).
        real_classes: their classes, Int[picture].
        trained: real pictures that were trained on, to find copies of.
        inception: file with Inception's weights, for FID and KID.
        clip: folder with a CLIP model, for the CLIP score.
        command: what was typed.
        notes: more to be kept in the record's settings.
        progress: called on the way.
    """

    samples: int = 1000
    seed: int = 0
    dtype: torch.dtype = torch.float32
    judge: Classifier | None = None
    names: tuple[str, ...] = ()
    real: Tensor | None = None
    real_classes: Tensor | None = None
    trained: Tensor | None = None
    inception: str = ""
    clip: str = ""
    command: str = ""
    notes: dict[str, str | int] = field(default_factory=dict)
    progress: Progress = lambda done, total: None

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ValueError(f"samples must be at least 1, not {self.samples}")


@dataclass(frozen=True, eq=False)
class SuiteResult:
    """A suite's record, and what a person may want to look at: documents, prompts included, each with its seed."""

    record: Record
    documents: tuple[Document, ...] = ()
    seeds: tuple[int, ...] = ()


class Count:
    """Counts finished documents, as `each` of `Transfusion.generate`."""

    def __init__(self, total: int, progress: Progress) -> None:
        self._done, self._total, self._progress = 0, total, progress

    def __call__(self, event: Event) -> None:
        """Take an event."""
        if isinstance(event, Done):
            self._done += 1
            self._progress(self._done, self._total)


def record(
    suite: str,
    model: Transfusion,
    how: EvalContext,
    metrics: dict[str, Metric],
    missing: dict[str, str] | None = None,
    judges: dict[str, str] | None = None,
) -> Record:
    """A suite's record, with what is the same for all."""
    settings = {
        "sampler": config.to_plain(model.config.sampler),
        "guidance": config.to_plain(model.config.guidance),
        "dtype": str(how.dtype).removeprefix("torch."),
        **how.notes,
    }
    weights = digest.of_tensors(model.network.state_dict())
    return Record(suite, metrics, missing or {}, weights, judges or {}, how.seed, settings, how.command)


def mean(values: Sequence[float], seed: int, over: Sequence[float] | None = None) -> Metric:
    """A mean (or ratio of sums) with its bootstrap interval, or without one where there are too few samples for it."""
    if len(values) < LEAST:
        return Metric(sum(values) / (len(values) if over is None else sum(over)), len(values))
    found = bootstrap(values, over, seed=seed)
    return Metric(found.value, found.count, found.low, found.high)


def caption(document: Document, index: int = 0) -> str:
    """A document's text; where a segment has several wordings, the one that belongs to an index."""
    parts = []
    for segment in document.segments:
        if isinstance(segment, Text) and isinstance(segment.content, str):
            paraphrases = (segment.content, *segment.paraphrases)
            parts.append(paraphrases[index % len(paraphrases)])
    return "".join(parts)


def named(text: str, names: Sequence[str]) -> int | None:
    """Index of the class that a text names as a whole word; None if none or several. The longest name at a place counts."""
    if not names:
        return None
    pattern = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
    found = set(re.findall(rf"(?<!\w)(?:{pattern})(?!\w)", text))
    return list(names).index(found.pop()) if len(found) == 1 else None
