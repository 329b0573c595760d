"""Prompts that hold control tokens, as samples do: the ids of a text between items are read as what they stand for.

    BOS  text ...  [SIZE axis0 .. axisN]  BEGIN  item  END  text ...  [SIZE ..]  BEGIN

BOS, an item's sizes, BEGIN and END follow from the document and are left out of it. A BEGIN at the end asks for an item at
once. A size may also be spelled as transfusion-pytorch does, `meta_id` and `char_ids("4,4")`: these ids lie behind the
vocabulary, and the model itself never writes them.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from transfusion.data.document import Media, Text
from transfusion.data.vocabulary import SpecialToken, Vocabulary


class Opening(NamedTuple):
    """An item to be generated at once: the name of its modality, and its size in latent elements (None: nothing is said)."""

    modality: str
    size: tuple[int, ...] | None


def meta_id(vocabulary: Vocabulary) -> int:
    """The id that begins a size that is spelled."""
    return len(vocabulary)


def char_ids(vocabulary: Vocabulary, text: str) -> Tensor:
    """The ids of a spelled size such as "4,4"."""
    return torch.tensor([meta_id(vocabulary) + 1 + ord(c) for c in text], dtype=torch.int64)


class PromptReader:
    """Reads the entries of one prompt, in order: `entry` each, then `opening`."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self._begun: Opening | None = None
        self._sizes: list[int] = []  # of SIZE tokens, in latent elements
        self._spelled: str | None = None
        self._last: int | str | None = None  # None at the start, the index or name of the item just read, or -1 for text

    def entry(self, value: Any) -> Any:
        """An entry without control tokens; None if nothing of it is left. Raises ValueError: a control token in a place where
        no document has it."""
        if value is None:
            return None
        if isinstance(value, Tensor) and not value.is_floating_point():
            return self._text(value)
        weighted = isinstance(value, tuple) and value and isinstance(value[0], Tensor) and not value[0].is_floating_point()
        if isinstance(value, str | Text) or weighted:
            self._no_open_item()
            self._last = -1
            return value
        index = value[0] if isinstance(value, tuple) and value and isinstance(value[0], int) else 0
        name = value.modality if isinstance(value, Media) else self._name(index)
        if self._begun is not None and name is not None and self._begun.modality != name:
            raise ValueError(f"an item of {name!r} behind the begin of {self._begun.modality!r}")
        self._begun, self._sizes, self._spelled, self._last = None, [], None, name
        return value

    def opening(self) -> Opening | None:
        """The item that the prompt's last token begins, if it does. Raises ValueError for a size without BEGIN."""
        if self._sizes or self._spelled is not None:
            raise ValueError("the prompt ends in the size of an item: add its begin, model.som_ids[modality]")
        return self._begun

    def _name(self, index: int) -> str | None:
        modalities = self.vocabulary.modalities
        return modalities[index].name if 0 <= index < len(modalities) else None

    def _no_open_item(self) -> None:
        if self._begun is not None or self._sizes or self._spelled is not None:
            raise ValueError("text where an item has begun: behind its size and begin comes the item, or nothing")

    def _text(self, ids: Tensor) -> Tensor | None:
        if ids.dtype not in (torch.int64, torch.int32):
            return ids
        if ids.ndim == 2 and len(ids) == 1:
            ids = ids[0]
        if ids.ndim > 1:
            remedy = "give a list with one prompt each, sample_many([*ids])"
            raise ValueError(f"text is a tensor of ids of one axis, not of shape {tuple(ids.shape)}: {remedy}")
        kept = [token for token in ids.reshape(-1).tolist() if token != -1 and not self._control(token)]
        return torch.tensor(kept, dtype=torch.int64) if kept else None

    def _control(self, token: int) -> bool:
        """Whether an id is a control token, which is taken as one; False for text."""
        char = token - meta_id(self.vocabulary) - 1
        special = self.vocabulary.special_token(token)
        if -1 <= char < 128:
            self._spell(char)
        elif special is None:
            self._no_open_item()
            self._last = -1
            return False
        else:
            self._special(special)
        return True

    def _spell(self, char: int) -> None:
        if char == -1:
            self._no_open_item()
            self._spelled = ""
        elif self._spelled is None:
            raise ValueError("the spelling of a size begins with model.meta_id")
        else:
            self._spelled += chr(char)

    def _special(self, special: SpecialToken) -> None:
        if special.role == "size":
            patch = self.vocabulary.modality(special.modality).patch
            self._sizes.append(special.extent * patch[special.axis])
        elif special.role == "begin":
            if self._begun is not None:
                raise ValueError("two items begin behind each other: leave one begin out")
            self._begun, self._sizes, self._spelled = Opening(special.modality, self._size(special.modality)), [], None
        elif special.role == "end":
            if self._last != special.modality:
                raise ValueError(f"{special.name} stands behind an item of its modality only")
        elif special.role == "bos":
            if self._last is not None:
                raise ValueError("model.sos_id stands at the start of a prompt only")
        elif special.role == "eos":
            raise ValueError("the prompt is complete, it holds model.eos_id: leave that out to have it continued")
        else:
            raise ValueError(f"{special.name} is no part of a prompt")

    def _size(self, modality: str) -> tuple[int, ...] | None:
        """The size before BEGIN; None where there is none, or not one of as many axes."""
        if self._spelled is not None:
            parts = self._spelled.split(",")
            self._sizes = [int(part) for part in parts if part.isdigit()]
            if len(self._sizes) != len(parts):
                return None
        fits = len(self._sizes) == len(self.vocabulary.modality(modality).patch) and self._sizes
        return tuple(self._sizes) if fits else None
