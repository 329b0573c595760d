"""Suites for data whose captions name one of some classes: does a drawing show what its caption says, does a reading say
what its picture shows?"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from transfusion.api import Transfusion
from transfusion.data.document import Document, Media
from transfusion.evaluation.judge import Judge
from transfusion.evaluation.record import Share
from transfusion.generate.state import Done, Event

Progress = Callable[[int, int], None]
"""Called with how many documents are done, and of how many."""


@dataclass(frozen=True, eq=False)
class Drawn:
    """Pictures that were drawn from captions, and the share that a judge finds right."""

    pictures: Tensor
    captions: tuple[str, ...]
    share: Share


def draw(
    model: Transfusion,
    captions: Sequence[str],
    classes: Sequence[int],
    judge: Judge,
    *,
    seed: int,
    dtype: torch.dtype,
    progress: Progress = lambda done, total: None,
) -> Drawn:
    """Draw a picture from each caption, with the model's own sampler and guidance, and have it judged."""
    count = Count(len(captions), progress)
    documents = model.generate(list(captions), force="image", seed=seed, dtype=dtype, each=count)
    pictures = torch.stack([document.media[-1].tensor() for document in documents])
    right = int((judge.classify(pictures) == torch.tensor(classes)).sum())
    return Drawn(pictures, tuple(captions), Share(right, len(classes)))


@dataclass(frozen=True, eq=False)
class Read:
    """What was read in pictures, and the share that names the right class and no other."""

    texts: tuple[str, ...]
    share: Share


def read(
    model: Transfusion,
    pictures: Sequence[Tensor],
    classes: Sequence[int],
    names: Sequence[str],
    *,
    seed: int,
    dtype: torch.dtype,
    max_tokens: int = 24,
    progress: Progress = lambda done, total: None,
) -> Read:
    """Have the model caption each picture, greedily, and look for the class names in what it says."""
    prompts = [Document((Media(picture),)) for picture in pictures]
    count = Count(len(prompts), progress)
    documents = model.generate(prompts, max_items=0, max_tokens=max_tokens, seed=seed, dtype=dtype, each=count)
    texts = tuple(document.text for document in documents)
    right = sum(named(text, names) == one for text, one in zip(texts, classes, strict=True))
    return Read(texts, Share(right, len(texts)))


def named(text: str, names: Sequence[str]) -> int | None:
    """Index of the class that a text names as a whole word; None if none or several. The longest name at a place counts."""
    pattern = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
    found = set(re.findall(rf"(?<!\w)(?:{pattern})(?!\w)", text))
    return list(names).index(found.pop()) if len(found) == 1 else None


class Count:
    """Counts the documents that an engine has finished."""

    def __init__(self, total: int, progress: Progress) -> None:
        self._done, self._total, self._progress = 0, total, progress

    def __call__(self, event: Event) -> None:
        if isinstance(event, Done):
            self._done += 1
            self._progress(self._done, self._total)
