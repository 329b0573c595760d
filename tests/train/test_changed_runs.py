"""A run goes on only with its own data and its own checkpoint: pictures that have changed, and states of another model, are
noticed before a step is done."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_training import corpus, quiet, run

from small import picture, png
from transfusion.commands.train import train
from transfusion.config import ConfigError
from transfusion.data.document import Document, Media, Text
from transfusion.data.media import ArrayFile, DecodedImage, EncodedImage, Fit
from transfusion.files import MANIFEST, manifest
from transfusion.train import checkpoint

FIT = Fit((4, 4), 1)


def touch(file: Path, times: os.stat_result) -> None:
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.fixture
def files(tmp_path: Path) -> Path:
    for i in range(40):
        png(tmp_path / "data" / f"{i}.png", i, (4, 4), "L")
    np.save(tmp_path / "data" / "array.npy", np.zeros((1, 4, 4), np.float32))
    return tmp_path / "data"


def read(folder: Path) -> list[Document]:
    found = [Document((Text("a"), Media(EncodedImage(folder / f"{i}.png", FIT, str(i)))), name=str(i)) for i in range(40)]
    return [*found, Document((Text("b"), Media(ArrayFile.open(folder / "array.npy", "array"))), name="array")]


def swap(folder: Path) -> None:
    one, other = (folder / f"{i}.png" for i in (3, 4))
    kept = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(kept)


def change_all(folder: Path) -> None:
    for i in range(40):
        png(folder / f"{i}.png", 100 + i, (4, 4), "L")


def same_size_and_time(folder: Path) -> None:
    times = (folder / "array.npy").stat()
    np.save(folder / "array.npy", np.ones((1, 4, 4), np.float32))
    touch(folder / "array.npy", times)


CHANGES: dict[str, Callable[[Path], None]] = {
    "one picture": lambda folder: png(folder / "7.png", 99, (4, 4), "L"),
    "all pictures": change_all,
    "two swapped": swap,
    "same size and time": same_size_and_time,
    "one gone": lambda folder: (folder / "7.png").unlink(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_pictures_are_noticed(tmp_path: Path, files: Path, change: str) -> None:
    options = run(tmp_path / "run", 1)
    train(options, read(files), [], quiet)
    kept = (tmp_path / "run" / "corpus.json").read_text()
    CHANGES[change](files)
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"the data has changed.*the same texts, other media.*resume with the original"):
            train(options, read(files), [], quiet)
    assert (tmp_path / "run" / "corpus.json").read_text() == kept


LEARNING: dict[str, Callable[[Document], Document]] = {
    "use": lambda d: replace(d, segments=tuple(replace(s, use="read") if isinstance(s, Media) else s for s in d.segments)),
    "weight": lambda d: replace(d, segments=tuple(replace(s, weight=0.5) if isinstance(s, Text) else s for s in d.segments)),
    "loss": lambda d: replace(d, segments=tuple(replace(s, loss=False) if isinstance(s, Text) else s for s in d.segments)),
    "paraphrases": lambda d: replace(
        d, segments=tuple(replace(s, paraphrases=("another",)) if isinstance(s, Text) else s for s in d.segments)
    ),
    "mask": lambda d: replace(
        d, segments=tuple(replace(s, mask=torch.eye(4)) if isinstance(s, Media) else s for s in d.segments)
    ),
}


@pytest.mark.parametrize("change", LEARNING)
def test_what_is_learned_of_a_document_counts_too(tmp_path: Path, change: str) -> None:
    options = run(tmp_path / "run", 1)
    train(options, corpus(), [], quiet)
    first, *others = corpus()
    with pytest.raises(ConfigError, match=r"the data has changed.*the same texts, with other uses, losses, weights or"):
        train(options, [LEARNING[change](first), *others], [], quiet)


def test_the_same_pictures_in_another_place_or_of_another_time_are_the_same(tmp_path: Path, files: Path) -> None:
    options = run(tmp_path / "run", 1)
    train(options, read(files), [], quiet)
    shutil.copytree(files, tmp_path / "moved")
    train(options, read(tmp_path / "moved"), [], quiet)
    os.utime(tmp_path / "moved" / "7.png", (1, 1))
    train(options, read(tmp_path / "moved"), [], quiet)


def test_files_that_look_unchanged_are_not_read_again(tmp_path: Path, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = run(tmp_path / "run", 1)
    train(options, read(files), [], quiet)
    monkeypatch.setattr("transfusion.data.corpus.sha256", lambda file: pytest.fail("read again"))
    train(options, read(files), [], quiet)


@pytest.mark.parametrize("kind", ["tensor", "bytes", "pixels"])
def test_media_in_memory_count_too(tmp_path: Path, kind: str) -> None:
    def documents(seed: int) -> list[Document]:
        png(tmp_path / "a.png", seed, (4, 4), "L")
        values = {
            "tensor": picture(seed).bfloat16(),
            "bytes": EncodedImage((tmp_path / "a.png").read_bytes(), FIT),
            "pixels": DecodedImage(np.full((4, 4), seed, np.uint8)),
        }[kind]
        return [*corpus(), Document((Text("p"), Media(values)), name="last")]

    train(run(tmp_path / "run", 1), documents(1), [], quiet)
    train(run(tmp_path / "run", 1), documents(1), [], quiet)
    with pytest.raises(ConfigError, match="the same texts, other media"):
        train(run(tmp_path / "run", 1), documents(2), [], quiet)


def test_a_run_of_an_earlier_version_goes_on_and_is_then_guarded(tmp_path: Path, files: Path) -> None:
    options, record = run(tmp_path / "run", 1), tmp_path / "run" / "corpus.json"
    train(options, read(files), [], quiet)
    plain = json.loads(record.read_text())
    record.write_text(json.dumps({name: plain[name] for name in ("documents", "digest")}))
    train(options, read(files), [], quiet)
    assert json.loads(record.read_text()) == plain
    for content in ("{", "[1]", "\x80", "{}", '{"documents": []}', '{"documents": Infinity}'):
        record.write_text(content)
        with pytest.raises(ConfigError, match=r"cannot read .*corpus\.json"):
            train(options, read(files), [], quiet)


# ---- checkpoints --------------------------------------------------------------------------------------------------------


def signed(folder: Path) -> None:
    """Write the manifest anew, so that only the content can give a change away."""
    files = manifest({f.name: f for f in folder.iterdir() if f.name != MANIFEST and not f.name.startswith(".")})
    plain = {"format": checkpoint.FORMAT, "step": 1, "files": files, "digest": checkpoint._digest(files)}
    (folder / MANIFEST).write_text(json.dumps(plain))


NORM = "network.transformer.norm.weight"
TAMPERED: dict[str, tuple[str, Callable[[dict[str, torch.Tensor]], object]]] = {
    "missing": ("model", lambda t: t.pop(NORM)),
    "unknown": ("model", lambda t: t.update({"extra": t[NORM].clone()})),
    "renamed": ("model", lambda t: t.update({"network.norm.weight": t.pop(NORM)})),
    "one element": ("model", lambda t: t.update({NORM: t[NORM][:1].clone()})),
    "a row": ("model", lambda t: t.update({NORM: t[NORM][None].clone()})),
    "half precision": ("model", lambda t: t.update({NORM: t[NORM].half()})),
    "whole numbers": ("model", lambda t: t.update({NORM: t[NORM].long()})),
    "average missing": ("ema", lambda t: t.pop(NORM)),
    "average of one element": ("ema", lambda t: t.update({NORM: t[NORM][:1].clone()})),
    "no average": ("ema", lambda t: t.clear() or t.update({"x": torch.zeros(1)})),
    "moment missing": ("optimizer", lambda t: t.pop(f"{NORM}/exp_avg")),
    "moments missing": ("optimizer", lambda t: [t.pop(k) for k in list(t) if k.startswith(NORM)]),
    "moment of one element": ("optimizer", lambda t: t.update({f"{NORM}/exp_avg": t[f"{NORM}/exp_avg"][:1].clone()})),
    "scalar moment": ("optimizer", lambda t: t.update({f"{NORM}/exp_avg_sq": torch.tensor(1.0)})),
    "moment in half": ("optimizer", lambda t: t.update({f"{NORM}/exp_avg": t[f"{NORM}/exp_avg"].bfloat16()})),
    "moment of nothing": ("optimizer", lambda t: t.update({"network.gone/exp_avg": torch.zeros(3)})),
    "steps of two": ("optimizer", lambda t: t.update({f"{NORM}/step": torch.zeros(2)})),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    train(run(folder / "run", 3), corpus(), [], quiet)
    return folder / "run"


@pytest.mark.parametrize("change", TAMPERED)
def test_a_checkpoint_holds_exactly_this_model(tmp_path: Path, trained: Path, change: str) -> None:
    group, tamper = TAMPERED[change]
    shutil.copytree(trained, tmp_path / "run")
    (folder,) = checkpoint.folders(tmp_path / "run" / "checkpoints")
    tensors = load_file(folder / f"{group}.safetensors")
    tamper(tensors)
    save_file(tensors, folder / f"{group}.safetensors")
    signed(folder)
    with pytest.raises(checkpoint.CheckpointError, match=f"the checkpoint is of another model: in {group}"):
        train(run(tmp_path / "run", 3), corpus(), [], quiet)


@pytest.mark.parametrize("plain", ["[]", "{}", '{"step": 3}', '{"step": "x", "digest": DIGEST, "position": [], "skipped": 0}'])
def test_a_state_of_another_form_is_refused(tmp_path: Path, trained: Path, plain: str) -> None:
    shutil.copytree(trained, tmp_path / "run")
    (folder,) = checkpoint.folders(tmp_path / "run" / "checkpoints")
    digest = json.loads((folder / "state.json").read_text())["digest"]
    (folder / "state.json").write_text(plain.replace("DIGEST", json.dumps(digest)))
    signed(folder)
    with pytest.raises(ValueError, match=r"holds no state|holds no position|other settings"):
        train(run(tmp_path / "run", 3), corpus(), [], quiet)


@pytest.mark.parametrize("moments", [None, 1, [1], [[]], ["x"], {}, []])
def test_a_list_of_moments_of_another_form_is_refused(tmp_path: Path, trained: Path, moments: object) -> None:
    shutil.copytree(trained, tmp_path / "run")
    (folder,) = checkpoint.folders(tmp_path / "run" / "checkpoints")
    state = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps(state | {"moments": moments}))
    signed(folder)
    with pytest.raises(checkpoint.CheckpointError, match=r"in optimizer|holds no position"):
        train(run(tmp_path / "run", 3), corpus(), [], quiet)


def test_files_that_the_manifest_does_not_list_are_not_loaded(tmp_path: Path, trained: Path) -> None:
    shutil.copytree(trained, tmp_path / "run")
    (folder,) = checkpoint.folders(tmp_path / "run" / "checkpoints")
    (folder / "._model.safetensors").write_bytes(b"\0\5\x16\7 Mac OS X")
    save_file({"extra": torch.zeros(1)}, folder / "other.safetensors")
    state = checkpoint.latest(tmp_path / "run" / "checkpoints", quiet)
    assert state is not None and sorted(state.tensors) == ["ema", "model", "optimizer"]
    train(run(tmp_path / "run", 3), corpus(), [], quiet)


def test_another_architecture_under_the_same_name_is_refused(tmp_path: Path, trained: Path) -> None:
    base = run(tmp_path / "wide", 3)
    transformer = replace(base.model.transformer, width=64)
    wide = replace(base, model=replace(base.model, transformer=transformer))
    train(wide, corpus(), [], quiet)
    shutil.copytree(trained, tmp_path / "run")
    (target,), (source,) = (checkpoint.folders(tmp_path / name / "checkpoints") for name in ("run", "wide"))
    for group in ("model", "ema", "optimizer"):
        shutil.copy(source / f"{group}.safetensors", target / f"{group}.safetensors")
    signed(target)
    with pytest.raises(checkpoint.CheckpointError, match=r"of another model: in model, .* \[\d+, 64\], not .* \[\d+, 32\]"):
        train(run(tmp_path / "run", 3), corpus(), [], quiet)
