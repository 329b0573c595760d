"""A corpus -> an endless stream of packed batches, each with the position after it.

An epoch is a keyed permutation of the corpus, cut into windows. A window is transformed, tokenised and packed when the stream
reaches it. Its rows are a pure function of (seed, epoch, window), so a run resumes from a position, and each rank takes its
share of the rows of a step.
"""

from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TypeVar

from transfusion import rng
from transfusion.data.batch import Batch, Position, collate
from transfusion.data.corpus import MAX_UNREADABLE
from transfusion.data.document import Document, MediaError
from transfusion.data.packing import pack
from transfusion.data.tokenize import Coordinates, TokenSequence, max_length, tokenize_document
from transfusion.data.transforms import DocumentTransform, once
from transfusion.data.vocabulary import Vocabulary

T = TypeVar("T")
MAX_TOKENS = 2**28
"""Tokens of a step at most: a limit before memory is taken."""


@dataclass(frozen=True)
class PackingConfig:
    """Shape of a batch.

    Args:
        row_length: tokens of a row; every document must fit in a row.
        rows: rows of a step, over all processes.
        window: documents that are packed together.
    """

    row_length: int = 256
    rows: int = 8
    window: int = 4096

    def __post_init__(self) -> None:
        if min(self.row_length, self.rows, self.window) < 1:
            raise ValueError(f"row-length, rows and window must be at least 1, not {self}")
        if self.row_length * self.rows > MAX_TOKENS or self.window > MAX_TOKENS:
            raise ValueError(f"row-length times rows, and window, must be at most {MAX_TOKENS:,}, not as in {self}")


def prefetch(stream: Iterator[T]) -> Generator[T, None, None]:
    """An endless stream whose next element is made in a thread while the current one is used."""
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(next, stream)
        while True:
            current = future.result()
            future = pool.submit(next, stream)
            yield current


class TooManyUnreadable(ValueError):
    """More than 5 % of the documents read so far cannot be read."""


class Loader:
    """Packed batches of a corpus: `parts` of them a step (gradient accumulation) for process `rank` of `world`. Documents that
    do not fit the model or a row are left out, and named in `left_out`; `num_single` counts those whose items stand once in
    every epoch, since two copies do not fit in a row. Raises ValueError: the corpus is empty, the rows are no multiple of
    world * parts, or more than 5 % of the documents do not fit."""

    def __init__(
        self,
        corpus: Sequence[Document],
        *,
        transform: DocumentTransform,
        packing: PackingConfig,
        vocabulary: Vocabulary,
        coordinates: Coordinates,
        seed: int,
        rank: int = 0,
        world: int = 1,
        parts: int = 1,
    ) -> None:
        if not len(corpus):
            raise ValueError("the corpus is empty: training needs documents")
        if packing.rows % (world * parts):
            raise ValueError(f"rows ({packing.rows}) must be a multiple of processes ({world}) times accumulation ({parts})")
        self.transform, self.packing = transform, packing
        self.vocabulary, self.coordinates = vocabulary, coordinates
        self.seed, self.rank, self.world, self.parts = seed, rank, world, parts
        self._seen: set[int] = set()
        self.failed: dict[int, str] = {}
        self._window = lru_cache(maxsize=2)(self._build)
        self.left_out: list[str] = []
        kept: list[Document] = []
        cache: dict[object, int] = {}
        self.num_single = 0
        for sample, document in enumerate(corpus):
            try:
                longest = transform.longest(document)
                lengths = [max_length(form, vocabulary, cache) for form in (longest, once(longest))]
                if lengths[1] > packing.row_length:
                    fault = f"document {document.name or sample} takes {lengths[1]} tokens, a row has {packing.row_length}"
                    raise ValueError(f"{fault}: raise --packing.row-length, or leave the document out")
                self.num_single += lengths[0] > packing.row_length
                kept.append(document)
            except ValueError as error:
                self.left_out.append(str(error))
                if len(self.left_out) > MAX_UNREADABLE * len(corpus):
                    raise
        self.corpus = kept if self.left_out else corpus
        self.num_windows = -(-len(self.corpus) // packing.window)

    def num_rows(self, epoch: int) -> int:
        """Rows that an epoch takes."""
        return sum(len(self._window(epoch, window)) for window in range(self.num_windows))

    def _build(self, epoch: int, window: int) -> list[tuple[tuple[int, TokenSequence], ...]]:
        """The rows of a window; each is a tuple of (sample, sequence)."""
        order = rng.generator(rng.key(self.seed, epoch, "order")).permutation(len(self.corpus))
        samples = [int(i) for i in order[window * self.packing.window : (window + 1) * self.packing.window]]
        documents = [self.transform(self.corpus[i], self.seed, epoch, i) for i in samples]
        tokenized = [self._tokenize(document) for document in documents]
        rows = pack([len(s) for s in tokenized], self.packing.row_length, rng.key(self.seed, epoch, window, "pack"))
        return [tuple((samples[i], tokenized[i]) for i in row) for row in rows]

    def _tokenize(self, document: Document) -> TokenSequence:
        """A document as tokens, its items once if two copies do not fit in a row."""
        tokenized = tokenize_document(document, self.vocabulary, self.coordinates)
        if len(tokenized) > self.packing.row_length:
            return tokenize_document(once(document), self.vocabulary, self.coordinates)
        return tokenized

    def _rows(self, position: Position) -> Iterator[tuple[int, tuple[tuple[int, TokenSequence], ...], Position]]:
        while True:
            rows = self._window(position.epoch, position.window)
            for index in range(position.row, len(rows)):
                yield position.epoch, rows[index], replace(position, row=index + 1)
            is_last = position.window + 1 == self.num_windows
            position = Position(position.epoch + 1) if is_last else Position(position.epoch, position.window + 1)

    @property
    def start(self) -> Position:
        """The first position."""
        return Position()

    def batches(self, position: Position = Position()) -> Iterator[tuple[Batch, ...]]:
        """Steps from a position on: each a tuple of `parts` batches, whose `state` is the position after the step. Raises
        TooManyUnreadable: more than 5 % of the documents read so far cannot be read (3 may fail in the first epoch)."""
        stream = self._rows(position)
        share = self.packing.rows // (self.world * self.parts)
        while True:
            step = [next(stream) for _ in range(self.packing.rows)]
            mine = step[self.rank * share * self.parts : (self.rank + 1) * share * self.parts]
            yield tuple(self._batch(mine[p * share : (p + 1) * share], step[-1][2]) for p in range(self.parts))

    def _batch(self, rows: list[tuple[int, tuple[tuple[int, TokenSequence], ...], Position]], after: Position) -> Batch:
        packed: list[list[TokenSequence]] = []
        unreadable: list[str] = []
        for epoch, row, _ in rows:
            packed.append([])
            for sample, tokenized in row:
                self._seen.add(sample)
                try:
                    loaded = tokenized.load(lambda item, epoch=epoch, sample=sample: rng.key(self.seed, epoch, sample, item))
                    packed[-1].append(loaded if loaded.name else replace(loaded, name=str(sample)))
                except MediaError as error:
                    name = self.corpus[sample].name or f"document {sample}"
                    line = str(error) if name in str(error) else f"{name}: {error}"
                    if sample not in self.failed:
                        self.failed[sample] = line
                        unreadable.append(line)
        limit = MAX_UNREADABLE * len(self._seen)
        if len(self.failed) > limit and (len(self.failed) > 3 or len(self._seen) == len(self.corpus)):
            fault = f"{len(self.failed)} of {len(self._seen)} documents cannot be read"
            raise TooManyUnreadable(f"{fault}, the last: {list(self.failed.values())[-1]}; mend or remove them")
        batch = collate(packed, self.packing.row_length, self.vocabulary, self.coordinates.axes)
        return replace(batch, state=after, unreadable=tuple(unreadable))
