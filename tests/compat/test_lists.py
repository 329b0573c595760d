# ruff: noqa: C408
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false
"""Lists of tensors train a model, agree with Documents, and come back from sampling and from a model folder."""

from dataclasses import replace

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn, randn

from transfusion import Document, Media, Text, api
from transfusion.compat import Item, Transfusion, print_modality_sample
from transfusion.diffusion.process import Diffusion
from transfusion.diffusion.sampler import DDPM
from transfusion.diffusion.schedule import Cosine
from transfusion.diffusion.times import Uniform


@pytest.fixture(autouse=True)
def _unchecked(unchecked) -> None:
    """As a user runs it: shapes are checked by the code itself."""


def small(**words) -> Transfusion:
    """A small model whose every weight is random."""
    torch.manual_seed(1)
    arguments = {
        "num_text_tokens": 20,
        "dim_latent": 6,
        "modality_default_shape": (4,),
        "transformer": dict(dim=32, depth=2, dim_head=8),
    }
    model = Transfusion(**(arguments | words))
    with torch.no_grad():
        for p in model.network.parameters():
            p.copy_(torch.randn(p.shape) * (0.3 if p.ndim > 1 else 0.5) + (1.0 if p.ndim == 1 else 0.0))
    return model


def ids(*numbers: int) -> Tensor:
    return torch.tensor(numbers)


def trained(model: Transfusion, batch, steps: int, rate: float = 3e-3, **options) -> tuple[float, float]:
    """Loss on a batch, with noise of a fixed seed, before and after training on it."""

    def now() -> float:
        model.eval()
        with torch.no_grad():
            loss = torch.stack([model(batch, seed=s, **options) for s in range(6)]).mean()
        model.train()
        return float(loss)

    before = now()
    optimizer = torch.optim.AdamW(model.parameters_without_encoder_decoder(), lr=rate)
    for _ in range(steps):
        model(batch, **options).backward()
        optimizer.step()
        optimizer.zero_grad()
    return before, now()


def fresh(**words) -> Transfusion:
    torch.manual_seed(0)
    arguments = {
        "num_text_tokens": 20,
        "dim_latent": 6,
        "modality_default_shape": (4,),
        "transformer": dict(dim=64, depth=2, dim_head=16),
    }
    return Transfusion(**(arguments | words))


@pytest.mark.slow
def test_training_on_lists_lowers_the_loss() -> None:
    batch = [[ids(1, 2, 3), randn(4, 6), ids(5, 6), randn(6, 6)], [ids(7, 8), randn(7, 6), ids(9), randn(2, 6), ids(4)]]
    before, after = trained(fresh(prob_uncond=0.0), batch, 50)
    assert after < 0.5 * before


@pytest.mark.slow
def test_training_on_text_alone_memorises_and_continues_it() -> None:
    model, text = fresh(), torch.arange(16).repeat(2, 3)[:, :40]
    before, after = trained(model, text, 80)
    assert after < 0.2 * before
    out = model.generate_text_only(text[:, :4], 16, temperature=0)
    assert torch.equal(out, text[:, 4:16])


@pytest.mark.slow
def test_training_on_latents_alone_samples_both_modes() -> None:
    """Two kinds of vectors: what is drawn is near one of them, and half a unit off would be noise."""
    model = fresh(num_text_tokens=0)
    kinds = torch.stack([torch.full((4, 6), 0.8), torch.full((4, 6), -0.8)])

    def halfway() -> float:
        model.eval()
        with torch.no_grad():
            return float(torch.stack([model(kinds, noise_levels=[[0.5]] * 2, seed=s) for s in range(8)]).mean())

    before = halfway()
    trained(model, kinds, 250)
    assert halfway() < 0.3 * before
    drawn = model.generate_modality_only(24, modality_steps=16, seed=0)
    assert drawn.shape == (24, 4, 6)
    off = (drawn[:, None] - kinds[None]).abs().mean((2, 3)).min(1).values
    assert off.mean() < 0.3 and {int(d.mean() > 0) for d in drawn} == {0, 1}
    sample = model.sample(seed=1)
    assert isinstance(sample, Tensor) and sample.shape == (1, 4, 6)


@pytest.mark.slow
def test_sampled_digits_follow_their_label() -> None:
    """One id names the digit, the picture follows: zeros and ones, told apart by their middle."""
    data = load_digits(n_class=2)
    pictures = torch.tensor(data.images, dtype=torch.float32)[:, :, :, None] / 8 - 1
    labels = torch.tensor(data.target)
    model = fresh(
        dim_latent=1,
        modality_default_shape=(8, 8),
        modality_fixed_shape=True,
        num_text_tokens=2,
        transformer=dict(dim=64, depth=2, dim_head=16),
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    for step in range(120):
        chosen = torch.randint(len(labels), (8,), generator=torch.Generator().manual_seed(step))
        model([[labels[i : i + 1], pictures[i]] for i in chosen.tolist()]).backward()
        optimizer.step()
        optimizer.zero_grad()
    prompts = [ids(i % 2) for i in range(20)]
    drawn = model.sample_many(
        prompts, max_length=80, force_modality_at_start=0, modality_steps=12, seed=0, return_without_prompt=True
    )
    middle = torch.stack([sample[0].tensor[2:6, 3:5].mean() for sample in drawn])
    right = (middle > 0) == (torch.arange(20) % 2 == 1)
    assert right.float().mean() > 0.85


def pair_of_forms(model: Transfusion) -> tuple[list, list[Document]]:
    a, b, c = randn(4, 6), randn(7, 6), randn(2, 6)
    lists = [[ids(1, 2, 3), a, ids(5)], [b, ids(7, 8), (0, c)]]
    name = model.vocabulary.modalities[0].name
    documents = [
        Document((Text((1, 2, 3)), Media(a.T, name), Text((5,)))),
        Document((Media(b.T, name), Text((7, 8)), Media(c.T, name))),
    ]
    return lists, documents


def test_lists_and_documents_have_equal_losses() -> None:
    """Same times, same noise (by seed, and given), same loss."""
    model = small().double().eval()
    lists, documents = pair_of_forms(model)
    times, noise = [[0.3], [0.7, 0.2]], [[randn(4, 6)], [randn(7, 6), randn(2, 6)]]
    assert torch.equal(model(lists, seed=4), model.loss(documents, seed=4))
    flat = iter(t for row in times for t in row)
    noises = iter(n.T for row in noise for n in row)
    explicit = [
        replace(
            d,
            segments=tuple(
                replace(s, times=(t := next(flat), t), noise=next(noises)) if isinstance(s, Media) else s for s in d.segments
            ),
        )
        for d in documents
    ]
    assert torch.equal(model(lists, noise_levels=times, noise=noise, seed=4), model.loss(explicit, seed=9))
    assert model(lists, noise_levels=times, noise=noise, seed=4) != model(
        lists, noise_levels=[[0.3], [0.7, 0.3]], noise=noise, seed=4
    )


def test_the_breakdown_has_an_entry_per_modality() -> None:
    model = small(dim_latent=(6, 3), modality_default_shape=((4,), (2,)), flow_loss_weight=2.0, text_loss_weight=0.5).eval()
    batch = [[ids(1, 2), randn(4, 6), ids(3), (1, randn(5, 3))], [(1, randn(2, 3)), ids(4)]]
    loss, parts, times = model(batch, return_breakdown=True, return_noise_levels=True, seed=1)
    assert loss.shape == () and len(parts.flow) == 2 and [len(t) for t in times] == [2, 1]
    only = model([[ids(1), (1, randn(2, 3))]], return_breakdown=True, seed=1)[1]
    assert only.flow[0] == 0 and only.flow[1] > 0  # an index means its modality, also where another is absent
    items = 0.5 * (parts.text + 4.0 * (parts.flow[0] * 1 + parts.flow[1] * 2) / 3)
    assert torch.allclose(loss, items, rtol=1e-5) and torch.equal(loss, parts.total)


def test_loss_weights_of_texts_and_items() -> None:
    model = small().double().eval()
    a, b = randn(4, 6), randn(3, 6)

    def parts(batch):
        return model(
            batch, return_breakdown=True, seed=2, noise_levels=[[0.5, 0.6][: sum(1 for e in batch[0] if not _is_text(e))]]
        )[1]

    def _is_text(entry) -> bool:
        tensor = entry[0] if isinstance(entry, tuple) else entry
        return tensor.dtype == torch.int64

    plain = parts([[ids(1, 2, 3), a, b]])
    context = parts([[(ids(1, 2, 3), 0), (a, 0), b]])
    assert context.text != plain.text
    alone = model([[ids(1, 2, 3), a, b]], seed=2, noise_levels=[[0.5, 0.6]], return_breakdown=True)[1]
    assert torch.equal(alone.text, plain.text)
    half = parts([[ids(1, 2, 3), (a, 0.5), b]])
    assert torch.allclose(
        half.flow[0], (plain.flow[0] * 2 - context.flow[0] + 0.0 * plain.flow[0]) / 2 * 0.5 + context.flow[0] * 0.5
    )
    # an item that is left out is as if it had not been given
    left = parts([[ids(1, 2, 3), (ids(9, 9), False), a, b]])
    assert torch.equal(left.total, plain.total)
    tokens = parts([[(ids(1, 2, 3), [1, 0, 1]), a, b]])
    assert tokens.text != plain.text and torch.equal(tokens.flow[0], plain.flow[0])
    # private items are seen by nobody: what follows does not depend on them
    name = model.vocabulary.modalities[0].name
    seen = [
        model([[Media(x.T, name, private=True), ids(4, 5, 6)]], noise_levels=[[0.5]], seed=1, return_breakdown=True)[1].text
        for x in (a, randn(4, 6))
    ]
    assert torch.equal(*seen)


def test_predictions_from_noised_latents_and_whole_timesteps() -> None:
    """(noised patches, whole step of T) in, logits and predicted noise out: what Transfusion.torch's model(...) gives."""
    model = small(diffusion=Diffusion(Cosine(), "eps", "eps", Uniform(num_steps=400))).eval()
    noised, step = randn(4, 6), torch.tensor([[37]])
    predicted = model([[ids(1, 2, 3), noised, ids(4)]], noise_levels=step, noised=True)
    assert [tuple(p.shape) for p in predicted[0]] == [(3, len(model.vocabulary)), (4, 6), (1, len(model.vocabulary))]
    again = model([[ids(1, 2, 3), noised, ids(4)]], noise_levels=[[37 / 400]], noised=True)
    assert torch.equal(predicted[0][1], again[0][1])
    other = model([[ids(1, 2, 3), noised, ids(4)]], noise_levels=[[36]], noised=True)
    assert not torch.equal(predicted[0][1], other[0][1])
    # the loss is the mean square of what it predicts, from the same noise
    clean, noise = randn(4, 6), randn(4, 6)
    _loss, parts, predictions = model(
        [[ids(1), clean]], noise_levels=[[37]], noise=[[noise]], return_breakdown=True, return_predictions=True, seed=0
    )
    assert torch.allclose(parts.flow[0], (predictions[0][1] - noise).square().mean(), rtol=1e-5)
    text = torch.randint(0, 20, (2, 7))
    logits = model(text, return_loss=False)
    assert logits.shape == (2, 7, len(model.vocabulary))
    nats = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), text[:, 1:].flatten())
    first = nn.functional.cross_entropy(model(text[:, :1], return_loss=False)[:, 0], text[:, 1])
    assert torch.isfinite(first) and torch.isfinite(nats)
    assert model(randn(3, 5, 6), return_loss=False).shape == (3, 5, 6)


def test_times_may_be_a_function() -> None:
    model = small().eval()
    batch = [[ids(1), randn(4, 6), randn(2, 6)], [ids(2), randn(3, 6)]]
    times = model(
        batch, num_modalities_to_times_fn=lambda n: torch.full((len(n), int(n.max())), 0.25), return_noise_levels=True, seed=0
    )[1]
    assert times == [[0.75, 0.75], [0.75]]
    times = model(batch, noise_levels=lambda count: [0.1 * (i + 1) for i in range(count)], return_noise_levels=True, seed=0)[1]
    assert torch.allclose(torch.tensor(times[0]), torch.tensor([0.1, 0.2]))


def test_prompts_of_every_form_sample_as_they_do_alone() -> None:
    model = small().double()
    prompts = [None, ids(1, 2, 3), randn(4, 6), (0, randn(3, 6)), [ids(5), randn(2, 6), ids(7, 8)], [(0, randn(2, 6))]]
    options = {"max_length": 60, "modality_steps": 3, "cfg_scale": 2.0, "seed": 5}
    many = model.sample_many(prompts, **options)
    assert len(many) == 6
    alone = model.sample_many(prompts[:1], **options)[0]
    for a, b in zip(many[0], alone, strict=True):
        assert torch.equal(a, b) if isinstance(a, Tensor) else torch.allclose(a.tensor, b.tensor, atol=1e-9)
    assert torch.equal(many[1][0][1:4], prompts[1]) and torch.equal(many[2][1].tensor, prompts[2].float())
    given = sum(1 for prompt in prompts for entry in (prompt if isinstance(prompt, list) else [prompt]) if _is_media(entry))
    items = [[e for e in sample if isinstance(e, Item)] for sample in many]
    only = model.sample_many(prompts, return_without_prompt=True, **options)
    assert sum(map(len, only)) == sum(map(len, items)) - given
    assert all(isinstance(e, Item) for sample in only for e in sample)


def _is_media(entry: object) -> bool:
    return isinstance(entry, tuple) or (isinstance(entry, Tensor) and entry.is_floating_point())


@pytest.mark.slow
def test_forced_modality_fixed_shape_and_initial_noise() -> None:
    model = small(dim_latent=(6, 3), modality_default_shape=((4,), (2,)))
    options = {"modality_steps": 2, "max_length": 60, "seed": 3}
    first = model.sample(ids(1), force_modality_at_start=1, **options)
    assert isinstance(first[1], Item) and first[1].modality_type == 1 and first[1].tensor.shape == (2, 3)
    assert model.sample(None, force_modality_at_start=(1, (32,)), **options)[1].tensor.shape == (32, 3)
    for entry in model.sample(None, fixed_modality_shape=(3,), text_temperature=2.0, **options):
        assert not isinstance(entry, Item) or entry.tensor.shape[0] == 3
    noise = randn(4, 6)
    kept = [
        model.sample(ids(1), force_modality_at_start=0, init_modality_noise=n, **options)[1].tensor
        for n in (noise, noise, randn(4, 6))
    ]
    assert torch.equal(kept[0], kept[1]) and not torch.equal(kept[0], kept[2])


def test_raw_items_are_encoded_and_decoded() -> None:
    encoder, decoder = nn.Sequential(nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6)), nn.Conv2d(6, 3, 1)
    model = small(channel_first_latent=True, modality_default_shape=(2, 2), modality_encoder=encoder, modality_decoder=decoder)
    encoder.train()
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    batch = [[ids(1), randn(3, 2, 3), ids(2), randn(3, 4, 4)], [randn(3, 2, 3)]]
    model.train()
    model(batch).backward()
    assert all(p.grad is None for p in (*encoder.parameters(), *decoder.parameters()))
    assert all(torch.equal(v, before[k]) for k, v in encoder.state_dict().items())  # running statistics too
    sample = model.sample([ids(1), randn(3, 2, 2)], force_modality_at_start=0, max_length=40, modality_steps=2)
    assert [tuple(e.tensor.shape) for e in sample if isinstance(e, Item)][:2] == [(3, 2, 2), (3, 2, 2)]
    raw = model.sample(None, force_modality_at_start=0, max_length=20, modality_steps=2, return_unprocessed_modalities=True)
    assert raw[1].tensor.shape == (6, 2, 2)


@pytest.mark.parametrize(
    "shape", [(), (5,), (2, 3), (2, 2, 3), (2, 1, 2, 2)], ids=["vector", "sequence", "picture", "video", "four"]
)
@pytest.mark.parametrize("first", [False, True], ids=["channels last", "channels first"])
def test_latents_of_no_to_four_axes(shape: tuple[int, ...], first: bool) -> None:
    model = small(modality_default_shape=shape, channel_first_latent=first)
    form = (6, *shape) if first else (*shape, 6)
    batch = [[ids(1, 2), randn(form), ids(3)], [randn(form)]]
    model(batch).backward()
    assert all(p.grad is not None for n, p in model.named_parameters())
    assert model.generate_modality_only(2, modality_steps=2).shape == (2, *form)
    assert model.sample(ids(1), force_modality_at_start=0, max_length=40, modality_steps=2)[1].tensor.shape == form
    model(randn(3, *form)).backward()


def test_a_saved_model_has_the_same_loss(tmp_path) -> None:
    model = small(channel_first_latent=True, text_loss_weight=2.0).eval()
    model.save_pretrained(tmp_path)
    again = Transfusion.from_pretrained(tmp_path).eval()
    batch = [[ids(1, 2), randn(6, 5), ids(3)]]
    assert torch.equal(model(batch, seed=1), again(batch, seed=1))
    # the main class reads the folder too, and knows nothing of lists and of the weight of their loss
    plain = api.Transfusion.from_pretrained(tmp_path).eval()
    documents = [Document((Text((1, 2)), Media(batch[0][1], "modality0"), Text((3,))))]
    assert torch.equal(2.0 * plain.loss(documents, seed=1), model(batch, seed=1))
    assert "text_loss_weight" in (tmp_path / "compat.json").read_text()
    (tmp_path / "compat.json").write_text("{")
    with pytest.raises(ValueError, match=r"compat\.json has 1 bytes, its manifest says"):
        Transfusion.from_pretrained(tmp_path)
    (tmp_path / "MANIFEST.json").unlink()
    with pytest.warns(UserWarning, match="has no MANIFEST"), pytest.raises(ValueError, match=r"cannot read .*compat\.json"):
        Transfusion.from_pretrained(tmp_path)


def test_compat_json_of_another_model_is_refused(tmp_path) -> None:
    """The main class saves over the folder and leaves `compat.json`, which belongs to the model before."""
    model, other = small(channel_first_latent=True), small(modality_default_shape=(2, 2))
    model.save_pretrained(tmp_path)
    api.Transfusion(model.config, model.vocabulary).save_pretrained(tmp_path)  # the same config: it still fits
    assert Transfusion.from_pretrained(tmp_path).compat.channel_first == (True,)
    api.Transfusion(other.config, other.vocabulary).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"compat\.json belongs to another config\.json: .* Delete compat\.json"):
        Transfusion.from_pretrained(tmp_path)
    (tmp_path / "compat.json").unlink()
    assert Transfusion.from_pretrained(tmp_path).compat.channel_first == ()
    other.save_pretrained(tmp_path)
    assert Transfusion.from_pretrained(tmp_path).vocabulary.modalities[0].shape == (2, 2)


def test_the_seed_determines_all_randomness() -> None:
    model = small()
    batch = [[ids(1, 2), randn(4, 6)]]
    assert model(batch, seed=1) == model(batch, seed=1) != model(batch, seed=2)
    torch.manual_seed(7)
    first = model(batch)
    second = model(batch)
    torch.manual_seed(7)
    assert first == model(batch) and first != second


def test_the_dataloader_collates_to_lists(capsys) -> None:
    data = [[ids(1), randn(i + 1, 6)] for i in range(5)]
    model = small()
    sizes = [(len(batch), float(model(batch).detach())) for batch in model.create_dataloader(data, batch_size=2)]
    assert [n for n, _ in sizes] == [2, 2, 1]
    with pytest.raises(ValueError, match="collate_fn"):
        model.create_dataloader(data, collate_fn=list)
    print_modality_sample(data[0])
    assert "('text', (1,))" in capsys.readouterr().out


def test_debug_reports_all_input_errors_at_once(monkeypatch, capsys) -> None:
    model = small()
    bad = [[ids(1), randn(4, 6), randn(4, 6).bool()], [], [ids(99), randn(4, 5), (3, randn(4, 6))]]
    with pytest.raises(ValueError) as first_error:
        model(bad)
    assert "document 0, item 2" in str(first_error.value) and "document 2" not in str(first_error.value)
    monkeypatch.setenv("TRANSFUSION_DEBUG", "1")
    with pytest.raises(ValueError) as all_of_them:
        model(bad)
    message = str(all_of_them.value)
    assert all(
        expected in message
        for expected in (
            "document 0, item 2",
            "document 1 is empty",
            "document 2, item 0",
            "document 2, item 1",
            "document 2, item 2",
        )
    )
    model([[ids(1, 2), randn(4, 6)], Document((Text((1, 2)), Media(randn(6, 3), "modality0")))])
    assert "item 1: modality0, latents (6, 4), slots 4 at token 5" in capsys.readouterr().err
    with pytest.raises(ValueError) as errors:
        model([[ids(1), Media(randn(7, 4), "modality0"), Media(randn(6, 4), "sound")], [ids(77)]])
    assert all(expected in str(errors.value) for expected in ("document 0, item 1", "document 0, item 2", "document 1, item 0"))


def test_sampling_with_ddpm() -> None:
    model = small(diffusion=Diffusion(Cosine(), "eps", "eps", Uniform(num_steps=1000)))
    out = model.sample(ids(1), force_modality_at_start=0, sampler=DDPM(num_steps=5, clip=3.0), max_length=30)
    assert torch.isfinite(out[1].tensor).all()


def test_consistency_needs_an_ema_and_reconstruction_a_decoder() -> None:
    decoder = nn.Conv2d(6, 3, 1)
    model = small(
        modality_default_shape=(2, 2),
        channel_first_latent=True,
        modality_encoder=nn.Conv2d(3, 6, 1),
        modality_decoder=decoder,
        velocity_consistency_loss_weight=0.5,
        velocity_consistency_delta_time=0.0,
        reconstruction_loss_weight=0.25,
    ).eval()
    batch = [[ids(1, 2), randn(3, 2, 2)], [randn(3, 2, 4)]]
    ema = model.create_ema()
    loss, parts = model(batch, velocity_consistency_ema_model=ema, return_breakdown=True, seed=1)
    assert parts.consistency < 1e-10 < parts.reconstruction  # the same weights at the same time: nothing to correct
    assert torch.allclose(loss, parts.text + 5 * parts.flow[0] + 0.25 * parts.reconstruction)
    with torch.no_grad():
        for p in model.network.parameters():
            p.add_(0.05 * torch.randn_like(p))
    loss, parts = model(batch, teacher=ema, return_breakdown=True, seed=1)
    assert parts.consistency > 0
    parts.reconstruction.backward()
    assert all(p.grad is None for p in decoder.parameters())
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.network.parameters())
    with pytest.raises(ValueError, match="no auxiliary loss needs an EMA model: set the weight of consistency"):
        small(velocity_consistency_loss_weight=0.0)([[ids(1)]], teacher=small())


def test_pre_post_transformer_enc_dec_replaces_the_patcher() -> None:
    """A pair of modules that halves the number of slots, as transfusion-pytorch's `pre_post_transformer_enc_dec`."""
    pair = nn.Conv2d(6, 32, 3, 2, 1), nn.ConvTranspose2d(32, 6, 3, 2, 1, output_padding=1)
    model = Transfusion(
        num_text_tokens=20,
        dim_latent=6,
        channel_first_latent=True,
        modality_default_shape=(4, 4),
        pre_post_transformer_enc_dec=pair,
        transformer=dict(dim=32, depth=2, dim_head=8),
    )
    assert model.vocabulary.modalities[0].slots((4, 4)) == (2, 2)
    model([[ids(1, 2), randn(6, 4, 4), ids(3), randn(6, 2, 6)]]).backward()
    assert all(p.grad is not None for module in pair for p in module.parameters())
    many = model.sample_many([ids(1), ids(2)], force_modality_at_start=0, max_length=24, modality_steps=2, cfg_scale=3.0)
    assert [tuple(sample[1].tensor.shape) for sample in many] == [(6, 4, 4), (6, 4, 4)]


@pytest.mark.parametrize(
    ("word", "value", "where"),
    [
        ("qk_rmsnorm", False, lambda t: not t.qk_norm),
        ("ff_expansion_factor", 2, lambda t: t.sizes.mlp_width == 64),
        ("softcap_value", 50.0, lambda t: t.attention.soft_cap == 50),
        ("gate_values", True, lambda t: t.attention.gated),
        ("use_value_residual", True, lambda t: t.attention.value_residual),
        ("attn_laser", True, lambda t: t.attention.laser == 15),
        ("unet_skips", True, lambda t: t.long_skips),
        ("dropout", 0.1, lambda t: t.dropout == 0.1),
        ("attn_kwargs", {"softcap_value": 30.0}, lambda t: t.attention.soft_cap == 30),
        ("kv_heads", 2, lambda t: t.sizes.num_kv_heads == 2),
        ("use_flex_attn", True, lambda t: True),
    ],
)
def test_transformer_options_reach_the_config(word: str, value: object, where) -> None:
    model = small(transformer={"dim": 32, "depth": 3, "dim_head": 8, word: value})
    assert where(model.config.model.transformer)
    model([[ids(1, 2), randn(4, 6)]]).backward()
    assert model.sample(ids(1), force_modality_at_start=0, max_length=20, modality_steps=2)[1].tensor.shape == (4, 6)


def test_add_pos_emb_adds_axial_embeddings() -> None:
    model = small(add_pos_emb=True, modality_default_shape=(2, 2)).eval()
    without = small(modality_default_shape=(2, 2)).eval()
    batch = [[ids(1), randn(2, 2, 6), randn(3, 2, 6)]]
    assert sum(p.numel() for p in model.parameters()) > sum(p.numel() for p in without.parameters())
    model(batch).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for n, p in model.named_parameters() if "axial" in n)


def test_element_weights_of_an_item() -> None:
    """A mean over what is weighed: equal weights change nothing, and parts that are weighed apart make up the whole."""
    model = small().double().eval()
    x = randn(4, 6)

    def flow(weight) -> Tensor:
        return model([[ids(1), (0, x, weight)]], seed=3, return_breakdown=True)[1].flow[0]

    assert torch.allclose(flow([1, 1, 1, 1]), flow(1))
    first, rest = flow([1, 0, 0, 0]), flow(torch.tensor([0.0, 1, 1, 1]))
    assert torch.allclose((first + 3 * rest) / 4, flow(1)) and first != rest
    assert torch.allclose(flow([0.5, 0, 0, 0]), first / 2)
    with pytest.raises(ValueError, match=r"document 0, item 1: a mask of shape .* must have the size of the item"):
        flow([1, 0])
    with pytest.raises(ValueError, match="document 0, item 1: a mask has weights of 0 or more, not all 0"):
        flow([0, 0, 0, 0])
