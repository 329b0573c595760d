"""A source's document -> the document that an epoch trains on: paraphrase, order, condition dropout and noise limits.

Each choice is drawn by the key (seed, epoch, sample, purpose).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from transfusion import rng
from transfusion.data.document import Document, Media, Segment, Text, TimeInterval, unconditional


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
        if min(self.text, self.media, self.both) < 0 or self.text + self.media + self.both > 1:
            raise ValueError(f"condition dropout needs shares of 0 or more that sum to 1 at most, not {self}")


@dataclass(frozen=True)
class DocumentTransform:
    """The form in which documents are trained on.

    Args:
        image_first: share of caption-and-item pairs that are reordered to item first (the paper: 0.2).
        condition_noise_min: least noise of items that later segments with a loss condition on.
        condition_noise_max: most noise of such items. 0.5 is the paper's limit (its Table 8), 1 no limit; both 0: clean,
            without a loss.
        dual: give such items a clean copy to condition on, beside the noised copy that takes the loss, instead of limiting the
            noise. They take twice their slots, and condition_noise_min and _max are not used.
    """

    image_first: float = 0.2
    condition_noise_min: float = 0.0
    condition_noise_max: float = 0.5
    dual: bool = False
    condition_dropout: ConditionDropout = ConditionDropout()

    def __post_init__(self) -> None:
        if not 0 <= self.image_first <= 1:
            raise ValueError(f"image-first is a share in [0, 1], not {self.image_first}")
        low, high = self.condition_noise_min, self.condition_noise_max
        if not 0 <= low <= high <= 1:
            raise ValueError(f"condition-noise-min and condition-noise-max must be an interval in [0, 1], not {low} and {high}")

    def __call__(self, document: Document, seed: int, epoch: int, sample: int) -> Document:
        """The document as this epoch trains on it; `sample` is its index in the corpus."""

        def draw(*purpose: str | int) -> float:
            return rng.uniform(seed, epoch, sample, *purpose)

        segments = list(document.segments)
        for index, segment in enumerate(segments):
            if isinstance(segment, Text) and segment.paraphrases:
                choices = (segment.content, *segment.paraphrases)
                segments[index] = replace(segment, content=choices[int(draw("wording", index) * len(choices))], paraphrases=())
        if _is_captioned(segments) and draw("order") < self.image_first:
            segments.reverse()
        whole = replace(document, segments=tuple(segments))

        dropout, u = self.condition_dropout, draw("drop")
        targets = [i for i, s in enumerate(segments) if isinstance(s, Media) and s.weight > 0]
        if targets and u < dropout.text + dropout.media + dropout.both:
            target = targets[int(draw("target") * len(targets))]
            drop_text, drop_media = not dropout.text <= u < dropout.text + dropout.media, u >= dropout.text
            dropped = (Text,) * drop_text + (Media,) * drop_media
            if any(isinstance(s, dropped) for s in segments[:target]):
                return self._limit(unconditional(whole, target, text=drop_text, media=drop_media))
        return self._limit(whole)

    def longest(self, document: Document) -> Document:
        """The document with every dual copy that any epoch gives it, to find out whether it fits in a row."""
        if not self.dual:
            return document
        if self.image_first > 0 and _is_captioned(document.segments):
            document = replace(document, segments=document.segments[::-1])
        return self._limit(document)

    def _limit(self, document: Document) -> Document:
        """The document with its conditions limited in noise, or dual."""
        limit: TimeInterval = (self.condition_noise_min, self.condition_noise_max)
        segments = list(document.segments)
        is_condition = False  # whether a later segment has a loss
        for index in reversed(range(len(segments))):
            segment = segments[index]
            if isinstance(segment, Text):
                is_condition = is_condition or (segment.has_loss and document.language_loss)
            else:
                if is_condition and not segment.private and not segment.dual:
                    if self.dual:
                        segments[index] = replace(segment, dual=True)
                    elif limit != (0.0, 1.0):
                        low, high = max(segment.times[0], limit[0]), min(segment.times[1], limit[1])
                        segments[index] = replace(segment, times=(min(low, high), high))
                is_condition = is_condition or segment.has_loss
        return replace(document, segments=tuple(segments))


def _is_captioned(segments: Sequence[Segment]) -> bool:
    """Whether a document is a caption and then an item."""
    return [type(s) for s in segments] == [Text, Media]
