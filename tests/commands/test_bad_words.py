"""Numbers of any size, paths of any kind and captions with anything in them, on a command line: a message and an exit code, at
once, and no traceback."""

import json
import os
from pathlib import Path

import pytest
import torch

from command import SHORT, command
from small import model, png
from transfusion.api import Transfusion
from transfusion.cli import main
from transfusion.commands import generate, train
from transfusion.train.log import printable

HUGE = [
    "trainer.log-every 0",
    "trainer.log-every -1",
    "trainer.sample-every -1",
    "packing.row-length 99999999999",
    "packing.rows 99999999999",
    "packing.window 99999999999",
    "model.transformer.width 1000000000",
    "model.transformer.depth 1000000000",
    "model.transformer.num-heads 1000000000",
    "model.transformer.mlp-width 1000000000",
    "model.transformer.head-dim 1000000000",
    "model.transformer.num-streams 1000000000",
    "model.transformer.moe.num-experts 1000000000",
    "model.context-length 1000000000",
    "model.modalities.0.channels 1000000000",
    "model.modalities.0.shape 1000000000 1000000000 --model.modalities.0.patch 1000000000 1000000000",
    "model.modalities.0.largest 10000000 10000000",
    "model.patcher.kind unet --model.patcher.blocks 1000000000",
    "model.patcher.time-features 1000000000",
    "lora.rank 1000000000",
    "trainer.accumulate 1000000000",
    "tokenizer.size 1000000000",
    "tokenizer.kind ids --tokenizer.count 1000000000",
    "sampler.num-steps 1000000000",
    "report.images 1000000000",
    "report.images -1",
    "report.readings -1",
    "trainer.steps " + "9" * 5000,
]


@pytest.mark.parametrize("words", HUGE, ids=lambda words: words[:60])
def test_numbers_that_no_machine_holds(words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    monkeypatch.chdir(tmp_path)
    assert command(f"train digits --out run --{words}") in (1, 2)
    said = "".join(capfd.readouterr())
    assert "Traceback" not in said and not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_model_that_memory_does_not_hold_is_refused_before_it_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train, "memory", lambda: 10**6)
    assert command(f"train digits --out run {SHORT}") == 1
    assert "more weights than this machine's memory holds" in capfd.readouterr().err


@pytest.fixture
def saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    model().save_pretrained("saved")
    return tmp_path / "saved"


@pytest.mark.parametrize("count", ["0", "-1", "1000000000", "9" * 30])
def test_counts_have_limits(saved: Path, count: str, capfd) -> None:
    assert command(f"generate saved --prompt a --count {count}") == 2
    assert "count" in "".join(capfd.readouterr())


def test_prompts_times_count_have_one_too(saved: Path, capfd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate, "MAX_DOCUMENTS", 10)
    Path("p.jsonl").write_text('{"text": "a"}\n' * 4)
    assert command("generate saved --prompts p.jsonl --count 3") == 2
    assert "4 prompts, 3 times each, are more than 10" in capfd.readouterr().err


@pytest.mark.parametrize("kind", ["pipe", "folder", "nowhere", "device"])
def test_prompts_that_are_no_file(saved: Path, kind: str, capfd) -> None:
    path = Path("p.jsonl")
    {
        "pipe": lambda: os.mkfifo(path),
        "folder": path.mkdir,
        "nowhere": lambda: 0,
        "device": lambda: path.symlink_to("/dev/zero"),
    }[kind]()
    assert command(f"generate saved --prompts {path}") == 1
    assert "cannot read p.jsonl" in capfd.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        "inception BAD",
        "inception .",
        "inception EMPTY",
        "inception WORDS",
        "inception LIST",
        "clip BAD",
        "clip .",
        "classifier BAD",
        "questions BAD",
        "samples -1",
        "samples 1000000000",
    ],
)
def test_evaluate_ends_before_work_where_a_file_cannot_be_read(
    saved: Path, words: str, monkeypatch: pytest.MonkeyPatch, capfd
) -> None:
    monkeypatch.setattr(Transfusion, "from_pretrained", lambda *a, **k: pytest.fail("work began"))
    Path("EMPTY").write_bytes(b"")
    Path("WORDS").write_text("hello world")
    torch.save([1], "LIST")
    for suite in ("draw", "text read"):
        assert command(f"evaluate saved --suite {suite} --{words}") in (1, 2)
        assert "".join(capfd.readouterr())


def test_a_run_whose_settings_cannot_be_read_is_not_measured(saved: Path, capfd) -> None:
    """Its own training pictures would pass as held-out ones."""
    for content in ("recipe: [pictures\n", "recipe: 3\n", "[]"):
        (saved / "run.yaml").write_text(content)
        assert command("evaluate saved --suite draw --data .") in (1, 2)
        assert "run.yaml cannot be read" in capfd.readouterr().err


@pytest.mark.parametrize("out", ["folder", "folder/", "curves", "curves.xyz", "."])
def test_plot_writes_a_file_of_the_name_that_it_says(tmp_path: Path, out: str, monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    Path("metrics.jsonl").write_text(json.dumps({"step": 1, "text_loss": 1.0, "media_loss": 1.0}) + "\n")
    assert command(f"plot metrics.jsonl --out {out}") == 2
    assert repr(out) in "".join(capfd.readouterr()) and sorted(os.listdir()) == ["folder", "metrics.jsonl"]


def test_plot_reads_metrics_with_anything_in_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    good = json.dumps({"step": 1, "text_loss": 1.0, "media_loss": 1.0}).encode()
    bad = [
        b"[" * 10**5,
        b"\xff",
        b'{"step": "x"}',
        b'{"step": 2, "text_loss": ' + b"9" * 400 + b"}",
        b"[]",
        b'{"step": []}',
        b"1",
    ]
    Path("metrics.jsonl").write_bytes(b"\n".join([*bad, good]))
    assert command("plot metrics.jsonl --out curves.png --smooth 1000000000") == 0
    assert Path("curves.png").is_file()


# ---- the terminal -------------------------------------------------------------------------------------------------------


def test_what_moves_or_colours_a_terminal_is_spelled_out() -> None:
    assert printable("a\x1b[31m\x9b2J\u202e\udcff\r\x07é") == r"a\x1b[31m\x9b2J\u202e\udcff\r\x07é"
    assert printable("one\n\ttwo") == "one\n\ttwo"


def test_captions_reach_neither_terminal_nor_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    monkeypatch.chdir(tmp_path)
    for i in range(40):
        png(tmp_path / "data" / f"{i}.png", i)
        (tmp_path / "data" / f"{i}.txt").write_text("\x1b]0;owned\x07 \"; touch owned; $(touch owned) `touch owned` '")
    (tmp_path / "data" / "39.txt").write_bytes(b"")
    (tmp_path / "data" / "39.png").rename(tmp_path / "data" / "\x1b[2J.png")
    line = (
        f"train pictures --data data --out run {SHORT} --trainer.steps 2 --model.modalities.0.shape 8 8 --tokenizer.kind bytes "
        "--trainer.sample-every 1"
    )
    assert command(line) == 0
    said = "".join(capfd.readouterr())
    assert not {"\x1b", "\x07"} & set(said) and r"\x1b[2J.png" in said
    (offered,) = (part.removeprefix("next: ") for part in said.splitlines() if part.startswith("next: "))
    assert os.system(f"set -- {offered.removeprefix('transfusion')}; test $# -eq 6") == 0 and not Path("owned").exists()


def test_messages_that_no_terminal_can_encode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    monkeypatch.chdir(tmp_path)
    odd = Path(os.fsdecode(b"caf\xe9\x1b"))
    (odd / "a").mkdir(parents=True)
    (odd / "a.png").write_bytes(b"no image")
    with pytest.raises(SystemExit) as ended:
        main(["train", "pictures", "--data", str(odd)])
    said = capfd.readouterr().err
    assert ended.value.code == 1 and r"caf\udce9\x1b" in said and "\x1b" not in said


def test_weights_are_not_looked_for_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    huggingface_hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **k: pytest.fail("the hub was asked"))
    monkeypatch.chdir(tmp_path)
    for name in ("runs/mine", "mine", "./runs/mine", "owner/model", "hf:/owner/model"):
        assert command(f"train digits --out run --init {name}") == 1
        assert f"no model in {name}" in capfd.readouterr().err
