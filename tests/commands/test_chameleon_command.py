"""Pictures as ids of a codebook, by the same commands: training, drawing, captioning, evaluation; and what is refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from command import SHORT, command
from small import folder, png
from transfusion import Document, Text, Transfusion
from transfusion.codec.autoencoders import load_autoencoder
from transfusion.codec.codes import Codes
from transfusion.codec.convolutions import ConvolutionsConfig
from transfusion.codec.vae import VAEConfig
from transfusion.codec.vq import VQConfig
from transfusion.data.media import EncodedImage, Fit
from transfusion.data.sources.latents import read_latents

CONVOLUTIONS = ConvolutionsConfig(patch=2, widths=(8, 16), blocks=1, groups=4)
TRAIN = (
    f"train pictures --data data {SHORT} --model.modalities.0.shape 16 16 --model.modalities.0.patch 4 4 "
    "--trainer.sample-every 0 --model.kind chameleon"
)


@pytest.fixture
def pictures() -> None:
    """Twelve captioned pictures, and two autoencoders of reduction 4, one with a codebook."""
    torch.manual_seed(0)
    VQConfig(CONVOLUTIONS, num_codes=20, code_channels=3).build().save("vq")
    VAEConfig(CONVOLUTIONS, latent_channels=3).build().save("vae")
    folder(Path("data"), 12)


def test_it_trains_draws_captions_and_is_measured_by_the_same_commands(pictures: None, capfd) -> None:
    assert command(f"{TRAIN} --autoencoder vq --model.transformer.norm-order post --model.z-loss 1e-4 --out run") == 0
    model = Transfusion.from_pretrained("run")
    modality = model.config.model.modalities[0]
    assert (modality.shape, modality.patch, modality.channels, modality.codes) == ((4, 4), (1, 1), 1, 20)
    assert isinstance(model.codecs.autoencoders["image"], Codes) and not model.network.patchers
    *_, last, preference = map(json.loads, Path("run/metrics.jsonl").read_text().splitlines())
    assert last["codes_loss"] > 0 and last["z_loss"] > 0 and last["flops"] > 0 and last["flops_6nd"] > 0
    assert 0 < last["text_loss"] != last["codes_loss"] and "media_loss" not in last and "caption_preference" in preference
    said = capfd.readouterr()
    assert "learned as codes of" in said.out and "by the cross-entropy of codes" in said.err and "at t =" not in said.err
    assert "denoised no better" not in said.err and "  media " not in said.err
    png(Path("prompt/0.png"), 5, (16, 16))
    Path("prompt/p.jsonl").write_text('{"segments": [{"image": "0.png"}]}\n{"segments": [{"text": "caption 3"}]}\n')
    assert command("generate run --prompts prompt/p.jsonl --out drawn --device cpu --guidance.text 5") == 0
    with Image.open("drawn/00001-1.png") as drawn:
        assert drawn.size == (16, 16) and drawn.mode == "RGB"
    (document,) = model.generate([Document((Text("caption 1"),))], force="image", seed=3)
    ids = model.codecs.encoded(document, now=True).media[0].tensor()
    assert ids.shape == (1, 4, 4) and torch.equal(ids, ids.round()) and ids.max() < 20
    folder(Path("held-out"), 14)
    for i in range(12):
        for ending in ("png", "txt"):
            Path(f"held-out/{i:03d}.{ending}").unlink()
    assert command("evaluate run --suite draw read --data held-out --samples 2 --device cpu") == 0
    draw, read = (json.loads(Path(f"run/records/{suite}.json").read_text()) for suite in ("draw", "read"))
    assert draw["metrics"]["caption_preference"]["note"].startswith("by the cross-entropy of codes; on documents")
    assert "sampler" not in draw["settings"].keys() | read["settings"].keys() and "guidance" in draw["settings"]
    assert "at t =" not in capfd.readouterr().out + json.dumps([draw, read])


def test_ids_that_were_encoded_once_are_those_encoded_on_the_way(pictures: None, capfd) -> None:
    assert command("data encode data --autoencoder vq --ids True --out ids --size 16 16 --crops 1 --device cpu") == 0
    assert "next: transfusion train pictures --data ids --autoencoder vq" in (said := capfd.readouterr().out)
    assert "--model.kind chameleon" in said
    (document, *_) = read_latents(Path("ids"))
    picture = EncodedImage(Path("data/000.png"), Fit((16, 16))).load()
    wanted = load_autoencoder("vq").ids(picture[None])  # type: ignore[attr-defined]
    assert torch.equal(document.media[0].values.view(0).load(), wanted.float())  # type: ignore[union-attr]
    shutil.rmtree("ids")
    assert command("data encode data --autoencoder vq --ids True --out ids --size 16 16 --device cpu") == 0
    for source in ("data", "ids"):
        line = TRAIN.replace("--data data", f"--data {source}").replace("--trainer.steps 4", "--trainer.steps 2")
        assert command(f"{line} --autoencoder vq --out from-{source}") == 0
    weights = [Path(f"from-{source}/model/model.safetensors").read_bytes() for source in ("data", "ids")]
    assert weights[0] == weights[1]
    assert command("data encode data --autoencoder vae --ids True --out no --size 16 16") == 1
    assert "has none: give one that was trained" in capfd.readouterr().err


@pytest.mark.parametrize(
    "words, message",
    [
        ("--autoencoder vae", "transfusion train vq"),
        ("", "no codes: give an autoencoder with a codebook"),
        ("--autoencoder vq --model.transformer.modality-weights mlp", "use the weights of text"),
    ],
)
def test_what_cannot_be_is_refused_before_training(pictures: None, words: str, message: str, capfd) -> None:
    assert command(f"{TRAIN} {words} --out wrong") != 0
    assert message in " ".join(capfd.readouterr().err.split()) and not Path("wrong/checkpoints").exists()
