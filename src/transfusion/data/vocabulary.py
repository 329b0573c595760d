"""Vocabulary: text <-> ids by a `tokenizers` tokenizer; behind the text ids a typed table of special tokens, and the codebooks.

No text encodes to a special token: ours are outside the tokenizer, and the tokenizer's own, spelled in a text, are encoded as
plain text.
"""

import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Literal, TypeAlias

import tokenizers
import torch
from jaxtyping import Bool, Float
from tokenizers import decoders, models, pre_tokenizers, trainers
from torch import Tensor

from transfusion.files import keep_text, read_text
from transfusion.modality import Modality

MAX_IDS = 2**24
"""Ids of a tokenizer at most."""
LONGEST = 1000
"""Characters of a word, or of blanks between words, that a tokenizer is trained on whole."""
LONG_WORD = re.compile(rf"\S{{{LONGEST}}}|\s{{{LONGEST}}}")
Role = Literal["pad", "bos", "eos", "begin", "end", "size", "code"]


@dataclass(frozen=True)
class SpecialToken:
    """A special token: its role, the modality of a begin, end, size or code token, a size token's axis and extent in slots, and
    a code's number in its codebook."""

    role: Role
    modality: str = ""
    axis: int = -1
    extent: int = 0
    code: int = -1

    @property
    def name(self) -> str:
        """A readable name, unique in a vocabulary."""
        number = {"size": f"{self.axis}:{self.extent}", "code": str(self.code)}.get(self.role, "")
        parts = [self.role.upper(), self.modality, number]
        return "<" + " ".join(part for part in parts if part) + ">"


@dataclass(frozen=True)
class Bytes:
    """UTF-8 bytes: 256 ids, without training."""

    kind: ClassVar[str] = "bytes"

    def build(self, texts: Iterable[str]) -> tokenizers.Tokenizer:
        """The tokenizer; `texts` are not used."""
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        return _byte_level(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))


@dataclass(frozen=True)
class BPE:
    """Byte-level byte-pair encoding, trained on the corpus.

    Args:
        size: ids at most, 256 or more.
    """

    kind: ClassVar[str] = "bpe"
    size: int = 4096

    def build(self, texts: Iterable[str]) -> tokenizers.Tokenizer:
        """A tokenizer trained on the texts. Raises ValueError for a size below 256."""
        if not 256 <= self.size <= MAX_IDS:
            raise ValueError(f"a byte-level tokenizer needs at least 256 ids, and at most {MAX_IDS:,}, not {self.size}")
        tokenizer, alphabet = _byte_level(models.BPE()), sorted(pre_tokenizers.ByteLevel.alphabet())
        trainer = trainers.BpeTrainer(vocab_size=self.size, initial_alphabet=alphabet, show_progress=False, special_tokens=[])
        tokenizer.train_from_iterator((piece for text in texts for piece in _pieces(text)), trainer)
        return tokenizer


@dataclass(frozen=True)
class TokenizerFile:
    """Any tokenizer of the `tokenizers` library, by its `tokenizer.json`."""

    kind: ClassVar[str] = "file"
    path: str = "tokenizer.json"

    def build(self, texts: Iterable[str]) -> tokenizers.Tokenizer:
        """The file's tokenizer; `texts` are not used. Raises ValueError if it cannot be read."""
        if not Path(self.path).is_file():
            raise ValueError(f"no tokenizer at {self.path}; give the path of a tokenizer.json")
        return _read(Path(self.path))


@dataclass(frozen=True)
class Ids:
    """Ids of the caller's own tokenizer, `count` of them (0: media alone). A text is a tuple of ids; as a string it is their
    numbers, separated by blanks."""

    kind: ClassVar[str] = "ids"
    count: int = 256

    def __post_init__(self) -> None:
        if not 0 <= self.count <= MAX_IDS:
            raise ValueError(f"the count of ids must be between 0 and {MAX_IDS:,}, not {self.count}")

    def build(self, texts: Iterable[str]) -> tokenizers.Tokenizer:
        """A tokenizer of numbers; `texts` are not used."""
        tokenizer = tokenizers.Tokenizer(models.WordLevel({str(i): i for i in range(self.count)}))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
        return tokenizer


Tokenizer: TypeAlias = Bytes | BPE | TokenizerFile | Ids


@dataclass(frozen=True)
class PretrainedVocabulary:
    """The ids of a pretrained language model that a vocabulary extends. Raises ValueError if BOS or EOS is no id of the model.

    Args:
        count: rows of its embedding; its tokenizer may have fewer ids.
        bos: its BOS (None: it has none, and the vocabulary adds a special token).
        eos: its EOS ids; the first ends our documents (empty: it has none, and the vocabulary adds a special token).
    """

    count: int
    bos: int | None = None
    eos: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= self.count <= MAX_IDS:
            raise ValueError(f"a language model has 1 to {MAX_IDS:,} ids, not {self.count}")
        for token in (*self.eos, *(() if self.bos is None else (self.bos,))):
            if not 0 <= token < self.count:
                raise ValueError(f"BOS {self.bos} and EOS {self.eos} must be ids of the language model, below {self.count}")


def _pieces(text: str) -> list[str]:
    """A text in pieces whose words are short: training takes time quadratic in the length of a word."""
    return [text[i : i + LONGEST] for i in range(0, len(text), LONGEST)] if LONG_WORD.search(text) else [text]


def _read(path: Path) -> tokenizers.Tokenizer:
    try:
        tokenizer = tokenizers.Tokenizer.from_str(read_text(path))
        largest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
    except BaseException as error:
        raise ValueError(f"cannot read the tokenizer {path}: {_fault(error)}") from error
    if largest >= MAX_IDS:
        raise ValueError(f"cannot read the tokenizer {path}: it has an id {largest:,}, above {MAX_IDS:,}")
    return tokenizer


def _fault(error: BaseException) -> BaseException:
    """What went wrong in the `tokenizers` library, which has no exception class of its own, and panics with one that is no
    Exception. Raises any other error."""
    if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
        raise error
    return error


def _byte_level(model: models.Model) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    return tokenizer


def _special_tokens(modalities: Sequence[Modality], pretrained: PretrainedVocabulary | None) -> list[SpecialToken]:
    if pretrained is None:
        table = [SpecialToken("pad"), SpecialToken("bos"), SpecialToken("eos")]
    else:  # an added BOS comes first: it is frozen with the language model's rows
        bos, eos = [SpecialToken("bos")] * (pretrained.bos is None), [SpecialToken("eos")] * (not pretrained.eos)
        table = [*bos, SpecialToken("pad"), *eos]
    for modality in modalities:
        table += [SpecialToken("begin", modality.name), SpecialToken("end", modality.name)]
        if modality.varies:
            for axis, largest in enumerate(modality.extents):
                table += [SpecialToken("size", modality.name, axis, extent) for extent in range(1, largest + 1)]
    return table


class Vocabulary:
    """All ids of a model: text ids first, then special tokens. Raises ValueError if two modalities have the same name, or the
    tokenizer has ids that the language model lacks.

    Args:
        modalities: in the order of their indices; each has special tokens.
        ids: ids of the pretrained language model that has this tokenizer (None: there is none).
    """

    def __init__(
        self, tokenizer: tokenizers.Tokenizer, modalities: Sequence[Modality], ids: PretrainedVocabulary | None = None
    ) -> None:
        names = [modality.name for modality in modalities]
        if len(set(names)) < len(names):
            raise ValueError(f"modalities need different names, not {names}")
        tokenizer.encode_special_tokens = True
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self.tokenizer, self.ids = tokenizer, ids
        self.modalities = tuple(modalities)
        self.num_text = 1 + max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)  # ids may have gaps
        if ids is not None and self.num_text > ids.count:
            fault = f"the tokenizer has ids up to {self.num_text - 1}, the language model has {ids.count} ids"
            raise ValueError(f"{fault}: use the language model's own tokenizer")
        self.num_text = self.num_text if ids is None else ids.count
        self.special_tokens = _special_tokens(modalities, ids)
        self._ids = {special: self.num_text + i for i, special in enumerate(self.special_tokens)}
        self._by_id = {token: special for special, token in self._ids.items()}
        if ids is not None and ids.bos is not None:
            self._ids[SpecialToken("bos")], self._by_id[ids.bos] = ids.bos, SpecialToken("bos")
        if ids is not None and ids.eos:  # after BOS: an id that is both ends a document
            self._ids[SpecialToken("eos")] = ids.eos[0]
            self._by_id |= dict.fromkeys(ids.eos, SpecialToken("eos"))
        self.ends = (self.id(SpecialToken("eos")),) if ids is None or not ids.eos else ids.eos  # each ends a document
        self._codes: dict[str, range] = {}
        end = self.num_text + len(self.special_tokens)
        for modality in modalities:
            self._codes[modality.name] = range(end, end + modality.codes)
            end += modality.codes
        self.pad, self.bos, self.eos = (self.id(SpecialToken(role)) for role in ("pad", "bos", "eos"))

    def __len__(self) -> int:
        return self.num_text + len(self.special_tokens) + sum(map(len, self._codes.values()))

    @property
    def num_language(self) -> int:
        """Number of pretrained ids (+ BOS if one was added); they come first. 0 without a language model."""
        return 0 if self.ids is None else self.num_text + (self.ids.bos is None)

    @cached_property
    def _special(self) -> frozenset[int]:
        """Special tokens of the language model, which no text may encode to."""
        if self.ids is None:
            return frozenset()
        named = {i for i, token in self.tokenizer.get_added_tokens_decoder().items() if token.special}
        return frozenset(named | {*self.ids.eos, self.bos})

    @cached_property
    def _unknown(self) -> tuple[int | None, str | None]:
        """Id and name of the tokenizer's token for unknown words; None, None without one."""
        model = json.loads(self.tokenizer.to_str())["model"]
        if model.get("unk_token") is not None:
            return self.tokenizer.token_to_id(model["unk_token"]), model["unk_token"]
        token = model.get("unk_id")
        return token, None if token is None else self.tokenizer.id_to_token(token)

    @cached_property
    def writable(self) -> Bool[Tensor, " id"]:
        """Ids that the model may write as text or to end a document; of a language model's, its tokenizer's plain ones."""
        writable = torch.zeros(len(self), dtype=torch.bool)
        if self.ids is None:
            writable[: self.num_text] = True
        else:
            writable[list(self.tokenizer.get_vocab(with_added_tokens=True).values())] = True
            writable[list(self._special)] = False
        writable[list(self.ends)] = True
        return writable

    def id(self, special: SpecialToken) -> int:
        """Id of a special token. Raises ValueError if this vocabulary does not have it."""
        if special not in self._ids:
            raise ValueError(f"this vocabulary has no {special.name}; its modalities are {[m.name for m in self.modalities]}")
        return self._ids[special]

    def special_token(self, token: int) -> SpecialToken | None:
        """The special token of an id, or its code; None for text."""
        if token >= self.num_text + len(self.special_tokens):
            for modality, codes in self._codes.items():
                if token in codes:
                    return SpecialToken("code", modality, code=token - codes.start)
        return self._by_id.get(token)

    def codes(self, modality: str) -> range:
        """Ids of a modality's codebook, in its order; empty where it is continuous. They stand behind all other ids, and no
        text encodes to them."""
        return self._codes[modality]

    def begin(self, modality: str) -> int:
        """Id that opens an item."""
        return self.id(SpecialToken("begin", modality))

    def end(self, modality: str) -> int:
        """Id that closes an item."""
        return self.id(SpecialToken("end", modality))

    def opening(self, modality: str) -> list[int]:
        """Ids that may open an item: BEGIN, and all its sizes where they vary."""
        return [i for special, i in self._ids.items() if special.modality == modality and special.role in ("begin", "size")]

    def opening_prior(self, nats: float) -> Float[Tensor, " id"]:
        """What is added to each id's logit so that, between equal logits, the begin of an item, and all of its sizes on an axis
        together, are exp(-nats) as likely as one other id."""
        prior = torch.zeros(len(self), device="cpu")  # also while a model is built on the meta device
        for token, special in self._by_id.items():
            if special.role in ("begin", "size"):
                count = self.modality(special.modality).extents[special.axis] if special.role == "size" else 1
                prior[token] = -nats - math.log(count)
        return prior

    def modality(self, name: str) -> Modality:
        """A modality by name. Raises ValueError if there is none."""
        names = [modality.name for modality in self.modalities]
        if name not in names:
            raise ValueError(f"no modality {name!r}; this model has {names or 'text alone'}")
        return self.modalities[names.index(name)]

    def frame(self, modality: Modality, grid: tuple[int, ...]) -> list[int]:
        """Ids before an item's slots: its sizes, if they vary, and BEGIN."""
        sizes = enumerate(grid) if modality.varies else ()
        return [self.id(SpecialToken("size", modality.name, *size)) for size in sizes] + [self.begin(modality.name)]

    def encode(self, text: str | tuple[int, ...]) -> list[int]:
        """Ids of a text, never a special token. A tuple of ids is checked and kept. Raises ValueError: ids that are no text
        ids, or words that the tokenizer cannot encode."""
        if isinstance(text, str):
            try:
                ids = self.tokenizer.encode(text, add_special_tokens=False).ids
            except BaseException as error:
                fault = f"the tokenizer cannot encode {text[:60]!r} ({_fault(error)})"
                raise ValueError(f"{fault}; for a model of ids alone, give a tuple of ids") from error
            if not self._special.isdisjoint(ids):
                unknown, name = self._unknown
                if name is not None and name not in text and self._special.isdisjoint(i for i in ids if i != unknown):
                    raise ValueError(f"{text[:60]!r} has words that this tokenizer does not know and cannot spell")
                raise ValueError(f"{text[:60]!r} spells a special token of this tokenizer, which cannot read it as plain text")
            return ids
        for token in text:
            if not 0 <= token < self.num_text:
                valid = f"they run from 0 to {self.num_text - 1}" if self.num_text else "this model has none, only media"
                raise ValueError(f"token id {token} is no text id: {valid}")
        return list(text)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of these ids, special tokens left out."""
        text_ids = [i for i in ids if 0 <= i < self.num_text and i not in self._by_id]
        return self.tokenizer.decode(text_ids, skip_special_tokens=False)

    @cached_property
    def names(self) -> list[str]:
        """A name for every id, by which embeddings are matched when the vocabulary changes."""
        tokens = [self.tokenizer.id_to_token(i) for i in range(self.num_text)]
        texts = [f"unused:{i}" if token is None else f"text:{token}" for i, token in enumerate(tokens)]
        codes = [SpecialToken("code", name, code=i) for name, ids in self._codes.items() for i in range(len(ids))]
        return texts + [special.name for special in (*self.special_tokens, *codes)]

    def save(self, path: Path) -> None:
        """Write the tokenizer; the special tokens follow from the modalities and the language model's ids."""
        keep_text(path, self.tokenizer.to_str())

    @classmethod
    def load(cls, path: Path, modalities: Sequence[Modality], ids: PretrainedVocabulary | None = None) -> "Vocabulary":
        """Read what `save` wrote. Raises ValueError if it is damaged, or has ids that the language model lacks."""
        return cls(_read(path), modalities, ids)
