"""The engine: a batch of unfinished documents that advance together, one step at a time.

    add(request) -> id      step() -> events      cancel(id)

A step takes every document through the states that it can:

    queued --admit--> text --choose a token--> pending --commit--> text
                                                  |
                                               (BEGIN) --> item --denoise--> item ... --commit, END--> text --EOS--> done

Documents are admitted when cache slots are free, text takes one token a step, an item takes one denoising step. All passes run
chunks behind cached prefixes (`ModelRunner`). A document depends on its own request alone: its random numbers are keyed by its
seed, its attention ends at its cache slot.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from transfusion import rng
from transfusion.data.document import Document, Media, Text, unconditional
from transfusion.data.tokenize import TokenSequence, tokenize_document
from transfusion.data.vocabulary import SpecialToken, Vocabulary
from transfusion.diffusion.sampler import Sampler, init_noise
from transfusion.generate.runner import Chunk, ChunkItem, ModelRunner
from transfusion.generate.sizes import PendingItem, SizeError, SizeParser, item_length
from transfusion.generate.state import ActiveDocument, ActiveItem, Denoising, Done, Event, ItemBranch, ItemDone, Request, Token
from transfusion.model.network import Network


class Engine:
    """Generates documents with a network.

    `fallbacks` counts, by reason, the items whose written size could not be used and that got their modality's default.

    Args:
        cache_slots: sequences in the cache. A document holds `Request.cache_slots` of them.
        capacity: tokens that a document may have (None: the network's context length).
        dtype: see `ModelRunner`.
        decode_text: whether the text that was written is returned as strings; else as ids.
    """

    def __init__(
        self,
        network: Network,
        vocabulary: Vocabulary,
        *,
        cache_slots: int = 64,
        capacity: int | None = None,
        dtype: torch.dtype = torch.float32,
        decode_text: bool = True,
    ) -> None:
        self.capacity = min(capacity or network.config.context_length, network.config.context_length)
        self.runner = ModelRunner(network, vocabulary, cache_slots=cache_slots, capacity=self.capacity, dtype=dtype)
        self.vocabulary, self.coordinates, self.diffusion = vocabulary, network.config.coordinates, network.config.diffusion
        self.cache_slots, self.decode_text = cache_slots, decode_text
        self.fallbacks: Counter[SizeError] = Counter()
        self._queue: dict[int, tuple[Request, TokenSequence]] = {}
        self._active: dict[int, ActiveDocument] = {}
        self._last_id = 0

    @property
    def busy(self) -> bool:
        """Whether any document is unfinished."""
        return bool(self._queue or self._active)

    def add(self, request: Request) -> int:
        """Queue a document; its events carry the id that is returned. Raises ValueError: a prompt item, a size or initial noise
        that does not fit its modality, an unknown modality, a prompt longer than the context (or `max_length`), or a request
        that needs more cache slots than there are."""
        prompt = self._check(request)
        self._last_id += 1
        self._queue[self._last_id] = request, prompt
        return self._last_id

    def cancel(self, id: int) -> None:
        """Drop a document and free its cache slots. Raises KeyError for an id that is not in work."""
        if self._queue.pop(id, None) is None:
            self._release(self._active.pop(id))

    def document(self, id: int) -> Document:
        """A document as far as it is written."""
        return self._queue[id][0].document if id in self._queue else self._decoded(self._active[id].document())

    @torch.no_grad()
    def step(self) -> list[Event]:
        """Advance every document by a token or a denoising step."""
        events: list[Event] = []
        with self.runner.autocast():
            self._admit()
            self._choose_tokens(events)
            self._commit_pending()
            self._denoise(events)
        return events

    def run(self) -> Iterator[Event]:
        """Step until every document is done."""
        while self.busy:
            yield from self.step()

    # ---- requests: queued -> active -> done -------------------------------------------------------------------------

    def _check(self, request: Request) -> TokenSequence:
        """The prompt of a request as tokens; see `add` for what is refused."""
        prompt = tokenize_document(request.document, self.vocabulary, self.coordinates, add_eos=False)
        for item in prompt.items:
            if item.media.values is None:
                raise ValueError("a prompt's items need values; to have one generated, leave it out and force its modality")
            item.media.tensor()  # raises for bad values now, before it can stop a step of other documents
        for name in request.sizes:
            request.fixed_grid(self.vocabulary.modality(name))
        length, limit = len(prompt), self._max_length(request)
        if request.force is not None:
            modality = self.vocabulary.modality(request.force)
            grid = request.forced_grid(modality)
            shape = (modality.channels, *modality.shape_of(grid))
            if isinstance(request.noise, Tensor) and tuple(request.noise.shape) != shape:
                raise ValueError(f"the initial noise has shape {tuple(request.noise.shape)}, the item has {shape}")
            length += item_length(modality, grid)
        if length > limit:
            taken = f"the prompt{' and the forced item' if request.force else ''} take {length} tokens"
            limited = "the context has" if limit == self.capacity else "max_length is"
            raise ValueError(f"{taken}, {limited} {limit}: shorten the prompt")
        if request.cache_slots > self.cache_slots:
            raise ValueError(f"this request needs {request.cache_slots} cache slots, the engine has {self.cache_slots}")
        return prompt

    def _max_length(self, request: Request) -> int:
        return self.capacity if request.max_length is None else min(request.max_length, self.capacity)

    def _admit(self) -> None:
        """Prefill queued prompts while cache slots are free; a forced item becomes pending."""
        cache, chunks, admitted = self.runner.cache, [], []
        for id, (request, prompt) in list(islice(self._queue.items(), cache.num_free)):  # each takes a slot or more
            if request.cache_slots > cache.num_free:
                break
            del self._queue[id]
            slot, *guidance_slots = [cache.allocate() for _ in range(request.cache_slots)]
            counts = len(prompt.items), len(prompt)
            self._active[id] = ActiveDocument(id, request, slot, guidance_slots, prompt.position, *counts)
            admitted.append(self._active[id])
            chunks.append(Chunk.prefix(slot, prompt, len(prompt)))
        self._extend(admitted, chunks)
        for doc in admitted:
            if doc.request.force is not None:
                modality = self.vocabulary.modality(doc.request.force)
                doc.logits, doc.pending_item = None, PendingItem(modality, doc.request.forced_grid(modality))
                doc.pending = self.vocabulary.frame(modality, doc.pending_item.grid)

    def _extend(self, docs: Sequence[ActiveDocument], chunks: Sequence[Chunk]) -> None:
        """Append a chunk to each document; its next token's logits come from the chunk's last token."""
        if not docs:
            return
        for doc, logits in zip(docs, self.runner.logits(self.runner.extend(chunks)), strict=True):
            doc.logits = logits

    def _release(self, doc: ActiveDocument) -> None:
        for cache_slot in (doc.cache_slot, *doc.guidance_slots):
            self.runner.cache.free(cache_slot)

    def _finish(self, doc: ActiveDocument, reason: str, events: list[Event]) -> None:
        self._release(self._active.pop(doc.id))
        events.append(Done(doc.id, self._decoded(doc.document()), reason))  # type: ignore[arg-type]

    def _decoded(self, document: Document) -> Document:
        """The document with its text as strings, if `decode_text`."""
        if not self.decode_text:
            return document
        segments = list(document.segments)
        for index, segment in enumerate(segments):
            if isinstance(segment, Text) and not isinstance(segment.content, str):
                segments[index] = replace(segment, content=self.vocabulary.decode(segment.content))
        return replace(document, segments=tuple(segments))

    # ---- text: logits -> pending tokens -> cache --------------------------------------------------------------------

    def _choose_tokens(self, events: list[Event]) -> None:
        """Choose the next token of every document at text; finish those that have reached a limit."""
        ready: list[ActiveDocument] = []
        for doc in [doc for doc in self._active.values() if doc.logits is not None]:
            if doc.size_parser is None and (doc.num_tokens >= doc.request.max_tokens or self._has_written_enough(doc)):
                self._finish(doc, "tokens", events)
            elif self._remaining(doc) < 1:
                self._finish(doc, "context", events)
            else:
                ready.append(doc)
        for decoding in dict.fromkeys(doc.request.decoding for doc in ready):
            docs = [doc for doc in ready if doc.request.decoding == decoding]
            logits = torch.stack([doc.logits for doc in docs if doc.logits is not None])
            allowed = torch.stack([doc.allowed_tokens(self.vocabulary, self._remaining(doc)) for doc in docs])
            u = torch.tensor([rng.uniform(doc.request.seed, "token", doc.num_draws) for doc in docs])
            for doc, token in zip(docs, decoding.choose(logits.masked_fill(~allowed, -math.inf), u).tolist(), strict=True):
                self._accept_token(doc, token, events)

    def _has_written_enough(self, doc: ActiveDocument) -> bool:
        """Whether `max_new` is reached."""
        written, limit = self.runner.cache.lengths[doc.cache_slot] - doc.prompt_length, doc.request.max_new
        return limit is not None and written >= limit

    def _remaining(self, doc: ActiveDocument) -> int:
        """Tokens that the document may still take."""
        return self._max_length(doc.request) - self.runner.cache.lengths[doc.cache_slot]

    def _accept_token(self, doc: ActiveDocument, token: int, events: list[Event]) -> None:
        doc.logits, doc.num_draws = None, doc.num_draws + 1
        control = self.vocabulary.special_token(token)
        if doc.size_parser is not None or (control is not None and control.role != "eos"):
            self._accept_size_token(doc, token, control, events)
            return
        events.append(Token(doc.id, token))
        if control is not None:
            self._finish(doc, "end", events)
            return
        doc.text.append(token)
        doc.num_tokens, doc.pending = doc.num_tokens + 1, [token]

    def _accept_size_token(self, doc: ActiveDocument, token: int, control: SpecialToken | None, events: list[Event]) -> None:
        """Parse a token that opens an item or belongs to its size; once the size is complete, the item is pending."""
        parser = doc.size_parser
        if parser is None:
            assert control is not None
            modality = self.vocabulary.modality(control.modality)
            parser = SizeParser(modality, self.runner.cache.lengths[doc.cache_slot], doc.position, doc.num_draws - 1)
        modality, fixed_grid = parser.modality, doc.request.fixed_grid(parser.modality)
        status = "complete" if fixed_grid is not None else parser.parse(control)
        if status == "more":
            doc.size_parser, doc.pending = parser, [token]
            return
        grid = tuple(parser.grid) if fixed_grid is None else fixed_grid
        error: SizeError | None = "malformed" if status == "malformed" else None
        if error is None and not self._fits(doc, parser, grid):
            error = "too large"
        if error is not None:
            grid = modality.slots(modality.shape)
            self.fallbacks[error] += 1
        doc.size_parser, frame = None, self.vocabulary.frame(modality, grid)
        if error is None and fixed_grid is None:
            doc.pending = [token]  # BEGIN; the sizes are in the cache
        else:  # roll back cache, position and RNG counter, then write this size's tokens
            self.runner.cache.truncate(doc.cache_slot, parser.length)
            doc.position, doc.num_draws, doc.pending = parser.position, parser.num_draws + len(frame), frame
        if not self._fits(doc, parser, grid):
            self._finish(doc, "context", events)
            return
        events.extend(Token(doc.id, frame_token) for frame_token in frame)
        doc.pending_item = PendingItem(modality, grid, error)

    def _fits(self, doc: ActiveDocument, parser: SizeParser, grid: tuple[int, ...]) -> bool:
        return parser.length + item_length(parser.modality, grid) <= self._max_length(doc.request)

    def _commit_pending(self) -> None:
        """Append pending tokens to the cache; items whose BEGIN is among them start."""
        docs, chunks = [doc for doc in self._active.values() if doc.pending], []
        for doc in docs:
            count = len(doc.pending)
            steps = torch.arange(count, dtype=torch.float32)[:, None].expand(count, self.coordinates.axes)
            chunks.append(Chunk(doc.cache_slot, np.array(doc.pending), doc.position + steps, np.full(count, -1)))
            doc.position, doc.pending = doc.position + count, []
        self._extend(docs, chunks)
        prefixes = [prefix for doc in docs if doc.pending_item is not None for prefix in self._start_item(doc)]
        if prefixes:
            self.runner.extend(prefixes)

    # ---- items: pending -> denoised -> cache ------------------------------------------------------------------------

    def _start_item(self, doc: ActiveDocument) -> list[Chunk]:
        """Start a document's pending item from noise; returns the prefixes of its unconditional branches."""
        pending, doc.pending_item, doc.logits = doc.pending_item, None, None
        assert pending is not None
        modality, grid = pending.modality, pending.grid
        positions, next_position = self.coordinates.place(doc.position, grid)
        context = doc.document()
        target = Media(None, modality.name, modality.shape_of(grid) if modality.varies else None)
        whole = replace(context, segments=(*context.segments, target))
        conditional, *dropped = doc.request.guidance.branches(
            has_text=any(isinstance(s, Text) and len(s.content) for s in context.segments), has_media=bool(context.media)
        )
        branches = [ItemBranch(doc.cache_slot, conditional.weight, torch.from_numpy(positions), doc.num_spans)]
        prefixes = []
        for cache_slot, branch in zip(doc.guidance_slots, dropped, strict=False):
            document = unconditional(whole, len(context.segments), text=branch.drop_text, media=branch.drop_media)
            sequence = tokenize_document(document, self.vocabulary, self.coordinates, add_eos=False)
            start = sequence.items[-1].start
            self.runner.cache.truncate(cache_slot, 0)
            prefixes.append(Chunk.prefix(cache_slot, sequence, start))
            item_positions = torch.from_numpy(sequence.positions[start:])
            branches.append(ItemBranch(cache_slot, branch.weight, item_positions, len(sequence.items) - 1))
        noise, size = doc.request.noise, modality.shape_of(grid)
        if noise is not None and not isinstance(noise, Tensor):
            noise = noise(modality.name, size)
        elif doc.request.force is None or doc.num_items:  # a tensor is the noise of the forced item alone
            noise = None
        if noise is None:
            noise = rng.normal([doc.item_key("noise")], (modality.channels, *size))[0]
        latents = init_noise(self.diffusion.schedule, noise.to(self.runner.latent_dtype))
        index = self.vocabulary.modalities.index(modality)
        doc.item = ActiveItem(doc, index, grid, latents, branches, next_position, pending.fallback)
        return prefixes

    def _denoise(self, events: list[Event]) -> None:
        """One denoising step for every item, in groups of one modality, grid and sampler; finished items are committed."""
        groups: dict[tuple[int, tuple[int, ...], Sampler], list[ActiveItem]] = {}
        for doc in self._active.values():
            if doc.item is not None:
                groups.setdefault((doc.item.modality, doc.item.grid, doc.request.sampler), []).append(doc.item)
        for (_, _, sampler), items in groups.items():
            self._denoise_group(sampler, items, events)
        finished = [item for (_, _, sampler), items in groups.items() for item in items if item.step == sampler.num_steps]
        self._commit_items(finished, events)

    def _denoise_group(self, sampler: Sampler, items: Sequence[ActiveItem], events: list[Event]) -> None:
        times, device = sampler.times(), self.runner.network.device
        x = torch.stack([item.latents for item in items]).to(device)
        t = torch.tensor([times[item.step] for item in items], device=device, dtype=x.dtype)
        s = torch.tensor([times[item.step + 1] for item in items], device=device, dtype=x.dtype)

        def noise() -> Tensor:
            return rng.normal([item.document.item_key("step", item.step) for item in items], tuple(x.shape[1:])).to(x)

        x_s, estimates = sampler.step(self.diffusion.schedule, partial(self._predict, items), noise, x, t, s)
        for item, latents, estimate in zip(items, x_s, estimates, strict=True):
            item.latents, item.step = latents, item.step + 1
            events.append(Denoising(item.document.id, item.step, sampler.num_steps, estimate))

    def _predict(self, items: Sequence[ActiveItem], x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """(x0, eps) of items at x [item, channels, *size] and t [item], guided."""
        chunks: list[Chunk] = []
        owners, weights = [], []
        for i, (item, latents, time) in enumerate(zip(items, x, t.tolist(), strict=True)):
            tokens = np.full(math.prod(item.grid), self.vocabulary.pad)
            guided = item.document.request.guidance.active(time)
            for branch in item.branches if guided else item.branches[:1]:
                media = (ChunkItem(item.modality, item.grid, latents, time, 0),)
                spans = np.full(len(tokens), branch.span)
                chunks.append(Chunk(branch.cache_slot, tokens, branch.positions, spans, items=media))
                owners.append(i)
                weights.append(branch.weight if guided else 1.0)
        predictions = self.runner.denoise(chunks).to(x.dtype)
        weight = torch.tensor(weights, device=x.device, dtype=x.dtype).reshape(-1, *[1] * (x.ndim - 1))
        guided_sum = torch.zeros_like(x).index_add(0, torch.tensor(owners, device=x.device), predictions * weight)
        return self.diffusion.to_x0_eps(self.diffusion.prediction, guided_sum, x, t)

    def _commit_items(self, items: Sequence[ActiveItem], events: list[Event]) -> None:
        """Append clean latents and END to the cache in one pass, except where the document is complete with its item."""
        docs, chunks = [], []
        for item in items:
            doc, modality = item.document, self.vocabulary.modalities[item.modality]
            media = Media(item.latents.cpu(), modality.name)
            doc.close_text()
            doc.segments.append(media)
            doc.item, doc.num_items = None, doc.num_items + 1
            events.append(ItemDone(doc.id, media, item.fallback))
            if doc.num_tokens >= doc.request.max_tokens:
                self._finish(doc, "tokens", events)
                continue
            count, branch = math.prod(item.grid), item.branches[0]
            tokens = np.append(np.full(count, self.vocabulary.pad), self.vocabulary.end(modality.name))
            end = torch.full((1, self.coordinates.axes), item.next_position)
            spans = np.append(np.full(count, branch.span), -1)
            clean = ChunkItem(item.modality, item.grid, item.latents, 0.0, 0)
            chunks.append(Chunk(doc.cache_slot, tokens, torch.cat([branch.positions, end]), spans, items=(clean,)))
            doc.position, doc.num_spans = item.next_position + 1, doc.num_spans + 1
            docs.append(doc)
        self._extend(docs, chunks)


def generate(engine: Engine, requests: Sequence[Request], *, on_event: Callable[[Event], None] | None = None) -> list[Document]:
    """The finished documents of requests, in their order. `on_event` is called with every event. Raises ValueError: see
    `Engine.add`; the message names the request."""
    documents: dict[int, Document] = {}
    ids = []
    for index, request in enumerate(requests):
        try:
            ids.append(engine.add(request))
        except ValueError as error:
            where = "" if str(error).startswith("document ") or len(requests) == 1 else f"prompt {index}: "
            raise ValueError(f"{where}{error}") from error
    for event in engine.run():
        if isinstance(event, Done):
            documents[event.id] = event.document
        if on_event is not None:
            on_event(event)
    return [documents[id] for id in ids]
