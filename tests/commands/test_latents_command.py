"""Pictures as latents, from the command to the drawing: an autoencoder that diffusers saved, training with it and from latents that
were encoded once, resuming, generation and evaluation; and all that is refused before training starts."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from command import SHORT, command
from small import folder, png
from transfusion import Document, Text, Transfusion
from transfusion.codec import encoding
from transfusion.codec.autoencoders import load_autoencoder
from transfusion.config import from_yaml
from transfusion.data.sources.latents import read_latents
from transfusion.data.transforms import DocumentTransform
from transfusion.files import manifest
from transfusion.run.record import Run

diffusers = pytest.importorskip("diffusers")
TRAIN = (
    f"{SHORT} --model.modalities.0.shape 16 16 --model.modalities.0.patch 4 4 --trainer.sample-every 0 --sampler.num-steps 2"
)
SIZE = "--size 16 16"


def save_kl(path: Path, seed: int = 0, **options: object) -> None:
    torch.manual_seed(seed)
    sizes = {"block_out_channels": (8, 8), "norm_num_groups": 4, "latent_channels": 4, "sample_size": 32}
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    diffusers.AutoencoderKL(**(sizes | blocks | options)).save_pretrained(path)  # type: ignore[arg-type]


@pytest.fixture
def pictures() -> Path:
    """Twelve captioned pictures in the test's folder, and an autoencoder of reduction 2 that diffusers wrote."""
    save_kl(Path("kl"))
    return folder(Path("data"), 12)


def weights(run: str) -> bytes:
    return Path(f"{run}/model/model.safetensors").read_bytes()


def test_a_model_on_latents_of_diffusers_trains_resumes_draws_and_reads(pictures: Path, capfd) -> None:
    line = f"train pictures --data data --autoencoder kl {TRAIN}"
    assert command(f"{line} --out run") == 0
    assert "learned as latents of autoencoder" in capfd.readouterr().out
    run = from_yaml(Run, Path("run/run.yaml").read_text())
    assert run.autoencoder_digest == load_autoencoder("kl").digest and run.model.modalities[0].shape == (16, 16)
    model = Transfusion.from_pretrained("run")
    assert model.config.model.modalities[0].shape == (8, 8) and model.config.model.modalities[0].patch == (2, 2)
    assert model.item_modalities[0] == run.model.modalities[0]
    assert model.codecs.digests == {"image": run.autoencoder_digest}

    shutil.copytree("run", "stopped")
    shutil.rmtree("stopped/checkpoints/step-00000004")
    shutil.rmtree("stopped/model")
    assert command(f"{line} --out stopped") == 0
    assert "resuming from step 2" in capfd.readouterr().out and weights("stopped") == weights("run")

    png(Path("prompt/0.png"), 5, (16, 16))
    Path("prompt/p.jsonl").write_text('{"segments": [{"image": "0.png"}]}\n{"segments": [{"text": "caption 3"}]}\n')
    assert command("generate run --prompts prompt/p.jsonl --out drawn --device cpu") == 0
    with Image.open("drawn/00001-1.png") as drawn:
        assert drawn.size == (16, 16) and drawn.mode == "RGB"
    with Image.open("drawn/00000-0.png") as back, Image.open("prompt/0.png") as given:
        assert back.tobytes() == given.tobytes()  # a prompt comes back as it was given

    folder(Path("held-out"), 14)
    for i in range(12):
        Path(f"held-out/{i:03d}.png").unlink()
    assert command("evaluate run --suite draw read --data held-out --samples 2 --device cpu --dtype fp32") == 0
    record = json.loads(Path("run/records/draw.json").read_text())
    assert record["settings"]["autoencoder.image"] == run.autoencoder_digest and "brightness" in record["metrics"]


def test_encoded_once_is_encoded_on_the_way(pictures: Path, capfd) -> None:
    assert command(f"data encode data --autoencoder kl --out latents {SIZE} --per-shard 5") == 0
    assert "next: transfusion train pictures --data latents" in capfd.readouterr().out
    assert len(list(Path("latents").glob("train-*.safetensors"))) == 3
    assert command(f"train pictures --data data --autoencoder kl {TRAIN} --out on-the-way") == 0
    assert command(f"train pictures --data latents --autoencoder kl {TRAIN} --out once") == 0
    assert weights("on-the-way") == weights("once")
    assert command("evaluate once --suite draw --samples 2 --device cpu") == 1
    assert "give those that the latents were made from ('data') with --data" in capfd.readouterr().out


def test_encoding_that_was_killed_goes_on_where_it_was(pictures: Path, monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    line = f"data encode data --autoencoder kl {SIZE} --per-shard 4 --crops 1 --flips True"
    assert command(f"{line} --out whole") == 0
    write = encoding.write_shard

    def killed(file: Path, *content: object) -> None:
        if file.name == "train-00001.safetensors":
            raise KeyboardInterrupt
        write(file, *content)  # type: ignore[arg-type]

    monkeypatch.setattr(encoding, "write_shard", killed)
    assert command(f"{line} --out parts") == 130
    assert command(f"train pictures --data parts --autoencoder kl {TRAIN} --out run") == 1
    assert "encoding did not finish, 2 of 3 shards are missing" in capfd.readouterr().err

    written: list[str] = []
    monkeypatch.setattr(encoding, "write_shard", lambda file, *content: (written.append(file.name), write(file, *content)))
    Path("parts/train-00000.safetensors").write_bytes(b"damaged")
    assert command(f"{line} --out parts") == 0 and len(written) == 3
    written.clear()
    assert command(f"{line} --out parts") == 0 and written == []
    assert manifest({f.name: f for f in Path("parts").glob("*.safetensors")}) == manifest(
        {f.name: f for f in Path("whole").glob("*.safetensors")}
    )
    assert command(f"{line.replace('kl', 'other')} --out parts") == 1
    save_kl(Path("other"), seed=1)
    assert command(f"{line.replace('kl', 'other')} --out parts") == 2
    assert "holds other latents (autoencoders differ)" in capfd.readouterr().err


def test_views_are_crops_and_mirror_images_and_epochs_choose_among_them(pictures: Path) -> None:
    assert command(f"data encode data --autoencoder kl --out latents {SIZE} --crops 2 --flips True") == 0
    documents = read_latents(Path("latents")).documents
    stored = documents[3].media[0].values
    views = [stored.view(i).load() for i in range(6)]  # type: ignore[union-attr]
    assert all(not torch.equal(a, b) for i, a in enumerate(views) for b in views[:i])
    autoencoder, transform = load_autoencoder("kl"), DocumentTransform()
    picture = torch.from_numpy(load_png("data/003.png"))
    assert torch.equal(views[0], autoencoder.encode(picture[None])[0])
    assert torch.equal(views[1], autoencoder.encode(picture.flip(-1)[None])[0])
    seen = {transform(documents[3], 0, epoch, 3).media[0].values.rows for epoch in range(40)}  # type: ignore[union-attr]
    assert len(seen) == 6 and transform(documents[3], 0, 1, 3).media[0].values.rows in seen  # type: ignore[union-attr]


def load_png(path: str):  # type: ignore[no-untyped-def]
    from transfusion.data.media import EncodedImage, Fit

    return EncodedImage(Path(path), Fit((16, 16))).load().numpy()


def test_measured_normalisation_is_written_and_bounds_the_sampler_of_the_paper(pictures: Path, capfd) -> None:
    assert command(f"data measure data --autoencoder kl --out measured {SIZE}") == 0
    assert "on 12 pictures: mean" in capfd.readouterr().out
    measured = load_autoencoder("measured")
    assert measured.digest != load_autoencoder("kl").digest and measured.bound is not None and measured.bound > 1
    for autoencoder, clip in (("measured", measured.bound), ("kl", None)):
        line = f"train pictures --data data --autoencoder {autoencoder} --out {autoencoder}-run --preset paper {TRAIN}"
        assert command(line.replace("--trainer.steps 4", "--trainer.steps 2")) == 0
        sampler = Transfusion.from_pretrained(f"{autoencoder}-run").config.sampler
        assert sampler.clip == clip and sampler.kind == "ddpm"  # type: ignore[union-attr]


def spoil(name: str, content: bytes | None) -> None:
    file = Path("latents") / name
    file.unlink() if content is None else file.write_bytes(content)


def not_finite() -> None:
    """Latents with infinity in a shard of which the manifest knows."""
    file = Path("latents/train-00000.safetensors")
    content = file.read_bytes()
    metadata = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
    tensors = load_file(file)
    next(iter(tensors.values()))[0, 0, 0, 0] = torch.inf
    save_file(tensors, file, metadata=metadata)
    plain = json.loads(Path("latents/MANIFEST.json").read_text())
    plain["files"] = manifest({file.name: file})
    Path("latents/MANIFEST.json").write_text(json.dumps(plain))


def test_what_cannot_be_trained_on_is_refused_before_it_starts(pictures: Path, capfd) -> None:
    def refused(line: str, fault: str, code: int = 1) -> None:
        assert command(f"train pictures {TRAIN} --out refused {line}") == code
        assert fault in " ".join(capfd.readouterr().err.split())
        assert not list(Path("refused").glob("checkpoints")) and not Path("refused/metrics.jsonl").exists()
        shutil.rmtree("refused", ignore_errors=True)

    assert command(f"data encode data --autoencoder kl --out latents {SIZE}") == 0
    save_kl(Path("other"), seed=1)
    save_kl(
        Path("eight"),
        block_out_channels=(8,) * 6,
        down_block_types=("DownEncoderBlock2D",) * 6,
        up_block_types=("UpDecoderBlock2D",) * 6,
    )
    refused("--data latents", "this model learns 'image' without one")
    refused("--data latents --autoencoder other", "this model has autoencoder")
    refused("--data data --autoencoder eight", "smaller than one latent", 2)
    refused("--data data --autoencoder kl --model.modalities.0.shape 15 15 --model.modalities.0.patch 5 5", "multiple of 2", 2)
    refused("--data data --autoencoder kl --model.modalities.0.channels 1", "its autoencoder takes 3", 2)
    refused("--data data --autoencoder nothing", "no folder nothing")
    refused("--data data --autoencoder-digest 0123", "give it with --autoencoder", 2)
    refused("--data data --autoencoder kl --autoencoder-digest 0123", "the run wants 0123", 2)
    refused("--data latents --autoencoder kl --model.modalities.0.shape 32 32", "was encoded from pictures of (16, 16)")
    shutil.copytree("kl", "infinite")
    broken = load_file("kl/diffusion_pytorch_model.safetensors")
    broken["encoder.conv_in.bias"][:] = torch.nan
    save_file(broken, "infinite/diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    refused("--data data --autoencoder infinite", "NaN or infinity")
    assert command(f"data encode data --autoencoder infinite --out never {SIZE}") == 1
    assert "NaN or infinity" in capfd.readouterr().err

    whole = Path("latents/train-00000.safetensors").read_bytes()
    for content, fault in ((None, "missing or cannot be read"), (whole[:-1], "is damaged"), (b"", "is damaged")):
        spoil("train-00000.safetensors", content)
        refused("--data latents --autoencoder kl", fault)
    spoil("train-00000.safetensors", whole)
    not_finite()
    refused("--data latents --autoencoder kl", "NaN or infinity")


def test_another_autoencoder_under_the_same_name_does_not_resume_a_run(pictures: Path, capfd) -> None:
    line = f"train pictures --data data --autoencoder kl {TRAIN} --out run"
    assert command(line) == 0
    shutil.rmtree("kl")
    save_kl(Path("kl"), seed=1)
    capfd.readouterr()
    assert command(line) == 2
    assert "autoencoder_digest: was" in capfd.readouterr().err
    shutil.move("run/model/autoencoders/image", "kept")
    assert command(line.replace("kl", "kept")) == 0  # the place may change


def test_a_model_folder_refuses_an_autoencoder_that_is_not_its_own(pictures: Path) -> None:
    assert command(f"train pictures --data data --autoencoder kl {TRAIN} --out run") == 0
    save_kl(Path("other"), seed=1)
    place = Path("run/model/autoencoders/image")
    prompt = Document((Text("caption 1"),))
    before = Transfusion.from_pretrained("run").generate(prompt, force="image", seed=1)[0].media[0].tensor()
    shutil.rmtree(place)
    with pytest.raises(ValueError, match="holds no autoencoder"):
        Transfusion.from_pretrained("run")
    load_autoencoder("other").save(place)
    with pytest.raises(ValueError, match="not with autoencoder"):
        Transfusion.from_pretrained("run")
    again = Transfusion.from_pretrained("run", autoencoder=load_autoencoder("kl"))
    assert torch.equal(again.generate(prompt, force="image", seed=1)[0].media[0].tensor(), before)


def test_a_run_goes_on_with_the_autoencoder_of_the_weights_that_it_starts_from(pictures: Path, capfd) -> None:
    assert command(f"train pictures --data data --autoencoder kl {TRAIN} --out first") == 0
    line = f"train pictures --data data --init first {TRAIN}"
    assert command(f"{line} --out second") == 0
    run = from_yaml(Run, Path("second/run.yaml").read_text())
    assert run.autoencoder_digest == load_autoencoder("kl").digest and Path(run.autoencoder).is_dir()
    assert Transfusion.from_pretrained("second").codecs.digests == {"image": run.autoencoder_digest}
    capfd.readouterr()
    assert command(f"{line} --out pixels --autoencoder none") == 0
    assert "learned latents of other autoencoders" in capfd.readouterr().out
    assert not Transfusion.from_pretrained("pixels").codecs.digests
