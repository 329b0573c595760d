# ruff: noqa: C408
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false
"""The usage blocks of transfusion-pytorch's README, with only the import's name changed (and `.cuda()` removed)."""

import pytest
import torch
from torch import nn, randint, randn

from transfusion.compat import Transfusion, print_modality_sample

pytestmark = pytest.mark.slow  # the README's widths and lengths: 3 to 8 s each


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch, unchecked) -> None:
    """The models are as printed; what is drawn from them is not drawn to the end, which would take minutes (2,048 tokens each)."""
    whole = Transfusion.sample
    monkeypatch.setattr(
        Transfusion, "sample", lambda self, *a, **kw: whole(self, *a, **{"max_length": 48, "modality_steps": 2} | kw)
    )


@pytest.mark.slow
def test_readme_one_modality() -> None:
    model = Transfusion(
        num_text_tokens=256,
        dim_latent=384,
        modality_default_shape=(4,),  # fallback, in the case the language model did not produce a valid modality shape
        transformer=dict(dim=512, depth=8),
    )

    # any torch.long is text, torch.float is modalities

    text_and_images = [
        [randint(0, 256, (16,)), randn(4, 384), randint(0, 256, (8,)), randn(6, 384)],
        [randint(0, 256, (16,)), randn(7, 384), randint(0, 256, (5,)), randn(2, 384), randint(0, 256, (9,))],
    ]

    loss = model(text_and_images)

    loss.backward()

    # after much training

    one_multimodal_sample = model.sample()

    assert loss.shape == () and torch.isfinite(loss)
    assert all(p.grad is not None for p in model.parameters())
    assert isinstance(one_multimodal_sample, list)
    for entry in one_multimodal_sample:
        if isinstance(entry, torch.Tensor):
            assert entry.dtype == torch.int64 and entry.min() >= 0 and entry.max() < len(model.vocabulary)
        else:
            assert entry.modality_type == 0 and entry.tensor.shape[-1] == 384


@pytest.mark.slow
def test_readme_several_modalities() -> None:
    model = Transfusion(
        num_text_tokens=256,
        dim_latent=(384, 192),  # specify multiple latent dimensions
        modality_default_shape=((4,), (2,)),  # default shapes for first and second modality
        transformer=dict(dim=512, depth=8),
    )

    # then for the Tensors of type float, you can pass a tuple[int, Tensor] and specify the modality index in the first position

    # any torch.long is text, torch.float is modalities

    text_images_and_audio = [
        [randint(0, 256, (16,)), (0, randn(4, 384)), randint(0, 256, (8,)), (1, randn(6, 192))],
        [randint(0, 256, (16,)), randn(7, 384), randint(0, 256, (5,)), (1, randn(2, 192)), randint(0, 256, (9,))],
    ]

    loss = model(text_images_and_audio)

    loss.backward()

    # after much training

    one_multimodal_sample = model.sample()

    assert torch.isfinite(loss) and isinstance(one_multimodal_sample, list)
    forced = model.sample(force_modality_at_start=(1, (32,)), max_length=48)
    assert forced[1].modality_type == 1 and forced[1].tensor.shape == (32, 192)


@pytest.mark.slow
def test_readme_encoder_and_decoder() -> None:
    mock_encoder = nn.Conv2d(3, 384, 3, padding=1)
    mock_decoder = nn.Conv2d(384, 3, 3, padding=1)

    model = Transfusion(
        num_text_tokens=12,
        dim_latent=384,
        channel_first_latent=True,
        modality_default_shape=(4, 4),
        modality_encoder=mock_encoder,
        modality_decoder=mock_decoder,
        transformer=dict(dim=512, depth=8),
    )

    text_and_images = [
        [
            randint(0, 12, (16,)),  # 16 text tokens
            randn(3, 8, 8),  # (8 x 8) 3 channeled image
            randint(0, 12, (8,)),  # 8 text tokens
            randn(3, 7, 7),  # (7 x 7) 3 channeled image
        ],
        [
            randint(0, 12, (16,)),  # 16 text tokens
            randn(3, 8, 5),  # (8 x 5) 3 channeled image
            randint(0, 12, (5,)),  # 5 text tokens
            randn(3, 2, 16),  # (2 x 16) 3 channeled image
            randint(0, 12, (9,)),  # 9 text tokens
        ],
    ]

    loss = model(text_and_images)

    loss.backward()

    # after much training

    one_multimodal_sample = model.sample()

    print_modality_sample(one_multimodal_sample)

    assert torch.isfinite(loss)
    assert all(p.grad is None for p in (*mock_encoder.parameters(), *mock_decoder.parameters()))
    image = model.sample(force_modality_at_start=0, max_length=48)[1].tensor
    assert image.shape == (3, 4, 4)
    latents = model.sample(force_modality_at_start=0, max_length=48, return_unprocessed_modalities=True)[1].tensor
    assert latents.shape == (384, 4, 4)


@pytest.mark.slow
def test_readme_language_first() -> None:
    model = Transfusion(
        num_text_tokens=256,
        dim_latent=384,
        transformer=dict(
            dim=512,
            depth=8,
        ),
    )

    text = torch.randint(0, 256, (2, 1024))

    loss = model(text)
    loss.backward()

    # after much training

    sampled = model.generate_text_only(text[:, :1], 24)  # 1024 in the README

    assert torch.isfinite(loss) and sampled.shape == (2, 23) and sampled.max() < 256 and sampled.min() >= 0
