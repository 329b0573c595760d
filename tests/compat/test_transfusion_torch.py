"""Transfusion.torch's usage with only the import changed: shapes, what sees what, training, generation, and what is refused."""

import copy
import pickle
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import transfusion
from transfusion.compat.transfusion_torch import (
    CosineDecayWithWarmup,
    DiffusionUtils,
    FashionMNIST_config,
    LLaMA,
    MNIST_config,
    PatchOps,
    Transfussion,
)
from transfusion.model.denoising import NoisedGroup
from transfusion.nn.attention import AttentionMetadata

BOI, IGNORE, EOI, EOS = 10, 11, 12, 13


@dataclass
class Small(MNIST_config):
    """Images of 4 x 4 in patches of 2 x 2, 20 steps."""

    d_model: int = 32
    num_heads: int = 2
    num_layers: int = 2
    H: int = 4
    W: int = 4
    maxlen: int = 40
    num_timesteps: int = 20
    device = torch.device("cpu")


def small(config: Any = Small, *, seed: int = 0) -> Transfussion:
    torch.manual_seed(seed)
    return Transfussion(LLaMA(config), config)


def lively(model: Transfussion) -> Transfussion:
    """With weights of a size at which every input matters."""
    torch.manual_seed(1)
    for p in model.parameters():
        nn.init.normal_(p, std=0.3)
    return model.eval()


def ids(*tokens: int) -> Tensor:
    return torch.tensor(tokens)


def image(patches: int = 4, step: int = 3, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    return torch.randn(patches, 4, generator=torch.Generator().manual_seed(seed)), torch.tensor([step])


# ---- usage ----------------------------------------------------------------------------------------------------------


def test_the_usage_block_runs_as_printed() -> None:
    class config(MNIST_config):
        num_layers = 2  # as printed there are seven

    model = Transfussion(model=LLaMA(config), config=config)

    text_and_images = [
        [
            torch.randint(0, 10, (39,)),
            (torch.randn(345, config.patch_size**2 * config.in_channels), torch.randint(0, config.num_timesteps, (1,))),
            torch.randint(0, 10, (14,)),
        ],
        [
            torch.randint(0, 10, (16,)),
            (torch.randn(359, config.patch_size**2 * config.in_channels), torch.randint(0, config.num_timesteps, (1,))),
            torch.randint(0, 10, (5,)),
            (torch.randn(2, config.patch_size**2 * config.in_channels), torch.randint(0, config.num_timesteps, (1,))),
            torch.randint(0, 10, (9,)),
        ],
    ]
    output = model(text_and_images, [["text", "image", "text"], ["text", "image", "text", "image", "text"]])

    predictions, kinds = output
    assert kinds == [["text", "image", "text"], ["text", "image", "text", "image", "text"]]
    assert [[tuple(p.shape) for p in sample] for sample in predictions] == [
        [(1, 39, 14), (1, 345, 4), (1, 14, 14)],
        [(1, 16, 14), (1, 359, 4), (1, 5, 14), (1, 2, 4), (1, 9, 14)],
    ]
    assert all(p.isfinite().all() for sample in predictions for p in sample)


def test_the_configs_have_the_sizes_of_their_names() -> None:
    assert (MNIST_config.N, MNIST_config.maxlen, MNIST_config.lm_output_units) == (196, 398, 14)
    assert MNIST_config(maxlen=10).maxlen == 10 and MNIST_config().BOI == 10 and MNIST_config.EOS == 13
    assert (FashionMNIST_config.d_model, FashionMNIST_config.num_layers, FashionMNIST_config.N) == (512, 8, 196)
    assert MNIST_config.device.type in ("cpu", "cuda") and MNIST_config().dtype_type in ("float32", "bfloat16")


def test_a_config_may_be_an_object_with_numbers_as_ids_and_grouped_heads() -> None:
    class Words:
        num_layers, d_model, num_heads, n_kv_heads, dropout_rate, maxlen, text_maxlen = 1, 16, 2, 1, 0.1, 20, 8
        patch_size, in_channels, out_channels, H, W, num_timesteps = 2, 3, 3, 4, 6, 10
        lm_output_units, BOI, IGNORE_TOKEN, EOI, EOS = 7, 0, None, 2, 4

    model = small(Words())
    assert model.model.config.num_kv_heads == 1
    assert model.BOI == 0 and model.IGNORE_TOKEN is None
    text, noise = model.forward_unbatched([ids(6, 0), (torch.randn(6, 12), ids(10))], ["text", "image"])
    assert text.shape == (1, 2, 7) and noise.shape == (1, 6, 12)


def test_samples_are_computed_as_alone_and_a_batch_as_its_samples() -> None:
    model = lively(small())
    samples = [[ids(1, 2), image(5, 3), ids(4)], [image(4, 20), ids(7, BOI), image(5, 0, seed=2)], [ids(3)]]
    kinds = [["text", "image", "text"], ["image", "text", "image"], ["text"]]
    together, _ = model(samples, kinds)
    for sample, kind, predicted in zip(samples, kinds, together, strict=True):
        for alone, entry in zip(model.forward_unbatched(sample, kind), predicted, strict=True):
            assert torch.allclose(alone, entry, atol=1e-4)  # 1e-6 measured

    text, (patches, steps) = torch.randint(0, 14, (3, 5)), (torch.randn(3, 4, 4), ids(0, 7, 20))
    stacked, names = model([text, (patches, steps)], ["text", "image"])
    assert names == ["text", "image"] and [tuple(p.shape) for p in stacked] == [(3, 5, 14), (3, 4, 4)]
    rows, _ = model([[t, (p, s)] for t, p, s in zip(text, patches, steps, strict=True)], [["text", "image"]] * 3)
    assert all(torch.equal(stacked[j][i], rows[i][j][0]) for i in range(3) for j in range(2))


def test_text_sees_what_is_before_it_and_an_image_also_itself() -> None:
    model, kinds = lively(small()), ["text", "image", "text"]

    def run(first: int = 1, patch: int = 0, last: int = 5, step: int = 3) -> list[Tensor]:
        patches, _ = image(4)
        patches[3] += patch
        return model.forward_unbatched([ids(2, first), (patches, ids(step)), ids(last, 4)], kinds)

    base = run()

    def same(other: list[Tensor]) -> list[list[bool]]:
        return [
            [torch.allclose(a, b, atol=1e-5) for a, b in zip(x[0], y[0], strict=True)] for x, y in zip(base, other, strict=True)
        ]

    everything = [[True, True], [True] * 4, [True, True]]
    assert same(run()) == everything
    assert same(run(first=3)) == [[True, False], [False] * 4, [False, False]]
    assert same(run(patch=1)) == [[True, True], [False] * 4, [False, False]]
    assert same(run(step=9)) == [[True, True], [False] * 4, [False, False]]
    assert same(run(last=6)) == [[True, True], [True] * 4, [False, False]]


def test_steps_are_shares_of_num_timesteps_and_patches_are_noised_already() -> None:
    """The network itself, on the same patches at time t / T."""
    model = lively(small())
    patches, step = image(4, 5)
    (predicted,) = model.forward_unbatched([(patches, step)], ["image"])
    network, words = model.transfusion.network, model.transfusion.vocabulary
    latents = model.patch_ops.unpatchify(patches)[None]
    group = NoisedGroup(0, (2, 2), latents, torch.tensor([5 / 20]), torch.tensor([[1, 2, 3, 4]]))
    metadata = AttentionMetadata.of_rows(
        torch.zeros(1, 5, dtype=torch.int64), torch.tensor([[-1, 0, 0, 0, 0]]), torch.zeros(1, 5, dtype=torch.bool)
    )
    tokens = torch.tensor([[words.bos, *[words.pad] * 4]])
    h, skips = network.hidden(tokens, torch.arange(5.0)[None, :, None], [group], metadata=metadata)
    (noise,) = network.predict(h, [group], skips)
    assert torch.allclose(model.patch_ops.patchify(noise[0]), predicted[0], atol=1e-5)


def test_the_transformer_takes_the_mask_of_images() -> None:
    """llama(h, mask), with blocks for images of two and of three slots."""
    llama, h = LLaMA(Small), torch.randn(2, 8, 32)
    sees = torch.ones(10, 10, dtype=torch.bool).tril()
    sees[1:3, 1:3] = sees[3:6, 3:6] = True
    mask = torch.zeros(10, 10).masked_fill(~sees, -torch.inf)[None, None]
    spans = torch.tensor([[-1, 0, 0, 1, 1, 1, -1, -1]]).expand(2, -1)
    metadata = AttentionMetadata.of_rows(torch.zeros_like(spans), spans, torch.zeros_like(spans, dtype=torch.bool))
    expected = llama(h, torch.arange(8.0).expand(2, 8)[..., None], metadata)
    assert torch.allclose(llama(h, mask), expected, atol=1e-5)
    assert torch.equal(llama(h, mask == 0), llama(h, mask))
    assert not torch.allclose(llama(h, torch.zeros_like(mask).masked_fill(~sees.tril(), -torch.inf)), expected, atol=1e-3)
    full = torch.zeros(1, 1, 10, 10)
    full[..., 0, 5] = -torch.inf
    with pytest.raises(ValueError, match="causal with square blocks"):
        llama(h, full)
    with pytest.raises(ValueError, match=r"\[1, 1, M, M\]"):
        llama(h, mask[..., :4, :4])


# ---- training -------------------------------------------------------------------------------------------------------


def halves(count: int) -> tuple[Tensor, Tensor]:
    """Images [count, 1, 4, 4] in -1 and 1, the upper half bright for y = 0, the lower one for y = 1."""
    y = torch.randint(0, 2, (count,))
    lower = 2.0 * y - 1
    return torch.stack([-lower, lower], 1)[:, None, :, None].repeat_interleave(2, 2).expand(-1, -1, -1, 4).contiguous(), y


def train(model: Transfussion, config: Any, steps: int) -> list[tuple[float, float]]:
    """`y BOI image EOI` with the losses of its training notebook: cross-entropy without IGNORE, and 5 times the error of the
    noise. Returns both losses of each step."""
    optimizer = model.train().configure_optimizers(weight_decay=0.0, learning_rate=4e-3, betas=(0.9, 0.99), device_type="cpu")
    diffusion = DiffusionUtils(linear_schedule=False, config=config)
    losses = []
    for _ in range(steps):
        x, y = halves(16)
        step = torch.randint(0, config.num_timesteps, (16,))
        noised, noise = diffusion.noisy_it(x, step)
        inputs = [
            torch.stack([y, torch.full_like(y, BOI)], 1),
            (model.patch_ops.patchify(noised), step),
            torch.full((16, 1), EOI),
        ]
        targets = [torch.tensor([[BOI, IGNORE]] * 16), model.patch_ops.patchify(noise), torch.full((16, 1), EOS)]
        (before, predicted, after), _ = model(inputs, ["text", "image", "text"])
        pairs = ((before, targets[0]), (after, targets[2]))
        each = [nn.functional.cross_entropy(p.mT, target, ignore_index=IGNORE) for p, target in pairs]
        text = each[0] + each[1]
        error = nn.functional.mse_loss(predicted, targets[1])
        optimizer.zero_grad()
        (text + config.balancing_coeff * error).backward()
        nn.utils.clip_grad_norm_(model.parameters(), config.clipnorm)
        optimizer.step()
        losses.append((text.item(), error.item()))
    return losses


@pytest.mark.slow
def test_training_lowers_both_losses() -> None:
    model = small()
    losses = torch.tensor(train(model, Small, 40))
    assert losses[-5:, 0].mean() < 0.1 * losses[0, 0] and losses[-5:, 1].mean() < 0.6 * losses[0, 1]
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.slow
def test_what_was_learned_is_drawn() -> None:
    model = small()
    train(model, Small, 300)
    diffusion = DiffusionUtils(linear_schedule=False, config=Small)
    for y in (0, 1, 0, 1):
        want = torch.tensor([[1.0], [1.0], [-1.0], [-1.0]]).expand(1, 4, 4) * (1 - 2 * y)
        tokens, kinds = model.generate([ids(y)], ["text"], diffusion, None)
        assert kinds == ["text", "image", "text"] and tokens[0].tolist() == [y, BOI] and tokens[2].tolist() == [EOI]
        assert (model.patch_ops.unpatchify(tokens[1][0]) - want).abs().mean() < 0.3
        drawn, _ = diffusion.generate(model=model, modality_tokens=[ids(y, BOI)], modality_strings=["text"], use_ddim=True)
        assert (model.patch_ops.unpatchify(drawn[1][0]) - want).abs().mean() < 0.3


def test_the_optimiser_decays_matrices_alone_and_the_rate_follows_its_curve() -> None:
    model = small()
    optimizer = model.configure_optimizers(weight_decay=0.3, learning_rate=1e-3, betas=(0.8, 0.9), device_type="cpu")
    decayed, others = optimizer.param_groups
    assert (decayed["weight_decay"], others["weight_decay"], others["betas"]) == (0.3, 0.0, (0.8, 0.9))
    assert all(p.ndim >= 2 for p in decayed["params"]) and all(p.ndim < 2 for p in others["params"])
    assert len(decayed["params"]) + len(others["params"]) == len(list(model.parameters()))
    rate = CosineDecayWithWarmup(warmup_steps=10, max_learning_rate=2.0, decay_steps=30, min_learning_rate=1.0)
    assert [rate(step) for step in (0, 5, 10, 20, 30, 99)] == pytest.approx([0.0, 1.0, 2.0, 1.5, 1.0, 1.0])
    assert CosineDecayWithWarmup(0, 2.0, 0, 1.0)(0) == 1.0
    with pytest.raises(ValueError, match="decay_steps"):
        CosineDecayWithWarmup(10, 1.0, 5, 0.0)


def test_weights_are_copied_pickled_and_saved() -> None:
    model, entries = lively(small()), ([[ids(1, 2), image()]], [["text", "image"]])
    expected = model(*entries)[0][0]
    other = small(seed=5).eval()
    other.load_state_dict(model.state_dict())
    for twin in (other, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert all(torch.equal(a, b) for a, b in zip(twin(*entries)[0][0], expected, strict=True))


def test_a_model_made_without_memory_is_the_same_once_its_weights_are_loaded() -> None:
    model, entries = lively(small()), ([[ids(1, 2), image(), ids(EOI)]], [["text", "image", "text"]])
    with torch.device("meta"):
        other = small()
    other.to_empty(device="cpu").load_state_dict(model.state_dict())
    for a, b in zip(other.eval()(*entries)[0][0], model(*entries)[0][0], strict=True):
        assert torch.equal(a, b)


def test_its_transfusion_is_a_model_folder(tmp_path: Path) -> None:
    """A class token and BOI there are a text of one id and a forced image in any other use of the model."""
    model = lively(small())
    model.transfusion.save_pretrained(tmp_path)
    loaded = transfusion.Transfusion.from_pretrained(tmp_path).eval()
    document = transfusion.Document((transfusion.Text((3,)), transfusion.Media(torch.zeros(1, 4, 4))))
    assert torch.equal(loaded.loss([document], seed=1), model.transfusion.loss([document], seed=1))
    (drawn,) = loaded.generate([transfusion.Document((transfusion.Text((3,)),))], force="image")
    assert drawn.media[0].tensor().shape == (1, 4, 4)


# ---- generation -----------------------------------------------------------------------------------------------------


def test_generated_text_is_what_the_predictions_say() -> None:
    """Continued with a cache; the same ids are the most likely of the legal ones when all is computed at once."""
    config = replace(Small(), text_maxlen=16)
    for seed in range(4):
        model = lively(small(config, seed=seed))
        torch.manual_seed(seed)
        nn.init.normal_(model.transfusion.network.head.weight, std=1.0)
        tokens, kinds = model.generate([ids(1, 2)], ["text"])
        assert tokens[0][:2].tolist() == [1, 2] and len(tokens) == len(kinds)
        assert [isinstance(t, tuple) for t in tokens] == [kind == "image" for kind in kinds]
        predicted = model.forward_unbatched(tokens, kinds)
        legal = torch.ones(14, dtype=torch.bool)
        legal[[IGNORE, EOI]] = False
        for index, (entry, logits) in enumerate(zip(tokens, predicted, strict=True)):
            if isinstance(entry, Tensor):
                best = logits[0].masked_fill(~legal, -torch.inf).argmax(-1).tolist()
                first = 1 if index == 0 else 0
                assert best[first : len(entry) - 1] == entry[first + 1 :].tolist()
                assert index == 0 or entry[0] == EOI
        assert sum(len(t) for t in tokens if isinstance(t, Tensor)) <= 16 + 1  # EOI of an image that had begun


def test_prompts_end_with_boi_hold_images_and_may_be_stacked() -> None:
    model = lively(small())
    clean = (torch.randn(4, 4), ids(0))
    prompt, kinds = [ids(3, BOI), clean, ids(EOI, 5, BOI)], ["text", "image", "text"]
    tokens, names = model.diff_mode(prompt, kinds, DiffusionUtils(True, Small), None)
    assert len(prompt) == 3 and len(kinds) == 3  # new lists
    assert names[:5] == ["text", "image", "text", "image", "text"]
    assert torch.equal(tokens[1][0], clean[0]) and tokens[2].tolist() == [EOI, 5, BOI]
    assert tokens[3][0].shape == (4, 4) and tokens[3][1].tolist() == [0] and tokens[4][0] == EOI
    assert tokens[3][0].isfinite().all()

    torch.manual_seed(3)
    alone, names = DiffusionUtils(False, Small).generate(model=model, modality_tokens=[ids(BOI)], modality_strings=["text"])
    assert names == ["text", "image"] and alone[0].tolist() == [BOI]
    torch.manual_seed(3)
    again, _ = model.draw([ids(BOI)[None]], ["text"])
    assert again[0].tolist() == [[BOI]] and torch.equal(again[1][0], alone[1][0][None])
    torch.manual_seed(4)
    assert not torch.equal(model.draw([ids(BOI)], ["text"])[0][1][0], alone[1][0])
    model.train()
    assert model.lm_mode([ids(1, 2, 3, 4, 5, 6)], ["text"])[0][0].tolist() == [1, 2, 3, 4, 5, 6]  # text_maxlen is 6
    assert model.training and model.model.training


def test_an_autocast_of_bfloat16_is_used() -> None:
    model = lively(small())

    def drawn(autocast: torch.autocast | None) -> Tensor:
        torch.manual_seed(0)
        return model.draw([ids(1, BOI)], ["text"], None, autocast)[0][1][0]

    exact, rough = drawn(None), drawn(torch.autocast("cpu", torch.bfloat16))
    assert torch.equal(exact, drawn(torch.autocast("cpu", torch.bfloat16, enabled=False)))
    assert not torch.equal(exact, rough) and rough.isfinite().all()


# ---- patches and noise ----------------------------------------------------------------------------------------------


def test_patches_are_in_reading_order_with_channels_last(unchecked) -> None:
    class config(Small):
        in_channels = out_channels = 3
        W = 6

    patches = PatchOps(config)
    x = torch.arange(3 * 4 * 6.0).reshape(3, 4, 6)
    p = patches.patchify(x)
    assert p.shape == (6, 12)
    assert torch.equal(p[4].reshape(2, 2, 3), x[:, 2:4, 2:4].permute(1, 2, 0))
    assert torch.equal(patches.unpatchify(p), x) and torch.equal(patches.unpatchify(p[None]), x)
    assert torch.equal(PatchOps(config, unbatched=False).unpatchify(p[None]), x[None])
    two = torch.stack([x, -x])
    assert torch.equal(patches.unpatchify(patches.patchify(two)), two)
    for wrong in (x[:2], x[:, :3], x[0, 0]):
        with pytest.raises(ValueError, match="multiples of the patch 2"):
            patches.patchify(wrong)
    with pytest.raises(ValueError, match="6 patches of 12"):
        patches.unpatchify(p[:5])
    with pytest.raises(ValueError, match="call the model"):
        patches(p, ids(1))


def test_schedules_are_their_formulas() -> None:
    cosine, linear = DiffusionUtils(False, Small), DiffusionUtils(True, Small)
    t = torch.arange(20, dtype=torch.float64)
    f = torch.cos((t / 20 + 0.008) / 1.008 * torch.pi / 2) ** 2
    assert torch.allclose(cosine.alpha_bar[:20].double(), f / f[0], atol=1e-6)
    assert cosine.beta[0] == cosine.beta[20] == 0 and cosine.alpha_bar[20] == cosine.alpha_bar[19]  # step T is never learned
    betas = torch.linspace(1e-4, 2e-2, 20)
    assert torch.allclose(linear.alpha_bar[1:], (1 - betas).cumprod(0), atol=1e-5)
    assert torch.allclose(linear.beta[1:], betas, atol=1e-5) and linear.alpha_bar[0] == 1
    assert all(len(x) == 21 for x in (linear.alpha, linear.beta, cosine.alpha, cosine.alpha_bar))


def test_noise_is_added_and_taken_away(unchecked) -> None:
    diffusion = DiffusionUtils(False, Small)
    x, t = torch.randn(3, 1, 4, 4), ids(0, 7, 19)
    noised, noise = diffusion.noisy_it(x, t)
    a = diffusion.alpha_bar[t][:, None, None, None]
    assert torch.allclose(noised, a.sqrt() * x + (1 - a).sqrt() * noise, atol=1e-5)

    x, t = torch.randn(20_000, 1, 1, 1), torch.full((20_000,), 8)
    x_t, eps = diffusion.noisy_it(x, t)
    before = diffusion.one_step_ddpm(x_t, eps, t)
    a_t, a_s, beta = diffusion.alpha_bar[8], diffusion.alpha_bar[7], diffusion.beta[8]
    mean = (x_t - beta / (1 - a_t).sqrt() * eps) / (1 - beta).sqrt()  # Ho et al. 2020, algorithm 2
    variance = beta * (1 - a_s) / (1 - a_t)
    assert (before - mean).mean().abs() < 0.01 and (before - mean).var() == pytest.approx(float(variance), rel=0.03)

    last = torch.ones(20_000, dtype=torch.int64)
    assert torch.allclose(
        diffusion.one_step_ddpm(*diffusion.noisy_it(x, last), last), x, atol=1e-4
    )  # no noise at the last step
    x_t, eps = diffusion.noisy_it(x[:3], ids(5, 12, 19))
    s = diffusion.alpha_bar[ids(4, 11, 18)][:, None, None, None]
    assert torch.allclose(diffusion.one_step_ddim(x_t, eps, ids(5, 12, 19)), s.sqrt() * x[:3] + (1 - s).sqrt() * eps, atol=1e-4)
    for wrong in (ids(1), ids(1, 2, 21), torch.tensor(3), 3):
        with pytest.raises(ValueError, match="for each of 3 items"):
            diffusion.noisy_it(x[:3], wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="from 1 to 20"):
        diffusion.one_step_ddpm(x[:3], x[:3], ids(0, 1, 2))


# ---- what is refused ------------------------------------------------------------------------------------------------

TEXT, IMAGE = ids(1, 2), image()


@pytest.mark.parametrize(
    ("samples", "kinds", "message"),
    [
        ([[TEXT]], [["text"], ["text"]], "one list a sample, 2 as there are kinds, not 1"),
        ([[TEXT]], [], "modality_strings is a list"),
        ([[TEXT]], "text", "modality_strings is a list"),
        ([[TEXT, IMAGE]], [["text"]], r"sample 0: 2 entries and 1 kinds \['text'\]"),
        ([[TEXT], [TEXT]], [["text"], ["sound"]], 'sample 1: kind 0 is \'sound\', not "text" or "image"'),
        (
            [[IMAGE]],
            [["text"]],
            r"sample 0, entry 0 \(text\): text is ids, int64 or int32 of shape \[length\], not a tuple of 2",
        ),
        ([[TEXT]], [["image"]], r"sample 0, entry 0 \(image\): an image is a pair \(noised patches, step\), not int64\[2\]"),
        ([[TEXT, IMAGE[0]]], [["text", "image"]], r"entry 1 \(image\): an image is a pair .*, not float32\[4, 4\]"),
        ([[TEXT.float()]], [["text"]], "float32"),
        ([[TEXT[None]]], [["text"]], r"int64\[1, 2\]"),
        ([[(torch.randn(4, 5), ids(1))]], [["image"]], r"patches are floating point \[patches, 4\]"),
        ([[(torch.randn(0, 4), ids(1))]], [["image"]], r"not float32\[0, 4\]"),
        ([[(torch.randn(4, 4), ids(1, 2))]], [["image"]], r"one step, not int64\[2\]"),
        ([[(torch.randn(4, 4), "3")]], [["image"]], "a tensor of one number, not '3'"),
        ([[(torch.randn(4, 4), ids(21))]], [["image"]], "sample 0, entry 0: .* step is from 0 .clean. to num_timesteps = 20"),
        (
            [[TEXT], [TEXT, (torch.full((4, 4), torch.nan), ids(1))]],
            [["text"], ["text", "image"]],
            "sample 1, entry 1: .* finite",
        ),
        ([[ids(1, 14)]], [["text"]], "ids run from 0 to lm_output_units - 1 = 13"),
        ([[ids(-1)]], [["text"]], "ids run from 0"),
        ([[]], [[]], "sample 0 is empty"),
        ([[torch.zeros(41, dtype=torch.int64)]], [["text"]], "41 ids and patches, config.maxlen is 40"),
        ([[TEXT, IMAGE]], ["text", "image"], r"the batch: 1 entries and 2 kinds"),
        ([[TEXT], IMAGE], ["text", "image"], "entry 0 .text.: one list of kinds is for a batch"),
        ([TEXT[None], (IMAGE[0][None], ids(1, 2))], ["text", "image"], "entry 1 .image.: one list of kinds is for a batch"),
        ([torch.ones(3, 2).long(), (IMAGE[0][None], ids(1))], ["text", "image"], r"equally many samples, not \[3, 1\]"),
    ],
)
def test_wrong_lists_are_refused(samples: Any, kinds: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small()(samples, kinds)


@pytest.mark.parametrize(
    ("tokens", "kinds", "message"),
    [
        ([], [], "begins and ends with text"),
        ([IMAGE, TEXT], ["image", "text"], "begins and ends with text"),
        ([ids(1, BOI), IMAGE], ["text", "image"], "begins and ends with text"),
        ([ids(1), (IMAGE[0], ids(0)), ids(EOI)], ["text", "image", "text"], r"entry 0 stands before an image.*BOI \(10\)"),
        ([ids(BOI), (IMAGE[0], ids(0)), ids(1)], ["text", "image", "text"], r"entry 2 follows an image.*EOI \(12\)"),
        ([ids(BOI), IMAGE, ids(EOI)], ["text", "image", "text"], "clean, step 0; entry 1 has step 3"),
        ([ids(BOI), (torch.zeros(3, 4), 0), ids(EOI)], ["text", "image", "text"], "entry 1: an image of 4 x 4 has 4 patches"),
        ([ids(1, EOS)], ["text"], r"EOS \(13\) where only text may stand"),
        ([ids(IGNORE, 1)], ["text"], r"IGNORE_TOKEN \(11\)"),
        ([ids(BOI, 1)], ["text"], r"BOI \(10\) where"),
        ([torch.ones(2, 3).long()], ["text"], "one prompt at a time"),
        ([ids(99)], ["text"], "ids run from 0"),
    ],
)
def test_wrong_prompts_are_refused(tokens: Any, kinds: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small().generate(tokens, kinds)


def test_wrong_calls_are_refused() -> None:
    model = small()
    with pytest.raises(ValueError, match=r"ends with BOI \(10\)"):
        model.diff_mode([ids(1)], ["text"])
    with pytest.raises(ValueError, match="30 steps, the model 20"):
        model.generate([ids(1)], ["text"], DiffusionUtils(False, replace(Small(), num_timesteps=30)))
    with pytest.raises(ValueError, match="diff_utils is a DiffusionUtils"):
        model.generate([ids(1)], ["text"], "cosine")  # type: ignore[arg-type]
    without = small(replace(Small(), EOI=None))
    with pytest.raises(ValueError, match=r"generation needs config.EOI"):
        without.generate([ids(1)], ["text"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_layers": 0}, "config.num_layers must be a whole number of at least 1"),
        ({"out_channels": 3}, "out_channels 3 must be in_channels 1"),
        ({"H": 5}, "multiple of the patch"),
        ({"num_heads": 5}, "num_heads"),
        ({"EOS": torch.tensor(10)}, "config.EOS is 10, as another of"),
        ({"EOS": 14}, "config.EOS must be a whole number from 0 to 13"),
        ({"num_timesteps": 1}, "config.num_timesteps"),
        ({"dropout_rate": 1.5}, "dropout"),
    ],
)
def test_wrong_configs_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(replace(Small(), **changes))


def test_missing_attributes_are_named_all_at_once() -> None:
    class config: ...

    with pytest.raises(ValueError, match=r"no num_layers, d_model, num_heads, dropout_rate, maxlen: .*MNIST_config"):
        LLaMA(config)
    with pytest.raises(ValueError, match="LLaMA has another config"):
        Transfussion(LLaMA(Small), MNIST_config)
    with pytest.raises(ValueError, match=r"model is LLaMA\(config\)"):
        Transfussion(nn.Linear(2, 2), Small)  # type: ignore[arg-type]
