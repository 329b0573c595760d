"""Several processes train as one does: `torchrun` starts them, over gloo, each with a share of a step."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from processes import STEPS
from safetensors.torch import load_file

HERE = Path(__file__).parent
ENVIRONMENT = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")} | {"OMP_NUM_THREADS": "1"}
ENVIRONMENT["PYTHONPATH"] = os.pathsep.join([*map(str, (HERE, HERE.parent)), os.environ.get("PYTHONPATH", "")])
DIGITS = (
    "train digits --packing.rows 4 --packing.row-length 128 --model.transformer.width 32 --trainer.steps 6 --checkpoint.every 3 "
    "--checkpoint.keep 9 --dtype fp32 --report.images 4 --optimizer.warmup 2"
)


def start(words: list[str], processes: int) -> subprocess.CompletedProcess[str]:
    """Run `python WORDS` in so many processes."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)] if processes > 1 else []
    return subprocess.run(
        [sys.executable, *launch, *words], env=ENVIRONMENT, capture_output=True, text=True, timeout=300, check=False
    )


def losses(run: Path) -> list[dict[str, float]]:
    """The losses of each step in a run's log."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [record for record in records if "seconds" in record]
    assert [record["step"] for record in steps] == list(range(1, len(steps) + 1))
    return [{k: v for k, v in record.items() if k.endswith("_loss")} for record in steps]


ADVERSARIAL = ("vae", "vq")
"""Runs against a critic, whose kinks make much of a rounding."""


def assert_same(ours: Path, theirs: Path) -> None:
    """Losses of all steps are equal within 1e-5, relative; against a critic within 1e-3."""
    rel = 1e-3 if ours.name in ADVERSARIAL else 1e-5
    assert len(losses(theirs)) == len(losses(ours)) > 5
    for number, (a, b) in enumerate(zip(losses(ours), losses(theirs), strict=True)):
        assert a == pytest.approx(b, rel=rel, abs=rel / 10), f"{ours.name}, step {number}"


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process trained."""
    folder = tmp_path_factory.mktemp("one")
    done = start([str(HERE / "processes.py"), str(folder)], 1)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_several_processes_train_as_one_does(processes: int, one: Path, tmp_path: Path) -> None:
    done = start([str(HERE / "processes.py"), str(tmp_path)], processes)
    assert done.returncode == 0, done.stderr
    found, expected = (json.loads((folder / "found.json").read_text()) for folder in (tmp_path, one))
    for name in expected:
        assert_same(tmp_path / name, one / name)
        for kind in ("weights", "averages"):
            a, b = (torch.tensor(of[name][kind]) for of in (found, expected))
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_checkpoint_of_one_number_of_processes_goes_on_in_another(processes: int, one: Path, tmp_path: Path) -> None:
    """From the middle: in two processes from one's checkpoint; in one from a checkpoint of two."""
    folder = tmp_path / "run"
    if processes == 2:
        shutil.copytree(one, folder)
    else:
        done = start([str(HERE / "processes.py"), str(folder)], 2)
        assert done.returncode == 0, done.stderr
    for name in ("adamw", "vae", "vq", "experts"):
        shutil.rmtree(folder / name / "checkpoints" / f"step-{STEPS:08d}")
    done = start([str(HERE / "processes.py"), str(folder)], processes)
    assert done.returncode == 0, done.stderr
    found = json.loads((folder / "found.json").read_text())
    for name in ("adamw", "vae", "vq", "experts"):
        assert found[name]["resumed"]
        assert_same(folder / name, one / name)


@pytest.mark.slow
def test_the_command_in_two_processes(tmp_path: Path) -> None:
    words = ["-m", "transfusion", *DIGITS.split(), "--out"]
    alone, both = tmp_path / "alone", tmp_path / "both"
    for folder, processes in ((alone, 1), (both, 2)):
        done = start([*words, str(folder)], processes)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("into ") == 1 and (folder / "report.json").exists()
    assert_same(both, alone)
    refused = start([*words, str(tmp_path / "odd"), "--packing.rows", "3"], 2)
    assert refused.returncode != 0 and "times 2 processes" in refused.stderr and not (tmp_path / "odd").exists()
    other = start(["-m", "transfusion", "doctor"], 2)
    assert other.returncode != 0 and "leave out torchrun" in other.stderr


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the processes of torchrun in /proc")
def test_a_killed_process_ends_all_and_the_same_line_goes_on(tmp_path: Path) -> None:
    words = ["-m", "transfusion", *DIGITS.replace("steps 6", "steps 40").split(), "--out"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert start([*words, str(whole)], 2).returncode == 0
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *words, str(broken)]
    with subprocess.Popen(launch, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        log = broken / "metrics.jsonl"
        while not log.exists() or len(log.read_bytes().splitlines()) < 8:
            assert process.poll() is None
            time.sleep(0.02)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(children[-1]), signal.SIGKILL)
        assert process.stderr is not None and "SIGKILL" in process.stderr.read()
        assert process.wait(60) != 0
    assert not (broken / "model").exists()
    done = start([*words, str(broken)], 2)
    assert done.returncode == 0, done.stderr
    assert losses(broken) == losses(whole)
    one, other = (load_file(folder / "model" / "model.safetensors") for folder in (whole, broken))
    assert all(torch.equal(one[name], other[name]) for name in one)
