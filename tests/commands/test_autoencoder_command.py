"""`transfusion train vae` and `train vq` as they are typed: folder, resumption, and what is refused before training."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from command import command
from small import png
from transfusion.codec.autoencoders import load_autoencoder
from transfusion.codec.vq import VQ
from transfusion.run.autoencoder import PRESETS

SHORT = (
    "--images.side 16 --images.batch-size 4 --model.convolutions.widths 16 --trainer.steps 4 --optimizer.warmup 1 "
    "--trainer.sample-every 2 --checkpoint.every 2 --device cpu --dtype fp32"
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(60):
        png(folder / f"{i}.png", seed=0)
    return folder


def test_a_vae_is_trained_measured_and_saved(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = f"train vae --data {data} --out {tmp_path} {SHORT} --losses.gan 0.5 --losses.gan-start 2 --discriminator.layers 2"
    assert command(line) == 0
    out = capsys.readouterr().out
    assert "the perceptual loss is 1 - multi-scale SSIM" in out and "no held-out split" in out
    model = load_autoencoder(tmp_path)
    items = torch.rand(2, 3, 16, 16) * 2 - 1
    assert model.encode(items).shape == (2, 8, 4, 4) and model.decode(model.encode(items)).shape == items.shape
    assert float(model.latent_scale.std()) > 0 and model.bound is not None
    record = json.loads((tmp_path / "reconstruction.json").read_text())
    assert record["weights"] == model.digest and "psnr" in record["metrics"] and "frechet_classifier" in record["missing"]
    assert record["command"].startswith("transfusion train vae --preset small --data")
    assert (tmp_path / "reconstructions.png").is_file() and (tmp_path / "samples" / "step-00000002.png").is_file()
    steps = [json.loads(text) for text in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert "gan_loss" not in steps[0] and "discriminator_grad_norm" in steps[-1] and "gan_loss" in steps[-1]
    again = f"reconstruct {tmp_path} --data {data} --out {tmp_path / 'again'} --device cpu --side"
    assert command(f"{again} 16") == 0
    second = json.loads((tmp_path / "again" / "reconstruction.json").read_text())
    assert second["metrics"] == record["metrics"] and second["weights"] == record["weights"]
    assert command(f"{again} 18") == 1 and "multiple of 4" in capsys.readouterr().err
    weights = (tmp_path / "model" / "model.safetensors").read_bytes()
    assert command(line) == 0  # done: the same again
    assert "resuming from step 4" in capsys.readouterr().out
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == weights
    assert command(line.replace("--losses.gan 0.5", "--losses.gan 0.4")) == 2
    assert "holds another run (losses.gan: was 0.5, now 0.4)" in capsys.readouterr().err


def test_a_vq_is_trained_its_use_logged_and_its_data_watched(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures, out = tmp_path / "pictures", tmp_path / "run"
    shutil.copytree(data, pictures)
    whole = (pictures / "0.png").read_bytes()
    (pictures / "0.png").write_bytes(whole[: len(whole) // 2])  # its header can be read, its pixels cannot
    line = f"train vq --data {pictures} --out {out} {SHORT} --model.num-codes 16"
    assert command(line) == 0
    model = load_autoencoder(out)
    assert isinstance(model, VQ) and model.num_codes == 16
    steps = [json.loads(text) for text in (out / "metrics.jsonl").read_text().splitlines()]
    assert 0 < steps[-1]["codes_used"] <= 1 and 1 <= steps[-1]["perplexity"] <= 16
    metrics = json.loads((out / "reconstruction.json").read_text())["metrics"]
    assert 0 < metrics["codes_used"]["value"] <= 1
    assert "0.png" in capsys.readouterr().out
    for i in range(60):
        png(pictures / f"{i}.png", seed=1)
    assert command(line) == 2
    assert "resume with the original data, or choose another --out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--images.side 18", "do not fit an autoencoder of reduction 4"),
        ("--images.batch-size 5 --trainer.accumulate 2", "must be a multiple of trainer.accumulate"),
        ("--optimizer.warmup 8000", "does not end within the run"),
        ("--images.side 8", "at least 11 pixels a side"),
        ("--losses.gan 0.5 --discriminator.layers 5", "needs pictures of at least 128 pixels"),
        ("--losses.network none.pth", "no file none.pth"),
        ("--losses.identity-network none.tar", "no file none.tar"),
        ("--report.classifier none", "no classifier in none"),
        ("--model.convolutions.widths 12", "must be multiples of groups"),
        ("--preset papr", "did you mean 'paper'"),
        ("--model.kind vq", "trained by its own command: transfusion train vq"),
        ("--losses.gann 1", "did you mean"),
        ("--data none", "no data at none"),
    ],
)
def test_refused_before_training(
    words: str, message: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = "" if "--data" in words else f"--data {data} "
    assert command(f"train vae {given}--out {tmp_path / 'run'} --device cpu {words}") in (1, 2)
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_presets_have_the_papers_numbers() -> None:
    vae, vq = PRESETS["paper"]("vae"), PRESETS["paper"]("vq")
    assert vae.trainer.steps == 1_000_000 and vae.images.side == 256
    losses = vae.losses
    assert (losses.l1, losses.perceptual, losses.gan, losses.identity, losses.kl, losses.gan_start) == (
        1,
        1,
        0.5,
        0.2,
        1e-6,
        50_000,
    )
    assert vq.model.num_codes == 16_384 and vq.model.code_channels == 8 and vq.losses.commitment == 0.25  # type: ignore[union-attr]
    assert vq.codebook.update == "gradient" and vq.losses.codebook == 1.0
    for kind in ("vae", "vq"):
        for name, preset in PRESETS.items():
            preset(kind).check(kind)  # type: ignore[arg-type]
            assert preset(kind).model.convolutions.reduction == (4 if name == "small" else 8)
