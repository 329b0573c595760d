"""Curves of runs, from the command to the PNG, and errors for unknown runs and metrics."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from transfusion.cli import main
from transfusion.config import ConfigError
from transfusion.evaluation.curves import Plot, read_metrics, smoothed


def write(folder: Path, steps: int, **extra: float) -> Path:
    folder.mkdir(parents=True)
    records = [{"step": i, "text_loss": 1 / i, "media_loss": 2 / i, **extra} for i in range(1, steps + 1)]
    (folder / "metrics.jsonl").write_text("\n".join(json.dumps(r) for r in records) + '\n{"step": 9, "text_')
    return folder


def test_the_command_draws_runs_of_different_lengths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    monkeypatch.chdir(tmp_path)
    write(Path("one"), 50)
    write(Path("two"), 30, lr=0.1)
    with pytest.raises(SystemExit) as ended:
        main(["plot", "one", "two", "--metric", "text_loss", "lr", "media_loss", "--out", "plots/c.png", "--smooth", "5"])
    assert ended.value.code == 0 and "plots/c.png" in capfd.readouterr().out
    with Image.open("plots/c.png") as image:
        assert image.size[0] > 2 * image.size[1] and len(np.unique(np.asarray(image.convert("L")))) > 20


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("plot", "needs run folders"),
        ("plot no", "no metrics.jsonl in no; runs near it: one"),
        ("plot one --metric text_los", "did you mean 'text_loss'"),
        ("plot one --metric x", "there are text_loss, media_loss"),
        ("plot one --smooth 0", "smooth is 1 step or more"),
        ("plot one --metrics lr", "did you mean 'metric'"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd, line: str, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    write(Path("one"), 3)
    with pytest.raises(SystemExit) as ended:
        main(line.split())
    assert ended.value.code in (1, 2) and message in capfd.readouterr().err


def test_metrics_are_read_up_to_a_line_that_was_cut_short(tmp_path: Path) -> None:
    steps, values = read_metrics(write(tmp_path / "run", 3))["text_loss"]
    assert steps == [1, 2, 3] and values == [1, 1 / 2, 1 / 3]
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(ConfigError, match="holds no metrics yet"):
        read_metrics(tmp_path / "metrics.jsonl")
    with pytest.raises(ConfigError, match="nothing to draw"):
        Plot().draw([])


def test_smoothing_is_a_trailing_mean_of_finite_values() -> None:
    assert np.allclose(smoothed([1.0, 2.0, 3.0, 4.0], 2), [1, 1.5, 2.5, 3.5])
    assert np.allclose(smoothed([math.nan, 2.0, math.inf, 4.0], 2), [math.nan, 2, 2, 4], equal_nan=True)
    assert np.allclose(smoothed([3.0, 1.0], 1), [3, 1])
