"""A run's folder: one process at a time, nothing half written, nothing begun anew over what is there."""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_training import corpus, quiet, run

from transfusion import files
from transfusion.commands.train import train
from transfusion.config import ConfigError
from transfusion.files import InUse, keep_text, locked
from transfusion.train import checkpoint

HOLD = """
import sys, time
from pathlib import Path
from transfusion.files import locked

with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_folder_in_use_names_who_works_in_it_and_is_free_when_they_end_however(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with pytest.raises(InUse, match=rf"in use by process {other.pid} of .* on .*, since 20.*another --out"):
            train(run(tmp_path), corpus(), [], quiet)
        assert sorted(p.name for p in tmp_path.iterdir()) == ["in-use"]
        other.kill()
    with locked(tmp_path), locked(tmp_path / "."):  # one process may hold it twice
        pass
    train(run(tmp_path, 4), corpus(), [], quiet)
    assert (tmp_path / "in-use").read_text() == ""


def test_what_a_start_writes_is_written_whole_and_only_if_it_changed(tmp_path: Path, monkeypatch) -> None:
    train(run(tmp_path, 4), corpus(), [], quiet)
    written: list[Path] = []
    replacing = files.replacing
    monkeypatch.setattr(files, "replacing", lambda path: written.append(path) or replacing(path))
    train(run(tmp_path, 4), corpus(), [], quiet)
    assert {p.name for p in written}.isdisjoint({"run.yaml", "tokenizer.json", "corpus.json"})
    file = tmp_path / "text"
    keep_text(file, "one")
    inode = file.stat().st_ino
    keep_text(file, "one")
    assert file.stat().st_ino == inode
    keep_text(file, "two")
    assert file.read_text() == "two" and file.stat().st_ino != inode


@pytest.mark.parametrize("gone", ["folder", "checkpoints"])
def test_a_run_without_its_checkpoints_does_not_begin_anew(tmp_path: Path, gone: str) -> None:
    train(run(tmp_path, 4), corpus(), [], quiet)
    before = (tmp_path / "model" / "model.safetensors").read_bytes()
    for path in [tmp_path / "checkpoints"] if gone == "folder" else (tmp_path / "checkpoints").iterdir():
        shutil.rmtree(path)
    for again in (run(tmp_path, 4), run(tmp_path, 5)):
        with pytest.raises(ConfigError, match=r"checkpoints/ are gone.*restore them"):
            train(again, corpus(), [], quiet)
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == before
    shutil.rmtree(tmp_path / "model")  # one that was killed on the way
    with pytest.raises(ConfigError, match="are gone"):
        train(run(tmp_path, 4), corpus(), [], quiet)
    (tmp_path / "metrics.jsonl").write_text('{"step": 3, "seconds": 1.0}\n{"ste')  # before its first checkpoint was written
    train(run(tmp_path, 4), corpus(), [], quiet)


def test_a_checkpoint_that_cannot_be_read_is_not_one_that_is_not_there(tmp_path: Path, monkeypatch) -> None:
    train(run(tmp_path, 7), corpus(), [], quiet)
    newest, before = checkpoint.folders(tmp_path / "checkpoints")
    open_file, said = files.open_file, []

    def broken(path: Path):
        if path.parent == newest:
            raise OSError(errno.EIO, "Input/output error")
        return open_file(path)

    monkeypatch.setattr(files, "open_file", broken)
    found = checkpoint.latest(tmp_path / "checkpoints", said.append)
    assert found is not None and found.step == int(before.name.removeprefix("step-")) and newest.exists()
    assert "cannot be read" in said[0] and "trying the one before" in said[0]
    monkeypatch.undo()

    def refused(path: Path) -> list[str]:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(os, "listdir", refused)
    with pytest.raises(PermissionError):
        checkpoint.latest(tmp_path / "checkpoints", said.append)
