"""The discriminator of patches: scores, their losses, one picture apart from the others."""

import pytest
import torch

from transfusion.codec.discriminator import Discriminator, DiscriminatorConfig, discriminator_loss, generator_loss


def test_scores_of_patches() -> None:
    config = DiscriminatorConfig(width=4, layers=2)
    discriminator = Discriminator(config, 3)
    items = torch.randn(2, 3, 32, 32)
    scores = discriminator(items)
    assert scores.shape == (2, 6, 6)
    torch.testing.assert_close(discriminator(items[1:]), scores[1:])


def test_hinges() -> None:
    real, made = torch.tensor([[[2.0, 0.5]], [[-1.0, 1.0]]]), torch.tensor([[[-2.0, 0.0]], [[-1.0, 1.0]]])
    assert discriminator_loss(real, made).tolist() == [0.375, 1.0]  # (0.25 + 0.5) / 2, (1 + 1) / 2
    assert generator_loss(made).tolist() == [1.0, 0.0]


def test_sizes_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="1 to 8 layers"):
        DiscriminatorConfig(layers=0)
    with pytest.raises(ValueError, match="at least 32 pixels a side, not 31"):
        DiscriminatorConfig(layers=3).check(31)
    DiscriminatorConfig(layers=3).check(32)
