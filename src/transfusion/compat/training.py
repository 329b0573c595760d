"""Arguments of `model(lists, ...)`, as documents with times and noise; and the breakdown of the loss."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from transfusion import api
from transfusion.compat.checks import check_number
from transfusion.compat.lists import PADDING, TEXT_DTYPES, Lists
from transfusion.compat.sampling import only_modality
from transfusion.data.document import Document, Media, Text
from transfusion.data.tokenize import TokenSequence
from transfusion.diffusion.times import Uniform
from transfusion.model.losses import Losses, MediaMean


class Terms(NamedTuple):
    """The terms of a loss, each its own mean and not yet weighted, with an entry a modality in the lists. A list is None where
    that loss is off, or has no EMA model to compare with."""

    total: Tensor
    text: Tensor
    flow: list[Tensor]
    velocity: list[Tensor] | None
    recon: list[Tensor] | None


class Breakdown(Terms):
    """`Terms`, and beside their fields the means over all modalities of the auxiliary losses: `consistency` (of `velocity`),
    `reconstruction` (of `recon`) and `representation`; 0 where they are off."""

    consistency: Tensor
    reconstruction: Tensor
    representation: Tensor


# ---- arguments ------------------------------------------------------------------------------------------------------


def read(lists: Lists, batch: Any, modality_type: int | None, *, encode: bool, all_errors: bool) -> tuple[list[Document], bool]:
    """Documents of lists, of token ids or of latents; and whether each is complete (a row of ids is part of a longer text).
    Raises ValueError: what is wrong with which document and item."""
    if not isinstance(batch, Tensor):
        if modality_type is not None:
            raise ValueError("modality_type is for a tensor of latents; in a list, write (index, tensor)")
        return lists.documents(batch, encode=encode, all_errors=all_errors), True
    if not batch.numel():
        raise ValueError(f"a tensor of shape {tuple(batch.shape)} holds nothing")
    if batch.is_floating_point():
        if not batch.ndim:
            raise ValueError("latents are [item, ...], not a single number")
        index = only_modality(lists.vocabulary, modality_type)
        if not lists.vocabulary.modalities:
            raise ValueError("this model has text alone; for items give it dim_latent, and modality_default_shape")
        items = [[(index, item)] for item in batch]
        documents = lists.documents(items, encode=encode, any_axes=True, all_errors=all_errors)
        return [replace(document, language_loss=False) for document in documents], True
    if batch.dtype not in TEXT_DTYPES:
        raise ValueError(f"ids are int64 or int32, latents floating point, not {batch.dtype}: convert with .long() or .float()")
    if batch.ndim != 2:
        raise ValueError(f"ids are [document, length], not of shape {tuple(batch.shape)}; put one text in a list: [[ids]]")
    return lists.documents([[ids] for ids in batch], all_errors=all_errors), False


def with_times(
    model: api.Transfusion, documents: list[Document], times: Any = None, function: Any = None, noise_levels: Any = None
) -> list[Document]:
    """The documents, with one of three arguments as the times of their items: `noise_levels` (0 clean, 1 noise), or `times` or
    `num_modalities_to_times_fn` (0 noise, 1 clean). Raises ValueError for two at once, other counts than items, or a time
    outside [0, 1]."""
    given = [name for name, value in (("times", times), ("num_modalities_to_times_fn", function)) if value is not None]
    given += ["noise_levels"] if noise_levels is not None else []
    if not given:
        return documents
    if len(given) > 1:
        raise ValueError(f"give one of {' and '.join(given)}, not both")
    counts = [len(document.media) for document in documents]
    if function is not None:
        if not callable(function):
            raise ValueError(f"num_modalities_to_times_fn is a function of the numbers of items, not {function!r}")
        times = function(torch.tensor(counts))
    values = times if noise_levels is None else noise_levels
    if callable(values):
        values = [values(count) for count in counts]
    if isinstance(values, Tensor) and values.ndim == 1 and len(values) == len(documents):
        values = values[:, None]
    distribution = model.config.model.diffusion.times
    steps = distribution.num_steps if isinstance(distribution, Uniform) and distribution.num_steps else 1000

    def interval(_: Media, t: Any) -> dict[str, Any]:
        t = t.item() if isinstance(t, Tensor) else t
        if noise_levels is None:
            remedy = "; steps of T are given as noise_levels" if type(t) is int and t > 1 else ""
            check_number(f"a time (0 noise, 1 clean{remedy})", t, 0, 1)
            t = 1.0 - t
        else:
            t = t / steps if type(t) is int else t
            check_number(f"a noise level (0 clean, 1 noise; a whole number counts steps of {steps})", t, 0, 1)
        return {"times": (t, t)}

    return _with_fields(documents, given[0], values, interval)


def random_modality_length_to_time_fn(num_modalities: Tensor) -> Tensor:
    """Uniform times, for `num_modalities_to_times_fn`: numbers of items, Int[document] -> Float[document, item]."""
    return torch.rand(len(num_modalities), int(num_modalities.max()), device=num_modalities.device)


def with_noise(lists: Lists, documents: list[Document], noise: Any) -> list[Document]:
    """The documents, with the argument `noise` as the noise of their items. Raises ValueError for other counts or shapes."""

    def latents(media: Media, tensor: Any) -> dict[str, Any]:
        if not isinstance(tensor, Tensor):
            raise ValueError(f"noise is a tensor shaped like its item, not {tensor!r}")
        return {"noise": lists.like(tensor, media, lists.index(media.modality))}

    return documents if noise is None else _with_fields(documents, "noise", noise, latents)


def _with_fields(
    documents: list[Document], name: str, rows: Any, fields: Callable[[Media, Any], dict[str, Any]]
) -> list[Document]:
    """The documents, with an argument that has a row for each document, an entry for each item, as fields of the items."""
    if not isinstance(rows, Tensor | Sequence) or isinstance(rows, str) or len(rows) != len(documents):
        count = len(rows) if isinstance(rows, Tensor | Sequence) else "no"
        raise ValueError(f"{name} has {count} rows for {len(documents)} documents: give a list for each")
    results = []
    for index, (document, row) in enumerate(zip(documents, rows, strict=True)):
        count = len(document.media)
        if isinstance(row, Tensor) and row.ndim:
            row = list(row[:count])  # as many columns as the document with most items needs
        if not isinstance(row, list | tuple) or len(row) != count:
            raise ValueError(f"document {index} has {count} items and {name} {str(row)[:60]}: give a list with one an item")
        entries = iter(row)
        try:
            segments = [replace(s, **fields(s, next(entries))) if isinstance(s, Media) else s for s in document.segments]
        except ValueError as error:
            raise ValueError(f"document {index}, {name}: {error}") from error
        results.append(replace(document, segments=tuple(segments)))
    return results


def print_layout(documents: Sequence[Document], sequences: Sequence[TokenSequence]) -> None:
    """Print the length of each document, and the kind and size of its items, to stderr."""
    for index, (document, sequence) in enumerate(zip(documents, sequences, strict=True)):
        items = iter([item for item in sequence.items if item.copy != "clean"])
        lines = []
        for at, segment in enumerate(document.segments):
            if isinstance(segment, Text):
                unit = "ids" if isinstance(segment.content, tuple) else "letters"
                lines.append(f"item {at}: text, {len(segment.content)} {unit}")
                continue
            item = next(items)
            shape, slots = tuple(segment.tensor().shape), " x ".join(map(str, item.grid)) or "1"
            lines.append(f"item {at}: {segment.modality}, latents {shape}, slots {slots} at token {item.start}")
        print(f"document {index}: {len(sequence)} tokens", *lines, sep="\n  ", file=sys.stderr)


# ---- results --------------------------------------------------------------------------------------------------------


def breakdown(total: Tensor, losses: Losses) -> Breakdown:
    """The terms of `losses`, of which `total` is the weighted sum."""
    means = {term.name: term.mean for term in losses.auxiliary}
    zero, count = torch.zeros_like(total), len(losses.by_modality)

    def each(name: str) -> list[Tensor] | None:
        mean = means.get(name)
        values = [part.value for part in mean.by_modality] if isinstance(mean, MediaMean) else []
        return None if mean is None else values + [zero] * (count - len(values))

    flow = [mean.value for mean in losses.by_modality]
    terms = Breakdown(total, losses.text.value, flow, each("consistency"), each("reconstruction"))
    for name in ("consistency", "reconstruction", "representation"):
        setattr(terms, name, means[name].value if name in means else zero)
    return terms


def as_times(levels: list[list[float]]) -> Tensor:
    """Noise levels of items -> times (0 noise, 1 clean), Float[document, most items], 1 where a document has fewer."""
    longest = max(map(len, levels), default=0)
    return torch.tensor([[1 - level for level in row] + [1.0] * (longest - len(row)) for row in levels]).view(-1, longest)


def after_each(logits: Tensor, ids: Tensor) -> Tensor:
    """Logits [document, longest, id] of sequences that begin with BOS -> those after each of the ids Int[document, length] that
    the sequences were made of; zeros at padding."""
    kept = (ids != PADDING).to(logits.device)
    after = torch.cat([source[1 : 1 + count] for source, count in zip(logits, kept.sum(1).tolist(), strict=True)])
    return logits.new_zeros(*ids.shape, logits.shape[-1]).index_put((kept,), after)


def create_dataloader(dataset: Any, **options: Any) -> DataLoader[Any]:
    """A `DataLoader` that leaves lists of items as they are: a batch is a list of the dataset's entries.

    Raises:
        ValueError: a `collate_fn` among the options.
    """
    if "collate_fn" in options:
        raise ValueError("create_dataloader brings its own collate_fn; with another, use torch's DataLoader")
    return DataLoader(dataset, collate_fn=list, **options)
