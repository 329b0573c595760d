"""Settings that make no sense are refused where they are made, with what would be right."""

import math
from typing import Any

import pytest

from transfusion.codec.patcher import LinearPatcher, ModulesPatcher, UNetPatcher
from transfusion.data.layout import Coordinates
from transfusion.diffusion.process import Diffusion
from transfusion.diffusion.sampler import DDIM, DDPM, Euler, Heun
from transfusion.diffusion.schedule import Cosine
from transfusion.diffusion.times import LogitNormal
from transfusion.model.transfusion import Model
from transfusion.nn.experts import Experts
from transfusion.nn.positions import LinearScaling, Llama3Scaling
from transfusion.nn.trunk import Heads, Trunk
from transfusion.train.optim import Optim

NONE, OFF = (math.nan, math.inf, -1.0), 0.0
BAD: list[tuple[type, str, tuple]] = [
    (Coordinates, "axes", (0, -1)),
    (Diffusion, "floor", (*NONE, OFF)),
    (Model, "media_weight", NONE),
    (Model, "context", (0, -1)),
    *[(Optim, name, (*NONE, OFF)) for name in ("lr", "eps", "clip")],
    *[(Optim, name, NONE) for name in ("floor", "decay", "language", "beta1", "beta2")],
    (Optim, "beta2", (1.0,)),
    (Optim, "warmup", (-1,)),
    (Experts, "balance", NONE),
    *[(Trunk, name, (0, -4)) for name in ("width", "depth", "heads", "kv_heads", "hidden", "round_hidden")],
    *[(Trunk, name, (*NONE, OFF)) for name in ("eps", "theta")],
    (Heads, "soft_cap", NONE),
    (LogitNormal, "mean", (math.nan, math.inf)),
    (LogitNormal, "std", (*NONE, OFF)),
    *[(kind, name, (*NONE, OFF)) for kind in (Euler, Heun, DDIM, DDPM) for name in ("shift", "clip")],
    *[(kind, "eta", (*NONE, 1.5)) for kind in (DDIM, DDPM)],
    (LinearScaling, "factor", (*NONE, OFF)),
    (Llama3Scaling, "factor", (*NONE, OFF)),
    (Cosine, "least", (*NONE, OFF, 1.0)),
    (Cosine, "offset", NONE),
    *[(kind, "features", (0, 1, 7, -2)) for kind in (LinearPatcher, UNetPatcher, ModulesPatcher)],
]


@pytest.mark.parametrize(("kind", "name", "values"), BAD, ids=lambda x: getattr(x, "__name__", x if isinstance(x, str) else ""))
def test_a_number_that_cannot_be(kind: type, name: str, values: tuple) -> None:
    for value in values:
        with pytest.raises(ValueError, match=f"{name}.*not.*{str(value)[:4]}"):
            kind(**{name: value})


@pytest.mark.parametrize(("kind", "name", "known"), [(Coordinates, "order", "raster"), (LinearPatcher, "time", "patch")])
def test_a_word_that_is_unknown(kind: type, name: str, known: str, unchecked: Any) -> None:
    with pytest.raises(ValueError, match=f"{name} must be .*{known}.*, not 'gird'"):
        kind(**{name: "gird"})


def test_every_rotary_axis_needs_a_frequency() -> None:
    trunk = Trunk(width=32, heads=8)  # heads of 4: two frequencies
    Model(trunk=trunk, coordinates=Coordinates(axes=2))
    with pytest.raises(ValueError, match=r"heads of size 4 have 2 rotary frequencies, too few for 3 axes.*size 6 or more"):
        Model(trunk=trunk, coordinates=Coordinates(axes=3))
