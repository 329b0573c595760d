"""Weights taken from another model: a network and its vocabulary start from those of a source.

A weight comes from the source's weight of the same name and shape. Rows of embedding and head follow their token by its name;
modality-specific weights follow their modality by its name. What has no counterpart keeps its initial values.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from transfusion.config import to_plain
from transfusion.data.vocabulary import Vocabulary
from transfusion.model.network import Network
from transfusion.nn.config import TransformerConfig
from transfusion.nn.layers import whole_weight

SHARING = ("none", "mlp", "all")
"""Values of `modality_weights`, from all weights shared to none."""


@dataclass(frozen=True)
class LoadReport:
    """Names of the weights that were loaded, that have no counterpart in the source (new), that the source has and the network
    lacks (dropped), and of the tokens that the source's vocabulary lacks."""

    loaded: tuple[str, ...]
    new: tuple[str, ...]
    dropped: tuple[str, ...]
    new_tokens: tuple[str, ...]

    def __str__(self) -> str:
        def some(names: tuple[str, ...]) -> str:
            return f" ({', '.join(names[:4])}{', ...' if len(names) > 4 else ''})" if names else ""

        return (
            f"{len(self.loaded)} weights loaded, {len(self.new)} new{some(self.new)}, {len(self.dropped)} dropped"
            f"{some(self.dropped)}, {len(self.new_tokens)} new tokens{some(self.new_tokens)}"
        )


@torch.no_grad()
def init_from(network: Network, vocabulary: Vocabulary, source: Network, source_vocabulary: Vocabulary) -> LoadReport:
    """Copy into `network` all weights of `source` that fit it. Modality-specific weights whose counterparts the source shares
    with text start as copies of the shared ones.

    Raises:
        ValueError: the transformers differ in more than depth, dropout, and adaLN or modality-specific weights that are new in
            `network`: weights of the same shape would mean something else. Or one of the networks has LoRA adapters.
    """
    for holder, which in ((source, "the source"), (network, "this model")):
        if holder.lora is not None:
            raise ValueError(f"{which} has LoRA adapters: merge them first (lora.merge), or remove them")
    unshared = check_transformers(network.config.transformer, source.config.transformer)
    counterparts = _counterparts(network, source, unshared=unshared)
    index = {name: i for i, name in enumerate(vocabulary.names)}
    tokens = [(i, index[name]) for i, name in enumerate(source_vocabulary.names) if name in index]
    weights = source.state_dict()
    loaded, new = [], []
    for name, tensor in network.state_dict().items():
        table = {"embed": source.embed, "head": source.head}.get(name.partition(".")[0])
        weight = weights.get(counterparts.get(name, ""))
        if table is not None and table.weight.shape[1] == tensor.shape[1]:
            _copy_rows(tensor, whole_weight(table), tokens, first=vocabulary.num_language if name.endswith(".new") else 0)
            loaded.append(name)
        elif weight is not None and weight.shape == tensor.shape:
            tensor.copy_(weight)
            loaded.append(name)
        else:
            new.append(name)
    dropped = weights.keys() - {counterparts.get(name) for name in loaded} - {"embed.new", "head.new"}
    new_tokens = tuple(name for name in vocabulary.names if name not in source_vocabulary.names)
    return LoadReport(tuple(loaded), tuple(new), tuple(sorted(dropped)), new_tokens)


def check_transformers(wanted: TransformerConfig, source: TransformerConfig) -> bool:
    """Whether a transformer has modality-specific weights that its source shares. Raises ValueError where weights cannot
    fit."""
    ours, theirs = (to_plain(replace(each, depth=1, dropout=0.0)) for each in (wanted, source))
    unshared = SHARING.index(ours["modality_weights"]) > SHARING.index(theirs["modality_weights"])
    ours |= {"modality_weights": theirs["modality_weights"]} if unshared else {}
    ours |= {"adaln": False} if ours["adaln"] and not theirs["adaln"] else {}
    if ours != theirs:
        differ = [f"{name}: {theirs[name]} there, {value} here" for name, value in ours.items() if value != theirs[name]]
        raise ValueError(
            f"weights of another transformer do not fit (model.transformer {'; '.join(differ)}): give it the same sizes"
        )
    return unshared


def _counterparts(network: Network, source: Network, *, unshared: bool) -> dict[str, str]:
    """Name of each weight of the network -> name of the source's weight that it starts from, where the source has it."""

    def located(holder: Network) -> dict[str, tuple[str, str]]:
        names = [modality.name for modality in holder.config.modalities]
        pairs = holder.transformer.text_counterparts().items()
        return {f"transformer.{name}": (names[index], f"transformer.{text}") for name, (index, text) in pairs}

    ours, theirs = located(network), {place: name for name, place in located(source).items()}
    same = {name: name for name in network.state_dict() if name not in ours}
    shared = {name: text for name, (_, text) in ours.items()} if unshared else {}
    return same | shared | {name: theirs[place] for name, place in ours.items() if place in theirs}


def _copy_rows(table: Tensor, source: Tensor, tokens: list[tuple[int, int]], *, first: int) -> None:
    """Copy the rows of shared tokens (id in the source, id here) into a table whose rows are the ids from `first` on."""
    pairs = [(old, new - first) for old, new in tokens if first <= new < first + len(table)]
    if pairs:
        old, new = (torch.tensor(ids, device=table.device) for ids in zip(*pairs, strict=True))
        table[new] = source.to(table)[old]
