"""What the quick face draws and writes: `sample`, `sample_many`, and text or items alone."""

import math
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from transfusion import rng
from transfusion.compat.lists import Held, Item
from transfusion.data.document import Document, Text
from transfusion.diffusion.guidance import Guidance
from transfusion.diffusion.sampler import Sampler
from transfusion.generate.engine import Engine, generate
from transfusion.generate.logits import Decoding, Greedy, Sample
from transfusion.generate.state import Request


class Samples(Held):
    """The methods that generate."""

    fallbacks: Counter[Any]

    # ---- samples ----------------------------------------------------------------------------------------------------

    def sample(self, prompt: Any = None, max_length: int = 2048, **options: Any) -> list[Tensor | Item]:
        """One document, continued: a list of text ids and `Item`s. See `sample_many`."""
        return self.sample_many([prompt], max_length, **options)[0]

    def sample_many(
        self,
        prompts: Sequence[Any],
        max_length: int = 2048,
        text_temperature: float = 1.0,
        text_min_p: float = 0.1,
        *,
        cache_kv: bool = True,
        fixed_modality_shape: tuple[int, ...] | None = None,
        force_modality_at_start: int | tuple[int, tuple[int, ...]] | None = None,
        init_modality_noise: Tensor | None = None,
        modality_steps: int | None = None,
        sampler: Sampler | None = None,
        return_unprocessed_modalities: bool = False,
        return_without_prompt: bool = False,
        cfg_scale: float | None = None,
        seed: int | None = None,
    ) -> list[list[Tensor | Item]]:
        """Continue many documents together; each comes out as it would alone.

        Args:
            prompts: one entry a document: None, a text, an item, or a list of them. Raw items go through their encoder.
            max_length: tokens at most, prompt and slots included.
            text_temperature, text_min_p: how text is drawn; temperature 0 takes the most likely token.
            cache_kv: keys and values are always cached; the word is taken for those who write it.
            fixed_modality_shape: size of every item, whatever the model writes.
            force_modality_at_start: index of a modality of which an item is drawn at once, or (index, size).
            init_modality_noise: what the first forced item starts from, shaped like its latents, or [slots, channels].
            modality_steps: steps of the sampler (None: as many as the model's own takes).
            sampler: instead of the model's own.
            return_unprocessed_modalities: latents instead of what the decoder makes of them.
            return_without_prompt: only what was written.
            cfg_scale: guidance by the text before an item; 1: none (None: the model's own).
            seed: names all chance; None: drawn from torch's generator.

        Sizes that the model wrote and that could not be used are counted in `fallbacks`, by reason, for the last call.

        Raises:
            ValueError: what is wrong with which prompt.
        """
        del cache_kv
        parts = self.parts
        _whole("max_length, the tokens that a document may have,", max_length)
        if modality_steps is not None:
            _whole("modality_steps, the steps of the sampler,", modality_steps)
        force, size = self._forced(force_modality_at_start)
        if not self.vocabulary.num_text and force is None:
            force = self.vocabulary.modalities[0].name
        sizes = self._sizes(fixed_modality_shape, force)
        noise = None if init_modality_noise is None else self._start(init_modality_noise, force, size or fixed_modality_shape)
        if sampler is not None and not hasattr(sampler, "step"):
            raise ValueError(f"sampler is Euler(...), Heun(...), DDIM(...) or DDPM(...), not {sampler!r}")
        if cfg_scale is not None and not isinstance(cfg_scale, int | float):
            raise ValueError(f"cfg_scale is a number, 1 for no guidance, not {cfg_scale!r}")
        guidance = self.guidance if cfg_scale is None else Guidance(text=cfg_scale)
        if guidance.text != 1.0 and self.drop.text + self.drop.both == 0:
            if cfg_scale is not None:
                warnings.warn(
                    "cfg_scale is left out: this model was never trained without text (prob_uncond is 0)", stacklevel=2
                )
            guidance = replace(guidance, text=1.0)
        documents = parts.documents(prompts, prompts=True)
        name = seed if seed is not None else int(torch.randint(1 << 62, ()))
        requests = [
            Request(
                one,
                seed=rng.key(name, index),
                max_tokens=max_length if self.vocabulary.num_text else 0,
                force=force,
                size=size,
                sizes=sizes,
                noise=noise,
                decoding=_decoding(text_temperature, text_min_p),
                sampler=self._sampler(sampler, modality_steps),
                guidance=guidance,
            )
            for index, one in enumerate(documents)
        ]
        done = self._generate(requests, capacity=max_length)
        found = []
        for prompt, one in zip(documents, done, strict=True):
            if return_without_prompt:
                one = replace(one, segments=one.segments[len(prompt.segments) :])
            found.append(parts.sample(one, decode=not return_unprocessed_modalities))
        return found

    def _generate(self, requests: Sequence[Request], capacity: int) -> list[Document]:
        held = 1 + max(request.guidance.max_branches for request in requests)
        with evaluating(self):
            engine = Engine(
                self.network, self.vocabulary, cache_slots=min(128, held * len(requests)), capacity=capacity, decode_text=False
            )
            self.fallbacks = engine.fallbacks
            return generate(engine, requests)

    def _sampler(self, sampler: Sampler | None, steps: int | None) -> Sampler:
        if sampler is not None or steps is None:
            return sampler or self.sampler
        return replace(self.sampler, num_steps=steps)

    def _forced(self, asked: Any) -> tuple[str | None, tuple[int, ...] | None]:
        if asked is None:
            return None, None
        index, size = asked if isinstance(asked, tuple) and len(asked) == 2 else (asked, None)
        count = len(self.vocabulary.modalities)
        if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < count:
            raise ValueError(f"force_modality_at_start: no modality {index!r}; they run from 0 to {count - 1}")
        return self.vocabulary.modalities[index].name, None if size is None else _size("force_modality_at_start", size)

    def _sizes(self, fixed: Any, force: str | None) -> dict[str, tuple[int, ...]]:
        """The size that every item has, by name of its modality: of those that have as many axes."""
        if fixed is None:
            return {}
        fixed = _size("fixed_modality_shape", fixed)
        found = {
            m.name: fixed for m in self.vocabulary.modalities if len(m.patch) == len(fixed) and (m.varies or m.name == force)
        }
        if (not found and force is None) or (force is not None and force not in found):
            axes = sorted({len(m.patch) for m in self.vocabulary.modalities if force in (None, m.name)})
            raise ValueError(f"fixed_modality_shape {fixed} has {len(fixed)} axes, items have {' or '.join(map(str, axes))}")
        for name, size in found.items():
            self.vocabulary.modality(name).slots(size)
        return found

    def _start(self, noise: Tensor, force: str | None, size: tuple[int, ...] | None) -> Tensor:
        if not isinstance(noise, Tensor) or not noise.is_floating_point() or not torch.isfinite(noise).all():
            raise ValueError("init_modality_noise is a tensor of finite floating-point numbers")
        if force is None:
            raise ValueError("init_modality_noise is for an item that is forced: give force_modality_at_start")
        modality = self.vocabulary.modality(force)
        size = modality.shape if size is None else tuple(size)
        if noise.shape == (math.prod(size), modality.channels):
            return noise.T.reshape(modality.channels, *size)
        return self.parts.latents(noise, self.vocabulary.modalities.index(modality))

    def generate_text_only(
        self,
        prompt: Int[Tensor, "document length"],
        length: int,
        temperature: float = 1.0,
        min_p: float = 0.1,
        cache_kv: bool = True,
        seed: int | None = None,
    ) -> Int[Tensor, "document new"]:
        """Exactly `length` ids of text that follow each prompt; no control token and no end among them.

        Raises:
            ValueError: a prompt that is no Int[document, length], or a length below 1.
        """
        del cache_kv
        if not isinstance(prompt, Tensor) or prompt.ndim != 2 or prompt.is_floating_point():
            raise ValueError("prompt is a tensor of ids [document, length]; one text is text[None]")
        _whole("length, the number of ids to write,", length)
        if not self.vocabulary.num_text:
            raise ValueError("this model has no ids of text to write: num_text_tokens is 0")
        if prompt.shape[1] + length + 1 > self.network.config.context_length:
            raise ValueError(
                f"the prompt and {length} ids more take {prompt.shape[1] + length + 1} tokens, the context has "
                f"{self.network.config.context_length}: ask for fewer"
            )
        name = seed if seed is not None else int(torch.randint(1 << 62, ()))
        documents = self.parts.documents([[one] if len(one) else None for one in prompt], prompts=True)
        decoding = _decoding(temperature, min_p)
        requests = [
            Request(one, rng.key(name, i), length, max_items=0, allow_eos=False, decoding=decoding)
            for i, one in enumerate(documents)
        ]
        done = self._generate(requests, capacity=prompt.shape[1] + length + 2)
        ids = [[i for s in d.segments if isinstance(s, Text) for i in self.vocabulary.encode(s.content)] for d in done]
        return torch.tensor(ids, device=prompt.device)[:, prompt.shape[1] :]

    def generate_modality_only(
        self,
        batch_size: int = 1,
        modality_type: int | None = None,
        fixed_modality_shape: tuple[int, ...] | None = None,
        modality_steps: int | None = None,
        return_unprocessed_modalities: bool = False,
        sampler: Sampler | None = None,
        seed: int | None = None,
    ) -> Tensor:
        """Items of one modality that follow nothing: [item, ...], decoded where there is a decoder.

        Raises:
            ValueError: several modalities and none named, or a size that it does not take.
        """
        if modality_type is None and len(self.vocabulary.modalities) > 1:
            raise ValueError("this model has several modalities: say which with modality_type")
        _whole("batch_size, the number of items to draw,", batch_size)
        if modality_steps is not None:
            _whole("modality_steps, the steps of the sampler,", modality_steps)
        force, _ = self._forced(modality_type or 0)
        size = None if fixed_modality_shape is None else _size("fixed_modality_shape", fixed_modality_shape)
        name = seed if seed is not None else int(torch.randint(1 << 62, ()))
        chosen = self._sampler(sampler, modality_steps)
        requests = [
            Request(Document(()), rng.key(name, i), 0, force=force, size=size, sampler=chosen, guidance=Guidance(1.0))
            for i in range(batch_size)
        ]
        assert force is not None
        modality = self.vocabulary.modality(force)
        grid = modality.slots(size or modality.shape)
        done = self._generate(requests, capacity=math.prod(grid) + len(grid) + 3)
        latents = torch.stack([one.media[0].tensor() for one in done])
        index = modality_type or 0
        if return_unprocessed_modalities:
            return self.parts.proj_out(latents, index)
        return self.parts.decoded(latents, index)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """In eval mode, and then back to the mode that each part was in."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


def _whole(name: str, value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} must be a whole number, at least 1, not {value!r}")


def _size(name: str, value: Any) -> tuple[int, ...]:
    if not isinstance(value, tuple | list) or any(isinstance(v, bool) or not isinstance(v, int) for v in value):
        raise ValueError(f"{name}: a size is a tuple of whole numbers, one an axis, such as (4,), not {value!r}")
    return tuple(value)


def _decoding(temperature: float, min_p: float) -> Decoding:
    for name, value in (("temperature", temperature), ("min_p", min_p)):
        if not isinstance(value, int | float):
            raise ValueError(f"{name} is a number, not {value!r}")
    return Greedy() if temperature == 0 else Sample(temperature=temperature, min_p=min_p)
