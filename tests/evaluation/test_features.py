"""Extractors with random weights, made on the spot, against the libraries that they stand on."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from transfusion.data.media import to_image
from transfusion.evaluation.distance import frechet
from transfusion.evaluation.features import ClipScore, InceptionFeatures


@pytest.fixture(scope="module")
def inception(tmp_path_factory: pytest.TempPathFactory) -> InceptionFeatures:
    """With random weights that keep the variance, so that its features differ between images."""
    import torch_fidelity.feature_extractor_inceptionv3 as fidelity

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fidelity, "load_state_dict_from_url", lambda *a, **k: {})
        patch.setattr(nn.Module, "load_state_dict", lambda *a, **k: None)
        network = fidelity.FeatureExtractorInceptionV3("x", ["2048"])
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)
    torch.save(network.state_dict(), path)
    return InceptionFeatures(path)


@pytest.mark.slow
def test_inception_features_agree_with_torchmetrics(inception: InceptionFeatures) -> None:
    from torchmetrics.image.fid import FrechetInceptionDistance

    class Bytes(nn.Module):
        """The first 256 features: torchmetrics takes some 20 seconds for the distance of all 2,048."""

        num_features = 256

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return inception._network(x)[0][:, :256]

    images = torch.rand(2, 3, 3, 20, 24) * torch.tensor([2.0, 1.2]).view(2, 1, 1, 1, 1) - 1
    a, b = (inception(some) for some in images)
    assert a.shape == (3, 2048) and a.std() > 0
    other = FrechetInceptionDistance(feature=Bytes())
    other.set_dtype(torch.float64)
    for some, real in zip(images, (True, False), strict=True):
        other.update(((some + 1) * 127.5).round().to(torch.uint8), real=real)
    assert frechet(a[:, :256], b[:, :256]) == pytest.approx(other.compute().item(), rel=1e-4)


@pytest.mark.slow
def test_grey_images_are_three_equal_channels(inception: InceptionFeatures) -> None:
    grey = torch.rand(2, 1, 16, 16) * 2 - 1
    assert torch.equal(inception(grey), inception(grey.expand(-1, 3, -1, -1)))
    assert len(inception.digest) == 12 and inception.name == "inception-v3"


@pytest.mark.slow
def test_weights_that_are_none_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give the path"):
        InceptionFeatures(tmp_path / "none.pth")
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    (tmp_path / "text.pth").write_text("no weights")
    for name in ("other", "text"):
        with pytest.raises(ValueError, match=f"{name}.pth holds no weights"):
            InceptionFeatures(tmp_path / f"{name}.pth")
    with pytest.raises(ValueError, match="give a folder"):
        ClipScore(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="holds no CLIP model"):
        ClipScore(tmp_path)


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP of a few thousand weights, with a tokenizer of letters."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("clip")
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{c}</w>" for c in letters)]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    small: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = small | {
        "vocab_size": len(words),
        "max_position_embeddings": 12,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 1,
    }
    config = CLIPConfig(text_config=text, vision_config=small | {"image_size": 16, "patch_size": 4}, projection_dim=8)
    model = CLIPModel(config)
    for p in model.parameters():
        nn.init.normal_(p, std=0.5)
    model.save_pretrained(folder)
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    images = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    CLIPProcessor(images, tokenizer).save_pretrained(folder)
    return folder


def test_clip_scores_as_transformers_does(clip_folder: Path) -> None:
    from transformers import CLIPModel, CLIPProcessor

    clip = ClipScore(clip_folder)
    images = torch.rand(40, 1, 20, 18) * 2 - 1
    captions = ["a cat" if i % 3 else "a red dog" for i in range(40)]
    model: Any = CLIPModel.from_pretrained(clip_folder)
    processor: Any = CLIPProcessor.from_pretrained(clip_folder)
    converted = [to_image(image).convert("RGB") for image in images]
    given = processor(text=captions, images=converted, return_tensors="pt", padding=True)
    with torch.no_grad():
        out = model(**given)
    cosines = (out.image_embeds * out.text_embeds).sum(-1)
    assert torch.allclose(clip.score(images, captions), 100 * cosines.clamp(min=0), atol=1e-3)
    assert cosines.std() > 1e-3
    assert torch.allclose(clip(images), out.image_embeds, atol=1e-5)
    assert clip.digest == ClipScore(clip_folder).digest and len(clip.digest) == 12


def test_clip_truncates_long_captions(clip_folder: Path) -> None:
    clip = ClipScore(clip_folder)
    assert torch.equal(clip.captions(["abcdefghijklmnop"]), clip.captions(["abcdefghijklmnop and more"]))


@pytest.mark.parametrize(
    ("images", "message"),
    [(torch.zeros(2, 2, 8, 8), "1 or 3"), (torch.zeros(1, 8, 8), "1 or 3"), (torch.full((1, 3, 8, 8), torch.nan), "NaN")],
)
def test_images_that_cannot_be_seen_are_refused(
    inception: InceptionFeatures, clip_folder: Path, images: torch.Tensor, message: str
) -> None:
    for extractor in (inception, ClipScore(clip_folder)):
        with pytest.raises(ValueError, match=message):
            extractor(images)
    with pytest.raises(ValueError, match="each image its caption"):
        ClipScore(clip_folder).score(torch.zeros(2, 3, 8, 8), ["a"])
