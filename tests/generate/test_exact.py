"""What a document's neighbours change: nothing with `exact`, bit for bit; without it nothing but rounding in fp32."""

import pytest
import torch

from small import FREE, IMAGE, SOUND, model, picture
from transfusion.api import Transfusion
from transfusion.codec.unet_patcher import UNetPatcherConfig
from transfusion.data.document import Document, Media, Text
from transfusion.diffusion.guidance import Guidance
from transfusion.diffusion.sampler import DDIM, DDPM, Euler, Heun
from transfusion.generate.engine import Engine, generate
from transfusion.generate.logits import Greedy, Sample
from transfusion.generate.state import Done, Request
from transfusion.nn.moe import MoEConfig


def mixed(count: int) -> list[Request]:
    """Prompts of text and items of many lengths; text and items are written, forced or not, under all kinds of samplers."""
    found = []
    for i in range(count):
        text, item = Text("a few words " * (i % 7) + "x" * (i % 5)), Media(picture(i))
        prompt = [(text,), (item, text), (text, item), ()][i % 4]
        found.append(
            Request(
                Document(prompt),
                seed=i,
                max_tokens=(0, 3, 9, 24)[i % 11 % 4],
                max_items=(1, 2, 0)[i % 3],
                force="image" if i % 3 == 0 else None,
                decoding=Sample(2.0) if i % 2 else Greedy(),
                sampler=(Euler(3), Heun(2), DDIM(3, eta=0.5), DDPM(2), Euler(2))[i % 5],
                guidance=(Guidance(3.0), Guidance(1.0), Guidance(2.0, 1.5))[i % 7 % 3],
            )
        )
    return found


def joined(engine: Engine, requests: list[Request]) -> list[Document]:
    """Documents that join one after the other, in an order of their own."""
    order = sorted(range(len(requests)), key=lambda i: i * 37 % len(requests))
    ids, found = {}, {}
    while order or engine.busy:
        for _ in range(min(3, len(order))):
            index = order.pop()
            ids[engine.add(requests[index])] = index
        for event in engine.step():
            if isinstance(event, Done):
                found[ids[event.id]] = event.document
    return [found[index] for index in range(len(requests))]


def differing(documents: list[Document], others: list[Document]) -> list[int]:
    def equal(one: Document, other: Document) -> bool:
        pairs = list(zip(one.segments, other.segments, strict=False))
        return len(one.segments) == len(other.segments) and all(
            torch.equal(a.tensor(), b.tensor()) if isinstance(a, Media) and isinstance(b, Media) else a == b for a, b in pairs
        )

    return [i for i, pair in enumerate(zip(documents, others, strict=True)) if not equal(*pair)]


def alone_and_together(
    m: Transfusion, requests: list[Request], dtype: torch.dtype, slots: int = 48, *, exact: bool = True
) -> tuple[list[int], list[int]]:
    """The documents that differ from those alone: together, and joining in another order."""

    def engine(slots: int) -> Engine:
        return Engine(m.network, m.vocabulary, cache_slots=slots, dtype=dtype, exact=exact)

    alone = [generate(engine(3), [request])[0] for request in requests]
    together = generate(engine(slots), requests)
    return differing(alone, together), differing(alone, joined(engine(slots // 2), requests))


@pytest.mark.slow
def test_a_hundred_and_twenty_mixed_documents_in_bf16_are_those_alone_bit_for_bit() -> None:
    assert alone_and_together(model(IMAGE, SOUND), mixed(120), torch.bfloat16) == ([], [])


def test_without_exact_documents_in_bf16_depend_on_their_neighbours() -> None:
    """Which is what `exact` is for: were this to hold no more, it could go."""
    assert alone_and_together(model(IMAGE), mixed(24), torch.bfloat16, exact=False)[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "dtype"),
    [
        ({}, torch.bfloat16),
        ({}, torch.float32),
        ({"moe": MoEConfig(num_experts=4)}, torch.bfloat16),
        ({"modality_weights": "all", "adaln": True}, torch.bfloat16),
        ({"patcher": UNetPatcherConfig(channels=8)}, torch.bfloat16),
    ],
    ids=["bf16", "fp32", "experts", "modality weights", "unet"],
)
def test_exact_documents_are_those_alone_bit_for_bit(options: dict, dtype: torch.dtype) -> None:
    m = model(*((IMAGE,) if "patcher" in options else (FREE, SOUND)), **options)
    assert alone_and_together(m, mixed(12), dtype, 24) == ([], [])


def test_a_dozen_documents_in_bf16_are_those_alone_bit_for_bit() -> None:
    assert alone_and_together(model(IMAGE), mixed(12), torch.bfloat16, 24) == ([], [])


def test_exact_passes_of_single_tokens_have_one_shape() -> None:
    m = model()
    engine = Engine(m.network, m.vocabulary, cache_slots=40, exact=True)
    shapes: set[int] = set()
    ids = [engine.add(Request(Document((Text("a"),)), i, 5, 0, allow_eos=False, guidance=Guidance(1.0))) for i in range(40)]
    engine.step()  # prompts
    m.network.transformer.register_forward_pre_hook(lambda _, args: shapes.add(args[0].shape[1]))
    for id in ids[:17]:
        engine.cancel(id)
    assert sum(isinstance(event, Done) for event in engine.run()) == 23
    assert shapes == {32}


def test_items_whose_samplers_differ_in_their_times_alone_share_passes() -> None:
    """And come out as they do alone; those of another kind have passes of their own."""
    m = model(double=True)
    asked = [
        Request(Document((Text("a"),)), i, 0, 1, force="image", sampler=sampler, guidance=Guidance(1.0))
        for i, sampler in enumerate((Euler(3), Euler(5, shift=3.0), Euler(2), DDIM(3), Heun(3), Heun(2)))
    ]
    alone = [generate(Engine(m.network, m.vocabulary, cache_slots=1), [request])[0] for request in asked]
    engine, calls = Engine(m.network, m.vocabulary, cache_slots=6), []
    denoise = engine.runner.denoise
    engine.runner.denoise = lambda chunks: (calls.append(len(chunks)), denoise(chunks))[1]  # type: ignore[method-assign]
    ids = {engine.add(request): i for i, request in enumerate(asked)}
    first = engine.step()
    assert calls == [3, 1, 2, 2] and len(first) == 6
    for event in engine.run():
        if isinstance(event, Done):
            assert (event.document.media[0].tensor() - alone[ids[event.id]].media[0].tensor()).abs().max() < 1e-9


def test_exact_is_what_the_engine_computes_otherwise() -> None:
    """The same documents but for rounding."""
    m = model(double=True)

    def drawn(exact: bool) -> list[Document]:
        engine = Engine(m.network, m.vocabulary, cache_slots=24, exact=exact)
        return generate(engine, [r for r in mixed(24) if r.force])

    for one, other in zip(drawn(True), drawn(False), strict=True):
        for a, b in zip(one.segments, other.segments, strict=True):
            same = (a.tensor() - b.tensor()).abs().max() < 1e-9 if isinstance(a, Media) and isinstance(b, Media) else a == b
            assert same
