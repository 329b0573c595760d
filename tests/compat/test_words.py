# ruff: noqa: C408
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false
"""Arguments of the constructor, the call and the methods, one test each."""

import pytest
import torch
from torch import Tensor, nn, randn

from transfusion import Diffusion, Document, Media, Text, TransformerConfig
from transfusion.compat import Transfusion
from transfusion.diffusion.schedule import Cosine
from transfusion.diffusion.times import Uniform


@pytest.fixture(autouse=True)
def _unchecked(unchecked) -> None:
    """As a user runs it."""


WORDS = dict(num_text_tokens=16, dim_latent=8, modality_default_shape=(4,), transformer=dict(dim=32, depth=2, dim_head=16))


def ids(*numbers: int) -> Tensor:
    return torch.tensor(numbers)


def test_a_transformer_config_equals_its_dict() -> None:
    """The same model, to the bit."""
    made = []
    for transformer in (TransformerConfig(width=32, depth=2, num_heads=2, head_dim=16), WORDS["transformer"]):
        torch.manual_seed(0)
        made.append(Transfusion(**(WORDS | {"transformer": transformer})).eval())
    batch = [[ids(1, 2), randn(4, 8)]]
    assert torch.equal(made[0](batch, seed=1), made[1](batch, seed=1))


def test_dim_latent_defaults_to_the_width() -> None:
    words = {k: v for k, v in WORDS.items() if k not in ("dim_latent", "modality_default_shape")}
    m = Transfusion(**words, modality_num_dim=2)
    assert m.vocabulary.modalities[0].channels == 32 and m.vocabulary.modalities[0].shape == (1, 1)
    m([[ids(1), randn(3, 2, 32)]]).backward()


def test_modality_names_and_largest_sizes() -> None:
    m = Transfusion(**WORDS, modality_names=["actions"], modality_max_shape=(6,))
    assert m.vocabulary.modality("actions").largest == (6,)
    m([[randn(6, 8)]])
    with pytest.raises(ValueError, match=r"document 0, item 0: .*'actions': size .7,. exceeds the largest"):
        m([[randn(7, 8)]])


def test_a_fixed_shape_has_no_size_tokens() -> None:
    free, fixed = Transfusion(**WORDS), Transfusion(**WORDS, modality_fixed_shape=True)
    assert len(fixed.vocabulary) < len(free.vocabulary)
    lengths = [len(m.tokenize(m.lists.documents([[ids(1), randn(4, 8)]]), seed=0)[0]) for m in (free, fixed)]
    assert lengths[0] == lengths[1] + 1
    with pytest.raises(ValueError, match=r"document 0, item 0: .*every item has .4,."):
        fixed([[randn(5, 8)]])


def test_dropped_text_has_no_loss_and_is_dropped_in_training_only() -> None:
    batch = [[ids(1, 2, 3), randn(4, 8)]]
    m = Transfusion(**WORDS, prob_uncond=1.0)
    assert m(batch, return_breakdown=True, seed=1)[1].text == 0
    assert m(batch, return_breakdown=True, seed=1, prob_uncond=0.0)[1].text > 0
    assert m.eval()(batch, return_breakdown=True, seed=1)[1].text > 0


def test_min_divisor_bounds_the_weight_of_nearly_clean_items() -> None:
    batch = [[randn(4, 8)]]
    torch.manual_seed(0)
    losses = []
    for min_divisor in (0.05, 0.5):
        m = Transfusion(**WORDS, diffusion=Diffusion(min_divisor=min_divisor)).eval()
        with torch.no_grad():
            for p in m.network.parameters():
                p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())) * 0.1)
        losses.append(m(batch, noise_levels=[[0.1]], seed=1, return_breakdown=True)[1].flow[0])
    assert torch.allclose(losses[0] / losses[1], torch.tensor(25.0), rtol=1e-3)


def test_hidden_states_of_each_layer_are_returned() -> None:
    m = Transfusion(**WORDS).eval()
    batch = m.collate(m.tokenize(m.lists.documents([[ids(1, 2), randn(4, 8)]]), seed=0))
    from transfusion.nn.attention import AttentionMetadata

    layers: list[Tensor] = []
    media = m.network.add_noise(batch)
    place = AttentionMetadata.of_rows(batch.documents, batch.spans, batch.private)
    h, _ = m.network.hidden(batch.tokens, batch.positions, media, metadata=place, layers=layers)
    assert len(layers) == 2 and all(x.shape == (1, len(h), 32) for x in layers)


def test_encoder_parameters_are_not_trained() -> None:
    encoder = nn.Linear(3, 8)
    m = Transfusion(**WORDS, modality_encoder=encoder)
    trained = {id(p) for p in m.parameters_without_encoder_decoder()}
    assert trained and not trained & {id(p) for p in encoder.parameters()}
    assert len(trained) == len(list(m.parameters())) - 2
    assert m.device == torch.device("cpu")


def test_return_without_prompt() -> None:
    m = Transfusion(**WORDS)
    options = dict(force_modality_at_start=0, max_length=18, modality_steps=1, seed=2)
    prompt = [ids(1, 2), randn(4, 8)]
    whole, rest = (m.sample(prompt, return_without_prompt=r, **options) for r in (False, True))
    items = [entry for entry in whole if not isinstance(entry, Tensor)]
    assert len(items) == len(rest) + 1 and torch.equal(items[1].tensor, rest[0].tensor)


def test_latents_alone_of_several_modalities_need_modality_type() -> None:
    m = Transfusion(**(WORDS | dict(dim_latent=(8, 3), modality_default_shape=((4,), (2, 2))))).eval()
    loss, parts = m(randn(2, 2, 2, 3), modality_type=1, return_breakdown=True, seed=1)
    assert parts.flow[0] == 0 and parts.flow[1] > 0 and torch.isfinite(loss)
    assert m.generate_modality_only(2, modality_type=1, modality_steps=1).shape == (2, 2, 2, 3)
    for call in (lambda: m(randn(2, 4, 8)), lambda: m.generate_modality_only(2)):
        with pytest.raises(ValueError, match="several modalities: choose with modality_type"):
            call()


def test_modality_patch_sets_the_patch_of_a_slot() -> None:
    m = Transfusion(**(WORDS | {"modality_default_shape": (4, 4), "modality_patch": (2, 2)}))
    assert m.vocabulary.modalities[0].slots((4, 4)) == (2, 2)
    m([[torch.tensor([1]), torch.randn(4, 6, 8)]]).backward()
    assert m.sample(force_modality_at_start=0, max_length=12, modality_steps=1)[1].tensor.shape == (4, 4, 8)


def test_text_is_not_dropped_where_times_noise_or_predictions_are_returned() -> None:
    """Text is dropped for the loss alone: not where times, noise, or predictions are asked for."""
    m = Transfusion(**(WORDS | {"prob_uncond": 1.0})).train()
    x, batch = torch.randn(4, 8), [[torch.tensor([1, 2]), torch.randn(4, 8), torch.tensor([3]), torch.randn(3, 8)]]
    assert [len(m(batch, seed=s, return_loss=False, return_predictions=True)[0]) for s in range(4)] == [4] * 4
    assert [len(m(batch, seed=s, return_noise_levels=True)[1][0]) for s in range(4)] == [2] * 4
    fixed = {float(m(batch, noise_levels=[[0.5, 0.7]], noise=[[x, x[:3]]], seed=s).detach()) for s in range(4)}
    assert len(fixed) == 1
    name = m.vocabulary.modalities[0].name
    own = Document((Text((1, 2)), Media(x.T, name, times=(0.8, 0.8)), Text((3,))))
    assert m([own], seed=2, return_noise_levels=True)[1] == [[pytest.approx(0.8)]]


def test_text_loss_weight_applies_to_documents() -> None:
    m = Transfusion(**(WORDS | {"text_loss_weight": 2.0})).eval()
    x = torch.randn(4, 8)
    document = Document((Text((1, 2)), Media(x.T, m.vocabulary.modalities[0].name)))
    assert torch.equal(m([[torch.tensor([1, 2]), x]], seed=1), m.loss([document], seed=1))


@pytest.mark.slow
def test_the_default_sampler_fits_the_diffusion() -> None:
    """With noise prediction on the cosine schedule, by default: what one item taught is drawn."""
    torch.manual_seed(0)
    m = Transfusion(**WORDS, diffusion=Diffusion(Cosine(), "eps", "eps", Uniform(num_steps=1000)), prob_uncond=0.0)
    x = torch.randn(4, 8).clamp(-2, 2)
    optimizer = torch.optim.AdamW(m.parameters(), lr=5e-3)
    for _ in range(250):
        m(x.expand(16, 4, 8)).backward()
        optimizer.step()
        optimizer.zero_grad()
    drawn = m.generate_modality_only(4, modality_steps=50, seed=0)
    assert (drawn - x).square().mean() < 0.15


def test_encoder_errors_name_the_items_and_arguments_are_checked_first() -> None:
    calls = []

    class Encoder(nn.Conv2d):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            calls.append(1)
            return super().forward(input)

    words = WORDS | {"modality_default_shape": (4, 4), "channel_first_latent": True, "modality_encoder": Encoder(3, 8, 1)}
    m = Transfusion(**words)
    with pytest.raises(ValueError, match=r"document 1, item 1: the encoder of modality 0 fails on items of shape \(4, 4, 4\)"):
        m([[torch.tensor([1])], [torch.tensor([2]), torch.randn(4, 4, 4)]])
    calls.clear()
    with pytest.raises(ValueError, match="max_length"):
        m.sample(torch.randn(3, 4, 4), max_length=0)
    with pytest.raises(ValueError, match="no modality 9"):
        m.sample(torch.randn(3, 4, 4), force_modality_at_start=9)
    assert not calls
    predictions = m(
        [[torch.randn(8, 4, 4)]], noise_levels=[[0.5]], noised=True
    )  # latents that are noised already need no encoder
    assert not calls and predictions[0][0].shape == (8, 4, 4)


def test_missing_encoders_of_a_model_folder_are_warned_about(tmp_path) -> None:
    m = Transfusion(**(WORDS | {"modality_encoder": nn.Linear(3, 8), "modality_decoder": nn.Linear(8, 3)}))
    m.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="encoder or decoder for modality0 are not in the model folder"):
        again = Transfusion.from_pretrained(tmp_path)
    encoder, decoder = m.autoencoders["modality0"].encoder, m.autoencoders["modality0"].decoder
    again.attach("modality0", encoder, decoder)
    batch = [[torch.tensor([1]), torch.randn(4, 3)]]
    assert torch.equal(m.eval()(batch, seed=1), again.eval()(batch, seed=1))


def test_ineffective_arguments_are_refused_or_warned_about() -> None:
    m = Transfusion(**(WORDS | {"prob_uncond": 0.0}))
    with pytest.warns(UserWarning, match="guidance for text is left out: this model was never trained without text"):
        m.sample(torch.tensor([1]), cfg_scale=7.0, max_length=8)
    with pytest.raises(ValueError, match="the context has"):
        m.generate_text_only(torch.zeros(1, 4, dtype=torch.long), 1 << 17)
    with pytest.raises(ValueError, match="no ids of text"):
        Transfusion(**(WORDS | {"num_text_tokens": 0})).generate_text_only(torch.zeros(1, 0, dtype=torch.long), 3)
    with pytest.raises(ValueError, match="the model has 2 modalities; give a list with a module"):
        Transfusion(**(WORDS | {"dim_latent": (8, 4), "modality_encoder": nn.Identity()}))
    with pytest.raises(ValueError, match="2 seeds for 1 prompts"):
        m.generate(["1"], seeds=[1, 2], max_tokens=1)
    m.sample(max_length=60, seed=0, text_temperature=2.0, modality_steps=1)
    assert sum(m.fallbacks.values()) >= 0 and set(m.fallbacks) <= {"malformed", "too large"}
