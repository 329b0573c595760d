"""The two autoencoders that are trained here: posteriors, codes and ids, folders, and the paper's sizes."""

import math
from pathlib import Path

import pytest
import torch

from transfusion.codec.autoencoder import Autoencoder
from transfusion.codec.autoencoders import load_autoencoder
from transfusion.codec.convolutions import ConvolutionsConfig
from transfusion.codec.vae import START, VAE, Posterior, VAEConfig
from transfusion.codec.vq import VQ, VQConfig
from transfusion.files import read_json
from transfusion.run.autoencoder import PRESETS

SMALL = ConvolutionsConfig(patch=2, widths=(8, 16), blocks=1, groups=4)


def vae() -> VAE:
    return spread(VAEConfig(SMALL, latent_channels=3).build())


def vq() -> VQ:
    return spread(VQConfig(SMALL, num_codes=12, code_channels=3).build())


def spread(model):
    """Weights of any kind, the zeros at the start too."""
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return model


@pytest.mark.parametrize("make", [vae, vq])
def test_a_folder_gives_the_same_autoencoder(make, tmp_path: Path) -> None:
    model: Autoencoder = make()
    items = torch.rand(4, 3, 8, 12) * 2 - 1
    model.measure([items[:2], items[2:]])
    model.save(tmp_path)
    again = load_autoencoder(tmp_path)
    assert type(again) is type(model) and again.settings == model.settings and again.digest == model.digest
    assert read_json(tmp_path / "config.json")["kind"] == model.settings.kind  # type: ignore[union-attr]
    latents = model.encode(items)
    assert latents.shape == (4, 3, 2, 3) and torch.equal(again.encode(items), latents)
    assert torch.equal(again.decode(latents), model.decode(latents))
    torch.testing.assert_close(latents.mean((0, 2, 3)), torch.zeros(3), rtol=0, atol=1e-5)
    assert again.latent_shape((8, 12)) == (3, 2, 3)


def test_a_posteriors_nats_are_those_of_torch() -> None:
    mean, log_variance = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    posterior = Posterior(mean, log_variance)
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(normal(mean, (log_variance / 2).exp()), normal(0.0, 1.0)).sum((1, 2, 3))
    torch.testing.assert_close(posterior.nats(), expected)
    noise = torch.randn(mean.shape)
    torch.testing.assert_close((posterior.sample(noise) - mean) / noise, (log_variance / 2).exp(), rtol=1e-4, atol=1e-4)
    assert torch.equal(Posterior(torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 1)).nats(), torch.zeros(1))


def test_a_new_vae_shows_pictures_from_the_first_step_on() -> None:
    model, items = VAEConfig(SMALL, latent_channels=48).build(), torch.rand(2, 3, 8, 8) * 2 - 1
    posterior = model.posterior(items)
    assert (posterior.log_variance == START).all()
    torch.testing.assert_close(model.to_items(posterior.mean), items, rtol=1e-4, atol=1e-4)


def test_latents_of_a_vae_are_the_mean() -> None:
    model, items = vae(), torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(model.encode(items), model.posterior(items).mean.detach())


def test_ids_are_the_nearest_codes() -> None:
    model, items = vq(), torch.rand(5, 3, 8, 8) * 2 - 1
    ids = model.ids(items)
    assert ids.shape == (5, 2, 2) and ids.dtype == torch.int64 and model.bits == math.log2(12)
    features = model.features(items).detach().movedim(1, -1)
    assert torch.equal(ids, torch.cdist(features.flatten(0, 2), model.codebook.weight.detach()).argmin(1).reshape(ids.shape))


def test_pictures_of_ids_are_those_of_latents() -> None:
    """Whatever the latents' normalisation, and for latents near codes too."""
    model, items = vq(), torch.rand(5, 3, 8, 8) * 2 - 1
    ids = model.ids(items)
    drawn = model.pixels(ids)
    model.measure([items])
    latents = model.encode(items)
    torch.testing.assert_close(model.decode(latents), drawn, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model.decode(latents + 1e-4 * torch.randn(latents.shape)), drawn, rtol=1e-4, atol=1e-4)
    assert torch.equal(model.ids(items), ids)


def test_the_gradient_passes_the_choice_of_codes() -> None:
    model = vq()
    features = torch.randn(1, 3, 2, 2, requires_grad=True)
    model.quantized(features).square().sum().backward()
    torch.testing.assert_close(features.grad, 2 * model.quantized(features).detach())
    assert model.codebook.weight.grad is None


def test_bad_pictures_and_ids() -> None:
    model = vq()
    with pytest.raises(ValueError, match=r"pictures are \(item, 3 channels, height, width\)"):
        model.ids(torch.zeros(1, 1, 8, 8))
    with pytest.raises(ValueError, match="multiple of 4"):
        model.ids(torch.zeros(1, 3, 8, 10))
    with pytest.raises(ValueError, match="ids from 0 to 12: this codebook has 12 codes"):
        model.pixels(torch.tensor([[[0, 12]]]))
    for words in ({"num_codes": 1}, {"code_channels": 0}):
        with pytest.raises(ValueError, match="num_codes must be"):
            VQConfig(**words)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="latent_channels must be"):
        VAEConfig(latent_channels=0)


def test_a_codebook_of_another_size_is_refused(tmp_path: Path) -> None:
    vq().save(tmp_path)
    text = (tmp_path / "config.json").read_text().replace('"num_codes": 12', '"num_codes": 13')
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match="not as its MANIFEST"):
        load_autoencoder(tmp_path)


def test_the_papers_sizes() -> None:
    """86M parameters with 8 latent channels at reduction 8; a VQ has its codebook more, and half the encoder's last layer."""
    paper = PRESETS["paper"]
    with torch.device("meta"):
        one, other = paper("vae").model.build(), paper("vq").model.build()
    count = [sum(p.numel() for p in model.parameters()) for model in (one, other)]
    assert round(count[0] / 1e6) == 86 and one.latent_shape((256, 256)) == (8, 32, 32)
    assert count[1] - count[0] == 16_384 * 8 - 8 * (512 * 9 + 1) and other.latent_shape((256, 256)) == (8, 32, 32)
