"""What fails while documents are generated: found, retried where memory did not suffice, and told."""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch

from transfusion.data.document import Document

T = TypeVar("T")


class GenerationError(RuntimeError):
    """Some documents could not be finished. `documents` has the others, in the order of their prompts, and None for these."""

    def __init__(self, message: str, documents: list[Document | None]) -> None:
        super().__init__(message)
        self.documents = documents


def attempt(run: Callable[[Sequence[T]], None], work: Sequence[T]) -> Iterator[tuple[T, Exception]]:
    """run(work), which must change nothing before all else has succeeded. If memory does not suffice, the halves of the work
    are tried one after the other, down to single ones. What failed comes back with its error."""
    if not work:
        return
    try:
        run(work)
        return
    except Exception as raised:
        error = raised
    if is_out_of_memory(error) and len(work) > 1:
        error.__traceback__ = None  # its frames hold the tensors that there was no more room beside
        half = len(work) // 2
        yield from attempt(run, work[:half])
        yield from attempt(run, work[half:])
    else:
        yield from ((each, error) for each in work)


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory did not suffice, by the errors of PyTorch's allocators (some are plain RuntimeErrors) and Python's."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    said = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, RuntimeError) and any(words in str(error) for words in said)
