"""Curves: metrics.jsonl of runs in, one PNG out, with a panel for each metric and a line for each run.

transfusion plot RUN ... [--metric NAME ...] [--out FILE.png]
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from transfusion.config import ConfigError, nearest
from transfusion.files import parse_json, read_bytes

Curves = dict[str, tuple[list[int], list[float]]]
"""Metric -> its steps and its values."""
SUFFIXES = (".png", ".pdf", ".svg")


@dataclass(frozen=True)
class Plot:
    """How curves are drawn.

    Args:
        metric: metrics of metrics.jsonl, a panel each; none given: the losses of the runs.
        out: file for the PNG.
        smooth: window of the trailing mean, in logged steps; raw values are drawn fainter behind it (1: raw values only).
    """

    metric: tuple[str, ...] = ()
    out: str = "curves.png"
    smooth: int = 20

    def __post_init__(self) -> None:
        if self.smooth < 1:
            raise ValueError(f"smooth is 1 step or more, not {self.smooth}")
        if Path(self.out).is_dir() or Path(self.out).suffix not in SUFFIXES:
            raise ValueError(f"out is a file for the PNG (or {', '.join(SUFFIXES[1:])}), such as curves.png, not {self.out!r}")

    def draw(self, runs: Sequence[str | Path]) -> Path:
        """Draw run folders (or their metrics.jsonl) into `out`, and return its path.

        Raises:
            ConfigError: no runs, a run without metrics.jsonl, or a metric that no run has logged.
            ValueError: matplotlib is not installed.
        """
        runs_curves = {str(run): read_metrics(run) for run in runs}
        if not runs_curves:
            raise ConfigError("nothing to draw: give one run folder or more")
        known = dict.fromkeys(name for curves in runs_curves.values() for name in curves)
        metrics = self.metric or [name for name in known if name.endswith("_loss")]
        if not metrics:
            raise ConfigError(f"no losses in {', '.join(runs_curves)}: choose with --metric among {', '.join(known)}")
        for name in metrics:
            if name not in known:
                raise ConfigError(f"no metric {name!r} in {', '.join(runs_curves)}{nearest(name, known)}")
        try:
            from matplotlib.backends.backend_agg import FigureCanvasAgg
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ValueError("drawing curves needs matplotlib: pip install 'transfusion-kit[eval]'") from error

        figure = Figure(figsize=(6.4 * len(metrics), 4.2), layout="constrained")
        FigureCanvasAgg(figure)
        for panel, name in zip(figure.subplots(1, len(metrics), squeeze=False)[0], metrics, strict=True):
            for number, (run, curves) in enumerate(runs_curves.items()):
                if name not in curves:
                    continue
                steps, values = curves[name]
                if self.smooth > 1:
                    panel.plot(steps, values, color=f"C{number}", alpha=0.2, linewidth=0.8)
                panel.plot(steps, smoothed(values, self.smooth), color=f"C{number}", label=run, linewidth=1.4)
            panel.set(title=name, xlabel="step", yscale="log" if name.endswith("loss") else "linear")
            panel.grid(alpha=0.3)
            panel.legend()
        out = Path(self.out)
        out.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(out, dpi=120)
        return out


def read_metrics(run: str | Path) -> Curves:
    """The curves of a run folder, or of a metrics.jsonl. Truncated lines, which a killed run leaves, are skipped. Raises
    ConfigError if there are no metrics; the message lists runs nearby that have some."""
    file = Path(run)
    file = file / "metrics.jsonl" if file.is_dir() else file
    if not file.is_file():
        beside = sorted({str(f.parent) for base in (Path(run), Path(run).parent) for f in base.glob("*/metrics.jsonl")})
        raise ConfigError(f"no metrics.jsonl in {run}; runs near it: {', '.join(beside) or 'none'}")
    curves: Curves = {}
    try:
        lines = read_bytes(file).splitlines()
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error}") from error
    for line in lines:
        try:
            record = parse_json(line.decode("utf-8"))
            step = int(record.pop("step"))
            numbers = {k: float(v) for k, v in record.items() if isinstance(v, int | float) and not isinstance(v, bool)}
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
            continue
        for name, value in numbers.items():
            steps, values = curves.setdefault(name, ([], []))
            steps.append(step)
            values.append(value)
    if not curves:
        raise ConfigError(f"{file} holds no metrics yet")
    return curves


def smoothed(values: Sequence[float], width: int) -> np.ndarray:
    """Trailing mean of the finite among the last `width` values; NaN where none is finite."""
    raw, width = np.asarray(values, dtype=float), max(min(width, len(values)), 1)
    finite = np.isfinite(raw)
    sums, counts = (np.convolve(x, np.ones(width))[: len(raw)] for x in (np.where(finite, raw, 0.0), finite))
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
