"""Perceptual losses of networks with published weights, from local files; nothing is downloaded.

LPIPS (Zhang et al. 2018, arXiv 1801.03924) compares features of a network trained on ImageNet at several depths, each
normalised over its channels, squared differences weighted by heads that were fitted to people's judgements. Identity compares
the one vector that MoCo v2 (Chen et al. 2020, arXiv 2003.04297) makes of a picture (as Tov et al. 2021, arXiv 2102.02766, keep
what is shown).

    network    torchvision's vgg16-*.pth or mobilenet_v2-*.pth
    heads      LPIPS' vgg.pth: `lin0.model.1.weight` ... ; without it all channels count alike
    identity   MoCo v2's checkpoint, or a ResNet-50 of torchvision

Files are PyTorch's, read without running code, or safetensors.
"""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's pixels in [0, 1]."""
VGG_TAPS = (3, 8, 15, 22, 29)
"""Layers of VGG-16 whose features LPIPS compares: the last ReLU at each resolution."""
MOBILENET_TAPS = (1, 3, 6, 13, 17)
"""Blocks of MobileNetV2: the last at each resolution."""
IDENTITY_SIDE = 224
"""Pixels of a side that MoCo v2 was trained with."""
MOCO = "module.encoder_q."
"""Prefix of the network that is kept, in MoCo's checkpoints."""

Items = Float[Tensor, "item channels height width"]


class Lpips(nn.Module):
    """Frozen. Distance 0 for equal pictures.

    Args:
        network: file of VGG-16 or MobileNetV2.
        heads: file of LPIPS' heads for that network; empty: every channel has weight 1 / channels.

    Raises:
        ValueError: torchvision is missing, or a file is, or holds something else.
    """

    def __init__(self, network: str | Path, heads: str | Path = "") -> None:
        super().__init__()
        self.layers, self.taps = load_features(Path(network))
        widths = _widths(self.layers, self.taps)
        if heads:
            found = read_weights(Path(heads), "LPIPS' heads")
            names = [f"lin{i}.model.1.weight" for i in range(len(widths))]
            wrong = [n for n, w in zip(names, widths, strict=True) if n not in found or found[n].numel() != w]
            if wrong:
                raise ValueError(
                    f"{heads} holds no heads for {network}: {wrong[0]} is missing or has another width; give LPIPS' "
                    "vgg.pth with VGG-16, and no heads with MobileNetV2"
                )
            weights = [found[name].float().reshape(1, -1, 1, 1) for name in names]
        else:
            weights = [torch.full((1, width, 1, 1), 1 / width) for width in widths]
        for index, weight in enumerate(weights):
            self.register_buffer(f"head{index}", weight)
        self.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> "Lpips":
        """No effect: it is frozen."""
        return super().train(False)

    def forward(self, a: Items, b: Items) -> Float[Tensor, " item"]:
        """The distance of each pair of pictures in [-1, 1]."""
        count = len(a)
        x = imagenet(torch.cat([a, b]))
        distances = torch.zeros(count, device=a.device)
        for index, layer in enumerate(self.layers):
            x = layer(x)
            if index in self.taps:
                one, other = F.normalize(x.float(), dim=1, eps=1e-10).split(count)
                head = self.get_buffer(f"head{self.taps.index(index)}")
                distances = distances + (head * (one - other).square()).sum(1).mean((1, 2))
        return distances


class Identity(nn.Module):
    """Frozen. 1 - cosine of the vectors that MoCo v2 makes of two pictures.

    Args:
        network: file of MoCo v2, or of a ResNet-50.

    Raises:
        ValueError: as `Lpips`.
    """

    def __init__(self, network: str | Path) -> None:
        super().__init__()
        found = read_weights(Path(network), "MoCo v2")
        own = {name.removeprefix(MOCO): value for name, value in found.items() if name.startswith(MOCO)} or dict(found)
        own = {name: value for name, value in own.items() if not name.startswith("fc.")}
        with torch.device("meta"):
            self.network = _torchvision().resnet50(weights=None)
        self.network.fc = nn.Identity()
        _load(
            self.network, own, network, "MoCo v2, as its authors publish it (moco_v2_800ep_pretrain.pth.tar), or of a ResNet-50"
        )
        self.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> "Identity":
        """No effect: it is frozen."""
        return super().train(False)

    def forward(self, a: Items, b: Items) -> Float[Tensor, " item"]:
        """The distance of each pair of pictures in [-1, 1]."""
        pictures = torch.cat([a, b])
        if pictures.shape[-2:] != (IDENTITY_SIDE, IDENTITY_SIDE):
            size = (IDENTITY_SIDE, IDENTITY_SIDE)
            pictures = F.interpolate(pictures.float(), size=size, mode="bilinear", antialias=True, align_corners=False)
        one, other = self.network(imagenet(pictures)).float().split(len(a))
        return 1 - F.cosine_similarity(one, other, dim=1)


def read_weights(path: Path, what: str) -> dict[str, Tensor]:
    """Tensors by name of a file of PyTorch (itself, or its `state_dict`) or of safetensors; no code in it is run. Raises
    ValueError, saying what the file should hold."""
    if not path.is_file():
        raise ValueError(f"no file {path}: give the path of {what}'s weights")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
        found = found.get("state_dict", found) if isinstance(found, Mapping) else found
    except (RuntimeError, OSError, EOFError, pickle.UnpicklingError, SafetensorError) as error:
        raise ValueError(f"{path} holds no weights of {what} that can be read ({str(error).splitlines()[0]})") from error
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
        raise ValueError(f"{path} holds no tensors by name: give a file of {what}'s weights")
    return dict(found)


def load_features(path: Path) -> tuple[nn.Sequential, tuple[int, ...]]:
    """The convolutions of VGG-16 or MobileNetV2, to the last tap, and the taps."""
    found = read_weights(path, "VGG-16 or MobileNetV2")
    vgg = "features.0.weight" in found
    models = _torchvision()
    with torch.device("meta"):
        layers = (models.vgg16 if vgg else models.mobilenet_v2)(weights=None).features
    own = {name.removeprefix("features."): value for name, value in found.items() if name.startswith("features.")}
    _load(layers, own, path, "torchvision's VGG-16 or MobileNetV2")
    taps = VGG_TAPS if vgg else MOBILENET_TAPS
    layers = layers[: taps[-1] + 1]
    for module in layers.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False  # a tap's features are still needed after the next layer
    return layers, taps


def _load(module: nn.Module, own: Mapping[str, Tensor], path: str | Path, what: str) -> None:
    """Give a module on the meta device its weights. Raises ValueError, naming the first that does not fit."""
    wanted = module.state_dict()
    for name in sorted(wanted.keys() | own.keys()):
        shapes = [list(t[name].shape) if name in t else "missing" for t in (own, wanted)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"{path} holds no weights of {what}: {name} is {shapes[0]} there, and {shapes[1]} in the network")
    module.load_state_dict(
        {name: value.float() if value.is_floating_point() else value for name, value in own.items()}, assign=True
    )


def _widths(layers: nn.Sequential, taps: tuple[int, ...]) -> list[int]:
    """Channels at the taps."""
    widths, x = [], torch.zeros(1, 3, 32, 32)
    with torch.no_grad():
        for index, layer in enumerate(layers.eval()):
            x = layer(x)
            if index in taps:
                widths.append(x.shape[1])
    return widths


def _torchvision() -> Any:
    try:
        from torchvision import models
    except ImportError as error:
        raise ValueError("networks of perceptual losses need torchvision: pip install 'transfusion-kit[vae]'") from error
    return models


def imagenet(pictures: Items) -> Float[Tensor, "item 3 height width"]:
    """Pictures in [-1, 1], grey ones with three equal channels, as networks of ImageNet take them."""
    mean, std = (pictures.new_tensor(values)[:, None, None] for values in (MEAN, STD))
    return ((pictures.expand(-1, 3, -1, -1) + 1) / 2 - mean) / std
