"""The engine: a batch of unfinished documents, moved on one step at a time.

    add(request) -> id      step() -> events      cancel(id)

A step lets new documents in (their prompts are run into the cache), writes one token in every document that is at text,
and takes one denoising step in every item that is being drawn. All passes are one kind: some cache rows each take a piece
of sequence, behind their prefix; a pass that commits makes it part of the prefix. Denoising passes do not commit: they
read the prefix and write over the same slots, until the clean latents pass once, with END, and are committed.
"""

import math
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from transfusion import rng
from transfusion.data.document import Document, Media, Text, unconditional
from transfusion.data.tokenize import TokenSequence, tokenize_document
from transfusion.data.vocabulary import SpecialToken, Vocabulary
from transfusion.diffusion.sampler import init_noise
from transfusion.generate.logits import only
from transfusion.generate.runner import Chunk, ModelRunner
from transfusion.generate.sizes import PendingItem, SizeError, SizeParser
from transfusion.generate.state import CachedBranch, Denoising, Done, Event, ItemDone, Request, Row, Span, Token
from transfusion.model.network import Network


class Engine(ModelRunner):
    """Generates with a network.

    `fallbacks` counts, by reason, the items that got their modality's own size because what was written could not be used.

    Args:
        cache_slots: sequences in the cache. A document holds one, and one for each unconditional branch of its guidance.
        capacity: tokens of context a document may have at most.
        dtype: bf16 runs a copy of the network with its matrices in bf16, under autocast; fp32 and fp64 run it as it is.
        decode_text: whether documents come back with their text as strings; else what was written stays ids.
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
        capacity = min(capacity or network.config.context_length, network.config.context_length)
        super().__init__(network, vocabulary, cache_slots=cache_slots, capacity=capacity, dtype=dtype)
        self.decode_text, self._num_slots = decode_text, cache_slots
        self.fallbacks: Counter[SizeError] = Counter()
        self._waiting: deque[tuple[int, Request, TokenSequence]] = deque()
        self._rows: dict[int, Row] = {}
        self._next_id = 0

    @property
    def busy(self) -> bool:
        """Whether any document is unfinished."""
        return bool(self._waiting or self._rows)

    def add(self, request: Request) -> int:
        """Queue a document; events carry the id that comes back.

        Raises:
            ValueError: an item of the prompt (or noise to start from) that does not fit its modality, a prompt longer than
                the context (or its own `max_length`), an unknown modality, a size that its modality forbids, or a request that
                needs more cache rows than there are.
        """
        tokenized = tokenize_document(request.document, self.vocabulary, self.coordinates, add_eos=False)
        if any(item.media.values is None for item in tokenized.items):
            raise ValueError("a prompt's items need values; to have one generated, leave it out and force its modality")
        for item in tokenized.items:
            item.media.tensor()  # whatever is wrong with it shows here, before it is among others
        for name in request.sizes:
            request.grid(self.vocabulary.modality(name))
        needed, limit = len(tokenized), self._limit(request)
        if request.force is not None:
            modality = self.vocabulary.modality(request.force)
            grid = request.forced(modality)
            shape = (modality.channels, *modality.shape_of(grid))
            if request.noise is not None and tuple(request.noise.shape) != shape:
                raise ValueError(f"the noise to start from has shape {tuple(request.noise.shape)}, the item has {shape}")
            needed += len(self.vocabulary.frame(modality, grid)) + math.prod(grid) + 1
        if needed > limit:
            raise ValueError(
                f"the prompt{' and the item to be drawn' if request.force else ''} take {needed} tokens, the "
                f"{'context has' if limit == self.capacity else 'longest sequence asked for is'} {limit}: shorten the prompt"
            )
        if self._held(request) > self._num_slots:
            raise ValueError(f"this request needs {self._held(request)} cache rows, the engine has {self._num_slots}")
        self._next_id += 1
        self._waiting.append((self._next_id, request, tokenized))
        return self._next_id

    def cancel(self, id: int) -> None:
        """Forget a document; its rows are free at once. Raises KeyError for an id that is not in work."""
        for queued in self._waiting:
            if queued[0] == id:
                self._waiting.remove(queued)
                return
        self._release(self._rows.pop(id))

    def document(self, id: int) -> Document:
        """A document as far as it is written."""
        for waiting, request, _ in self._waiting:
            if waiting == id:
                return request.document
        return self._readable(self._rows[id].document())

    @torch.no_grad()
    def step(self) -> list[Event]:
        """Move every document on: a token, or a denoising step."""
        events: list[Event] = []
        with torch.autocast(self.network.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            self._admit()
            self._write_tokens(events)
            self._run_pending(events)
            self._denoise(events)
        return events

    def run(self) -> Iterator[Event]:
        """Step until every document is done."""
        while self.busy:
            yield from self.step()

    def _logits(self, rows: Sequence[Row], h: Tensor) -> None:
        for row, logits in zip(rows, self.network.head(h).float().cpu(), strict=True):
            row.logits = logits

    # ---- rows -------------------------------------------------------------------------------------------------------

    def _held(self, request: Request) -> int:
        branches = 0 if request.max_items == 0 and request.force is None else request.guidance.max_branches
        return 1 + branches

    def _admit(self) -> None:
        pieces, rows = [], []
        while self._waiting and self._held(self._waiting[0][1]) <= self._cache.num_free:
            id, request, tokenized = self._waiting.popleft()
            row = Row(id, request, self._cache.take(), [self._cache.take() for _ in range(self._held(request) - 1)])
            row.position, row.num_spans = tokenized.position, len(tokenized.items)
            self._rows[id] = row
            pieces.append(self._prefix(row.row, tokenized, len(tokenized)))
            rows.append(row)
        if not rows:
            return
        h, _, _ = self._run(pieces, commit=True)
        self._logits(rows, h)
        for row in rows:
            if row.request.force is not None:
                modality = self.vocabulary.modality(row.request.force)
                row.logits, row.pending_item = None, PendingItem(modality, row.request.forced(modality))
                row.pending = self.vocabulary.frame(modality, row.pending_item.grid)

    def _release(self, row: Row) -> None:
        for held in (row.row, *row.spare):
            self._cache.give_back(held)

    def _finish(self, row: Row, reason: str, events: list[Event]) -> None:
        self._release(self._rows.pop(row.id))
        events.append(Done(row.id, self._readable(row.document()), reason))  # type: ignore[arg-type]

    def _readable(self, document: Document) -> Document:
        if not self.decode_text:
            return document

        def readable(content: str | tuple[int, ...]) -> str:
            return content if isinstance(content, str) else self.vocabulary.decode(content)

        segments = (replace(s, content=readable(s.content)) if isinstance(s, Text) else s for s in document.segments)
        return replace(document, segments=tuple(segments))

    # ---- text -------------------------------------------------------------------------------------------------------

    def _write_tokens(self, events: list[Event]) -> None:
        ready: list[Row] = []
        for row in [r for r in self._rows.values() if r.logits is not None]:
            if row.size_parser is None and row.num_tokens >= row.request.max_tokens:
                self._finish(row, "tokens", events)
            elif self._room(row) < 1:
                self._finish(row, "context", events)
            else:
                ready.append(row)
        for decoding in dict.fromkeys(row.request.decoding for row in ready):
            rows = [row for row in ready if row.request.decoding == decoding]
            logits = torch.stack([row.logits for row in rows if row.logits is not None])
            legal = torch.stack([row.legal(self.vocabulary, self._room(row)) for row in rows])
            u = torch.tensor([rng.uniform(row.request.seed, "token", row.num_draws) for row in rows])
            for row, token in zip(rows, decoding.choose(only(logits, legal), u).tolist(), strict=True):
                self._accept(row, token, events)

    def _limit(self, request: Request) -> int:
        return self.capacity if request.max_length is None else min(request.max_length, self.capacity)

    def _room(self, row: Row) -> int:
        return self._limit(row.request) - self._cache.lengths[row.row]

    def _accept(self, row: Row, token: int, events: list[Event]) -> None:
        row.logits, row.num_draws = None, row.num_draws + 1
        control = self.vocabulary.control(token)
        if row.size_parser is None and (control is None or control.role == "eos"):
            events.append(Token(row.id, token))
            if control is not None:
                self._finish(row, "end", events)
                return
            row.text.append(token)
            row.num_tokens += 1
            row.pending = [token]
        else:
            self._size(row, token, control, events)

    def _size(self, row: Row, token: int, control: SpecialToken | None, events: list[Event]) -> None:
        """Take a token that opens an item or belongs to its size; when the size is known, open it."""
        size_parser = row.size_parser
        if size_parser is None:
            assert control is not None
            modality = self.vocabulary.modality(control.modality)
            size_parser = SizeParser(modality, self._cache.lengths[row.row], row.position, row.num_draws - 1)
        modality, wished = size_parser.modality, row.request.grid(size_parser.modality)
        said = "complete" if wished is not None else size_parser.read(control)
        if said == "more":
            row.size_parser, row.pending = size_parser, [token]
            return
        grid = wished or tuple(size_parser.grid)
        wrong: SizeError | None = "malformed" if said == "malformed" else None
        if wrong is None and not self._fits(row, size_parser, grid):
            wrong = "too large"
        if wrong is not None:
            grid = modality.slots(modality.shape)
            self.fallbacks[wrong] += 1
        row.size_parser, frame = None, self.vocabulary.frame(modality, grid)
        if wrong is None and wished is None:
            row.pending = [token]  # the sizes are in the cache
        else:  # as if these sizes had been written: in the cache, and in what chance is counted by
            self._cache.shorten(row.row, size_parser.length)
            row.position, row.num_draws, row.pending = size_parser.position, size_parser.num_draws + len(frame), frame
        if not self._fits(row, size_parser, grid):
            self._finish(row, "context", events)
            return
        events.extend(Token(row.id, one) for one in frame)
        row.pending_item = PendingItem(modality, grid, wrong)

    def _fits(self, row: Row, size_parser: SizeParser, grid: tuple[int, ...]) -> bool:
        taken = len(self.vocabulary.frame(size_parser.modality, grid)) + math.prod(grid) + 1
        return size_parser.length + taken <= self._limit(row.request)

    def _run_pending(self, events: list[Event]) -> None:
        rows = [row for row in self._rows.values() if row.pending]
        if not rows:
            return
        pieces = []
        for row in rows:
            count = len(row.pending)
            positions = row.position + torch.arange(count, dtype=torch.float32)[:, None].expand(count, self.coordinates.axes)
            pieces.append(Chunk(row.row, np.array(row.pending), positions, np.full(count, -1)))
            row.position += count
            row.pending = []
        h, _, _ = self._run(pieces, commit=True)
        self._logits(rows, h)
        self._open([row for row in rows if row.pending_item is not None])

    # ---- media ------------------------------------------------------------------------------------------------------

    def _open(self, rows: Sequence[Row]) -> None:
        """Begin items: their noise, and the prefixes of their unconditional branches."""
        prefixes: list[Chunk] = []
        for row in rows:
            assert row.pending_item is not None
            pending_item, row.pending_item, row.logits = row.pending_item, None, None
            modality, grid = pending_item.modality, pending_item.grid
            index = self.vocabulary.modalities.index(modality)
            where, after = self.coordinates.place(row.position, grid)
            shape = (modality.channels, *modality.shape_of(grid))
            before = row.document()
            item = Media(None, modality.name, modality.shape_of(grid) if modality.varies else None)
            whole = replace(before, segments=(*before.segments, item))
            has_text = any(isinstance(s, Text) and len(s.content) for s in before.segments)
            weight, others = row.request.guidance.branches(has_text=has_text, has_media=bool(before.media))
            branches = [CachedBranch(row.row, weight, torch.from_numpy(where), row.num_spans)]
            for spare, other in zip(row.spare, others, strict=False):
                without = unconditional(whole, len(whole.segments) - 1, text=other.drop_text, media=other.drop_media)
                tokenized = tokenize_document(without, self.vocabulary, self.coordinates, add_eos=False)
                first = tokenized.items[-1].start
                self._cache.lengths[spare] = 0
                prefixes.append(self._prefix(spare, tokenized, first))
                branches.append(
                    CachedBranch(spare, other.weight, torch.from_numpy(tokenized.positions[first:]), len(tokenized.items) - 1)
                )
            noise = row.request.noise
            if noise is None or row.request.force is None or row.num_items:
                noise = rng.normal([rng.key(row.request.seed, "item", row.num_items, "noise")], shape)[0]
            latents = init_noise(self.network.config.diffusion.schedule, noise.to(self._exact))
            row.span = Span(index, grid, latents, branches, after, fallback=pending_item.fallback)
        if prefixes:
            self._run(prefixes, commit=True)

    def _denoise(self, events: list[Event]) -> None:
        groups: dict[object, list[tuple[Row, Span]]] = {}
        for row in self._rows.values():
            if row.span is not None:
                groups.setdefault((row.span.modality, row.span.grid, row.request.sampler), []).append((row, row.span))
        finished: list[tuple[Row, Span]] = []
        for group in groups.values():
            sampler = group[0][0].request.sampler
            times = sampler.times()
            device = self.network.device
            x = torch.stack([span.latents for _, span in group]).to(device)
            t = torch.tensor([times[span.step] for _, span in group], device=device, dtype=x.dtype)
            s = torch.tensor([times[span.step + 1] for _, span in group], device=device, dtype=x.dtype)

            def predict(x: Tensor, t: Tensor, group: list[tuple[Row, Span]] = group) -> tuple[Tensor, Tensor]:
                return self._predict(group, x, t)

            def draw(group: list[tuple[Row, Span]] = group, like: Tensor = x) -> Tensor:
                keys = [rng.key(row.request.seed, "item", row.num_items, "step", span.step) for row, span in group]
                return rng.normal(keys, tuple(like.shape[1:])).to(like)

            moved, estimate = sampler.step(self.network.config.diffusion.schedule, predict, draw, x, t, s)
            for (row, span), latents, clean in zip(group, moved, estimate, strict=True):
                span.latents, span.step = latents, span.step + 1
                events.append(Denoising(row.id, span.step, sampler.num_steps, clean))
                if span.step == sampler.num_steps:
                    finished.append((row, span))
        if finished:
            self._close(finished, events)

    def _predict(self, group: Sequence[tuple[Row, Span]], x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """(x0, eps) of a group's items, guided."""
        pieces: list[Chunk] = []
        shares: list[tuple[int, float]] = []
        for i, ((row, span), latents, time) in enumerate(zip(group, x, t.tolist(), strict=True)):
            count = math.prod(span.grid)
            guided = row.request.guidance.active(time)
            for branch in span.branches if guided else span.branches[:1]:
                tokens, spans = np.full(count, self.vocabulary.pad), np.full(count, branch.span)
                media = ((span.modality, span.grid, latents, time, 0),)
                pieces.append(Chunk(branch.row, tokens, branch.positions, spans, None, media))
                shares.append((i, branch.weight if guided else 1.0))
        _, (predicted,), _ = self._run(pieces, commit=False)
        index = torch.tensor([i for i, _ in shares], device=x.device)
        weight = torch.tensor([w for _, w in shares], device=x.device, dtype=x.dtype)
        total = torch.zeros_like(x).index_add(0, index, predicted.to(x.dtype) * weight.reshape(-1, *[1] * (x.ndim - 1)))
        diffusion = self.network.config.diffusion
        return diffusion.to_x0_eps(diffusion.prediction, total, x, t)

    def _close(self, finished: Sequence[tuple[Row, Span]], events: list[Event]) -> None:
        """Commit clean latents and END in one pass; a document that is complete is only reported."""
        pieces, rows = [], []
        for row, span in finished:
            modality = self.network.config.modalities[span.modality]
            media = Media(span.latents.cpu(), modality.name)
            row.close_text()
            row.segments.append(media)
            row.span, row.num_items = None, row.num_items + 1
            events.append(ItemDone(row.id, media, span.fallback))
            if row.num_tokens >= row.request.max_tokens:
                self._finish(row, "tokens", events)
                continue
            count, branch = math.prod(span.grid), span.branches[0]
            tokens = np.append(np.full(count, self.vocabulary.pad), self.vocabulary.end(modality.name))
            end = torch.full((1, self.coordinates.axes), span.position)
            spans = np.append(np.full(count, branch.span), -1)
            clean = ((span.modality, span.grid, span.latents, 0.0, 0),)
            pieces.append(Chunk(row.row, tokens, torch.cat([branch.positions, end]), spans, None, clean))
            row.position, row.num_spans = span.position + 1, row.num_spans + 1
            rows.append(row)
        if rows:
            h, _, _ = self._run(pieces, commit=True)
            self._logits(rows, h)


def generate(engine: Engine, requests: Sequence[Request], *, on_event: Callable[[Event], None] | None = None) -> list[Document]:
    """Documents of requests, in their order. `on_event` is called with every event.

    Raises:
        ValueError: see `Engine.add`; the message says which request.
    """
    ids = []
    for index, request in enumerate(requests):
        try:
            ids.append(engine.add(request))
        except ValueError as error:
            where = "" if str(error).startswith("document ") or len(requests) == 1 else f"prompt {index}: "
            raise ValueError(f"{where}{error}") from error
    done: dict[int, Document] = {}
    for event in engine.run():
        if isinstance(event, Done):
            done[event.id] = event.document
        if on_event is not None:
            on_event(event)
    return [done[id] for id in ids]
