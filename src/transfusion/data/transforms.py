"""From what a source holds to what is trained on: wording, order, noise limits and dropped captions of one epoch.

Every choice is drawn by the key (seed, epoch, sample, purpose).
"""

from dataclasses import dataclass, replace

from transfusion import rng
from transfusion.data.document import Document, Media, Text, TimeInterval, unconditional


@dataclass(frozen=True)
class ConditionDropout:
    """How often an item is trained without its context, for guidance.

    Args:
        text: share of documents in which an item loses the text before it.
        media: ... the media before it.
        both: ... both.
    """

    text: float = 0.1
    media: float = 0.0
    both: float = 0.0

    def __post_init__(self) -> None:
        if min(self.text, self.media, self.both) < 0 or self.text + self.media + self.both > 1:
            raise ValueError(f"drop rates must be shares that sum to 1 at most, not {self}")


@dataclass(frozen=True)
class DocumentTransform:
    """How documents are written for training.

    Args:
        image_first: share of caption-and-picture pairs in which the picture stands first (the paper: 0.2).
        condition_noise_min, condition_noise_max: noise range of images that later segments condition on. (0, 0.5) is the
            paper's noise limit (its Table 8); (0, 0) is clean and without loss; (0, 1) no limit.
        dual: give such an item a clean copy that is read, beside the noised one that takes the loss, instead of limiting its
            noise. It then takes twice its slots, and condition_noise_min and condition_noise_max are not used.
        condition_dropout: dropped captions.
    """

    image_first: float = 0.2
    condition_noise_min: float = 0.0
    condition_noise_max: float = 0.5
    dual: bool = False
    condition_dropout: ConditionDropout = ConditionDropout()

    def __post_init__(self) -> None:
        if not 0 <= self.image_first <= 1:
            raise ValueError(f"image-first is a share in [0, 1], not {self.image_first}")
        if not 0 <= self.condition_noise_min <= self.condition_noise_max <= 1:
            raise ValueError(
                f"condition-noise-min and condition-noise-max must be an interval in [0, 1], not "
                f"{self.condition_noise_min} and {self.condition_noise_max}"
            )

    def __call__(self, document: Document, seed: int, epoch: int, sample: int) -> Document:
        """The document as this epoch trains on it."""

        def draw(*purpose: str | int) -> float:
            return rng.uniform(seed, epoch, sample, *purpose)

        segments = list(document.segments)
        for index, segment in enumerate(segments):
            if isinstance(segment, Text) and segment.paraphrases:
                choices = (segment.content, *segment.paraphrases)
                segments[index] = replace(segment, content=choices[int(draw("wording", index) * len(choices))], paraphrases=())
        if [type(s) for s in segments] == [Text, Media] and draw("order") < self.image_first:
            segments.reverse()
        composed = replace(document, segments=tuple(segments))

        drop, u = self.condition_dropout, draw("drop")
        targets = [i for i, s in enumerate(segments) if isinstance(s, Media) and s.weight > 0]
        if targets and u < drop.text + drop.media + drop.both:
            target = targets[int(draw("target") * len(targets))]
            text, media = not drop.text <= u < drop.text + drop.media, u >= drop.text
            before = segments[:target]
            if (text and any(isinstance(s, Text) for s in before)) or (media and any(isinstance(s, Media) for s in before)):
                return self._limit(unconditional(composed, target, text=text, media=media))
        return self._limit(composed)

    def fullest(self, document: Document) -> Document:
        """The document with every dual copy that some epoch may give it: what must fit in a row."""
        if not self.dual:
            return document
        if self.image_first > 0 and [type(s) for s in document.segments] == [Text, Media]:
            document = replace(document, segments=document.segments[::-1])
        return self._limit(document)

    def _limit(self, document: Document) -> Document:
        limit: TimeInterval = (self.condition_noise_min, self.condition_noise_max)
        segments, read = list(document.segments), False
        for index in reversed(range(len(segments))):
            segment = segments[index]
            if isinstance(segment, Text):
                read = read or (segment.has_loss and document.language_loss)
            else:
                seen = read and not segment.private and not segment.dual  # noised, by what is learned later
                if seen and self.dual:
                    segments[index] = replace(segment, dual=True)
                elif seen and limit != (0.0, 1.0):
                    low, high = max(segment.times[0], limit[0]), min(segment.times[1], limit[1])
                    segments[index] = replace(segment, times=(min(low, high), high))
                read = read or segment.has_loss
        return replace(document, segments=tuple(segments))
