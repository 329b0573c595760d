"""Documents: text and media segments in any order. Users write them, and the model returns them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol, TypeAlias, get_args, runtime_checkable

import torch
from torch import Tensor

from transfusion.modality import IMAGE

TimeInterval: TypeAlias = tuple[float, float]
ANY_TIME: TimeInterval = (0.0, 1.0)
CLEAN: TimeInterval = (0.0, 0.0)
Use: TypeAlias = Literal["draw", "read", "both", "context"]
"""What training makes of a media item; what follows from each stands at `data.transforms.with_uses`."""


@runtime_checkable
class LazyMedia(Protocol):
    """A media item of known shape that is read when it is needed."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(channels, *size) of the loaded tensor."""
        ...

    def load(self) -> Tensor:
        """Float[channels, *size]. Raises `MediaError` if it cannot be read."""
        ...


class MediaError(ValueError):
    """A media item cannot be read; the message names it and gives the reason."""


@dataclass(frozen=True)
class Text:
    """Text: a string, or token ids of the caller's own tokenizer. Raises ValueError for content or weights of another form.

    Args:
        loss: False for context without a language loss (a prompt, a question).
        paraphrases: alternatives to `content`; each epoch trains on one of them or on `content`, drawn anew.
        weight: factor on the cross-entropy of its tokens, or for ids one per token. A token of weight 0 is no target.
    """

    content: str | tuple[int, ...]
    loss: bool = True
    paraphrases: tuple[str, ...] = ()
    weight: float | tuple[float, ...] = 1.0

    def __post_init__(self) -> None:
        is_ids = isinstance(self.content, tuple) and all(isinstance(i, int) and not isinstance(i, bool) for i in self.content)
        if not isinstance(self.content, str) and not is_ids:
            raise ValueError(f"text is a string or a tuple of token ids (integers), not {str(self.content)[:60]}")
        if isinstance(self.weight, tuple):
            if isinstance(self.content, str) or self.paraphrases:
                raise ValueError("weights per token need content of token ids and no paraphrases; a string takes one number")
            if len(self.weight) != len(self.content):
                raise ValueError(f"{len(self.weight)} weights for {len(self.content)} token ids: give one each, or one number")
        _check_weights(self.weight)

    @property
    def has_loss(self) -> bool:
        """Whether any of its tokens is a target, in any paraphrase."""
        weighted = any(self.weight) if isinstance(self.weight, tuple) else self.weight > 0
        return self.loss and weighted and any((self.content, *self.paraphrases))


def _check_weights(weights: object) -> None:
    for w in weights if isinstance(weights, tuple) else (weights,):
        if isinstance(w, bool) or not isinstance(w, int | float) or not (math.isfinite(w) and w >= 0):
            raise ValueError(f"a loss weight is a number, 0 (context only) or more, not {w!r}")


@dataclass(frozen=True, eq=False)
class Media:
    """An item of a modality. Raises ValueError for times, a weight, noise or a mask of another range or shape.

    Args:
        values: latents, Float[channels, *size]; or `LazyMedia`; or None for an item that is still to be generated.
        modality: name of its modality.
        size: size in latent elements, needed only if `values` is None and sizes vary.
        use: what training makes of it. "draw": it is noised, and takes the loss. "read": it is clean, without a loss, and what
            follows is learned from it. "both": a noised copy takes the loss, what follows sees a clean one. "context": it is
            clean and given, as in a prompt. None: "both" if something behind it is learned, else "draw"; as given where
            `times` or `noise` is set.
        times: interval of its noise times in training (0 clean, 1 noise); (0, 0) is clean, without a loss.
        weight: factor on its denoising loss. 0: "context", or noised without a loss where `times` or `noise` is set.
        private: nothing outside the item attends to it (its own begin and end tokens stay visible).
        noise: noise to train with instead of drawn noise, shaped like `values`.
        mask: weights of its elements in its loss, Float[*size]; the mean is over those above 0 (None: all elements alike).
    """

    values: Tensor | LazyMedia | None
    modality: str = IMAGE
    size: tuple[int, ...] | None = None
    times: TimeInterval = ANY_TIME
    weight: float = 1.0
    private: bool = False
    use: Use | None = None
    noise: Tensor | None = None
    mask: Tensor | None = None

    def __post_init__(self) -> None:
        low, high = self.times
        if not 0.0 <= low <= high <= 1.0:
            raise ValueError(f"times {self.times} must be an interval inside [0, 1], where 0 is clean and 1 is noise")
        _check_weights(self.weight)
        self._check_use()
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
                raise ValueError("a mask has weights of 0 or more, not all 0; for an item without a loss give weight 0")

    def _check_use(self) -> None:
        if self.use is not None and self.use not in get_args(Use):
            raise ValueError(f"an item's use is draw, read, both or context, not {self.use!r}")
        if self.use in ("both", "read") and self.private:
            raise ValueError('nothing that follows sees a private item, so it is not read: its use is "draw"')
        if self.use in ("draw", "both") and (self.weight == 0 or self.times == CLEAN):
            raise ValueError(f'an item of use "{self.use}" takes a loss: give it a weight above 0 and times above 0')
        if self.use in ("read", "context") and (self.noise is not None or self.times not in (ANY_TIME, CLEAN)):
            raise ValueError(f'an item of use "{self.use}" is clean: give it neither times nor noise')

    @property
    def is_clean(self) -> bool:
        """Whether training sees it clean, without a loss. An item of weight 0 is, unless its times or noise are set."""
        is_context = self.weight == 0 and self.times == ANY_TIME and self.noise is None
        return self.use in ("read", "context") or self.times == CLEAN or is_context

    @property
    def has_loss(self) -> bool:
        """Whether it takes a denoising loss."""
        return self.weight > 0 and not self.is_clean

    @property
    def has_two_copies(self) -> bool:
        """Whether training has a noised and a clean copy of it."""
        return self.use == "both"

    def tensor(self) -> Tensor:
        """Its latents, loaded if need be: Float32[channels, *size]. Raises MediaError if they cannot be read or have NaN or
        infinity, ValueError if it has no values yet or they are not floating point."""
        values = self.values
        if values is None:
            raise ValueError("this item is still to be generated: it has no values yet")
        if not isinstance(values, Tensor):
            values = values.load()
        if not values.is_floating_point():
            raise ValueError(f"media values must be floating point, not {values.dtype}; scale images to [-1, 1] first")
        if not torch.isfinite(values).all():
            raise MediaError("media values have NaN or infinity; check how this item was made")
        return values.float()


Segment: TypeAlias = Text | Media


@dataclass(frozen=True, eq=False)
class Document:
    """Segments in reading order; the function `document` makes one of strings and tensors.

    Args:
        language_loss: False if none of its tokens takes a loss (the unconditional branch).
        name: its source, for messages.
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


DocumentLike: TypeAlias = Document | Segment | str | Tensor | Sequence[Segment | str | Tensor]


def document(content: DocumentLike) -> Document:
    """A document of a string, a float tensor (an image), an int tensor (token ids), a segment, or a list of them. Raises
    ValueError: any other content; the message names its segment."""
    if isinstance(content, Document):
        return content
    if isinstance(content, str | Tensor | Text | Media):
        content = [content]
    segments: list[Segment] = []
    for index, segment in enumerate(content):
        if isinstance(segment, Text | Media):
            segments.append(segment)
        elif isinstance(segment, str):
            segments.append(Text(segment))
        elif not isinstance(segment, Tensor):
            kind = type(segment).__name__
            raise ValueError(f"segment {index} is of type {kind}; a document has strings, tensors, Text and Media")
        elif segment.is_floating_point():
            segments.append(Media(segment))
        elif segment.ndim == 1 and segment.dtype not in (torch.bool, torch.uint8):
            segments.append(Text(tuple(segment.tolist())))
        else:
            rule = "token ids are int64 (or int32) of one axis; media are floating point, images scaled to [-1, 1]"
            raise ValueError(f"segment {index} is a {segment.dtype} tensor of shape {tuple(segment.shape)}: {rule}")
    return Document(tuple(segments))


def unconditional(document: Document, target: int, *, text: bool = True, media: bool = False) -> Document:
    """The unconditional branch of the item at segment `target`, for condition dropout in training and guidance in sampling.

    It drops the text before the item (`text`), the media before it (`media`), and all segments after it. Media that stay are
    context; it takes no language loss. Raises ValueError if the target is text.
    """
    item = document.segments[target]
    if not isinstance(item, Media):
        raise ValueError(f"segment {target} is text; give the index of a media item")
    before = [s for s in document.segments[:target] if not (text if isinstance(s, Text) else media)]
    kept = [given(s) if isinstance(s, Media) else s for s in before]
    return replace(document, segments=(*kept, replace(item, use="draw") if item.use == "both" else item), language_loss=False)


def given(item: Media) -> Media:
    """The item as context, as it stands in a prompt: clean, without a loss."""
    return replace(item, use="context", times=ANY_TIME, noise=None)
