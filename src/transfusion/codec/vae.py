"""The variational autoencoder (Kingma and Welling 2013, arXiv 1312.6114): a picture becomes a Gaussian over latents on a
coarser grid, whose mean is the latents in use.
"""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from transfusion.codec.autoencoder import Autoencoder
from transfusion.codec.convolutions import ConvolutionsConfig, encoder_and_decoder

MAX_CHANNELS = 4096
LEAST, MOST = -30.0, 20.0
"""Bounds of the logarithm of a latent's variance."""
START = -6.0
"""The logarithm at the start: noise that pictures are seen through, from the first step on. On emoji 0.8 dB more after 76
seconds of a core than with 0 (LOG.md)."""


@dataclass(frozen=True)
class VAEConfig:
    """A variational autoencoder.

    Args:
        convolutions: encoder and decoder.
        latent_channels: of the latents.
    """

    kind: ClassVar[str] = "vae"
    convolutions: ConvolutionsConfig = ConvolutionsConfig()
    latent_channels: int = 8

    def __post_init__(self) -> None:
        if not 1 <= self.latent_channels <= MAX_CHANNELS:
            raise ValueError(f"latent_channels must be 1 to {MAX_CHANNELS}, not {self.latent_channels}")

    def build(self) -> "VAE":
        """The autoencoder, with new weights."""
        return VAE(self)


@dataclass(frozen=True, eq=False)
class Posterior:
    """A Gaussian over the latents of each item: its mean, and the logarithm of its variance, both in fp32."""

    mean: Float[Tensor, "item latent rows columns"]
    log_variance: Float[Tensor, "item latent rows columns"]

    def sample(self, noise: Float[Tensor, "item latent rows columns"]) -> Float[Tensor, "item latent rows columns"]:
        """Latents drawn with standard normal noise."""
        return self.mean + noise * (self.log_variance / 2).exp()

    def nats(self) -> Float[Tensor, " item"]:
        """KL divergence of each item's latents from a standard normal."""
        squares = self.mean.square() + self.log_variance.exp()
        return 0.5 * (squares - 1 - self.log_variance).flatten(1).sum(1)


class VAE(Autoencoder):
    """A variational autoencoder by its settings."""

    def __init__(self, settings: VAEConfig) -> None:
        convolutions = settings.convolutions
        super().__init__(
            channels=convolutions.channels,
            latent_channels=settings.latent_channels,
            reduction=convolutions.reduction,
            settings=settings,
        )
        latents = settings.latent_channels
        self.encoder, self.decoder = encoder_and_decoder(convolutions, features=2 * latents, latents=latents)
        assert self.encoder.out.bias is not None
        nn.init.constant_(self.encoder.out.bias[latents:], START)

    def posterior(self, items: Float[Tensor, "item channels height width"]) -> Posterior:
        """The posterior of pictures in [-1, 1], with a gradient."""
        mean, log_variance = self.encoder(items).float().chunk(2, 1)
        return Posterior(mean, log_variance.clamp(LEAST, MOST))

    def to_latents(self, items: Float[Tensor, "item channels height width"]) -> Float[Tensor, "item latent rows columns"]:
        """The mean of the posterior."""
        return self.posterior(items).mean

    def to_items(self, latents: Float[Tensor, "item latent rows columns"]) -> Float[Tensor, "item channels height width"]:
        """Pictures of latents that are not normalised."""
        return self.decoder(latents)
