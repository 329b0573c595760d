"""FLOPs of training, in two ways. N: weights of the network; D: tokens and slots; a multiply-add is 2 FLOPs.

paper      6 N D (Kaplan et al. 2020, arXiv 2001.08361), by which the paper compares models (its footnote 15)
computed   3 x the forward pass's matrix products and convolutions, for backward has twice as many:

    a token       2 x weights of the transformer's matrices that it uses (of experts: those of its top k)
    a document    4 x layers x query heads x head size x length^2: scores and sums over all pairs of its tokens, though a causal
                  mask hides nearly half of them (as PaLM counts, arXiv 2204.02311, appendix B)
    a target      2 x width x ids
    an item       those of its patcher, counted while it runs once; with adaLN those of its time in every layer

6 N D counts the embedding, which multiplies nothing, and the head at tokens without a target; it leaves out attention, and of a
U-Net's convolutions, whose weights are used at every position, most. Not in `computed`: passes of auxiliary losses, small
products of residual streams, and what frozen weights save. `tests/model/test_flops.py` holds it equal to PyTorch's counter.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from transfusion.data.batch import Batch
from transfusion.model.network import Network
from transfusion.nn.adaln import AdaLN
from transfusion.nn.ema import eval_mode
from transfusion.nn.layers import whole_weight
from transfusion.nn.moe import MixtureOfExperts

Item = tuple[int, tuple[int, ...]]
"""Index of an item's modality, and its grid of slots."""


@dataclass(frozen=True)
class Flops:
    """FLOPs of one training step or of one document: `paper` is 6 N D, `computed` its matrix products."""

    paper: float
    computed: float

    def __add__(self, other: "Flops") -> "Flops":
        return Flops(self.paper + other.paper, self.computed + other.computed)


class FlopCounter:
    """Counts a network's FLOPs from the shapes of documents. It reads sizes only, so the network may be on the meta device."""

    def __init__(self, network: Network) -> None:
        self.network = network
        config = network.config.transformer
        self.num_parameters = network.num_parameters
        self.per_token = 2 * _active(network.transformer)
        self.per_pair = 4 * config.depth * config.num_heads * config.sizes.head_dim
        self.per_target = 2 * whole_weight(network.head).numel()
        self._per_item = lru_cache(maxsize=1024)(self._count_item)

    def document(self, length: int, targets: int, items: Iterable[Item] = ()) -> Flops:
        """Of a document of `length` tokens and slots, `targets` of them with a language loss, and with these items."""
        return self._total([length], targets, items)

    def batch(self, batch: Batch) -> Flops:
        """Of the documents of a batch; padding is left out."""
        rows = batch.documents.cpu()
        lengths = [count for row in rows for count in torch.bincount(row[row >= 0]).tolist()]
        items = [(group.modality, group.grid) for group in batch.media for _ in range(len(group.slots))]
        return self._total(lengths, len(batch.loss_index), items)

    def _total(self, lengths: Sequence[int], targets: int, items: Iterable[Item]) -> Flops:
        tokens, pairs = sum(lengths), sum(length**2 for length in lengths)
        forward = self.per_token * tokens + self.per_pair * pairs + self.per_target * targets
        forward += sum(self._per_item(*item) for item in items)
        return Flops(6.0 * self.num_parameters * tokens, 3.0 * forward)

    @torch.no_grad()
    def _count_item(self, modality: int, grid: tuple[int, ...]) -> int:
        """Forward FLOPs of one item beside those of its slots in the transformer."""
        network, about = self.network, self.network.config.modalities[modality]
        patcher, width = network.patcher_of(modality), network.config.transformer.width
        like = network.embed.weight
        latents, t = like.new_zeros(1, about.channels, *about.shape_of(grid)), like.new_zeros(1)
        with eval_mode(patcher), FlopCounterMode(display=False) as counter:
            _, skip = patcher.encode(latents, t)
            patcher.decode(like.new_zeros(1, math.prod(grid), width), skip, grid)
        timed = [network.time_embedding, *(m for m in network.transformer.modules() if isinstance(m, AdaLN))]
        return counter.get_total_flops() + 2 * sum(_matrices(module) for module in timed if module is not None)


def _matrices(module: nn.Module) -> int:
    """Weights of the linear layers of a module."""
    return sum(child.weight.numel() for child in module.modules() if isinstance(child, nn.Linear))


def _active(transformer: nn.Module) -> int:
    """Weights of the matrices that one token uses: of experts those of its top k; of modalities those of its own, which are as
    many as the text's; none of adaLN, which items use."""
    total = _matrices(transformer)
    for child in transformer.modules():
        if isinstance(child, MixtureOfExperts):
            config = child.config
            total -= (
                sum(_matrices(expert) for expert in child.experts) * (config.num_experts - config.top_k) // config.num_experts
            )
        if isinstance(child, AdaLN):
            total -= _matrices(child)
    for name, media in transformer.named_modules():
        if name.endswith(".media"):
            total -= _active(media)
    return total
