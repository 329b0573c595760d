"""What a model of the list face generates: `sample`, `sample_many`, `generate_text_only`, `generate_modality_only`."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from transfusion import rng
from transfusion.compat import sampling
from transfusion.compat.checks import check_number
from transfusion.compat.lists import PADDING, Item
from transfusion.compat.names import Named
from transfusion.data.document import Document, Text
from transfusion.diffusion.guidance import Guidance
from transfusion.diffusion.sampler import Sampler
from transfusion.generate.engine import generate
from transfusion.generate.state import Done, Event, Request
from transfusion.nn.ema import eval_mode


@dataclass(frozen=True, eq=False)
class Continued:
    """A prompt and what was written behind it; `complete`: whether the model ended it."""

    document: Document
    complete: bool


class Generating(Named):
    """The methods that generate; their arguments and results are transfusion-pytorch's."""

    fallbacks: Counter[Any]
    """After a call that generates: items whose written size could not be used, by reason."""

    def sample(self, prompt: Any = None, max_length: int = 2048, *args: Any, **options: Any) -> Any:
        """Continue one document, or write one: a list of text ids, `Item`, text ids ... Options as in `sample_many`, which says
        what the entries are. For a model without text a tensor of one item, as `generate_modality_only` gives.

        Raises:
            ValueError: what is wrong with the prompt, or an option.
        """
        if not self.num_text_tokens and prompt is None:
            forced = options.get("force_modality_at_start")
            index, size = forced if isinstance(forced, tuple) else (forced, None)
            size = options.get("fixed_modality_shape") if size is None else size
            kept = ("modality_steps", "sampler", "seed", "return_unprocessed_modalities")
            chosen = {name: options[name] for name in kept if name in options}
            return self.generate_modality_only(1, index, size, **chosen)
        return self.sample_many([prompt], max_length, *args, **options)[0]

    sample_one = sample

    def sample_many(
        self,
        prompts: Any = None,
        max_length: int = 2048,
        text_temperature: float = 1.0,
        text_min_p: float = 0.1,
        *,
        cache_kv: bool = True,
        fixed_modality_shape: tuple[int, ...] | None = None,
        force_modality_at_start: Any = None,
        init_modality_noise: Tensor | None = None,
        modality_steps: int | None = None,
        sampler: Sampler | None = None,
        return_unprocessed_modalities: bool = False,
        return_without_prompt: bool = False,
        cfg_scale: float | None = None,
        seed: int | None = None,
    ) -> list[list[Tensor | Item]]:
        """Continue many documents together; each comes out as it would alone.

        A sample is a list of text ids, item, text ids, item ..., text ids. The ids hold the control tokens of the sequence:
        `sos_id` first, before each item its size (where sizes vary) and `som_ids[modality]`, behind it `eom_ids[modality]`, and
        `eos_id` last if the model ended the document; `ids[ids < model.num_text_tokens]` is the text. It may be a prompt again.

        Args:
            prompts: one entry a document: None, a text, an item, or a list of them, which may hold control tokens
                (`prompts.py`). What is no list is one prompt.
            max_length: tokens to write at most, control tokens and slots included; an item that has begun is finished.
            text_temperature, text_min_p: how text is sampled; temperature 0 takes the most likely token.
            cache_kv: ignored: keys and values are always cached.
            fixed_modality_shape: size of every item, whatever the model writes.
            force_modality_at_start: index of a modality of which an item is generated at once, or (index, size); or a list of
                these, one for each prompt. A prompt that ends in `som_ids[index]` asks for the same.
            init_modality_noise: initial noise of each item, shaped like its latents, or [slots, channels] of which an item
                takes as many as it has; where these are too few, it is drawn.
            modality_steps, sampler: None: those of the model.
            return_unprocessed_modalities: latents instead of decoded items.
            return_without_prompt: only the items that were generated.
            cfg_scale: guidance scale for the text before an item; 1: none (None: the model's own).
            seed: None: drawn from torch's generator.

        `fallbacks` then counts, by reason, the written sizes that could not be used.

        Raises:
            ValueError: what is wrong with which prompt.
        """
        del cache_kv
        prompts = prompts if isinstance(prompts, list) else [prompts]
        check_number("max_length", max_length, 1, whole=True)
        if cfg_scale is not None:
            check_number("cfg_scale", cfg_scale, -math.inf)
        forces = sampling.forced_each(self.vocabulary, force_modality_at_start, len(prompts))
        sizes = sampling.fixed_sizes(self.vocabulary, fixed_modality_shape, forces)
        noise = None if init_modality_noise is None else sampling.initial_noise(self.lists, init_modality_noise)
        documents, openings = self.lists.prompts(prompts)
        begun = [opening if force is None else force for force, opening in zip(forces, openings, strict=True)]
        if not self.num_text_tokens:
            begun = [sampling.first(self.vocabulary) if force is None else force for force in begun]
        options = {
            "max_tokens": max_length if self.num_text_tokens else 0,
            "max_new": max_length,
            "sizes": sizes,
            "noise": noise,
            "decoding": sampling.decoding(text_temperature, text_min_p),
            "sampler": sampling.with_steps(self.config.sampler, sampler, modality_steps),
            "guidance": self.config.resolve_guidance(None if cfg_scale is None else Guidance(cfg_scale), draws=False),
        }
        seed = drawn_seed(seed)
        requests = []
        for index, (document, force) in enumerate(zip(documents, begun, strict=True)):
            forced = {} if force is None else {"force": force.modality, "size": force.size}
            requests.append(Request(document, rng.key(seed, index), **forced, **options))
        if init_modality_noise is not None:
            sampling.check_forced(self.vocabulary, requests, init_modality_noise)
        continued = self._continue(requests, sampling.capacity(self, requests, max_length))
        decode = not return_unprocessed_modalities
        if return_without_prompt:
            starts = [len(document.segments) for document in documents]
            rest = [Document(c.document.segments[start:]) for start, c in zip(starts, continued, strict=True)]
            return [[entry for entry in self.lists.sample(new, decode=decode) if isinstance(entry, Item)] for new in rest]
        return [self.lists.sample(c.document, decode=decode, complete=c.complete) for c in continued]

    def generate_text_only(
        self,
        prompt: Int[Tensor, "document length"],
        seq_len: int,
        temperature: float = 1.0,
        min_p: float = 0.1,
        cache_kv: bool = True,
        seed: int | None = None,
    ) -> Int[Tensor, "document new"]:
        """The ids that bring each text to a length of `seq_len`, without the prompt: [document, seq_len - length]. No control
        token and no end is among them. Ids of -1 in the prompt are padding, and count.

        Raises:
            ValueError: a prompt that is no Int[document, length], or a length below 1 or beyond the context.
        """
        del cache_kv
        if not isinstance(prompt, Tensor) or prompt.ndim != 2 or prompt.is_floating_point():
            raise ValueError("prompt is a tensor of ids [document, length]; give a single text as text[None]")
        check_number("seq_len", seq_len, 1, whole=True)
        if not self.num_text_tokens:
            raise ValueError("this model has no ids of text to write: num_text_tokens is 0")
        context, count = self.config.model.context_length, seq_len - prompt.shape[1]
        if seq_len + 1 > context:
            raise ValueError(f"a text of {seq_len} ids takes {seq_len + 1} tokens, the context has {context}: ask for fewer")
        if count <= 0:
            return prompt.new_zeros(len(prompt), 0)
        lists = self.lists
        documents = [lists.documents([[ids]])[0] if bool((ids != PADDING).any()) else Document(()) for ids in prompt]
        decoding, seed = sampling.decoding(temperature, min_p), drawn_seed(seed)
        requests = [
            Request(document, rng.key(seed, i), count, max_items=0, allow_eos=False, decoding=decoding)
            for i, document in enumerate(documents)
        ]
        written = [c.document.segments[-1] for c in self._continue(requests, seq_len + 2)]
        new = [self.vocabulary.encode(segment.content) for segment in written if isinstance(segment, Text)]
        return torch.tensor(new, device=prompt.device)

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
        """Items of one modality without any condition: [item, ...], decoded where the modality has a decoder.

        Raises:
            ValueError: several modalities and no `modality_type`, or a size that the modality does not take.
        """
        check_number("batch_size", batch_size, 1, whole=True)
        index = sampling.only_modality(self.vocabulary, modality_type)
        size = fixed_modality_shape
        force = sampling.forced(self.vocabulary, index if size is None else (index, size))
        assert force is not None
        seed = drawn_seed(seed)
        options = {
            "max_tokens": 0,
            "force": force.modality,
            "size": force.size,
            "sampler": sampling.with_steps(self.config.sampler, sampler, modality_steps),
            "guidance": Guidance(1.0),
        }
        requests = [Request(Document(()), rng.key(seed, i), **options) for i in range(batch_size)]
        continued = self._continue(requests, sampling.capacity(self, requests, 1))
        latents = torch.stack([c.document.media[0].tensor() for c in continued])
        return self.lists.oriented(latents, index) if return_unprocessed_modalities else self.lists.decoded(latents, index)

    def _continue(self, requests: Sequence[Request], capacity: int) -> list[Continued]:
        """The requests' documents as they were written."""
        complete = [False] * len(requests)

        def note(event: Event) -> None:
            if isinstance(event, Done):
                complete[event.id - 1] = event.reason == "end"  # an engine numbers its documents from 1

        with eval_mode(self):
            engine = self.engine(requests, capacity=capacity, decode_text=False)
            self.fallbacks = engine.fallbacks
            documents = generate(engine, requests, on_event=note)
        return [Continued(document, ended) for document, ended in zip(documents, complete, strict=True)]


def drawn_seed(seed: int | None) -> int:
    """`seed`, or one drawn from torch's generator."""
    return int(torch.randint(1 << 62, ())) if seed is None else seed
