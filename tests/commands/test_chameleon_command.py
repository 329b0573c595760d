"""Pictures as ids of a codebook, by the same commands: training, drawing, captioning, evaluation; and what is refused."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from command import SHORT, command
from small import folder, png
from transfusion import Document, Text, Transfusion
from transfusion.codec.codes import Codes
from transfusion.codec.convolutions import ConvolutionsConfig
from transfusion.codec.vae import VAEConfig
from transfusion.codec.vq import VQConfig

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


def test_it_trains_draws_captions_and_is_measured_by_the_same_commands(pictures: None) -> None:
    assert command(f"{TRAIN} --autoencoder vq --model.transformer.norm-order post --model.z-loss 1e-4 --out run") == 0
    model = Transfusion.from_pretrained("run")
    modality = model.config.model.modalities[0]
    assert (modality.shape, modality.patch, modality.channels, modality.codes) == ((4, 4), (1, 1), 1, 20)
    assert isinstance(model.codecs.autoencoders["image"], Codes) and not model.network.patchers
    last = json.loads(Path("run/metrics.jsonl").read_text().splitlines()[-2])
    assert last["codes_loss"] > 0 and last["z_loss"] > 0 and last["flops"] > 0 and last["flops_6nd"] > 0
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
    assert {path.stem for path in Path("run/records").glob("*.json")} >= {"draw", "read"}


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
