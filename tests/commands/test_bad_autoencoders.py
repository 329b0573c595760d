"""What cannot be trained on is refused before training starts: autoencoders and latents that do not fit, are damaged, of others,
or not finite; and latents where pictures are wanted."""

import json
import shutil
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from command import SHORT, command
from small import folder
from transfusion.codec.autoencoders import load_autoencoder
from transfusion.codec.codes import Codes
from transfusion.codec.convolutions import ConvolutionsConfig
from transfusion.codec.vae import VAEConfig
from transfusion.codec.vq import VQConfig
from transfusion.files import manifest

SIDE = "--model.modalities.0.shape 16 16 --model.modalities.0.patch 4 4"
TRAIN = f"train pictures {SHORT} --trainer.sample-every 0"
IDS = f"{TRAIN} {SIDE} --model.kind chameleon"
AUTOENCODER = (
    "--data data --images.side 16 --images.batch-size 4 --model.convolutions.widths 16 --trainer.steps 2 --optimizer.warmup 1 "
    "--trainer.sample-every 0 --device cpu --dtype fp32"
)


@pytest.fixture(scope="module")
def _made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("made")
    with chdir(place):
        folder(Path("data"), 20)
        folder(Path("latents-of"), 6)
        convolutions = ConvolutionsConfig(widths=(16,), blocks=1)
        torch.manual_seed(0)
        VAEConfig(convolutions).build().save("vae/model")
        VQConfig(convolutions, num_codes=30).build().save("vq-30/model")
        for line in (
            f"train vq --out vq {AUTOENCODER} --model.num-codes 20",
            "data encode latents-of --autoencoder vae --out latents --size 16 16 --per-shard 3 --device cpu",
            "data encode latents-of --autoencoder vq --ids True --out ids --size 16 16 --device cpu",
            f"{IDS} --data data --autoencoder vq --out run",
        ):
            assert command(line) == 0
    return place


@pytest.fixture
def made(_made: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Callable[[str, str], None]:
    """Pictures, autoencoders of reduction 4, latents and a run in the test's folder. Returns a check that a command is refused
    with a message and nothing was trained."""
    shutil.copytree(_made, tmp_path, dirs_exist_ok=True)
    capfd.readouterr()

    def refused(line: str, message: str) -> None:
        assert command(line) in (1, 2), line
        captured = capfd.readouterr()
        said = " ".join((captured.out + captured.err).replace("│", " ").split())
        assert message in said, said
        assert not list(tmp_path.glob("out/checkpoints")) and not (tmp_path / "out" / "metrics.jsonl").exists()
        shutil.rmtree(tmp_path / "out", ignore_errors=True)

    return refused


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (f"{TRAIN} --autoencoder vae --model.modalities.0.shape 18 18 --model.modalities.0.patch 6 6", "multiple of 4"),
        (
            f"{TRAIN} --autoencoder vae --model.modalities.0.shape 24 24 --model.modalities.0.patch 6 6",
            "a patch of (6, 6) must",
        ),
        (f"{TRAIN} --autoencoder vae --model.modalities.0.shape 2 2 --model.modalities.0.patch 2 2", "smaller than one latent"),
        (f"{IDS} --autoencoder vq --model.modalities.0.shape 2 2 --model.modalities.0.patch 2 2", "smaller than one latent"),
        (f"{IDS} --autoencoder vq --model.modalities.0.shape 18 18 --model.modalities.0.patch 6 6", "multiple of 4"),
        ("train vae --images.side 2 --device cpu", "do not fit an autoencoder of reduction 4"),
        ("train vq --images.side 18 --device cpu", "do not fit an autoencoder of reduction 4"),
    ],
)
def test_reductions_that_do_not_fit(made: Callable[[str, str], None], line: str, message: str) -> None:
    made(f"{line} --data data --out out", message)


def test_reductions_that_do_not_fit_what_is_encoded_or_measured(made: Callable[[str, str], None]) -> None:
    for verb in ("encode", "measure"):
        made(f"data {verb} data --autoencoder vae --size 18 18 --out out", "every extent must be a multiple of 4")
        made(f"data {verb} data --autoencoder vae --size 2 2 --out out", "smaller than one latent")
    made("reconstruct vq --data data --side 18 --out out", "every extent must be a multiple of 4")
    made("reconstruct vq --data data --side 2 --out out", "smaller than one latent")


def test_latents_of_another_autoencoder(made: Callable[[str, str], None]) -> None:
    latents, ids = f"{TRAIN} {SIDE} --out out --data latents", f"{IDS} --out out --data ids"
    made(latents, "this model learns 'image' without one")
    made(f"{latents} --autoencoder vq", "this model has autoencoder")
    made(f"{latents} --autoencoder vq --model.kind chameleon", "encode ids (transfusion data encode --ids True), or give")
    made(f"{ids} --autoencoder vq-30", "this model has autoencoder")
    made(f"{ids.replace('--model.kind chameleon', '')} --autoencoder vq", "this model has autoencoder")


def test_a_codebook_of_another_size(made: Callable[[str, str], None]) -> None:
    made(f"{IDS} --data data --autoencoder vq-30 --out run", "run holds another run (autoencoder: was vq, now vq-30")
    made(f"train vq --out vq {AUTOENCODER} --model.num-codes 40", "model.num_codes: was 20, now 40")
    kept = Path("run/model/autoencoders/image")
    Codes.of(load_autoencoder("vq-30")).save(kept)
    made(
        "generate run --prompt x --device cpu --out out",
        "the model learns 20 codes of 'image', this autoencoder gives 30 codes",
    )
    shutil.rmtree(kept)
    shutil.copytree("vq/model", kept)
    made("generate run --prompt x --device cpu --out out", "this autoencoder gives latents")
    config = Path("vq/model/config.json")
    config.write_text(config.read_text().replace("20", "40"))
    sign(Path("vq/model"))
    made(f"{IDS} --data data --autoencoder vq --out out", "its weights are not those that its config.json describes")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "MANIFEST.json"])
def test_an_autoencoder_with_a_missing_or_damaged_file(made: Callable[[str, str], None], name: str) -> None:
    file = Path("vae/model") / name
    content = file.read_bytes()
    lines = [f"{TRAIN} {SIDE} --data data --autoencoder vae --out out", "reconstruct vae --data data --side 16 --out out"]
    for spoiled in (None, b"", content[:-9], content[:-3] + bytes([content[-3] ^ 1]) + content[-2:]):
        file.unlink() if spoiled is None else file.write_bytes(spoiled)
        for line in lines:
            made(
                line, "give a folder with config.json" if spoiled is None and name == "config.json" else "copy the folder anew"
            )


@pytest.mark.parametrize("name", ["train-00000.safetensors", "train-00001.safetensors", "held-out-00000.safetensors"])
def test_latents_with_a_missing_or_damaged_shard(made: Callable[[str, str], None], name: str, tmp_path: Path) -> None:
    plain = json.loads(Path("latents/MANIFEST.json").read_text())
    if name.startswith("held-out"):  # a split as of tables
        shutil.copy("latents/train-00001.safetensors", f"latents/{name}")
        plain["shards"]["held-out"], plain["files"][name] = 1, plain["files"]["train-00001.safetensors"]
        Path("latents/MANIFEST.json").write_text(json.dumps(plain))
    file = Path("latents") / name
    content = file.read_bytes()
    for spoiled in (None, b"", content[:-1], content[:-1] + bytes([content[-1] ^ 1])):
        file.unlink() if spoiled is None else file.write_bytes(spoiled)
        made(f"{TRAIN} {SIDE} --data latents --autoencoder vae --out out", "encode it again, with the same command")


def test_latents_without_a_manifest_that_can_be_read(made: Callable[[str, str], None]) -> None:
    file = Path("latents/MANIFEST.json")
    for spoiled in (None, "", "{", '{"kind": "latents", "format": 1}', '{"kind": "latents", "format": 9}', "[]"):
        file.unlink() if spoiled is None else file.write_text(spoiled)
        made(f"{TRAIN} {SIDE} --data latents --autoencoder vae --out out", "is missing or damaged")


def sign(place: Path) -> None:
    """Have the manifest say what the files are."""
    files = {name: place / name for name in ("config.json", "model.safetensors")}
    (place / "MANIFEST.json").write_text(json.dumps({"format": 1, "files": manifest(files)}))


@pytest.mark.parametrize(
    ("kind", "part", "message"),
    [
        ("vae", "encoder", "its latents have NaN or infinity"),
        ("vae", "decoder", "the autoencoder decodes NaN or infinity"),
        ("vae", "latent_mean", "its latents have NaN or infinity"),
        ("vq", "encoder", "the encoder gives NaN or infinity"),
        ("vq", "decoder", "the autoencoder decodes NaN or infinity"),
        ("vq", "codebook", "the autoencoder decodes NaN or infinity"),
    ],
)
def test_latents_that_are_not_finite(made: Callable[[str, str], None], kind: str, part: str, message: str) -> None:
    file = Path(f"{kind}/model/model.safetensors")
    weights: dict[str, Tensor] = load_file(file)
    name = next(name for name in weights if name.startswith(part))
    weights[name].fill_(torch.nan)
    save_file(weights, file)
    sign(file.parent)
    made(f"{IDS if kind == 'vq' else f'{TRAIN} {SIDE}'} --data data --autoencoder {kind} --out out", message)
    if part == "encoder":
        made(f"data encode data --autoencoder {kind} --size 16 16 --ids {kind == 'vq'} --out out", "NaN or infinity")
        made(f"reconstruct {kind} --data data --side 16 --out out", "NaN or infinity")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "train vae --data latents --out out --device cpu",
            "pictures: give those that the latents were made from ('latents-of')",
        ),
        (f"train vq {AUTOENCODER.replace('data data', 'data ids')} --out out", "('latents-of') with --data"),
        ("reconstruct vae --data latents --out out", "an autoencoder takes pictures"),
        ("train classifier --data latents --out out", "a classifier takes pictures"),
        ("data encode latents --autoencoder vae --out out --size 16 16", "were made from ('latents-of')"),
        ("data measure latents --autoencoder vae --out out --size 16 16", "were made from ('latents-of')"),
        ("train fashion --data latents --out out", "fashion takes pictures"),
        ("train digits --data latents --out out", "digits brings its own data, and would not read latents"),
        ("quickstart --data latents --out out", "digits brings its own data"),
        ("train scenes --data latents --out out", "scenes brings its own data"),
        ("evaluate run --suite draw --data latents --device cpu", "evaluation takes pictures"),
    ],
)
def test_latents_where_pictures_are_wanted(made: Callable[[str, str], None], line: str, message: str) -> None:
    made(line, message)


def test_a_model_that_was_moved_has_its_autoencoder(made: Callable[[str, str], None]) -> None:
    assert command(f"{TRAIN} {SIDE} --data latents --autoencoder vae --out on-latents") == 0
    for run in ("run", "on-latents"):
        shutil.move(f"{run}/model", f"elsewhere/{run}")
    for name in ("run", "on-latents", "vae", "vq", "latents"):
        shutil.rmtree(name)
    for run in ("run", "on-latents"):
        assert command(f"generate elsewhere/{run} --prompt x --sampler.num-steps 2 --device cpu --out drawn/{run}") == 0
        assert Path(f"drawn/{run}/00000-1.png").is_file()
