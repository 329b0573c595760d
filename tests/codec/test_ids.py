"""The ids of an autoencoder with a codebook as latents."""

from pathlib import Path

import pytest
import torch

from transfusion.codec.autoencoders import load_autoencoder
from transfusion.codec.codes import Codes
from transfusion.codec.convolutions import ConvolutionsConfig
from transfusion.codec.vae import VAEConfig
from transfusion.codec.vq import VQ, VQConfig

SMALL = ConvolutionsConfig(patch=2, widths=(8, 16), blocks=1, groups=4)


def vq() -> VQ:
    torch.manual_seed(0)
    model = VQConfig(SMALL, num_codes=12, code_channels=3).build()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return model


def test_latents_are_ids_and_come_back_as_pictures(tmp_path: Path) -> None:
    inner = vq()
    codes, items = Codes.of(inner), torch.rand(3, 3, 8, 12) * 2 - 1
    latents = codes.encode(items)
    assert codes.latent_shape((8, 12)) == (1, 2, 3) and latents.shape == (3, 1, 2, 3) and codes.num_codes == 12
    assert torch.equal(latents[:, 0].long(), inner.ids(items)) and len(latents.unique()) > 1
    assert torch.equal(codes.decode(latents), inner.pixels(latents[:, 0].long()))
    codes.save(tmp_path)
    again = load_autoencoder(tmp_path)
    assert isinstance(again, Codes) and again.digest == codes.digest != inner.digest
    assert torch.equal(again.encode(items), latents) and Codes.of(again) is again


def test_large_pictures_have_no_ids_between_two() -> None:
    """Tiles are blended where they overlap; ids are not."""
    codes = Codes.of(vq())
    codes.tile = 8
    latents = codes.encode(torch.rand(1, 3, 24, 40) * 2 - 1)
    assert torch.equal(latents, latents.round()) and latents.max() < 12


def test_what_has_no_codebook_is_refused() -> None:
    with pytest.raises(ValueError, match="transfusion train vq"):
        Codes.of(VAEConfig(SMALL, latent_channels=3).build())
    with pytest.raises(ValueError, match="this codebook has 12 codes"):
        Codes.of(vq()).decode(torch.full((1, 1, 2, 2), 12.0))
