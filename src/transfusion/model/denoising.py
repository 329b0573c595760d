"""Denoising of media: noise and times, target, weight, and the loss of each item.

The latents x0 of a media item are noised, and the network predicts from x_t, t and the rest of the document:

    t ~ `Diffusion.times`, eps ~ N(0, I)       both drawn by the item's key
    x_t = alpha(t) x0 + sigma(t) eps           t = 0: clean, t = 1: noise
    target = x0, eps, v = alpha eps - sigma x0, or velocity = alpha' x0 + sigma' eps,   by `Diffusion.prediction`
    loss(item) = w(t) * mean over the item's elements of (prediction - target)^2
    media loss = sum of the items' weights * loss(item) / number of items with a weight above 0

w(t) makes the squared error of the prediction one of `Diffusion.loss`, and is bounded where the conversion divides by less than
`Diffusion.min_divisor`; where both kinds are the same it is 1. The paper (Transfusion, arXiv 2408.11039) predicts eps and takes
its error, as DDPM (Ho et al. 2020, arXiv 2006.11239), and adds the media loss to the text loss with lambda = 5
(`ModelConfig.media_weight`, eq. 4). Other kinds and their conversions: `diffusion/process.py`; sums and counts: `losses.py`.
"""

from dataclasses import dataclass

from jaxtyping import Bool, Float, Int
from torch import Tensor

from transfusion import rng
from transfusion.data.batch import MediaGroup
from transfusion.diffusion import times
from transfusion.diffusion.process import Diffusion
from transfusion.model.losses import Mean, mean_over_items, mean_per_item, upcast


@dataclass(frozen=True, eq=False)
class NoisedGroup:
    """Media items of one modality and grid as the network reads them.

    Args:
        modality: its index in the model.
        grid: slots along each axis.
        latents: x_t.
        times: t of each item, from 0 (clean) to 1 (noise).
        slots: indices into the flattened (row, length) that each item fills.
        noise: eps, where there is a target to be made of it.
        masked: slots whose vectors are replaced by a learned one (`auxiliary.RepresentationHead`).
    """

    modality: int
    grid: tuple[int, ...]
    latents: Float[Tensor, "item channels ..."]
    times: Float[Tensor, " item"]
    slots: Int[Tensor, "item patch"]
    noise: Float[Tensor, "item channels ..."] | None = None
    masked: Bool[Tensor, "item patch"] | None = None


def add_noise(diffusion: Diffusion, group: MediaGroup) -> NoisedGroup:
    """x_t of each item, at a time in its interval; times and noise depend on the item's key alone. Noise that a document brings
    for an item is used as it is."""
    keys = group.keys.tolist()
    t = times.sample_times(diffusion.times, keys, group.times).to(group.values.device)
    eps = rng.normal([rng.key(key, "noise") for key in keys], tuple(group.values.shape[1:])).to(group.values)
    for item, noise in enumerate(group.noises or ()):
        if noise is not None:
            eps[item] = noise.to(eps)
    return NoisedGroup(group.modality, group.grid, diffusion.add_noise(group.values, eps, t), t, group.slots, eps)


def denoising_errors(
    diffusion: Diffusion, group: MediaGroup, noised: NoisedGroup, prediction: Float[Tensor, "item channels ..."]
) -> Float[Tensor, " item"]:
    """Each item's w(t) * mean squared error, without the item's weight."""
    assert noised.noise is not None
    target = diffusion.target(diffusion.prediction, group.values, noised.noise, noised.times)
    error = mean_per_item((upcast(prediction) - upcast(target)).square(), group.masks)
    return error * diffusion.loss_weight(noised.times)


def denoising_loss(
    diffusion: Diffusion, group: MediaGroup, noised: NoisedGroup, prediction: Float[Tensor, "item channels ..."]
) -> Mean:
    """The media loss of a group: each item's w(t) * mean squared error * weight, summed, and the number of items that count."""
    errors = denoising_errors(diffusion, group, noised, prediction)
    return mean_over_items(errors * group.loss_weights, group.loss_weights)
