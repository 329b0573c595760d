"""A source's document -> the document that an epoch trains on: paraphrase, view, order, use of its media, condition dropout.

Each choice is drawn by the key (seed, epoch, sample, purpose).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from transfusion import rng
from transfusion.data.document import ANY_TIME, Document, Media, Segment, Text, unconditional
from transfusion.data.latents import StoredLatents
from transfusion.data.media import DecodedImage, EncodedImage, VariedImage

SIDES = re.compile(
    r"\b((left|right|west|east)(wards?|ern)?|(anti|counter)?-?clockwise|texts?|letters?|digits?|numbers?)\b", re.IGNORECASE
)
"""Words of a text that a mirrored image would make untrue."""


@dataclass(frozen=True)
class ConditionDropout:
    """How often an item is trained without its context, for classifier-free guidance.

    Args:
        text: share of documents in which an item loses the text before it.
        media: share in which it loses the media before it.
        both: share in which it loses both.
    """

    text: float = 0.1
    media: float = 0.0
    both: float = 0.0

    def __post_init__(self) -> None:
        shares = (self.text, self.media, self.both)
        if not (all(share >= 0 for share in shares) and sum(shares) <= 1):
            raise ValueError(f"condition dropout needs shares of 0 or more that sum to 1 at most, not {self}")


@dataclass(frozen=True)
class DocumentTransform:
    """The form in which documents are trained on.

    Args:
        image_first: share of caption-and-item pairs that are reordered to item first (the paper: 0.2). Pairs whose item says
            that it is only to be drawn, or only to be read, or has times or noise of its own, stay as they are.
        image_first_noise: most noise of an item that such a reordering has put before its own caption. 0: it is read, clean
            and without a loss. The paper (its Table 8): 0.5, with a loss.
        dual: share of documents whose items of use "both" stand twice, a noised copy with the loss and a clean one for what
            follows. In the others they stand once, noised, and what follows is learned from the noised item.
        flip: mirror the images of half of the documents, if their texts do not speak of left and right, text or digits.
        crop: images are fitted to so many times their size, and a random window is cut out, the same one in all images of a
            document; 1: the whole image.
    """

    image_first: float = 0.2
    image_first_noise: float = 0.0
    dual: float = 0.5
    condition_dropout: ConditionDropout = ConditionDropout()
    flip: bool = False
    crop: float = 1.0

    def __post_init__(self) -> None:
        if not 1 <= self.crop <= 4:
            raise ValueError(f"crop is the size that images are fitted to over the item's, 1 to 4, not {self.crop}")
        for name in ("image_first", "image_first_noise", "dual"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name.replace('_', '-')} must be in [0, 1], not {getattr(self, name)}")

    def __call__(self, document: Document, seed: int, epoch: int, sample: int) -> Document:
        """The document as this epoch trains on it; `sample` is its index in the corpus."""
        whole = self.arranged(document, seed, epoch, sample)
        if any(item.use == "both" for item in whole.media) and rng.uniform(seed, epoch, sample, "dual") >= self.dual:
            return once(whole)
        return whole

    def arranged(self, document: Document, seed: int, epoch: int, sample: int) -> Document:
        """The document before it is decided whether items of use "both" stand twice: every item has its use."""

        def draw(*purpose: str | int) -> float:
            return rng.uniform(seed, epoch, sample, *purpose)

        segments = list(document.segments)
        for index, segment in enumerate(segments):
            if isinstance(segment, Text) and segment.paraphrases:
                choices = (segment.content, *segment.paraphrases)
                segments[index] = replace(segment, content=choices[int(draw("wording", index) * len(choices))], paraphrases=())
        for index, segment in enumerate(segments):
            if isinstance(segment, Media) and isinstance(segment.values, StoredLatents):
                views = segment.values
                segments[index] = replace(segment, values=views.view(int(draw("view", index) * len(views.rows))))
        if self.flip or self.crop > 1:
            flip, key = self.flip and not SIDES.search(document.text), rng.key(seed, epoch, sample, "varied")
            for index, segment in enumerate(segments):
                if isinstance(segment, Media) and isinstance(segment.values, EncodedImage | DecodedImage):
                    segments[index] = replace(segment, values=VariedImage(segment.values, self.crop, flip, key))
        if _is_reorderable(segments) and draw("order") < self.image_first:
            segments = self._item_first(segments)
        whole = with_uses(replace(document, segments=tuple(segments)))

        dropout, u = self.condition_dropout, draw("drop")
        targets = [i for i, s in enumerate(whole.segments) if isinstance(s, Media) and s.has_loss]
        if targets and u < dropout.text + dropout.media + dropout.both:
            target = targets[int(draw("target") * len(targets))]
            drop_text, drop_media = not dropout.text <= u < dropout.text + dropout.media, u >= dropout.text
            dropped = (Text,) * drop_text + (Media,) * drop_media
            if any(isinstance(s, dropped) for s in segments[:target]):
                return unconditional(whole, target, text=drop_text, media=drop_media)
        return whole

    def longest(self, document: Document) -> Document:
        """The document with every second copy that any epoch gives it, to find out whether it fits in a row."""
        whole = with_uses(document)
        if self.image_first > 0 and _is_reorderable(document.segments):
            turned = with_uses(replace(document, segments=tuple(self._item_first(document.segments))))
            whole = turned if turned.media[0].has_two_copies else whole
        return whole if self.dual > 0 else once(whole)

    def _item_first(self, pair: Sequence[Segment]) -> list[Segment]:
        """A caption and its item, in the other order. The item is read, unless it is said to be drawn too."""
        text, item = pair
        assert isinstance(item, Media)
        if item.use is None and self.image_first_noise > 0:
            item = replace(item, use="draw", times=(0.0, self.image_first_noise))
        elif item.use is None:
            item = replace(item, use="read")
        return [item, text]


def with_uses(document: Document) -> Document:
    """The document with the use of every item said; what that means for noise, loss and copies is the same everywhere:

        use        noise                  loss    what follows sees    copies
        draw       of all `times`         yes     the noised item      1
        read       none                   no      the clean item       1
        both       of all `times`         yes     the clean copy       2, the noised one private
        context    none                   no      the clean item       1

    An item that says nothing is "both" if anything behind it has a loss, so that it can be drawn and read; else, or if it is
    private, it is "draw". One of weight 0 is "context". Where its times or noise are set, it is "draw", as it is given.
    """
    segments = list(document.segments)
    is_condition = False  # whether a later segment has a loss
    for index in reversed(range(len(segments))):
        segment = segments[index]
        if isinstance(segment, Text):
            is_condition = is_condition or (segment.has_loss and document.language_loss)
        else:
            if segment.use is None and segment.is_clean and segment.noise is None:
                segments[index] = replace(segment, use="context")
            elif segment.use is None and segment.has_loss:
                as_given = segment.private or segment.times != ANY_TIME or segment.noise is not None
                segments[index] = replace(segment, use="both" if is_condition and not as_given else "draw")
            is_condition = is_condition or segment.has_loss
    return replace(document, segments=tuple(segments))


def once(document: Document) -> Document:
    """The document with its items of use "both" as single, noised ones: they take the loss, and what follows reads them so."""
    single = (replace(s, use="draw") if isinstance(s, Media) and s.use == "both" else s for s in document.segments)
    return replace(document, segments=tuple(single))


def _is_reorderable(segments: Sequence[Segment]) -> bool:
    """Whether a document is a caption that is learned and then an item that may be read too, of any noise."""
    if [type(s) for s in segments] != [Text, Media]:
        return False
    text, item = segments
    assert isinstance(text, Text) and isinstance(item, Media)
    free = item.times == ANY_TIME and item.noise is None and not item.private
    return text.has_loss and item.has_loss and free and item.use in (None, "both")
