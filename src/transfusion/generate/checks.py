"""Checks of a request, before it is queued: what cannot be met is refused here, where it disturbs no other document."""

import math
from collections.abc import Hashable, Mapping
from dataclasses import replace
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from transfusion.data.document import Document, LazyMedia, Media, Text
from transfusion.data.tokenize import Coordinates, TokenSequence, tokenize_document
from transfusion.data.vocabulary import Vocabulary
from transfusion.diffusion.guidance import Guidance
from transfusion.generate.sizes import item_length
from transfusion.generate.state import Request


def check_types(request: Request) -> Request:
    """The request with Python's integers for other libraries' (random keys tell them apart). Raises ValueError for a field of
    a wrong type or out of its range; the message names it."""
    if not isinstance(request, Request):
        raise ValueError(f"the engine takes a Request, not {_kind(request)}; model.generate makes them of prompts")
    if not isinstance(request.document, Document) or not isinstance(request.document.segments, tuple):
        raise ValueError(f"document: a Document, not {_kind(request.document)}; document(...) makes one of strings and tensors")
    for index, segment in enumerate(request.document.segments):
        if not isinstance(segment, Text | Media):
            raise ValueError(f"document, segment {index}: Text or Media, not {_kind(segment)}")
        if isinstance(segment, Media) and not isinstance(segment.values, Tensor | LazyMedia | None):
            raise ValueError(f"document, segment {index}: values are a tensor, not {_kind(segment.values)}")
    if not isinstance(request.allow_eos, bool):
        raise ValueError(f"allow_eos: True or False, not {request.allow_eos!r}")
    if request.force is not None and not isinstance(request.force, str):
        raise ValueError(f"force: the name of a modality, not {request.force!r}")
    if not isinstance(request.sizes, Mapping):
        raise ValueError(f"sizes: a mapping of modality name to size, not {request.sizes!r}")
    noise = request.noise
    finite = isinstance(noise, Tensor) and noise.is_floating_point() and bool(noise.isfinite().all())
    if noise is not None and not finite and (isinstance(noise, Tensor) or not callable(noise)):
        raise ValueError("noise: a tensor of finite floating-point numbers, or a function that gives one for each item")
    if not isinstance(request.guidance, Guidance):
        raise ValueError(f"guidance: a Guidance, such as Guidance(text=3.0), not {request.guidance!r}")
    for name, value, methods, example in (
        ("decoding", request.decoding, ("choose",), "Greedy() or Sample()"),
        ("code_decoding", request.code_decoding, ("choose",), "Greedy() or Sample()"),
        ("sampler", request.sampler, ("step", "times", "rule"), "Euler(num_steps=25) or another of its kind"),
    ):
        if isinstance(value, type) or not all(callable(getattr(value, method, None)) for method in methods):
            raise ValueError(f"{name}: {example}, with {' and '.join(methods)}, not {value!r}")
        if not isinstance(value, Hashable):
            raise ValueError(f"{name}: {value!r} cannot be told from others (no hash): make it a frozen dataclass")
    _integer("sampler.num_steps", request.sampler.num_steps, 1)
    return replace(
        request,
        seed=_integer("seed", request.seed),
        max_tokens=_integer("max_tokens", request.max_tokens, 0),
        max_items=None if request.max_items is None else _integer("max_items", request.max_items, 0),
        max_length=None if request.max_length is None else _integer("max_length", request.max_length, 1),
        max_new=None if request.max_new is None else _integer("max_new", request.max_new, 0),
        size=None if request.size is None else _size("size", request.size),
        sizes={name: _size(f"sizes[{name!r}]", size) for name, size in request.sizes.items()},
    )


def check_fit(
    request: Request, vocabulary: Vocabulary, coordinates: Coordinates, *, capacity: int, cache_slots: int
) -> TokenSequence:
    """The prompt as tokens. Raises ValueError: a prompt item, a size or initial noise that does not fit its modality, an
    unknown modality, a prompt longer than the context (or `max_length`), more cache slots than there are."""
    prompt = tokenize_document(request.document, vocabulary, coordinates, add_eos=False)
    for item in prompt.items:
        if item.media.values is None:
            raise ValueError("a prompt's items need values; to have one generated, leave it out and force its modality")
        item.media.tensor()  # raises for bad values
    prompt.with_codes()  # likewise
    for name in request.sizes:
        request.fixed_grid(vocabulary.modality(name))
    length, limit = len(prompt), min(capacity, request.max_length or capacity)
    if request.force is not None:
        modality = vocabulary.modality(request.force)
        grid = request.forced_grid(modality)
        shape = (modality.channels, *modality.shape_of(grid))
        if isinstance(request.noise, Tensor) and tuple(request.noise.shape) != shape:
            raise ValueError(f"the initial noise has shape {tuple(request.noise.shape)}, the item has {shape}")
        length += item_length(modality, grid)
    if length > limit:
        taken = f"the prompt{' and the forced item' if request.force else ''} take {length} tokens"
        limited = "the context has" if limit == capacity else "max_length is"
        raise ValueError(f"{taken}, {limited} {limit}: shorten the prompt")
    if request.cache_slots > cache_slots:
        raise ValueError(f"this request needs {request.cache_slots} cache slots, the engine has {cache_slots}")
    return prompt


def _kind(value: object) -> str:
    return f"{type(value).__name__} {str(value)[:40]!r}"


def _integer(name: str, value: Any, least: float = -math.inf) -> int:
    if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
        bound = "" if least == -math.inf else f" of {least} or more"
        raise ValueError(f"{name}: a whole number{bound}, not {value!r}")
    return int(value)


def _size(name: str, value: Any) -> tuple[int, ...]:
    if not isinstance(value, tuple | list | torch.Size):
        raise ValueError(f"{name}: a tuple of whole numbers, one for each axis, not {value!r}")
    return tuple(_integer(name, extent, 1) for extent in value)
