"""What the recipes on pictures with classes share: train, draw every class, read held-out pictures, report."""

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from torch import Tensor

from transfusion.api import Transfusion
from transfusion.data.document import Document
from transfusion.evaluation import classes
from transfusion.evaluation.judge import Judge
from transfusion.evaluation.record import Share
from transfusion.evaluation.sheet import sheet
from transfusion.recipes.run import Run, Say, last_losses, train, training_seconds
from transfusion.train.device import pick_device, pick_dtype


@contextmanager
def progress(title: str) -> Iterator[classes.Progress]:
    """A progress bar on a terminal; nothing elsewhere."""
    console = Console(stderr=True)
    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task(title)
        yield lambda done, total: bar.update(task, completed=done, total=total)


class Classes(ABC):
    """A recipe on pictures whose captions name one of some classes."""

    names: ClassVar[tuple[str, ...]]
    wordings: ClassVar[tuple[str, ...]]
    held_out_wordings: ClassVar[tuple[str, ...]] = ()

    def __init__(self, run: Run) -> None:
        self.run = run

    @abstractmethod
    def documents(self) -> Sequence[Document]:
        """What is trained on."""

    @abstractmethod
    def held_out(self) -> tuple[Tensor, Tensor]:
        """Pictures and classes that are never trained on."""

    @abstractmethod
    def judge(self) -> Judge:
        """A classifier fitted on real pictures only."""

    def carry_out(self, say: Say) -> None:
        """Train, measure, report."""
        began = time.monotonic()
        prompts = [self.wordings[0].format(name) for name in self.names]
        model = train(self.run, self.documents(), prompts, say)
        spent = time.monotonic() - began
        report = self.measure(model)
        # Training counts by what its steps took, whenever they were done: the same line typed again changes nothing.
        report["seconds"] = max(spent, training_seconds(self.run.folder)) + time.monotonic() - began - spent
        (self.run.folder / "report.json").write_text(json.dumps(report, indent=2) + "\n")
        self.show(report, say)

    def measure(self, model: Transfusion) -> dict[str, Any]:
        """The report, and the sample sheet `samples.png`."""
        run, seed = self.run, self.run.seed
        dtype = pick_dtype(run.dtype, pick_device(run.device))
        pictures, labels = self.held_out()
        judge = self.judge()
        judged = Share(int((judge.classify(pictures) == labels).sum()), len(labels))
        report: dict[str, Any] = {"recipe": run.recipe, "seed": seed, "parameters": model.network.num_parameters}
        report |= last_losses(run.folder) | judged.plain("judge_accuracy")

        def captions(wordings: Sequence[str], count: int) -> tuple[list[str], list[int]]:
            kinds = [i % len(self.names) for i in range(count)]
            return [wordings[i // len(self.names) % len(wordings)].format(self.names[k]) for i, k in enumerate(kinds)], kinds

        if run.report.pictures:
            with progress("drawing") as each:
                drawn = classes.draw(
                    model, *captions(self.wordings, run.report.pictures), judge, seed=seed, dtype=dtype, progress=each
                )
            report |= drawn.share.plain("text_to_image_agreement")
            first = drawn.pictures[: 5 * len(self.names)]
            sheet(list(first), drawn.captions[: len(first)], run.folder / "samples.png")
            if self.held_out_wordings:
                new = captions(self.held_out_wordings, max(run.report.pictures // 2, len(self.names)))
                with progress("drawing from new wordings") as each:
                    other = classes.draw(model, *new, judge, seed=seed + 1, dtype=dtype, progress=each)
                report |= other.share.plain("text_to_image_agreement_held_out_wordings")
        count = run.report.readings or len(labels)
        with progress("reading") as each:
            found = classes.read(
                model,
                list(pictures[:count]),
                labels[:count].tolist(),
                self.names,
                seed=seed,
                dtype=dtype,
                progress=each,
            )
        return report | found.share.plain("image_to_text_accuracy")

    def show(self, report: dict[str, Any], say: Say) -> None:
        """The report as a table, and what to type next."""
        table = Table("measure", "value", "95 % interval", "of", title=f"{self.run.recipe}, seed {self.run.seed}")
        rows = {
            "pictures that show what their caption says": "text_to_image_agreement",
            "the same, wordings never trained on": "text_to_image_agreement_held_out_wordings",
            "held-out pictures read right": "image_to_text_accuracy",
            "the judge, on held-out real pictures": "judge_accuracy",
        }
        for title, name in rows.items():
            if name in report:
                low, high = report[f"{name}_interval"]
                table.add_row(title, f"{report[name]:.3f}", f"{low:.3f} to {high:.3f}", str(report[f"{name}_count"]))
        console = Console()
        console.print(table)
        folder = self.run.folder
        pictures = f"pictures: {folder / 'samples.png'}; " if "text_to_image_agreement" in report else ""
        say(f"{report['seconds']:.0f} seconds; {pictures}numbers: {folder / 'report.json'}")
        say("next, draw your own:")
        say(f'  transfusion generate {folder} --prompt "{self.wordings[0].format(self.names[7])}" --out pictures')
