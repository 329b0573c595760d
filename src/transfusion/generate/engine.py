"""The engine: a batch of unfinished documents that advance together, one step at a time.

    add(request) -> id      step() -> events      cancel(id)

A step takes every document through the states that it can:

    queued --admit--> pending --extend--> text --choose a token--> pending --extend--> text ... --EOS--> done
                                            (after BEGIN) --> item --denoise--> item ... --clean item, END--> pending

An item of a discrete modality is not denoised: after BEGIN its codes are chosen one a step, from logits that are guided as
predictions are, and END follows the last.

Documents are admitted when cache slots are free. What is pending, be it a prompt, a token or a finished item, is appended to
the cache in one pass for all documents; then text takes one token and an item one denoising step. A document depends on its own
request alone: its random numbers are keyed by its seed, its attention ends at its cache slot. (In bf16 its last bits depend on
its neighbours, unless `exact` is set.) A pass that fails ends the documents that it was for, with an event, and no others.
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
from transfusion.codec.codecs import Codecs
from transfusion.data.document import Document, Media, Text
from transfusion.data.tokenize import TokenSequence
from transfusion.data.vocabulary import SpecialToken, Vocabulary
from transfusion.diffusion.guidance import rescaled
from transfusion.diffusion.sampler import Sampler
from transfusion.generate.checks import check_fit, check_types
from transfusion.generate.failures import GenerationError, attempt
from transfusion.generate.items import start_codes, start_item
from transfusion.generate.logits import Decoding
from transfusion.generate.runner import Chunk, ChunkItem, ModelRunner
from transfusion.generate.sizes import PendingItem, SizeError, SizeParser, item_length
from transfusion.generate.state import (
    ActiveCodes,
    ActiveDocument,
    ActiveItem,
    Denoising,
    Done,
    Event,
    Failed,
    ItemDone,
    Request,
    Token,
)
from transfusion.model.network import Network

PATIENCE = 4
"""Steps that a document waits at most, where there is a slot for it, to share the pass of its prompt with others."""


class Engine:
    """Generates documents with a network, in its current weights: a change of them is noticed at the next step (in bf16 all but
    writes in place through `.data` or numpy, of which PyTorch keeps no count: make a new engine after those).

    `fallbacks` counts, by reason, the items whose written size could not be used and that got their modality's default.

    Args:
        cache_slots: sequences in the cache. A document holds `Request.cache_slots` of them.
        capacity: tokens that a document may have (None: the network's context length).
        dtype: see `ModelRunner`.
        decode_text: whether the text that was written is returned as strings; else as ids.
        exact: a document comes out the same, bit for bit, whatever others the engine has beside it. Otherwise that holds but
            for rounding errors, which in bf16 are large enough to make a token or an item another one (as good a one). Single
            tokens then share passes of 32, all else runs alone: measured with 64 documents (width 128, depth 4, bf16), text
            takes 1.7 to 2.1 times the processor time, items of 16 slots 5.5 times.
        codecs: autoencoders of modalities whose latents the network knows: items of prompts are encoded, drawn ones decoded.
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
        exact: bool = False,
        codecs: Codecs | None = None,
    ) -> None:
        self.capacity = min(capacity or network.config.context_length, network.config.context_length)
        self.runner = ModelRunner(
            network, vocabulary, cache_slots=cache_slots, capacity=self.capacity, dtype=dtype, exact=exact
        )
        self.vocabulary, self.coordinates, self.diffusion = vocabulary, network.config.coordinates, network.config.diffusion
        self.cache_slots, self.decode_text, self.exact = cache_slots, decode_text, exact
        self.codecs = (codecs or Codecs(None, vocabulary.modalities)).to(network.device)
        self.fallbacks: Counter[SizeError] = Counter()
        self._queue: dict[int, tuple[Request, TokenSequence]] = {}
        self._active: dict[int, ActiveDocument] = {}
        self._events: list[Event] = []
        self._last_id = self._waited = 0

    @property
    def busy(self) -> bool:
        """Whether any document is unfinished."""
        return bool(self._queue or self._active)

    def add(self, request: Request) -> int:
        """Queue a document; its events carry the id that is returned. Raises ValueError: a field of a wrong type, a prompt
        item, a size or initial noise that does not fit its modality, an unknown modality, a prompt longer than the context (or
        `max_length`), or a request that needs more cache slots than there are."""
        request = self._as_latents(check_types(request))
        limits = {"capacity": self.capacity, "cache_slots": self.cache_slots}
        prompt = check_fit(request, self.vocabulary, self.coordinates, **limits)
        self._last_id += 1
        self._queue[self._last_id] = request, prompt
        return self._last_id

    def _as_latents(self, request: Request) -> Request:
        """The request with its items encoded, and sizes in latents."""
        size, sizes = request.size, {name: self.codecs.latent_size(name, size) for name, size in request.sizes.items()}
        if size is not None and request.force is not None:
            size = self.codecs.latent_size(request.force, size)
        return replace(request, document=self.codecs.encoded(request.document, now=True), size=size, sizes=sizes)

    def cancel(self, id: int) -> None:
        """Drop a document and free its cache slots. Raises KeyError for an id that is not in work."""
        if self._queue.pop(id, None) is None:
            self._release(self._active.pop(id))

    def document(self, id: int) -> Document:
        """A document as far as it is written."""
        return self._decoded(self._queue[id][0].document if id in self._queue else self._active[id].document())

    @torch.no_grad()
    def step(self) -> list[Event]:
        """Advance every document by a token or a denoising step. A document whose pass raised (or whose numbers are no longer
        finite) gets a `Failed` event; if memory did not suffice, a pass is first tried again in halves."""
        with self.runner.begin():
            self._admit()
            self._attempt(self._extend, [doc for doc in self._active.values() if doc.pending is not None])
            self._choose_tokens()
            self._choose_codes()
            self._denoise()
        events, self._events = self._events, []
        return events

    def run(self) -> Iterator[Event]:
        """Step until every document is done."""
        while self.busy:
            yield from self.step()

    # ---- documents: queued -> active -> done or failed --------------------------------------------------------------

    def _admit(self) -> None:
        """Give cache slots to queued documents while there are enough; the prompt is pending, with the frame of a forced item.

        Prompts have a block of their own in the next pass, which costs about the same for one as for several. So where only few
        slots have come free (less than a sixteenth), documents wait for more, a few steps at most."""
        cache = self.runner.cache
        self._waited += 1
        if self._active and cache.num_free < self.cache_slots // 16 and self._waited < PATIENCE:
            return
        self._waited = 0
        for id, (request, prompt) in list(islice(self._queue.items(), cache.num_free)):  # each takes a slot or more
            if request.cache_slots > cache.num_free:
                break
            del self._queue[id]
            slot, *guidance_slots = [cache.allocate() for _ in range(request.cache_slots)]
            counts = len(prompt.items), len(prompt)
            doc = ActiveDocument(id, request, slot, guidance_slots, prompt.position, *counts)
            self._active[id] = doc
            self._attempt(partial(self._begin, prompt), [doc])

    def _begin(self, prompt: TokenSequence, docs: Sequence[ActiveDocument]) -> None:
        (doc,) = docs
        doc.pending = Chunk.prefix(doc.cache_slot, prompt, len(prompt))
        if doc.request.force is not None:
            modality = self.vocabulary.modality(doc.request.force)
            doc.pending_item = PendingItem(modality, doc.request.forced_grid(modality))
            self._write(doc, self.vocabulary.frame(modality, doc.pending_item.grid))

    def _write(self, doc: ActiveDocument, tokens: Sequence[int]) -> None:
        """Make tokens pending, behind what is."""
        positions = self.coordinates.text(doc.position, len(tokens))
        follows = doc.pending_item is None or doc.pending_item.modality.codes > 0  # what follows is chosen from logits
        chunk = Chunk.text(doc.cache_slot, tokens, positions, logits=follows)
        doc.pending = chunk if doc.pending is None else doc.pending.then(chunk)
        doc.position += len(tokens)

    def _extend(self, docs: Sequence[ActiveDocument]) -> None:
        """Append what is pending to the cache; the logits of the next token or code come of it, or a pending item starts."""
        prefixes: list[Chunk] = []
        items: dict[int, ActiveItem] = {}
        coded = {doc.id: doc.coded for doc in docs}

        def start(docs: Sequence[ActiveDocument]) -> None:
            (doc,) = docs
            if doc.pending_item is None:
                return
            if doc.pending_item.modality.codes:
                coded[doc.id], unconditional = start_codes(doc, doc.pending_item, self.vocabulary, self.coordinates)
            else:
                about = self.vocabulary, self.coordinates, self.diffusion.schedule, self.runner.latent_dtype
                items[doc.id], unconditional = start_item(doc, doc.pending_item, *about)
            prefixes.extend(unconditional)

        for doc in docs:  # each alone: its request's noise may be a function that fails
            self._attempt(start, [doc])
        docs = [doc for doc in docs if doc.id in self._active]
        if not docs:
            return
        chunks = [doc.pending for doc in docs if doc.pending is not None]
        for prefix in prefixes:
            self.runner.cache.truncate(prefix.cache_slot, 0)
        others = [chunk for doc in docs if doc.coded is not None for chunk in doc.coded.pending]
        rows = self.runner.extend([*chunks, *prefixes, *others])
        by_slot = {chunk.cache_slot: row for chunk, row in zip([*chunks, *prefixes, *others], rows, strict=True)}
        for doc, logits in zip(docs, rows, strict=False):
            doc.pending, doc.pending_item, doc.item, doc.logits = None, None, items.get(doc.id), logits
            if (item := coded[doc.id]) is not None:
                found = [by_slot[branch.cache_slot] for branch in item.branches]
                doc.coded, doc.logits, item.logits = item, None, [row for row in found if row is not None]

    def _attempt(self, run: Callable[[Sequence[ActiveDocument]], None], docs: Sequence[ActiveDocument]) -> None:
        """`run` for documents; those for which it raises have failed."""
        for doc, error in attempt(run, docs):
            self._fail(doc, f"{type(error).__name__}: {error}", error)

    def _fail(self, doc: ActiveDocument, reason: str, error: Exception) -> None:
        if doc.id not in self._active:
            return
        for cache_slot in (doc.cache_slot, *doc.guidance_slots):
            self.runner.cache.clear(cache_slot)
        self._release(self._active.pop(doc.id))
        self._events.append(Failed(doc.id, reason, self._decoded(doc.document()), error))

    def _fail_unless_finite(self, docs: Sequence[ActiveDocument], numbers: Tensor, what: str) -> None:
        """Fail the documents whose row of numbers has NaN or infinity."""
        for doc, finite in zip(docs, numbers.flatten(1).sum(-1).isfinite().tolist(), strict=True):
            if not finite:
                reason = f"the network's {what} are not finite: check its weights, and try fp32 if this was half precision"
                self._fail(doc, reason, ArithmeticError(reason))

    def _release(self, doc: ActiveDocument) -> None:
        for cache_slot in (doc.cache_slot, *doc.guidance_slots):
            self.runner.cache.free(cache_slot)

    def _finish(self, doc: ActiveDocument, reason: str) -> None:
        self._release(self._active.pop(doc.id))
        self._events.append(Done(doc.id, self._decoded(doc.document()), reason))  # type: ignore[arg-type]

    def _decoded(self, document: Document) -> Document:
        """The document with items for latents, and with its text as strings, if `decode_text`."""
        document = self.codecs.decoded(document)
        if not self.decode_text:
            return document
        segments = list(document.segments)
        for index, segment in enumerate(segments):
            if isinstance(segment, Text) and not isinstance(segment.content, str):
                segments[index] = replace(segment, content=self.vocabulary.decode(segment.content))
        return replace(document, segments=tuple(segments))

    def _takes_more(self, doc: ActiveDocument, media: Media, fallback: SizeError | None) -> bool:
        """Append a finished item to its document, which is complete if it may take no token behind it: then False."""
        doc.close_text()
        doc.segments.append(media)
        doc.item, doc.coded, doc.num_items = None, None, doc.num_items + 1
        self._events.append(ItemDone(doc.id, self.codecs.item(media), fallback))
        if doc.num_tokens < doc.request.max_tokens:
            return True
        self._finish(doc, "tokens")
        return False

    # ---- text: logits -> pending tokens -----------------------------------------------------------------------------

    def _choose_tokens(self) -> None:
        """Choose the next token of every document at text; finish those that have reached a limit."""
        groups: dict[Decoding, list[ActiveDocument]] = {}
        for doc in [doc for doc in self._active.values() if doc.logits is not None]:
            if doc.size_parser is None and (doc.num_tokens >= doc.request.max_tokens or self._has_written_enough(doc)):
                self._finish(doc, "tokens")
            elif self._remaining(doc) < 1:
                self._finish(doc, "context")
            else:
                groups.setdefault(doc.request.decoding, []).append(doc)
        for decoding, docs in groups.items():
            self._attempt(partial(self._choose, decoding), docs)

    def _choose(self, decoding: Decoding, docs: Sequence[ActiveDocument]) -> None:
        logits = torch.stack([doc.logits for doc in docs if doc.logits is not None])
        self._fail_unless_finite(docs, logits, "logits")
        allowed = torch.stack([doc.allowed_tokens(self.vocabulary, self._remaining(doc)) for doc in docs])
        u = torch.tensor([rng.uniform(doc.request.seed, "token", doc.num_draws) for doc in docs])
        tokens = decoding.choose(logits.masked_fill(~allowed, -math.inf), u).tolist()
        wrong = [token for token, row in zip(tokens, allowed, strict=True) if not (0 <= token < len(row) and row[token])]
        if wrong:
            raise ValueError(f"{decoding!r} chose the id {wrong[0]}, which may not come next")
        for doc, token in zip(docs, tokens, strict=True):
            if doc.id in self._active:
                self._accept_token(doc, token)

    def _has_written_enough(self, doc: ActiveDocument) -> bool:
        """Whether `max_new` is reached."""
        written, limit = self.runner.cache.lengths[doc.cache_slot] - doc.prompt_length, doc.request.max_new
        return limit is not None and written >= limit

    def _remaining(self, doc: ActiveDocument) -> int:
        """Tokens that the document may still take."""
        return self._max_length(doc) - self.runner.cache.lengths[doc.cache_slot]

    def _max_length(self, doc: ActiveDocument) -> int:
        limit = doc.request.max_length
        return self.capacity if limit is None else min(limit, self.capacity)

    def _accept_token(self, doc: ActiveDocument, token: int) -> None:
        doc.logits, doc.num_draws = None, doc.num_draws + 1
        control = self.vocabulary.special_token(token)
        if doc.size_parser is not None or (control is not None and control.role != "eos"):
            self._accept_size_token(doc, token, control)
            return
        self._events.append(Token(doc.id, token))
        if control is not None:
            self._finish(doc, "end")
            return
        doc.text.append(token)
        doc.num_tokens += 1
        if doc.num_tokens >= doc.request.max_tokens:
            self._finish(doc, "tokens")
            return
        self._write(doc, [token])

    def _accept_size_token(self, doc: ActiveDocument, token: int, control: SpecialToken | None) -> None:
        """Parse a token that opens an item or belongs to its size; once the size is complete, the item is pending."""
        parser = doc.size_parser
        if parser is None:
            assert control is not None
            modality = self.vocabulary.modality(control.modality)
            parser = SizeParser(modality, self.runner.cache.lengths[doc.cache_slot], doc.position, doc.num_draws - 1)
        modality, fixed_grid = parser.modality, doc.request.fixed_grid(parser.modality)
        status = "complete" if fixed_grid is not None else parser.parse(control)
        if status == "more":
            doc.size_parser = parser
            self._write(doc, [token])
            return
        grid = tuple(parser.grid) if fixed_grid is None else fixed_grid
        error: SizeError | None = "malformed" if status == "malformed" else None
        if error is None and not self._fits(doc, parser, grid):
            error = "too large"
        if error is not None:
            grid = modality.slots(modality.shape)
            self.fallbacks[error] += 1
        doc.size_parser, frame = None, self.vocabulary.frame(modality, grid)
        unwritten = [token]  # BEGIN; the sizes are in the cache
        if error is not None or fixed_grid is not None:
            # roll back cache, position and RNG counter, then write this size's tokens
            self.runner.cache.truncate(doc.cache_slot, parser.length)
            doc.position, doc.num_draws, unwritten = parser.position, parser.num_draws + len(frame), frame
        if not self._fits(doc, parser, grid):
            self._finish(doc, "context")
            return
        self._events.extend(Token(doc.id, frame_token) for frame_token in frame)
        doc.pending_item = PendingItem(modality, grid, error)
        self._write(doc, unwritten)

    def _fits(self, doc: ActiveDocument, parser: SizeParser, grid: tuple[int, ...]) -> bool:
        return parser.length + item_length(parser.modality, grid) <= self._max_length(doc)

    # ---- discrete items: logits -> a code -> pending ----------------------------------------------------------------

    def _choose_codes(self) -> None:
        """Choose the next code of every document inside a discrete item."""
        groups: dict[tuple[Decoding, str], list[ActiveDocument]] = {}
        for doc in self._active.values():
            if doc.coded is not None and doc.coded.logits:
                groups.setdefault((doc.request.code_decoding, doc.coded.modality), []).append(doc)
        for (decoding, _), docs in groups.items():
            self._attempt(partial(self._choose_code, decoding), docs)

    def _choose_code(self, decoding: Decoding, docs: Sequence[ActiveDocument]) -> None:
        items = [doc.coded for doc in docs if doc.coded is not None]
        logits = torch.stack([item.guided() for item in items])
        self._fail_unless_finite(docs, logits, "logits")
        draws = [
            rng.uniform(doc.request.seed, "item", doc.num_items, "code", len(item.chosen))
            for doc, item in zip(docs, items, strict=True)
        ]
        codes = decoding.choose(logits, torch.tensor(draws)).tolist()
        if any(not 0 <= code < logits.shape[1] for code in codes):
            raise ValueError(f"{decoding!r} chose a code outside the codebook")
        for doc, item, code in zip(docs, items, codes, strict=True):
            if doc.id in self._active:
                doc.pending, *item.pending = item.append(code)
                item.logits = []
                self._events.append(Token(doc.id, item.codes.start + code))
                if len(item.chosen) == math.prod(item.grid):
                    self._attempt(partial(self._finish_codes, item), [doc])

    def _finish_codes(self, item: ActiveCodes, docs: Sequence[ActiveDocument]) -> None:
        """Make END pending behind the last code, except where the document is complete with its item."""
        (doc,), codes = docs, torch.tensor(item.chosen, dtype=torch.float32).reshape(1, *item.grid)
        if not self._takes_more(doc, self.codecs.drawn(item.modality, codes), item.fallback):
            return
        doc.position = item.next_position
        self._write(doc, [self.vocabulary.end(item.modality)])

    # ---- items: noise -> denoised -> pending --------------------------------------------------------------------------

    def _denoise(self) -> None:
        """One denoising step for every item, in groups of one modality, grid and rule of sampling (if `exact`, one by one)."""
        groups: dict[tuple[int, tuple[int, ...], Sampler, int], list[ActiveDocument]] = {}
        for doc in self._active.values():
            if doc.item is not None:
                key = doc.item.modality, doc.item.grid, doc.request.sampler.rule(), doc.id if self.exact else 0
                groups.setdefault(key, []).append(doc)
        for (_, _, rule, _), docs in groups.items():
            self._attempt(partial(self._denoise_group, rule), docs)
        for item in [doc.item for doc in self._active.values() if doc.item is not None]:
            if item.step == item.document.request.sampler.num_steps:
                self._attempt(partial(self._finish_item, item), [item.document])

    def _denoise_group(self, rule: Sampler, docs: Sequence[ActiveDocument]) -> None:
        items, device = [doc.item for doc in docs if doc.item is not None], self.runner.network.device
        x = torch.stack([item.latents for item in items]).to(device)
        times = [doc.request.sampler.times() for doc in docs]
        t, s = (
            torch.tensor([of[item.step + i] for of, item in zip(times, items, strict=True)], device=device, dtype=x.dtype)
            for i in (0, 1)
        )

        def noise() -> Tensor:
            return rng.normal([item.document.item_key("step", item.step) for item in items], tuple(x.shape[1:])).to(x)

        x_s, estimates = rule.step(self.diffusion.schedule, partial(self._predict, items), noise, x, t, s)
        self._fail_unless_finite(docs, x_s, "predictions")
        for item, latents, estimate in zip(items, x_s, estimates, strict=True):
            item.latents, item.step = latents, item.step + 1
            if (doc := item.document).id in self._active:
                name = self.vocabulary.modalities[item.modality].name
                self._events.append(Denoising(doc.id, item.step, doc.request.sampler.num_steps, estimate, name))

    def _predict(self, items: Sequence[ActiveItem], x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """(x0, eps) of items at x [item, channels, *size] and t [item], guided."""
        chunks: list[Chunk] = []
        owners, weights, firsts, rescale = [], [], [], []
        for i, (item, latents, time) in enumerate(zip(items, x, t.tolist(), strict=True)):
            tokens = np.full(math.prod(item.grid), self.vocabulary.pad)
            guided = item.document.request.guidance.active(time)
            firsts.append(len(chunks))
            rescale.append(item.document.request.guidance.rescale if guided and len(item.branches) > 1 else 0.0)
            for branch in item.branches if guided else item.branches[:1]:
                media = (ChunkItem(item.modality, item.grid, latents, time, 0),)
                spans = np.full(len(tokens), branch.span)
                chunks.append(Chunk(branch.cache_slot, tokens, branch.positions, spans, items=media))
                owners.append(i)
                weights.append(branch.weight if guided else 1.0)
        predictions = self.runner.denoise(chunks).to(x.dtype)
        weight = torch.tensor(weights, device=x.device, dtype=x.dtype).reshape(-1, *[1] * (x.ndim - 1))
        guided_sum = torch.zeros_like(x).index_add(0, torch.tensor(owners, device=x.device), predictions * weight)
        x0, eps = self.diffusion.to_x0_eps(self.diffusion.prediction, guided_sum, x, t)
        if not any(rescale):
            return x0, eps
        conditional, _ = self.diffusion.to_x0_eps(self.diffusion.prediction, predictions[firsts], x, t)
        share = torch.tensor(rescale, device=x.device, dtype=x.dtype)
        moved = self.diffusion.to_x0_eps("x0", rescaled(x0, conditional, share), x, t)
        here = (share > 0).reshape(-1, *[1] * (x.ndim - 1))  # other items keep their last digit
        return torch.where(here, moved[0], x0), torch.where(here, moved[1], eps)

    def preview(self, event: Denoising) -> Tensor:
        """The estimate of a denoising step as an item, Float[channels, *size]: decoded, where there is an autoencoder."""
        return self.codecs.pixels(event.modality, event.estimate)

    def _finish_item(self, item: ActiveItem, docs: Sequence[ActiveDocument]) -> None:
        """Make clean latents and END pending, except where the document is complete with its item."""
        (doc,), modality = docs, self.vocabulary.modalities[item.modality]
        if not self._takes_more(doc, self.codecs.drawn(modality.name, item.latents), item.fallback):
            return
        branch, count = item.branches[0], math.prod(item.grid)
        clean = ChunkItem(item.modality, item.grid, item.latents, 0.0, 0)
        tokens, spans = np.full(count, self.vocabulary.pad), np.full(count, branch.span)
        doc.pending = Chunk(doc.cache_slot, tokens, branch.positions, spans, items=(clean,))
        doc.position, doc.num_spans = item.next_position, doc.num_spans + 1
        self._write(doc, [self.vocabulary.end(modality.name)])


def generate(engine: Engine, requests: Sequence[Request], *, on_event: Callable[[Event], None] | None = None) -> list[Document]:
    """The finished documents of requests, in their order. `on_event` is called with every event.

    Raises:
        ValueError: see `Engine.add`; the message names the request.
        GenerationError: documents that failed, after the others are finished; it has those.
    """
    documents: dict[int, Document] = {}
    failed: dict[int, Failed] = {}
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
        elif isinstance(event, Failed):
            failed[event.id] = event
        if on_event is not None:
            on_event(event)
    if failed:
        first = next(iter(failed.values()))
        names = ", ".join(str(index) for index, id in enumerate(ids) if id in failed)
        message = f"{len(failed)} of {len(ids)} documents failed (prompt {names}): {first.reason}"
        raise GenerationError(message, [documents.get(id) for id in ids]) from first.error
    return [documents[id] for id in ids]
