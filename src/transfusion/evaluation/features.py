"""Feature extractors with published weights, from local files: images Float[n, c, h, w] in [-1, 1] -> Float32[n, feature].

Nothing is downloaded. Distances compare only under the same weights, so each extractor has a digest of them.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from transfusion.data.media import to_image
from transfusion.evaluation import digest
from transfusion.modality import IMAGE_CHANNELS

BATCH = 32
"""Images per forward pass."""


class InceptionFeatures:
    """The last pooling layer of Inception v3, 2048 numbers: the features of published FID and KID.

    Images become uint8, grey ones three equal channels, and are resized to 299 x 299 as TensorFlow 1 did (torch-fidelity).

    Args:
        path: file with the weights, torch-fidelity's pt_inception (weights-inception-2015-12-05-6726825d.pth).
        device: device of the network.

    Raises:
        ValueError: torch-fidelity is not installed, or the file is missing or holds other weights.
    """

    name = "inception-v3"

    def __init__(self, path: str | Path, device: torch.device | str = "cpu") -> None:
        path = Path(path)
        if not path.is_file():
            raise ValueError(f"no Inception weights at {path}: give the path of weights-inception-2015-12-05-6726825d.pth")
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except ImportError as error:
            raise ValueError("Inception features need torch-fidelity: pip install 'transfusion-kit[eval]'") from error
        try:
            # refuses pickles with code, which the extractor itself would run
            torch.load(path, map_location="cpu", weights_only=True)
            self._network = FeatureExtractorInceptionV3(self.name, ["2048"], str(path)).to(device)
        except Exception as error:  # a file that is no pickle makes the unpickler raise nearly anything
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise ValueError(f"{path} holds no weights of torch-fidelity's Inception v3 ({reason})") from error
        self._device = device
        self.digest = digest.of_files([path])

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Float[n, 1 or 3, h, w] in [-1, 1] -> Float32[n, 2048]. Raises ValueError for other shapes, NaN or infinity."""
        _check(images)
        features = []
        for batch in images.split(BATCH):
            pixels = ((batch.to(self._device).float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
            features.append(self._network(pixels.expand(-1, 3, -1, -1))[0].cpu())
        return torch.cat(features)


class ClipScore:
    """Embeddings of images and captions in the joint space of a CLIP model.

    Args:
        path: folder with the model, its tokenizer and its preprocessor, in the layout of Hugging Face.
        device: device of the network.

    Raises:
        ValueError: transformers is not installed, or the folder holds no CLIP model.
    """

    def __init__(self, path: str | Path, device: torch.device | str = "cpu") -> None:
        path = Path(path)
        if not (path / "config.json").is_file():
            raise ValueError(f"no CLIP model in {path}: give a folder with config.json, weights, tokenizer and preprocessor")
        try:
            from transformers import CLIPModel, CLIPProcessor
        except ImportError as error:
            raise ValueError("CLIP needs transformers: pip install 'transfusion-kit[eval]'") from error
        try:
            self._network: Any = CLIPModel.from_pretrained(path, local_files_only=True).eval().to(device)  # type: ignore[arg-type]
            self._processor: Any = CLIPProcessor.from_pretrained(path, local_files_only=True)
        except (OSError, ValueError, RuntimeError) as error:
            raise ValueError(f"{path} holds no CLIP model that can be read ({error})") from error
        self._device = device
        self.digest = digest.of_files(f for f in path.iterdir() if f.suffix in (".safetensors", ".bin", ".json", ".txt"))

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Float[n, 1 or 3, h, w] in [-1, 1] -> Float32[n, feature] of length 1. Raises ValueError as `InceptionFeatures`."""
        _check(images)
        features = []
        for batch in images.split(BATCH):
            converted = [to_image(image).convert("RGB") for image in batch]
            inputs = self._processor(images=converted, return_tensors="pt").to(self._device)
            features.append(_embedding(self._network.get_image_features(**inputs)))
        return F.normalize(torch.cat(features), dim=-1).float().cpu()

    @torch.no_grad()
    def captions(self, captions: Sequence[str]) -> Tensor:
        """Float32[n, feature] of length 1; captions are cut to the model's length (77 tokens in published ones)."""
        features = []
        longest = self._network.config.text_config.max_position_embeddings
        for first in range(0, len(captions), BATCH):
            batch = list(captions[first : first + BATCH])
            inputs = self._processor(text=batch, return_tensors="pt", padding=True, truncation=True, max_length=longest)
            features.append(_embedding(self._network.get_text_features(**inputs.to(self._device))))
        return F.normalize(torch.cat(features), dim=-1).float().cpu()

    def score(self, images: Tensor, captions: Sequence[str]) -> Tensor:
        """CLIPScore of each image with its caption, Float32[n]: 100 max(cos, 0), as torchmetrics scales it (Hessel et al. 2021
        scale by 2.5).

        Raises:
            ValueError: numbers of images and captions differ, other shapes, NaN or infinity.
        """
        if len(images) != len(captions):
            raise ValueError(f"{len(images)} images but {len(captions)} captions: give each image its caption")
        return 100 * (self(images) * self.captions(captions)).sum(-1).clamp(min=0)


def _embedding(output: Any) -> Tensor:
    """The projected embedding; newer versions of transformers wrap it in a record."""
    return output if isinstance(output, Tensor) else output.pooler_output


def _check(images: Tensor) -> None:
    if images.ndim != 4 or images.shape[1] not in IMAGE_CHANNELS or not len(images):
        raise ValueError(f"images are [n, 1 or 3, height, width], at least one, not {list(images.shape)}")
    if not torch.isfinite(images).all():
        raise ValueError("images hold NaN or infinity: look at how they were made")
