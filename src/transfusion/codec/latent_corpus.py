"""A corpus of items -> the same as latents, encoded when they are first needed and kept while there is room."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import Tensor

from transfusion.codec.codecs import Codecs
from transfusion.data.document import Document, Media, MediaError

ROOM = 2**30
"""Bytes of latents that are kept: 1 GiB, a million of 256 numbers."""


class LatentCorpus(Sequence[Document]):
    """The documents of a corpus with latents for their items. The items that came first are kept, up to `room`: epochs are
    permutations, so a cache that gave up old items for new ones would never have what is asked for. Latents are the same
    whether they are kept or made again.

    Args:
        corpus: documents of items, or of latents that are ready.
        codecs: the model's.
        room: bytes of latents that are kept.

    Raises:
        ValueError: an autoencoder whose latents, or what it decodes of them, are not finite: found on the first document.
    """

    def __init__(self, corpus: Sequence[Document], codecs: Codecs, *, room: int = ROOM) -> None:
        self.corpus, self.codecs, self.room = corpus, codecs, room
        self._kept: dict[tuple[int, int], Tensor] = {}
        self._check()

    def __len__(self) -> int:
        return len(self.corpus)

    def __getitem__(self, index):  # type: ignore[override]
        document = self.corpus[index]
        segments = [
            self.codecs.encoded_item(segment, cached=self._cached((index, number))) if isinstance(segment, Media) else segment
            for number, segment in enumerate(document.segments)
        ]
        return replace(document, segments=tuple(segments))

    def _cached(self, place: tuple[int, int]) -> Callable[[Callable[[], Tensor]], Tensor]:
        """For the item at a place, (document, segment): a function that gives what is kept, or makes and perhaps keeps it."""

        def cached(make: Callable[[], Tensor]) -> Tensor:
            if place in self._kept:
                return self._kept[place]
            latents = make()
            size = latents.numel() * latents.element_size()
            if size <= self.room:
                self._kept[place] = latents
                self.room -= size
            return latents

        return cached

    def _check(self) -> None:
        """Encode and decode the first item of each modality that can be read."""
        left = set(self.codecs.autoencoders)
        for index in range(len(self.corpus)):
            for media in self[index].media:
                if media.modality in left and media.values is not None:
                    try:
                        decoded = self.codecs.pixels(media.modality, media.tensor())
                    except MediaError as error:
                        if "NaN" not in str(error):
                            continue
                        raise ValueError(f"document {self.corpus[index].name or index}: {error}") from error
                    if not decoded.isfinite().all():
                        raise ValueError("the autoencoder decodes NaN or infinity: check its weights")
                    left.discard(media.modality)
            if not left:
                return
