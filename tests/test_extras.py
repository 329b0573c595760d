"""Optional packages: each belongs to an extra of pyproject.toml, and where it is missing the line that installs it is named."""

import ast
import re
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from small import model

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MODULE = {"pillow": "PIL", "pyyaml": "yaml", "scikit-learn": "sklearn", "torch-fidelity": "torch_fidelity"}


def modules(requirements: list[str]) -> set[str]:
    names = [re.match(r"[\w-]+", line)[0] for line in requirements]  # type: ignore[index]
    return {MODULE.get(name, name.replace("-", "_")) for name in names}


CORE = modules(PROJECT["dependencies"])
EXTRAS = {name: modules(lines) for name, lines in PROJECT["optional-dependencies"].items()}


def optional_imports() -> Iterator[tuple[str, str]]:
    """Every package that the source imports and the distribution does not require, with the source of the `try` around it."""
    for path in (ROOT / "src").rglob("*.py"):
        tree = ast.parse(path.read_text())
        parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                name = node.module if isinstance(node, ast.ImportFrom) else node.names[0].name
                top = str(name).partition(".")[0]
                if top not in {*sys.stdlib_module_names, *CORE, "transfusion"}:
                    around = parents[node]
                    yield top, "\n".join(map(ast.unparse, around.handlers)) if isinstance(around, ast.Try) else ""


def test_every_optional_import_names_the_extra_that_brings_it() -> None:
    seen = list(optional_imports())
    assert len(seen) >= 8
    for package, handlers in seen:
        extra = re.search(r"except ImportError.*\n.*raise ValueError\(.*pip install 'transfusion-kit\[(\w+)\]'", handlers)
        assert extra and package in EXTRAS[extra[1]], (package, handlers)


def parquet(folder: Path) -> object:
    from transfusion.data.sources.parquet import read_parquet

    return read_parquet([folder / "x.parquet"], lambda image: image)  # type: ignore[arg-type, return-value]


def cider(folder: Path) -> object:
    from transfusion.evaluation.captions import cider

    return cider(["a cat", "a dog"], [["a cat"], ["a dog"]])


def inception(folder: Path) -> object:
    from transfusion.evaluation.features import InceptionFeatures

    (folder / "weights.pth").touch()
    return InceptionFeatures(folder / "weights.pth")


def clip(folder: Path) -> object:
    from transfusion.evaluation.features import ClipScore

    (folder / "config.json").touch()
    return ClipScore(folder)


def curves(folder: Path) -> object:
    from transfusion.evaluation.curves import Plot

    (folder / "metrics.jsonl").write_text('{"step": 1, "text_loss": 2.0}\n{"step": 2, "text_loss": 1.0}\n')
    return Plot(metric=("text_loss",), out=str(folder / "x.png")).draw([folder])


def lora(folder: Path) -> object:
    from transfusion.model.lora import LoRAConfig, add

    return add(model().network, LoRAConfig(rank=2))


def hub(folder: Path) -> object:
    from transfusion.api import Transfusion

    return Transfusion.from_language_model("hf://owner/model")


def vae(folder: Path) -> object:
    from transfusion.codec.autoencoders import load_autoencoder

    (folder / "config.json").write_text('{"_class_name": "AutoencoderKL"}')
    return load_autoencoder(folder)


def vae_of_the_hub(folder: Path) -> object:
    from transfusion.codec.autoencoders import load_autoencoder

    return load_autoencoder("hf://owner/model")


@pytest.mark.parametrize(
    ("package", "extra", "use"),
    [
        ("pyarrow", "parquet", parquet),
        ("pycocoevalcap", "eval", cider),
        ("torch_fidelity", "eval", inception),
        ("transformers", "eval", clip),
        ("matplotlib", "eval", curves),
        ("peft", "lora", lora),
        ("huggingface_hub", "hf", hub),
        ("diffusers", "vae", vae),
        ("huggingface_hub", "hf", vae_of_the_hub),
    ],
)
def test_a_missing_extra_is_named_with_the_line_that_installs_it(
    package: str, extra: str, use: Callable[[Path], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=rf"pip install 'transfusion-kit\[{extra}\]'"):
        use(tmp_path)


def test_training_without_tensorboard_logs_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transfusion.train.log import _tensorboard

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard.writer", None)
    assert _tensorboard(tmp_path) is None


def test_extras_that_join_others_name_this_distribution() -> None:
    joined = [line for lines in PROJECT["optional-dependencies"].values() for line in lines if "[" in line]
    for line in joined:
        name, extras = re.fullmatch(r"([\w-]+)\[([\w,]+)\].*", line).groups()  # type: ignore[union-attr]
        assert name != PROJECT["name"] or {*extras.split(",")} <= {*EXTRAS}
    assert any(line.startswith(PROJECT["name"]) for line in joined) and torch.__name__ in CORE
