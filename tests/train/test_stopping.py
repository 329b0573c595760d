"""A run that is asked to stop is saved, and ends with its exit code; the same command goes on to the same weights."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from test_training import corpus, quiet, records, run, weights

from transfusion.commands import train as commands_train
from transfusion.commands.train import train
from transfusion.train.stopping import Stopped, StopRequest, listening
from transfusion.train.trainer import Hook

DIGITS = "train digits --trainer.steps 400 --checkpoint.every 1000 --model.transformer.width 32 --optimizer.warmup 4 --report.images 4"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_run_goes_on_bit_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals) -> None:
    train(run(tmp_path / "a", 9), corpus(), [], quiet)
    from transfusion.train.trainer import Trainer

    step = Trainer._step

    def asked(self: Trainer, batches: object) -> object:
        if self.step == 4:  # between two checkpoints
            os.kill(os.getpid(), number)
        return step(self, batches)  # type: ignore[arg-type]

    handlers = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    monkeypatch.setattr(Trainer, "_step", asked)
    with pytest.raises(Stopped, match=f"{number.name} after step 5, which is saved") as stopped:
        train(run(tmp_path / "b", 9), corpus(), [], quiet)
    assert stopped.value.number == number and not (tmp_path / "b" / "model").exists()
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == handlers
    monkeypatch.undo()
    train(run(tmp_path / "b", 9), corpus(), [], quiet)
    one, other = weights(tmp_path / "a"), weights(tmp_path / "b")
    assert all(torch.equal(one[k], other[k]) for k in one) and records(tmp_path / "a") == records(tmp_path / "b")


def test_a_request_ends_long_work_at_once_and_leaves_what_is_around_it_in_order() -> None:
    order: list[str] = []

    def work() -> str:
        order.append("began")
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
        return "ended"

    with listening() as request:
        assert request.interruptible(lambda: 3) == 3
        assert request.interruptible(work) is None
        order.append("after")
        assert request.interruptible(work) is None
    assert order == ["began", "after"] and request.number == signal.SIGTERM


def test_outside_the_main_thread_nothing_listens() -> None:
    found: list[StopRequest] = []

    def work() -> None:
        with listening() as request:
            found.append(request)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found[0].number == 0


@pytest.mark.slow
def test_the_command_saves_and_ends_with_its_exit_code(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "transfusion", *DIGITS.split(), "--out", str(tmp_path)]

    def stop(*numbers: signal.Signals) -> tuple[int, str, float]:
        with subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
            before = len(seen())
            while len(seen()) < before + 3:
                assert process.poll() is None, process.stderr and process.stderr.read()
                time.sleep(0.02)
            began = time.monotonic()
            for number in numbers:
                process.send_signal(number)
            assert process.stderr is not None
            said = process.stderr.read()
            return process.wait(60), said, time.monotonic() - began

    def seen() -> list[bytes]:
        file = tmp_path / "metrics.jsonl"
        return file.read_bytes().splitlines() if file.exists() else []

    code, said, seconds = stop(signal.SIGTERM)
    assert code == 75 and "is saved" in said and seconds < 10
    assert len(list((tmp_path / "checkpoints").iterdir())) == 1
    code, said, _ = stop(signal.SIGINT)
    assert code == 130 and "is saved" in said
    code, _, seconds = stop(signal.SIGTERM, signal.SIGTERM)
    assert code in (75, 128 + signal.SIGTERM) and seconds < 5


def test_a_trial_that_is_stopped_says_nothing_of_a_saved_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*args: object, **options: object) -> None:
        raise Stopped(signal.SIGINT, 3)

    monkeypatch.setattr(commands_train, "train", stopped)
    with pytest.raises(KeyboardInterrupt):
        commands_train._silently(run(tmp_path), corpus(), None, Hook(lambda step: None, 1))
