"""Dropout draws torch's own chance, which no checkpoint holds: a resumed run must go on with the same all the same."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_training import corpus, interrupted, quiet, records, run, weights

from transfusion.commands.train import train
from transfusion.run.record import Run


def thinned(out: Path, dropout: float) -> Run:
    options = run(out, 8)
    return replace(options, model=replace(options.model, transformer=replace(options.model.transformer, dropout=dropout)))


@pytest.mark.slow
def test_dropout_resumes_bit_exactly(tmp_path: Path, monkeypatch) -> None:
    straight, broken = thinned(tmp_path / "a", 0.3), thinned(tmp_path / "b", 0.3)
    train(straight, corpus(), [], quiet)
    interrupted(broken, 5, monkeypatch)
    torch.randn(7)
    train(broken, corpus(), [], quiet)
    one, other = weights(tmp_path / "a"), weights(tmp_path / "b")
    assert all(torch.equal(one[k], other[k]) for k in one)
    assert records(tmp_path / "a") == records(tmp_path / "b")
    train(thinned(tmp_path / "c", 0.0), corpus(), [], quiet)
    assert records(tmp_path / "a") != records(tmp_path / "c")
    steps = [losses for _, losses in sorted(records(tmp_path / "a").items())]
    assert len(set(steps)) == 8
