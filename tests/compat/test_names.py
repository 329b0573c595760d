# ruff: noqa: C408
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportOptionalMemberAccess=false
# pyright: reportOptionalSubscript=false, reportCallIssue=false
"""transfusion-pytorch's names of a model's parts; words that are taken; what belongs to the user and is left as it is."""

import math
import threading

import pytest
import torch
from torch import Tensor, nn, randn

from transfusion import Media, Text
from transfusion.codec.patcher import MAX_DRY_RUN, dry_run_items
from transfusion.compat import SelfMaskedRepTraining, Transfusion, random_modality_length_to_time_fn
from transfusion.diffusion.sampler import Euler, Heun


@pytest.fixture(autouse=True)
def _unchecked(unchecked) -> None:
    """As a user runs it."""


WORDS = dict(num_text_tokens=16, dim_latent=8, modality_default_shape=(4,), transformer=dict(dim=32, depth=2, dim_head=16))


def ids(*numbers: int) -> Tensor:
    return torch.tensor(numbers)


def test_parts_have_their_names() -> None:
    encoder = nn.Linear(3, 8)
    words = WORDS | dict(dim_latent=(8, 3), modality_default_shape=((4,), (2, 2)), channel_first_latent=(False, True))
    m = Transfusion(**words, modality_encoder=[encoder, None], add_pos_emb=(False, True))
    assert (m.num_text_tokens, m.num_modalities, m.dim, m.dim_latents, m.modality_processing) == (16, 2, 32, (8, 3), "auto")
    named = [m.sos_id, m.eos_id, *m.som_ids, *m.eom_ids, m.meta_id, *m.char_tokenizer("4,4").tolist()]
    assert min(named) >= 16 and len(set(named[:7])) == 7
    first, second = m.get_all_modality_info()
    assert first.encoder is encoder and first.decoder is None and second.encoder is None
    assert (first.som_id, second.eom_id) == (m.som_ids[0], m.eom_ids[1])
    assert (second.dim_latent, second.default_shape, second.num_dim, second.channel_first_latent) == (3, (2, 2), 2, True)
    assert not first.add_pos_emb and second.add_pos_emb and first.modality_type == 0
    assert m.get_modality_shape(randn(3, 5, 7), 1) == (5, 7) and m.get_modality_info() == m.get_modality_info(0)
    with pytest.raises(ValueError, match="no modality 2; there are 2"):
        m.get_modality_info(2)


def test_words_whose_effect_always_holds_are_taken() -> None:
    taken = dict(
        fallback_to_default_shape_if_invalid=True,
        ignore_index=-1,
        odeint_kwargs=dict(atol=1e-5, rtol=1e-5, method="midpoint"),
        eps=1e-2,
        modality_encoder_decoder_requires_batch_dim=True,
    )
    m = Transfusion(**WORDS, **taken, modality_processing="grouped", context_length=100)
    assert m.modality_processing == "grouped" and m.config.model.context_length == 100
    assert m.config.model.diffusion.min_divisor == 0.01 and m.config.sampler == Heun(num_steps=16)
    assert Transfusion(**WORDS, odeint_kwargs=dict(method="euler")).config.sampler == Euler(num_steps=16)
    with pytest.raises(AssertionError, match="modality_processing"):  # which is what users of that word catch
        Transfusion(**WORDS, modality_processing="fastest")
    losses = set()
    for processing in ("naive", "grouped", "flat", "hybrid", "auto"):
        torch.manual_seed(1)
        m = Transfusion(**WORDS, modality_processing=processing)
        losses.add(float(m([[ids(1, 2), randn(4, 8), randn(6, 8)]]).detach()))
    assert len(losses) == 1


def test_positions_are_added_to_the_modality_that_asks() -> None:
    words = WORDS | dict(dim_latent=(8, 8), modality_default_shape=((4,), (4,)))
    m = Transfusion(**words, add_pos_emb=(True, False))
    assert list(m.network.axial) == ["modality0"]
    m([[randn(4, 8), (1, randn(4, 8))]]).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in m.network.axial.parameters())
    assert Transfusion(**words, add_pos_emb=(False, False)).network.axial is None
    assert len(Transfusion(**words, add_pos_emb=True).network.axial) == 2


def test_axial_positions_of_three_axes() -> None:
    """Each of three axes tells slots apart that are at one place on the other two."""
    m = Transfusion(**(WORDS | dict(modality_default_shape=(2, 3, 2), dim_latent=4)), add_pos_emb=True).eval()
    vectors = m.network.axial["modality0"]((2, 3, 2)).reshape(2, 3, 2, 32)
    for axis in range(3):
        assert vectors.diff(dim=axis).abs().amax(-1).min() > 0
        elsewhere = vectors.diff(dim=axis)
        for other in {0, 1, 2} - {axis}:
            assert torch.allclose(elsewhere.diff(dim=other), torch.zeros(()), atol=1e-6)  # the axes' vectors are summed
    m([[ids(1), randn(2, 3, 2, 4), randn(1, 2, 4, 4)]]).backward()


def test_text_alone_has_no_size_tokens_and_begins_at_chance() -> None:
    torch.manual_seed(0)
    m = Transfusion(num_text_tokens=256, transformer=dict(dim=64, depth=1))
    assert m.num_modalities == 0 and len(m.vocabulary) == 259
    text = torch.randint(0, 256, (2, 64))
    assert abs(float(m(text).detach()) - math.log(256)) < 0.1
    with pytest.raises(ValueError, match="this model has text alone; for items give it dim_latent"):
        m([[randn(4, 64)]])
    with pytest.raises(ValueError, match="this model has text alone; for items give it dim_latent"):
        m(randn(2, 4, 64))


def test_an_untrained_model_writes_text_and_items() -> None:
    """Of 2,069 ids 2,048 are sizes: they weigh no more than one other id does, in the loss of rows of ids not at all."""
    torch.manual_seed(0)
    m = Transfusion(**WORDS).eval()
    text = torch.randint(0, 16, (4, 64))
    assert abs(float(m(text).detach()) - math.log(16)) < 0.1
    logits = m(text, return_loss=False)
    opening = logits.softmax(-1)[..., [m.som_ids[0], *range(m.eom_ids[0] + 1, len(m.vocabulary))]].sum(-1)
    assert logits.shape == (4, 64, len(m.vocabulary)) and 0 < opening.mean() < 0.02
    again = Transfusion(m.config, m.vocabulary, compat=m.compat)
    again.load_state_dict(m.state_dict())
    assert torch.equal(again.eval()(text, return_loss=False), logits)


def test_padding_is_masked() -> None:
    """A row of ids that is filled up with -1 is the row without it: its loss, its logits, its continuation."""
    m = Transfusion(**WORDS).eval()
    rows = torch.tensor([[1, 2, 3, 4], [5, 6, -1, -1]])
    apart = torch.stack([m(rows[:1]) * 4, m(rows[1:, :2]) * 2]).sum() / 6
    assert torch.allclose(m(rows), apart)
    logits = m(rows, return_loss=False)
    assert torch.allclose(logits[1, :2], m(rows[1:, :2], return_loss=False)[0], atol=1e-6) and not logits[1, 2:].any()
    batch = [[ids(1, -1, -1), randn(4, 8)]]
    assert torch.equal(m(batch, seed=1), m([[ids(1), batch[0][1]]], seed=1))
    weighed = m([[(ids(1, 2, -1), [1.0, 0.5, 9.0])]], seed=1)
    assert torch.equal(weighed, m([[(ids(1, 2), [1.0, 0.5])]], seed=1))
    assert m.generate_text_only(rows, 6).shape == (2, 2) and m.generate_text_only(rows, 3).shape == (2, 0)


def test_common_sizes_are_taken_and_the_remedy_for_others_is_named() -> None:
    words = WORDS | dict(dim_latent=(2, 2, 2), modality_default_shape=((4,), (4, 4), (2, 2, 2)))
    m = Transfusion(**words).eval()
    m([[(0, randn(1500, 2)), (1, randn(96, 2, 2)), (2, randn(49, 2, 2, 2))]])
    with pytest.raises(ValueError, match=r"exceeds the largest, .*, or give the model a larger modality_max_shape"):
        m([[(0, randn(3000, 2))]])
    Transfusion(**WORDS, modality_max_shape=(3000,))([[randn(3000, 8)]])
    slots = [math.prod(grid) for modality in m.vocabulary.modalities for _, _, grid in dry_run_items(modality, randn(1))]
    assert max(slots) <= MAX_DRY_RUN < 128 * 64 * 64  # building a model for video takes no memory for the largest one


def test_items_of_other_axes_in_tensors_of_latents() -> None:
    """As transfusion-pytorch: what has more axes than the modality is taken as its slots in order."""
    m = Transfusion(**WORDS).eval()
    x = randn(3, 2, 4, 8)
    assert torch.equal(m(x, seed=1), m(x.reshape(3, 8, 8), seed=1))
    assert m(x, times=torch.full((3,), 0.5), return_loss=False).shape == x.shape
    with pytest.raises(ValueError, match="axes"):
        m([[x[0]]])  # in a list it is a forgotten batch axis, unless nothing was said of a size
    unsaid = Transfusion(num_text_tokens=16, dim_latent=8, transformer=WORDS["transformer"]).eval()
    unsaid([[ids(1), x[0], ids(2)]]).backward()
    sample = unsaid.sample([ids(1), x[0]], max_length=3, modality_steps=1)
    assert torch.equal(sample[1].tensor, x[0])
    noise = randn(2, 4, 8)
    assert torch.equal(m(x[:1], noise=[[noise]], seed=1), m(x[:1].flatten(1, 2), noise=[[noise.flatten(0, 1)]], seed=1))
    weights = torch.arange(8.0).view(2, 4)
    masked = unsaid([[(0, x[0], weights)]], seed=1), unsaid([[(0, x[0].flatten(0, 1), weights.flatten())]], seed=1)
    assert torch.equal(*masked)
    wide = Transfusion(**(WORDS | dict(modality_default_shape=(2, 2)))).eval()
    line = randn(2, 4, 8)
    assert torch.equal(wide(line, seed=1), wide(line[:, None], seed=1))


def test_encoders_stay_as_they_are() -> None:
    encoder, decoder = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5)), nn.Linear(8, 3)
    decoder.eval()
    m = Transfusion(**WORDS, modality_encoder=encoder, modality_decoder=decoder).train()
    batch = [[ids(1), randn(4, 3)]]
    m(batch).backward()
    m.eval()
    m.sample(batch[0], max_length=2, modality_steps=1)
    assert all(p.requires_grad and p.grad is None for p in (*encoder.parameters(), *decoder.parameters()))
    assert encoder.training and encoder[1].training and not decoder.training
    trained = m.parameters_without_encoder_decoder()
    coders = {*encoder.parameters(), *decoder.parameters()}
    assert set(m.parameters()) - trained == coders and not trained & coders and len(trained) == len(list(trained))
    torch.optim.Adam(trained)
    assert set(m._ddp_params_and_buffers_to_ignore) == {n for n, p in m.named_parameters() if p in coders}


def test_an_ema_is_taken_with_and_without_its_loss() -> None:
    batch = [[ids(1, 2), randn(4, 8)]]
    for weight in (0.0, 0.1):
        m = Transfusion(**WORDS, velocity_consistency_loss_weight=weight).train()
        ema = m.create_ema()
        assert ema.ema_model is ema.model and ema.online_model is m
        for given in (None, ema, ema.ema_model):
            terms = m(batch, velocity_consistency_ema_model=given, return_breakdown=True, seed=1)[1]
            assert (terms.velocity is not None) == (weight > 0 and given is not None) and terms.recon is None
    total, text, flow, velocity, recon = terms
    assert torch.equal(total, terms.total) and len(flow) == len(velocity) == 1 and recon is None and text > 0
    words = WORDS | dict(dim_latent=(8, 8), modality_default_shape=((4,), (4,)))
    two = Transfusion(**words, reconstruction_loss_weight=0.5).eval()
    terms = two([[randn(4, 8), (1, randn(4, 8)), (1, randn(2, 8))]], return_breakdown=True, seed=1)[1]
    assert torch.allclose(terms.reconstruction, (terms.recon[0] + 2 * terms.recon[1]) / 3)


def test_a_decoder_without_gradients_is_warned_about_and_latents_are_compared() -> None:
    class Stops(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            with torch.no_grad():
                return super().forward(input)

    torch.manual_seed(0)
    m = Transfusion(**WORDS, modality_encoder=nn.Linear(3, 8), modality_decoder=Stops(8, 3), reconstruction_loss_weight=0.5)
    batch = [[ids(1), randn(4, 3)]]
    with pytest.warns(UserWarning, match="the decoder stops gradients .* compares latents"):
        terms = m(batch, return_breakdown=True, seed=1)[1]
    terms.recon[0].backward()
    assert m.network.patcher_of(0).proj_out.weight.grad.abs().sum() > 0
    with torch.no_grad():
        assert torch.isfinite(m(batch, seed=1))


def test_self_flow_with_the_class_of_its_own() -> None:
    m = Transfusion(**WORDS)
    wrapper = SelfMaskedRepTraining(m, student_layer=-2, teacher_layer=-1, rep_loss_weight=0.1, student_dropout_rate=0.5)
    optimizer = torch.optim.Adam(wrapper.parameters(), lr=1e-2)
    loss, (student, representation) = wrapper([[ids(1, 2), randn(4, 8)]])
    assert loss.shape == () and torch.allclose(loss, student + 0.1 * representation) and 0 < representation < 2
    loss.backward()
    assert all(p.grad is not None for p in m.network.representation.parameters())
    before = next(wrapper.teacher.ema_model.parameters()).clone()
    optimizer.step()
    wrapper.update_teacher()
    assert not torch.equal(before, next(wrapper.teacher.ema_model.parameters()))
    assert len(wrapper.teacher.sample(max_length=4, modality_steps=1)) >= 1
    wrapper(randn(2, 4, 8))
    m([[ids(1, 2), randn(4, 8)]]).backward()  # the model alone still trains
    with pytest.raises(ValueError, match="the teacher sees every slot"):
        SelfMaskedRepTraining(Transfusion(**WORDS), teacher_dropout_rate=0.1)
    with pytest.raises(ValueError, match="student_depth and teacher_depth are fractions"):
        SelfMaskedRepTraining(Transfusion(**WORDS), student_layer=-1, teacher_layer=-2)


def test_sampling_in_a_thread_leaves_the_mode_as_it_is_set() -> None:
    m = Transfusion(**WORDS).train()
    inside, go_on = threading.Event(), threading.Event()
    m.network.transformer.blocks[0].register_forward_hook(lambda *_: (inside.set(), go_on.wait(20))[0])
    for mode in (True, False):
        inside.clear()
        go_on.clear()
        m.train(not mode)
        thread = threading.Thread(target=lambda: m.sample(max_length=2, modality_steps=1))
        thread.start()
        assert inside.wait(20)
        m.train(mode)
        assert m.training == mode and m.network.training == mode
        go_on.set()
        thread.join()
        assert {child.training for name, child in m.named_modules() if not name.startswith("autoencoders")} == {mode}


def test_segments_and_documents_are_prompts_too() -> None:
    m = Transfusion(**WORDS)
    prompts = [[Text((1, 2)), Media(randn(8, 4), "modality0")], m.lists.documents([[ids(3), randn(2, 8)]])[0]]
    for sample in m.sample_many(prompts, max_length=2, modality_steps=1):
        assert sample[1].modality_type == 0 and len(sample) >= 3


def test_random_times_are_those_of_each_item() -> None:
    drawn = random_modality_length_to_time_fn(torch.tensor([2, 0, 3]))
    assert drawn.shape == (3, 3) and (drawn >= 0).all() and (drawn < 1).all() and len(set(drawn.flatten().tolist())) == 9


def test_a_model_made_without_memory_gets_its_prior_all_the_same() -> None:
    """Built on the meta device, then filled with another's weights: the prior of opening an item is no weight."""
    words = dict(num_text_tokens=16, dim_latent=8, modality_default_shape=(4,), transformer=dict(dim=32, depth=1, dim_head=16))
    m = Transfusion(**words)
    with torch.device("meta"):
        empty = Transfusion(**words)
    empty.to_empty(device="cpu").load_state_dict(m.state_dict())
    batch = [[torch.tensor([1, 2]), torch.randn(4, 8)]]
    assert torch.equal(m.eval()(batch, seed=1), empty.eval()(batch, seed=1))
