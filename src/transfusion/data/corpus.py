"""A corpus: the documents that a source holds, and the names of those that cannot be read."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from transfusion.data.document import Document, Media, Text

MAX_UNREADABLE = 0.05
"""Share of unreadable documents above which reading fails."""

Captions: TypeAlias = Callable[[str], tuple[str, ...]]
"""A caption or class name -> its paraphrases, the first of them the caption itself."""


def unchanged(caption: str) -> tuple[str, ...]:
    """The caption alone."""
    return (caption,)


@dataclass
class Corpus(Sequence[Document]):
    """Documents, and a line for each that cannot be read: its name and the reason."""

    documents: list[Document] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.documents)

    def __getitem__(self, index):  # type: ignore[override]
        return self.documents[index]

    def checked(self, source: str) -> "Corpus":
        """Itself. Raises ValueError if no document can be read, or more than 5 % cannot."""
        total = len(self.documents) + len(self.unreadable)
        listed = "".join(f"\n  {line}" for line in self.unreadable[:10])
        if not self.documents:
            formats = "; folders of images, captions.jsonl, Parquet and idx files are read"
            raise ValueError(f"{source}: no documents{' can be read:' + listed if listed else formats}")
        if len(self.unreadable) > MAX_UNREADABLE * total:
            count = f"{len(self.unreadable)} of {total} documents"
            raise ValueError(f"{source}: {count} cannot be read; mend or remove them:{listed}")
        return self


def captioned(captions: tuple[str, ...], media: Media, name: str) -> Document:
    """The first caption, then the item; the other captions are its paraphrases."""
    return Document((Text(captions[0], paraphrases=captions[1:]), media), name=name)
