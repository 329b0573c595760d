"""Autoencoders: items (pixels, samples) <-> latents, frozen while the transformer trains.

    items [item, channels, *size]  --encode-->  latents [item, latent_channels, *size / reduction]  --decode-->  items

What a tensor is, the two ends say: a modality states the form of latents, its autoencoder that of items. Latents are normalised
per channel, by a mean and a scale that were measured and belong to the autoencoder as its weights do: the digest covers all.

A folder of an autoencoder: `config.json` (its kind and settings), `model.safetensors`, and `MANIFEST.json` with their digests.
"""

import hashlib
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from transfusion import config
from transfusion.codec.tiles import in_tiles
from transfusion.files import MANIFEST, manifest, replacing, save_tensors

Own = TypeVar("Own", bound="Autoencoder")
FORMAT = 1
"""Rises when the meaning of a field in an autoencoder's `config.json` changes."""
CONFIG, WEIGHTS = "config.json", "model.safetensors"
LEAST_SCALE = 1e-6
"""Least standard deviation of a channel that it is divided by; one that is constant stays so."""


@runtime_checkable
class AutoencoderSettings(Protocol):
    """A frozen dataclass with the settings of a kind of autoencoder; it is written into `config.json` with its kind."""

    kind: ClassVar[str]

    def build(self) -> "Autoencoder":
        """The autoencoder, with new weights."""
        ...


class Autoencoder(nn.Module, ABC):
    """Items to latents and back. A subclass, or one of your own, implements `to_latents` and `to_items`.

    Frozen in use: always in evaluation mode; `encode` and `decode` give no gradient, and compute in the precision of the
    weights whatever autocast is around them.

    Args:
        channels: of items; 1 or 3 for pictures, whose pixels are in [-1, 1].
        latent_channels: of latents.
        reduction: elements of an item for one latent, along each axis.
        settings: what `save` writes beside the weights; None for a class that only its own code can build again.

    Raises:
        ValueError: a number that is not positive.
    """

    rate = 0
    """Samples a second of its items, where they are sounds of a known rate."""
    tile = 1024
    """Items with more elements along an axis are worked on in overlapping tiles of this extent, to save memory."""
    latent_mean: Tensor
    latent_scale: Tensor
    latent_bound: Tensor

    def __init__(
        self, *, channels: int, latent_channels: int, reduction: int, settings: AutoencoderSettings | None = None
    ) -> None:
        super().__init__()
        if min(channels, latent_channels, reduction) < 1:
            raise ValueError(
                f"channels, latent_channels and reduction must be at least 1, not {channels}, {latent_channels}, {reduction}"
            )
        self.channels, self.latent_channels, self.reduction, self.settings = channels, latent_channels, reduction, settings
        self.register_buffer("latent_mean", torch.zeros(latent_channels))
        self.register_buffer("latent_scale", torch.ones(latent_channels))
        self.register_buffer("latent_bound", torch.tensor(math.inf))
        self._frozen_digest = ""
        super().train(False)

    # ---- what a kind implements --------------------------------------------------------------------------------------

    @abstractmethod
    def to_latents(self, items: Float[Tensor, "item channels ..."]) -> Float[Tensor, "item latent_channels ..."]:
        """Latents before they are normalised: deterministic (of a posterior, its mean), and with a gradient."""

    @abstractmethod
    def to_items(self, latents: Float[Tensor, "item latent_channels ..."]) -> Float[Tensor, "item channels ..."]:
        """Items of latents that are not normalised, with a gradient."""

    # ---- in use ------------------------------------------------------------------------------------------------------

    def train(self: Own, mode: bool = True) -> Own:
        """No effect: it stays in evaluation mode."""
        return self

    def freeze(self: Own) -> Own:
        """Itself, without a gradient for any weight. From now on its digest is computed once."""
        self.requires_grad_(False)
        self._frozen_digest = self._digest()
        return self

    @property
    def digest(self) -> str:
        """16 hex digits of its settings, weights and normalisation."""
        return self._frozen_digest or self._digest()

    @property
    def bound(self) -> float | None:
        """The largest magnitude of a normalised latent that was measured; None where none was."""
        bound = float(self.latent_bound)
        return bound if math.isfinite(bound) else None

    def latent_shape(self, size: Sequence[int]) -> tuple[int, ...]:
        """(latent_channels, *size / reduction) of an item of this size, without channels. Raises ValueError: the reduction does
        not fit it."""
        size = tuple(size)
        if any(extent < self.reduction for extent in size):
            raise ValueError(
                f"an item of size {size} is smaller than one latent: this autoencoder makes one of {self.reduction} elements "
                f"along each axis; give larger items, or an autoencoder of lower reduction"
            )
        if any(extent % self.reduction for extent in size):
            raise ValueError(
                f"an item of size {size} does not fit an autoencoder of reduction {self.reduction}: every extent must be a "
                f"multiple of {self.reduction}; resize the item"
            )
        return (self.latent_channels, *(extent // self.reduction for extent in size))

    @torch.no_grad()
    def encode(self, items: Float[Tensor, "item channels ..."]) -> Float[Tensor, "item latent_channels ..."]:
        """Normalised latents in fp32, on the device of the weights. Raises ValueError: other channels, or as `latent_shape`."""
        if items.ndim < 2 or items.shape[1] != self.channels:
            raise ValueError(
                f"items of shape {tuple(items.shape)}: this autoencoder takes (item, {self.channels} channels, *size); "
                "convert them to as many channels"
            )
        shape = self.latent_shape(items.shape[2:])
        with torch.autocast(self.latent_mean.device.type, enabled=False):
            latents = self._tiled(self.to_latents, self._like_weights(items), shape[1:], read=self.reduction).float()
        if tuple(latents.shape[1:]) != shape:
            raise ValueError(f"{type(self).__name__}.to_latents gave {tuple(latents.shape[1:])}, and states {shape}")
        return (latents - _channelwise(self.latent_mean, latents)) / _channelwise(self.latent_scale, latents)

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "item latent_channels ..."]) -> Float[Tensor, "item channels ..."]:
        """Items of normalised latents, in fp32; pixels are about [-1, 1]. Raises ValueError: other channels."""
        return self.reconstruct(latents)

    def reconstruct(self, latents: Float[Tensor, "item latent_channels ..."]) -> Float[Tensor, "item channels ..."]:
        """As `decode`, with a gradient for the latents."""
        if latents.ndim < 2 or latents.shape[1] != self.latent_channels:
            raise ValueError(
                f"latents of shape {tuple(latents.shape)}: this autoencoder's have {self.latent_channels} channels"
            )
        with torch.autocast(self.latent_mean.device.type, enabled=False):
            latents = latents.to(self.latent_mean.device).float()
            raw = latents * _channelwise(self.latent_scale, latents) + _channelwise(self.latent_mean, latents)
            return self._tiled(self.to_items, self._like_weights(raw), raw.shape[2:], write=self.reduction).float()

    def _tiled(self, function: Callable[[Tensor], Tensor], x: Tensor, size: Sequence[int], **ratio: int) -> Tensor:
        """`function` of x, in tiles where the item, of this size in latents, is large."""
        tile = max(self.tile // self.reduction, 1)
        return in_tiles(function, x, size, tile, **ratio) if max(size, default=0) > tile else function(x)

    def _like_weights(self, x: Tensor) -> Tensor:
        weight = next((p for p in self.parameters() if p.is_floating_point()), self.latent_mean)
        return x.to(weight)

    # ---- normalisation -----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def measure(self, batches: Iterable[Float[Tensor, "_ channels ..."]]) -> None:
        """Measure mean and standard deviation of each channel of latents over items, and the bound of normalised ones. Raises
        ValueError: no items, or latents that are not finite."""
        self.latent_mean.zero_()
        self.latent_scale.fill_(1.0)
        count = 0
        total = square = torch.zeros(self.latent_channels, dtype=torch.float64)
        low, high = torch.full_like(total, math.inf), torch.full_like(total, -math.inf)
        for items in batches:
            latents = self.encode(items).double().cpu().movedim(1, 0).flatten(1)
            count += latents.shape[1]
            total, square = total + latents.sum(1), square + latents.square().sum(1)
            low, high = torch.minimum(low, latents.amin(1)), torch.maximum(high, latents.amax(1))
        if not count:
            raise ValueError("nothing to measure latents on: give items")
        mean = total / count
        scale = (square / count - mean.square()).clamp_min(0).sqrt().clamp_min(LEAST_SCALE)
        if not (mean.isfinite().all() and scale.isfinite().all()):
            raise ValueError("latents have NaN or infinity: check the autoencoder's weights")
        self.normalize(mean, scale, float(torch.maximum((high - mean) / scale, (mean - low) / scale).max()))

    @torch.no_grad()
    def normalize(self, mean: Tensor, scale: Tensor, bound: float = math.inf) -> None:
        """Set mean and scale of each channel, and the bound of normalised latents."""
        assert not self._frozen_digest, "a frozen autoencoder keeps its normalisation"
        self.latent_mean.copy_(mean)
        self.latent_scale.copy_(scale)
        self.latent_bound.fill_(bound)

    # ---- files -------------------------------------------------------------------------------------------------------

    def _plain(self) -> dict[str, Any]:
        own: dict[str, Any] = {"class": f"{type(self).__module__}.{type(self).__qualname__}"}
        form = {"channels": self.channels, "latent_channels": self.latent_channels, "reduction": self.reduction}
        return own | form if self.settings is None else config.to_plain(self.settings)

    def _digest(self) -> str:
        digest = hashlib.sha256(json.dumps(self._plain(), sort_keys=True).encode())
        for name, tensor in sorted(self.state_dict().items()):
            value = tensor.detach().cpu().contiguous()
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b"")
        return digest.hexdigest()[:16]

    def save(self, folder: str | Path) -> None:
        """Write the autoencoder's folder. Raises ValueError: a class of your own, which has no settings; OSError."""
        if self.settings is None:
            raise ValueError(
                f"{type(self).__name__} cannot be written, only its weights could be: keep its code, and give it to "
                "from_pretrained(..., autoencoder=...)"
            )
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:  # the last one entered is replaced first
            partial = {name: stack.enter_context(replacing(folder / name)) for name in (MANIFEST, CONFIG, WEIGHTS)}
            save_tensors(partial[WEIGHTS], self.state_dict())
            plain = {"format": FORMAT} | config.to_plain(self.settings)
            partial[CONFIG].write_text(json.dumps(plain, indent=2) + "\n", encoding="utf-8")
            files = manifest({name: partial[name] for name in (CONFIG, WEIGHTS)})
            partial[MANIFEST].write_text(json.dumps({"format": FORMAT, "files": files}, indent=1) + "\n", encoding="utf-8")


def _channelwise(values: Tensor, items: Tensor) -> Tensor:
    """[channels] -> [channels, 1, ...], beside items [item, channels, ...]."""
    return values.reshape(-1, *[1] * (items.ndim - 2))
