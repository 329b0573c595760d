"""The command itself: exit codes, messages, help, and what is imported for them."""

import ast
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import transfusion.commands
from transfusion import config
from transfusion.cli import main
from transfusion.commands import COMMANDS
from transfusion.commands import find as find_command
from transfusion.recipes import find
from transfusion.run.presets import preset
from transfusion.run.record import Run


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("trian digits", "did you mean 'train'"),
        ("train digitz", "did you mean 'digits'"),
        ("train", "needs a recipe"),
        ("train digits --train.step 3", "did you mean 'trainer.steps'"),
        ("train digits --sampler.kind eulr", "did you mean 'euler'"),
        ("train digits --samplr.kind euler", "no choice 'samplr'"),
        ("train digits --preset papr", "did you mean 'paper'"),
        ("train digits --size 0.16b", "did you mean '0.16B'"),
        ("train digits --trainer.steps", "trainer.steps"),
        ("train digits --trainer.steps many", "many"),
        ("train digits --trainer.steps 0", "at least 1"),
        ("train digits --packing.rows 7 --trainer.accumulate 2", "multiple"),
        ("train fashion", "needs --data"),
        ("train pictures", "needs --data"),
        ("generate", "needs a run"),
        ("doctor now", "no arguments"),
    ],
)
def test_a_mistyped_line_ends_with_2_and_names_what_would_be_right(
    line: str, message: str, tmp_path: Path, monkeypatch, capfd
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(line.split())
    assert ended.value.code == 2
    assert message in "".join(capfd.readouterr())
    assert not list(tmp_path.iterdir())


def test_settings_of_another_version_are_refused_with_what_to_do(tmp_path: Path, monkeypatch, capfd) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "run.yaml").write_text("recipe: digits\ntrain: {steps: 3}\n")
    with pytest.raises(SystemExit) as ended:
        main(["train", "digits", "--out", "run", "--trainer.steps", "3", "--optimizer.warmup", "1"])
    said = "".join(capfd.readouterr())
    assert (
        ended.value.code == 2 and "run.yaml has settings of another version (train:" in said and "choose another --out" in said
    )
    assert (tmp_path / "run" / "run.yaml").read_text().startswith("recipe: digits\ntrain:"), "the old record stays"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("train fashion --data nowhere", "train-images"),
        ("train pictures --data nowhere", "no data at nowhere"),
        ("train pictures --data .", "no documents"),
        ("generate nowhere --prompt x", "no model in nowhere"),
        ("train digits --device cuda", "has no cuda"),
        ("train digits --init nowhere", "no model in nowhere"),
        ("train digits --tokenizer.kind file --tokenizer.path nowhere.json", "no tokenizer"),
    ],
)
def test_what_is_not_there_ends_with_1(line: str, message: str, tmp_path: Path, monkeypatch, capfd) -> None:
    if "cuda" in line and torch.cuda.is_available():
        return
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(line.split())
    assert ended.value.code == 1
    assert message in capfd.readouterr().err


@pytest.mark.parametrize(
    "line", ["", "--help", "train --help", "train digits --help", "config digits", "doctor", "generate --help", "--version"]
)
def test_help_and_information_end_with_0(line: str, capfd) -> None:
    with pytest.raises(SystemExit) as ended:
        main(line.split())
    assert ended.value.code == 0
    assert len(capfd.readouterr().out) > 4


def test_config_prints_what_train_would_do(capfd) -> None:
    with pytest.raises(SystemExit):
        main(["config", "fashion", "--trainer.steps", "5", "--preset", "paper"])
    fashion = find("fashion").run()
    five = replace(fashion, trainer=replace(fashion.trainer, steps=5))
    assert config.from_yaml(Run, capfd.readouterr().out) == preset("paper", five)


@pytest.mark.parametrize("line", ["--help", "trian digits", "train digitz", "config digitz"])
def test_help_and_a_mistyped_command_or_recipe_import_no_torch(line: str) -> None:
    code = f"import sys; from transfusion.cli import _run\ntry: _run({line.split()!r})\nexcept ValueError as e: print(e)\nprint(*sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    wanted = {"trian": "did you mean 'train'", "--help": "quickstart"}.get(line.split()[0], "did you mean 'digits'")
    assert wanted in out
    assert not {"torch", "numpy", "tyro", "rich"} & set(out.splitlines()[-1].split())


def test_the_table_has_each_command_with_the_first_line_of_its_module() -> None:
    """Modules that a command of another name uses aside."""
    folder = Path(transfusion.commands.__file__).parent
    for name, summary in COMMANDS.items():
        text = ast.get_docstring(ast.parse((folder / f"{name}.py").read_text()))
        assert (text or "").splitlines()[0] == summary and "usage: transfusion " + name in (text or "")
        assert find_command(name).__module__ == f"transfusion.commands.{name}"
    aside = {"report", "autoencoder", "classifier", "choosing", "measuring", "hooks"}
    assert {p.stem for p in folder.glob("*.py")} == {*COMMANDS, "__init__", *aside}
