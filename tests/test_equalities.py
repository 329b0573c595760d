"""Two ways to the same numbers, held equal with random weights: forms of attention, packing, caching, batching, joining late.

Float64 to 1e-9. Float32 to 2e-4: the largest difference measured here is 4e-5, on outputs of order 1 to 10.
"""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from small import FREE, SOUND, VECTOR, documents, model, picture
from transfusion import rng
from transfusion.api import Transfusion
from transfusion.data.batch import Batch, collate
from transfusion.data.document import Document, Media, Text, given
from transfusion.data.tokenize import Coordinates, TokenSequence, tokenize_document
from transfusion.diffusion.guidance import Guidance
from transfusion.diffusion.process import PAPER
from transfusion.diffusion.sampler import DDIM, DDPM, Euler, Heun, Sampler
from transfusion.generate.engine import Engine, generate
from transfusion.generate.logits import Sample
from transfusion.generate.runner import Chunk, ModelRunner
from transfusion.generate.state import Done, Request
from transfusion.model.losses import Losses
from transfusion.model.network import Network
from transfusion.nn.attention import AttentionMetadata, dense, make_attention, rule, visible
from transfusion.nn.layers import Linear

TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-4}


def entries(m: Transfusion, docs: list[Document]) -> list[TokenSequence]:
    found = []
    for index, one in enumerate(docs):
        tokenized = tokenize_document(one, m.vocabulary, m.config.model.coordinates)
        loaded = tokenized.load(lambda item, index=index: rng.key("test", index, item))
        items = [replace(item, latents=item.media.tensor().to(next(m.parameters()).dtype)) for item in loaded.items]
        found.append(replace(loaded, items=tuple(items)))
    return found


def rows(m: Transfusion, packed: list[list[TokenSequence]], length: int) -> Batch:
    return collate(packed, length, m.vocabulary, m.config.model.coordinates.axes)


def with_form(m: Transfusion, form: str) -> Network:
    m.network.config = replace(m.network.config, attention_backend=form)  # type: ignore[arg-type]
    return m.network


def numbers(losses: Losses) -> torch.Tensor:
    return torch.stack([losses.text.sum, losses.text.count.to(losses.text.sum), losses.media.sum, losses.media.count])


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("coordinates", [Coordinates("grid"), Coordinates("reset", axes=3), Coordinates("raster", axes=1)])
def test_forms_of_attention_agree(dtype: torch.dtype, coordinates: Coordinates, monkeypatch, unchecked) -> None:
    monkeypatch.setattr(
        "transfusion.nn.attention._compiled_flex", lambda _: flex_attention
    )  # compiled: in a process of its own, below
    m = model(coordinates=coordinates, double=dtype == torch.float64)
    batch = rows(m, [entries(m, documents())[:3], entries(m, documents())[3:]], 128)
    place = AttentionMetadata.of_rows(batch.documents, batch.spans, batch.private)
    outs = {}
    with torch.no_grad():
        media = m.network.add_noise(batch)
        for form in ("dense", "sdpa", "document", "flex"):
            h, _ = with_form(m, form).hidden(batch.tokens, batch.positions, media, metadata=place)
            outs[form] = h[(batch.documents >= 0).flatten()]
    for form in ("sdpa", "document", "flex"):
        assert (outs[form] - outs["dense"]).abs().max() < TOLERANCE[dtype]
    assert outs["dense"].std() > 0.1


COMPILED = """
import torch
from torch._dynamo.utils import counters
from transfusion.nn.attention import AttentionMetadata, make_attention
torch.manual_seed(0)
position = torch.arange(256)
for step in range(6):
    documents = (position // (40 + 12 * step)).expand(2, 256).contiguous()
    in_span = (position % 50 > 20 - step) & (position % 50 < 40)
    spans = torch.where(in_span, position // 50, -1).expand(2, 256).contiguous()
    metadata = AttentionMetadata.of_rows(documents, spans, (torch.rand(2, 256) < 0.1) & (spans >= 0))
    q, k, v = torch.randn(2, 4, 256, 32), torch.randn(2, 2, 256, 32), torch.randn(2, 2, 256, 32)
    with torch.no_grad():
        difference = (make_attention("flex", metadata)(q, k, v) - make_attention("dense", metadata)(q, k, v)).abs().max().item()
    assert difference < 1e-5, difference
assert counters["stats"]["unique_graphs"] == 1, counters["stats"]
"""


@pytest.mark.slow
def test_compiled_flex_agrees_and_other_documents_compile_nothing_again() -> None:
    """Rows have one length, so what is compiled for the first batch serves all that follow. Measured: 1e-6.

    In a process of its own, without the checks of types, which a compiler would see as code.
    """
    subprocess.run([sys.executable, "-c", COMPILED], check=True)


LENGTHS = """
import torch
from transfusion.nn.attention import AttentionMetadata, ScoreMod, make_attention
torch.manual_seed(0)
for length in (256, 300, 200):
    position = torch.arange(length)
    documents = torch.where(position < length - 9, position // 40, -1).expand(2, length).contiguous()
    spans = torch.where((position % 40 > 20) & (position % 40 < 30), position // 40, -1).expand(2, length).contiguous()
    coordinates = torch.rand(2, length, 2) * 40
    metadata = AttentionMetadata.of_rows(documents, spans, (torch.rand(2, length) < 0.1) & (spans >= 0), coordinates)
    q, k, v = torch.randn(2, 4, length, 32), torch.randn(2, 2, length, 32), torch.randn(2, 2, length, 32)
    score_mod = ScoreMod(alibi_heads=3, num_heads=4)
    with torch.no_grad():
        outs = [make_attention(form, metadata, score_mod=score_mod)(q, k, v) for form in ("flex", "dense")]
    difference = (outs[0] - outs[1])[documents[:, None, :, None].expand_as(outs[0]) >= 0].abs().max().item()
    assert outs[0].shape == outs[1].shape and difference < 1e-5, (length, difference)
"""


@pytest.mark.slow
def test_compiled_flex_takes_rows_of_any_length() -> None:
    """One after the other in one process, whole blocks of 128 or not. Measured: 1e-6."""
    subprocess.run([sys.executable, "-c", LENGTHS], check=True, capture_output=True)


class Largest(TorchDispatchMode):
    """The most bytes that any operation gave as one tensor."""

    found = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self.found = max(self.found, tensor.numel() * tensor.element_size())
        return out


def test_a_block_mask_is_torchs_and_holds_a_strip_of_pairs_at_once(monkeypatch) -> None:
    rows, length = 2, 1024
    documents = (torch.arange(length) // 300).expand(rows, length).clone()
    documents[1] = torch.arange(length) // 450
    spans = torch.where(torch.arange(length) % 300 > 140, documents, -1)
    metadata = AttentionMetadata.of_rows(documents, spans, (torch.arange(length) % 7 == 0).expand(rows, length) & (spans >= 0))
    fields = metadata.fields
    expected = create_block_mask(
        lambda row, head, query, key: rule(tuple(f[row, query] for f in fields), tuple(f[row, key] for f in fields)),
        *(rows, None, length, length, "cpu"),
    )
    monkeypatch.setattr("transfusion.nn.attention.STRIP", 1 << 18)
    kept = []
    monkeypatch.setattr(
        "transfusion.nn.attention._compiled_flex", lambda _: lambda q, *_, block_mask, **__: kept.append(block_mask) or q
    )
    with Largest() as largest:
        attention = make_attention("flex", metadata)
    attention(*(torch.zeros(rows, 1, length, 8) for _ in range(3)))
    assert largest.found <= 1 << 18  # of 2 million pairs
    for name in ("kv_num_blocks", "kv_indices", "full_kv_num_blocks", "full_kv_indices", "q_num_blocks", "full_q_num_blocks"):
        assert torch.equal(getattr(kept[0], name), getattr(expected, name)), name
    assert kept[0].seq_lengths == expected.seq_lengths
    assert expected.full_kv_num_blocks is not None and expected.full_kv_num_blocks.any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("layout", ["one row", "two rows with padding", "a row each", "text only"])
@pytest.mark.parametrize("long", [1, 128])
def test_gradients_of_fast_forms_are_those_of_plain_ones(layout: str, long: int, dtype: torch.dtype, monkeypatch) -> None:
    """Attention, norms, rotations and gates, all at once. `long` 1: each document is attended to by itself."""
    monkeypatch.setattr("transfusion.nn.attention.LONG_DOCUMENT", long)
    m = model(double=dtype == torch.float64)
    found = entries(m, documents())
    batch = {
        "one row": lambda: rows(m, [found], 160),
        "two rows with padding": lambda: rows(m, [found[:2], found[2:]], 150),
        "a row each": lambda: rows(m, [[found[0]], [found[0]]], len(found[0])),
        "text only": lambda: rows(m, [entries(m, [Document((Text("ab" * n),)) for n in (3, 3, 20, 1)])], 70),
    }[layout]()
    grads = []
    for form in ("dense", "sdpa", "document"):
        network = with_form(m, form)
        network.zero_grad()
        with monkeypatch.context() as patch:
            if form == "dense":
                patch.setattr("transfusion.nn.pointwise._eager", lambda x: False)
            network(batch).total(1.0).backward()
        grads.append(torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None]))
    scale = grads[0].abs().max()
    for other in grads[1:]:
        assert (grads[0] - other).abs().max() / scale < (1e-9 if dtype == torch.float64 else 1e-4)


def packed_is_alone(m: Transfusion, docs: list[Document], dtype: torch.dtype = torch.float64) -> None:
    """Five documents packed into rows, with padding, cost what each costs alone; nobody sees a neighbour."""
    found = entries(m, docs)
    packed = m.network(rows(m, [found[:3], found[3:]], 128))
    alone = sum((numbers(m.network(rows(m, [[one]], len(one)))) for one in found), torch.zeros(4))
    assert torch.allclose(numbers(packed), alone.to(numbers(packed)), rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    other = m.network(rows(m, [[found[3], found[1], found[4]], [found[2], found[0]]], 140))
    assert torch.allclose(numbers(packed), numbers(other), rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_packed_is_alone(dtype: torch.dtype) -> None:
    packed_is_alone(model(double=dtype == torch.float64), documents(), dtype)


def test_neighbours_change_nothing_at_all() -> None:
    """Another document behind or before in the row leaves every hidden state as it was."""
    m = model(double=True)
    a, b, c = entries(m, documents())[:3]
    with torch.no_grad():
        states = []
        for row in ([a, b], [a, c], [c, a], [b, a]):
            batch = rows(m, [row], 160)
            media = m.network.add_noise(batch)
            h, _ = m.network.hidden(
                batch.tokens,
                batch.positions,
                media,
                metadata=AttentionMetadata.of_rows(batch.documents, batch.spans, batch.private),
            )
            states.append(h[(batch.documents == row.index(a)).flatten()])
    for other in states[1:]:
        assert (states[0] - other).abs().max() < 1e-9


def cached_is_full(m: Transfusion, docs: list[Document], dtype: torch.dtype = torch.float64) -> None:
    """A document run piece by piece through the cache has the hidden states of the whole document at once."""
    for document in docs:
        clean = replace(document, segments=tuple(given(s) if isinstance(s, Media) else s for s in document.segments))
        (entry,) = entries(m, [clean])
        batch = rows(m, [[entry]], len(entry))
        with torch.no_grad():
            media = m.network.add_noise(batch)
            place = AttentionMetadata.of_rows(batch.documents, batch.spans, batch.private)
            full, _ = m.network.hidden(batch.tokens, batch.positions, media, metadata=place)
            runner = ModelRunner(m.network, m.vocabulary, cache_slots=3, capacity=m.network.config.context_length, dtype=dtype)
            runner.cache.allocate()
            row, at, tokenized = runner.cache.allocate(), 0, entry
            pieces: list[torch.Tensor] = []

            def keep(_: object, args: tuple[torch.Tensor, ...], kept: list[torch.Tensor] = pieces) -> None:
                kept.append(args[0][0])

            hook = m.network.head.register_forward_pre_hook(keep)
            while at < len(tokenized):
                span = tokenized.spans[at]
                end = at + 1
                while span >= 0 and end < len(tokenized) and tokenized.spans[end] == span:
                    end += 1
                whole = Chunk.prefix(row, tokenized, end)
                chunk = Chunk(
                    row,
                    whole.tokens[at:],
                    whole.positions[at:],
                    whole.spans[at:],
                    tokenized.private[at:end],
                    tuple(replace(item, start=item.start - at) for item in whole.items if item.start >= at),
                )
                runner.extend([chunk])  # the hook keeps the last hidden state
                at = end
            hook.remove()
        # the cached pass gives each piece's last hidden state
        ends = [
            i
            for i in range(len(tokenized))
            if i + 1 == len(tokenized) or tokenized.spans[i] < 0 or tokenized.spans[i + 1] != tokenized.spans[i]
        ]
        assert (torch.stack(pieces) - full[ends]).abs().max() < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("coordinates", [Coordinates("grid"), Coordinates("reset", axes=3), Coordinates("raster", axes=1)])
@pytest.mark.parametrize("transformer", [{}, {"head_dim": 12, "qkv_bias": True, "qk_norm": False}], ids=["default", "heads"])
def test_cached_is_full(dtype: torch.dtype, coordinates: Coordinates, transformer: dict) -> None:
    cached_is_full(model(coordinates=coordinates, double=dtype == torch.float64, **transformer), documents(), dtype)


def requests(sampler: Sampler = Euler(3)) -> list[Request]:
    log = Sample(temperature=1.0)
    both = Guidance(text=3.0, media=2.0)
    return [
        Request(Document((Text("a cat"),)), seed=1, force="image", max_tokens=6, sampler=sampler, guidance=both, decoding=log),
        Request(
            Document((Media(picture(3)), Text("then "))), seed=2, force="image", max_tokens=0, sampler=sampler, guidance=both
        ),
        Request(Document((Media(picture(4)),)), seed=3, max_items=0, max_tokens=9, decoding=log),
        Request(Document(()), seed=4, max_tokens=7, sampler=sampler, guidance=Guidance(text=1.0), decoding=log),
        Request(
            Document((Text("a longer prompt than the others"),)),
            seed=5,
            force="image",
            max_tokens=3,
            sampler=sampler,
            decoding=log,
        ),
    ]


def same(one: Document, other: Document, tolerance: float) -> None:
    assert len(one.segments) == len(other.segments)
    for a, b in zip(one.segments, other.segments, strict=True):
        if isinstance(a, Text):
            assert isinstance(b, Text) and a.content == b.content
        else:
            assert isinstance(b, Media)
            assert isinstance(a.values, torch.Tensor) and isinstance(b.values, torch.Tensor)
            assert (a.values - b.values).abs().max() < tolerance


def many_is_one(m: Transfusion, asked: list[Request], dtype: torch.dtype = torch.float64) -> None:
    """A document comes out the same alone and beside others. Measured in float32: 5e-6."""
    many = generate(Engine(m.network, m.vocabulary, cache_slots=16), asked)
    for request, together in zip(asked, many, strict=True):
        (alone,) = generate(Engine(m.network, m.vocabulary, cache_slots=3), [request])
        same(alone, together, 1e-9 if dtype == torch.float64 else 1e-4)
    assert any(d.media for d in many)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("sampler", [Euler(3), Heun(3), DDIM(3), DDPM(3)], ids=lambda s: s.kind)
def test_many_is_one(sampler: Sampler, dtype: torch.dtype) -> None:
    many_is_one(model(double=dtype == torch.float64), requests(sampler), dtype)


def test_many_is_one_where_sizes_vary() -> None:
    m = model(FREE, SOUND, VECTOR, double=True)
    asked = [
        Request(Document((Text("big"),)), seed=1, force="image", size=(8, 6), max_tokens=5, decoding=Sample()),
        Request(Document((Text("small"),)), seed=2, force="image", size=(2, 4), max_tokens=5, decoding=Sample()),
        Request(Document((Text("hear"),)), seed=3, force="sound", max_tokens=5, decoding=Sample()),
        Request(Document((Text("feel"),)), seed=4, force="vector", max_tokens=5, decoding=Sample()),
    ]
    for request, together in zip(asked, generate(Engine(m.network, m.vocabulary, cache_slots=12), asked), strict=True):
        (alone,) = generate(Engine(m.network, m.vocabulary, cache_slots=3), [request])
        same(alone, together, 1e-9)
        assert together.media


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_joining_late_is_alone(dtype: torch.dtype) -> None:
    """Documents that join in the middle of others' work, in a crowded engine, come out as they do alone."""
    m = model(double=dtype == torch.float64)
    engine = Engine(m.network, m.vocabulary, cache_slots=5)
    ids, done, waiting = {}, {}, list(enumerate(requests(Euler(4))))
    while waiting or engine.busy:
        if waiting:
            index, request = waiting.pop(0)
            ids[engine.add(request)] = index
        for event in engine.step():
            if isinstance(event, Done):
                done[ids[event.id]] = event.document
    for index, request in enumerate(requests(Euler(4))):
        (alone,) = generate(Engine(m.network, m.vocabulary, cache_slots=3), [request])
        same(alone, done[index], 1e-9 if dtype == torch.float64 else 1e-4)


def test_cancelling_leaves_the_others_alone() -> None:
    m = model(double=True)
    engine = Engine(m.network, m.vocabulary, cache_slots=9)
    ids = [engine.add(request) for request in requests()]
    engine.step()
    engine.cancel(ids[0])
    engine.cancel(ids[2])
    done = {e.id: e.document for e in engine.run() if isinstance(e, Done)}
    assert set(done) == {ids[1], ids[3], ids[4]}
    assert engine.runner.cache.num_free == 9
    for index in (1, 3, 4):
        (alone,) = generate(Engine(m.network, m.vocabulary, cache_slots=3), [requests()[index]])
        same(alone, done[ids[index]], 1e-9)


def test_the_prefix_is_read_and_not_overwritten_while_denoising() -> None:
    m = model()
    engine = Engine(m.network, m.vocabulary, cache_slots=2)
    engine.add(Request(Document((Text("hello"),)), force="image", max_tokens=0, sampler=Euler(6)))
    engine.step()
    (doc,) = engine._active.values()
    length = engine.runner.cache.lengths[doc.cache_slot]
    before = [k[doc.cache_slot, :, :length].clone() for k in engine.runner.cache.keys]
    engine.step()
    engine.step()
    assert engine.runner.cache.lengths[doc.cache_slot] == length
    assert all(torch.equal(a, k[doc.cache_slot, :, :length]) for a, k in zip(before, engine.runner.cache.keys, strict=True))


@pytest.mark.parametrize("diffusion", [PAPER])
def test_the_committed_item_is_the_clean_one(diffusion) -> None:
    """After an item is drawn, text goes on as if the drawn item had stood in the prompt."""
    m = model(double=True, diffusion=diffusion)
    request = Request(Document((Text("so "),)), seed=3, force="image", max_tokens=12, max_items=1, sampler=DDIM(4, clip=1.0))
    (drawn,) = generate(Engine(m.network, m.vocabulary, cache_slots=3), [request])
    prompt = Document(drawn.segments[:2])
    (again,) = generate(Engine(m.network, m.vocabulary, cache_slots=3), [Request(prompt, max_items=0, max_tokens=12)])
    assert drawn.segments[2:] and [s.content for s in drawn.segments[2:]] == [s.content for s in again.segments[2:]]  # type: ignore[union-attr]


def test_the_rule_is_what_it_says() -> None:
    """Every pair of a row, against the sentence written out."""
    docs = torch.tensor([[0, 0, 0, 0, 0, 1, 1, 1, 1, -1]])
    spans = torch.tensor([[-1, 0, 0, -1, 1, -1, 2, 2, -1, -1]])
    private = torch.tensor([[0, 1, 1, 0, 0, 0, 0, 0, 0, 0]]).bool()
    seen = visible(AttentionMetadata.of_rows(docs, spans, private), AttentionMetadata.of_rows(docs, spans, private))[0]
    for q in range(10):
        for k in range(10):
            same_document = docs[0, q] == docs[0, k]
            same_span = spans[0, q] == spans[0, k] and spans[0, q] >= 0
            assert seen[q, k] == bool(same_document and (same_span or (k <= q and not private[0, k]))), (q, k)


def test_a_form_that_lacks_an_option_is_refused(unchecked) -> None:
    place = AttentionMetadata.of_rows(torch.zeros(1, 4).long(), -torch.ones(1, 4).long(), torch.zeros(1, 4).bool())
    with pytest.raises(ValueError, match="no backward on cpu"):
        make_attention("flex", place, backward=True)
    with pytest.raises(ValueError, match="no cached keys"):
        make_attention("flex", place, place)
    with pytest.raises(ValueError, match="no cached keys"):
        make_attention("document", place, place)
    with pytest.raises(ValueError, match="no attention backend"):
        make_attention("flash", place)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("shape", [(1, 1), (1, 4), (3, 5), (2, 16), (4, 9)])
def test_few_rows_the_other_way_round_are_the_same(shape: tuple[int, int], dtype: torch.dtype) -> None:
    layer = Linear(24, 40, bias=shape[0] > 1).to(dtype)
    x = torch.randn(*shape, 24, dtype=dtype)
    with torch.no_grad():
        difference = (layer(x) - torch.nn.functional.linear(x, layer.weight, layer.bias)).abs().max()
    assert difference < (1e-12 if dtype == torch.float64 else 1e-5)


def test_grouped_queries_are_repeated_keys() -> None:
    q, k, v = torch.randn(2, 4, 5, 8).double(), torch.randn(2, 2, 5, 8).double(), torch.randn(2, 2, 5, 8).double()
    mask = torch.ones(2, 1, 5, 5).bool().tril()
    whole = dense(q, k.repeat_interleave(2, 1), v.repeat_interleave(2, 1), mask)
    assert torch.equal(dense(q, k, v, mask), whole)


def test_rescaled_guidance_leaves_the_moments_of_an_unguided_step_and_neighbours_alone() -> None:
    m = model(double=True)

    def drawn(*guidances: Guidance) -> list[torch.Tensor]:
        a_step = {"seed": 1, "force": "image", "max_tokens": 0, "sampler": Euler(1)}
        asked = [Request(Document((Text("a cat"),)), guidance=g, **a_step) for g in guidances]  # type: ignore[arg-type]
        return [d.media[-1].tensor() for d in generate(Engine(m.network, m.vocabulary, cache_slots=16), asked)]

    plain, guided, moved, beside = drawn(Guidance(1.0), Guidance(4.0), Guidance(4.0, rescale=1.0), Guidance(4.0))
    torch.testing.assert_close(moved.mean((1, 2)), plain.mean((1, 2)))
    torch.testing.assert_close(moved.std((1, 2)), plain.std((1, 2)))
    assert not torch.allclose(guided.std((1, 2)), plain.std((1, 2)), rtol=1e-3) and not torch.allclose(moved, plain, rtol=1e-3)
    assert torch.equal(guided, beside) and torch.equal(guided, drawn(Guidance(4.0))[0])
