"""A saved model is the same model; damaged folders and other formats are refused."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from small import FREE, model, picture
from transfusion import config
from transfusion.api import Transfusion
from transfusion.data.vocabulary import Vocabulary
from transfusion.files import MANIFEST, manifest
from transfusion.model_folder import TransfusionConfig


def sign(folder: Path) -> None:
    """Write the manifest of a folder anew, as someone does who changed it on purpose."""
    files = manifest({f.name: f for f in folder.iterdir() if f.name != MANIFEST})
    (folder / MANIFEST).write_text(json.dumps({"format": 2, "files": files}))


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
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "MANIFEST.json",
        "config.json",
        "documents.json",
        "model.safetensors",
        "tokenizer.json",
    ]


def test_weights_of_another_architecture_are_refused_and_named(tmp_path: Path) -> None:
    model().save_pretrained(tmp_path)
    model(width=64).save_pretrained(tmp_path / "wide")
    (tmp_path / "wide" / "config.json").write_bytes((tmp_path / "config.json").read_bytes())
    with pytest.raises(ValueError, match=r"not as its MANIFEST.json says: config.json"):
        Transfusion.from_pretrained(tmp_path / "wide")
    sign(tmp_path / "wide")
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


def test_every_flipped_byte_is_noticed(tmp_path: Path) -> None:
    model().save_pretrained(tmp_path)
    for name in ("MANIFEST.json", "config.json", "tokenizer.json", "model.safetensors"):
        data = (tmp_path / name).read_bytes()
        for at in {len(data) * i // 12 for i in range(12)} | {len(data) - 1}:
            spoilt = bytearray(data)
            spoilt[at] ^= 1
            (tmp_path / name).write_bytes(spoilt)
            with pytest.raises(ValueError, match=r"MANIFEST\.json|config\.json"):
                Transfusion.from_pretrained(tmp_path)
        (tmp_path / name).write_bytes(data)
    Transfusion.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "content", ["[]", "{}", '{"files": []}', '{"files": {}}', '{"files": {"config.json": 1}}', "[" * 10**5]
)
def test_a_manifest_of_another_form_is_refused(tmp_path: Path, content: str) -> None:
    model().save_pretrained(tmp_path)
    (tmp_path / MANIFEST).write_text(content)
    with pytest.raises(ValueError, match=r"MANIFEST\.json"):
        Transfusion.from_pretrained(tmp_path)


def test_a_folder_without_a_manifest_is_read_with_a_warning(tmp_path: Path) -> None:
    model().save_pretrained(tmp_path)
    (tmp_path / MANIFEST).unlink()
    with pytest.warns(UserWarning, match=r"has no MANIFEST\.json, as of an earlier version"):
        Transfusion.from_pretrained(tmp_path)


def test_a_write_that_fails_leaves_the_old_model_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = model()
    first.save_pretrained(tmp_path)

    def full(self: Vocabulary, path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Vocabulary, "save", full)
    with pytest.raises(OSError, match="No space left"):
        model(width=64).save_pretrained(tmp_path)
    assert len(list(tmp_path.iterdir())) == 5
    assert Transfusion.from_pretrained(tmp_path).config == first.config


NORM = "transformer.norm.weight"
WEIGHTS: dict[str, Callable[[dict[str, torch.Tensor]], object]] = {
    "is missing": lambda w: w.pop(NORM),
    "is unknown": lambda w: w.update({"extra": w[NORM].clone()}),
    "renamed.weight is unknown": lambda w: w.update({"transformer.renamed.weight": w.pop(NORM)}),
    r"shape \[1\], not \[32\]": lambda w: w.update({NORM: w[NORM][:1].clone()}),
    r"shape \[1, 32\], not \[32\]": lambda w: w.update({NORM: w[NORM][None].clone()}),
    r"shape \[\], not \[32\]": lambda w: w.update({NORM: torch.tensor(1.0)}),
    "is torch.int64": lambda w: w.update({NORM: w[NORM].long()}),
    "is torch.uint8": lambda w: w.update({NORM: w[NORM].byte()}),
    "is torch.float8": lambda w: w.update({NORM: w[NORM].to(torch.float8_e5m2)}),
}


@pytest.mark.parametrize("message", WEIGHTS)
def test_weights_fit_exactly_or_are_refused(tmp_path: Path, message: str) -> None:
    model().save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    WEIGHTS[message](weights)
    save_file(weights, tmp_path / "model.safetensors")
    sign(tmp_path)
    with pytest.raises(ValueError, match=f"another architecture: .*{message}"):
        Transfusion.from_pretrained(tmp_path)


def test_weights_of_half_precision_are_read(tmp_path: Path) -> None:
    model().to(torch.bfloat16).save_pretrained(tmp_path)
    assert Transfusion.from_pretrained(tmp_path).network.embed.weight.dtype == torch.float32


HUGE: list[tuple[str, object]] = [
    ("model.transformer.depth", 900),
    ("model.transformer.depth", 5000),
    ("model.transformer.width", 2**20),
    ("model.transformer.mlp_width", 2**20),
    ("model.transformer.num_streams", 10**9),
    ("model.transformer.moe.num_experts", 4000),
    ("model.transformer.moe.num_experts", 10**9),
    ("model.patcher", {"kind": "unet", "blocks": 10**9}),
    ("model.patcher", {"kind": "unet", "channels": 2**20}),
    ("model.patcher.time_features", 2**40),
    ("model.context_length", 10**12),
    ("model.modalities.0.largest", [10**7, 10**7]),
    ("model.modalities.0.largest", [10**4, 10**4]),
    ("model.modalities.0.shape", [2**40, 2**40]),
    ("model.modalities.0.channels", 10**9),
    ("model.modalities.0.patch", [2**20, 2**20]),
    ("model.transformer.depth", 10**400),
    ("model.transformer.depth", [1]),
    ("model.modalities", {"0": 1}),
    ("model.modalities", [[]]),
    ("model.patcher.kind", ["unet"]),
    ("sampler.kind", {"a": 1}),
    ("sampler.num_steps", 10**9),
    ("sampler.shift", 10**400),
    ("language", {"count": 10**9}),
    ("guidance", None),
    ("model.opening_prior", 1e308),
    ("format", True),
    ("format", [2]),
]


@pytest.mark.parametrize(("name", "value"), HUGE, ids=lambda x: str(x)[:40])
def test_settings_may_not_ask_for_more_than_the_weights_hold(tmp_path: Path, name: str, value: object) -> None:
    """Refused before memory or minutes are spent: all of them take 2 seconds together."""
    model(FREE).save_pretrained(tmp_path)
    plain = json.loads((tmp_path / "config.json").read_text())
    *path, last = name.split(".")
    inner = plain
    for part in path:
        inner = inner[int(part) if part.isdigit() else part]
    inner[last] = value
    (tmp_path / "config.json").write_text(json.dumps(plain))
    sign(tmp_path)
    with pytest.raises(ValueError, match=r"config\.json|another architecture|tokenizer|vocabulary"):
        Transfusion.from_pretrained(tmp_path)


@pytest.mark.parametrize("plain", ["[" * 10**5, "1", "null", '{"format": 2, "format": 2}', '{"model": {"a": ' * 500, "\ud800"])
def test_a_config_that_is_none(tmp_path: Path, plain: str) -> None:
    model().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_bytes(plain.encode("utf-8", "surrogatepass"))
    sign(tmp_path)
    with pytest.raises(ValueError, match=r"config\.json"):
        Transfusion.from_pretrained(tmp_path)
