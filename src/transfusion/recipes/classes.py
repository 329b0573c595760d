"""What the recipes on pictures with classes share: train, draw every class, read held-out pictures, report."""

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, ClassVar

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from torch import Tensor

from transfusion.api import Transfusion
from transfusion.data.corpus import captioned
from transfusion.data.document import Document, Media, Text
from transfusion.evaluation import draw, read
from transfusion.evaluation.classifier import ABOUT, Classifier, ConvolutionalClassifier
from transfusion.evaluation.image_grid import sheet
from transfusion.evaluation.record import Metric, Proportion, short
from transfusion.evaluation.suite import EvalContext
from transfusion.evaluation.suite import Progress as Each
from transfusion.recipes.run import LogFn, Run, command_line, last_losses, train, training_seconds
from transfusion.train.device import pick_device, pick_dtype


@contextmanager
def progress(title: str) -> Iterator[Each]:
    """A progress bar on a terminal; nothing elsewhere."""
    console = Console(stderr=True)
    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task(title)
        yield lambda done, total: bar.update(task, completed=done, total=total)


DISTANCES = {
    "Frechet distance to held-out pictures": "frechet_pixels",
    "the same, of training pictures": "frechet_pixels_real",
    "Frechet distance in the judge's features": "frechet_classifier",
    "the same, of training pictures (features)": "frechet_classifier_real",
}


class Classes(ABC):
    """A recipe on pictures whose captions name one of some classes."""

    names: ClassVar[tuple[str, ...]]
    paraphrases: ClassVar[tuple[str, ...]]
    held_out_paraphrases: ClassVar[tuple[str, ...]] = ()

    def __init__(self, run: Run) -> None:
        self.run = run

    @abstractmethod
    def documents(self) -> Sequence[Document]:
        """What is trained on."""

    @abstractmethod
    def held_out(self) -> tuple[Tensor, Tensor]:
        """Pictures and classes that are never trained on."""

    @abstractmethod
    def trained(self) -> tuple[Tensor, Tensor]:
        """Pictures and classes that are trained on."""

    @abstractmethod
    def fit_classifier(self) -> Classifier:
        """A classifier fitted on real pictures only."""

    def run_recipe(self, log: LogFn) -> None:
        """Train, measure, report."""
        began = time.monotonic()
        prompts = [self.paraphrases[0].format(name) for name in self.names]
        model = train(self.run, self.documents(), prompts, log)
        spent = time.monotonic() - began
        report = self.measure(model)
        # Training counts by what its steps took, whenever they were done: the same line typed again changes nothing.
        report["seconds"] = max(spent, training_seconds(self.run.folder)) + time.monotonic() - began - spent
        (self.run.folder / "report.json").write_text(json.dumps(report, indent=2) + "\n")
        self.show(report, log)

    def judge(self) -> Classifier:
        """A classifier fitted on real pictures only, kept in the run's folder where it can be."""
        kept = self.run.folder / "judge"
        if (kept / ABOUT).exists():
            return ConvolutionalClassifier.load(kept)
        judge = self.fit_classifier()
        if isinstance(judge, ConvolutionalClassifier):
            judge.save(kept)
        return judge

    def captions(self, paraphrases: Sequence[str], count: int) -> list[Document]:
        """Captions of every class in turn, and every wording."""
        classes = len(self.names)
        said = (paraphrases[i // classes % len(paraphrases)].format(self.names[i % classes]) for i in range(count))
        return [Document((Text(one),)) for one in said]

    def readable(self) -> list[Document]:
        """Held-out pictures with their captions."""
        pictures, labels = self.held_out()
        said = [tuple(wording.format(name) for wording in self.paraphrases) for name in self.names]
        return [captioned(said[label], Media(one), "") for one, label in zip(pictures, labels.tolist(), strict=True)]

    def how(self, samples: int, dtype: torch.dtype) -> EvalContext:
        """How this data is measured."""
        pictures, labels = self.held_out()
        return EvalContext(
            samples=samples,
            seed=self.run.seed,
            dtype=dtype,
            judge=self.judge(),
            names=self.names,
            real=pictures,
            real_classes=labels,
            trained=self.trained()[0],
            command=command_line(self.run),
        )

    def measure(self, model: Transfusion) -> dict[str, Any]:
        """The report, records of the suites in `records/`, and the sample sheet `samples.png`."""
        run, folder = self.run, self.run.folder / "records"
        pictures, labels = self.held_out()
        how = self.how(run.report.pictures or 1, pick_dtype(run.dtype, pick_device(run.device)))
        assert how.judge is not None
        judged = Proportion(int((how.judge.classify(pictures) == labels).sum()), len(labels))
        report: dict[str, Any] = {"recipe": run.recipe, "seed": run.seed, "parameters": model.network.num_parameters}
        report |= last_losses(run.folder) | judged.plain("judge_accuracy")

        def take(name: str, metric: Metric) -> None:
            report.update({name: metric.value, f"{name}_interval": [metric.low, metric.high], f"{name}_count": metric.count})

        if run.report.pictures:
            with progress("drawing") as each:
                drawn = draw.score(model, self.captions(self.paraphrases, how.samples), replace(how, progress=each))
            record = drawn.record
            record.save(folder)
            take("text_to_image_agreement", record.metrics["agreement"])
            for name in (*DISTANCES.values(), "nearest_training"):
                if name in record.metrics:
                    take(name, record.metrics[name])
            first = drawn.documents[: 5 * len(self.names)]
            seeds = [str(seed) for seed in drawn.seeds[: len(first)]]
            sheet([d.media[0].tensor() for d in first], [d.text for d in first], run.folder / "samples.png", labels=seeds)
            if self.held_out_paraphrases:
                count = max(run.report.pictures // 2, len(self.names))
                with progress("drawing from new wordings") as each:
                    other = replace(
                        how, samples=count, seed=run.seed + 1, real=None, real_classes=None, trained=None, progress=each
                    )
                    new = draw.score(model, self.captions(self.held_out_paraphrases, count), other).record
                replace(new, suite="draw-new-wordings").save(folder)
                take("text_to_image_agreement_held_out_wordings", new.metrics["agreement"])
        with progress("reading") as each:
            asked = replace(how, samples=run.report.readings or len(labels), progress=each)
            found = read.score(model, self.readable(), asked).record
        found.save(folder)
        take("image_to_text_accuracy", found.metrics["accuracy"])
        return report

    def show(self, report: dict[str, Any], log: LogFn) -> None:
        """The report as a table, and what to type next."""
        table = Table("measure", "value", "95 % interval", "of", title=f"{self.run.recipe}, seed {self.run.seed}")
        rows = {
            "pictures that show what their caption says": "text_to_image_agreement",
            "the same, wordings never trained on": "text_to_image_agreement_held_out_wordings",
            "held-out pictures read right": "image_to_text_accuracy",
            "the judge, on held-out real pictures": "judge_accuracy",
            **DISTANCES,
            "distance to the nearest training picture, over real ones'": "nearest_training",
        }
        for title, name in rows.items():
            if name in report:
                low, high = report[f"{name}_interval"]
                interval = "" if low is None else f"{short(low)} to {short(high)}"
                table.add_row(title, short(report[name]), interval, str(report[f"{name}_count"]))
        console = Console()
        console.print(table)
        folder = self.run.folder
        pictures = f"pictures: {folder / 'samples.png'}; " if "text_to_image_agreement" in report else ""
        log(f"{report['seconds']:.0f} seconds; {pictures}numbers: {folder / 'report.json'}")
        log("next, draw your own:")
        log(f'  transfusion generate {folder} --prompt "{self.paraphrases[0].format(self.names[7])}" --out pictures')
