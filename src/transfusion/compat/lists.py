"""Nested lists of tensors <-> documents. An error names the document and the item, before anything is computed."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from transfusion.codec.autoencoder import Autoencoder
from transfusion.data.document import Document, Media, Segment, Text
from transfusion.data.vocabulary import Vocabulary
from transfusion.modality import Modality

TEXT_DTYPES = (torch.int64, torch.int32)


class Item(NamedTuple):
    """A media item of a sample: the index of its modality, and its tensor (decoded, where its modality has a decoder)."""

    modality_type: int
    tensor: Tensor


@dataclass(frozen=True)
class CompatConfig:
    """How lists of tensors are read: `compat.json` in the model folder.

    Args:
        channel_first: by modality, whether latents are [channels, *size] instead of [*size, channels].
        autoencoded: names of the modalities that had an encoder or a decoder, which are not saved with the model.
        text_loss_weight: factor on the whole loss (`ModelConfig.media_weight` is divided by it).
    """

    channel_first: tuple[bool, ...] = ()
    autoencoded: tuple[str, ...] = ()
    text_loss_weight: float = 1.0


@dataclass(eq=False)
class _Entry:
    """A checked entry of a list: a segment, or a raw item that is not encoded yet; neither where it is left out."""

    segment: Segment | None = None
    modality: int = 0
    tensor: Tensor | None = None
    weight: float = 1.0
    mask: Tensor | None = None
    where: str = ""


class Lists:
    """Reader and writer of lists of tensors for one model.

    Args:
        autoencoders: by name of the modality, where items are raw.
        config: orientation of latents.
    """

    def __init__(self, vocabulary: Vocabulary, autoencoders: Mapping[str, Autoencoder], config: CompatConfig) -> None:
        self.vocabulary, self.autoencoders, self.config = vocabulary, autoencoders, config

    # ---- lists -> documents -----------------------------------------------------------------------------------------

    def documents(self, samples: Sequence[Any], *, prompts: bool = False, encode: bool = True) -> list[Document]:
        """Documents of lists of tensors.

        Args:
            samples: a list with one entry a document: a list (or tuple) of items, or a Document.
            prompts: whether an entry may also be None (nothing), or one item alone; and may be empty.
            encode: whether raw items go through their encoder; False: items are latents.

        Raises:
            ValueError: what is wrong with which item of which document.
        """
        if isinstance(samples, Tensor | str | Document) or not isinstance(samples, Sequence):
            raise ValueError(f"a list with one entry a document is wanted, not {_what(samples)}: put it in a list")
        if not samples:
            raise ValueError("no documents: give at least one")
        read: list[Document | list[_Entry]] = []
        for index, sample in enumerate(samples):
            read.append(sample if isinstance(sample, Document) else self._sample(index, sample, prompts))
        if encode:
            self._encode([entry for entries in read if not isinstance(entries, Document) for entry in entries])
        return [self._document(index, entries) for index, entries in enumerate(read)]

    def problems(self, samples: Sequence[Any]) -> list[str]:
        """All errors of lists of tensors, a line an item; no encoder is run."""
        lines: list[str] = []
        for index, sample in enumerate(samples):
            whole = sample.segments if isinstance(sample, Document) else sample
            if not isinstance(whole, list | tuple) or _is_item(whole) or not whole:
                try:
                    self._sample(index, list(whole) if isinstance(sample, Document) else sample, False)
                except ValueError as error:
                    lines.append(str(error))
                continue
            for at, entry in enumerate(whole):
                try:
                    self._try(entry)
                except ValueError as error:
                    lines.append(f"document {index}, item {at}: {error}")
        return lines

    def _try(self, value: Any) -> None:
        """Raises ValueError for what is wrong with an entry of a list."""
        entry = self._entry(value)
        if entry.tensor is not None:
            self._check_raw(entry)
            if self._autoencoder(entry) is None:
                Media(self.latents(entry.tensor, entry.modality), mask=entry.mask)
        elif isinstance(entry.segment, Media):
            modality, values = self.vocabulary.modality(entry.segment.modality), entry.segment.tensor()
            if values.shape[0] != modality.channels:
                raise ValueError(f"latents of {modality.name!r} have {modality.channels} channels, not {values.shape[0]}")
            modality.slots(tuple(values.shape[1:]))

    def _sample(self, index: int, sample: Any, prompt: bool) -> list[_Entry]:
        if prompt and sample is None:
            return []
        if prompt and (isinstance(sample, Tensor | str | Text | Media) or _is_item(sample)):
            sample = [sample]
        if not isinstance(sample, list | tuple) or _is_item(sample):
            raise ValueError(
                f"document {index} is {_what(sample)}, not a list of items: put it in a list of its own, [[...], ...]"
            )
        if not sample and not prompt:
            raise ValueError(f"document {index} is empty: leave it out")
        entries = []
        for at, value in enumerate(sample):
            try:
                entry = self._entry(value)
                if entry.tensor is not None:
                    self._check_raw(entry)
            except ValueError as error:
                raise ValueError(f"document {index}, item {at}: {error}") from error
            entry.where = f"document {index}, item {at}"
            if entry.segment is not None or entry.tensor is not None:
                entries.append(entry)
        return entries

    def _entry(self, value: Any) -> _Entry:
        if isinstance(value, Media):
            return _Entry(value)
        if isinstance(value, Text):
            self.vocabulary.encode(value.content)
            return _Entry(value)
        modality, weight, tensor = None, None, value
        if isinstance(value, tuple):
            rest = list(value)
            if len(rest) > 1 and isinstance(rest[0], int) and not isinstance(rest[0], bool):
                modality = rest.pop(0)
            if len(rest) not in (1, 2) or not isinstance(rest[0], Tensor):
                raise ValueError(f"{_what(value)} is neither (tensor, weight) nor (modality index, tensor) nor both")
            tensor, weight = rest[0], rest[1] if len(rest) == 2 else None
        if isinstance(tensor, str):
            tensor = torch.tensor(self.vocabulary.encode(tensor), dtype=torch.int64)
        if not isinstance(tensor, Tensor):
            remedy = (
                "use torch.from_numpy"
                if type(tensor).__module__ == "numpy"
                else "integer tensors are text, float tensors items"
            )
            raise ValueError(f"{_what(tensor)} is no item of a document: {remedy}")
        if tensor.dtype in TEXT_DTYPES:
            if modality is not None:
                raise ValueError(f"an item of modality {modality} must be a float tensor, not {tensor.dtype}")
            return self._text(tensor, weight)
        if not tensor.is_floating_point():
            raise ValueError(
                f"a tensor of {tensor.dtype} is neither text (int64 or int32) nor an item (floating point): convert ids with "
                ".long(), scale pictures to [-1, 1] as floats"
            )
        index = 0 if modality is None else modality
        count = len(self.vocabulary.modalities)
        if not 0 <= index < count:
            indices = f"they run from 0 to {count - 1}" if count else "this model has text alone"
            raise ValueError(f"no modality {index}: {indices}")
        factor = 1.0 if weight is None or weight is True else weight
        if factor is False:
            return _Entry()
        if isinstance(factor, list | tuple):
            factor = torch.tensor(factor)
        if isinstance(factor, Tensor):
            return _Entry(None, index, tensor, mask=factor.float())
        if not isinstance(factor, int | float) or not math.isfinite(factor) or factor < 0:
            raise ValueError(f"the weight of an item is a number from 0 up, or False, not {factor!r}")
        return _Entry(None, index, tensor, float(factor))

    def _text(self, tensor: Tensor, weight: Any) -> _Entry:
        if tensor.ndim > 1 or not tensor.numel():
            raise ValueError(f"text is a tensor of ids of one axis, at least 1 long, not of shape {tuple(tensor.shape)}")
        ids = tuple(tensor.reshape(-1).tolist())
        self.vocabulary.encode(ids)
        if weight is None or weight is True:
            return _Entry(Text(ids))
        if weight is False:
            return _Entry()
        if isinstance(weight, Tensor):
            weight = weight.tolist()
        if isinstance(weight, list | tuple):
            if len(weight) != len(ids):
                raise ValueError(f"{len(weight)} weights for {len(ids)} tokens: give one a token")
            return _Entry(Text(ids, weight=tuple(_weight(w) for w in weight)))
        return _Entry(Text(ids, weight=_weight(weight)))

    def _modality(self, index: int) -> tuple[Modality, bool]:
        first = self.config.channel_first
        return self.vocabulary.modalities[index], bool(first[index]) if index < len(first) else False

    def _autoencoder(self, entry: _Entry) -> Autoencoder | None:
        autoencoder = self.autoencoders.get(self.vocabulary.modalities[entry.modality].name)
        return autoencoder if autoencoder is not None and autoencoder.encoder is not None else None

    def _check_raw(self, entry: _Entry) -> None:
        assert entry.tensor is not None
        if entry.tensor.numel() == 0:
            raise ValueError(f"an item of shape {tuple(entry.tensor.shape)} holds nothing: leave it out")
        if not torch.isfinite(entry.tensor).all():
            raise ValueError("the item holds NaN or infinity: check how it was made")

    def _encode(self, entries: Sequence[_Entry]) -> None:
        """Raw items -> latents, those of one modality and shape together."""
        groups: dict[tuple[int, tuple[int, ...]], list[_Entry]] = {}
        for entry in entries:
            if entry.tensor is not None and self._autoencoder(entry) is not None:
                groups.setdefault((entry.modality, tuple(entry.tensor.shape)), []).append(entry)
        for (index, shape), members in groups.items():
            autoencoder = self._autoencoder(members[0])
            assert autoencoder is not None
            weight = next(autoencoder.parameters(), None)
            raw = torch.stack([entry.tensor for entry in members if entry.tensor is not None])
            where = ", ".join(entry.where for entry in members[:3]) + (", ..." if len(members) > 3 else "")
            try:
                latents = autoencoder.encode(raw if weight is None else raw.to(weight))
            except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
                raise ValueError(
                    f"{where}: the encoder of modality {index} does not take items of shape {shape}: {error}"
                ) from error
            if len(latents) != len(members):
                raise ValueError(
                    f"{where}: the encoder of modality {index} gives {len(latents)} latents for {len(members)} items"
                )
            for entry, latent in zip(members, latents, strict=True):
                entry.tensor = latent
                if not torch.isfinite(latent).all():
                    raise ValueError(f"{entry.where}: the encoder of modality {index} gives NaN or infinity for this item")

    def _document(self, index: int, entries: "Document | list[_Entry]") -> Document:
        if isinstance(entries, Document):
            return entries
        segments: list[Segment] = []
        for at, entry in enumerate(entries):
            if entry.tensor is None:
                assert entry.segment is not None
                segments.append(entry.segment)
                continue
            try:
                latents = self.latents(entry.tensor, entry.modality)
                name = self.vocabulary.modalities[entry.modality].name
                segments.append(Media(latents, name, weight=entry.weight, mask=entry.mask))
            except ValueError as error:
                raise ValueError(f"document {index}, item {at}: {error}") from error
        return Document(tuple(segments), name=str(index))

    def latents(self, tensor: Tensor, index: int) -> Tensor:
        """Latents as the model has them, Float[channels, *size], checked against the modality."""
        modality, first = self._modality(index)
        axes, form = len(modality.patch), "(channels, *size)" if first else "(*size, channels)"
        if tensor.ndim != axes + 1:
            raise ValueError(
                f"latents of modality {index} have {axes + 1} axes, {form}, not {tensor.ndim} as in {tuple(tensor.shape)}"
                + ("; give a single item, without a batch axis" if tensor.ndim == axes + 2 else "")
            )
        channels = tensor.shape[0 if first else -1]
        if channels != modality.channels:
            raise ValueError(
                f"latents of modality {index} have {modality.channels} channels, {form}, not {channels} as in "
                f"{tuple(tensor.shape)}" + ("; see channel_first_latent" if modality.channels in tensor.shape else "")
            )
        latents = tensor if first or not axes else tensor.movedim(-1, 0)
        modality.slots(tuple(latents.shape[1:]))
        return latents

    def with_noise(self, index: int, document: Document, noise: list[Any]) -> Document:
        """The document, with a tensor of `noise` for each of its items, shaped like the latents in the user's orientation."""
        segments = []
        for segment in document.segments:
            if isinstance(segment, Media):
                if not noise:
                    raise ValueError(f"document {index} has more items than there are noises for it: give one an item")
                modality = self.vocabulary.modalities.index(self.vocabulary.modality(segment.modality))
                tensor, *noise = noise
                if not isinstance(tensor, Tensor):
                    raise ValueError(f"document {index}: noise is a tensor shaped like its item, not {_what(tensor)}")
                try:
                    segment = replace(segment, noise=self.latents(tensor, modality))
                except ValueError as error:
                    raise ValueError(f"document {index}, noise: {error}") from error
            segments.append(segment)
        if noise:
            raise ValueError(f"document {index} has fewer items than there are noises for it: give one an item")
        return replace(document, segments=tuple(segments))

    # ---- documents -> lists -----------------------------------------------------------------------------------------

    def oriented(self, latents: Tensor, index: int) -> Tensor:
        """Latents [channels, *size] (or with items before that) in the user's orientation."""
        modality, first = self._modality(index)
        axes = len(modality.patch)
        return latents if first or not axes else latents.movedim(-1 - axes, -1)

    def decoded(self, latents: Tensor, index: int) -> Tensor:
        """Items of latents [item, channels, *size]: through the decoder, where there is one, else in the user's orientation."""
        out = self.oriented(latents, index)
        autoencoder = self.autoencoders.get(self.vocabulary.modalities[index].name)
        if autoencoder is None or autoencoder.decoder is None:
            return out
        weight = next(autoencoder.parameters(), None)
        return autoencoder.decode(out if weight is None else out.to(weight))

    def sample(self, document: Document, *, decode: bool = True) -> list[Tensor | Item]:
        """A document as a list of items, and of text ids, joined to one tensor between items."""
        sample: list[Tensor | Item] = []
        for segment in document.segments:
            if isinstance(segment, Text):
                ids = torch.tensor(self.vocabulary.encode(segment.content), dtype=torch.int64)
                last = sample[-1] if sample else None
                if isinstance(last, Tensor):
                    sample[-1] = torch.cat([last, ids])
                elif len(ids):
                    sample.append(ids)
                continue
            index = self.vocabulary.modalities.index(self.vocabulary.modality(segment.modality))
            latents = segment.tensor()
            sample.append(Item(index, self.decoded(latents[None], index)[0] if decode else self.oriented(latents, index)))
        return sample


def _is_item(value: Any) -> bool:
    """(index, tensor), (tensor, weight) or (index, tensor, weight)"""
    if not isinstance(value, tuple) or len(value) not in (2, 3):
        return False
    if isinstance(value[0], int) and isinstance(value[1], Tensor):
        return True
    return len(value) == 2 and isinstance(value[0], Tensor) and isinstance(value[1], bool | int | float)


def _weight(value: Any) -> float:
    if isinstance(value, bool):
        return float(value)
    if not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise ValueError(f"a weight is a number from 0 up, not {value!r}")
    return float(value)


def _what(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a {value.dtype} tensor of shape {tuple(value.shape)}"
    return f"{type(value).__name__} {str(value)[:40]!r}"


def print_modality_sample(sample: Sequence[Any]) -> None:
    """Print what a sample holds, a pair (kind, shape) an entry."""
    lines = []
    for entry in sample:
        if isinstance(entry, tuple) and isinstance(entry[0], Tensor):
            entry = entry[0]  # with a weight
        if isinstance(entry, tuple):
            lines.append((f"modality:{entry[0]}", tuple(entry[1].shape)))
        elif not isinstance(entry, Tensor):
            raise ValueError(f"a sample is a list of tensors and items, which {_what(entry)} is not")
        elif entry.is_floating_point():
            lines.append(("modality", tuple(entry.shape)))
        else:
            lines.append(("text", tuple(entry.shape)))
    print(lines)
