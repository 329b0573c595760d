"""Documents: what a person writes and what the model returns, a list of text and media segments in any order."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor

Interval: TypeAlias = tuple[float, float]
ANY_TIME: Interval = (0.0, 1.0)
CLEAN: Interval = (0.0, 0.0)


@runtime_checkable
class Stored(Protocol):
    """Media that is read only when it is needed. Its size is known before."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(channels, *size) of the loaded tensor."""
        ...

    def load(self) -> Tensor:
        """Float[channels, *size]. Raises `MediaError` where it can't be read."""
        ...


class MediaError(ValueError):
    """A picture (or other item) that cannot be read; the message names it and says why."""


@dataclass(frozen=True)
class Text:
    """Text, or token ids where the caller has its own tokenizer.

    Args:
        content: a string, or ids below the tokenizer's size.
        loss: False where its tokens are only context (a prompt, a question).
        wordings: other ways to say the same; training draws one of them or `content`, anew each epoch.
    """

    content: str | tuple[int, ...]
    loss: bool = True
    wordings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        whole = isinstance(self.content, tuple) and all(isinstance(i, int) and not isinstance(i, bool) for i in self.content)
        if not isinstance(self.content, str) and not whole:
            raise ValueError(f"text is a string or a tuple of ids (whole numbers), not {str(self.content)[:60]}")


@dataclass(frozen=True, eq=False)
class Media:
    """One item of a modality.

    Args:
        values: latents, Float[channels, *size]; or `Stored`; or None for an item that is still to be generated.
        modality: name of its modality.
        size: size in latent elements, needed only where `values` is None and sizes vary.
        times: noise it may get in training, an interval in [0, 1] (0 clean, 1 noise); (0, 0) is clean and takes no loss.
        weight: factor on its denoising loss; 0: context only.
        private: nothing outside the item may see it (its own begin and end tokens stay visible).
    """

    values: Tensor | Stored | None
    modality: str = "image"
    size: tuple[int, ...] | None = None
    times: Interval = ANY_TIME
    weight: float = 1.0
    private: bool = False

    def __post_init__(self) -> None:
        low, high = self.times
        if not 0.0 <= low <= high <= 1.0:
            raise ValueError(f"times {self.times} must be an interval inside [0, 1], where 0 is clean and 1 is noise")

    def tensor(self) -> Tensor:
        """The latents, loaded if need be: Float32[channels, *size].

        Raises:
            MediaError: they cannot be read, or hold NaN or infinity.
        """
        values = self.values
        if values is None:
            raise ValueError("this item is still to be generated: it has no values yet")
        if not isinstance(values, Tensor):
            values = values.load()
        if not values.is_floating_point():
            raise ValueError(f"media values must be floating point, not {values.dtype}; scale pictures to [-1, 1] first")
        if not torch.isfinite(values).all():
            raise MediaError("media values hold NaN or infinity; check how this item was made")
        return values.float()


Segment: TypeAlias = Text | Media


@dataclass(frozen=True, eq=False)
class Document:
    """Segments in reading order.

    Args:
        segments: `Text` and `Media`; a list of strings and tensors is taken too, see `document`.
        language_loss: False where none of its tokens are learned (the unconditional branch).
        name: where it came from, for messages.
    """

    segments: tuple[Segment, ...]
    language_loss: bool = True
    name: str = ""

    @property
    def text(self) -> str:
        """Its text segments, joined."""
        return "".join(s.content for s in self.segments if isinstance(s, Text) and isinstance(s.content, str))

    @property
    def media(self) -> tuple[Media, ...]:
        """Its media segments."""
        return tuple(s for s in self.segments if isinstance(s, Media))


def document(parts: "Document | Segment | str | Tensor | Sequence[Segment | str | Tensor]") -> Document:
    """A Document from what is at hand: a string, a float tensor (an image), a segment, or a list of them.

    Raises:
        ValueError: something that is none of these; the message says which part.
    """
    if isinstance(parts, Document):
        return parts
    if isinstance(parts, str | Tensor | Text | Media):
        parts = [parts]
    segments: list[Segment] = []
    for index, part in enumerate(parts):
        if isinstance(part, Text | Media):
            segments.append(part)
        elif isinstance(part, str):
            segments.append(Text(part))
        elif isinstance(part, Tensor):
            if not part.is_floating_point() and (part.ndim != 1 or part.dtype in (torch.bool, torch.uint8)):
                raise ValueError(
                    f"part {index} is a {part.dtype} tensor of shape {tuple(part.shape)}: token ids are int64 (or int32) of "
                    "one axis; media are floating point, pictures scaled to [-1, 1]"
                )
            segments.append(Media(part) if part.is_floating_point() else Text(tuple(part.tolist())))
        else:
            raise ValueError(
                f"part {index} is of type {type(part).__name__}; a document holds strings, tensors, Text and Media"
            )
    return Document(tuple(segments))


def unconditional(document: Document, target: int, *, text: bool = True, media: bool = False) -> Document:
    """The unconditional branch for one item, in training (caption drop) and in sampling (guidance) alike.

    What is left: the document's frame and the item itself. Gone are the text before it (`text`), the media before it
    (`media`), and all that follows it. Nothing in it takes a language loss.

    Args:
        document: the whole document.
        target: index of the item among the document's segments.
    """
    item = document.segments[target]
    if not isinstance(item, Media):
        raise ValueError(f"segment {target} is text; the unconditional branch belongs to a media item")
    kept = [s for s in document.segments[:target] if not (text if isinstance(s, Text) else media)]
    return replace(document, segments=(*kept, item), language_loss=False)
