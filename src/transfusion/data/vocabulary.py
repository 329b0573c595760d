"""Vocabulary: text <-> ids by a `tokenizers` tokenizer, and one typed table of control tokens behind the text ids.

Control ids are never reached from text: they stand outside the tokenizer, and a tokenizer's own special tokens are read as
plain text when a user or a caption spells them.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Literal, TypeAlias

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from transfusion.modality import Modality

Role = Literal["pad", "bos", "eos", "begin", "end", "size"]


@dataclass(frozen=True)
class Control:
    """One control token: its role and, where it has them, modality, axis and the size (in slots) that it states."""

    role: Role
    modality: str = ""
    axis: int = -1
    extent: int = 0

    @property
    def name(self) -> str:
        """A readable name, unique in a vocabulary."""
        parts = [self.role.upper(), self.modality, f"{self.axis}:{self.extent}" if self.role == "size" else ""]
        return "<" + " ".join(part for part in parts if part) + ">"


@dataclass(frozen=True)
class Bytes:
    """Plain UTF-8 bytes: 256 ids, nothing to train."""

    kind: ClassVar[str] = "bytes"

    def build(self, texts: Iterable[str]) -> tokenizers.Tokenizer:
        """The tokenizer; `texts` are not needed."""
        return _byte_level(
            models.BPE(vocab={c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, merges=[])
        )


@dataclass(frozen=True)
class BPE:
    """Byte-level byte-pair encoding, trained on the corpus.

    Args:
        size: ids at most (at least 256).
    """

    kind: ClassVar[str] = "bpe"
    size: int = 4096

    def build(self, texts: Iterable[str]) -> tokenizers.Tokenizer:
        """A tokenizer trained on the texts."""
        if self.size < 256:
            raise ValueError(f"a byte-level tokenizer needs at least 256 ids, not {self.size}")
        tokenizer = _byte_level(models.BPE())
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        tokenizer.train_from_iterator(
            texts,
            trainers.BpeTrainer(vocab_size=self.size, initial_alphabet=alphabet, show_progress=False, special_tokens=[]),
        )
        return tokenizer


@dataclass(frozen=True)
class TokenizerFile:
    """Any tokenizer of the `tokenizers` library.

    Args:
        path: its `tokenizer.json`.
    """

    kind: ClassVar[str] = "file"
    path: str = "tokenizer.json"

    def build(self, texts: Iterable[str]) -> tokenizers.Tokenizer:
        """The tokenizer as the file holds it."""
        if not Path(self.path).is_file():
            raise ValueError(f"no tokenizer at {self.path}; give the path of a tokenizer.json")
        return _read(Path(self.path))


Tokenizer: TypeAlias = Bytes | BPE | TokenizerFile


def _read(path: Path) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except Exception as error:  # the library raises nothing more special
        raise ValueError(f"cannot read the tokenizer {path}: {error}") from error


def _byte_level(model: models.Model) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    return tokenizer


def _controls(modalities: Sequence[Modality]) -> list[Control]:
    table = [Control("pad"), Control("bos"), Control("eos")]
    for modality in modalities:
        table += [Control("begin", modality.name), Control("end", modality.name)]
        if modality.varies:
            for axis, largest in enumerate(modality.extents):
                table += [Control("size", modality.name, axis, extent) for extent in range(1, largest + 1)]
    return table


class Vocabulary:
    """All ids of a model: text ids first, then the control tokens."""

    def __init__(self, tokenizer: tokenizers.Tokenizer, modalities: Sequence[Modality]) -> None:
        names = [modality.name for modality in modalities]
        if len(set(names)) < len(names):
            raise ValueError(f"modalities need different names, not {names}")
        tokenizer.encode_special_tokens = True
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self.tokenizer = tokenizer
        self.modalities = tuple(modalities)
        self.num_text = 1 + max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)  # ids may have gaps
        self.controls = _controls(modalities)
        self._ids = {control: self.num_text + i for i, control in enumerate(self.controls)}
        self.pad, self.bos, self.eos = (self.id(Control(role)) for role in ("pad", "bos", "eos"))

    def __len__(self) -> int:
        return self.num_text + len(self.controls)

    def id(self, control: Control) -> int:
        """Id of a control token. Raises ValueError if this vocabulary has no such token."""
        if control not in self._ids:
            raise ValueError(f"this vocabulary has no {control.name}; its modalities are {[m.name for m in self.modalities]}")
        return self._ids[control]

    def control(self, token: int) -> Control | None:
        """The control token of an id; None for text."""
        return self.controls[token - self.num_text] if self.num_text <= token < len(self) else None

    def begin(self, modality: str) -> int:
        """Id that opens an item."""
        return self.id(Control("begin", modality))

    def end(self, modality: str) -> int:
        """Id that closes an item."""
        return self.id(Control("end", modality))

    def modality(self, name: str) -> Modality:
        """A modality by name. Raises ValueError if there is none."""
        for modality in self.modalities:
            if modality.name == name:
                return modality
        raise ValueError(f"no modality {name!r}; this model has {[m.name for m in self.modalities] or 'text alone'}")

    def frame(self, modality: Modality, grid: tuple[int, ...]) -> list[int]:
        """Ids that stand before an item's slots: its sizes, where they vary, and BEGIN."""
        sizes = [Control("size", modality.name, axis, extent) for axis, extent in enumerate(grid)] if modality.varies else []
        return [self.id(size) for size in sizes] + [self.begin(modality.name)]

    def encode(self, text: str | tuple[int, ...]) -> list[int]:
        """Ids of a text; never a control id, whatever the text spells.

        Raises:
            ValueError: ids that are no text ids.
        """
        if isinstance(text, str):
            return self.tokenizer.encode(text, add_special_tokens=False).ids
        for token in text:
            if not 0 <= token < self.num_text:
                raise ValueError(f"token id {token} is no text id: they run from 0 to {self.num_text - 1}")
        return list(text)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the text ids among these; control tokens are left out."""
        return self.tokenizer.decode([i for i in ids if 0 <= i < self.num_text], skip_special_tokens=False)

    @cached_property
    def names(self) -> list[str]:
        """A name for every id: what weights are matched by when a vocabulary changes."""
        texts = [self.tokenizer.id_to_token(i) for i in range(self.num_text)]
        return [f"unused:{i}" if t is None else f"text:{t}" for i, t in enumerate(texts)] + [c.name for c in self.controls]

    def save(self, path: Path) -> None:
        """Write the tokenizer; the control table follows from the modalities."""
        path.write_text(self.tokenizer.to_str(), encoding="utf-8")

    @classmethod
    def load(cls, path: Path, modalities: Sequence[Modality]) -> "Vocabulary":
        """Read what `save` wrote."""
        return cls(_read(path), modalities)
