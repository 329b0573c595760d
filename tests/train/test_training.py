"""Training learns, resumes bit-exactly, survives damage, and does not mind how a step is cut."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from small import model, picture
from transfusion.commands.train import build, train
from transfusion.config import ConfigError
from transfusion.data.document import Document, Media, Text
from transfusion.data.tokenize import Coordinates
from transfusion.data.vocabulary import BPE, Bytes
from transfusion.nn.ema import EMA
from transfusion.recipes import digits
from transfusion.run.record import Run
from transfusion.train import checkpoint
from transfusion.train.device import pick_device, pick_dtype
from transfusion.train.log import last_losses
from transfusion.train.optimizer import PAPER, AdamWConfig, MuonConfig, OptimizerConfig
from transfusion.train.trainer import Diverged, TrainerConfig


def corpus(count: int = 40) -> list[Document]:
    return [Document((Text(f"p{i % 4}"), Media(picture(i % 4))), name=str(i)) for i in range(count)]


def run(out: Path, steps: int = 8, **overrides) -> Run:
    base = digits.run()
    image = replace(base.model.modalities[0], shape=(4, 4), patch=(2, 2))
    tiny = replace(
        base,
        out=str(out),
        dtype="fp32",
        device="cpu",
        tokenizer=Bytes(),
        model=replace(
            base.model,
            modalities=(image,),
            transformer=replace(base.model.transformer, width=32, depth=2, num_heads=2),
            context_length=64,
        ),
        packing=replace(base.packing, row_length=48, rows=4, window=16),
        trainer=TrainerConfig(steps=steps, ema_decay=0.9, log_every=1000),
        optimizer=AdamWConfig(lr=3e-3, warmup=min(3, steps - 1), weight_decay=0.05),
        checkpoint=replace(base.checkpoint, every=3, keep=2),
    )
    return replace(tiny, **overrides)


def quiet(line: str) -> None:
    pass


def weights(folder: Path) -> dict[str, torch.Tensor]:
    state = checkpoint.latest(folder / "checkpoints", quiet)
    assert state is not None
    return {f"{group}/{name}": t for group, tensors in state.tensors.items() for name, t in tensors.items()}


def records(folder: Path) -> dict[int, tuple[float, float]]:
    """Losses by step; a step that was done again after a stop must say the same."""
    found: dict[int, tuple[float, float]] = {}
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        one = json.loads(line)
        if "text_loss" not in one:
            continue  # measured after a step
        both = (one["text_loss"], one["media_loss"])
        assert found.setdefault(one["step"], both) == both
    return found


class Stop(Exception):
    pass


def interrupted(options: Run, at: int, monkeypatch) -> None:
    """Train until step `at` has been done, then die without a word."""
    from transfusion.train.trainer import Trainer

    after = Trainer._end_step

    def dying(self, log) -> None:
        after(self, log)
        if self.step == at:
            raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_end_step", dying)
        with pytest.raises(Stop):
            train(options, corpus(), [], quiet)


@pytest.mark.slow
@pytest.mark.parametrize(
    "optimizer", [AdamWConfig(lr=3e-3, warmup=3), MuonConfig(lr=3e-3, warmup=3, lr_scale=2.0)], ids=["adamw", "muon"]
)
def test_resume_is_bit_exact_three_times_in_a_row(tmp_path: Path, monkeypatch, optimizer: OptimizerConfig) -> None:
    straight, broken = run(tmp_path / "a", 14, optimizer=optimizer), run(tmp_path / "b", 14, optimizer=optimizer)
    train(straight, corpus(), [], quiet)
    for at in (4, 7, 11):  # after the checkpoints of steps 3, 6 and 9
        interrupted(broken, at, monkeypatch)
    train(broken, corpus(), [], quiet)
    one, other = weights(tmp_path / "a"), weights(tmp_path / "b")
    assert one.keys() == other.keys() and any(k.startswith("optimizer/") for k in one)
    assert all(torch.equal(one[k], other[k]) for k in one)
    assert any(k.endswith("/momentum") for k in one) == (optimizer.kind == "muon")
    assert records(tmp_path / "a") == records(tmp_path / "b") and len(records(tmp_path / "a")) == 14


STARTER = """
import os, sys, traceback
import torch._dynamo, torch.utils.tensorboard  # slow imports of the first step, done once
sys.path[:0] = ["tests", "tests/train"]
from pathlib import Path
from test_training import corpus, quiet, run
from transfusion.commands.train import train

for line in sys.stdin:
    child = os.fork()
    if not child:
        try:
            train(run(Path(line.strip()), 30), corpus(), [], quiet)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
"""Forks a process that trains into a folder for each line that it reads; prints its id, and its exit code."""


@pytest.mark.slow
def test_killed_processes_resume_bit_exactly(tmp_path: Path) -> None:
    """kill -9 at arbitrary moments, the same command again each time."""
    train(run(tmp_path / "a", 30), corpus(), [], quiet)
    root = Path(__file__).parent.parent.parent
    kills, code = 0, None
    with subprocess.Popen(
        [sys.executable, "-c", STARTER], cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as starter:
        assert starter.stdin is not None and starter.stdout is not None
        for attempt in range(8):
            print(tmp_path / "b", file=starter.stdin, flush=True)
            child = int(starter.stdout.readline())
            began = records_seen(tmp_path / "b")
            if kills < 3:
                while records_seen(tmp_path / "b") < began + 4 + attempt:
                    time.sleep(0.01)
                    os.kill(child, 0)
                os.kill(child, signal.SIGKILL)
                kills += 1
            code = int(starter.stdout.readline())
            if code == 0:
                break
            assert code == -signal.SIGKILL
        starter.stdin.close()
    assert kills == 3 and code == 0
    one, other = weights(tmp_path / "a"), weights(tmp_path / "b")
    assert all(torch.equal(one[k], other[k]) for k in one)


def records_seen(folder: Path) -> int:
    file = folder / "metrics.jsonl"
    return len(file.read_bytes().splitlines()) if file.exists() else 0


@pytest.mark.slow
def test_it_learns(tmp_path: Path) -> None:
    """Four pictures with four names: the losses fall far below where they began, and the names are read."""
    options = run(tmp_path, 150)
    options = replace(
        options, optimizer=replace(options.optimizer, lr=6e-3, warmup=10), packing=replace(options.packing, rows=2)
    )
    found = train(options, corpus(), [], quiet)
    first = records(tmp_path)[1]
    last = last_losses(tmp_path, 20)
    assert last["text_loss"] < 0.3 * first[0] and last["media_loss"] < 0.7 * first[1]
    read = found.generate([Media(picture(i)) for i in range(4)], max_items=0, max_tokens=4)
    assert [d.text for d in read] == ["p0", "p1", "p2", "p3"]


def test_accumulation_changes_nothing(tmp_path: Path) -> None:
    for name, parts in (("a", 1), ("b", 4)):
        train(
            run(tmp_path / name, 4, trainer=TrainerConfig(steps=4, ema_decay=0.9, accumulate=parts, log_every=1000)),
            corpus(),
            [],
            quiet,
        )
    one, other = records(tmp_path / "a"), records(tmp_path / "b")
    for step in one:  # sums in another order: 1e-6 relative
        assert one[step] == pytest.approx(other[step], rel=1e-5)


def test_another_run_in_the_folder_is_refused_and_named(tmp_path: Path) -> None:
    train(run(tmp_path, 3), corpus(), [], quiet)
    with pytest.raises(ConfigError, match=r"optimizer\.lr: was 0\.003, now 0\.01"):
        train(run(tmp_path, 3, optimizer=AdamWConfig(lr=0.01, warmup=2)), corpus(), [], quiet)


def test_the_same_line_after_the_end_changes_nothing(tmp_path: Path) -> None:
    train(run(tmp_path, 4), corpus(), [], quiet)
    before = (tmp_path / "model" / "model.safetensors").read_bytes()
    train(run(tmp_path, 4), corpus(), [], quiet)
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == before


def test_a_run_keeps_its_tokenizer_and_its_data(tmp_path: Path) -> None:
    """Other data under the same line would change what the ids mean: refused, and nothing is touched."""
    options = run(tmp_path, 4, tokenizer=BPE(270))
    train(options, corpus(), [], quiet)
    kept = (tmp_path / "tokenizer.json").read_text()
    with pytest.raises(ConfigError, match=r"the data has changed.*40 documents then, 41 now"):
        train(options, [*corpus(), Document((Text("wombats and zebras"), Media(picture(9))))], [], quiet)
    assert (tmp_path / "tokenizer.json").read_text() == kept
    found = train(replace(options, trainer=options.trainer), corpus(), [], quiet)
    assert found.vocabulary.tokenizer.to_str() == kept


def test_records_of_steps_that_were_done_again_are_written_once(tmp_path: Path, monkeypatch) -> None:
    options = run(tmp_path, 8)
    interrupted(options, 5, monkeypatch)  # its checkpoint is of step 3
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "text_lo')  # cut short
    train(options, corpus(), [], quiet)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "seconds" in line] == list(range(1, 9))
    assert [line["step"] for line in lines if "caption_preference" in line] == [8]


# ---- damage -------------------------------------------------------------------------------------------------------------

DAMAGES = ("one byte short", "half", "empty", "flipped at the start", "flipped in the middle", "gone")


def spoil(file: Path, damage: str) -> None:
    data = bytearray(file.read_bytes())
    if damage == "gone":
        file.unlink()
        return
    if damage.startswith("flipped"):
        at = 9 if "start" in damage else len(data) // 2
        data[at % len(data)] ^= 1
    else:
        data = data[: {"one byte short": len(data) - 1, "half": len(data) // 2, "empty": 0}[damage]]
    file.write_bytes(data)


def test_every_damage_to_every_file_is_found_named_and_survived(tmp_path: Path) -> None:
    train(run(tmp_path / "run", 7), corpus(), [], quiet)
    source = tmp_path / "run" / "checkpoints"
    files = sorted(f.name for f in checkpoint.folders(source)[0].iterdir())
    assert files == ["MANIFEST.json", "ema.safetensors", "model.safetensors", "optimizer.safetensors", "state.json"]
    for name in files:
        for damage in DAMAGES:
            copy = tmp_path / "copy"
            shutil.copytree(source, copy)
            newest, older = checkpoint.folders(copy)
            spoil(newest / name, damage)
            said: list[str] = []
            state = checkpoint.latest(copy, said.append)
            assert state is not None and state.step == int(older.name.split("-")[1]), (name, damage)
            assert name in said[0], (name, damage, said)
            shutil.rmtree(copy)


def test_when_all_are_damaged_nothing_starts_anew_silently(tmp_path: Path) -> None:
    options = run(tmp_path, 7)
    train(options, corpus(), [], quiet)
    for folder in checkpoint.folders(tmp_path / "checkpoints"):
        spoil(folder / "model.safetensors", "half")
    for _ in range(2):  # the second time only .bad folders are left
        with pytest.raises(checkpoint.CheckpointError, match="no usable checkpoint"):
            train(options, corpus(), [], quiet)


def test_a_full_disk_leaves_the_earlier_checkpoint_whole(tmp_path: Path, monkeypatch) -> None:
    options = run(tmp_path, 7)
    real = checkpoint.save_tensors

    def full(path, tensors):
        if "00000006" in str(path) and "optimizer" in str(path):
            Path(path).write_bytes(b"half")
            raise OSError(28, "No space left on device")
        real(path, tensors)

    monkeypatch.setattr(checkpoint, "save_tensors", full)
    with pytest.raises(OSError, match="No space left"):
        train(options, corpus(), [], quiet)
    assert [f.name for f in checkpoint.folders(tmp_path / "checkpoints")] == ["step-00000003"]
    assert not list((tmp_path / "checkpoints").glob("*.tmp-*"))
    monkeypatch.undo()
    train(options, corpus(), [], quiet)
    assert checkpoint.folders(tmp_path / "checkpoints")[0].name == "step-00000007"


def test_a_really_full_disk(tmp_path: Path) -> None:
    """On a file system of 64 kB, where this user may mount one; elsewhere /dev/full stands in for it."""
    state = checkpoint.State(1, {"model": {"w": torch.zeros(100_000)}}, {})
    place = tmp_path / "disk"
    place.mkdir()
    mounted = (
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)], capture_output=True).returncode == 0
    )
    try:
        if mounted:
            with pytest.raises(OSError):
                checkpoint.save(place, state, 2)
            assert not checkpoint.folders(place) and not list(place.glob("*.tmp-*"))
        else:
            with pytest.raises(OSError), open("/dev/full", "wb") as full:
                full.write(b"x" * 100_000)
    finally:
        if mounted:
            subprocess.run(["umount", str(place)], check=True)


def test_old_checkpoints_go_only_when_newer_ones_are_whole(tmp_path: Path) -> None:
    for step in range(1, 6):
        checkpoint.save(tmp_path, checkpoint.State(step, {"model": {"w": torch.ones(3) * step}}, {"x": step}), 2)
    assert [f.name for f in checkpoint.folders(tmp_path)] == ["step-00000005", "step-00000004"]
    state = checkpoint.latest(tmp_path, quiet)
    assert state is not None and state.plain == {"x": 5} and torch.equal(state.tensors["model"]["w"], torch.ones(3) * 5)


def test_a_folder_that_cannot_be_written_fails_before_the_first_step(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError):
        train(run(tmp_path / "file" / "run"), corpus(), [], quiet)


def test_losses_that_are_no_numbers_are_skipped_then_stop_the_run(tmp_path: Path, monkeypatch) -> None:
    from transfusion.train.objective import TransfusionObjective

    real, calls = TransfusionObjective.losses, []

    def poisoned(self, batch):
        losses = real(self, batch)
        calls.append(1)
        return (
            replace(losses, media=replace(losses.media, sum=losses.media.sum * float("nan"))) if len(calls) in bad else losses
        )

    monkeypatch.setattr(TransfusionObjective, "losses", poisoned)
    bad = {2, 5}
    found = train(run(tmp_path / "a", 8), corpus(), [], quiet)
    assert all(torch.isfinite(p).all() for p in found.parameters())
    lines = [json.loads(line) for line in (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()]
    assert [line["skipped"] for line in lines if "skipped" in line][-1] == 2
    bad, calls[:] = set(range(3, 100)), []
    with pytest.raises(Diverged, match=r"4 steps; documents"):
        train(run(tmp_path / "b", 30, trainer=TrainerConfig(steps=30, patience=4, log_every=1000)), corpus(), [], quiet)


# ---- starting from other weights ----------------------------------------------------------------------------------------


def test_init_takes_what_fits_and_says_what_it_took(tmp_path: Path) -> None:
    train(run(tmp_path / "a", 4), corpus(), [], quiet)
    base = run(tmp_path / "b", 4)
    sound = replace(base.model.modalities[0], name="sound", channels=2, shape=(6,), patch=(2,))
    more = replace(base, init=str(tmp_path / "a"), model=replace(base.model, modalities=(*base.model.modalities, sound)))
    said: list[str] = []
    new = build(more, corpus(), said.append)
    old = build(replace(base, init=str(tmp_path / "a")), corpus(), quiet)
    line = next(s for s in said if "loaded" in s)
    assert "patchers.sound" in line and "<BEGIN sound>" in line and "0 dropped" in line
    assert torch.equal(new.network.embed.weight[: len(old.vocabulary)], old.network.embed.weight)
    assert torch.equal(new.network.transformer.norm.weight, old.network.transformer.norm.weight)
    fewer = replace(base, init=str(tmp_path / "a"), model=replace(base.model, modalities=(sound,)))
    build(fewer, [Document((Text("a"),))], said.append)
    assert "dropped (patchers.image" in said[-2] or any("dropped (patchers.image" in s for s in said)


def test_a_run_goes_on_with_the_coordinates_of_the_model_that_it_starts_from(tmp_path: Path) -> None:
    reset, base = Coordinates("reset", axes=3), run(tmp_path / "a", 4)
    train(replace(base, model=replace(base.model, coordinates=reset)), corpus(), [], quiet)
    said: list[str] = []
    later = run(tmp_path / "b", 4, init=str(tmp_path / "a"))
    assert later.model.coordinates != reset
    assert train(later, corpus(), [], said.append).config.model.coordinates == reset
    assert any(line.startswith("coordinates of order reset, those of") for line in said)
    chosen = replace(later, out=str(tmp_path / "c"), model=replace(base.model, coordinates=Coordinates("raster", axes=1)))
    assert train(chosen, corpus(), [], quiet).config.model.coordinates.order == "raster"


def test_init_from_another_trunk_is_refused_and_says_which_settings_differ(tmp_path: Path) -> None:
    train(run(tmp_path / "a", 4), corpus(), [], quiet)
    base = run(tmp_path / "b", 4, init=str(tmp_path / "a"))
    other = replace(base, model=replace(base.model, transformer=replace(base.model.transformer, width=64)))
    with pytest.raises(ValueError, match=r"width: 32 there, 64 here"):
        build(other, corpus(), quiet)


# ---- parts --------------------------------------------------------------------------------------------------------------


def test_rates_of_the_paper() -> None:
    assert PAPER.rate(0, 250_000) == pytest.approx(3e-4 / 4000) and PAPER.rate(3999, 250_000) == pytest.approx(3e-4)
    assert PAPER.rate(250_000, 250_000) == pytest.approx(1.5e-5)
    middle = PAPER.rate(4000 + 123_000, 250_000)
    assert middle == pytest.approx((3e-4 + 1.5e-5) / 2)
    groups = PAPER.build(model()).param_groups
    assert [g["weight_decay"] for g in groups] == [0.1, 0.0] and groups[0]["eps"] == 1e-8 and groups[0]["betas"] == (0.9, 0.95)


def test_ema_is_the_average_it_says() -> None:
    layer = torch.nn.Linear(2, 2, bias=False)
    ema, expected = EMA(layer, 0.9), layer.weight.detach().clone()
    for step in range(1, 30):
        with torch.no_grad():
            layer.weight.add_(1.0)
        ema.update(step)
        d = min(0.9, (1 + step) / (10 + step))
        expected = d * expected + (1 - d) * layer.weight.detach()
    assert torch.allclose(ema.shadows["weight"], expected)
    live = layer.weight.detach().clone()
    with ema.swapped():
        assert torch.equal(layer.weight, ema.shadows["weight"])
    assert torch.equal(layer.weight, live)


def test_devices_that_are_not_there(unchecked) -> None:
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="has no cuda"):
            pick_device("cuda")
    with pytest.raises(ValueError, match="no device"):
        pick_device("tpu")  # type: ignore[arg-type]
    assert (
        pick_dtype("fp32", torch.device("cpu")) == torch.float32 and pick_dtype("bf16", torch.device("cpu")) == torch.bfloat16
    )
