"""Which documents a model was trained on: their shapes, the sizes of their items, and a few prompts. `documents.json` in the
model folder.

A shape has a word for each segment: `text`, `text:given` where it took no loss, and for an item its modality and its use,
`image:draw`. Generation is sure only of what continues such a shape.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from transfusion import rng
from transfusion.data.document import Document, Media, Text
from transfusion.data.latents import AnyLatents, Latents
from transfusion.data.transforms import DocumentTransform, with_uses
from transfusion.files import read_json

FILE = "documents.json"
MOST_SHAPES, MOST_SIZES, MOST_PROMPTS, SAMPLE = 64, 64, 8, 20_000
TEXT, GIVEN = "text", "text:given"


@dataclass
class LearnedDocuments:
    """The documents that a model learned. Deep copies share it: an average of a model learned from the same documents.

    Args:
        shapes: shape -> how many of the documents that were noted have it.
        prompts: what some of the documents begin with.
        more: whether there were more shapes than are kept.
        sizes: modality -> size of its items that were drawn, "64x48" -> how many there are; 64 of them at most.
    """

    shapes: dict[str, int] = field(default_factory=dict)
    prompts: list[str] = field(default_factory=list)
    more: bool = False
    sizes: dict[str, dict[str, int]] = field(default_factory=dict)

    def __deepcopy__(self, memo: object) -> "LearnedDocuments":
        return self

    @classmethod
    def of(
        cls, corpus: Sequence[Document], transform: DocumentTransform, *, seed: int = 0, prompts: Sequence[str] = ()
    ) -> "LearnedDocuments":
        """The shapes of a corpus as `transform` arranges it: of all its documents, or of 20,000 picked at random by the seed,
        twice each; then `more` is set, since rarer shapes may be missing."""
        learned = cls(prompts=list(prompts[:MOST_PROMPTS]), more=len(corpus) > SAMPLE)
        picked = range(len(corpus))
        if learned.more:
            picked = rng.generator(rng.key(seed, "learned documents")).choice(len(corpus), SAMPLE, replace=False).tolist()
        learned.note(transform.arranged(corpus[i], seed, epoch, i) for epoch in range(2) for i in picked)
        return learned

    def note(self, documents: Iterable[Document]) -> None:
        """Add documents."""
        for document in documents:
            whole = with_uses(document)
            name = shape(whole)
            if name in self.shapes or len(self.shapes) < MOST_SHAPES:
                self.shapes[name] = self.shapes.get(name, 0) + 1
            else:
                self.more = True
            for media in whole.media:
                self._note_size(media)
            if len(self.prompts) < MOST_PROMPTS and (prompt := _prompt(whole)) and prompt not in self.prompts:
                self.prompts.append(prompt)

    def _note_size(self, media: Media) -> None:
        item = media.values.item if isinstance(media.values, Latents) else None
        values = media.values if item is None else item.values
        if values is None or isinstance(values, AnyLatents) or not media.has_loss:
            return
        sizes, size = self.sizes.setdefault(media.modality, {}), _written(tuple(values.shape[1:]))
        if size in sizes or len(sizes) < MOST_SIZES:
            sizes[size] = sizes.get(size, 0) + 1

    @property
    def drawn(self) -> tuple[str, ...]:
        """Modalities of which items were drawn."""
        return self._modalities(lambda words, i: words[i].endswith((":draw", ":both")))

    @property
    def read(self) -> tuple[str, ...]:
        """Modalities behind whose items text was learned."""
        return self._modalities(lambda words, i: TEXT in words[i + 1 :])

    @property
    def edited(self) -> tuple[str, ...]:
        """Modalities of which items were drawn behind another item."""
        return self._modalities(lambda words, i: words[i].endswith((":draw", ":both")) and any(map(_is_item, words[:i])))

    def _modalities(self, holds: Callable[[list[str], int], bool]) -> tuple[str, ...]:
        found = dict[str, None]()
        for learned in self.shapes:
            words = learned.split()
            found |= {word.split(":")[0]: None for i, word in enumerate(words) if _is_item(word) and holds(words, i)}
        return tuple(found)

    def doubt(self, prompt: Document, *, force: str | None, text: bool) -> str:
        """Why what is asked for was never learned; "" if it was, or if not all shapes are known.

        Args:
            force: the modality that is drawn behind the prompt, if any.
            text: whether text alone is written behind it.
        """
        if not self.shapes or self.more:
            return ""
        before = [word.split(":")[0] for word in shape(prompt).split()]
        at = len(before)
        for learned in self.shapes:
            words = learned.split()
            kinds = [word.split(":")[0] for word in words]
            if kinds[:at] != before:
                continue
            if force is not None:
                fits = words[at : at + 1] in ([f"{force}:draw"], [f"{force}:both"])
            elif text and before[-1:] == [TEXT]:
                fits = words[at - 1] == TEXT
            else:
                fits = not text or words[at : at + 1] == [TEXT]
            if fits:
                return ""
        wanted = f"an item of {force}" if force else "text" if text else "a document that goes on"
        behind = f"behind {' and '.join(before)}" if before else "at the beginning"
        most = ", ".join(f"[{learned}]" for learned in sorted(self.shapes, key=self.shapes.__getitem__, reverse=True)[:4])
        return f"this model never learned {wanted} {behind}, so what comes may mean nothing; it learned {most}"

    def doubt_size(self, modality: str, size: Sequence[int]) -> str:
        """Why a size was never learned; "" if it was, or if not all sizes are known."""
        sizes = self.sizes.get(modality, {})
        if not sizes or len(sizes) >= MOST_SIZES or self.more or _written(size) in sizes:
            return ""
        most = ", ".join(sorted(sizes, key=sizes.__getitem__, reverse=True)[:4])
        return (
            f"this model never learned {modality} of size {_written(size)}, so what comes may mean nothing; it learned {most}"
        )

    def to_json(self) -> str:
        """The content of its file."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def load(cls, folder: Path) -> "LearnedDocuments":
        """Read it from a model folder; empty, if there is none. Raises ValueError if it is damaged."""
        file = folder / FILE
        try:
            plain = read_json(file) if file.is_file() else {}
            learned = cls(**plain)
            counted = (learned.shapes, *learned.sizes.values())
            counts, prompts = [entry for each in counted for entry in each.items()], learned.prompts
            if not all(isinstance(k, str) and isinstance(n, int) for k, n in counts) or not all(
                isinstance(p, str) for p in prompts
            ):
                raise ValueError("shapes are names and numbers, prompts are strings")
            return learned
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"cannot read {file}: {error}") from error


def shape(document: Document) -> str:
    """The shape of a document whose items say their uses; text that follows text counts as one."""
    words: list[str] = []
    for segment in document.segments:
        if isinstance(segment, Media):
            words.append(f"{segment.modality}:{segment.use}")
        elif segment.content:
            word = TEXT if segment.has_loss and document.language_loss else GIVEN
            if words and words[-1] in (TEXT, GIVEN):
                words[-1] = TEXT if TEXT in (words[-1], word) else GIVEN
            else:
                words.append(word)
    return " ".join(words)


def beginning(document: Document) -> Document | None:
    """What stands before the first item of a document that is drawn: a prompt that draws one; None where none is drawn."""
    for index, segment in enumerate(with_uses(document).segments):
        if isinstance(segment, Media) and segment.has_loss:
            return Document(document.segments[:index], name=document.name)
    return None


def _written(size: Sequence[int]) -> str:
    """A size in words: "64x48"."""
    return "x".join(map(str, size))


def _is_item(word: str) -> bool:
    return word not in (TEXT, GIVEN)


def _prompt(document: Document) -> str:
    """The text before its first item that is drawn; "" if there is none, or it is not a string."""
    for index, segment in enumerate(document.segments):
        if isinstance(segment, Media):
            parts = [s.content for s in document.segments[:index] if isinstance(s, Text)]
            return "".join(p for p in parts if isinstance(p, str)) if segment.has_loss else ""
    return ""
