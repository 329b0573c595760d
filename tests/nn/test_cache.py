"""The cache: memory grows with what it holds, and where a pass reads from changes nothing."""

from dataclasses import replace

import pytest
import torch

from small import IMAGE, documents, model
from transfusion.compat import Transfusion as ListModel
from transfusion.data.document import Document, Text
from transfusion.diffusion.guidance import Guidance
from transfusion.diffusion.sampler import Euler
from transfusion.generate.engine import Engine
from transfusion.generate.logits import Sample
from transfusion.generate.runner import Chunk, ModelRunner, Pass
from transfusion.generate.state import Done, Failed, Request
from transfusion.nn.config import AttentionConfig


def test_a_list_model_with_a_long_context_takes_memory_for_what_is_there() -> None:
    m = ListModel(num_text_tokens=16, dim_latent=4, transformer={"dim": 32, "depth": 2, "dim_head": 8, "heads": 4}).eval()
    engine = Engine(m.network, m.vocabulary, cache_slots=4, decode_text=False)
    cache = engine.runner.cache
    per_token = 2 * 2 * 32 * 4  # keys and values, layers, width, bytes
    assert engine.capacity >= 8192 and cache.num_bytes == 4 * 64 * per_token
    for length in (10, 300):
        engine.add(
            Request(Document((Text(tuple([1] * length)),)), max_tokens=9, max_items=0, allow_eos=False, guidance=Guidance(1.0))
        )
    most = 0
    while engine.busy:
        assert not any(isinstance(event, Failed) for event in engine.step())
        most = max(most, cache.num_bytes)
    assert 4 * 310 * per_token <= most <= 4 * 640 * per_token
    assert cache.num_bytes == 4 * 64 * per_token


@pytest.mark.parametrize("alibi", [0, 2])
def test_a_cache_that_grows_gives_what_a_large_one_gives(alibi: int) -> None:
    m = model(IMAGE, double=True, context_length=600, attention=AttentionConfig(alibi_heads=alibi))
    both = Guidance(text=3.0, media=2.0)

    def asked() -> list[Request]:
        prompts = [*documents(), *(Document((Text("word " * n),)) for n in (1, 20, 50))]
        drawn = [Request(p, i, 7, 1, sampler=Euler(2), guidance=both, decoding=Sample()) for i, p in enumerate(prompts)]
        return [*drawn, Request(Document(()), 9, 200, 0, allow_eos=False, guidance=both, decoding=Sample())]

    def written(large: bool) -> tuple[list[Document], tuple[int, ...]]:
        engine = Engine(m.network, m.vocabulary, cache_slots=30)
        if large:
            engine.runner.cache.reserve(30, 600)
        ids, found = [engine.add(request) for request in asked()], {}
        shape: tuple[int, ...] = (0, 0)
        while engine.busy:
            for event in engine.step():
                if isinstance(event, Done):
                    found[event.id] = event.document
            shape = max(shape, tuple(engine.runner.cache.spans.shape))
        return [found[id] for id in ids], shape

    (grown, small), (given, large) = written(False), written(True)
    assert small == (25, 502) and large == (30, 600)
    for one, other in zip(grown, given, strict=True):
        assert [s.content for s in one.segments if isinstance(s, Text)] == [
            s.content for s in other.segments if isinstance(s, Text)
        ]
        assert all(torch.equal(a.tensor(), b.tensor()) for a, b in zip(one.media, other.media, strict=True))


def test_growing_that_fails_leaves_the_cache_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    m = model()
    cache = m.network.cache(8, 128, torch.float32)
    before = [*cache.keys, *cache.values, cache.spans, cache.private]
    calls = []

    def no_more(self: torch.Tensor, *shape: int) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 4:
            raise MemoryError
        return torch.zeros(shape, dtype=self.dtype)

    monkeypatch.setattr(torch.Tensor, "new_zeros", no_more)
    with pytest.raises(MemoryError):
        cache.reserve(8, 100)
    assert all(a is b for a, b in zip(before, [*cache.keys, *cache.values, cache.spans, cache.private], strict=True))


@pytest.mark.parametrize(
    "options", [{}, {"attention": AttentionConfig(alibi_heads=2, value_residual=True)}, {"residual": "hyper"}]
)
def test_blocks_holes_and_copies_give_the_same(options: dict) -> None:
    """Chunks of one and of several tokens: in one pass, each alone, and with slots read in place, around others, or copied."""
    m = model(double=True, **options)
    entries = m.tokenize(documents(), add_eos=False)

    def logits(passes: list[list[int]], slots: list[int], gather: bool) -> torch.Tensor:
        runner = ModelRunner(m.network, m.vocabulary, cache_slots=12, capacity=160, dtype=torch.float64)
        runner.exact = gather  # copies; the passes are those given
        for _ in range(12):
            runner.cache.allocate()
        chunks = [Chunk.prefix(slot, entry, len(entry)) for slot, entry in zip(slots, entries, strict=True)]
        text = [
            replace(chunk, tokens=chunk.tokens[:1] * 0 + 65, positions=chunk.positions[-1:] + 1, items=()) for chunk in chunks
        ]
        text = [replace(chunk, spans=chunk.spans[:1], private=chunk.private[:1]) for chunk in text]  # type: ignore[index]
        kept: dict[int, torch.Tensor] = {}
        with torch.no_grad():
            for group in passes:
                first = [chunks[i] for i in group]
                runner._forward(first, runner._one_pass(first))
                runner.cache.commit([c.cache_slot for c in first], [len(c.tokens) for c in first])
            for group in passes:  # single tokens: one block
                second = [text[i] for i in group]
                each = runner._one_pass(second)
                assert len(each.blocks) == 1
                h, _, _, ends = runner._forward(second, Pass(each.blocks))
                kept |= {group[i]: h[end] for i, end in ends.items()}
        return torch.stack([kept[i] for i in range(len(entries))])

    alone = logits([[0], [1], [2], [3], [4]], [0, 1, 2, 3, 4], False)
    assert (alone[0] - alone[1]).abs().max() > 1e-2
    for passes, slots, gather in (
        ([[0, 1, 2, 3, 4]], [0, 1, 2, 3, 4], False),  # in place
        ([[0, 1, 2, 3, 4]], [7, 1, 4, 3, 2], False),  # around others
        ([[0, 1], [2, 3, 4]], [0, 11, 5, 3, 8], False),  # copies
        ([[0, 1, 2, 3, 4]], [4, 3, 2, 1, 0], True),
    ):
        assert (logits(passes, slots, gather) - alone).abs().max() < 1e-9
