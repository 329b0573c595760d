"""Prompts as Transfusion.torch writes them -> `Document` -> the engine's events -> the same lists, longer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from transfusion import api
from transfusion.compat.transfusion_torch.diffusion import PatchOps
from transfusion.compat.transfusion_torch.samples import check_kinds, check_values, read_sample
from transfusion.data.document import Document, Media, Segment, Text
from transfusion.diffusion.guidance import Guidance
from transfusion.diffusion.process import Diffusion
from transfusion.diffusion.sampler import Sampler
from transfusion.generate.state import ItemDone, Request, Token
from transfusion.modality import IMAGE
from transfusion.nn.ema import eval_mode


@dataclass(frozen=True, eq=False)
class Prompt:
    """A prompt, checked.

    Args:
        document: its text and images without BOI and EOI.
        tokens, kinds: its entries; texts Int[length].
        draws: whether it ends with BOI, so that an image comes next.
        stacked: whether its texts have a leading axis of 1.
    """

    document: Document
    tokens: list[Any]
    kinds: list[str]
    draws: bool
    stacked: bool

    @property
    def num_ids(self) -> int:
        """Ids of text, BOI and EOI included."""
        return sum(len(entry) for entry in self.tokens if isinstance(entry, Tensor))


@dataclass(frozen=True, eq=False)
class Writer:
    """Continues prompts with a model.

    Args:
        ids: the vocabulary's id of each id of the config.
        special: BOI, IGNORE_TOKEN, EOI and EOS of the config.
        maxlen: most ids and patches.
    """

    transfusion: api.Transfusion
    patch_ops: PatchOps
    ids: Sequence[int]
    special: Mapping[str, int | None]
    maxlen: int

    def prompt(self, entries: Any, kinds: Any, num_timesteps: int) -> Prompt:
        """A prompt, checked. Raises ValueError: see `Transfussion.generate`."""
        absent = [name for name in ("BOI", "EOI", "EOS") if self.special[name] is None]
        if absent:
            raise ValueError(f"generation needs config.{' and config.'.join(absent)}, which this model's config has as None")
        check_kinds("the prompt", entries, kinds)
        if not kinds or kinds[0] != "text" or kinds[-1] != "text":
            raise ValueError("a prompt begins and ends with text: an image stands between BOI and EOI, which are text")
        stacked = any(isinstance(entry, Tensor) and entry.ndim == 2 for entry in entries)
        if stacked:
            entries = [_only(entry) for entry in entries]
        sample = read_sample("the prompt", entries, kinds, self.patch_ops.modality.patch_width, self.maxlen)
        check_values([sample], len(self.ids), num_timesteps, self.transfusion.device)
        segments: list[Segment] = []
        boi, eoi, draws = self.special["BOI"], self.special["EOI"], False
        for index, entry in enumerate(sample):
            if not isinstance(entry, Tensor):
                segments.append(self._image(index, *entry))
                continue
            text = entry.tolist()
            if index and kinds[index - 1] == "image":
                if text[:1] != [eoi]:
                    raise ValueError(f"the prompt's entry {index} follows an image, so it begins with EOI ({eoi})")
                text = text[1:]
            if index + 1 < len(kinds) and kinds[index + 1] == "image":
                if text[-1:] != [boi]:
                    raise ValueError(f"the prompt's entry {index} stands before an image, so it ends with BOI ({boi})")
                text = text[:-1]
            draws = index + 1 == len(kinds) and text[-1:] == [boi]
            text = text[:-1] if draws else text
            for name, token in self.special.items():
                if token in text:
                    raise ValueError(f"the prompt's entry {index} has {name} ({token}) where only text may stand")
            if text:
                segments.append(Text(tuple(self.ids[token] for token in text)))
        return Prompt(Document(tuple(segments)), sample, list(kinds), draws, stacked)

    def _image(self, index: int, patches: Tensor, step: Tensor) -> Media:
        if step.item() != 0:
            raise ValueError(f"the image of a prompt is clean, step 0; entry {index} has step {step.item():g}")
        try:
            return Media(self.patch_ops.unpatchify(patches.float().cpu()), IMAGE)
        except ValueError as error:
            raise ValueError(f"the prompt's entry {index}: {error}") from error

    def write(
        self, prompt: Prompt, *, most: int, one_image: bool, diffusion: Diffusion, sampler: Sampler, dtype: torch.dtype
    ) -> tuple[list[Any], list[str]]:
        """The prompt's lists, longer.

        Args:
            most: ids of text that may be written; an image that has begun is finished.
            one_image: stop after the image with which it begins, before its EOI.
        """
        tokens, kinds = list(prompt.tokens), list(prompt.kinds)
        special, left, drawing = self.special, most, prompt.draws
        if left > 0 or drawing:
            theirs = {ours: token for token, ours in enumerate(self.ids)}
            begin, device = self.transfusion.vocabulary.begin(IMAGE), self.transfusion.device
            request = Request(
                prompt.document,
                seed=int(torch.randint(1 << 62, ())),
                max_tokens=0 if one_image else max(left, 1),
                force=IMAGE if drawing else None,
                sampler=sampler,
                guidance=Guidance(text=1.0),
            )
            text = tokens[-1].tolist()
            with eval_mode(self.transfusion):
                engine = self.transfusion.engine([request], dtype=dtype, decode_text=False)
                engine.diffusion = diffusion
                engine.add(request)
                for event in engine.run():
                    if isinstance(event, Token) and theirs[event.token] != special["EOS"]:
                        text.append(theirs[event.token])
                        left, drawing = left - 1, event.token == begin
                    elif isinstance(event, ItemDone):
                        tokens[-1] = torch.tensor(text, device=device)
                        patches = self.patch_ops.patchify(event.media.tensor()).to(device)
                        tokens, kinds = (
                            [*tokens, (patches, torch.zeros(1, dtype=torch.int64, device=device))],
                            [*kinds, "image"],
                        )
                        if one_image:
                            break
                        text, left, drawing = [special["EOI"]], left - 1, False
                        tokens, kinds = [*tokens, torch.tensor(text, device=device)], [*kinds, "text"]
                    if left <= 0 and not drawing:
                        break
            if kinds[-1] == "text":
                tokens[-1] = torch.tensor(text, dtype=torch.int64, device=device)
        if prompt.stacked:
            tokens = [entry[None] if isinstance(entry, Tensor) else (entry[0][None], entry[1]) for entry in tokens]
        return tokens, kinds


def _only(entry: Any) -> Any:
    """An entry of a batch of one sample without its leading axis. Raises ValueError for more samples."""
    tensor = entry[0] if isinstance(entry, tuple | list) and entry else entry
    if isinstance(tensor, Tensor) and len(tensor) != 1:
        raise ValueError(f"one prompt at a time: [1, length], not {list(tensor.shape)}; call generate for each")
    if isinstance(entry, Tensor):
        return entry[0]
    return (tensor[0], *entry[1:]) if isinstance(tensor, Tensor) else entry
