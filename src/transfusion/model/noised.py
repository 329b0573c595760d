"""What goes through the network in the place of media: latents at times."""

from dataclasses import dataclass

from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True, eq=False)
class NoisedGroup:
    """Items of one modality and grid on their way through the network: latents at times, and the slots they fill. Slots that
    are `masked` show the trunk a learned vector instead of their latents."""

    modality: int
    grid: tuple[int, ...]
    latents: Float[Tensor, "item channels ..."]
    times: Float[Tensor, " item"]
    slots: Int[Tensor, "item patch"]
    masked: Bool[Tensor, "item patch"] | None = None
