# ruff: noqa: C408
"""Blocks may be wrapped: by activation checkpointing, by FSDP, by torch.compile. Nothing asks for their class."""

import copy
import warnings
from functools import partial

import pytest
import torch
from torch import Tensor, distributed, nn, randn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing

from transfusion.compat import Transfusion
from transfusion.nn.transformer import Block

OPTIONS = {
    "plain": {},
    "with options": dict(unet_skips=True, use_value_residual=True, modality_weights="all", adaln=True),
}


@pytest.fixture(autouse=True)
def _unchecked(unchecked) -> None:
    """As a user runs it."""


def model(options: dict[str, object]) -> Transfusion:
    torch.manual_seed(0)
    transformer = dict(dim=32, depth=3, dim_head=16, **options)
    return Transfusion(num_text_tokens=16, dim_latent=8, modality_default_shape=(4,), transformer=transformer)


def gradients(m: nn.Module, batch: object) -> tuple[Tensor, dict[str, Tensor]]:
    m.zero_grad()
    loss = m(batch, seed=1)
    loss.backward()
    names = {name.replace("_checkpoint_wrapped_module.", "").replace("_orig_mod.", ""): p for name, p in m.named_parameters()}
    return loss.detach(), {name: p.grad for name, p in names.items() if p.grad is not None}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("wrap", ["checkpoint", "compile"])
def test_wrapped_blocks_train_and_sample_as_they_did(wrap: str, options: dict[str, object]) -> None:
    m, batch = model(options), [[torch.tensor([1, 2]), randn(4, 8), torch.tensor([3])]]
    loss, expected = gradients(m, batch)
    media = m.network.transformer.media_parameters()
    wrapped = copy.deepcopy(m)
    blocks = wrapped.network.transformer.blocks
    if wrap == "checkpoint":
        apply_activation_checkpointing(wrapped, check_fn=lambda module: isinstance(module, Block))
    else:
        for i, block in enumerate(blocks):
            blocks[i] = torch.compile(block, backend="eager")  # type: ignore[assignment]
    warnings.simplefilter("ignore")  # of torch.compile, about what it reads
    assert not any(type(block).__name__.startswith("Block") for block in blocks)
    again, got = gradients(wrapped, batch)
    assert torch.allclose(loss, again) and got.keys() == expected.keys()
    assert all(torch.allclose(got[name], expected[name], atol=1e-6) for name in expected)
    assert len(wrapped.network.transformer.media_parameters()) == len(media)
    wrapped.sample(max_length=2, force_modality_at_start=0, modality_steps=1)


@pytest.mark.slow
def test_fsdp_wraps_each_block(tmp_path) -> None:
    from torch.distributed.fsdp import FullyShardedDataParallel
    from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy

    m, batch = model({}), [[torch.tensor([1, 2]), randn(4, 8), torch.tensor([3])]]
    loss, _ = gradients(m, batch)
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            policy = partial(transformer_auto_wrap_policy, transformer_layer_cls={Block})
            sharded = FullyShardedDataParallel(m, auto_wrap_policy=policy, device_id=torch.device("cpu"))
            assert all(isinstance(block, FullyShardedDataParallel) for block in m.network.transformer.blocks)
            again = sharded(batch, seed=1)
            again.backward()
        assert torch.allclose(again, loss)
        frozen = model({})
        frozen.attach("modality0", nn.Linear(3, 8))
        parallel = nn.parallel.DistributedDataParallel(frozen)  # an encoder's weights get no gradient, and are not waited for
        for _ in range(3):
            parallel([[torch.tensor([1]), randn(4, 3)]]).backward()
    finally:
        distributed.destroy_process_group()
