"""Arguments of `sample_many` and its like -> fields of a `Request`, checked. A wrong argument is a ValueError that names it."""

import math
from dataclasses import replace
from typing import Any, get_args

import torch
from torch import Tensor

from transfusion.compat.checks import check_number, size
from transfusion.compat.lists import Lists
from transfusion.data.vocabulary import Vocabulary
from transfusion.diffusion.sampler import Sampler
from transfusion.generate.logits import Decoding, Greedy, Sample


def only_modality(vocabulary: Vocabulary, modality_type: int | None) -> int:
    """`modality_type`, or the model's only modality. Raises ValueError where it has several."""
    if modality_type is None and len(vocabulary.modalities) > 1:
        raise ValueError("this model has several modalities: choose with modality_type")
    return modality_type or 0


def forced(vocabulary: Vocabulary, argument: Any) -> tuple[str | None, tuple[int, ...] | None]:
    """`force_modality_at_start`, an index or (index, size) -> name and size of the modality to generate at once. Raises
    ValueError for a modality or a size that there is not."""
    if argument is None:
        return None, None
    index, shape = argument if isinstance(argument, tuple) and len(argument) == 2 else (argument, None)
    count = len(vocabulary.modalities)
    if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < count:
        raise ValueError(f"force_modality_at_start: no modality {index!r}; they run from 0 to {count - 1}")
    return vocabulary.modalities[index].name, None if shape is None else size("force_modality_at_start", shape)


def fixed_sizes(vocabulary: Vocabulary, argument: Any, force: str | None) -> dict[str, tuple[int, ...]]:
    """`fixed_modality_shape` -> the size of all items, by name of the modalities with as many axes. Raises ValueError where
    no modality has as many, or a size does not fit."""
    if argument is None:
        return {}
    shape = size("fixed_modality_shape", argument)
    modalities = [m for m in vocabulary.modalities if len(m.patch) == len(shape) and (m.varies or m.name == force)]
    names = [m.name for m in modalities]
    if (not names and force is None) or (force is not None and force not in names):
        axes = sorted({len(m.patch) for m in vocabulary.modalities if force in (None, m.name)})
        raise ValueError(f"fixed_modality_shape {shape} has {len(shape)} axes, items have {' or '.join(map(str, axes))}")
    for modality in modalities:
        modality.slots(shape)
    return dict.fromkeys(names, shape)


def initial_noise(lists: Lists, noise: Tensor, force: str | None, shape: tuple[int, ...] | None) -> Tensor:
    """`init_modality_noise`, shaped like the latents or [slots, channels] -> Float[channels, *size]. Raises ValueError for
    another shape, values that are not finite, or an item that is not forced."""
    if not isinstance(noise, Tensor) or not noise.is_floating_point() or not torch.isfinite(noise).all():
        raise ValueError("init_modality_noise is a tensor of finite floating-point numbers")
    if force is None:
        raise ValueError("init_modality_noise is for an item that is forced: give force_modality_at_start")
    modality = lists.vocabulary.modality(force)
    shape = modality.shape if shape is None else tuple(shape)
    if noise.shape == (math.prod(shape), modality.channels):
        return noise.T.reshape(modality.channels, *shape)
    return lists.latents(noise, lists.index(force))


def with_steps(default: Sampler, sampler: Sampler | None, steps: int | None) -> Sampler:
    """`sampler`, or the model's own with `modality_steps` steps. Raises ValueError for what is neither."""
    if steps is not None:
        check_number("modality_steps", steps, 1, whole=True)
    if sampler is not None and not hasattr(sampler, "step"):
        *names, last = (f"{kind.__name__}(...)" for kind in get_args(Sampler))
        raise ValueError(f"sampler is {', '.join(names)} or {last}, not {sampler!r}")
    return sampler or (default if steps is None else replace(default, num_steps=steps))


def decoding(temperature: float, min_p: float) -> Decoding:
    """Greedy at temperature 0, else sampling with a min-p cut."""
    check_number("temperature", temperature)
    check_number("min_p", min_p, 0, 1)
    return Greedy() if temperature == 0 else Sample(temperature=temperature, min_p=min_p)
