"""Presets: the paper's own choices and the project's, for any recipe, in one word; and the paper's five sizes.

transfusion train fashion --data PATH --preset paper
transfusion config pictures --preset paper --size 0.76B
"""

import math
from collections.abc import Callable
from dataclasses import replace

from transfusion.codec import unet_patcher
from transfusion.codec.patchers import LinearPatcherConfig, PatcherConfig
from transfusion.config import ConfigError, nearest
from transfusion.data.tokenize import Coordinates
from transfusion.data.transforms import ConditionDropout, DocumentTransform
from transfusion.diffusion import process
from transfusion.diffusion.guidance import Guidance
from transfusion.diffusion.process import Diffusion
from transfusion.diffusion.sampler import DDPM, Euler
from transfusion.diffusion.schedule import LinearInterpolant
from transfusion.diffusion.times import LogitNormal
from transfusion.modality import IMAGE, Modality
from transfusion.model.network import ModelConfig
from transfusion.nn.config import TransformerConfig
from transfusion.run.record import Run
from transfusion.train import optimizer
from transfusion.train.optimizer import AdamWConfig

PAPER_WIDTH, PAPER_STEPS = 768, 250_000
"""The least width of the paper's models, and the steps of its controlled runs."""
RATE_EXPONENT, NARROWEST = 1.5, 128
"""How fast the learning rate grows as the width falls, and the width below which it grows no more: the narrowest measured."""


def paper_optimizer(width: int, steps: int) -> AdamWConfig:
    """The paper's AdamW for a run of any size: its literal numbers for 250,000 steps of a width of 768 or more.

    The warm-up is 1.6 % of the steps, as 4,000 of 250,000. Narrow networks need larger steps: the rate, and the floor of its
    cosine, grow by (768 / width)^1.5, at a width of 128 to 4.4e-3. Measured there, on digits: docs/records/paper-digits.
    """
    factor = max(PAPER_WIDTH / max(width, NARROWEST), 1.0) ** RATE_EXPONENT
    paper = optimizer.PAPER
    warmup = paper.warmup * steps // PAPER_STEPS
    return replace(paper, lr=paper.lr * factor, min_lr=paper.min_lr * factor, warmup=warmup)


def paper(run: Run) -> Run:
    """Zhou et al. 2024, arXiv 2408.11039, sections 3 and 4.1.

    DDPM with the cosine schedule, noise prediction, T = 1000, lambda 5, 250 steps of ancestral sampling, guidance 5 (its
    4.2; its ablations take 3); AdamW as there; pictures first in 20 % of the pairs, there with at most half the noise (its
    Table 8); raster order on 1-D RoPE; the time added in patch space; no QK-norm; the last weights, not averaged ones. How
    often captions are dropped is not in the paper: 10 % here. The learning rate follows the width and the number of steps
    (`paper_optimizer`); a run that starts from trained weights (`init`) takes the paper's own rate.
    """
    transformer = replace(run.model.transformer, qk_norm=False, mlp_multiple_of=256)
    model = replace(
        run.model,
        transformer=transformer,
        diffusion=process.PAPER,
        media_weight=5.0,
        coordinates=Coordinates("raster", axes=1),
        patcher=LinearPatcherConfig(time="patch"),
    )
    return replace(
        run,
        model=model,
        trainer=replace(run.trainer, ema_decay=0.0),
        optimizer=paper_optimizer(PAPER_WIDTH if run.init else transformer.width, run.trainer.steps),
        transform=DocumentTransform(image_first=0.2, image_first_noise=0.5, condition_dropout=ConditionDropout(text=0.1)),
        sampler=DDPM(num_steps=250, clip=1.0),  # at t = 1 almost no signal is left to divide by
        guidance=Guidance(text=5.0),
    )


def large(run: Run) -> Run:
    """The paper's section 4.4: its own choices with U-Net patches of its size, guidance 3 (that of its ablations, whose 5 for
    the comparison it calls suboptimal). Sizes and steps are the recipe's, `--size 7B` is the paper's."""
    run = paper(run)
    return replace(run, model=replace(run.model, patcher=unet_patcher.PAPER), guidance=Guidance(text=3.0))


def chameleon(run: Run) -> Run:
    """The discrete baseline (its section 4.2; Chameleon Team 2024, arXiv 2405.09818): the paper's preset with pictures as
    ids of a codebook, predicted one by one. What keeps it stable: QK-norm, norms behind sublayers, a z-loss of 1e-5, a third
    of the paper's learning rate. Guidance on logits is 5. In turned pairs the picture is learned too, for no noise is to be
    limited. Chameleon's dropout of 0.1 (of its 7B model, which has the usual order of norms) is
    `--model.transformer.dropout`."""
    run = paper(run)
    optimizer = run.optimizer
    transformer = replace(run.model.transformer, qk_norm=True, norm_order="post")
    return replace(
        run,
        model=replace(run.model, kind="chameleon", transformer=transformer, z_loss=1e-5),
        optimizer=replace(optimizer, lr=optimizer.lr / 3, min_lr=optimizer.min_lr / 3),
        transform=replace(run.transform, image_first_noise=1.0),
    )


def flow(run: Run) -> Run:
    """Flow matching as this project trains it: straight path, clean-data prediction under a velocity loss (JiT, arXiv
    2511.13720), logit-normal times; sizes, rates and budget stay the recipe's own."""
    diffusion = Diffusion(schedule=LinearInterpolant(), prediction="x0", loss="velocity", times=LogitNormal())
    return replace(run, model=replace(run.model, diffusion=diffusion), sampler=Euler(num_steps=25, shift=run.sampler.shift))


PRESETS: dict[str, Callable[[Run], Run]] = {"paper": paper, "large": large, "chameleon": chameleon, "flow": flow}

PAPER_SIZES = {
    "0.16B": TransformerConfig(width=768, depth=16, num_heads=12, mlp_multiple_of=256, qk_norm=False),
    "0.37B": TransformerConfig(width=1024, depth=24, num_heads=16, mlp_multiple_of=256, qk_norm=False),
    "0.76B": TransformerConfig(width=1536, depth=24, num_heads=24, mlp_multiple_of=256, qk_norm=False),
    "1.4B": TransformerConfig(width=2048, depth=24, num_heads=16, mlp_multiple_of=256, qk_norm=False),
    "7B": TransformerConfig(width=4096, depth=32, num_heads=32, mlp_multiple_of=256, qk_norm=False),
}
"""The paper's Table 2."""

MOST_LAYERS = 256
LLAMA_2_IDS = 32_000
LATENTS = Modality(IMAGE, channels=8, shape=(32, 32), patch=(2, 2))
"""256 x 256 pixels through the paper's autoencoder, 2 x 2 latents a slot: 256 slots."""


def paper_model(size: str, patcher: PatcherConfig = LinearPatcherConfig(time="patch")) -> ModelConfig:
    """The paper's model of a size, on its latents, with its context of 4096."""
    return ModelConfig(
        modalities=(LATENTS,),
        transformer=transformer(size),
        patcher=patcher,
        diffusion=process.PAPER,
        coordinates=Coordinates("raster", axes=1),
        media_weight=5.0,
        context_length=4096,
    )


def chameleon_model(size: str) -> ModelConfig:
    """The paper's Chameleon of a size, on 32 x 32 ids of 16,384 codes for 256 x 256 pixels."""
    tokens = Modality(IMAGE, channels=1, shape=(32, 32), patch=(1, 1), codes=16_384)
    trunk = replace(transformer(size), qk_norm=True, norm_order="post")
    return replace(paper_model(size), kind="chameleon", modalities=(tokens,), transformer=trunk, z_loss=1e-5)


def transformer(size: str) -> TransformerConfig:
    """The paper's trunk of a size. Raises ConfigError, naming the nearest, if it has none such."""
    if size not in PAPER_SIZES:
        raise ConfigError(f"no size {size!r}{nearest(size, PAPER_SIZES)}")
    return PAPER_SIZES[size]


def trunk(depth: int, base: TransformerConfig) -> TransformerConfig:
    """The network that one number stands for: a width of 64 for each layer and a half, heads of 32, from width 512 on of 64."""
    if not 1 <= depth <= MOST_LAYERS:
        raise ConfigError(f"--depth must be 1 to {MOST_LAYERS}, not {depth}")
    width = 64 * math.ceil(2 * depth / 3)
    return replace(base, width=width, depth=depth, num_heads=width // (32 if width < 512 else 64), num_kv_heads=None)


def preset(name: str, run: Run) -> Run:
    """A run under a preset. Raises ConfigError, naming the nearest, if there is none such."""
    if name not in PRESETS:
        raise ConfigError(f"no preset {name!r}{nearest(name, PRESETS)}")
    return PRESETS[name](run)
