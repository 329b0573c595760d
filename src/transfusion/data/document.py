"""Documents: what a person writes and what the model returns, a list of text and media segments in any order."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor

from transfusion.modality import IMAGE

TimeInterval: TypeAlias = tuple[float, float]
ANY_TIME: TimeInterval = (0.0, 1.0)
CLEAN: TimeInterval = (0.0, 0.0)


@runtime_checkable
class LazyMedia(Protocol):
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
        weight: factor on the cross-entropy of its tokens; one number, or one a token where `content` is ids. A token of weight
            0 is only context, as without `loss`: it does not count as a target.
    """

    content: str | tuple[int, ...]
    loss: bool = True
    paraphrases: tuple[str, ...] = ()
    weight: float | tuple[float, ...] = 1.0

    def __post_init__(self) -> None:
        whole = isinstance(self.content, tuple) and all(isinstance(i, int) and not isinstance(i, bool) for i in self.content)
        if not isinstance(self.content, str) and not whole:
            raise ValueError(f"text is a string or a tuple of ids (whole numbers), not {str(self.content)[:60]}")
        if isinstance(self.weight, tuple):
            if isinstance(self.content, str) or self.paraphrases:
                raise ValueError("a weight a token needs content of token ids and no wordings; a string takes one number")
            if len(self.weight) != len(self.content):
                raise ValueError(f"{len(self.weight)} weights for {len(self.content)} token ids: give one each, or one number")
        for one in self.weight if isinstance(self.weight, tuple) else (self.weight,):
            _check_weight(one)

    @property
    def has_loss(self) -> bool:
        """Whether any token of it, in some wording, is a target."""
        weights = self.weight if isinstance(self.weight, tuple) else (self.weight,)
        return (
            self.loss and any(len(content) > 0 for content in (self.content, *self.paraphrases)) and any(w > 0 for w in weights)
        )


def _check_weight(weight: object) -> None:
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not (math.isfinite(weight) and weight >= 0):
        raise ValueError(f"a loss weight is a number, 0 (context only) or more, not {weight!r}")


@dataclass(frozen=True, eq=False)
class Media:
    """One item of a modality.

    Args:
        values: latents, Float[channels, *size]; or `LazyMedia`; or None for an item that is still to be generated.
        modality: name of its modality.
        size: size in latent elements, needed only where `values` is None and sizes vary.
        times: noise it may get in training, an interval in [0, 1] (0 clean, 1 noise); (0, 0) is clean and takes no loss.
        weight: factor on its denoising loss; 0: context only, and then clean if `times` and `noise` say nothing else.
        private: nothing outside the item may see it (its own begin and end tokens stay visible).
        dual: in training the item stands twice, `BEGIN [noised, private] [clean, same coordinates] END`: the noised copy takes
            the loss, what follows sees the clean one. In a prompt it stands once, clean.
        noise: the noise it gets in training instead of drawn noise, shaped like its values. With `times` (t, t) its noised
            form is given wholly.
        mask: weights of its elements in the loss, Float[*size]; the mean is over those above 0 (None: all alike).
    """

    values: Tensor | LazyMedia | None
    modality: str = IMAGE
    size: tuple[int, ...] | None = None
    times: TimeInterval = ANY_TIME
    weight: float = 1.0
    private: bool = False
    dual: bool = False
    noise: Tensor | None = None
    mask: Tensor | None = None

    def __post_init__(self) -> None:
        low, high = self.times
        if not 0.0 <= low <= high <= 1.0:
            raise ValueError(f"times {self.times} must be an interval inside [0, 1], where 0 is clean and 1 is noise")
        _check_weight(self.weight)
        if self.dual and self.private:
            raise ValueError(
                "a private item is seen by nothing that follows, so it needs no clean copy: dual or private, not both"
            )
        if self.noise is not None:
            shape = None if self.values is None else tuple(self.values.shape)
            if shape != tuple(self.noise.shape):
                raise ValueError(f"noise of shape {tuple(self.noise.shape)} must have the shape of the item's values, {shape}")
            if not self.noise.is_floating_point() or not torch.isfinite(self.noise).all():
                raise ValueError("an item's noise must be finite floating-point numbers")
        if self.mask is not None:
            shape = None if self.values is None else tuple(self.values.shape[1:])
            if shape != tuple(self.mask.shape):
                raise ValueError(f"a mask of shape {tuple(self.mask.shape)} must have the size of the item, {shape}")
            if not torch.isfinite(self.mask).all() or self.mask.min() < 0 or self.mask.max() <= 0:
                raise ValueError("a mask holds weights from 0 up, not all 0: for an item without loss give weight 0")

    @property
    def has_loss(self) -> bool:
        """Whether it takes a denoising loss."""
        return self.weight > 0 and self.times != CLEAN

    @property
    def doubled(self) -> bool:
        """Whether it stands twice in training. Without a loss there is nothing that a noised copy would be for."""
        return self.dual and self.has_loss

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
