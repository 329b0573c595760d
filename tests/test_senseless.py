"""TransfusionConfig that make no sense are refused where they are made, with what would be right."""

import math
from typing import Any

import pytest

from transfusion.codec.patchers import CustomPatcherConfig, LinearPatcherConfig, UNetPatcherConfig
from transfusion.data.tokenize import Coordinates
from transfusion.diffusion.process import Diffusion
from transfusion.diffusion.sampler import DDIM, DDPM, Euler, Heun
from transfusion.diffusion.schedule import Cosine
from transfusion.diffusion.times import LogitNormal
from transfusion.model.network import ModelConfig
from transfusion.nn.config import AttentionConfig, TransformerConfig
from transfusion.nn.moe import MoEConfig
from transfusion.nn.positions import LinearScaling, Llama3Scaling
from transfusion.train.optimizer import AdamWConfig

NONE, OFF = (math.nan, math.inf, -1.0), 0.0
BAD: list[tuple[type, str, tuple]] = [
    (Coordinates, "axes", (0, -1)),
    (Diffusion, "min_divisor", (*NONE, OFF)),
    (ModelConfig, "media_weight", NONE),
    (ModelConfig, "context_length", (0, -1)),
    *[(AdamWConfig, name, (*NONE, OFF)) for name in ("lr", "eps", "max_grad_norm")],
    *[(AdamWConfig, name, NONE) for name in ("min_lr", "weight_decay", "language_lr_scale", "beta1", "beta2")],
    (AdamWConfig, "beta2", (1.0,)),
    (AdamWConfig, "warmup", (-1,)),
    (MoEConfig, "aux_loss_weight", NONE),
    *[
        (TransformerConfig, name, (0, -4))
        for name in ("width", "depth", "num_heads", "num_kv_heads", "mlp_width", "mlp_multiple_of")
    ],
    *[(TransformerConfig, name, (*NONE, OFF)) for name in ("norm_eps", "rope_theta")],
    (AttentionConfig, "soft_cap", NONE),
    (LogitNormal, "mean", (math.nan, math.inf)),
    (LogitNormal, "std", (*NONE, OFF)),
    *[(kind, name, (*NONE, OFF)) for kind in (Euler, Heun, DDIM, DDPM) for name in ("shift", "clip")],
    *[(kind, "eta", (*NONE, 1.5)) for kind in (DDIM, DDPM)],
    (LinearScaling, "factor", (*NONE, OFF)),
    (Llama3Scaling, "factor", (*NONE, OFF)),
    (Cosine, "min_alpha", (*NONE, OFF, 1.0)),
    (Cosine, "offset", NONE),
    *[(kind, "time_features", (0, 1, 7, -2)) for kind in (LinearPatcherConfig, UNetPatcherConfig, CustomPatcherConfig)],
]


@pytest.mark.parametrize(("kind", "name", "values"), BAD, ids=lambda x: getattr(x, "__name__", x if isinstance(x, str) else ""))
def test_a_number_that_cannot_be(kind: type, name: str, values: tuple) -> None:
    for value in values:
        with pytest.raises(ValueError, match=f"{name}.*not.*{str(value)[:4]}"):
            kind(**{name: value})


@pytest.mark.parametrize(("kind", "name", "known"), [(Coordinates, "order", "raster"), (LinearPatcherConfig, "time", "patch")])
def test_a_word_that_is_unknown(kind: type, name: str, known: str, unchecked: Any) -> None:
    with pytest.raises(ValueError, match=f"{name} must be .*{known}.*, not 'gird'"):
        kind(**{name: "gird"})


def test_every_rotary_axis_needs_a_frequency() -> None:
    transformer = TransformerConfig(width=32, num_heads=8)  # heads of 4: two frequencies
    ModelConfig(transformer=transformer, coordinates=Coordinates(axes=2))
    with pytest.raises(ValueError, match=r"heads of size 4 have 2 rotary frequencies, too few for 3 axes.*size 6 or more"):
        ModelConfig(transformer=transformer, coordinates=Coordinates(axes=3))
