"""Patches, noise and DDPM steps by Transfusion.torch's names, over `transfusion.diffusion`.

Steps run from 0 (clean) to T = num_timesteps (noise); step t is time t / T of the schedules.
"""

from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from transfusion.compat.transfusion_torch.config import modality, read
from transfusion.diffusion.process import Diffusion
from transfusion.diffusion.sampler import DDIM, DDPM, Sampler
from transfusion.diffusion.schedule import Cosine, LinearBetas
from transfusion.diffusion.times import Uniform


def cosine_diffusion(num_timesteps: int) -> Diffusion:
    """Prediction of noise on the cosine schedule, which at step T has no more noise than at step T - 1.

    Training draws `randint(0, T)`: the network never learns step T. Where its beta is 0.999, as usual, drawing multiplies an
    error of the noise that is predicted there by 32, the reciprocal root of 1 - 0.999; here step T changes nothing.
    """
    with torch.device("cpu"):  # numbers, also where a model is made on the meta device
        largest = torch.tensor((num_timesteps - 1) / num_timesteps, dtype=torch.float64)
        return Diffusion(Cosine(min_alpha=Cosine().alpha(largest).item()), "eps", "eps", Uniform(num_timesteps))


class PatchOps(nn.Module):
    """Images <-> patches. Patches are in reading order, the elements of each in the order row, column, channel.

    Args:
        config: patch_size, in_channels, out_channels, H, W.
        unbatched: whether `unpatchify` drops a leading axis of 1, as Transfusion.torch does.
    """

    def __init__(self, config: Any, unbatched: bool = True) -> None:
        super().__init__()
        self.modality, self.unbatched = modality(config), unbatched

    def patchify(self, images: Float[Tensor, "*batch channels height width"]) -> Float[Tensor, "*batch patches elements"]:
        """Patches of an image of any size in whole patches, or of a batch of images. Raises ValueError for another shape."""
        side, channels = self.modality.patch[0], self.modality.channels
        if images.ndim < 3 or images.shape[-3] != channels or images.shape[-2] % side or images.shape[-1] % side:
            raise ValueError(
                f"images are [{channels}, height, width] in multiples of the patch {side}, not {tuple(images.shape)}: resize"
            )
        return rearrange(images, "... c (h p) (w q) -> ... (h w) (p q c)", p=side, q=side)

    def unpatchify(self, x: Float[Tensor, "*batch patches elements"]) -> Float[Tensor, "*batch channels height width"]:
        """The H x W image of its patches, or a batch of them. Raises ValueError for another number of patches or elements."""
        side, (height, width) = self.modality.patch[0], self.modality.extents
        if x.ndim < 2 or x.shape[-2:] != (height * width, self.modality.patch_width):
            raise ValueError(
                f"an image of {height * side} x {width * side} has {height * width} patches of {self.modality.patch_width} "
                f"elements, not {tuple(x.shape[-2:])}"
            )
        x = x[0] if self.unbatched and x.ndim == 3 and len(x) == 1 else x
        return rearrange(x, "... (h w) (p q c) -> ... c (h p) (w q)", h=height, p=side, q=side)

    def to_column(self, patches: Float[Tensor, "item patches elements"]) -> Float[Tensor, "item channels height width"]:
        """Any number of patches as an image one patch wide: a grid of (patches, 1)."""
        side = self.modality.patch[0]
        return rearrange(patches, "i n (p q c) -> i c (n p) q", p=side, q=side)

    def from_column(self, image: Float[Tensor, "item channels height width"]) -> Float[Tensor, "item patches elements"]:
        """The inverse of `to_column`."""
        return rearrange(image, "i c (n p) q -> i n (p q c)", p=self.modality.patch[0])

    def forward(self, patches: Tensor, timesteps: Tensor) -> Tensor:
        """Raises ValueError: patches become vectors inside the model."""
        raise ValueError(
            "PatchOps has no weights here: call the model on (patches, timestep); its linear layer of patches is "
            "model.transfusion.network.patchers['image']"
        )


class DiffusionUtils:
    """The forward process and its steps back.

    Attributes: alpha_bar, alpha, beta, each Float[T + 1], entry t for step t, of which step 0 has beta 0 and on the cosine
    schedule step T too (see `cosine_diffusion`); diffusion, the same as a `Diffusion`, by which everything is computed.

    Args:
        linear_schedule: betas in equal steps over config.var_range; else the cosine schedule.
        config: num_timesteps, in_channels, H, W; var_range for the linear schedule; device, if there is one.

    Raises:
        ValueError: an attribute missing, or betas out of range.
    """

    def __init__(self, linear_schedule: bool, config: Any) -> None:
        c = read(config, ("num_timesteps", "in_channels", "H", "W"))
        self.num_timesteps, self.in_channels, self.H, self.W = c.num_timesteps, c.in_channels, c.H, c.W
        self.device = getattr(config, "device", torch.device("cpu"))
        self.diffusion = cosine_diffusion(c.num_timesteps)
        if linear_schedule:
            first, last = read(config, ("var_range",)).var_range
            self.diffusion = Diffusion(LinearBetas(first, last, c.num_timesteps), "eps", "eps", Uniform(c.num_timesteps))
        times = torch.arange(self.num_timesteps + 1, dtype=torch.float64) / self.num_timesteps
        alpha_bar = self.diffusion.schedule.alpha(times) ** 2
        alpha = torch.cat([torch.ones(1), alpha_bar[1:] / alpha_bar[:-1]])
        self.alpha_bar, self.alpha, self.beta = (x.float().to(self.device) for x in (alpha_bar, alpha, 1 - alpha))

    def noisy_it(self, X: Float[Tensor, "item ..."], t: Int[Tensor, " item"]) -> tuple[Tensor, Tensor]:
        """(x_t, noise), both shaped like X, of items at their steps; the noise is drawn from torch's generator.

        Raises:
            ValueError: steps that are no tensor of one step from 0 to T for each item.
        """
        noise = torch.randn_like(X)
        return self.diffusion.add_noise(X, noise, self._times(X, t, 0)), noise

    def one_step_ddpm(
        self, xt: Float[Tensor, "item ..."], pred_noise: Float[Tensor, "item ..."], t: Int[Tensor, " item"]
    ) -> Float[Tensor, "item ..."]:
        """x at step t - 1 from x at step t, with fresh noise of the variance of q(x_t-1 | x_t, x_0), none at step 1 (Ho et al.
        2020, arXiv 2006.11239, eq. 6 and 7). Raises ValueError: see `noisy_it`; and for step 0, which is clean."""
        return self._step(DDPM(self.num_timesteps), xt, pred_noise, t)

    def one_step_ddim(
        self, xt: Float[Tensor, "item ..."], pred_noise: Float[Tensor, "item ..."], t: Int[Tensor, " item"]
    ) -> Float[Tensor, "item ..."]:
        """`one_step_ddpm` without fresh noise (Song et al. 2020, arXiv 2010.02502, eq. 12). Raises ValueError: as there."""
        return self._step(DDIM(self.num_timesteps), xt, pred_noise, t)

    def generate(
        self,
        *,
        model: Any,
        modality_tokens: list[Any],
        modality_strings: list[str],
        use_ddim: bool = False,
        autocast: torch.autocast | None = None,
    ) -> tuple[list[Any], list[str]]:
        """New lists: the prompt, which ends with BOI, and behind it an image of H x W as (patches, step 0), kind "image".
        Arguments and errors: see `Transfussion.generate`."""
        return model.draw(modality_tokens, modality_strings, self, autocast, use_ddim=use_ddim)

    def _step(self, sampler: Sampler, x: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        time = self._times(x, t, 1)

        def predict(x: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
            return self.diffusion.to_x0_eps("eps", eps, x, time)

        earlier = time - 1 / self.num_timesteps
        earlier = torch.where(earlier < 0.5 / self.num_timesteps, 0.0, earlier)  # 1/T - 1/T may round to more than 0
        return sampler.step(self.diffusion.schedule, predict, lambda: torch.randn_like(x), x, time, earlier)[0]

    def _times(self, x: Tensor, t: Tensor, first: int) -> Float[Tensor, " item"]:
        """Steps as times. Raises ValueError unless each item has one from `first` to T."""
        if not isinstance(t, Tensor) or t.shape != x.shape[:1] or bool(((t < first) | (t > self.num_timesteps)).any()):
            given = t.tolist() if isinstance(t, Tensor) and t.numel() < 8 else t
            raise ValueError(
                f"steps are a tensor with one from {first} to {self.num_timesteps} for each of {len(x)} items, not {given}"
            )
        return (t.to(x.device).double() / self.num_timesteps).to(torch.promote_types(x.dtype, torch.float32))
