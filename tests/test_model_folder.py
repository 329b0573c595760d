"""A saved model is the same model; damaged folders and other formats are refused."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from small import model, picture
from transfusion import config
from transfusion.api import Transfusion
from transfusion.model_folder import TransfusionConfig


@pytest.mark.parametrize("tie_embeddings", [False, True])
def test_a_saved_model_is_the_same_model(tmp_path: Path, tie_embeddings: bool) -> None:
    found = model()
    if tie_embeddings:
        found = Transfusion(
            replace(found.config, model=replace(found.config.model, tie_embeddings=True)), found.vocabulary
        ).eval()
    found.save_pretrained(tmp_path)
    again = Transfusion.from_pretrained(tmp_path).eval()
    assert again.config == found.config
    documents = [["a text", picture(0)]]
    assert torch.equal(found.loss(documents), again.loss(documents))  # type: ignore[arg-type]
    one, other = (m.generate("a", force="image", seed=3)[0].media[0].tensor() for m in (found, again))
    assert torch.equal(one, other)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]


def test_weights_of_another_architecture_are_refused_and_named(tmp_path: Path) -> None:
    model().save_pretrained(tmp_path)
    model(width=64).save_pretrained(tmp_path / "wide")
    (tmp_path / "wide" / "config.json").write_bytes((tmp_path / "config.json").read_bytes())
    with pytest.raises(ValueError, match=r"another architecture.*\[\d+, 64\]"):
        Transfusion.from_pretrained(tmp_path / "wide")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
@pytest.mark.parametrize("damage", ["gone", "garbage", "half"])
def test_damaged_model_folders_are_named(tmp_path: Path, name: str, damage: str) -> None:
    model().save_pretrained(tmp_path)
    file = tmp_path / name
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(b"\x80garbage" if damage == "garbage" else file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(ValueError, match=r"config\.json" if name == "config.json" else name):
        Transfusion.from_pretrained(tmp_path)


def test_settings_of_another_format_are_refused(tmp_path: Path) -> None:
    model().save_pretrained(tmp_path)
    plain = config.to_plain(TransfusionConfig()) | {"format": 99}
    (tmp_path / "config.json").write_text(json.dumps(plain))
    with pytest.raises(ValueError, match=r"has format 99, this version reads format 2: train"):
        Transfusion.from_pretrained(tmp_path)
