"""Encoder and decoder: sizes, the identity at the start, independence of the rest of the batch, the paper's size."""

import pytest
import torch

from transfusion.codec.convolutions import ConvolutionsConfig, Decoder, Encoder, Residual, encoder_and_decoder
from transfusion.nn.unet import GridAttention

PAPER = ConvolutionsConfig(patch=1, widths=(128, 256, 512, 512), blocks=2, middle=2, attention=2, groups=32, shortcut=False)


def spread(module: torch.nn.Module) -> None:
    """Weights of any kind, the zeros at the start too."""
    for p in module.parameters():
        torch.nn.init.normal_(p, std=0.1)


@pytest.mark.parametrize(
    ("config", "grid"),
    [
        (ConvolutionsConfig(patch=4, widths=(16,), blocks=1), (3, 5)),
        (ConvolutionsConfig(channels=1, patch=1, widths=(8, 16, 8), blocks=1, middle=1, attention=1, heads=2), (3, 5)),
        (ConvolutionsConfig(patch=3, widths=(6, 4), blocks=2, attention=1, groups=2), (2, 3)),
        (ConvolutionsConfig(patch=2, widths=(8,), blocks=1, groups=0, shortcut=False), (1, 1)),
    ],
)
def test_there_and_back(config: ConvolutionsConfig, grid: tuple[int, int]) -> None:
    """Pictures of any shape whose sides are multiples of the reduction; a picture's result does not depend on its neighbours."""
    encoder, decoder = Encoder(config, 5), Decoder(config, 5)
    spread(encoder)
    spread(decoder)
    size = tuple(config.reduction * side for side in grid)
    items = torch.randn(3, config.channels, *size)
    with torch.no_grad():
        check(encoder, decoder, items, (3, 5, *grid))


def check(encoder: Encoder, decoder: Decoder, items: torch.Tensor, shape: tuple[int, ...]) -> None:
    features = encoder(items)
    assert features.shape == shape
    drawn = decoder(features)
    assert drawn.shape == items.shape and drawn.std() > 0
    alone = decoder(encoder(items[1:2]))
    torch.testing.assert_close(alone, drawn[1:2], rtol=1e-4, atol=1e-5 * float(drawn.abs().max()))


def test_a_block_starts_as_the_identity() -> None:
    x = torch.randn(2, 8, 4, 4)
    assert torch.equal(Residual(8, 8, 4)(x), x)
    block = Residual(8, 8, 4)
    spread(block)
    assert (block(x) - x).abs().max() > 0.1


@pytest.mark.parametrize("latents", [4, 12, 20])
def test_shortcuts_begin_as_a_projection(latents: int) -> None:
    """Of blocks of 2 x 2 pixels in colour, 12 numbers: with as many latents or more, nothing is lost."""
    config = ConvolutionsConfig(patch=2, widths=(8,), blocks=1)
    encoder, decoder = encoder_and_decoder(config, features=2 * latents, latents=latents)
    items = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        features = encoder(items)
        drawn = decoder(features[:, :latents])
        again = decoder(encoder(drawn)[:, :latents])
    assert features[:, latents:].abs().max() == 0
    torch.testing.assert_close(again, drawn, rtol=1e-4, atol=1e-5)
    error = (drawn - items).abs().max()
    assert error < 1e-5 if latents >= 12 else error > 0.1


def test_attention_stands_nearest_to_the_latents() -> None:
    config = ConvolutionsConfig(patch=2, widths=(8, 16), blocks=1, middle=2, attention=2)
    kinds = ["A" if isinstance(m, GridAttention) else "R" if isinstance(m, Residual) else "" for m in Encoder(config, 4).layers]
    assert "".join(kinds).endswith("RARAR")
    kinds = ["A" if isinstance(m, GridAttention) else "R" if isinstance(m, Residual) else "" for m in Decoder(config, 4).layers]
    assert "".join(kinds).startswith("RARAR")


def test_the_papers_size() -> None:
    """86M parameters with 8 latent channels at reduction 8 (the encoder gives mean and variance of each)."""
    with torch.device("meta"):
        modules = Encoder(PAPER, 16), Decoder(PAPER, 8)
    assert PAPER.reduction == 8
    assert sum(p.numel() for m in modules for p in m.parameters()) == 85_812_371


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"channels": 2}, "1 or 3 channels"),
        ({"patch": 0}, "patch must be"),
        ({"widths": ()}, "widths are 1 to 8"),
        ({"widths": (12,), "groups": 8}, "multiples of groups"),
        ({"blocks": 0}, "blocks must be"),
        ({"blocks": 2, "attention": 2}, "as many blocks and one more"),
        ({"blocks": 2, "attention": 1, "heads": 3}, "the heads divide"),
    ],
)
def test_sizes_that_cannot_be(words: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ConvolutionsConfig(**words)
