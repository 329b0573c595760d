# ruff: noqa: C408
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false
"""What is known to be wrong in the two public implementations, each shown to be right here. docs/compat.md has the whole list."""

import copy
import gc
import weakref

import pytest
import torch
from torch import nn, randn

from small import IMAGE, model, picture
from transfusion import DDPM, Document, Engine, Euler, Guidance, Media, Request, Text
from transfusion.compat import Transfusion
from transfusion.data.tokenize import Coordinates, tokenize_document
from transfusion.diffusion.schedule import Cosine, LinearInterpolant
from transfusion.generate.engine import generate
from transfusion.model.auxiliary import AuxiliaryLossConfig


@pytest.fixture(autouse=True)
def _unchecked(unchecked) -> None:
    """As a user runs it."""


WORDS = dict(num_text_tokens=16, dim_latent=8, modality_default_shape=(4,), transformer=dict(dim=32, depth=2, dim_head=16))


def ids(*numbers: int) -> torch.Tensor:
    return torch.tensor(numbers)


def test_prompts_are_tokenised_as_in_training() -> None:
    m = model(IMAGE)
    parts = (Text("see "), Media(picture(1)), Text(" and "))
    whole = tokenize_document(Document((*parts, Media(picture(2)))), m.vocabulary, Coordinates())
    prompt = tokenize_document(Document(parts), m.vocabulary, Coordinates(), add_eos=False)
    assert (whole.tokens[: len(prompt)] == prompt.tokens).all() and (whole.positions[: len(prompt)] == prompt.positions).all()


def test_prompt_images_are_clean_while_text_is_generated() -> None:
    """A greedy caption does not depend on the seed."""
    m = model(IMAGE)
    written = {m.generate([[picture(1)]], seed=s, max_items=0, max_tokens=12, guidance=Guidance(1.0))[0].text for s in range(6)}
    assert len(written) == 1


@pytest.mark.slow
def test_the_flow_loss_does_not_grow_with_channels() -> None:
    losses = []
    for channels in (8, 64):
        torch.manual_seed(0)
        m = Transfusion(**(WORDS | {"dim_latent": channels})).eval()
        losses.append(
            torch.stack([m([[ids(1), randn(4, channels)]], seed=s, return_breakdown=True)[1].flow[0] for s in range(40)]).mean()
        )
    assert 0.7 < losses[1] / losses[0] < 1.4


def test_the_text_loss_does_not_depend_on_the_number_of_slots() -> None:
    torch.manual_seed(0)
    m = Transfusion(**WORDS).eval()
    text = torch.randint(0, 16, (20,))
    losses = [m([[text, randn(n, 8)]], seed=1, return_breakdown=True)[1].text for n in (4, 64, 512)]
    # one target more than the text's: the size, which is what differs
    assert max(losses) - min(losses) < 0.2
    alone = m([[text]], return_breakdown=True)[1].text
    assert abs(alone - losses[0]) < 0.7


def test_lists_and_latents_alone_have_equal_losses() -> None:
    """Also for clean-data prediction, in the space of the latents."""
    for clean in (True, False):
        m = Transfusion(**WORDS, model_output_clean=clean).double().eval()
        x = randn(3, 4, 8)
        alone = m(x, noise_levels=[[0.4]] * 3, seed=1, return_breakdown=True)[1].flow[0]
        lists = m([[item] for item in x], noise_levels=[[0.4]] * 3, seed=1, return_breakdown=True)[1].flow[0]
        assert torch.equal(alone, lists)


def test_slots_have_positions() -> None:
    """Exchanging two slots of an item changes more than their order."""
    m = Transfusion(**WORDS).eval()
    with torch.no_grad():
        for p in m.network.parameters():
            p.copy_(torch.randn(p.shape) * 0.3 + (p.ndim == 1))
    x = randn(1, 4, 8)
    order = torch.tensor([2, 1, 0, 3])
    predicted = m(x, noise_levels=[[0.5]], noised=True)
    other = m(x[:, order], noise_levels=[[0.5]], noised=True)
    assert (predicted[:, order] - other).abs().max() > 1e-2


def test_equal_seeds_give_equal_losses_at_every_call() -> None:
    m = Transfusion(**WORDS)
    batch = [[ids(1, 2), randn(4, 8)], [randn(6, 8), ids(3)]]
    losses = set()
    for _ in range(3):
        torch.manual_seed(3)
        losses.add(float(m(batch).detach()))
    assert len(losses) == 1


def test_max_length_is_exceeded_only_to_finish_an_item() -> None:
    """It counts what is written: text, control tokens and slots, and not the prompt."""
    m = Transfusion(**WORDS)
    m.network.head.prior.zero_()  # so that items are begun often
    finished = 0
    for length in (1, 2, 7, 20):
        for seed in range(6):
            sample = m.sample(ids(*[1] * 9), max_length=length, modality_steps=1, seed=seed, text_temperature=3.0)
            used = sum(len(e) if isinstance(e, torch.Tensor) else len(e.tensor) for e in sample) - 10
            last = len(sample[-2].tensor) + 1 + 2 if len(sample) > 1 and len(sample[-1]) == 1 else 0  # slots, END, size, BEGIN
            assert used - last <= length
            finished += used > length
    assert finished


def test_a_deleted_model_is_freed() -> None:
    m = Transfusion(**WORDS)
    m([[ids(1), randn(4, 8)]]).backward()
    m.sample(max_length=12, modality_steps=1)
    seen = weakref.ref(m)
    del m
    gc.collect()
    assert seen() is None


def test_models_can_be_deepcopied_and_pickled(tmp_path) -> None:
    m = Transfusion(**WORDS).eval()
    batch = [[ids(1), randn(4, 8)]]
    torch.save(m, tmp_path / "model.pt")
    for other in (copy.deepcopy(m), torch.load(tmp_path / "model.pt", weights_only=False)):
        assert torch.equal(other(batch, seed=1), m(batch, seed=1))


def test_bf16_weights_train_and_sample() -> None:
    m = Transfusion(**WORDS).bfloat16()
    loss = m([[ids(1), randn(4, 8)]])
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(m.sample(force_modality_at_start=0, max_length=12, modality_steps=2)[1].tensor).all()


def test_a_batch_takes_one_forward_of_each_layer() -> None:
    """No loop over documents or items: 24 documents, one call of every matrix."""
    m = Transfusion(**WORDS)
    calls = []
    m.network.transformer.blocks[0].attention.qkv.register_forward_hook(lambda *_: calls.append(1))
    m([[ids(1, 2), randn(4, 8)] for _ in range(24)])
    assert len(calls) == 1


def test_prompts_of_unequal_length_generate_as_they_do_alone() -> None:
    """Prompts that differ in length are answered as they are alone."""
    m = model(IMAGE, double=True)
    prompts = [Document((Text("a"),)), Document((Text("a much longer one"), Media(picture(1)), Text("so")))]
    requests = [Request(p, max_tokens=8, max_items=0, sampler=Euler(2)) for p in prompts]
    many = generate(Engine(m.network, m.vocabulary, cache_slots=6), requests)
    for request, together in zip(requests, many, strict=True):
        (alone,) = generate(Engine(m.network, m.vocabulary, cache_slots=3), [request])
        assert alone.text == together.text


# ---- what is sampled ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("temperature", "min_p"), [(0.0, 0.1), (1.0, 0.0), (5.0, 0.0), (1.0, 1.0)])
def test_generated_text_has_text_ids_only(temperature: float, min_p: float) -> None:
    """Untrained, with 16 ids of text among 2069: no special id in what is written, and as many ids as were asked for."""
    m = Transfusion(**WORDS)
    written = m.generate_text_only(torch.randint(0, 16, (4, 3)), 53, temperature, min_p, seed=1)
    assert written.shape == (4, 50) and written.min() >= 0 and written.max() < 16
    for sample in m.sample_many([None, ids(1)], 40, temperature, min_p, modality_steps=1, seed=1):
        text = torch.cat([e for e in sample if isinstance(e, torch.Tensor)])
        assert set((text[text >= 16]).tolist()) <= {m.sos_id, m.eos_id, *m.som_ids, *m.eom_ids, *range(m.eom_ids[0] + 1, 2069)}


@pytest.mark.parametrize("schedule", [LinearInterpolant(), Cosine()], ids=lambda s: s.kind)
def test_the_last_step_adds_no_noise(schedule) -> None:
    x, clean = randn(5, 3), randn(5, 3)

    def predict(x: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return clean, randn(5, 3)

    t, s = torch.full((5,), 0.004), torch.zeros(5)
    stepped, _ = DDPM().step(schedule, predict, lambda: torch.full((5, 3), 1e3), x, t, s)
    assert torch.allclose(stepped, clean, atol=1e-4)


# ---- losses -------------------------------------------------------------------------------------------------------------


def spread(m: Transfusion) -> Transfusion:
    """The model, its weights moved a little at random, so that none is zero."""
    with torch.no_grad():
        for p in m.network.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return m


@pytest.mark.parametrize("alone", [True, False], ids=["latents alone", "lists"])
def test_consistency_has_a_gradient_and_is_zero_against_equal_weights(alone: bool) -> None:
    """The average sees the same noise: with equal weights and no difference of times it agrees wholly."""
    batch = randn(3, 4, 8) if alone else [[ids(1, 2), randn(4, 8)], [randn(6, 8)]]
    for delta, zero in ((0.0, True), (0.1, False)):
        m = spread(
            Transfusion(**WORDS, velocity_consistency_loss_weight=1.0, velocity_consistency_delta_time=delta, prob_uncond=0.0)
        )
        parts = m(batch, velocity_consistency_ema_model=m.create_ema(), return_breakdown=True, seed=1)[1]
        if zero:
            assert parts.consistency.abs() < 1e-10
            continue
        parts.consistency.backward()
        assert parts.consistency > 1e-5
        weights = m.network.transformer.blocks[0].attention.qkv.weight
        assert weights.grad is not None and weights.grad.abs().max() > 0


@pytest.mark.parametrize("alone", [True, False], ids=["latents alone", "lists"])
def test_clean_data_is_predicted_in_latent_space(alone: bool) -> None:
    """The loss is the error of the predicted latents, over t squared: the error of the velocity."""
    m = spread(Transfusion(**WORDS, model_output_clean=True)).double().eval()
    x, t = randn(3, 4, 8).double(), 0.4
    batch = x if alone else [[item] for item in x]
    _, parts, predicted = m(batch, noise_levels=[[t]] * 3, seed=2, return_breakdown=True, return_predictions=True)
    predicted = predicted if alone else torch.stack([item[0] for item in predicted])
    assert torch.allclose(parts.flow[0], ((predicted - x) / t).square().mean())


def test_representation_loss_uses_equal_noise_and_leaves_encoder_dropout_unchanged() -> None:
    """Latents alone are taken too; the encoder's own dropout stays what it was, and is off; parameters() is a module's."""
    encoder = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.3))
    m = spread(
        Transfusion(**WORDS, auxiliary=AuxiliaryLossConfig(representation=1.0, mask_ratio=0.0), modality_encoder=encoder)
    )
    ema = m.create_ema()
    for batch in (randn(3, 4, 8), [[ids(1, 2), randn(4, 8)]]):
        parts = m(batch, teacher=ema, return_breakdown=True, seed=1)[1]
        assert parts.representation > 0
        again = m(batch, teacher=ema, return_breakdown=True, seed=1)[1]
        assert torch.equal(parts.representation, again.representation)
    assert encoder[1].p == 0.3 and encoder[1].training  # as its owner left it; within the model it runs in eval mode
    assert list(m.parameters(recurse=False)) == []


def test_items_before_text_get_all_noise_and_are_read_clean(monkeypatch: pytest.MonkeyPatch) -> None:
    """An item that text follows gets the noise that the last one gets, and in a share of the documents a clean copy for it."""
    m = Transfusion(**WORDS, prob_uncond=0.0).train()
    batch = [[randn(4, 8), ids(1, 2), randn(4, 8)]]
    drawn = torch.tensor([m(batch, return_noise_levels=True, seed=s)[1][0] for s in range(60)])
    assert drawn.shape == (60, 2) and (drawn.amax(0) > 0.85).all() and (drawn[:, 0] != drawn[:, 1]).all()
    copies, tokenize = [], m.tokenize

    def counted(*args, **options):
        found = tokenize(*args, **options)
        copies.append(len(found[0].items))
        return found

    monkeypatch.setattr(m, "tokenize", counted)
    for s in range(60):
        m(batch, seed=s)
    assert set(copies) == {2, 3}


@pytest.mark.slow
@pytest.mark.parametrize("where", ["first", "middle", "last"])
def test_an_item_is_drawn_wherever_it_stands(where: str) -> None:
    """A short training on one item of the label's kind, before, between or behind other things: the drawn one is right."""
    torch.manual_seed(0)
    items = {label: torch.randn(4, 8) for label in (1, 2)}
    behind = {"first": [ids(9)], "middle": [ids(5), items[1] * 0.5, ids(9)], "last": []}[where]
    m = Transfusion(**WORDS, prob_uncond=0.0).train()
    optimizer = torch.optim.AdamW(m.parameters(), lr=3e-3)
    for step in range(150):
        m([[ids(label), items[label], *behind] for label in (1, 2)] * 4, seed=step).backward()
        optimizer.step()
        optimizer.zero_grad()
    for label, item in items.items():
        drawn = m.eval().sample_many([[ids(label)]] * 4, max_length=12, force_modality_at_start=0, seed=label)
        errors = [next(e.tensor for e in one if not isinstance(e, torch.Tensor)).sub(item).square().mean() for one in drawn]
        assert torch.stack(errors).mean() < 0.1 * item.square().mean()


def test_the_time_embedding_has_the_models_width() -> None:
    """Also where a patch has four numbers."""
    m = Transfusion(**(WORDS | {"dim_latent": 4}))
    assert m.network.patcher_of(0).time_embedding.second.weight.shape == (32, 32)
