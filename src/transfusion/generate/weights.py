"""The weights that generation computes with: the network's own, or a copy with bf16 matrices that follows them."""

import copy
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from transfusion.model.network import Network

Version = tuple[tuple[int, int], ...]
_steps = 0  # of all optimizers of this process, since the first engine in bf16


class FollowingWeights:
    """A network in the precision of generation. In bf16 that is a copy, made anew when the network has other weights than at
    the last look: an optimizer's step, `load_state_dict`, swapped averages, adapters that were added or merged.

    A change behind PyTorch's back (in place through `.data`) is not seen; `forget` tells of it.

    Args:
        dtype: bf16: matrices of the transformer and the head are bf16 copies, all else is the network's own. Any other: the
            network itself.
    """

    def __init__(self, network: Network, dtype: torch.dtype) -> None:
        self._original, self._dtype = network, dtype
        self._version: Version | None = None
        self._copy = network
        if dtype == torch.bfloat16:
            _count_steps()

    def network(self) -> Network:
        """The network to compute with now."""
        if self._dtype != torch.bfloat16:
            return self._original
        version = _version(self._original)
        if version != self._version:
            self._copy, self._version = in_bf16(self._original), version
        return self._copy

    def forget(self) -> None:
        """The next look makes a new copy."""
        self._version = None


def _version(network: Network) -> Version:
    """What changes when a weight is written to or replaced, or the mode (training, evaluation) is another: the address and the
    number of writes of every parameter; and the number of optimizer steps, since a fused one counts as no write."""
    weights = [(p.data_ptr(), 0 if p.is_inference() else p._version) for p in network.parameters()]
    return ((int(network.training), _steps), *weights)


@lru_cache(maxsize=1)
def _count_steps() -> None:
    """From now on, count the steps of all optimizers."""

    def count(*_: object) -> None:
        global _steps
        _steps += 1

    register_optimizer_step_post_hook(count)


def in_bf16(network: Network) -> Network:
    """A copy whose transformer matrices and head are bf16: the values that autocast would round them to at every step. It
    shares all other weights and buffers with the network."""
    shared: dict[int, Any] = {id(t): t for t in (*network.parameters(), *network.buffers())}
    for module in (*network.transformer.modules(), network.head):
        if isinstance(module, nn.Linear) and module.weight is not network.embed.weight:
            shared[id(module.weight)] = nn.Parameter(module.weight.detach().bfloat16(), requires_grad=False)
    return copy.deepcopy(network, shared)
