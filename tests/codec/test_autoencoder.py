"""Autoencoders: normalised, frozen, of one digest; written, read back and refused; diffusers' own among them."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from small import Unshuffle
from transfusion.codec.autoencoder import Autoencoder
from transfusion.codec.autoencoders import load_autoencoder
from transfusion.codec.diffusers_autoencoder import DiffusersAutoencoder, DiffusersSettings

diffusers = pytest.importorskip("diffusers")


def kl(**options: object) -> object:
    torch.manual_seed(0)
    sizes = {"block_out_channels": (16, 16), "norm_num_groups": 4, "latent_channels": 4, "sample_size": 32}
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    return diffusers.AutoencoderKL(**(sizes | blocks | options))  # type: ignore[arg-type]


def tiny() -> object:
    torch.manual_seed(0)
    widths = {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8)}
    return diffusers.AutoencoderTiny(**widths, num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1))


def dc() -> object:
    torch.manual_seed(0)
    options: dict[str, object] = {"latent_channels": 8, "attention_head_dim": 8}
    for side in ("encoder", "decoder"):
        options |= {f"{side}_block_out_channels": (8, 16), f"{side}_block_types": "ResBlock"}
        options |= {f"{side}_layers_per_block": (1, 1), f"{side}_qkv_multiscales": ((), ())}
    return diffusers.AutoencoderDC(**options)  # type: ignore[arg-type]


def pictures(*shape: int) -> Tensor:
    return torch.rand(shape or (3, 3, 16, 16), generator=torch.Generator().manual_seed(0)) * 2 - 1


def saved(model: object, folder: Path) -> Path:
    model.save_pretrained(folder)  # type: ignore[attr-defined]
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An autoencoder with measured normalisation, in this library's form."""
    autoencoder = DiffusersAutoencoder(DiffusersSettings(config=dict(kl().config)), kl())  # type: ignore[attr-defined]
    autoencoder.measure([pictures()])
    autoencoder.save(tmp_path / "vae")
    return tmp_path / "vae"


def test_latents_are_normalised_by_what_was_measured_and_decoding_undoes_it() -> None:
    autoencoder = Unshuffle()
    items = pictures(20, 1, 8, 8) * torch.tensor([0.2, 1.0]).repeat(4) + 0.3
    autoencoder.measure(items.split(7))
    latents = autoencoder.encode(items)
    assert latents.shape == (20, 4, 4, 4) and autoencoder.latent_shape((8, 8)) == (4, 4, 4)
    assert latents.mean((0, 2, 3)).abs().max() < 1e-6 and (latents.std((0, 2, 3), correction=0) - 1).abs().max() < 1e-5
    assert autoencoder.bound == pytest.approx(float(latents.abs().max()), rel=1e-6)
    assert (autoencoder.decode(latents) - items).abs().max() < 2e-6  # measured: 6e-7


def test_it_is_frozen_in_use_and_its_digest_says_what_it_is() -> None:
    autoencoder, other = Unshuffle(), Unshuffle()
    assert autoencoder.digest == other.digest != Unshuffle(seed=1).digest
    other.measure([pictures(20, 1, 8, 8)])
    assert autoencoder.digest != other.digest
    autoencoder.freeze().train()
    assert not autoencoder.training and not any(p.requires_grad for p in autoencoder.parameters())
    latents = autoencoder.encode(pictures(1, 1, 4, 4)).requires_grad_()
    assert not autoencoder.decode(latents).requires_grad and autoencoder.reconstruct(latents).requires_grad
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(autoencoder.encode(pictures(1, 1, 4, 4)), latents)


@pytest.mark.parametrize(
    ("shape", "fault"),
    [((1, 1, 6, 9), "multiple of 2"), ((1, 1, 1, 8), "smaller than one latent"), ((1, 3, 8, 8), "1 channels")],
)
def test_items_that_do_not_fit_are_refused(shape: tuple[int, ...], fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        Unshuffle().encode(pictures(*shape))
    with pytest.raises(ValueError, match="channels"):
        Unshuffle().decode(pictures(1, 3, 8, 8))
    with pytest.raises(ValueError, match="give items"):
        Unshuffle().measure([])
    with pytest.raises(ValueError, match="at least 1"):
        Unshuffle(reduction=0)


def test_one_of_the_users_own_is_used_but_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="from_pretrained"):
        Unshuffle().save(tmp_path)

    class Wrong(Unshuffle):
        def to_latents(self, items: Tensor) -> Tensor:
            return items

    with pytest.raises(ValueError, match="states"):
        Wrong().encode(pictures(1, 1, 8, 8))


@pytest.mark.parametrize("make", [kl, tiny, dc])
def test_diffusers_autoencoders_are_read_as_diffusers_wrote_them(make: Callable[[], object], tmp_path: Path) -> None:
    model = make()
    autoencoder = load_autoencoder(saved(model, tmp_path / "theirs"))
    items = pictures()
    with torch.no_grad():
        encoded = model.encode(items)  # type: ignore[attr-defined]
        raw = encoded.latent_dist.mean if hasattr(encoded, "latent_dist") else encoded[0]
        decoded = model.decode(raw).sample  # type: ignore[attr-defined]
    latents = autoencoder.encode(items)
    assert latents.shape == (3, *autoencoder.latent_shape((16, 16)))
    assert (latents - raw * model.config.scaling_factor).abs().max() < 1e-6  # type: ignore[attr-defined]
    assert (autoencoder.decode(latents) - decoded).abs().max() < 1e-5
    assert autoencoder.bound is None and not any(p.requires_grad for p in autoencoder.parameters())
    assert autoencoder.encode(pictures(1, 3, 8, 24)).shape == (1, *autoencoder.latent_shape((8, 24)))  # any size

    autoencoder.save(tmp_path / "ours")
    again = load_autoencoder(tmp_path / "ours")
    assert again.digest == autoencoder.digest and torch.equal(again.encode(items), latents)


def test_factors_of_a_diffusers_config_normalise_until_it_is_measured(folder: Path, tmp_path: Path) -> None:
    plain = load_autoencoder(saved(kl(), tmp_path / "a")).encode(pictures()) / 0.18215
    shifted = load_autoencoder(saved(kl(shift_factor=0.5, scaling_factor=2.0), tmp_path / "b"))
    assert (shifted.encode(pictures()) - (plain - 0.5) * 2).abs().max() < 1e-5
    mean, std = [0.1, 0.2, 0.3, 0.4], [1.0, 2.0, 3.0, 4.0]
    by_channel = load_autoencoder(saved(kl(latents_mean=mean, latents_std=std, scaling_factor=1.0), tmp_path / "c"))
    wanted = (plain - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    assert (by_channel.encode(pictures()) - wanted).abs().max() < 1e-5

    measured = load_autoencoder(folder)
    latents = measured.encode(pictures())
    assert latents.mean((0, 2, 3)).abs().max() < 1e-4 and measured.bound == pytest.approx(float(latents.abs().max()), rel=1e-4)


def test_items_larger_than_a_tile_are_worked_on_in_tiles() -> None:
    exact = Unshuffle()
    exact.tile = 8
    large = pictures(2, 1, 12, 20)
    assert (exact.encode(large) - Unshuffle().encode(large)).abs().max() < 1e-6  # squares of pixels know no neighbours
    assert (exact.decode(exact.encode(large)) - large).abs().max() < 2e-6

    settings, model = DiffusersSettings(config=dict(kl().config)), kl()  # type: ignore[attr-defined]
    whole, tiled = DiffusersAutoencoder(settings, model), DiffusersAutoencoder(settings, model)
    tiled.tile = 16
    small, large = pictures(1, 3, 16, 16), pictures(1, 3, 16, 40)
    assert torch.equal(tiled.encode(small), whole.encode(small))
    latents = tiled.encode(large)
    assert latents.shape == (1, 4, 8, 20) and not torch.equal(latents, whole.encode(large))
    assert tiled.decode(latents).shape == large.shape
    assert torch.equal(tiled.encode(large[..., :16]), whole.encode(large[..., :16]))


def _drop(folder: Path, name: str) -> None:
    (folder / name).unlink()


def _damage(folder: Path, name: str) -> None:
    content = bytearray((folder / name).read_bytes())
    content[-1] ^= 1
    (folder / name).write_bytes(bytes(content))


def _rewrite(folder: Path, **changed: object) -> None:
    plain = json.loads((folder / "config.json").read_text()) | changed
    (folder / "config.json").write_text(json.dumps(plain))


def _other_weights(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file({name: w for name, w in weights.items() if "conv_in" not in name}, folder / "model.safetensors")


def _trust(folder: Path) -> None:
    """A manifest that says of the files what they are."""
    from transfusion.files import manifest

    files = manifest({name: folder / name for name in ("config.json", "model.safetensors")})
    (folder / "MANIFEST.json").write_text(json.dumps({"files": files}))


@pytest.mark.parametrize(
    ("spoil", "fault"),
    [
        (lambda f: _drop(f, "model.safetensors"), "model.safetensors is missing"),
        (lambda f: _drop(f, "config.json"), "no autoencoder in"),
        (lambda f: _drop(f, "MANIFEST.json"), "MANIFEST.json"),
        (lambda f: _damage(f, "model.safetensors"), "damaged"),
        (lambda f: (f / "config.json").write_text("{"), "cannot read"),
        (lambda f: (f / "config.json").write_text("[]"), "no settings"),
        (lambda f: (f / "config.json").write_text("{}"), "names no kind"),
        (lambda f: _rewrite(f, format=99), "another format"),
        (lambda f: (_rewrite(f, kind="vea"), _trust(f)), "no 'vea'"),
        (lambda f: (_rewrite(f, name="UNet2DModel"), _trust(f)), "no 'UNet2DModel'"),
        (lambda f: (_rewrite(f, config={"block_out_channels": [10**9, 10**9]}), _trust(f)), "describes|describe"),
        (lambda f: (_other_weights(f), _trust(f)), "its weights are not those"),
    ],
)
def test_a_damaged_folder_is_refused_with_what_to_do(spoil: Callable[[Path], object], fault: str, folder: Path) -> None:
    spoil(folder)
    with pytest.raises(ValueError, match=fault):
        load_autoencoder(folder)


def test_what_is_no_autoencoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no folder"):
        load_autoencoder(tmp_path / "nothing")
    with pytest.raises(ValueError, match="no name on the Hugging Face hub"):
        load_autoencoder("hf://one")
    theirs = saved(kl(), tmp_path / "theirs")
    _rewrite(theirs, _class_name="UNet2DModel")
    with pytest.raises(ValueError, match="UNet2DModel' of diffusers; these are read"):
        load_autoencoder(theirs)
    _rewrite(theirs, _class_name="AutoencoderKL", latent_channels=5)
    with pytest.raises(ValueError, match="AutoencoderKL"):
        load_autoencoder(theirs)
    _rewrite(theirs, latent_channels=4)
    (theirs / "diffusion_pytorch_model.safetensors").unlink()
    torch.save(kl().state_dict(), theirs / "diffusion_pytorch_model.bin")  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="safetensors"):
        load_autoencoder(theirs)


def test_a_repository_on_the_hub_is_read_from_its_subfolder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(kl(), tmp_path / "vae")
    asked: list[object] = []

    def snapshot_download(repository: str, *, allow_patterns: list[str]) -> str:
        asked.append((repository, allow_patterns[0]))
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    autoencoder = load_autoencoder("hf://owner/model/vae")
    assert isinstance(autoencoder, Autoencoder) and asked == [("owner/model", "vae/config.json")]
