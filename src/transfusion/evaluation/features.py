"""Feature extractors with published weights, from local files: pictures Float[n, c, h, w] in [-1, 1] -> Float32[n, feature].

Nothing is downloaded. The digest names the weights: distances under other weights are other numbers.
"""

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from transfusion.data.media import to_image
from transfusion.evaluation import digest

BATCH = 32
"""Pictures that are computed at a time."""


@runtime_checkable
class Features(Protocol):
    """Says what a picture shows, in numbers."""

    name: str
    digest: str

    def __call__(self, pictures: Tensor) -> Tensor:
        """Float[n, c, h, w] in [-1, 1] -> Float32[n, feature]"""
        ...


class InceptionFeatures:
    """The last pooling layer of Inception v3, 2048 numbers, as FID and KID are published with.

    Pictures become bytes, grey ones three equal channels, and are resized to 299 x 299 as TensorFlow 1 did (torch-fidelity).

    Args:
        path: the weights, torch-fidelity's pt_inception (weights-inception-2015-12-05-6726825d.pth).
        device: where to compute.

    Raises:
        ValueError: torch-fidelity is not there, or the file is missing or holds something else.
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
            torch.load(path, map_location="cpu", weights_only=True)  # the extractor itself would run code that a file holds
            self._network = FeatureExtractorInceptionV3(self.name, ["2048"], str(path)).to(device)
        except (RuntimeError, OSError, EOFError, pickle.UnpicklingError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"{path} holds no weights of torch-fidelity's Inception v3 ({reason})") from error
        self._device = device
        self.digest = digest.of_files([path])

    @torch.no_grad()
    def __call__(self, pictures: Tensor) -> Tensor:
        """Float[n, 1 or 3, h, w] in [-1, 1] -> Float32[n, 2048]. Raises ValueError for other shapes, NaN or infinity."""
        _check(pictures)
        found = []
        for part in pictures.split(BATCH):
            pixels = ((part.to(self._device).float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
            found.append(self._network(pixels.expand(-1, 3, -1, -1))[0].cpu())
        return torch.cat(found)


class ClipScore:
    """Pictures and captions in the common space of a CLIP model.

    Args:
        path: a folder with a CLIP model, its tokenizer and its preprocessor, as Hugging Face keeps them.
        device: where to compute.

    Raises:
        ValueError: transformers is not there, or the folder is missing or holds something else.
    """

    name = "clip"

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
    def __call__(self, pictures: Tensor) -> Tensor:
        """Float[n, 1 or 3, h, w] in [-1, 1] -> Float32[n, feature] of length 1. Raises ValueError as `InceptionFeatures`."""
        _check(pictures)
        found = []
        for part in pictures.split(BATCH):
            images = [to_image(one).convert("RGB") for one in part]
            given = self._processor(images=images, return_tensors="pt").to(self._device)
            found.append(_embedding(self._network.get_image_features(**given)))
        return F.normalize(torch.cat(found), dim=-1).float().cpu()

    @torch.no_grad()
    def captions(self, captions: Sequence[str]) -> Tensor:
        """Float32[n, feature] of length 1; what a caption has beyond the model's tokens (77 in published ones) is left out."""
        found = []
        longest = self._network.config.text_config.max_position_embeddings
        for first in range(0, len(captions), BATCH):
            some = list(captions[first : first + BATCH])
            given = self._processor(text=some, return_tensors="pt", padding=True, truncation=True, max_length=longest)
            found.append(_embedding(self._network.get_text_features(**given.to(self._device))))
        return F.normalize(torch.cat(found), dim=-1).float().cpu()

    def score(self, pictures: Tensor, captions: Sequence[str]) -> Tensor:
        """CLIPScore of each picture with its caption, Float32[n]: 100 max(cos, 0), as torchmetrics scales it.

        Hessel et al. 2021 have 2.5 in the place of 100.

        Raises:
            ValueError: not one caption a picture, other shapes, NaN or infinity.
        """
        if len(pictures) != len(captions):
            raise ValueError(f"{len(pictures)} pictures but {len(captions)} captions: give each picture its caption")
        return 100 * (self(pictures) * self.captions(captions)).sum(-1).clamp(min=0)


def _embedding(output: Any) -> Tensor:
    """The projected embedding, which newer versions of transformers wrap."""
    return output if isinstance(output, Tensor) else output.pooler_output


def _check(pictures: Tensor) -> None:
    if pictures.ndim != 4 or pictures.shape[1] not in (1, 3) or not len(pictures):
        raise ValueError(f"pictures are [n, 1 or 3, height, width], at least one, not {list(pictures.shape)}")
    if not torch.isfinite(pictures).all():
        raise ValueError("pictures hold NaN or infinity: look at how they were made")
