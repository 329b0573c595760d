"""How fast this machine trains a run: a few of its steps, within a time, in a folder that is thrown away."""

import contextlib
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from transfusion.codec.autoencoder import Autoencoder
from transfusion.data.document import Document, Media
from transfusion.data.media import DecodedImage, EncodedImage, Fit
from transfusion.data.survey import Survey
from transfusion.run import choice
from transfusion.run.choice import Choices, Finish
from transfusion.run.record import Run
from transfusion.train.log import METRICS
from transfusion.train.trainer import Hook

TRIED, WARM, TRIED_ON = 6, 2, 4000
"""Steps by which a run's speed is measured, those of them that are left out, and documents, about."""

Train = Callable[[Run, Sequence[Document], Autoencoder | None, Hook], None]
"""Trains a run on documents, with an autoencoder for latents, silently; the hook is called after every step."""


class _Enough(Exception):
    """A trial has measured what it is for."""


def fitted(document: Document, fit: Fit | None) -> Document:
    """The document with its images at another size."""
    if fit is None:
        return document
    segments = [
        replace(s, values=replace(s.values, fit=fit))
        if isinstance(s, Media) and isinstance(s.values, EncodedImage | DecodedImage)
        else s
        for s in document.segments
    ]
    return replace(document, segments=tuple(segments))


@dataclass(frozen=True)
class Speed:
    """Of a run on this machine: FLOPs a second, and seconds of a step."""

    rate: float
    step_seconds: float


class Measuring:
    """Measures the steps of runs.

    Args:
        finish: gives the run of choices.
        documents: to train on.
        train: trains a run.
        most: seconds that it may take; two steps of each run are measured in any case.
    """

    def __init__(self, finish: Finish, documents: Sequence[Document], train: Train, most: float) -> None:
        self.finish, self.documents, self.train, self.most = finish, documents, train, most
        self.spent = 0.0
        """Seconds that it took."""

    @property
    def is_over(self) -> bool:
        """Whether no time is left."""
        return self.spent >= self.most

    def speed(self, choices: Choices, found: Survey | None, autoencoder: Autoencoder | None, rate: float) -> Speed:
        """The middle of a few steps, on these documents. Where they would take too long, there are fewer of them, or of fewer
        rows, from which the time of all follows.

        Args:
            rate: FLOPs a second, about.
        """
        began, run = time.monotonic(), self.finish(choices)
        allowed, parts = max(self.most - self.spent, 0) / 2, run.trainer.accumulate  # more may be measured
        rows, fixed = run.packing.rows, choice.optimizer_cost(run)
        whole = 0.0 if found is None else choice.step_cost(run, found, autoencoder)
        if found is not None:
            fit = (allowed / (WARM + 1) * rate - fixed) / whole
            rows = min(max(int(rows * min(fit, 1)) // parts, 1) * parts, rows)
        steps = min(TRIED, max(run.trainer.steps // 2, 2))

        def stop(step: int) -> None:
            if step >= steps or (step > 1 and time.monotonic() - began >= allowed):  # the first is slower than the others
                raise _Enough

        with tempfile.TemporaryDirectory() as folder:
            trial = replace(
                run,
                out=folder,
                trainer=replace(run.trainer, steps=steps + 1, sample_every=0, log_every=TRIED + 2),
                optimizer=replace(run.optimizer, warmup=1),
                checkpoint=replace(run.checkpoint, every=TRIED + 2),
                packing=replace(run.packing, rows=rows),
            )
            some = self.documents[:: max(len(self.documents) // TRIED_ON, 1)]
            sized = [fitted(document, Fit.of(run.model.modalities)) for document in some]
            with contextlib.suppress(_Enough):
                self.train(trial, sized, autoencoder, Hook(stop, 1))
            lines = (Path(folder) / METRICS).read_text(encoding="utf-8").splitlines()
            records = [record for record in map(json.loads, lines) if "seconds" in record]
        records = records[min(WARM, len(records) - 1) :]
        each = statistics.median(record["seconds"] for record in records)
        rate = statistics.median(record["flops"] for record in records) / each
        if rows < run.packing.rows:
            longer = (fixed + whole) / (fixed + whole * rows / run.packing.rows)
            each, rate = each * longer, rate * run.packing.rows / rows / longer
        self.spent += time.monotonic() - began
        return Speed(rate, each)
