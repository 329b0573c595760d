"""Every suite maps a model and held-out documents to a record and documents to look at; all have one signature:

    score(model, documents, context: EvalContext) -> SuiteResult

text    held-out text                          perplexity, bits per byte, ranked choices
draw    captions, with their real images       agreement, caption preference, brightness, patch grid, distances, precision and
                                               recall, copies, FID, KID, CLIP score
read    images with their captions             accuracy where captions name classes, CIDEr where they are free text
edit    image, instruction, image              share of edits nearer to the target than the source is
scenes  composed digits                        share of right images by kind of task, caption preference
speech  words, with their sounds               agreement, reading accuracy, caption preference, distances
coco    MS-COCO                                `draw` and `read` under the paper's protocol

Prompt i of a suite is generated under the seed rng.key(seed, suite, i), so no two suites share noise.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from transfusion import config, rng
from transfusion.api import Transfusion
from transfusion.data.document import Document, Text
from transfusion.evaluation import digest
from transfusion.evaluation.classifier import Classifier
from transfusion.evaluation.estimate import Estimate
from transfusion.evaluation.questions import Question
from transfusion.evaluation.record import Record
from transfusion.generate.state import Done, Event
from transfusion.modality import is_image

Progress = Callable[[int, int], None]
"""Called with the number of finished documents and of all."""
MOST_CLASSES, LEAST_OF_CLASS = 200, 8
"""Captions that count as classes at most, and documents that each has at least, in the mean."""
ON_TRAINED = "on documents that were trained on"
"""What the note of an estimate says where nothing is held out."""
MAX_REAL = 10_000
"""Real images that drawn ones are compared with, at most."""


@dataclass(frozen=True, eq=False)
class EvalContext:
    """How a suite measures, and all that it needs besides documents.

    Args:
        samples: documents to measure on; fewer where there are fewer to read.
        seed: random seed.
        suite: name of the record, where it is not the suite's own; part of the keys of random numbers.
        dtype: fp32 or bf16.
        classifier: its classes decide agreement, its features are what distances compare.
        class_names: names of the classes in captions.
        real: held-out real images, Float[image, channels, height, width] (default: those of the documents).
        real_classes: their classes, Int[image].
        trained: training images, among which copies are looked for.
        captioned: held-out pictures with their captions, for caption preference (default: the documents).
        questions: of the suite `text`.
        inception: file with Inception's weights, for FID and KID.
        clip: folder with a CLIP model, for the CLIP score.
        features: file of MobileNetV2, in whose features images are looked up beside pixels.
        held_out: whether the documents were not trained on; else the record and its estimates say that they were.
        command: the command line, for the record.
        notes: more settings for the record.
        progress: called while documents are finished.
    """

    samples: int = 1000
    seed: int = 0
    suite: str = ""
    dtype: torch.dtype = torch.float32
    classifier: Classifier | None = None
    class_names: tuple[str, ...] = ()
    real: Tensor | None = None
    real_classes: Tensor | None = None
    trained: Tensor | None = None
    captioned: Sequence[Document] = ()
    questions: tuple[Question, ...] = ()
    inception: str = ""
    clip: str = ""
    features: str = ""
    held_out: bool = True
    command: str = ""
    notes: dict[str, str | int] = field(default_factory=dict)
    progress: Progress = lambda done, total: None

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ValueError(f"samples must be at least 1, not {self.samples}")


@dataclass(frozen=True, eq=False)
class SuiteResult:
    """The result of a suite.

    Args:
        record: estimates, and how they were measured.
        documents: generated documents to look at, prompts included.
        verdicts: a word on each document, in suites that have one.
        shown: images of a grid, Float[channels, height, width] in [-1, 1], each with its caption and verdict, where the
            documents' own last images are not what is to be looked at.
        class_names: names of the classes in captions, in suites that find them by themselves.
    """

    record: Record
    documents: tuple[Document, ...] = ()
    verdicts: tuple[str, ...] = ()
    shown: tuple[tuple[Tensor, str, str], ...] = ()
    class_names: tuple[str, ...] = ()

    @property
    def labels(self) -> list[str]:
        """For an image grid: the index i of each document, whose seed is rng.key(seed, suite, i), and its verdict."""
        verdicts = self.verdicts or [""] * len(self.documents)
        return [f"#{i} {verdict}".strip() for i, verdict in enumerate(verdicts)]

    @property
    def grid(self) -> list[tuple[Tensor, str, str]]:
        """Images to look at, each with its caption and label: `shown`, or the last image of each document."""
        if self.shown:
            return list(self.shown)
        return [
            (document.media[-1].tensor(), document.text, label)
            for document, label in zip(self.documents, self.labels, strict=True)
            if document.media and is_image(document.media[-1].tensor().shape)
        ]


class DocumentCounter:
    """Counts finished documents, as the callback of `Transfusion.generate`."""

    def __init__(self, total: int, progress: Progress) -> None:
        self._done, self._total, self._progress = 0, total, progress

    def __call__(self, event: Event) -> None:
        if isinstance(event, Done):
            self._done += 1
            self._progress(self._done, self._total)


def generate(
    model: Transfusion, prompts: Sequence[Document | str], suite: str, context: EvalContext, **options: Any
) -> list[Document]:
    """Generate from each prompt under the suite's own seeds; `options` are those of `Transfusion.generate`."""
    seeds = [rng.key(context.seed, context.suite or suite, i) for i in range(len(prompts))]
    counter = DocumentCounter(len(prompts), context.progress)
    return model.generate(prompts, seeds=seeds, dtype=context.dtype, on_event=counter, **options)


def make_record(
    suite: str,
    model: Transfusion,
    context: EvalContext,
    metrics: dict[str, Estimate],
    missing: dict[str, str] | None = None,
    classifiers: dict[str, str] | None = None,
) -> Record:
    """A suite's record with the fields that all suites share."""
    denoises = any(not modality.codes for modality in model.config.model.modalities)
    names = ("sampler", "guidance") if denoises else ("guidance",)
    sampling = {name: config.to_plain(getattr(model.config, name)) for name in names}
    codecs = {f"autoencoder.{name}": digest for name, digest in model.codecs.digests.items()}
    settings = {**sampling, "dtype": str(context.dtype).removeprefix("torch."), **codecs, **context.notes}
    if not context.held_out:
        settings["measured"] = ON_TRAINED
        metrics = {key: replace(m, note="; ".join(w for w in (m.note, ON_TRAINED) if w)) for key, m in metrics.items()}
    weights = digest.of_tensors(model.network.state_dict())
    name = context.suite or suite
    return Record(name, metrics, missing or {}, weights, classifiers or {}, context.seed, settings, context.command)


def items_of(model: Transfusion) -> str:
    """What people call the items of a model's first modality."""
    first = next(iter(model.item_modalities), None)
    return "pictures" if first is None or first.is_image else f"{first.name}s"


def stack_images(documents: Sequence[Document]) -> Tensor | None:
    """The last image of each document that has one, at most 10,000: Float[image, channels, height, width]; None without
    images or where their sizes differ."""
    images = [document.media[-1].tensor() for document in [d for d in documents if d.media][:MAX_REAL]]
    return torch.stack(images) if len({image.shape for image in images}) == 1 else None


def caption(document: Document, index: int = 0) -> str:
    """A document's text; of a segment with paraphrases, the one of this index."""
    texts = []
    for segment in document.segments:
        if isinstance(segment, Text) and isinstance(segment.content, str):
            paraphrases = (segment.content, *segment.paraphrases)
            texts.append(paraphrases[index % len(paraphrases)])
    return "".join(texts)


def class_named(text: str, names: Sequence[str]) -> int | None:
    """Index of the class that a text names as a whole word, None if it names none or several. Where one name contains another,
    the longer one counts."""
    if not names:
        return None
    pattern = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
    matches = set(re.findall(rf"(?<!\w)(?:{pattern})(?!\w)", text))
    return list(names).index(matches.pop()) if len(matches) == 1 else None


def caption_classes(documents: Sequence[Document]) -> tuple[str, ...]:
    """The captions of documents of one item as names of classes, by the alphabet; empty where they are none: fewer than two,
    more than 200, or with fewer than 8 documents each on the whole."""
    counts = Counter(d.text for d in documents if len(d.media) == 1 and d.text)
    if not 2 <= len(counts) <= MOST_CLASSES or counts.total() < LEAST_OF_CLASS * len(counts):
        return ()
    return tuple(sorted(counts))
