"""The linear patcher: each patch of latents is a slot, by one linear layer (arXiv 2408.11039, section 3)."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from transfusion.codec.patcher import Latents, Patcher, Slots, TimeEmbedding, Times, check_time_features
from transfusion.modality import Modality
from transfusion.nn.layers import RMSNorm


@dataclass(frozen=True)
class LinearPatcherConfig:
    """One linear layer from patch to slot and one back.

    Args:
        time: where the embedding of t is added: "width": to the slot's vector (as BAGEL, arXiv 2505.14683); "patch": to the
            patch, before the linear layer (the paper's footnote 6); "none": nowhere, for a transformer with `adaln`.
        time_features: number of sinusoidal features of t.
        slot_scale: factor on slots. Those of large patches begin nearly as loud as their latents, 0.88 for 8 x 8 x 3, those of
            2 x 2 at 0.19; what a layer adds to a loud slot is small beside it, so that captions are learned late.

    Raises:
        ValueError: features that are no pairs, another `time`, or a scale that is not finite and above 0.
    """

    kind: ClassVar[str] = "linear"
    time: Literal["width", "patch", "none"] = "width"
    time_features: int = 256
    slot_scale: float = 1.0

    def __post_init__(self) -> None:
        check_time_features(self.time_features)
        if not 0 < self.slot_scale < math.inf:
            raise ValueError(f"slot_scale must be a finite number above 0, not {self.slot_scale}")
        if self.time not in ("width", "patch", "none"):
            raise ValueError(f"time must be width, patch or none, not {self.time!r}")

    def build(self, modality: Modality, width: int, eps: float) -> "LinearPatcher":
        """The module for one modality."""
        return LinearPatcher(self, modality, width, eps)


class LinearPatcher(Patcher):
    """Latents <-> slot vectors of one modality, by linear layers; there is no skip."""

    def __init__(self, config: LinearPatcherConfig, modality: Modality, width: int, eps: float) -> None:
        super().__init__()
        self.modality, self.config = modality, config
        self.proj_in = nn.Linear(modality.patch_width, width)
        self.norm = RMSNorm(width, eps)
        self.proj_out = nn.Linear(width, modality.patch_width)
        time_width = {"width": width, "patch": modality.patch_width, "none": None}[config.time]
        self.time_embedding = None if time_width is None else TimeEmbedding(config.time_features, time_width)
        axes = range(len(modality.patch))
        grid, patch = (" ".join(f"{letter}{i}" for i in axes) for letter in "gp")
        self.patterns = " ".join(["n c", *(f"(g{i} p{i})" for i in axes)]), f"n ({grid}) (c {patch})"
        self.patch_sizes = {f"p{i}": size for i, size in enumerate(modality.patch)}
        self.init_weights()

    def init_weights(self) -> None:
        """Xavier for `proj_in` (as DiT, arXiv 2212.09748): a patch has few numbers, and with the transformer's small weights
        slots would be so faint beside tokens that reading media is learned late (measured in LOG.md)."""
        nn.init.xavier_normal_(self.proj_in.weight)
        embedding = () if self.time_embedding is None else (self.time_embedding.first, self.time_embedding.second)
        for layer in (self.proj_out, *embedding):
            nn.init.normal_(layer.weight, std=0.02)
        for layer in (self.proj_in, self.proj_out, *embedding):
            nn.init.zeros_(layer.bias)

    def patches(self, latents: Float[Tensor, "item channels ..."]) -> Float[Tensor, "item slot patch"]:
        """Latents as patches in raster order."""
        return rearrange(latents, " -> ".join(self.patterns), **self.patch_sizes)

    def latents(self, patches: Float[Tensor, "item slot patch"], grid: tuple[int, ...]) -> Float[Tensor, "item channels ..."]:
        """The inverse of `patches`."""
        sizes = self.patch_sizes | {f"g{i}": count for i, count in enumerate(grid)}
        return rearrange(patches, " -> ".join(reversed(self.patterns)), **sizes)

    def encode(self, latents: Latents, t: Times) -> tuple[Slots, None]:
        """Noised latents at times t -> slot vectors."""
        patches = self.patches(latents.to(self.proj_in.weight.dtype))
        time = 0 if self.time_embedding is None else self.time_embedding(t)[:, None]
        slots = self.proj_in(patches + time) if self.config.time == "patch" else self.proj_in(patches) + time
        return slots if self.config.slot_scale == 1 else self.config.slot_scale * slots, None

    def decode(self, slots: Slots, skip: None, grid: tuple[int, ...]) -> Latents:
        """The transformer's output at the items' slots -> the prediction, shaped like the latents."""
        return self.latents(self.proj_out(self.norm(slots)), grid)
