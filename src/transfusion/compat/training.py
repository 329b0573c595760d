"""What the quick face learns from: `model(lists)` gives a loss, and what else is asked for."""

import math
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from transfusion import rng
from transfusion.compat.lists import TEXT_DTYPES, Held
from transfusion.data.batch import Batch, collate
from transfusion.data.document import ANY_TIME, Document, Media, Text
from transfusion.data.tokenize import TokenSequence, tokenize_document
from transfusion.data.transforms import ConditionDropout, DocumentTransform
from transfusion.diffusion import times as time_laws
from transfusion.diffusion.times import Uniform
from transfusion.model.auxiliary import Decoders
from transfusion.model.losses import Losses
from transfusion.model.network import Network
from transfusion.model.noised import NoisedGroup
from transfusion.nn.attention import AttentionMetadata

DEBUG = "TRANSFUSION_DEBUG"


class Breakdown(NamedTuple):
    """The parts of a loss, each its own mean and not yet weighted; `flow` has one entry a modality, by its index."""

    total: Tensor
    text: Tensor
    flow: tuple[Tensor, ...]
    consistency: Tensor
    reconstruction: Tensor
    representation: Tensor


class Learns(Held):
    """The methods that train."""

    def forward(
        self,
        batch: Batch | Tensor | Sequence[Any],
        *,
        modality_type: int | None = None,
        times: Any = None,
        noise: Sequence[Any] | None = None,
        num_modalities_to_times_fn: Callable[[Tensor], Tensor] | None = None,
        teacher: Any = None,
        velocity_consistency_ema_model: Any = None,
        decoders: Decoders | None = None,
        prob_uncond: float | None = None,
        seed: int | None = None,
        noised: bool = False,
        return_loss: bool = True,
        return_breakdown: bool = False,
        return_times: bool = False,
        return_predictions: bool = False,
        debug: bool | None = None,
    ) -> Any:
        """The losses of a `Batch`; or the loss of documents given as lists of tensors, a scalar.

        Args:
            batch: a Batch (then `Losses` come back, and only `teacher` and `decoders` may be given); a list of lists of items;
                ids Int[document, length], to train on language; or latents Float[item, ...], to train one modality alone.
            modality_type: modality of latents alone.
            times: when each item is trained, in this project's sense: 0 clean, 1 noise. A list of numbers for each document, a
                tensor [document, item], or a function of the number of items. Whole numbers are steps of the diffusion's T.
            noise: what each item is noised with, a list of tensors for each document.
            num_modalities_to_times_fn: from the numbers of items, Int[document], to times, Float[document, most items], in the
                same sense (0 clean, 1 noise; transfusion-pytorch counts the other way).
            teacher: this model under averaged weights (`create_ema`), for auxiliary losses that compare with it. The peer's
                name for it, velocity_consistency_ema_model, is taken too.
            decoders: modality name -> latents [item, channels, *size] to pixels or the like, for the reconstruction loss (None:
                the model's own, where it has some).
            prob_uncond: instead of the model's own: how often an item loses the text before it. Text is dropped in training
                mode only, and not where times, noise or predictions are asked for: these are of the documents as given.
            seed: names noise, times and dropped text; None: drawn from torch's generator.
            noised: the latents are noised already, to `times`; then there is no loss, only predictions, and no encoder runs.
            return_loss: False: predictions alone come back.
            return_breakdown: also a `Breakdown`.
            return_times: also the time of each item, a list of lists.
            return_predictions: also what the network says: a list for each document, an entry for each of its segments: for
                text the logits of what follows each token, [length, ids]; for an item its prediction, shaped like its latents.
            debug: name every fault of every item at once, and print how each document is laid out (None: if the environment
                variable TRANSFUSION_DEBUG is 1).

        In training mode an item that something later is learned from gets at most half the noise (the paper's Table 8), unless
        its time is given.

        Raises:
            ValueError: what is wrong with which item of which document, before anything is computed.
        """
        teacher = teacher if velocity_consistency_ema_model is None else velocity_consistency_ema_model
        if isinstance(batch, Batch):
            return self._losses(batch, teacher, decoders)
        if debug is None:
            debug = os.environ.get(DEBUG, "") not in ("", "0")
        parts = self.parts
        if debug and not isinstance(batch, Tensor) and isinstance(batch, Sequence):
            problems = parts.problems(batch)
            if problems:
                raise ValueError("\n".join([f"{len(problems)} items cannot be taken:", *problems]))
        documents, add_eos = self._documents(batch, modality_type, encode=not noised)
        if times is not None or num_modalities_to_times_fn is not None:
            documents = self._timed(documents, times, num_modalities_to_times_fn)
        elif noised:
            raise ValueError("noised latents need the times at which they stand: give times")
        if noise is not None:
            if not isinstance(noise, Tensor | Sequence) or len(noise) != len(documents):
                count = len(noise) if isinstance(noise, Sequence) else "no"
                raise ValueError(f"noise has {count} entries for {len(documents)} documents: give a list of tensors for each")
            documents = parts.noises(noise, documents)
        if seed is None:
            seed = int(torch.randint(1 << 62, ()))
        drop = self.drop if prob_uncond is None else ConditionDropout(text=prob_uncond)
        given = noise is not None or any(m.times != ANY_TIME for one in documents for m in one.media)
        if self.training and not noised:
            as_given = given or return_times or return_predictions or not return_loss
            compose = DocumentTransform(
                image_first=0.0,
                condition_noise_max=1.0 if given else 0.5,
                condition_dropout=ConditionDropout(0.0) if as_given else drop,
            )
            documents = [compose(one, seed, 0, i) for i, one in enumerate(documents)]
        entries = self.entries(documents, seed=seed, add_eos=add_eos)
        if debug:
            _show(documents, entries)
        rows = self.collate(entries)
        wanted: list[Any] = []
        if return_loss and not noised:
            losses = self._losses(rows, teacher, decoders)
            total = losses.total(self.network.config.media_weight) * self.quick.text_weight
            wanted.append(total)
            if return_breakdown:
                wanted.append(_breakdown(total, losses))
        if return_times:
            wanted.append(self._times(rows, entries))
        if return_predictions or not return_loss or noised:
            said = self._predictions(rows, documents, entries, noised)
            wanted.append(said if not isinstance(batch, Tensor) else torch.stack([one[0] for one in said]))
        return wanted[0] if len(wanted) == 1 else tuple(wanted)

    def _losses(self, batch: Batch, teacher: Any, decoders: Decoders | None) -> Losses:
        teacher = getattr(teacher, "network", teacher)
        if teacher is not None and not isinstance(teacher, Network):
            raise ValueError("the EMA model must be a Transfusion, or what its create_ema gives")
        if teacher is not None and not self.network.config.auxiliary.needs_ema_teacher:
            raise ValueError(
                "no loss is on that looks to an EMA model: give Transfusion velocity_consistency_loss_weight=0.1, or auxiliary="
            )
        unknown = [name for name in decoders or () if name not in self.network.patchers]
        if unknown:
            raise ValueError(f"decoders: no modality {unknown[0]!r}; this model has {list(self.network.patchers)}")
        return self.network(batch, teacher=teacher, decoders=self._decoders() if decoders is None else decoders)

    def _decoders(self) -> Decoders:
        """Latents [item, channels, *size] -> raw items, with gradient, by name of the modality."""
        parts = self.parts
        found = {n: a for n, a in parts.autoencoders.items() if a.decoder is not None}
        index = {m.name: i for i, m in enumerate(self.vocabulary.modalities)}
        return {n: lambda x, n=n, a=a: a.reconstruct(parts.proj_out(x, index[n])) for n, a in found.items()}

    def _documents(self, batch: Any, modality_type: int | None, *, encode: bool) -> tuple[list[Document], bool]:
        """Documents, and whether each is whole (a row of ids is a piece of a longer text, without an end)."""
        if not isinstance(batch, Tensor):
            if modality_type is not None:
                raise ValueError("modality_type is for a tensor of latents; in a list, write (index, tensor)")
            return self.parts.documents(batch, encode=encode), True
        if not batch.numel():
            raise ValueError(f"a tensor of shape {tuple(batch.shape)} holds nothing")
        if batch.is_floating_point():
            if modality_type is None and len(self.vocabulary.modalities) > 1:
                raise ValueError("this model has several modalities: say which with modality_type")
            if not batch.ndim:
                raise ValueError("latents are [item, ...], not a single number")
            found = self.parts.documents([[(modality_type or 0, one)] for one in batch], encode=encode)
            return [replace(one, language_loss=False) for one in found], True
        if batch.dtype not in TEXT_DTYPES:
            raise ValueError(
                f"ids are int64 or int32, latents floating point, not {batch.dtype}: convert with .long() or .float()"
            )
        if batch.ndim != 2:
            raise ValueError(f"ids are [document, length], not of shape {tuple(batch.shape)}; put one text in a list: [[ids]]")
        return self.parts.documents([[one] for one in batch]), False

    def _timed(self, documents: Sequence[Document], times: Any, function: Any) -> list[Document]:
        counts = [len(one.media) for one in documents]
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
        law = self.network.config.diffusion.times
        steps = law.num_steps if isinstance(law, Uniform) and law.num_steps else 1000
        found = []
        for index, (document, row) in enumerate(zip(documents, times, strict=True)):
            padded = isinstance(row, Tensor)  # a tensor has as many columns as the document with most items needs
            row = row.tolist() if isinstance(row, Tensor) else row
            if not isinstance(row, list | tuple) or any(isinstance(t, bool) or not isinstance(t, int | float) for t in row):
                raise ValueError(f"document {index}: times are numbers, one an item, not {str(row)[:60]}")
            if len(row) < counts[index] or (len(row) > counts[index] and not padded):
                raise ValueError(f"document {index} has {counts[index]} items and {len(row)} times: give one an item")
            row = iter([float(t) / steps if isinstance(t, int) else t for t in row])
            segments = []
            for segment in document.segments:
                if isinstance(segment, Media):
                    t = next(row)
                    if not 0 <= t <= 1:
                        raise ValueError(f"document {index}: time {t} is outside [0, 1] (whole numbers are steps of {steps})")
                    segment = replace(segment, times=(t, t))
                segments.append(segment)
            found.append(replace(document, segments=tuple(segments)))
        return found

    def entries(self, documents: Sequence[Document], *, seed: int, add_eos: bool = True) -> list[TokenSequence]:
        """Documents laid out, with their latents, and keys made of (seed, index of the document, item).

        Raises:
            ValueError: what is wrong with which document.
        """
        found = []
        for index, one in enumerate(documents):
            if not one.segments:
                raise ValueError(f"document {index} is empty: leave it out")
            named = one if one.name else replace(one, name=str(index))
            tokenized = tokenize_document(named, self.vocabulary, self.network.config.coordinates, add_eos=add_eos)
            if len(tokenized) > self.network.config.context_length:
                raise ValueError(
                    f"document {index} takes {len(tokenized)} tokens, the context has {self.network.config.context_length}"
                )
            try:
                found.append(tokenized.load(lambda item, index=index: rng.key(seed, index, item)))
            except ValueError as error:
                raise ValueError(f"document {index}: {error}") from error
        if not found:
            raise ValueError("no documents: give at least one")
        return found

    def collate(self, entries: Sequence[TokenSequence]) -> Batch:
        """Entries one behind the other in one row, so that nothing is padding."""
        length = sum(len(sequence) for sequence in entries)
        return collate([list(entries)], length, self.vocabulary, self.network.config.coordinates.axes).to(self.network.device)

    def _by_slot(self, batch: Batch, values: Sequence[Sequence[Any]]) -> dict[int, Any]:
        """First slot -> what belongs to that item, for values by group."""
        return {
            int(slot): one
            for group, some in zip(batch.media, values, strict=True)
            for slot, one in zip(group.slots[:, 0], some, strict=True)
        }

    def _times(self, batch: Batch, entries: Sequence[TokenSequence]) -> list[list[float]]:
        law = self.network.config.diffusion.times
        drawn = self._by_slot(batch, [time_laws.sample_times(law, g.keys.tolist(), g.times).tolist() for g in batch.media])
        found, at = [], 0
        for sequence in entries:
            found.append([drawn[at + item.start] for item in sequence.items])
            at += len(sequence)
        return found

    def _predictions(
        self, batch: Batch, documents: Sequence[Document], entries: Sequence[TokenSequence], noised: bool
    ) -> list[list[Tensor]]:
        if noised:
            law = self.network.config.diffusion.times
            drawn = [time_laws.sample_times(law, g.keys.tolist(), g.times).to(g.values.device) for g in batch.media]
            media = [NoisedGroup(g.modality, g.grid, g.values, t, g.slots) for g, t in zip(batch.media, drawn, strict=True)]
        else:
            media, _ = self.network.noise(batch)
        metadata = AttentionMetadata.of_rows(batch.documents, batch.spans, batch.private)
        h, skips = self.network.hidden(batch.tokens, batch.positions, media, metadata=metadata)
        said = self._by_slot(batch, [list(p) for p in self.network.predict(h, media, skips)])
        found, at = [], 0
        for document, sequence in zip(documents, entries, strict=True):
            out, here, items = [], at + 1, list(sequence.items)
            for segment in document.segments:
                if isinstance(segment, Text):
                    count = len(self.vocabulary.encode(segment.content))
                    out.append(self.network.head(h[here : here + count]))
                    here += count
                    continue
                item = items.pop(0)
                out.append(self.parts.proj_out(said[at + item.start], item.modality))
                while items and items[0].index == item.index:
                    item = items.pop(0)
                here = at + item.start + math.prod(item.grid) + 1
            found.append(out)
            at += len(sequence)
        return found

    # ---- what surrounds a loop of one's own -------------------------------------------------------------------------

    def parameters_without_encoder_decoder(self) -> list[nn.Parameter]:
        """What is to be trained: everything but the autoencoders."""
        return list(self.network.parameters())

    def create_dataloader(self, dataset: Any, **options: Any) -> DataLoader[Any]:
        """A `DataLoader` over lists of items, see `create_dataloader`."""
        return create_dataloader(dataset, **options)


def create_dataloader(dataset: Any, **options: Any) -> DataLoader[Any]:
    """A `DataLoader` that leaves lists of items as they are: a batch is a list of the dataset's entries.

    Raises:
        ValueError: a `collate_fn` among the options.
    """
    if "collate_fn" in options:
        raise ValueError("create_dataloader brings its own collate_fn; with another, use torch's DataLoader")
    return DataLoader(dataset, collate_fn=list, **options)


def _breakdown(total: Tensor, losses: Losses) -> Breakdown:
    extra = {term.name: term.mean.value for term in losses.auxiliary}
    zero = torch.zeros_like(total)
    return Breakdown(
        total,
        losses.text.value,
        tuple(mean.value for mean in losses.by_modality),
        *(extra.get(name, zero) for name in ("consistency", "reconstruction", "representation")),
    )


def _show(documents: Sequence[Document], entries: Sequence[TokenSequence]) -> None:
    """Print how documents were read."""
    for index, (document, sequence) in enumerate(zip(documents, entries, strict=True)):
        items = iter(sequence.items)
        lines = []
        for at, segment in enumerate(document.segments):
            if isinstance(segment, Text):
                lines.append(
                    f"item {at}: text, {len(segment.content)}{' ids' if isinstance(segment.content, tuple) else ' letters'}"
                )
                continue
            item = next(items)
            assert segment.values is not None
            shape, slots = tuple(segment.values.shape), " x ".join(map(str, item.grid)) or "1"
            lines.append(f"item {at}: {segment.modality}, latents {shape}, slots {slots} at token {item.start}")
        print(f"document {index}: {len(sequence)} tokens", *lines, sep="\n  ", file=sys.stderr)
