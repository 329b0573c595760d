"""What the network puts out for lists of tensors: predictions by segment, logits, hidden states, flows, times."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from transfusion import api
from transfusion.compat.lists import Lists
from transfusion.data.batch import Batch
from transfusion.data.document import Document, Media, Text
from transfusion.data.tokenize import MediaSpan, TokenSequence
from transfusion.diffusion import times as time_distributions
from transfusion.model.denoising import NoisedGroup
from transfusion.nn.attention import AttentionMetadata


@dataclass(frozen=True, eq=False)
class Place:
    """An item of a batch: its document, its first slot in that, its group and its place in the group."""

    document: int
    span: MediaSpan
    group: int
    index: int


class Outputs:
    """One pass of the network over documents in one row.

    Args:
        batch, documents, sequences: the row, and what it was made of.
        noised: the latents of the batch are noised already, to their times.
        layers: whether the output of each layer is kept.
    """

    def __init__(
        self,
        model: api.Transfusion,
        lists: Lists,
        batch: Batch,
        documents: Sequence[Document],
        sequences: Sequence[TokenSequence],
        *,
        noised: bool = False,
        layers: bool = False,
    ) -> None:
        self.model, self.lists, self.documents, self.sequences = model, lists, documents, sequences
        self.media = noised_media(model, batch) if noised else model.network.add_noise(batch)
        self.layers: list[Tensor] = []
        metadata = AttentionMetadata.of_rows(batch.documents, batch.spans, batch.private)
        kept = self.layers if layers else None
        self.h, self.skips = model.network.hidden(batch.tokens, batch.positions, self.media, metadata=metadata, layers=kept)
        self.starts = list(accumulate(map(len, sequences), initial=0))
        slots = {int(slot): (g, i) for g, group in enumerate(self.media) for i, slot in enumerate(group.slots[:, 0])}
        items = [(d, span) for d, s in enumerate(sequences) for span in s.items if span.copy != "clean"]
        self.places = [Place(d, span, *slots[self.starts[d] + span.start]) for d, span in items]

    def padded(self, x: Float[Tensor, "length ..."]) -> Float[Tensor, "document longest ..."]:
        """A row's vectors by document, zeros behind the shorter ones."""
        lengths = [len(sequence) for sequence in self.sequences]
        return torch.nn.utils.rnn.pad_sequence(list(x[: sum(lengths)].split(lengths)), batch_first=True)

    def logits(self) -> Float[Tensor, "document longest id"]:
        """The logits of the token after each token of the sequences, control tokens included."""
        return self.padded(self.model.network.head(self.h))

    def hiddens(self) -> list[Float[Tensor, "document longest width"]]:
        """The output of each layer."""
        return [self.padded(layer.flatten(0, 1)) for layer in self.layers]

    def flow(self, prediction: Tensor, group: NoisedGroup) -> Tensor:
        """A group's prediction as the velocity from noise to data, x0 - eps, which on the straight path is the derivative of
        the latents by transfusion-pytorch's time."""
        diffusion = self.model.config.model.diffusion
        x0, eps = diffusion.to_x0_eps(diffusion.prediction, prediction, group.latents.to(prediction), group.times)
        return x0 - eps

    def predictions(self) -> list[Tensor]:
        """The prediction of each group."""
        return self.model.network.predict(self.h, self.media, self.skips)

    def flows(self) -> list[list[Tensor]]:
        """The flow of each item shaped like its latents, a list for each modality."""
        flows = [self.flow(p, group) for p, group in zip(self.predictions(), self.media, strict=True)]
        by_modality: list[list[Tensor]] = [[] for _ in self.lists.vocabulary.modalities]
        for place in self.places:
            by_modality[place.span.modality].append(self._shaped(flows[place.group][place.index], place.span))
        return by_modality

    def flow_functions(self) -> dict[int, list[Callable[[Tensor], Tensor]]]:
        """For each modality that occurs a function for each item, from embeddings [document, longest, width] to its flow."""
        functions: dict[int, list[Callable[[Tensor], Tensor]]] = {}
        for place in self.places:
            functions.setdefault(place.span.modality, []).append(lambda embed, place=place: self._flow_of(place, embed))
        return functions

    def _flow_of(self, place: Place, embed: Tensor) -> Tensor:
        group, start, at = self.media[place.group], place.span.start, slice(place.index, place.index + 1)
        slots = embed[place.document, start : start + math.prod(place.span.grid)][None]
        prediction = self.model.network.patcher_of(group.modality).decode(slots, _rows(self.skips[place.group], at), group.grid)
        one = NoisedGroup(group.modality, group.grid, group.latents[at], group.times[at], group.slots[at])
        return self._shaped(self.flow(prediction, one)[0], place.span)

    def segments(self) -> list[list[Tensor]]:
        """For each document an entry for each segment: logits [length, ids] of the token after each of a text's tokens; the
        prediction of an item, shaped like its latents."""
        predictions = self.predictions()
        spans = {(place.document, place.span.start): predictions[place.group][place.index] for place in self.places}
        results = []
        for d, (document, sequence) in enumerate(zip(self.documents, self.sequences, strict=True)):
            outputs, slot, items = [], 1, list(sequence.items)
            for segment in document.segments:
                if isinstance(segment, Text):
                    count = len(self.model.vocabulary.encode(segment.content))
                    outputs.append(self.model.network.head(self.h[self.starts[d] + slot :][:count]))
                    slot += count
                    continue
                item = items.pop(0)
                outputs.append(self._shaped(spans[d, item.start], item))
                while items and items[0].index == item.index:  # the clean copy of a dual item
                    item = items.pop(0)
                slot = item.start + math.prod(item.grid) + 1
            results.append(outputs)
        return results

    def _shaped(self, latents: Tensor, span: MediaSpan) -> Tensor:
        media: Media = span.media
        return self.lists.oriented(latents, span.modality, media)


def _rows(skip: Any, at: slice) -> Any:
    """The part of a patcher's skip, tensors in lists and tuples, that belongs to these items."""
    if isinstance(skip, tuple | list):
        return type(skip)(_rows(part, at) for part in skip)
    return skip[at] if isinstance(skip, Tensor) else skip


def noised_media(model: api.Transfusion, batch: Batch) -> list[NoisedGroup]:
    """The media of a batch whose latents are noised already."""
    times = [t.to(g.values.device) for g, t in zip(batch.media, _draw_times(model, batch), strict=True)]
    return [NoisedGroup(g.modality, g.grid, g.values, t, g.slots) for g, t in zip(batch.media, times, strict=True)]


def item_times(model: api.Transfusion, batch: Batch, sequences: Sequence[TokenSequence]) -> list[list[float]]:
    """The time of each item (0 clean, 1 noise), a list for each document."""
    slots = [int(slot) for group in batch.media for slot in group.slots[:, 0]]
    drawn: dict[int, Any] = dict(zip(slots, chain.from_iterable(t.tolist() for t in _draw_times(model, batch)), strict=True))
    starts = accumulate(map(len, sequences), initial=0)
    return [
        [drawn[start + item.start] for item in s.items if item.copy != "clean"]
        for start, s in zip(starts, sequences, strict=False)
    ]


def _draw_times(model: api.Transfusion, batch: Batch) -> list[Tensor]:
    """The times of each group's items, drawn by their keys as `Network.add_noise` draws them."""
    distribution = model.config.model.diffusion.times
    return [time_distributions.sample_times(distribution, group.keys.tolist(), group.times) for group in batch.media]
