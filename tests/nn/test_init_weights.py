"""Initial weights of a seed stay the same: every draw in the same order, with the same scale."""

import pytest
import torch

from small import IMAGE, SOUND
from transfusion.codec.linear_patcher import LinearPatcherConfig
from transfusion.codec.unet_patcher import UNetPatcherConfig
from transfusion.model.network import ModelConfig, Network
from transfusion.nn.config import AttentionConfig, TransformerConfig
from transfusion.nn.moe import MoEConfig

EVERYTHING = {
    "modality_weights": "all",
    "moe": MoEConfig(4, 2),
    "residual": "hyper",
    "adaln": True,
    "long_skips": True,
    "qkv_bias": True,
    "attention": AttentionConfig(alibi_heads=2, soft_cap=3.0, value_residual=True, gated=True, laser=15.0),
}
U_NET = UNetPatcherConfig(channels=8)
CASES: dict[str, tuple[dict, dict, float, float]] = {
    "plain": ({}, {}, 370.232637, 0.39423686),
    "tied": ({}, {"tie_embeddings": True}, 369.731983, 0.39423686),
    "MLP weights": ({"modality_weights": "mlp"}, {}, 580.672933, 0.82913023),
    "all weights": ({"modality_weights": "all"}, {}, 936.779299, 0.90874249),
    "experts": ({"moe": MoEConfig(4, 2)}, {}, 403.33127, 0.79322147),
    "hyper": ({"residual": "hyper"}, {}, 618.58965, 0.62042290),
    "depth attention": ({"residual": "attention"}, {}, 370.232637, 0.39423686),
    "adaLN": ({"adaln": True}, {"patcher": LinearPatcherConfig(time="none")}, 369.781208, 0.10168797),
    "U-Net": ({}, {"patcher": U_NET}, 986.017646, 0.26732206),
    "everything": (EVERYTHING, {"patcher": U_NET, "axial": True}, 16942.5526, 0.63518298),
}


@pytest.mark.parametrize("case", CASES)
def test_initial_weights_of_a_seed(case: str) -> None:
    """The sum of squares of all weights (1e-6: vectorised normals differ between CPUs), and the generator's next number."""
    transformer, model, squares, following = CASES[case]
    torch.manual_seed(7)
    sizes = TransformerConfig(width=32, depth=3, num_heads=4, num_kv_heads=2, **transformer)
    network = Network(ModelConfig(modalities=(IMAGE, SOUND), transformer=sizes, **model), 40)
    weights = torch.cat([p.detach().double().flatten() for p in network.parameters()])
    assert weights.square().sum().item() == pytest.approx(squares, rel=1e-6)
    assert torch.rand(()).item() == pytest.approx(following, rel=1e-6)
