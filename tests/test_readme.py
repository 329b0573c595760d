"""The README's commands are the project's: what it shows runs, and what it claims was measured."""

import re
from pathlib import Path

import pytest

from small import model, picture

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PYTHON = re.findall(r"```python\n(.+?)```", README, re.S)


def block(name: str) -> str:
    found = re.search(rf"<!-- {name} -->\n```bash\n(.+?)\n```", README, re.S)
    assert found, f"README has no block {name}"
    return found[1]


def test_both_commands_set_everything_up_themselves() -> None:
    for name in ("quickstart", "tests"):
        assert block(name).startswith("pip install -q uv && uv run")


def test_what_the_readme_names_exists() -> None:
    for target in re.findall(r"\]\(((?!http)[^)#]+)\)", README):
        assert (ROOT / target).exists(), target
    assert "@@" not in README


def test_the_python_block_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As printed, on a small model in the quickstart's place."""
    code = PYTHON[0]
    monkeypatch.chdir(tmp_path)
    model(context_length=96).save_pretrained("quickstart")
    names: dict[str, object] = {}
    exec(code, names)
    assert (tmp_path / "copy" / "model.safetensors").exists()
    assert names["loss"].requires_grad  # type: ignore[attr-defined]
    assert picture(0).shape == names["picture"].shape  # type: ignore[attr-defined]


def test_the_block_of_two_modalities_runs(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, object] = {}
    exec(PYTHON[1], names)
    assert capsys.readouterr().out == "sound torch.Size([2, 16])\n" and "# sound torch.Size([2, 16])" in PYTHON[1]
    assert names["duo_loss"].requires_grad and names["duo_loss"].isfinite()  # type: ignore[attr-defined]


def test_no_block_is_left_out() -> None:
    assert len(PYTHON) == 3


@pytest.mark.slow
def test_the_block_of_lists_runs(unchecked) -> None:
    names: dict[str, object] = {}
    exec(PYTHON[2], names)
    assert names["loss"].requires_grad and names["text"].shape == (2, 8) and len(names["many"]) == 3  # type: ignore[attr-defined, arg-type]


def test_every_setting_shown_is_one_that_exists() -> None:
    from transfusion.recipes import find
    from transfusion.run.command_line import choose_kinds, flag, names, parse

    shown = re.findall(r"(--[a-z][\w.-]*\.[\w.-]+)\s+(\w+)", README)
    assert len(shown) > 8
    run = find("digits").run()
    for name, value in shown:
        chosen, rest = choose_kinds(run, [name, value])
        assert not rest or flag(name) in names(chosen), name
        if rest:
            parse(run, [name, value], "test")


def test_every_command_shown_is_one_that_exists() -> None:
    from transfusion.cli import COMMANDS
    from transfusion.recipes import RECIPES

    for command, argument in re.findall(r"^(?:uv run (?:-q )?)?transfusion (\w+) ?(\w*)", README, re.M):
        assert command in COMMANDS
        if command in ("train", "config"):
            assert argument in RECIPES or (command, argument) == ("train", "classifier")
