"""Arguments and results of `model(lists, ...)`: documents with times and noise; breakdown of the loss, times, predictions."""

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import accumulate, chain
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from transfusion import api
from transfusion.compat.checks import check_number
from transfusion.compat.lists import TEXT_DTYPES, Lists
from transfusion.compat.sampling import only_modality
from transfusion.data.batch import Batch
from transfusion.data.document import Document, Media, Text
from transfusion.data.tokenize import TokenSequence
from transfusion.diffusion import times as time_distributions
from transfusion.diffusion.times import Uniform
from transfusion.model.denoising import NoisedGroup
from transfusion.model.losses import Losses
from transfusion.nn.attention import AttentionMetadata


class Breakdown(NamedTuple):
    """The terms of a loss, each its own mean and not yet weighted; `flow` has one entry a modality, by its index."""

    total: Tensor
    text: Tensor
    flow: tuple[Tensor, ...]
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
        documents = lists.documents([[(index, item)] for item in batch], encode=encode, all_errors=all_errors)
        return [replace(document, language_loss=False) for document in documents], True
    if batch.dtype not in TEXT_DTYPES:
        raise ValueError(f"ids are int64 or int32, latents floating point, not {batch.dtype}: convert with .long() or .float()")
    if batch.ndim != 2:
        raise ValueError(f"ids are [document, length], not of shape {tuple(batch.shape)}; put one text in a list: [[ids]]")
    return lists.documents([[ids] for ids in batch], all_errors=all_errors), False


def with_times(model: api.Transfusion, documents: list[Document], times: Any, function: Any) -> list[Document]:
    """The documents, with the arguments `times` or `num_modalities_to_times_fn` as the times of their items. Raises
    ValueError for both at once, other counts than items, or a time outside [0, 1]."""
    if times is None and function is None:
        return documents
    counts = [len(document.media) for document in documents]
    if function is not None:
        if times is not None:
            raise ValueError("give times or num_modalities_to_times_fn, not both")
        if not callable(function):
            raise ValueError(f"num_modalities_to_times_fn is a function of the numbers of items, not {function!r}")
        times = function(torch.tensor(counts))
    if callable(times):
        times = [times(count) for count in counts]
    if isinstance(times, Tensor) and times.ndim == 1 and len(times) == len(documents):
        times = times[:, None]
    distribution = model.config.model.diffusion.times
    steps = distribution.num_steps if isinstance(distribution, Uniform) and distribution.num_steps else 1000

    def interval(_: Media, t: Any) -> dict[str, Any]:
        t = t.item() if isinstance(t, Tensor) else t
        t = t / steps if type(t) is int else t
        check_number(f"a time (a whole number counts steps of {steps})", t, 0, 1)
        return {"times": (t, t)}

    return _with_fields(documents, "times", times, interval)


def with_noise(lists: Lists, documents: list[Document], noise: Any) -> list[Document]:
    """The documents, with the argument `noise` as the noise of their items. Raises ValueError for other counts or shapes."""

    def latents(media: Media, tensor: Any) -> dict[str, Any]:
        if not isinstance(tensor, Tensor):
            raise ValueError(f"noise is a tensor shaped like its item, not {tensor!r}")
        return {"noise": lists.latents(tensor, lists.index(media.modality))}

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
        items = iter(sequence.items)
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
    extra = {term.name: term.mean.value for term in losses.auxiliary}
    zero = torch.zeros_like(total)
    return Breakdown(
        total,
        losses.text.value,
        tuple(mean.value for mean in losses.by_modality),
        *(extra.get(name, zero) for name in ("consistency", "reconstruction", "representation")),
    )


def item_times(model: api.Transfusion, batch: Batch, sequences: Sequence[TokenSequence]) -> list[list[float]]:
    """The time of each item, a list for each document."""
    drawn = _by_slot(batch, [times.tolist() for times in _draw_times(model, batch)])
    starts = accumulate(map(len, sequences), initial=0)
    return [[drawn[start + item.start] for item in s.items] for start, s in zip(starts, sequences, strict=False)]


def predictions(
    model: api.Transfusion,
    lists: Lists,
    batch: Batch,
    documents: Sequence[Document],
    sequences: Sequence[TokenSequence],
    *,
    noised: bool,
) -> list[list[Tensor]]:
    """For each document an entry for each segment: logits [length, ids] of the token after each of a text's tokens; the
    prediction of an item, shaped like its latents. `noised`: the latents of the batch are noised already."""
    if noised:
        times = [t.to(g.values.device) for g, t in zip(batch.media, _draw_times(model, batch), strict=True)]
        media = [NoisedGroup(g.modality, g.grid, g.values, t, g.slots) for g, t in zip(batch.media, times, strict=True)]
    else:
        media = model.network.add_noise(batch)
    metadata = AttentionMetadata.of_rows(batch.documents, batch.spans, batch.private)
    h, skips = model.network.hidden(batch.tokens, batch.positions, media, metadata=metadata)
    predicted = _by_slot(batch, [list(p) for p in model.network.predict(h, media, skips)])
    results, offset = [], 0
    for document, sequence in zip(documents, sequences, strict=True):
        outputs, slot, items = [], offset + 1, list(sequence.items)
        for segment in document.segments:
            if isinstance(segment, Text):
                count = len(model.vocabulary.encode(segment.content))
                outputs.append(model.network.head(h[slot : slot + count]))
                slot += count
                continue
            item = items.pop(0)
            outputs.append(lists.oriented(predicted[offset + item.start], item.modality))
            while items and items[0].index == item.index:  # the clean copy of a dual item
                item = items.pop(0)
            slot = offset + item.start + math.prod(item.grid) + 1
        results.append(outputs)
        offset += len(sequence)
    return results


def _draw_times(model: api.Transfusion, batch: Batch) -> list[Tensor]:
    """The times of each group's items, drawn by their keys as `Network.add_noise` draws them."""
    distribution = model.config.model.diffusion.times
    return [time_distributions.sample_times(distribution, group.keys.tolist(), group.times) for group in batch.media]


def _by_slot(batch: Batch, values: Sequence[Sequence[Any]]) -> dict[int, Any]:
    """First slot of an item -> its value, for the values of each group."""
    slots = [int(slot) for group in batch.media for slot in group.slots[:, 0]]
    return dict(zip(slots, chain.from_iterable(values), strict=True))


def create_dataloader(dataset: Any, **options: Any) -> DataLoader[Any]:
    """A `DataLoader` that leaves lists of items as they are: a batch is a list of the dataset's entries.

    Raises:
        ValueError: a `collate_fn` among the options.
    """
    if "collate_fn" in options:
        raise ValueError("create_dataloader brings its own collate_fn; with another, use torch's DataLoader")
    return DataLoader(dataset, collate_fn=list, **options)
