# ruff: noqa: C408
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false
"""What the public implementations spend time and memory on, or lack around their models, and this one does not."""

import sys

import jaxtyping
import pytest
import torch
from torch import Tensor, nn, randn
from torch.autograd.graph import saved_tensors_hooks

from transfusion import TransformerConfig
from transfusion.compat import Transfusion
from transfusion.generate.runner import ModelRunner
from transfusion.nn.transformer import Transformer


@pytest.fixture(autouse=True)
def _unchecked(unchecked) -> None:
    """As a user runs it."""


WORDS = dict(num_text_tokens=16, dim_latent=8, modality_default_shape=(4,), transformer=dict(dim=32, depth=2, dim_head=16))


def ids(*numbers: int) -> Tensor:
    return torch.tensor(numbers)


def test_new_shapes_cost_no_tracing_or_compilation() -> None:
    """Counted in calls of Python functions, not in time: nothing is traced or compiled for a shape that was not seen before."""
    m = Transfusion(**WORDS).eval()

    def calls(length: int) -> int:
        batch, count = [[torch.randint(0, 16, (length,)), randn(length, 8)]], 0

        def called(frame: object, event: str, _: object) -> None:
            nonlocal count
            count += event == "call"

        sys.setprofile(called)
        try:
            m(batch)
        finally:
            sys.setprofile(None)
        return count

    for _ in range(3):
        calls(20)
    known = calls(20)
    assert known > 100 and max(calls(n) for n in range(21, 29)) < 1.2 * known


def test_no_cache_grows_with_the_number_of_shapes() -> None:
    """No cache of functions is without bounds, but those over the program's own classes and files."""
    Transfusion(**WORDS)([[ids(1), randn(4, 8)]])
    unbounded = {
        f"{module.__name__}.{name}"
        for module in list(sys.modules.values())
        if module.__name__.startswith("transfusion.")
        for name, value in vars(module).items()
        if hasattr(value, "cache_info") and value.cache_parameters()["maxsize"] is None and value.__module__ == module.__name__
    }
    assert unbounded <= {
        "transfusion.config.hints",
        "transfusion.data.sources.digits.read_digits",
        "transfusion.data.sources.actions.is_held_out",
        "transfusion.data.sources.clips.is_held_out",
        "transfusion.data.sources.scenes.is_held_out",
        "transfusion.evaluation.scenes.scene_classifier",
    }, unbounded


def test_a_layer_has_12_width_squared_weights() -> None:
    """12 width^2 weights a layer, at 512 x 8: nothing more for the time of items."""
    transformer = Transformer(TransformerConfig(width=512, depth=8, num_heads=8), 1)
    layers = sum(p.numel() for p in transformer.parameters())
    assert layers < 1.01 * 8 * 12 * 512**2


def kept(m: Transfusion, batch) -> int:
    """Bytes kept for the backward pass."""
    sizes: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(note, lambda tensor: tensor):
        loss = m(batch, seed=1)
    assert loss.requires_grad
    return sum(sizes.values())


def test_activation_memory_is_linear_in_depth() -> None:
    batch = [[ids(*range(10)), randn(20, 8)]]
    four, eight, twelve = (
        kept(Transfusion(**(WORDS | {"transformer": dict(dim=32, depth=d, dim_head=16)})), batch) for d in (4, 8, 12)
    )
    assert twelve - eight <= 1.02 * (eight - four)


def test_attention_scores_are_not_saved_for_backward() -> None:
    """Four times the length takes half the memory, or less, that 16 heads of scores alone would."""
    m = Transfusion(**(WORDS | {"transformer": dict(dim=64, depth=2, dim_head=4, heads=16)}))
    short, long = (kept(m, [[torch.randint(0, 16, (n,)), randn(4, 8)]]) for n in (256, 1024))
    assert long < 5.5 * short and long < 2 * 16 * 1024**2 * 4 / 2


def test_the_head_computes_targets_only_and_a_patcher_runs_once() -> None:
    m = Transfusion(**WORDS).eval()
    rows, calls = [], []
    m.network.head.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    m.network.patcher_of(0).proj_out.register_forward_hook(lambda *_: calls.append(1))
    m([[ids(1, 2, 3), randn(4, 8)] for _ in range(64)])
    assert calls == [1]
    # of each document: three ids, the size of the item, its BEGIN, and the end
    assert sum(rows) == 64 * 6


def test_the_kv_cache_is_written_in_place(monkeypatch) -> None:
    places: set[tuple[int, ...]] = set()
    whole = ModelRunner._forward

    def watched(self, *args, **options):
        places.add(tuple(t.data_ptr() for t in (*self.cache.keys, *self.cache.values)))
        return whole(self, *args, **options)

    monkeypatch.setattr(ModelRunner, "_forward", watched)
    m = Transfusion(**WORDS)
    m.sample_many([None, ids(1, 2)], force_modality_at_start=0, max_length=40, modality_steps=3)
    assert len(places) == 1


def test_many_prompts_share_forward_passes() -> None:
    """Prefill and denoising of all of them, with guidance, go through the trunk together."""
    m = Transfusion(**WORDS)
    passes: list[int] = []
    m.network.transformer.register_forward_hook(lambda *_: passes.append(1))
    counts = []
    for count in (1, 6):
        passes.clear()
        prompts = [ids(*range(1, 2 + i)) for i in range(count)]
        m.sample_many(prompts, force_modality_at_start=0, max_length=count + 8, modality_steps=4, cfg_scale=3.0, text_min_p=1.0)
        counts.append(len(passes))
    assert counts[1] <= counts[0] + 8  # the shorter prompts may write more text


def test_sampling_prints_nothing(capfd) -> None:
    m = Transfusion(**WORDS)
    m.sample(force_modality_at_start=0, max_length=12, modality_steps=2)
    m.generate_text_only(ids(1)[None], 4)
    m.generate_modality_only(2, modality_steps=2)
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""


def test_a_replaced_submodule_is_used() -> None:
    m = Transfusion(**WORDS).eval()
    batch = [[ids(1), randn(4, 8)]]
    before = m(batch, seed=1)
    m.network.patcher_of(0).proj_in = nn.Linear(8, 32)
    assert not torch.equal(m(batch, seed=1), before)


def test_sampling_passes_runtime_type_checks() -> None:
    jaxtyping.config.update("jaxtyping_disable", False)
    m = Transfusion(**WORDS)
    many = m.sample_many([None, ids(1, 2)], force_modality_at_start=0, max_length=20, modality_steps=2)
    assert [s[1].tensor.shape for s in many] == [(4, 8)] * 2
    assert m.generate_text_only(ids(1)[None], 5).shape == (1, 4)
    assert m.generate_modality_only(2, modality_steps=2).shape == (2, 4, 8)


def test_create_ema_takes_the_names_of_ema_pytorch() -> None:
    m = Transfusion(**WORDS)
    ema = m.create_ema(beta=0.9, update_every=5)
    assert (ema.decay, ema.every) == (0.9, 5)
    assert m.create_ema(0.9, update_every=5).every == 5 and m.create_ema(beta=0.9).decay == m.create_ema(0.9).decay
    with pytest.raises(ValueError, match="no option 'evry'; did you mean 'every'"):
        m.create_ema(0.9, evry=5)
    with pytest.raises(ValueError, match="no option 'momentum'; there are decay, every"):
        m.create_ema(momentum=0.9)
    assert len(ema.sample_many([None, ids(1)], max_length=10, modality_steps=1)) == 2
