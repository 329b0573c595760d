"""Config objects by Transfusion.torch's attribute names: what they say to this library, and its two own ones.

Any object or class with these attributes is a config. Sizes: num_layers, d_model, num_heads, n_kv_heads (optional),
dropout_rate, maxlen, text_maxlen. Images: patch_size, in_channels, out_channels, H, W. Diffusion: num_timesteps, var_range
(`DiffusionUtils` alone). Ids: lm_output_units, and BOI, IGNORE_TOKEN, EOI, EOS, each a tensor of one number, a number, or None.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from transfusion.compat.checks import check_number
from transfusion.data.vocabulary import Ids, SpecialToken, Vocabulary
from transfusion.modality import IMAGE, Modality
from transfusion.nn.config import TransformerConfig

SIZES = ("num_layers", "d_model", "num_heads", "dropout_rate", "maxlen")
IMAGES = ("patch_size", "in_channels", "out_channels", "H", "W")
SPECIAL = {
    "BOI": SpecialToken("begin", IMAGE),
    "IGNORE_TOKEN": SpecialToken("pad"),
    "EOI": SpecialToken("end", IMAGE),
    "EOS": SpecialToken("eos"),
}
"""Attribute of a config -> the special token that its id stands for."""
NOT_COUNTS = ("dropout_rate", "var_range", *SPECIAL)


def read(config: Any, names: Sequence[str]) -> SimpleNamespace:
    """These attributes of a config. Raises ValueError: some are missing, or a count is no whole number above 0."""
    missing = [name for name in names if not hasattr(config, name)]
    if missing:
        raise ValueError(
            f"the config has no {', '.join(missing)}: set what is missing, or start from Transfusion.torch's own values, "
            "class config(MNIST_config), with MNIST_config from transfusion.compat.transfusion_torch"
        )
    for name in names:
        if name not in NOT_COUNTS:
            check_number(f"config.{name}", getattr(config, name), 1, whole=True)
    return SimpleNamespace(**{name: getattr(config, name) for name in names})


def transformer_config(config: Any) -> TransformerConfig:
    """The transformer of a config: Llama's block, SwiGLU of int(8/3 d_model), and this library's norm of queries and keys.
    Raises ValueError: attributes missing or out of range."""
    c = read(config, SIZES)
    return TransformerConfig(
        width=c.d_model,
        depth=c.num_layers,
        num_heads=c.num_heads,
        num_kv_heads=getattr(config, "n_kv_heads", None),
        mlp_width=int(8 * c.d_model / 3),
        dropout=c.dropout_rate,
    )


def modality(config: Any) -> Modality:
    """Images of a config. Raises ValueError: attributes missing or out of range, or other channels out than in."""
    c = read(config, IMAGES)
    if c.out_channels != c.in_channels:
        raise ValueError(
            f"out_channels {c.out_channels} must be in_channels {c.in_channels}: what is predicted has the image's shape"
        )
    return Modality(IMAGE, c.in_channels, (c.H, c.W), (c.patch_size, c.patch_size))


def special_ids(config: Any) -> dict[str, int | None]:
    """BOI, IGNORE_TOKEN, EOI and EOS of a config. Raises ValueError: missing, no number, two alike, or out of range."""
    c = read(config, ("lm_output_units", *SPECIAL))
    ids: dict[str, int | None] = {}
    for name in SPECIAL:
        value: Any = getattr(c, name)
        value = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
        if value is not None:
            check_number(f"config.{name}", value, 0, c.lm_output_units - 1, whole=True)
            if value in ids.values():
                raise ValueError(f"config.{name} is {value}, as another of {', '.join(SPECIAL)}: give each an id of its own")
        ids[name] = value
    return ids


def vocabulary(config: Any) -> tuple[Vocabulary, list[int]]:
    """The vocabulary of a config, and its id of each id of the config. Raises ValueError: see `special_ids`, `modality`."""
    special = {value: SPECIAL[name] for name, value in special_ids(config).items() if value is not None}
    text = [i for i in range(config.lm_output_units) if i not in special]
    ours = Vocabulary(Ids(len(text)).build(()), (modality(config),))
    table = {i: index for index, i in enumerate(text)} | {i: ours.id(token) for i, token in special.items()}
    return ours, [table[i] for i in range(config.lm_output_units)]


class _WhenRead:
    """An attribute of a class and its objects whose value is made when it is read, not at import."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self.make = make

    def __get__(self, instance: object, owner: type | None = None) -> Any:
        return self.make()


@dataclass
class MNIST_config:
    """Transfusion.torch's values for MNIST: 28 x 28 pixels in patches of 2 x 2; two images and six ids of text in a sample."""

    device = _WhenRead(lambda: torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    dtype_type = _WhenRead(lambda: "bfloat16" if torch.cuda.is_available() else "float32")

    num_layers: int = 7
    d_model: int = 348
    num_heads: int = 6
    dropout_rate: float = 0.0

    H: int = 28
    W: int = 28
    patch_size: int = 2
    in_channels: int = 1
    out_channels: int = in_channels
    N: int = (H // patch_size) * (W // patch_size)
    text_maxlen: int = 6
    maxlen: int = 2 * N + text_maxlen

    num_timesteps: int = 400
    var_range: tuple[float, float] = (1e-4, 2e-2)

    num_classes: int = 10
    BOI: Tensor | None = torch.tensor(num_classes)
    IGNORE_TOKEN: Tensor | None = torch.tensor(num_classes + 1)
    EOI: Tensor | None = torch.tensor(num_classes + 2)
    EOS: Tensor | None = torch.tensor(num_classes + 3)
    lm_output_units: int = num_classes + 4

    batch_size: int = 64
    num_steps: int = 15_000
    decay_steps: int = num_steps
    warmup_steps: int = 100
    no_decay: bool = True
    max_lr: float = 3e-4
    min_lr: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.99
    weight_decay: float = 0.0
    clipnorm: float = 1.0
    balancing_coeff: float = 5.0
    num_grad_accumalation_steps: int = 1
    patience: int = 10
    return_best_train_states: bool = True
    log_interval: int = 25
    eval_freq: int = 400


@dataclass
class FashionMNIST_config(MNIST_config):
    """Transfusion.torch's values for Fashion-MNIST: `MNIST_config` with a larger transformer and more steps."""

    d_model: int = 512
    num_heads: int = 8
    num_layers: int = 8
    num_steps: int = 50_000
    log_interval: int = 1
    eval_freq: int = 600
    ckpt_dir: str = "checkpoints/fashionmnist"
