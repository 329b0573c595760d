# ruff: noqa: C408
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false
"""Bad input, call by call: a ValueError that names the document, the item and the remedy, before anything is computed."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn, randn

from transfusion import Diffusion, Document, Media, Text
from transfusion.compat import Transfusion, print_modality_sample

WORDS = dict(num_text_tokens=16, dim_latent=8, modality_default_shape=(4,), transformer=dict(dim=32, depth=1, dim_head=16))


@pytest.fixture(autouse=True)
def _unchecked(unchecked) -> None:
    """As a user runs it."""


@pytest.fixture(scope="module")
def model() -> Transfusion:
    return Transfusion(**WORDS)


def ids(*numbers: int) -> torch.Tensor:
    return torch.tensor(numbers)


NAN = torch.full((4, 8), float("nan"))
LISTS: dict[str, tuple[object, str]] = {
    "no documents": ([], "no documents: give at least one"),
    "an empty document": ([[ids(1)], []], "document 1 is empty"),
    "an empty text": ([[ids(1), torch.zeros(0, dtype=torch.long)]], "document 0, item 1: text is .* at least 1 long"),
    "an empty item": ([[ids(1), randn(0, 8)]], "document 0, item 1: an item of shape .0, 8. holds nothing"),
    "the id of BOS": ([[ids(1, 16)]], "document 0, item 0: token id 16 is no text id: they run from 0 to 15"),
    "a large id": ([[ids(1000)]], "document 0, item 0: token id 1000"),
    "a negative id": ([[randn(4, 8), ids(-2)]], "document 0, item 1: token id -2"),
    "padding alone": ([[randn(4, 8), ids(-1, -1)]], "document 0, item 1: text of 2 ids that are all -1, which is padding"),
    "NaN": ([[ids(1), NAN]], "document 0, item 1: the item holds NaN or infinity"),
    "infinity": ([[ids(1), NAN.nan_to_num(float("inf"))]], "document 0, item 1: the item holds NaN or infinity"),
    "channels": ([[ids(1)], [ids(2), randn(4, 7)]], r"document 1, item 1: latents of modality 0 have 8 channels, .*not 7"),
    "channels first": ([[randn(8, 4)]], r"document 0, item 0: .* 8 channels.*see channel_first_latent"),
    "axes": (
        [[randn(2, 4, 8)]],
        r"document 0, item 0: latents of modality 0 have 2 axes.*not 3.*without a batch axis",
    ),
    "too few axes": ([[randn(8)]], "document 0, item 0: latents of modality 0 have 2 axes"),
    "too large": ([[randn(5000, 8)]], "document 0, item 0: .*exceeds the largest"),
    "uint8": (
        [[torch.zeros(4, 8, dtype=torch.uint8)]],
        r"document 0, item 0: a tensor of torch.uint8 .* scale pictures to \[-1, 1\]",
    ),
    "int16 text": ([[ids(1).short()]], r"document 0, item 0: a tensor of torch.int16 .*\.long\(\)"),
    "bool text": ([[ids(1).bool()]], "document 0, item 0: a tensor of torch.bool"),
    "text of two axes": ([[torch.ones(2, 3).long()]], "document 0, item 0: text is a tensor of ids of one axis"),
    "modality 3": ([[(3, randn(4, 8))]], "document 0, item 0: no modality 3: they run from 0 to 0"),
    "modality -1": ([[(-1, randn(4, 8))]], "document 0, item 0: no modality -1"),
    "text with a modality": ([[(0, ids(1))]], "document 0, item 0: an item of modality 0 must be a float tensor"),
    "a list of numbers": ([[[1, 2, 3]]], "document 0, item 0: list .* is no item"),
    "None": ([[None]], "document 0, item 0: NoneType .* is no item"),
    "numpy": ([[np.zeros((4, 8))]], "document 0, item 0: ndarray .* torch.from_numpy"),
    "letters": ([["abc"]], "document 0, item 0: "),
    "a forgotten list": ([ids(1), randn(4, 8)], "document 0 is a torch.int64 tensor .*not a list of items"),
    "a forgotten list of pairs": ([(0, randn(4, 8))], "document 0 is tuple .*not a list of items"),
    "one string": ("abc", "a list with one entry a document is wanted"),
    "a number": (7, "a list with one entry a document is wanted"),
    "a triple": ([[(0, 1, 2)]], "document 0, item 0: tuple .* is neither"),
    "a weight": ([[(ids(1), "a")]], "document 0, item 0: a loss weight is a number"),
    "a negative weight": (
        [[(0, randn(4, 8), -1.0)]],
        "document 0, item 0: a loss weight is a number, 0 .context only. or more",
    ),
    "weights of another length": ([[(ids(1, 2, 3), [1.0, 0.0])]], "document 0, item 0: 2 weights for 3 token ids"),
}


@pytest.mark.parametrize("name", LISTS)
def test_bad_lists_are_refused(model: Transfusion, name: str) -> None:
    batch, message = LISTS[name]
    with pytest.raises(ValueError, match=message):
        model(batch)


PROMPTS = {"an empty document", "an empty text", "padding alone", "None", "a forgotten list", "a forgotten list of pairs"}
"""What is a prompt, and no document."""
OTHERWISE = {"the id of BOS", "a large id", "one string", "a number", "letters"}
"""What a prompt is refused for with another message: `test_control_tokens_in_the_wrong_place_are_refused`."""


@pytest.mark.parametrize("name", [n for n in LISTS if n not in PROMPTS | OTHERWISE])
def test_bad_prompts_are_refused(model: Transfusion, name: str) -> None:
    batch, message = LISTS[name]
    with pytest.raises(ValueError, match=message):
        model.sample_many(batch, max_length=8)


PROMPTS_REFUSED: dict[str, tuple[object, str]] = {
    "padding's own id": ([ids(1, 16)], "document 0, item 0: <PAD> is no part of a prompt"),
    "a BOS later": ([ids(1, 17)], "document 0, item 0: model.sos_id stands at the start"),
    "an EOS": ([ids(1, 18)], "document 0, item 0: the prompt is complete, it holds model.eos_id: leave that out"),
    "an END without an item": ([ids(1, 20)], "document 0, item 0: <END modality0> stands behind an item"),
    "a size without a begin": ([ids(1, 25)], "document 0: the prompt ends in the size of an item: add its begin"),
    "text in a size": ([ids(25, 1)], "document 0, item 0: text where an item has begun"),
    "text behind a begin": ([ids(19), ids(1)], "document 0, item 1: text where an item has begun"),
    "two begins": ([ids(19, 19)], "document 0, item 0: two items begin behind each other"),
    "a spelled size without its id": ([ids(99999)], "document 0, item 0: token id 99999 is no text id"),
    "another modality": ([ids(19), (1, randn(4, 8))], "document 0, item 1: no modality 1"),
    "a number": (7, "document 0 is int"),
    "a text of texts": (torch.ones(2, 3).long(), r"document 0, item 0: text is .* sample_many\(\[\*ids\]\)"),
}


@pytest.mark.parametrize("name", PROMPTS_REFUSED)
def test_control_tokens_in_the_wrong_place_are_refused(model: Transfusion, name: str) -> None:
    prompt, message = PROMPTS_REFUSED[name]
    with pytest.raises(ValueError, match=message):
        model.sample(prompt, max_length=8)


CALLS: dict[str, tuple[Callable[[Transfusion], object], str]] = {
    "latents of other channels": (lambda m: m(randn(2, 4, 7)), "document 0, item 0: .*8 channels"),
    "latents without a batch": (lambda m: m(randn(4, 8)), "document 0, item 0: latents of modality 0 have 2 axes"),
    "two kinds of times": (
        lambda m: m([[randn(4, 8)]], times=[[0.5]], noise_levels=[[0.5]]),
        "times and noise_levels, not both",
    ),
    "times in steps": (lambda m: m([[randn(4, 8)]], times=[[37]]), "steps of T are given as noise_levels"),
    "forced modalities for other prompts": (
        lambda m: m.sample_many([None, None], force_modality_at_start=[0]),
        "1 entries for 2 prompts",
    ),
    "no latents": (lambda m: m(randn(0, 4, 8)), "holds nothing"),
    "ids of one axis": (lambda m: m(ids(1, 2)), "ids are .document, length."),
    "ids too large": (lambda m: m(ids(1, 99)[None]), "document 0, item 0: token id 99"),
    "modality_type with lists": (lambda m: m([[ids(1)]], modality_type=0), "write .index, tensor."),
    "modality_type 4": (lambda m: m(randn(2, 4, 8), modality_type=4), "no modality 4"),
    "missing times": (lambda m: m([[randn(4, 8), randn(2, 8)]], times=[[0.5]]), r"document 0 has 2 items and times \[0.5\]"),
    "rows of times": (lambda m: m([[randn(4, 8)]], times=[[0.5], [0.5]]), "times has 2 rows for 1 documents"),
    "times beyond": (lambda m: m([[randn(4, 8)]], times=[[5.0]]), r"document 0, times: .* from 0 to 1, not 5.0"),
    "NaN times": (lambda m: m([[randn(4, 8)]], times=[[float("nan")]]), "document 0, times: .* from 0 to 1, not nan"),
    "noised without times": (lambda m: m([[randn(4, 8)]], noised=True), "need the times"),
    "noise of another shape": (lambda m: m([[randn(4, 8)]], noise=[[randn(3, 8)]]), "noise"),
    "rows of noise": (lambda m: m([[randn(4, 8)]], noise=[]), "noise has 0 rows for 1 documents"),
    "prob_uncond": (lambda m: m([[ids(1)]], prob_uncond=5.0), "shares of 0 or more that sum to 1"),
    "an EMA that is none": (lambda m: m([[ids(1)]], velocity_consistency_ema_model=nn.Linear(1, 1)), "EMA model must be"),
    "loss of a bare string": (lambda m: m.loss("abc"), "put it in a list"),
    "loss of an empty document": (lambda m: m.loss([Document(())]), "document 0 is empty"),
    "loss of NaN": (lambda m: m.loss([Document((Media(NAN.T, "modality0"),))]), "document 0: .*NaN"),
    "loss of an unknown modality": (
        lambda m: m.loss([Document((Media(randn(8, 4), "sound"),))]),
        "document 0, segment 0: no modality 'sound'",
    ),
    "a text of the wrong ids": (lambda m: m.loss([[Text((1, 99))]]), "document 0, segment 0: token id 99"),
    "a prompt of words": (lambda m: m.sample_many("abc"), "document 0, item 0: the tokenizer cannot encode 'abc'"),
    "sample of a bad prompt": (lambda m: m.sample([ids(1), randn(4, 7)]), "document 0, item 1: .*8 channels"),
    "a prompt too long": (lambda m: m.sample(torch.ones(70_000).long()), "take 70001 tokens, the context has 65536"),
    "one prompt too long": (lambda m: m.sample_many([None, torch.ones(70_000).long()]), "prompt 1: .* shorten the prompt"),
    "max_length": (lambda m: m.sample(max_length=0), "max_length"),
    "force": (lambda m: m.sample(force_modality_at_start=2), "no modality 2"),
    "force -1": (lambda m: m.sample(force_modality_at_start=-1), "no modality -1"),
    "forced size": (lambda m: m.sample(force_modality_at_start=(0, (2, 2))), "2 axes"),
    "forced size 0": (lambda m: m.sample(force_modality_at_start=(0, (0,))), "positive"),
    "fixed size": (lambda m: m.sample(force_modality_at_start=0, fixed_modality_shape=(2, 2)), "2 axes"),
    "steps": (lambda m: m.sample(modality_steps=0), "at least 1"),
    "temperature": (lambda m: m.sample(text_temperature=-1.0), "temperature must be a finite number of at least 0"),
    "min_p": (lambda m: m.sample(text_min_p=2.0), "min_p must be a finite number from 0 to 1"),
    "noise of another size": (
        lambda m: m.sample(force_modality_at_start=0, init_modality_noise=randn(3, 8)),
        "initial noise has shape",
    ),
    "a prompt of one axis": (lambda m: m.generate_text_only(ids(1, 2), 4), r"\[document, length\]"),
    "a prompt of floats": (lambda m: m.generate_text_only(randn(1, 2), 4), r"\[document, length\]"),
    "length": (lambda m: m.generate_text_only(ids(1)[None], 0), "at least 1"),
    "batch_size": (lambda m: m.generate_modality_only(0), "batch_size"),
    "size of items": (lambda m: m.generate_modality_only(1, fixed_modality_shape=(2, 2)), "2 axes"),
    "times as a number": (lambda m: m([[randn(4, 8)]], times=5), "times has no rows for 1 documents: give a list for each"),
    "times as words": (lambda m: m([[randn(4, 8)]], times=[["a"]]), "document 0, times: a time .* must be a finite number"),
    "times too many": (lambda m: m([[randn(4, 8)]], times=[[0.5, 0.5]]), r"document 0 has 1 items and times \[0.5, 0.5\]"),
    "a function that is none": (lambda m: m([[randn(4, 8)]], num_modalities_to_times_fn=3), "is a function"),
    "noise that is none": (lambda m: m([[randn(4, 8)]], noise=[[None]]), "document 0, noise: noise is a tensor"),
    "noise too much": (
        lambda m: m([[randn(4, 8)]], noise=[[randn(4, 8)] * 2]),
        "document 0 has 1 items and noise .*: give a list with one an item",
    ),
    "noise of other channels": (lambda m: m([[randn(4, 8)]], noise=[[randn(4, 7)]]), "document 0, noise: .* 8 channels"),
    "decoders of no modality": (lambda m: m([[randn(4, 8)]], decoders={"x": nn.Identity()}), "decoders: no modality 'x'"),
    "one number": (lambda m: m(torch.tensor(1.0)), "not a single number"),
    "steps of a half": (lambda m: m.sample(modality_steps=1.5), "whole number"),
    "a sampler by name": (lambda m: m.sample(sampler="euler"), "sampler is Euler"),
    "guidance of NaN": (lambda m: m.sample(cfg_scale=float("nan")), "cfg_scale must be a finite number, not nan"),
    "guidance by a word": (lambda m: m.sample(cfg_scale="a"), "cfg_scale must be a finite number"),
    "a temperature of NaN": (lambda m: m.sample(text_temperature=float("nan")), "temperature must be a finite number"),
    "a temperature as a word": (lambda m: m.sample(text_temperature="a"), "temperature must be a finite number"),
    "a forced size as a number": (
        lambda m: m.sample(force_modality_at_start=(0, 4)),
        "a size is a tuple of positive whole numbers",
    ),
    "a fixed size as a number": (lambda m: m.sample(fixed_modality_shape=4), "a size is a tuple of positive whole numbers"),
    "noise of NaN to start from": (
        lambda m: m.sample(force_modality_at_start=0, init_modality_noise=NAN),
        "init_modality_noise is a tensor of finite",
    ),
    "a length of a half": (lambda m: m.generate_text_only(ids(1)[None], 1.5), "at least 1"),
    "a text of text ids that are none": (lambda m: m.generate_text_only(ids(99)[None], 2), "token id 99"),
    "steps 0 of items alone": (lambda m: m.generate_modality_only(1, modality_steps=0), "at least 1"),
    "modality 7 of items alone": (lambda m: m.generate_modality_only(1, modality_type=7), "no modality 7"),
    "a mask of another length": (lambda m: m([[(0, randn(4, 8), [1.0, 0.0])]]), "document 0, item 0"),
    "an EMA's decay": (lambda m: m.create_ema(2.0), r"decay must be .*\[0, 1\)"),
    "a sample of words": (lambda m: print_modality_sample(["abc"]), "list of tensors and items"),
    "a Media's dtype": (lambda m: m.loss([[Media(torch.zeros(8, 4, dtype=torch.uint8), "modality0")]]), "floating point"),
    "a Text of floats": (lambda m: Text((0.5,)), "token ids \\(integers\\)"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("name", CALLS)
def test_bad_arguments_of_calls_are_refused(model: Transfusion, name: str) -> None:
    call, message = CALLS[name]
    with pytest.raises(ValueError, match=message):
        call(model)


BUILDS: dict[str, tuple[dict[str, object], str]] = {
    "no transformer": ({"transformer": None}, "transformer"),
    "depth 0": ({"transformer": dict(dim=32, depth=0)}, "depth"),
    "no depth": ({"transformer": dict(dim=32)}, "needs dim and depth"),
    "an odd head": ({"transformer": dict(dim=32, depth=1, dim_head=7)}, "even head_dim"),
    "an unknown option": ({"transformer": dict(dim=32, depth=1, qk_rmsnrm=True)}, "did you mean 'qk_rmsnorm'"),
    "an unknown word": ({"dim_latents": 4}, "did you mean 'dim_latent'"),
    "tokens below 0": ({"num_text_tokens": -5}, "num_text_tokens"),
    "latents of 0 channels": ({"dim_latent": 0}, "dim_latent"),
    "prob_uncond 5": ({"prob_uncond": 5.0}, "prob_uncond must be a finite number from 0 to 1"),
    "a shape of 0": ({"modality_default_shape": (0,)}, "positive"),
    "a shape too many": ({"modality_default_shape": ((4,), (2,))}, "modality_default_shape has 2 entries for 1 modalities"),
    "two latents, one encoder a list": (
        {"dim_latent": (8, 4), "modality_encoder": (nn.Identity(),)},
        "1 entries for 2 modalities",
    ),
    "axes that contradict": ({"modality_num_dim": 2}, "modality_default_shape .4,. needs modality_num_dim 1, not 2"),
    "nine axes": ({"modality_default_shape": (2,) * 9}, "too few for 9 axes of coordinates"),
    "a processing": ({"modality_processing": "fast"}, "modality_processing 'fast'; "),
    "a solver": ({"odeint_kwargs": {"method": "dopri5"}}, "method is one of midpoint, heun2, euler"),
    "a clamp beside a diffusion": ({"eps": 0.01, "diffusion": Diffusion()}, "diffusion=Diffusion.min_divisor"),
    "encoders without batches": ({"modality_encoder_decoder_requires_batch_dim": False}, "always get batches"),
    "axial of other modalities": ({"add_pos_emb": (True, False)}, "add_pos_emb has 2 entries for 1 modalities"),
    "a largest below the default": ({"modality_max_shape": (2,)}, "exceeds|largest"),
    "a softcap of 0": ({"transformer": dict(dim=32, depth=1, softcap_value=0.0)}, "soft"),
    "width 0": ({"transformer": dict(dim=0, depth=1)}, "dim must be a whole number of at least 1"),
    "a head of 0": ({"transformer": dict(dim=32, depth=1, dim_head=0)}, "dim_head must be a whole number of at least 1"),
    "a depth as a word": ({"transformer": dict(dim=32, depth="1")}, "depth must be a whole number of at least 1"),
    "a feed-forward of 0": (
        {"transformer": dict(dim=32, depth=1, ff_expansion_factor=0)},
        "ff_expansion_factor must be above 0",
    ),
    "attn_kwargs": ({"transformer": dict(dim=32, depth=1, attn_kwargs=3)}, "attn_kwargs is a dict"),
    "an encoder that is none": ({"modality_encoder": "vae"}, "an encoder or decoder is a torch.nn.Module"),
    "a diffusion by name": ({"diffusion": "ddpm"}, "diffusion is a Diffusion"),
    "one module of a pair": ({"pre_post_transformer_enc_dec": nn.Identity()}, "pair of modules"),
    "a pair of no modules": ({"pre_post_transformer_enc_dec": (nn.Identity(), 3)}, "pre_post_transformer_enc_dec"),
    "a shape as a word": (
        {"modality_default_shape": "4"},
        "modality_default_shape: a size is a tuple of positive whole numbers",
    ),
    "a weight as a word": ({"flow_loss_weight": "a"}, "flow_loss_weight"),
    "a weight of NaN": ({"flow_loss_weight": float("nan")}, "flow_loss_weight"),
    "ignore_index": ({"ignore_index": -100}, "a weight of 0 turns the loss off"),
}


@pytest.mark.parametrize("name", BUILDS)
def test_bad_constructor_arguments_are_refused(name: str) -> None:
    words, message = BUILDS[name]
    with pytest.raises(ValueError, match=message):
        Transfusion(**(WORDS | words))


def test_unusual_dtypes_and_containers_are_accepted() -> None:
    """Half and double precision, integers of 32 bits, one id without an axis: taken, not refused."""
    model = Transfusion(**WORDS).eval()
    a = randn(4, 8)
    once = model([[ids(1), a]], seed=1)
    assert torch.allclose(model([[ids(1).int(), a.double()]], seed=1), once)
    assert torch.isfinite(model([[ids(1), a.half()]], seed=1)) and torch.isfinite(model([[ids(1), a.bfloat16()]], seed=1))
    assert torch.equal(model([[torch.tensor(1), a]], seed=1), once)
    assert torch.equal(model(((ids(1), a),), seed=1), once)
    assert model.sample(modality_steps=1, max_length=20, force_modality_at_start=0)[1].tensor.shape == (4, 8)
    assert model.generate_text_only(torch.zeros(2, 0, dtype=torch.long), 3).shape == (2, 3)
