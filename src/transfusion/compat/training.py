"""Arguments and results of `model(lists, ...)`: documents with times and noise; breakdown of the loss, times, predictions."""

import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from transfusion import api
from transfusion.compat.lists import TEXT_DTYPES, Lists
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


def read(
    model: api.Transfusion, lists: Lists, batch: Any, modality_type: int | None, *, encode: bool
) -> tuple[list[Document], bool]:
    """Documents of lists, of token ids or of latents; and whether each is complete (a row of ids is part of a longer text)."""
    if not isinstance(batch, Tensor):
        if modality_type is not None:
            raise ValueError("modality_type is for a tensor of latents; in a list, write (index, tensor)")
        return lists.documents(batch, encode=encode), True
    if not batch.numel():
        raise ValueError(f"a tensor of shape {tuple(batch.shape)} holds nothing")
    if batch.is_floating_point():
        if modality_type is None and len(model.vocabulary.modalities) > 1:
            raise ValueError("this model has several modalities: say which with modality_type")
        if not batch.ndim:
            raise ValueError("latents are [item, ...], not a single number")
        documents = lists.documents([[(modality_type or 0, item)] for item in batch], encode=encode)
        return [replace(document, language_loss=False) for document in documents], True
    if batch.dtype not in TEXT_DTYPES:
        raise ValueError(f"ids are int64 or int32, latents floating point, not {batch.dtype}: convert with .long() or .float()")
    if batch.ndim != 2:
        raise ValueError(f"ids are [document, length], not of shape {tuple(batch.shape)}; put one text in a list: [[ids]]")
    return lists.documents([[ids] for ids in batch]), False


def with_times(model: api.Transfusion, documents: Sequence[Document], times: Any, function: Any) -> list[Document]:
    """The documents, with the arguments `times` or `num_modalities_to_times_fn` as the times of their items."""
    if times is None and function is None:
        return list(documents)
    counts = [len(document.media) for document in documents]
    if function is not None:
        if times is not None:
            raise ValueError("give times or num_modalities_to_times_fn, not both")
        if not callable(function):
            raise ValueError(f"num_modalities_to_times_fn is a function of the numbers of items, not {function!r}")
        times = function(torch.tensor(counts))
    if callable(times):
        times = [times(count) for count in counts]
    if not isinstance(times, Tensor | Sequence) or isinstance(times, str):
        raise ValueError(f"times is a list of numbers for each document, [[0.5, ...], ...], not {times!r}")
    if isinstance(times, Tensor) and times.ndim == 1 and len(times) == len(documents):
        times = times[:, None]
    if len(times) != len(documents):
        raise ValueError(f"times has {len(times)} rows for {len(documents)} documents")
    distribution = model.config.model.diffusion.times
    steps = distribution.num_steps if isinstance(distribution, Uniform) and distribution.num_steps else 1000
    timed = []
    for index, (document, row) in enumerate(zip(documents, times, strict=True)):
        values = iter(_times_of_document(index, row, counts[index], steps))
        segments = tuple(replace(s, times=(t := next(values), t)) if isinstance(s, Media) else s for s in document.segments)
        timed.append(replace(document, segments=segments))
    return timed


def _times_of_document(index: int, row: Any, count: int, steps: int) -> list[float]:
    padded = isinstance(row, Tensor)  # a tensor has as many columns as the document with most items needs
    row = row.tolist() if isinstance(row, Tensor) else row
    if not isinstance(row, list | tuple) or any(isinstance(t, bool) or not isinstance(t, int | float) for t in row):
        raise ValueError(f"document {index}: times are numbers, one an item, not {str(row)[:60]}")
    if len(row) < count or (len(row) > count and not padded):
        raise ValueError(f"document {index} has {count} items and {len(row)} times: give one an item")
    times = [float(t) / steps if isinstance(t, int) else t for t in row[:count]]
    for t in times:
        if not 0 <= t <= 1:
            raise ValueError(f"document {index}: time {t} is outside [0, 1] (whole numbers are steps of {steps})")
    return times


def with_noise(lists: Lists, documents: list[Document], noise: Any) -> list[Document]:
    """The documents, with the argument `noise` as the noise of their items."""
    if noise is None:
        return documents
    if not isinstance(noise, Tensor | Sequence) or len(noise) != len(documents):
        count = len(noise) if isinstance(noise, Sequence) else "no"
        raise ValueError(f"noise has {count} entries for {len(documents)} documents: give a list of tensors for each")
    return [lists.with_noise(i, document, list(row)) for i, (document, row) in enumerate(zip(documents, noise, strict=True))]


def report_all_errors(lists: Lists, batch: Any) -> None:
    """Raises ValueError with a line for each item of a batch of lists that cannot be taken."""
    if isinstance(batch, Tensor) or not isinstance(batch, Sequence):
        return
    problems = lists.problems(batch)
    if problems:
        raise ValueError("\n".join([f"{len(problems)} items cannot be taken:", *problems]))


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
            assert segment.values is not None
            shape, slots = tuple(segment.values.shape), " x ".join(map(str, item.grid)) or "1"
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
    results, offset = [], 0
    for sequence in sequences:
        results.append([drawn[offset + item.start] for item in sequence.items])
        offset += len(sequence)
    return results


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
    """The times of each group's items, drawn by their keys as `Network.noise` draws them."""
    distribution = model.config.model.diffusion.times
    return [time_distributions.sample_times(distribution, group.keys.tolist(), group.times) for group in batch.media]


def _by_slot(batch: Batch, values: Sequence[Sequence[Any]]) -> dict[int, Any]:
    """First slot of an item -> its value, for the values of each group."""
    return {
        int(slot): value
        for group, items in zip(batch.media, values, strict=True)
        for slot, value in zip(group.slots[:, 0], items, strict=True)
    }


def create_dataloader(dataset: Any, **options: Any) -> DataLoader[Any]:
    """A `DataLoader` that leaves lists of items as they are: a batch is a list of the dataset's entries.

    Raises:
        ValueError: a `collate_fn` among the options.
    """
    if "collate_fn" in options:
        raise ValueError("create_dataloader brings its own collate_fn; with another, use torch's DataLoader")
    return DataLoader(dataset, collate_fn=list, **options)
