"""What must hold whatever is chosen: random options of the model on random documents, by number of the draw, so that a failure
repeats. More draws: TRANSFUSION_DRAWS=200.

Held: the influence of every token on every other is the attention rule; targets stay in their document and off slots; packed
weighted losses are the sum of their parts, in values and gradients; a cached step of denoising is a full pass; samplers bring
noise to a known Gaussian.
"""

import os
import random
from itertools import pairwise
from typing import Any

import pytest
import torch
from test_options import FACTORS, HEADS, forbidden

from small import FREE, IMAGE, SOUND, VECTOR, model, picture
from test_equalities import cached_is_full, entries, numbers, rows, with_form
from transfusion.api import Transfusion
from transfusion.codec.patchers import LinearPatcherConfig, UNetPatcherConfig
from transfusion.data.document import CLEAN, Document, Media, Segment, Text, given
from transfusion.data.tokenize import IGNORE, Coordinates, tokenize_document
from transfusion.diffusion.process import Diffusion
from transfusion.diffusion.sampler import DDIM, DDPM, Euler, Heun, init_noise
from transfusion.diffusion.schedule import Cosine, LinearBetas, LinearInterpolant
from transfusion.diffusion.times import LogitNormal, Uniform
from transfusion.generate.runner import Chunk, ChunkItem, ModelRunner
from transfusion.nn.attention import AttentionMetadata
from transfusion.nn.config import AttentionConfig

COORDINATES = [Coordinates("grid"), Coordinates("reset", axes=3), Coordinates("raster", axes=1), Coordinates("shared", axes=1)]
DRAWS = range(int(os.environ.get("TRANSFUSION_DRAWS", "12")))


def some_diffusion(rng: random.Random) -> Diffusion:
    schedule = rng.choice([LinearInterpolant(), Cosine(), LinearBetas()])
    kinds: list[Any] = ["x0", "v", "velocity"] + ["eps"] * (schedule != LinearInterpolant())
    times = rng.choice([Uniform(), Uniform(1000), LogitNormal(), LogitNormal(0.0, 1.0, shift=2.0)])
    return Diffusion(schedule, rng.choice(kinds), rng.choice(kinds), times)


def some_model(rng: random.Random) -> Transfusion:
    """In float64, its weights random everywhere."""
    levels = {factor: rng.choice(list(named)) for factor, named in FACTORS.items() if rng.random() < 0.35}
    if forbidden(levels):
        del levels["long_skips"]
    values = {factor: FACTORS[factor][level] for factor, level in levels.items()}
    linear = LinearPatcherConfig(time=values.get("adaln", rng.choice(["width", "patch"])))
    patcher = linear if rng.random() < 0.7 or linear.time == "none" else UNetPatcherConfig(time_features=16)
    transformer = {k: v for k, v in values.items() if k not in HEADS | {"axial", "adaln"}}
    transformer |= {"adaln": "adaln" in values, "attention": AttentionConfig(**{k: values[k] for k in HEADS & values.keys()})}
    found = model(
        *rng.choice([(IMAGE, SOUND), (FREE, VECTOR), (IMAGE, SOUND, VECTOR)]),
        double=True,
        depth=3,
        coordinates=rng.choice(COORDINATES),
        diffusion=some_diffusion(rng),
        patcher=patcher,
        axial="axial" in values,
        **transformer,
    )
    forms = ["dense", "document"] + ["sdpa"] * ("soft_cap" not in values)
    with_form(found, rng.choice(forms))
    return found


def some_document(m: Transfusion, rng: random.Random) -> Document:
    """Text and items in any order: weights, masks, given noise and times, private and dual items."""
    segments: list[Segment] = []
    for _ in range(rng.randint(1, 4)):
        if rng.random() < 0.5:
            ids = tuple(rng.randrange(97, 123) for _ in range(rng.randint(1, 4)))
            weight = rng.choice([1.0, 0.0, 0.5, tuple(rng.choice([0.0, 1.0, 2.5]) for _ in ids)])
            segments.append(Text(ids, loss=rng.random() < 0.9, weight=weight))
            continue
        modality = rng.choice(m.config.model.modalities)
        size = rng.choice([modality.shape, (2, 4)]) if modality == FREE else modality.shape
        values = torch.randn(modality.channels, *size, generator=torch.Generator().manual_seed(rng.randrange(1 << 30)))
        use, private = rng.choice([None, None, "draw", "read", "both", "context"]), rng.random() < 0.25
        use = "draw" if private and use in ("both", "read") else use
        noised = use in ("draw", "both")
        free = use is None or noised
        segments.append(
            Media(
                values,
                modality.name,
                use=use,  # type: ignore[arg-type]
                times=rng.choice([(0.0, 1.0), (0.2, 0.6), (0.5, 0.5), (0.0, 1.0) if noised else CLEAN]) if free else (0.0, 1.0),
                weight=rng.choice([1.0, 1.0, 0.3, 0.3 if noised else 0.0]),
                private=private,
                noise=torch.randn_like(values) if free and rng.random() < 0.2 else None,
                mask=torch.rand(size).round() + 0.5 if size and rng.random() < 0.2 else None,
            )
        )
    return Document(tuple(segments), language_loss=rng.random() < 0.9)


def drawn(seed: int) -> tuple[random.Random, Transfusion, list[Document]]:
    rng = random.Random(seed)
    m = some_model(rng)
    return rng, m, [some_document(m, rng) for _ in range(3)]


@pytest.mark.parametrize("seed", DRAWS)
def test_influence_is_the_attention_rule(seed: int, unchecked) -> None:
    """Of every token of packed documents on every other, by gradients: exactly 0 where the rule hides it, else not 0.

    The row is repeated, so that one backward pass has each token's output of its own copy.
    """
    _, m, docs = drawn(seed)
    packed = entries(m, docs)
    length = sum(map(len, packed)) + 2
    copies = rows(m, [packed] * length, length)
    metadata = AttentionMetadata.of_rows(copies.documents, copies.spans, copies.private)
    entered: list[torch.Tensor] = []

    def leaf(module: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        entered.append(arguments[0].detach().requires_grad_())
        return (entered[0], *arguments[1:])

    m.network.transformer.register_forward_pre_hook(leaf)
    with torch.no_grad():
        media = m.network.add_noise(copies)
    h, _ = m.network.hidden(copies.tokens, copies.positions, media, metadata=metadata)
    real = copies.documents[0] >= 0
    own = h.unflatten(0, (length, length)).diagonal().T[real]  # token i of copy i; what stands under padding is of no use
    (gradient,) = torch.autograd.grad((own @ torch.randn(own.shape[1], dtype=own.dtype)).sum(), entered[0])
    document, span, private, at = copies.documents[0], copies.spans[0], copies.private[0], torch.arange(length)
    beside = (span[:, None] == span) & (span >= 0)  # the rule again, [query, key], from the words of docs/architecture.md
    expected = (document[:, None] == document) & (beside | ((at <= at[:, None]) & ~private))
    assert torch.equal((gradient.abs().amax(-1) > 0)[real], expected[real])
    assert not expected[real].all() and expected[real].any(1).all()


@pytest.mark.parametrize("seed", DRAWS)
def test_targets_stay_in_their_document_and_off_slots(seed: int) -> None:
    _, m, docs = drawn(seed)
    batch = rows(m, [entries(m, docs), entries(m, docs[::-1])], sum(len(entry) for entry in entries(m, docs)) + 3)
    row, at = (batch.targets != IGNORE).nonzero(as_tuple=True)
    assert torch.equal(batch.loss_index, row * batch.tokens.shape[1] + at)
    assert torch.equal(batch.targets[row, at], batch.tokens[row, at + 1])
    assert torch.equal(batch.documents[row, at], batch.documents[row, at + 1]) and (batch.documents[row, at] >= 0).all()
    assert (batch.spans[row, at] < 0).all() and (batch.spans[row, at + 1] < 0).all()
    ends = {m.vocabulary.end(modality.name) for modality in m.config.model.modalities}
    assert not ends & set(batch.targets[row, at].tolist())


@pytest.mark.parametrize("seed", DRAWS)
def test_parts_are_the_whole(seed: int) -> None:
    """Packed with padding, in two rows or a batch each: sums, counts and gradients. Measured: 1e-13."""
    _, m, docs = drawn(seed)
    found = entries(m, docs)
    whole = m.network(rows(m, [found[:2], found[2:]], len(found[0]) + len(found[1]) + len(found[2])))
    parts = [m.network(rows(m, [[entry]], len(entry))) for entry in found]
    assert torch.allclose(numbers(whole), sum(map(numbers, parts), torch.zeros(4)), rtol=1e-9, atol=1e-9)
    texts, items = max(int(whole.text.count), 1), max(int(whole.media.count), 1)
    weights = [p for n, p in m.network.named_parameters() if "router" not in n]
    gradients = [
        torch.autograd.grad(total, weights, allow_unused=True)
        for total in (whole.total(5.0), sum((part.over(5.0, texts, items) for part in parts), torch.zeros(())))
        if total.requires_grad
    ]
    for one, other in zip(*gradients, strict=True):
        one, other = (torch.zeros(()) if g is None else g for g in (one, other))
        assert (one - other).abs().max() <= 1e-9 * (1 + one.abs().max())


@pytest.mark.parametrize("seed", DRAWS)
def test_a_cached_step_is_a_full_pass(seed: int) -> None:
    """Piece by piece; and one denoising step of an item at its end. Measured: 1e-12."""
    rng, m, docs = drawn(seed)
    cached_is_full(m, docs[:1])
    modality = rng.choice(m.config.model.modalities)
    values, t = picture(seed, modality.channels, *modality.shape), rng.uniform(0.1, 1.0)
    before = [given(s) if isinstance(s, Media) else s for s in docs[1].segments]
    whole = Document((*before, Media(values, modality.name, times=(t, t))))
    (entry,) = entries(m, [whole])
    batch, span = rows(m, [[entry]], len(entry)), entry.items[-1]
    runner = ModelRunner(m.network, m.vocabulary, cache_slots=1, capacity=160, dtype=torch.float64)
    slot, prompt = runner.cache.allocate(), tokenize_document(whole, m.vocabulary, m.config.model.coordinates)
    with torch.no_grad():
        media = m.network.add_noise(batch)
        metadata = AttentionMetadata.of_rows(batch.documents, batch.spans, batch.private)
        predictions = m.network.predict(*_hidden(m, batch, media, metadata))
        (group,) = [i for i, g in enumerate(media) if (g.slots == span.start).any()]
        at = int((media[group].slots[:, 0] == span.start).nonzero())
        runner.extend([Chunk.prefix(slot, prompt, span.start)])
        piece = slice(span.start, span.start + media[group].slots.shape[1])
        item = ChunkItem(span.modality, span.grid, media[group].latents[at], float(media[group].times[at]), 0)
        chunk = Chunk(slot, prompt.tokens[piece], prompt.positions[piece], prompt.spans[piece], prompt.private[piece], (item,))
        for _ in range(2):  # a step leaves nothing behind
            assert (runner.denoise([chunk])[0] - predictions[group][at]).abs().max() < 1e-9


def _hidden(m: Transfusion, batch: Any, media: Any, metadata: AttentionMetadata) -> tuple[torch.Tensor, Any, Any]:
    h, skips = m.network.hidden(batch.tokens, batch.positions, media, metadata=metadata)
    return h, media, skips


@pytest.mark.parametrize("seed", DRAWS)
def test_samplers_bring_noise_to_a_known_gaussian(seed: int) -> None:
    """Whose best answer is known, of the kind that is predicted: mean and deviation within 0.03 (4 standard errors of the draw)."""
    rng = random.Random(seed)
    diffusion = some_diffusion(rng)
    schedule, mean, std = diffusion.schedule, rng.uniform(-1, 1), rng.uniform(0.2, 0.6)
    shift = rng.choice([1.0, 1.5])
    sampler = rng.choice([Euler(150, shift), Heun(60, shift), DDIM(100, shift, eta=rng.choice([0.0, 0.7])), DDPM(200, shift)])

    def predict(x: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        a, b = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
        x0 = mean + a * std**2 / (a**2 * std**2 + b**2) * (x - a * mean)
        answer = diffusion.target(diffusion.prediction, x0, (x - a * x0) / b.clamp_min(1e-9), t)
        return diffusion.to_x0_eps(diffusion.prediction, answer, x, t)

    generator, count = torch.Generator().manual_seed(seed), 6_000
    noise = lambda: torch.randn(count, 1, generator=generator, dtype=torch.float64)  # noqa: E731
    x = init_noise(schedule, noise())
    for now, later in pairwise(sampler.times()):
        t, s = (torch.full((count,), time, dtype=torch.float64) for time in (now, later))
        x, _ = sampler.step(schedule, predict, noise, x, t, s)
    assert x.mean().item() == pytest.approx(mean, abs=0.03) and x.std().item() == pytest.approx(std, abs=0.03)
