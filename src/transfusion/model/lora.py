"""LoRA (Hu et al. 2021, arXiv 2106.09685): low-rank adapters on the transformer's matrices, by `peft` (extra `lora`).

    W x  ->  W x + alpha / rank * B A x        A: [rank, in], random; B: [out, rank], zero at first

`add` freezes a network and adds trainable adapters; patchers and embeddings of new tokens can be trained with them. `save`
writes only the trained weights, `load` restores them on the same base model, `merge` adds the adapters to their matrices and
gives a plain network, `remove` discards them. A fused matrix (queries, keys, values; gate, up) has one adapter.
"""

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from transfusion import config, rng
from transfusion.files import MANIFEST, manifest, mismatch, read_json, replacing, save_tensors
from transfusion.model.network import Network
from transfusion.nn.adaln import AdaLN
from transfusion.nn.layers import SplitEmbedding

TARGETS = ("qkv", "out", "gate_up", "down")
SETTINGS, WEIGHTS = "lora.json", "lora.safetensors"


@dataclass(frozen=True)
class LoRAConfig:
    """LoRA adapters.

    Args:
        rank: of each adapter (0: no adapters).
        alpha: scale; the output of an adapter is multiplied by alpha / rank.
        dropout: on the adapters' input, in training.
        target_modules: matrices with adapters: qkv and out (attention), gate_up and down (MLP).
        media: also adapt modality-specific weights, if the transformer has any.
        patchers: also train patchers, and embeddings of the time and of positions in an item.
        embeddings: also train embedding and head: the rows of new tokens if there is a language model, else all.

    Raises:
        ValueError: a number out of its range, or unknown matrices.
    """

    rank: int = 0
    alpha: float = 16.0
    dropout: float = 0.0
    target_modules: tuple[str, ...] = TARGETS
    media: bool = True
    patchers: bool = True
    embeddings: bool = True

    def __post_init__(self) -> None:
        if self.rank < 0 or self.alpha <= 0 or not 0 <= self.dropout < 1:
            numbers = f"{self.rank}, {self.alpha} and {self.dropout}"
            raise ValueError(f"a rank is 0 (no adapters) or more, alpha above 0, and dropout in [0, 1), not {numbers}")
        for name in self.target_modules:
            if name not in TARGETS:
                raise ValueError(f"no matrices {name!r}{config.nearest(name, TARGETS)}")
        if not self.target_modules:
            raise ValueError(f"target_modules names no matrices: take some of {', '.join(TARGETS)}")


def add(network: Network, lora: LoRAConfig, *, seed: int = 0) -> None:
    """Add adapters, drawn by a seed, and freeze all other weights. Until a training step the network computes the same.

    Raises:
        ValueError: rank 0, a network with adapters, or the extra `lora` is missing.
    """
    if not lora.rank:
        raise ValueError("adapters need a rank of at least 1; 8 to 64 is usual")
    if network.lora is not None:
        raise ValueError("this network has adapters already: merge or remove them first")
    peft = _peft()
    media = r"(media\.\d+\.)?" if lora.media else ""
    settings = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=rf"blocks\.\d+\.{media}(attention|mlp)\.(\w+\.)*({'|'.join(lora.target_modules)})",
    )
    network.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(rng.key(seed, "lora"))
        peft.inject_adapter_in_model(settings, network.transformer)
    for p in _trained(network, lora).values():
        p.requires_grad_(True)
    network.lora = lora


def save(network: Network, folder: str | Path) -> None:
    """Write `lora.json` and `lora.safetensors`: the adapters and the weights trained with them, and a manifest of both.

    Raises:
        ValueError: the network has no adapters.
        OSError: a file can't be written.
    """
    lora, folder = _config(network), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:  # the last one entered is replaced first
        partial = {name: stack.enter_context(replacing(folder / name)) for name in (MANIFEST, SETTINGS, WEIGHTS)}
        save_tensors(partial[WEIGHTS], _trained(network, lora))
        partial[SETTINGS].write_text(json.dumps(config.to_plain(lora), indent=2) + "\n", encoding="utf-8")
        files = manifest({name: partial[name] for name in (SETTINGS, WEIGHTS)})
        partial[MANIFEST].write_text(json.dumps({"files": files}, indent=1) + "\n", encoding="utf-8")


def load(network: Network, folder: str | Path) -> LoRAConfig:
    """Add saved adapters to the network that they were trained on.

    Raises:
        ValueError: no adapters in the folder, damaged files, or weights that do not fit.
    """
    folder = Path(folder)
    try:
        lora = config.from_plain(LoRAConfig, read_json(folder / SETTINGS))
        weights = load_file(folder / WEIGHTS)
        files = read_json(folder / MANIFEST)["files"] if (folder / MANIFEST).exists() else {}  # earlier versions wrote none
        if damage := mismatch(folder, files):
            raise ValueError(damage)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise ValueError(f"no adapters in {folder} that can be read: {error}") from error
    add(network, lora)
    own = _trained(network, lora)
    differ = sorted(own.keys() ^ weights.keys())
    differ += [n for n in own.keys() & weights.keys() if own[n].shape != weights[n].shape or not weights[n].is_floating_point()]
    if differ:
        remove(network)
        raise ValueError(f"the adapters in {folder} were made for another network: {', '.join(differ[:4])} do not fit")
    with torch.no_grad():
        for name, p in own.items():
            p.copy_(weights[name])
    return lora


def merge(network: Network) -> None:
    """Add the adapters to their matrices, W + alpha / rank * B A; the result is a plain network with all weights trainable.

    Raises:
        ValueError: the network has no adapters, or they hold NaN or infinity.
    """
    _config(network)
    layers = list(_layers(network))
    if not all(torch.isfinite(layer.get_delta_weight(name)).all() for layer in layers for name in layer.lora_A):
        raise ValueError("an adapter holds NaN or infinity: nothing was merged")
    for layer in layers:
        layer.merge()
    remove(network)


def remove(network: Network) -> None:
    """Discard the adapters; patchers and embeddings trained with them keep their values.

    Raises:
        ValueError: the network has no adapters.
    """
    _config(network)
    layers = set(_layers(network))
    for module in list(network.transformer.modules()):
        for name, child in list(module.named_children()):
            if child in layers:
                setattr(module, name, cast(Any, child).get_base_layer())
    network.lora = None
    network.requires_grad_(True)


def _config(network: Network) -> LoRAConfig:
    if network.lora is None:
        raise ValueError("this network has no adapters: add or load some first")
    return network.lora


def _layers(network: Network) -> Iterator[Any]:
    layer = _peft().tuners.tuners_utils.BaseTunerLayer
    return (module for module in network.transformer.modules() if isinstance(module, layer))


def _trained(network: Network, lora: LoRAConfig) -> dict[str, nn.Parameter]:
    """The adapters and the weights trained with them, by name."""
    parameters: list[object] = []
    if lora.embeddings:
        name = "new" if isinstance(network.embed, SplitEmbedding) else "weight"
        parameters += [getattr(module, name) for module in (network.embed, network.head)]
    if lora.patchers:
        outside = (m for m in network.children() if m not in (network.transformer, network.embed, network.head))
        adaln = (m for m in network.transformer.modules() if isinstance(m, AdaLN))
        parameters += [p for module in (*outside, *adaln) for p in module.parameters()]
    chosen = {id(p) for p in parameters}
    return {n: p for n, p in network.named_parameters() if id(p) in chosen or re.search(r"\.lora_[AB]\.", n)}


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise ValueError("adapters need the library peft: pip install 'transfusion-kit[lora]'") from error
    return peft
