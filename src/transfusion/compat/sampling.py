"""Arguments of `sample_many` and its like -> fields of a `Request`, checked. A wrong argument is a ValueError that names it."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, get_args

import torch
from torch import Tensor

from transfusion.api import Transfusion
from transfusion.compat.checks import check_number, size
from transfusion.compat.lists import Lists
from transfusion.compat.prompts import Opening
from transfusion.data.tokenize import tokenize_document
from transfusion.data.vocabulary import Vocabulary
from transfusion.diffusion.sampler import Sampler
from transfusion.generate.logits import Decoding, Greedy, Sample
from transfusion.generate.sizes import item_length
from transfusion.generate.state import NoiseOfItem, Request


def only_modality(vocabulary: Vocabulary, modality_type: int | None) -> int:
    """`modality_type`, or the model's only modality. Raises ValueError where it has several."""
    if modality_type is None and len(vocabulary.modalities) > 1:
        raise ValueError("this model has several modalities: choose with modality_type")
    return modality_type or 0


def forced(vocabulary: Vocabulary, argument: Any) -> Opening | None:
    """`force_modality_at_start`, an index or (index, size) -> the item to generate at once. Raises ValueError for a modality or
    a size that there is not."""
    if argument is None:
        return None
    index, shape = argument if isinstance(argument, tuple) and len(argument) == 2 else (argument, None)
    count = len(vocabulary.modalities)
    if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < count:
        raise ValueError(f"force_modality_at_start: no modality {index!r}; they run from 0 to {count - 1}")
    return Opening(vocabulary.modalities[index].name, None if shape is None else size("force_modality_at_start", shape))


def forced_each(vocabulary: Vocabulary, argument: Any, count: int) -> list[Opening | None]:
    """`force_modality_at_start` for each of `count` prompts: the same for all, or a list. Raises ValueError: see `forced`, or a
    list of another length."""
    if not isinstance(argument, list):
        return [forced(vocabulary, argument)] * count
    if len(argument) != count:
        raise ValueError(f"force_modality_at_start has {len(argument)} entries for {count} prompts: give one each, or one")
    return [forced(vocabulary, entry) for entry in argument]


def fixed_sizes(vocabulary: Vocabulary, argument: Any, forces: Sequence[Opening | None]) -> dict[str, tuple[int, ...]]:
    """`fixed_modality_shape` -> the size of all items, by name of the modalities with as many axes. Raises ValueError where
    no modality (or not a forced one) has as many, or a size does not fit."""
    if argument is None:
        return {}
    shape = size("fixed_modality_shape", argument)
    wanted = {force.modality for force in forces if force is not None}
    modalities = [m for m in vocabulary.modalities if len(m.patch) == len(shape) and (m.varies or m.name in wanted)]
    names = [m.name for m in modalities]
    if not names or not wanted <= set(names):
        axes = sorted({len(m.patch) for m in vocabulary.modalities if not wanted or m.name in wanted})
        raise ValueError(f"fixed_modality_shape {shape} has {len(shape)} axes, items have {' or '.join(map(str, axes))}")
    for modality in modalities:
        modality.slots(shape)
    return dict.fromkeys(names, shape)


def initial_noise(lists: Lists, noise: Any) -> NoiseOfItem:
    """`init_modality_noise`, shaped like an item's latents or [slots, channels] -> the initial noise of each item: the same, or
    as many slots and channels of it as the item has; None for an item that has more. Raises ValueError for what is no noise."""
    if not isinstance(noise, Tensor) or not noise.is_floating_point() or not torch.isfinite(noise).all():
        raise ValueError("init_modality_noise is a tensor of finite floating-point numbers")
    if noise.ndim < 1:
        raise ValueError("init_modality_noise is shaped like an item's latents, or [slots, channels], not a single number")

    def of_item(name: str, shape: tuple[int, ...]) -> Tensor | None:
        index, channels = lists.index(name), lists.vocabulary.modality(name).channels
        form = lists.oriented(torch.empty(channels, *shape), index).shape
        if noise.shape == form:
            return lists.latents(noise, index)
        slots = math.prod(shape)
        if noise.ndim == 2 and len(noise) >= slots and noise.shape[1] >= channels:
            return noise[:slots, :channels].T.reshape(channels, *shape)
        return None

    return of_item


def check_forced(vocabulary: Vocabulary, requests: Sequence[Request], given: Tensor) -> None:
    """Raises ValueError where the initial noise does not fit an item that is generated at once."""
    for request in requests:
        if request.force is not None and callable(request.noise):
            modality = vocabulary.modality(request.force)
            shape = modality.shape_of(request.forced_grid(modality))
            if request.noise(modality.name, shape) is None:
                wanted = f"{math.prod(shape)} slots of {modality.channels} channels, or the shape of its latents"
                raise ValueError(f"the initial noise has shape {tuple(given.shape)}, the item of size {shape} needs {wanted}")


def first(vocabulary: Vocabulary) -> Opening:
    """An item of the first modality, of its default size."""
    return Opening(vocabulary.modalities[0].name, None)


def capacity(model: Transfusion, requests: Sequence[Request], max_new: int) -> int:
    """Tokens that the longest of the documents may take, at most: its prompt, `max_new` more, and an item that begins last.
    Memory is taken as it is used."""
    vocabulary, coordinates = model.vocabulary, model.config.model.coordinates
    prompts = [len(tokenize_document(request.document, vocabulary, coordinates, add_eos=False)) for request in requests]
    longest = max((item_length(modality, modality.extents) for modality in vocabulary.modalities), default=0)
    return min(max(prompts, default=0) + max_new + longest, model.config.model.context_length)


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
