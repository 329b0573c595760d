"""What a run tells: a line of JSON a record, TensorBoard where it is installed, and a progress display."""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class Log:
    """Writes `metrics.jsonl` (and `tensorboard/`) into a run folder, and shows progress.

    Args:
        first: steps that are done; what a broken run noted beyond them is dropped.
        every: plain lines, where there is no terminal, come every so many steps.
    """

    def __init__(self, folder: Path, *, first: int, steps: int, every: int) -> None:
        self._steps, self._every = steps, every
        _cut(folder / "metrics.jsonl", first)
        self._file = (folder / "metrics.jsonl").open("a", encoding="utf-8")
        self._board = _tensorboard(folder)
        self._console = Console(stderr=True)
        self._progress: Progress | None = None
        self._started, self._first = time.monotonic(), first
        if self._console.is_terminal:
            columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[shown]}"))
            self._progress = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=self._console)
            self._task = self._progress.add_task("train", total=steps, completed=first, shown="")
            self._progress.start()

    def log(self, line: str) -> None:
        """A line for the reader."""
        (self._progress.console if self._progress else self._console).print(line, markup=False, highlight=False, soft_wrap=True)

    def step(self, step: int, metrics: dict[str, float]) -> None:
        """Record a finished step, counted from 1."""
        self.record({"step": step, **metrics})
        if self._board is not None:
            for name, value in metrics.items():
                self._board.add_scalar(name, value, step)
        shown = (
            f"text {metrics['text_loss']:.3f}  media {metrics['media_loss']:.3f}  {metrics['tokens_per_second']:,.0f} tokens/s"
        )
        if self._progress is not None:
            self._progress.update(self._task, completed=step, shown=shown)
        elif step % self._every == 0 or step == self._steps:
            spent = time.monotonic() - self._started
            left = spent / max(step - self._first, 1) * (self._steps - step)
            print(f"step {step}/{self._steps}  {shown}  {spent:.0f} s, {left:.0f} s left", file=sys.stderr, flush=True)

    def record(self, record: dict[str, Any]) -> None:
        """A line of `metrics.jsonl`."""
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._progress is not None:
            self._progress.stop()
        if self._board is not None:
            self._board.close()
        self._file.close()


def _cut(file: Path, step: int) -> None:
    if not file.exists():
        return
    lines = file.read_bytes().splitlines(keepends=True)
    kept = []
    for line in lines:
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError, TypeError):  # a line that was cut short when the run was killed
            continue
    if len(kept) < len(lines):
        aside = file.with_suffix(".tmp")
        aside.write_bytes(b"".join(kept))
        os.replace(aside, file)


def _tensorboard(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard.writer import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder / "tensorboard"))


LogFn = Callable[[str], None]
