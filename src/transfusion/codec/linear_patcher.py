"""The linear patcher: each patch of latents is a slot, by one linear layer (arXiv 2408.11039, section 3)."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from transfusion.codec.patcher import Patcher, TimeEmbedding, check_time_features
from transfusion.modality import Modality
from transfusion.nn.layers import RMSNorm


@dataclass(frozen=True)
class LinearPatcherConfig:
    """One linear layer from patch to slot and one back.

    Args:
        time: where the embedding of t is added: "width": to the slot's vector (as BAGEL, arXiv 2505.14683); "patch": to the
            patch, before the linear layer (the paper's footnote 6); "none": nowhere, for a transformer with `adaln`.
        time_features: number of sinusoidal features of t.
    """

    kind: ClassVar[str] = "linear"
    time: Literal["width", "patch", "none"] = "width"
    time_features: int = 256

    def __post_init__(self) -> None:
        check_time_features(self.time_features)
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
        at = {"width": width, "patch": modality.patch_width, "none": None}[config.time]
        self.time = None if at is None else TimeEmbedding(config.time_features, at)
        self.init_weights()

    def init_weights(self) -> None:
        """Xavier for `proj_in` (as DiT, arXiv 2212.09748): a patch has few numbers, and with the transformer's small weights
        slots would be so faint beside tokens that reading media is learned late (measured in LOG.md)."""
        nn.init.xavier_normal_(self.proj_in.weight)
        embedding = () if self.time is None else (self.time.first, self.time.second)
        for layer in (self.proj_out, *embedding):
            nn.init.normal_(layer.weight, std=0.02)
        for layer in (self.proj_in, self.proj_out, *embedding):
            nn.init.zeros_(layer.bias)

    def patches(self, latents: Float[Tensor, "item channels ..."]) -> Float[Tensor, "item slot patch"]:
        """Latents as patches in raster order."""
        sizes = self.modality.patch
        if not sizes:
            return latents[:, None]
        axes = " ".join(f"(g{i} p{i})" for i in range(len(sizes)))
        grid = " ".join(f"g{i}" for i in range(len(sizes)))
        patch = " ".join(f"p{i}" for i in range(len(sizes)))
        return rearrange(latents, f"n c {axes} -> n ({grid}) (c {patch})", **{f"p{i}": s for i, s in enumerate(sizes)})

    def latents(self, patches: Float[Tensor, "item slot patch"], grid: tuple[int, ...]) -> Float[Tensor, "item channels ..."]:
        """The inverse of `patches`."""
        sizes = self.modality.patch
        if not sizes:
            return patches[:, 0]
        axes = " ".join(f"(g{i} p{i})" for i in range(len(sizes)))
        names = " ".join(f"g{i}" for i in range(len(sizes)))
        patch = " ".join(f"p{i}" for i in range(len(sizes)))
        known = {f"p{i}": s for i, s in enumerate(sizes)} | {f"g{i}": g for i, g in enumerate(grid)}
        return rearrange(patches, f"n ({names}) (c {patch}) -> n c {axes}", **known)

    def encode(
        self, latents: Float[Tensor, "item channels ..."], t: Float[Tensor, " item"]
    ) -> tuple[Float[Tensor, "item slot width"], None]:
        """Noised latents at times t -> slot vectors."""
        patches = self.patches(latents.to(self.proj_in.weight.dtype))
        if self.time is None:
            return self.proj_in(patches), None
        time = self.time(t)[:, None]
        if self.config.time == "patch":
            return self.proj_in(patches + time), None
        return self.proj_in(patches) + time, None

    def decode(
        self, slots: Float[Tensor, "item slot width"], skip: None, grid: tuple[int, ...]
    ) -> Float[Tensor, "item channels ..."]:
        """The transformer's output at the items' slots -> the prediction, shaped like the latents."""
        return self.latents(self.proj_out(self.norm(slots)), grid)
