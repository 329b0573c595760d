"""Output of a run: `metrics.jsonl` with a record a step, and one of what was measured after it; TensorBoard where it is
installed; progress on the terminal."""

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from transfusion.files import parse_json, replacing

LogFn = Callable[[str], None]
"""Takes a line for the user."""
METRICS = "metrics.jsonl"


def ignored(line: str) -> None:
    """Takes a line and shows it to nobody: what every process would say, the main one says."""


def printable(text: str) -> str:
    """A text as a terminal may show it: what would move the cursor, colour or reorder it, or cannot be encoded, is spelled out
    (\\x1b, \\udcff). Lines and tabs stay."""
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


@dataclass(frozen=True)
class Measured:
    """What was measured after a step: numbers for `metrics.jsonl` and TensorBoard, and the same as a line for the user."""

    metrics: dict[str, float]
    line: str


@contextmanager
def progress(title: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on a terminal, nothing elsewhere. Yields the function to call with the number done and the total."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task(title)
        yield lambda done, total: bar.update(task, completed=done, total=total)


class TrainingLog:
    """Writes `metrics.jsonl` and `tensorboard/` into a run folder, and shows progress.

    Args:
        first: steps that are done; records of later ones, left by an interrupted process, are removed.
        steps: steps of the whole run.
        every: steps between lines where there is no terminal.
    """

    def __init__(self, folder: Path, *, first: int, steps: int, every: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        self._steps, self._every = steps, every
        folder.mkdir(parents=True, exist_ok=True)
        _truncate(folder / METRICS, first)
        self._file = (folder / METRICS).open("a", encoding="utf-8")
        self._board = _tensorboard(folder)
        self._console = Console(stderr=True)
        self._progress: Progress | None = None
        self._started, self._first = time.monotonic(), first
        if self._console.is_terminal:
            columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[shown]}"))
            self._progress = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=self._console)
            self._task = self._progress.add_task("train", total=steps, completed=first, shown="")
            self._progress.start()

    def line(self, line: str) -> None:
        """Show a line above the progress bar."""
        console = self._progress.console if self._progress else self._console
        console.print(printable(line), markup=False, highlight=False, soft_wrap=True)

    def step(self, step: int, metrics: dict[str, float], unit: str) -> None:
        """Record the metrics of a step, counted from 1, and show its losses and its speed in `unit` a second."""
        self._record(step, metrics)
        losses = [f"{name.removesuffix('_loss')} {value:.3f}" for name, value in metrics.items() if name.endswith("_loss")]
        shown = "  ".join([*losses, f"{metrics[f'{unit}_per_second']:,.0f} {unit}/s"])
        if self._progress is not None:
            self._progress.update(self._task, completed=step, shown=shown)
        elif step % self._every == 0 or step == self._steps:
            elapsed = time.monotonic() - self._started
            left = elapsed / max(step - self._first, 1) * (self._steps - step)
            print(f"step {step}/{self._steps}  {shown}  {elapsed:.0f} s, {left:.0f} s left", file=sys.stderr, flush=True)

    def measured(self, step: int, measured: Measured) -> None:
        """Record what was measured after a step, and show it."""
        if measured.metrics:
            self._record(step, measured.metrics)
        self.line(f"step {step}: {measured.line}")

    def _record(self, step: int, metrics: dict[str, float]) -> None:
        self._file.write(json.dumps({"step": step, **metrics}) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in metrics.items():
                self._board.add_scalar(name, value, step)

    def __enter__(self) -> "TrainingLog":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._progress is not None:
            self._progress.stop()
        if self._board is not None:
            self._board.close()
        self._file.close()


class SilentLog:
    """The log of a process that is not the main one: what it has to say it prints with its number; it records nothing.

    Args:
        rank: number of the process.
    """

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def line(self, line: str) -> None:
        """Show a line."""
        print(f"process {self.rank}: {printable(line)}", file=sys.stderr, flush=True)

    def step(self, step: int, metrics: dict[str, float], unit: str) -> None:
        """Nothing."""

    def measured(self, step: int, measured: Measured) -> None:
        """Nothing."""

    def __enter__(self) -> "SilentLog":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        pass


def training_seconds(folder: Path) -> float:
    """Seconds that the steps of a run took, over all its processes."""
    return sum(record["seconds"] for record in _records(folder))


def last_step(folder: Path) -> int:
    """The last step that a run's log has a whole record of; 0 where there is none."""
    try:
        lines = (folder / METRICS).read_bytes().splitlines()
    except OSError:
        return 0
    for line in reversed(lines):
        try:
            return int(parse_json(line.decode("utf-8"))["step"])
        except (ValueError, KeyError, TypeError):
            continue
    return 0


def training_costs(folder: Path) -> dict[str, float]:
    """FLOPs, tokens and documents of a run's steps, over all its processes (`TransfusionObjective.costs`); those that the log
    has."""
    records = _records(folder)
    names = ("flops", "flops_6nd", "tokens", "documents")
    return {name: sum(record[name] for record in records) for name in names if records and all(name in r for r in records)}


def last_losses(folder: Path, count: int = 50) -> dict[str, float]:
    """The mean of each loss over a run's last steps."""
    records = _records(folder)[-count:]
    names = [name for name in (records[-1] if records else {}) if name.endswith("_loss")]
    return {name: sum(r[name] for r in records) / len(records) for name in names}


def _records(folder: Path) -> list[dict[str, Any]]:
    """The records of a run's steps, without what was measured between them."""
    records = [json.loads(line) for line in (folder / METRICS).read_text(encoding="utf-8").splitlines()]
    return [record for record in records if "seconds" in record]


def _truncate(file: Path, step: int) -> None:
    """Remove the records of steps after `step`, and a line that a killed process left incomplete."""
    if not file.exists():
        return
    lines = file.read_bytes().splitlines(keepends=True)
    kept = []
    for line in lines:
        try:
            if parse_json(line.decode("utf-8"))["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError, TypeError):
            continue
    if len(kept) < len(lines):
        with replacing(file) as partial:
            partial.write_bytes(b"".join(kept))


def _tensorboard(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard.writer import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder / "tensorboard"))
