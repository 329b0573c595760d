"""The autoencoder with a codebook (VQ-VAE, van den Oord et al. 2017, arXiv 1711.00937): a picture becomes a grid of ids, each
of the vector of the codebook that is nearest to the encoder's.

    picture -> encoder, projected to a few channels -> nearest code -> decoder -> picture

The gradient passes the choice as if it were the identity. Codes have few channels, so that most of them are used (Yu et al.
2021, arXiv 2110.04627).
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from transfusion.codec.autoencoder import Autoencoder
from transfusion.codec.convolutions import ConvolutionsConfig, encoder_and_decoder
from transfusion.data.document import MediaError

MAX_CODES = 2**20
CHUNK = 2**26
"""Distances in memory at a time."""


@dataclass(frozen=True)
class VQConfig:
    """An autoencoder with a codebook.

    Args:
        convolutions: encoder and decoder.
        num_codes: vectors of the codebook.
        code_channels: numbers of each.
    """

    kind: ClassVar[str] = "vq"
    convolutions: ConvolutionsConfig = ConvolutionsConfig()
    num_codes: int = 1024
    code_channels: int = 8

    def __post_init__(self) -> None:
        if not 2 <= self.num_codes <= MAX_CODES or not 1 <= self.code_channels <= 4096:
            raise ValueError(
                f"num_codes must be 2 to {MAX_CODES:,} and code_channels 1 to 4096, not {self.num_codes} "
                f"and {self.code_channels}"
            )

    def build(self) -> "VQ":
        """The autoencoder, with new weights."""
        return VQ(self)


class Codebook(nn.Module):
    """Vectors, and the nearest of them."""

    def __init__(self, num_codes: int, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(num_codes, channels))
        self.undecayed = ("weight",)

    @torch.no_grad()
    def nearest(self, vectors: Float[Tensor, "vector channels"]) -> Int[Tensor, " vector"]:
        """The id of the nearest code of each vector, by Euclidean distance."""
        codes = self.weight.float()
        half = codes.square().sum(1) / 2
        size = max(CHUNK // len(codes), 1)
        return torch.cat([(half - chunk.float() @ codes.T).argmin(1) for chunk in vectors.split(size)])


class VQ(Autoencoder):
    """An autoencoder with a codebook, by its settings. Its latents are the vectors of codes; `decode` takes any latents to
    their nearest codes first. The normalisation of latents has no part in ids.
    """

    def __init__(self, settings: VQConfig) -> None:
        convolutions = settings.convolutions
        super().__init__(
            channels=convolutions.channels,
            latent_channels=settings.code_channels,
            reduction=convolutions.reduction,
            settings=settings,
        )
        self.num_codes = settings.num_codes
        channels = settings.code_channels
        self.encoder, self.decoder = encoder_and_decoder(convolutions, features=channels, latents=channels)
        self.codebook = Codebook(settings.num_codes, settings.code_channels)

    @property
    def bits(self) -> float:
        """Bits of one id."""
        return math.log2(self.num_codes)

    @torch.no_grad()
    def ids(self, items: Float[Tensor, "item channels height width"]) -> Int[Tensor, "item rows columns"]:
        """The ids of pictures in [-1, 1]. Raises ValueError: other channels, or a size that the reduction does not fit; and
        MediaError: the encoder gives NaN or infinity, of which some code would always be the nearest."""
        if items.ndim != 4 or items.shape[1] != self.channels:
            raise ValueError(
                f"pictures are (item, {self.channels} channels, height, width), not {tuple(items.shape)}: convert them"
            )
        size = self.latent_shape(items.shape[2:])[1:]
        with torch.autocast(self.latent_mean.device.type, enabled=False):
            features = self._tiled(self.features, self._like_weights(items), size, read=self.reduction)
        if not features.isfinite().all():
            raise MediaError("the encoder gives NaN or infinity: check the autoencoder's weights")
        return self.nearest(features)

    @torch.no_grad()
    def pixels(self, ids: Int[Tensor, "item rows columns"]) -> Float[Tensor, "item channels height width"]:
        """Pictures of ids. Raises ValueError: an id that is no code."""
        if ids.numel() and (int(ids.min()) < 0 or int(ids.max()) >= self.num_codes):
            raise ValueError(
                f"ids from {int(ids.min())} to {int(ids.max())}: this codebook has {self.num_codes:,} codes, from 0; take the "
                "autoencoder that the ids are of"
            )
        codes = self.codes(ids.to(self.latent_mean.device))
        with torch.autocast(codes.device.type, enabled=False):
            return self._tiled(self.decoder, codes, ids.shape[1:], write=self.reduction).float()

    def features(self, items: Float[Tensor, "item channels height width"]) -> Float[Tensor, "item code rows columns"]:
        """The encoder's vectors, before the choice of codes, with a gradient; fp32."""
        return self.encoder(items).float()

    def nearest(self, features: Float[Tensor, "item code rows columns"]) -> Int[Tensor, "item rows columns"]:
        """The ids of the nearest codes."""
        items, _, rows, columns = features.shape
        return self.codebook.nearest(features.movedim(1, -1).flatten(0, 2)).reshape(items, rows, columns)

    def codes(self, ids: Int[Tensor, "item rows columns"]) -> Float[Tensor, "item code rows columns"]:
        """The vectors of ids, with a gradient for the codebook."""
        return self.codebook.weight[ids].movedim(-1, 1)

    def to_latents(self, items: Float[Tensor, "item channels height width"]) -> Float[Tensor, "item code rows columns"]:
        """The vectors of the nearest codes; the gradient is the encoder's."""
        return self.quantized(self.features(items))

    def to_items(self, latents: Float[Tensor, "item code rows columns"]) -> Float[Tensor, "item channels height width"]:
        """Pictures of latents that are not normalised, from their nearest codes."""
        return self.decoder(self.quantized(latents))

    def quantized(self, features: Float[Tensor, "item code rows columns"]) -> Float[Tensor, "item code rows columns"]:
        """The nearest codes of vectors; backwards, the identity."""
        return features + (self.codes(self.nearest(features)) - features).detach()
