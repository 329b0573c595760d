"""Low-rank adapters on the trunk's matrices (LoRA, Hu et al. 2021, arXiv 2106.09685), by the `peft` library (extra `lora`).

    W x  ->  W x + alpha / rank * B A x        A: [rank, in], random; B: [out, rank], zero at first

`add` freezes all weights and puts adapters beside the matrices; what is trained then is the adapters, and on demand patchers
and control rows. `save` writes that alone, `load` puts it on the same model again, `merge` adds it to the matrices, after which
the network is an ordinary one, `remove` takes it off. A fused matrix (queries, keys, values; gate, up) has one adapter.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from transfusion import config, rng
from transfusion.files import write_tensors
from transfusion.model.network import Network
from transfusion.nn.split_embedding import SplitEmbedding

PARTS = ("qkv", "out", "gate_up", "down")
SETTINGS, WEIGHTS = "lora.json", "lora.safetensors"


@dataclass(frozen=True)
class LoRAConfig:
    """Adapters.

    Args:
        rank: of each adapter (0: none at all).
        alpha: the adapters' output is multiplied by alpha / rank.
        dropout: share of an adapter's input that is left out in training.
        parts: which matrices: qkv and out (attention), gate_up and down (feed-forward).
        media: whether weights that only media run through have adapters too, where there are such.
        patchers: whether what media alone pass through is trained beside the adapters: patchers, and what tells the trunk their
            times and places.
        rows: whether rows of embedding and head are trained beside them: those of the control tokens behind a language model's,
            or all, where there is none.
    """

    rank: int = 0
    alpha: float = 16.0
    dropout: float = 0.0
    parts: tuple[str, ...] = PARTS
    media: bool = True
    patchers: bool = True
    rows: bool = True

    def __post_init__(self) -> None:
        if self.rank < 0 or self.alpha <= 0 or not 0 <= self.dropout < 1:
            raise ValueError(
                f"a rank is 0 (no adapters) or more, alpha above 0, and dropout in [0, 1), not {self.rank}, {self.alpha} and "
                f"{self.dropout}"
            )
        for part in self.parts:
            if part not in PARTS:
                raise ValueError(f"no matrices {part!r}{config.nearest(part, PARTS)}")
        if not self.parts:
            raise ValueError(f"parts names no matrices: take some of {', '.join(PARTS)}")


def add(network: Network, lora: LoRAConfig, *, seed: int = 0) -> None:
    """Put adapters on a network, and freeze all that they do not train. What it computes stays the same until they learn.

    Args:
        seed: names the chance of what they begin with.

    Raises:
        ValueError: rank 0, a network that has adapters, or the extra `lora` is missing.
    """
    if not lora.rank:
        raise ValueError("adapters need a rank of at least 1; 8 to 64 is usual")
    if present(network):
        raise ValueError("this network has adapters already: merge or remove them first")
    peft = _peft()
    media = r"(media\.\d+\.)?" if lora.media else ""
    told = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=rf"blocks\.\d+\.{media}(attention|mlp)\.(\w+\.)*({'|'.join(lora.parts)})",
    )
    network.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(rng.key(seed, "lora"))
        peft.inject_adapter_in_model(told, network.transformer)
    for p in _beside(network, lora).values():
        p.requires_grad_(True)
    network.lora = lora


def present(network: Network) -> bool:
    """Whether a network has adapters."""
    return network.lora is not None


def save(network: Network, folder: str | Path) -> None:
    """Write what the adapters' training changes, and nothing else, as `lora.json` and `lora.safetensors`.

    Raises:
        ValueError: there are no adapters.
        OSError: it can't be written.
    """
    lora, folder = _given(network), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SETTINGS).write_text(json.dumps(config.to_plain(lora), indent=2) + "\n")
    write_tensors(folder / WEIGHTS, _learned(network, lora))


def load(network: Network, folder: str | Path) -> LoRAConfig:
    """Put saved adapters on the network that they were made for (or one of the same sizes).

    Raises:
        ValueError: there are none, they are damaged, or they do not fit.
    """
    folder = Path(folder)
    try:
        lora = config.from_plain(LoRAConfig, json.loads((folder / SETTINGS).read_text()))
        weights = load_file(folder / WEIGHTS)
    except (OSError, ValueError, SafetensorError) as error:
        raise ValueError(f"no adapters in {folder} that can be read: {error}") from error
    add(network, lora)
    own = _learned(network, lora)
    differ = sorted(own.keys() ^ weights.keys()) + [n for n in own.keys() & weights.keys() if own[n].shape != weights[n].shape]
    if differ:
        remove(network)
        raise ValueError(f"the adapters in {folder} were made for another network: {', '.join(differ[:4])} do not fit")
    with torch.no_grad():
        for name, p in own.items():
            p.copy_(weights[name])
    return lora


def merge(network: Network) -> None:
    """Add the adapters to their matrices, W + alpha / rank * B A; the network is an ordinary one afterwards, all of it trained.

    Raises:
        ValueError: there are none, or what they add is no finite number.
    """
    _given(network)
    for layer in list(_layers(network)):
        for name in layer.lora_A:
            if not torch.isfinite(layer.get_delta_weight(name)).all():
                raise ValueError("an adapter holds NaN or infinity: nothing was merged")
    for layer in list(_layers(network)):
        layer.merge()
    remove(network)


def remove(network: Network) -> None:
    """Take the adapters off; what was not merged is forgotten. Patchers and rows stay as they were trained.

    Raises:
        ValueError: there are none.
    """
    _given(network)
    layers = set(_layers(network))
    for module in list(network.transformer.modules()):
        for name, child in list(module.named_children()):
            if child in layers:
                setattr(module, name, cast(Any, child).get_base_layer())
    network.lora = None
    network.requires_grad_(True)


def _given(network: Network) -> LoRAConfig:
    if network.lora is None:
        raise ValueError("this network has no adapters: add or load some first")
    return network.lora


def _layers(network: Network) -> Iterator[Any]:
    layer = _peft().tuners.tuners_utils.BaseTunerLayer
    return (module for module in network.transformer.modules() if isinstance(module, layer))


def _learned(network: Network, lora: LoRAConfig) -> dict[str, nn.Parameter]:
    """All that training the adapters changes, by name."""
    named = network.named_parameters()
    return {name: p for name, p in named if re.search(r"\.lora_[AB]\.", name)} | _beside(network, lora)


def _beside(network: Network, lora: LoRAConfig) -> dict[str, nn.Parameter]:
    """What is trained beside the adapters, by name."""
    rows = ("embed.new", "head.new") if isinstance(network.embed, SplitEmbedding) else ("embed.weight", "head.weight")
    inside = ("transformer.", "embed.", "head.")

    def chosen(name: str) -> bool:
        return (lora.rows and name in rows) or (lora.patchers and (not name.startswith(inside) or ".adaln_modulation." in name))

    return {name: p for name, p in network.named_parameters() if chosen(name)}


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise ValueError("adapters need the library peft: pip install 'transfusion-kit[lora]'") from error
    return peft
