"""Ids as latents: an autoencoder with a codebook seen as one whose latents are the ids of its codes, one channel of whole
numbers. A modality of these is discrete (`Modality.codes`); all else of the way of latents stays as it is."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from transfusion.codec.autoencoder import Autoencoder
from transfusion.codec.vq import VQ, VQConfig


@dataclass(frozen=True)
class CodesConfig:
    """The ids of an autoencoder with a codebook.

    Args:
        vq: its settings.
    """

    kind: ClassVar[str] = "codes"
    vq: VQConfig = VQConfig()

    def build(self) -> "Codes":
        """The autoencoder, with new weights."""
        return Codes(self.vq.build())


class Codes(Autoencoder):
    """An autoencoder with a codebook, with ids for latents: Float[item, 1, rows, columns] of whole numbers.

    Args:
        vq: the autoencoder.
    """

    def __init__(self, vq: VQ) -> None:
        assert isinstance(vq.settings, VQConfig)
        super().__init__(channels=vq.channels, latent_channels=1, reduction=vq.reduction, settings=CodesConfig(vq.settings))
        self.vq = vq
        self.num_codes = vq.num_codes

    @classmethod
    def of(cls, autoencoder: Autoencoder) -> "Codes":
        """The ids of an autoencoder. Raises ValueError: it has no codebook."""
        if isinstance(autoencoder, Codes):
            return autoencoder
        if not isinstance(autoencoder, VQ):
            raise ValueError(
                "a model of kind chameleon learns ids of a codebook, and this autoencoder has none: give one that was trained "
                "by transfusion train vq"
            )
        return cls(autoencoder)

    def to_latents(self, items: Float[Tensor, "item channels height width"]) -> Float[Tensor, "item 1 rows columns"]:
        """The ids of pictures."""
        return self.vq.ids(items).unsqueeze(1).float()

    def to_items(self, latents: Float[Tensor, "item 1 rows columns"]) -> Float[Tensor, "item channels height width"]:
        """Pictures of ids. Raises ValueError: an id that is no code."""
        return self.vq.pixels(latents.squeeze(1).round().long())

    def _tiled(self, function: Callable[[Tensor], Tensor], x: Tensor, size: Sequence[int], **ratio: int) -> Tensor:
        """`function` of x: ids cannot be blended where tiles overlap. The autoencoder works in tiles by itself."""
        return function(x)
