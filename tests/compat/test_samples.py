# ruff: noqa: C408
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportIndexIssue=false
"""Samples and prompts with their control tokens: each entry stands where transfusion-pytorch's users look for it."""

import pytest
import torch
from torch import Tensor, randn

from transfusion.compat import Item, Transfusion
from transfusion.data.transforms import once, with_uses


@pytest.fixture(autouse=True)
def _unchecked(unchecked) -> None:
    """As a user runs it."""


WORDS = dict(num_text_tokens=16, dim_latent=8, modality_default_shape=(4,), transformer=dict(dim=32, depth=2, dim_head=16))
TWO = WORDS | dict(dim_latent=(4, 8), modality_default_shape=((2, 2, 2), (16,)), channel_first_latent=(True, False))


def ids(*numbers: int) -> Tensor:
    return torch.tensor(numbers)


def scattered(m: Transfusion) -> Transfusion:
    """The model, its weights at random, so that every input counts."""
    torch.manual_seed(3)
    with torch.no_grad():
        for p in m.network.parameters():
            p.copy_(torch.randn(p.shape) * (0.3 if p.ndim > 1 else 0.1) + (p.ndim == 1))
    return m.double()


def test_entries_alternate_and_hold_the_control_tokens() -> None:
    """Prompt of a text and a video, then a forced action: it is entry 3, behind END, its size and BEGIN."""
    m = Transfusion(**TWO)
    text, video = ids(1, 2, 3), randn(4, 2, 2, 2)
    options = dict(force_modality_at_start=(1, (32,)), max_length=34, modality_steps=2, seed=1)
    (sample,) = m.sample_many([[text, (0, video)]], **options)
    assert [isinstance(entry, Item) for entry in sample[:5]] == [False, True, False, True, False]
    assert sample[3][1].shape == (32, 8) and sample[3].modality_type == 1 and torch.equal(sample[1][1], video)
    assert sample[0][0] == m.sos_id and torch.equal(sample[0][1:4], text) and sample[0][-1] == m.som_ids[0]
    assert sample[2][0] == m.eom_ids[0] and sample[2][-1] == m.som_ids[1] and sample[4][0] == m.eom_ids[1]
    slots = [torch.full((n,), m.vocabulary.pad) for n in (8, 32)]
    tokens = torch.cat([sample[0], slots[0], sample[2], slots[1], sample[4][:1]])
    (seen,) = m.tokenize([once(with_uses(d)) for d in m.lists.documents([[text, (0, video), (1, sample[3][1])]])])
    assert torch.equal(tokens, torch.from_numpy(seen.tokens)[:-1])  # all but EOS, as the model is trained on it
    alone = m.sample(ids(7), max_length=1, text_temperature=0.0)
    assert alone[0][:2].tolist() == [m.sos_id, 7] and len(alone[0]) == 3


def test_a_document_that_the_model_ends_says_so() -> None:
    m = Transfusion(**WORDS)
    with torch.no_grad():
        m.network.head.prior[m.eos_id] = 100.0
    assert m.sample(ids(3), seed=1)[0].tolist() == [m.sos_id, 3, m.eos_id]
    after = m.sample(ids(3), force_modality_at_start=0, modality_steps=1)
    assert after[2].tolist() == [m.eom_ids[0], m.eos_id]


@pytest.mark.parametrize("words", [WORDS, TWO], ids=["one", "two"])
def test_a_sample_is_a_prompt(words: dict) -> None:
    """Given back, it is continued as the same document without control tokens is."""
    m = scattered(Transfusion(**words))
    index = m.num_modalities - 1
    first = m.sample([ids(1, 2)], force_modality_at_start=index, max_length=1, modality_steps=2, text_temperature=0.0, seed=1)
    assert int(first[-1][-1]) != m.eos_id
    text = first[0][first[0] < 16]
    noise = randn(32, 8).double()
    options = dict(max_length=3, modality_steps=2, text_temperature=0.0, seed=2, init_modality_noise=noise)
    again = m.sample(first, **options)
    plain = m.sample([text, first[1]], **options)
    assert len(again) == len(plain)
    for a, b in zip(again, plain, strict=True):
        assert torch.equal(a, b) if isinstance(a, Tensor) else torch.equal(a.tensor, b.tensor)


def test_a_begin_at_the_end_asks_for_an_item_of_the_size_that_is_said() -> None:
    m = Transfusion(**TWO)
    options = dict(max_length=1, modality_steps=1, seed=1)
    prime = torch.tensor(m.som_ids[1])
    assert m.sample([prime], **options)[1].tensor.shape == (16, 8)  # the default
    assert m.sample([ids(1), ids(m.meta_id), m.char_tokenizer("3"), prime], **options)[1].tensor.shape == (3, 8)
    video = [ids(m.meta_id), m.char_tokenizer("1,2,3"), ids(m.som_ids[0])]
    assert m.sample(video, **options)[1].tensor.shape == (4, 1, 2, 3)
    assert m.sample([ids(m.meta_id), m.char_tokenizer("1,2"), ids(m.som_ids[0])], **options)[1].tensor.shape == (4, 2, 2, 2)
    own = torch.tensor(m.vocabulary.frame(m.vocabulary.modalities[1], (5,)))
    assert m.sample(own, **options)[1].tensor.shape == (5, 8)
    spelled = [ids(1), ids(m.meta_id), m.char_tokenizer("2"), ids(m.som_ids[1]), (1, randn(2, 8)), ids(m.eom_ids[1]), ids(2)]
    sample = m.sample(spelled, **options)
    assert sample[1].tensor.shape == (2, 8) and sample[2][:2].tolist() == [m.eom_ids[1], 2]
    forced = m.sample([prime], force_modality_at_start=0, **options)  # the argument counts, not the prompt's begin
    assert forced[1].modality_type == 0


def test_prompts_of_every_form() -> None:
    m = Transfusion(**TWO)
    options = dict(max_length=2, modality_steps=1, seed=1)
    action, text = randn(3, 8), ids(1, 2)
    assert len(m.sample_many(**options)) == len(m.sample_many(None, **options)) == len(m.sample_many([None], **options)) == 1
    assert m.sample_many(text, **options)[0][0][1:3].tolist() == [1, 2]
    assert m.sample_many((1, action), **options)[0][1].modality_type == 1
    for prompt in (text, text[None], [text], [text[None]], [None, text], [ids(1), torch.tensor(2)], [text, text.new_zeros(0)]):
        assert m.sample(prompt, **options)[0][:3].tolist() == [m.sos_id, 1, 2]
    for prompt in (None, [], [None], text.new_zeros(0), [text.new_zeros(0)], ids(m.sos_id), ids(-1)):
        assert m.sample(prompt, **options)[0][0] == m.sos_id
    assert m.sample(text.int(), **options)[0][1:3].tolist() == [1, 2]
    assert torch.equal(m.sample([m.sample(text, **options)[0][:3]], **options)[0], m.sample(text, **options)[0])


def test_each_prompt_may_force_another_modality() -> None:
    m = Transfusion(**TWO)
    forces = [0, (1, (5,)), None]
    drawn = m.sample_many([None, ids(1), ids(2)], force_modality_at_start=forces, max_length=1, modality_steps=1, seed=4)
    assert [sample[1].tensor.shape for sample in drawn[:2]] == [(4, 2, 2, 2), (5, 8)] and len(drawn[2]) == 1


def test_an_item_that_has_begun_is_finished() -> None:
    """However few tokens are asked for, and behind a prompt of any length; the default is 2,048 tokens more."""
    m = Transfusion(**(WORDS | dict(modality_default_shape=(40,))))
    prompt = ids(*[1] * 100)
    sample = m.sample(prompt, force_modality_at_start=0, max_length=1, modality_steps=1)
    assert sample[1].tensor.shape == (40, 8) and len(sample) == 3
    text = m.sample(prompt, max_length=4, text_temperature=0.0)[0]
    assert len(text) == 105 or int(text[-1]) == m.eos_id


def test_initial_noise_is_every_items() -> None:
    """Two items of one prompt begin at the same noise; and it depends on no seed."""
    m = scattered(Transfusion(**WORDS))
    noise = randn(6, 9).double()
    options = dict(modality_steps=2, max_length=1, cfg_scale=1.0, force_modality_at_start=(0, (3,)))
    first, second = (m.sample(ids(1), init_modality_noise=noise, seed=s, **options)[1].tensor for s in (1, 2))
    cut = m.sample(ids(1), init_modality_noise=noise[:3, :8], seed=3, **options)[1].tensor
    assert torch.equal(first, second) and torch.equal(first, cut)
    # the model is made to write two items, each of the default size
    with torch.no_grad():
        m.network.head.prior[m.som_ids[0]] = 100.0
    begun = m.sample(ids(1), max_length=14, modality_steps=1, cfg_scale=1.0, seed=1, init_modality_noise=noise)
    again = m.sample(ids(1), max_length=14, modality_steps=1, cfg_scale=1.0, seed=2, init_modality_noise=noise)
    items = [[e.tensor for e in sample if isinstance(e, Item)] for sample in (begun, again)]
    assert len(items[0]) >= 2 and all(torch.equal(a, b) for a, b in zip(*items, strict=True))


def test_labels_and_pictures_by_index() -> None:
    """What the training scripts of transfusion-pytorch unpack: label and picture, in this order, and the label's id."""
    m = Transfusion(num_text_tokens=10, dim_latent=4, modality_default_shape=(2, 2), transformer=WORDS["transformer"])
    maybe_label, maybe_image, *_ = m.sample(torch.tensor(7), force_modality_at_start=0, max_length=3, modality_steps=1)
    assert maybe_label[1].item() == 7 and maybe_image[1].shape == (2, 2, 4)
    _, image = maybe_image
    assert image is maybe_image.tensor
    _, maybe_image, maybe_label = m.sample(randn(2, 2, 4), max_length=1, modality_steps=1)[:3]
    assert maybe_image[1].shape == (2, 2, 4) and maybe_label[0] == m.eom_ids[0]
