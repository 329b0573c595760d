"""Nested lists of tensors <-> documents. An error names the document and the item, before anything is computed."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from transfusion.compat.coders import Coders
from transfusion.compat.prompts import Opening, PromptReader
from transfusion.config import digest, from_plain, to_plain
from transfusion.data.document import Document, Media, Segment, Text
from transfusion.data.vocabulary import Vocabulary
from transfusion.files import write_text

FILE = "compat.json"
"""Beside `config.json` in the model folder: the `CompatConfig`."""
TEXT_DTYPES = (torch.int64, torch.int32)


PADDING = -1
"""An id that is no token: it fills up rows of ids of various lengths, and is left out."""


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
        modality_processing: as the constructor was told; without effect.
        any_axes: by modality, whether items of any number of axes are taken in lists, see `fold`.
        config_digest: digest of the `config.json` that it belongs to; set when it is saved.
    """

    channel_first: tuple[bool, ...] = ()
    autoencoded: tuple[str, ...] = ()
    text_loss_weight: float = 1.0
    any_axes: tuple[bool, ...] = ()
    modality_processing: str = "auto"
    config_digest: str = ""

    def save(self, folder: Path) -> None:
        """Write it beside the folder's `config.json`. Raises OSError if it can't be written."""
        plain = to_plain(replace(self, config_digest=_config_digest(folder)))
        write_text(folder / FILE, json.dumps(plain, indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path) -> "CompatConfig":
        """Read what `save` wrote; the defaults, if there is none. Raises ValueError if it is damaged or of another model."""
        file = folder / FILE
        try:
            config = from_plain(cls, json.loads(file.read_text())) if file.is_file() else cls()
        except (OSError, ValueError) as error:
            raise ValueError(f"cannot read {file}: {error}") from error
        if file.is_file() and config.config_digest != _config_digest(folder):
            raise ValueError(
                f"{file} belongs to another config.json: another class saved its model over this one. Delete {FILE} to read "
                "that model with channels last, or save it again with transfusion.compat.Transfusion"
            )
        return config


def _config_digest(folder: Path) -> str:
    return digest(json.loads((folder / "config.json").read_text()))


@dataclass(frozen=True, eq=False)
class FoldedMedia(Media):
    """An item of other axes than its modality's: `values` have the modality's (see `fold`), `form` is the size as given."""

    form: tuple[int, ...] = ()


def fold(latents: Tensor, axes: int) -> Tensor:
    """Latents [channels, *size] with a size of `axes` axes (1 or more): the first ones are joined, or axes of 1 put before
    them. Elements keep their order."""
    size = tuple(latents.shape[1:])
    joined = max(0, len(size) - axes + 1)
    return latents.reshape(len(latents), *(1,) * (axes - len(size)), *[math.prod(size[:joined])] * (joined > 0), *size[joined:])


@dataclass(eq=False)
class _RawItem:
    """An item for an encoder; `media` gets its values and their mask once it is encoded."""

    media: Media
    modality: int
    tensor: Tensor
    mask: Tensor | None
    any_axes: bool = False
    where: str = ""


class Lists:
    """Reader and writer of lists of tensors for one model.

    Args:
        autoencoders: by name of the modality, where items are raw.
        config: orientation of latents.
    """

    def __init__(self, vocabulary: Vocabulary, autoencoders: Mapping[str, Coders], config: CompatConfig) -> None:
        self.vocabulary, self.config = vocabulary, config
        self.autoencoders = [autoencoders.get(modality.name, Coders(None, None)) for modality in vocabulary.modalities]

    def index(self, name: str) -> int:
        """Index of a modality. Raises ValueError for an unknown name."""
        return self.vocabulary.modalities.index(self.vocabulary.modality(name))

    # ---- lists -> documents -----------------------------------------------------------------------------------------

    def prompts(self, samples: Sequence[Any]) -> tuple[list[Document], list[Opening | None]]:
        """Documents of prompts, and what each begins at its end (`prompts.py`). An entry may also be None (nothing) or one item
        alone, may be empty, and may hold control tokens. Raises ValueError as `documents`."""
        openings: list[Opening | None] = []
        return self.documents(samples, openings=openings), openings

    def documents(
        self,
        samples: Sequence[Any],
        *,
        openings: list[Opening | None] | None = None,
        encode: bool = True,
        any_axes: bool = False,
        all_errors: bool = False,
    ) -> list[Document]:
        """Documents of lists of tensors.

        Args:
            samples: a list with one entry a document: a list (or tuple) of items, or a Document.
            openings: of `prompts`, which they are appended to; None for whole documents.
            encode: whether raw items go through their encoder; False: items are latents.
            any_axes: whether items may have other axes than their modality (see `fold`); always so where it has no default
                size.
            all_errors: report the errors of all items at once, not only the first.

        Raises:
            ValueError: what is wrong with which item of which document.
        """
        if isinstance(samples, Tensor | str | Document) or not isinstance(samples, Sequence):
            raise ValueError(f"a list with one entry a document is wanted, not {_what(samples)}: put it in a list")
        if not samples:
            raise ValueError("no documents: give at least one")
        contents: list[list[Segment | _RawItem]] = []
        errors: list[str] = []
        for index, sample in enumerate(samples):
            contents.append(self._read(index, sample, openings, encode, any_axes, errors))
            if errors and not all_errors:
                raise ValueError(errors[0])
        if errors:
            raise ValueError("\n".join([f"{len(errors)} input errors:", *errors]))
        self._encode([item for content in contents for item in content if isinstance(item, _RawItem)])
        documents = []
        for index, (sample, content) in enumerate(zip(samples, contents, strict=True)):
            segments = tuple(item.media if isinstance(item, _RawItem) else item for item in content)
            documents.append(sample if isinstance(sample, Document) else Document(segments, name=str(index)))
        return documents

    def _read(
        self,
        index: int,
        sample: Any,
        openings: list[Opening | None] | None,
        encode: bool,
        any_axes: bool,
        errors: list[str],
    ) -> list[Segment | _RawItem]:
        """The segments and raw items of a document; what is wrong with it is appended to `errors`."""
        prompt, reader = openings is not None, PromptReader(self.vocabulary)
        if isinstance(sample, Document):
            sample = list(sample.segments)
        if prompt and (sample is None or isinstance(sample, Tensor | str | Text | Media) or _is_item(sample)):
            sample = [] if sample is None else [sample]
        if not isinstance(sample, list | tuple) or _is_item(sample):
            errors.append(f"document {index} is {_what(sample)}, not a list of items: put it in a list, [[...], ...]")
            return []
        if not sample and not prompt:
            errors.append(f"document {index} is empty: leave it out")
        content: list[Segment | _RawItem] = []
        for at, value in enumerate(sample):
            where = f"document {index}, item {at}"
            try:
                entry = reader.entry(value) if prompt else value
                item = None if prompt and entry is None else self._item(entry, encode, any_axes)
            except ValueError as error:
                errors.append(f"{where}: {error}")
                continue
            if isinstance(item, _RawItem):
                item.where = where
            if item is not None:
                content.append(item)
        if openings is not None:
            try:
                openings.append(reader.opening())
            except ValueError as error:
                errors.append(f"document {index}: {error}")
        return content

    def _item(self, value: Any, encode: bool, any_axes: bool) -> Segment | _RawItem | None:
        """An entry of a list, checked; None: it is left out."""
        if isinstance(value, Media):
            if isinstance(value.values, Tensor):
                self.latents(value.tensor(), self.index(value.modality), channel_first=True)
            return value
        if isinstance(value, Text):
            self.vocabulary.encode(value.content)
            return value
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
            is_numpy = type(tensor).__module__ == "numpy"
            remedy = "use torch.from_numpy" if is_numpy else "integer tensors are text, float tensors items"
            raise ValueError(f"{_what(tensor)} is no item of a document: {remedy}")
        weight = 1.0 if weight is None or weight is True else weight
        if tensor.dtype in TEXT_DTYPES:
            if modality is not None:
                raise ValueError(f"an item of modality {modality} must be a float tensor, not {tensor.dtype}")
            return self._text(tensor, weight)
        if not tensor.is_floating_point():
            remedy = "convert ids with .long(), scale pictures to [-1, 1] as floats"
            raise ValueError(
                f"a tensor of {tensor.dtype} is neither text (int64, int32) nor an item (floating point): {remedy}"
            )
        return self._media(tensor, modality or 0, weight, encode, any_axes)

    def _text(self, tensor: Tensor, weight: Any) -> Text | None:
        if tensor.ndim > 1 or not tensor.numel():
            raise ValueError(f"text is a tensor of ids of one axis, at least 1 long, not of shape {tuple(tensor.shape)}")
        padded = tensor.reshape(-1).tolist()
        ids = tuple(token for token in padded if token != PADDING)
        if not ids:
            raise ValueError(f"text of {len(padded)} ids that are all {PADDING}, which is padding: leave it out")
        self.vocabulary.encode(ids)
        if isinstance(weight, Tensor):
            weight = weight.tolist()
        if isinstance(weight, list | tuple):
            if len(weight) == len(padded):
                weight = [w for w, token in zip(weight, padded, strict=True) if token != PADDING]
            weight = tuple(float(w) if isinstance(w, bool) else w for w in weight)
        return None if weight is False else Text(ids, weight=weight)

    def _media(self, tensor: Tensor, index: int, weight: Any, encode: bool, any_axes: bool) -> Media | _RawItem | None:
        count = len(self.vocabulary.modalities)
        if not 0 <= index < count:
            indices = f"they run from 0 to {count - 1}"
            if not count:
                indices = "this model has text alone; for items give it dim_latent, and modality_default_shape"
            raise ValueError(f"no modality {index}: {indices}")
        if weight is False:
            return None
        if tensor.numel() == 0:
            raise ValueError(f"an item of shape {tuple(tensor.shape)} holds nothing: leave it out")
        if not torch.isfinite(tensor).all():
            raise ValueError("the item holds NaN or infinity: check how it was made")
        mask = None
        if isinstance(weight, list | tuple | Tensor):
            mask, weight = torch.as_tensor(weight, dtype=torch.float32), 1.0
        media = Media(None, self.vocabulary.modalities[index].name, weight=weight)
        any_axes = any_axes or (index < len(self.config.any_axes) and self.config.any_axes[index])
        if encode and self.autoencoders[index].encoder is not None:
            return _RawItem(media, index, tensor, mask, any_axes)
        return self._filled(media, tensor, index, mask, any_axes)

    def _filled(self, media: Media, tensor: Tensor, index: int, mask: Tensor | None, any_axes: bool) -> Media:
        """The item with its latents and their mask; folded, where it has other axes than its modality and may."""
        patch = self.vocabulary.modalities[index].patch
        if not any_axes or not patch or set(patch) != {1} or tensor.ndim in (0, 1, len(patch) + 1):
            return replace(media, values=self.latents(tensor, index), mask=mask)
        channel_first = tensor if self._channel_first(index) else tensor.movedim(-1, 0)
        latents = self.latents(fold(channel_first, len(patch)), index, channel_first=True)
        mask = None if mask is None else fold(mask[None], len(patch))[0]
        form = tuple(channel_first.shape[1:])
        return FoldedMedia(latents, media.modality, weight=media.weight, mask=mask, form=form)

    def _encode(self, items: Sequence[_RawItem]) -> None:
        """Raw items -> latents, those of one modality and shape together."""
        groups: dict[tuple[int, tuple[int, ...]], list[_RawItem]] = {}
        for item in items:
            groups.setdefault((item.modality, tuple(item.tensor.shape)), []).append(item)
        for (index, shape), members in groups.items():
            where = ", ".join(item.where for item in members[:3]) + (", ..." if len(members) > 3 else "")
            try:
                latents = self.autoencoders[index].encode(torch.stack([item.tensor for item in members]))
                if len(latents) != len(members):
                    raise ValueError(f"{len(latents)} latents for {len(members)} items")
                for item, latent in zip(members, latents, strict=True):
                    where = item.where
                    item.media = self._filled(item.media, latent, index, item.mask, item.any_axes)
                    item.media.tensor()  # raises where latents are not finite
            except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
                where = f"{where}: the encoder of modality {index} fails on items of shape {shape}"
                raise ValueError(f"{where}: {error}") from error

    def _channel_first(self, index: int) -> bool:
        first = self.config.channel_first
        return index < len(first) and first[index]

    def latents(self, tensor: Tensor, index: int, *, channel_first: bool | None = None) -> Tensor:
        """Latents (by default in the user's orientation) as the model has them, Float[channels, *size]. Raises ValueError
        for other axes, channels or sizes than the modality's."""
        first = self._channel_first(index) if channel_first is None else channel_first
        modality, form = self.vocabulary.modalities[index], "channels, *size" if first else "*size, channels"
        shape, axes = tuple(tensor.shape), len(modality.patch) + 1
        if tensor.ndim != axes:
            hint = "; give a single item, without a batch axis" if tensor.ndim == axes + 1 else ""
            hint += ", or build the model with modality_num_dim and a modality_default_shape of the items' axes"
            raise ValueError(f"latents of modality {index} have {axes} axes, ({form}), not {tensor.ndim} as in {shape}{hint}")
        channels = shape[0 if first else -1]
        if channels != modality.channels:
            hint = "; see channel_first_latent" if modality.channels in shape else ""
            expected = f"{modality.channels} channels, ({form})"
            raise ValueError(f"latents of modality {index} have {expected}, not {channels} as in {shape}{hint}")
        latents = tensor if first else tensor.movedim(-1, 0)
        size = tuple(latents.shape[1:])
        try:
            modality.slots(size)
        except ValueError as error:
            if modality.largest is not None and any(s > most for s, most in zip(size, modality.largest, strict=True)):
                raise ValueError(f"{error}, or give the model a larger modality_max_shape") from error
            raise
        return latents

    def like(self, tensor: Tensor, media: Media, index: int) -> Tensor:
        """A tensor shaped as an item was given -> one shaped as its latents are kept. Raises ValueError for another shape."""
        if not isinstance(media, FoldedMedia):
            return self.latents(tensor, index)
        channel_first = tensor if self._channel_first(index) or not tensor.ndim else tensor.movedim(-1, 0)
        if tuple(channel_first.shape[1:]) != media.form:
            raise ValueError(f"a tensor of shape {tuple(tensor.shape)} for an item of size {media.form}")
        return self.latents(fold(channel_first, len(self.vocabulary.modalities[index].patch)), index, channel_first=True)

    # ---- documents -> lists -----------------------------------------------------------------------------------------

    def oriented(self, latents: Tensor, index: int, media: Media | None = None) -> Tensor:
        """Latents [channels, *size] (or with items before that) in the user's orientation, and with the axes that `media` had
        when it was given."""
        axes = len(self.vocabulary.modalities[index].patch)
        if isinstance(media, FoldedMedia):
            latents, axes = latents.reshape(*latents.shape[: latents.ndim - axes], *media.form), len(media.form)
        return latents if self._channel_first(index) else latents.movedim(-1 - axes, -1)

    def decoded(self, latents: Tensor, index: int, media: Media | None = None) -> Tensor:
        """Items of latents [item, channels, *size]: through the decoder, where there is one, else `oriented`."""
        return self.autoencoders[index].decode(self.oriented(latents, index, media))

    def sample(self, document: Document, *, decode: bool = True, complete: bool = False) -> list[Tensor | Item]:
        """A document as a list of text ids, item, text ids, item ..., text ids. The ids have the control tokens between them,
        as
        in the sequence that the model sees: BOS, the sizes and BEGIN of the item that comes next, END of the last one, and EOS
        if it is `complete`. So entries of even index are text, and the list may be given back as a prompt."""
        sample: list[Tensor | Item] = []
        ids = [self.vocabulary.bos]
        for segment in document.segments:
            if isinstance(segment, Text):
                ids += self.vocabulary.encode(segment.content)
                continue
            latents, modality = segment.tensor(), self.vocabulary.modality(segment.modality)
            index = self.vocabulary.modalities.index(modality)
            ids += self.vocabulary.frame(modality, modality.slots(tuple(latents.shape[1:])))
            shown = self.decoded(latents[None], index, segment)[0] if decode else self.oriented(latents, index, segment)
            sample += [torch.tensor(ids), Item(index, shown)]
            ids = [self.vocabulary.end(modality.name)]
        return [*sample, torch.tensor(ids + [self.vocabulary.eos] * complete)]


def _is_item(value: Any) -> bool:
    """(index, tensor), (tensor, weight) or (index, tensor, weight)"""
    if not isinstance(value, tuple) or len(value) not in (2, 3):
        return False
    if isinstance(value[0], int) and isinstance(value[1], Tensor):
        return True
    return len(value) == 2 and isinstance(value[0], Tensor) and isinstance(value[1], bool | int | float)


def _what(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a {value.dtype} tensor of shape {tuple(value.shape)}"
    return f"{type(value).__name__} {str(value)[:40]!r}"


def print_modality_sample(sample: Sequence[Any]) -> None:
    """Print what a sample holds, a pair (kind, shape) an entry. Raises ValueError for what is no sample."""
    lines = []
    for entry in sample:
        has_index = isinstance(entry, tuple) and isinstance(entry[0], int)
        tensor = entry[int(has_index)] if isinstance(entry, tuple) else entry
        if not isinstance(tensor, Tensor):
            raise ValueError(f"a sample is a list of tensors and items, which {_what(entry)} is not")
        kind = f"modality:{entry[0]}" if has_index else "modality" if tensor.is_floating_point() else "text"
        lines.append((kind, tuple(tensor.shape)))
    print(lines)
