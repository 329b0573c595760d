"""Residual streams: plain, hyper-connections, attention over depth; and long skips between the halves of the network.

A stream begins with the embedding, and ends as one vector per token: `begin(x) -> state`, `end(state) -> x`. Each layer's
attention and MLP have a connection to it: `connection(state, sublayer) -> state`, where the sublayer maps [row, length, width]
to the same.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transfusion.nn.config import TransformerConfig

Sublayer: TypeAlias = Callable[[Tensor], Tensor]


def residual(config: TransformerConfig, index: int | None = None) -> Any:
    """The connection of sublayer number `index`, 2 layer for attention and 2 layer + 1 for the MLP; without an index the
    stream's `begin` and `end`, a module since they may have weights."""
    if config.residual == "hyper" and index is not None:
        return HyperConnections(config.width, config.num_streams, index, config.norm_eps)
    if config.residual == "hyper":
        return HyperStreams(config.num_streams)
    if config.residual == "attention":
        return DepthAttention(config.width, config.norm_eps, first=index == 0)
    return PlainResidual()


class PlainResidual(nn.Module):
    """x + sublayer(x)"""

    def forward(self, x: Tensor, sublayer: Sublayer) -> Tensor:
        """[row, length, width] -> [row, length, width]"""
        return x + sublayer(x)

    def begin(self, x: Tensor) -> Tensor:
        """x"""
        return x

    end = begin


class HyperConnections(nn.Module):
    """Dynamic hyper-connections (arXiv 2409.19606): n streams [row, length, n, width]. A sublayer reads a mixture of the
    streams; the streams are mixed among themselves; the output is added to each with its own weight. All three depend on the
    token.

    Args:
        index: number of the sublayer. Initially it reads stream index mod n and writes into all: the plain residual.
    """

    undecayed = (
        "mix",
    )  # starts at the identity: weight decay would fade the streams (the paper decays the dynamic part alone)

    def __init__(self, width: int, streams: int, index: int, eps: float) -> None:
        super().__init__()
        self.streams, self.index, self.eps = streams, index, eps
        self.norm = nn.Parameter(torch.ones(width))
        self.dynamic = nn.Linear(width, streams + 2, bias=False)
        self.scale = nn.Parameter(torch.full((2,), 0.01))
        self.read = nn.Parameter(torch.empty(streams))
        self.mix = nn.Parameter(torch.empty(streams, streams))
        self.write = nn.Parameter(torch.empty(streams))
        self.init_weights()

    def init_weights(self) -> None:
        """The plain residual (the paper's eq. 14)."""
        nn.init.zeros_(self.dynamic.weight)
        nn.init.eye_(self.mix)
        nn.init.ones_(self.write)
        with torch.no_grad():
            self.read.copy_(torch.eye(self.streams)[self.index % self.streams])

    def forward(self, state: Tensor, sublayer: Sublayer) -> Tensor:
        """[row, length, stream, width] -> [row, length, stream, width]"""
        n = self.streams
        normed = F.rms_norm(state, state.shape[-1:], self.norm.to(state.dtype), self.eps)
        dynamic = self.dynamic(normed).to(state.dtype).tanh()
        read = dynamic[..., 0] * self.scale[0] + self.read
        mix = dynamic[..., 1 : 1 + n] * self.scale[0] + self.mix
        write = dynamic[..., 1 + n] * self.scale[1] + self.write
        out = sublayer((read.unsqueeze(-1) * state).sum(-2))
        mixed = mix.transpose(-1, -2).to(state.dtype) @ state
        return mixed + write.unsqueeze(-1) * out.unsqueeze(-2)


class HyperStreams(nn.Module):
    """Every stream begins with the embedding; at the end they are summed."""

    def __init__(self, streams: int) -> None:
        super().__init__()
        self.streams = streams

    def begin(self, x: Tensor) -> Tensor:
        """[row, length, width] -> [row, length, stream, width]"""
        return x.unsqueeze(-2).expand(*x.shape[:-1], self.streams, x.shape[-1])

    def end(self, state: Tensor) -> Tensor:
        """[row, length, stream, width] -> [row, length, width]"""
        return state.sum(-2)


DepthState: TypeAlias = tuple[tuple[Tensor, Tensor], ...]
"""The embedding and every sublayer's output so far, each with its normalised form."""


class DepthAttention(nn.Module):
    """Attention residual ("Attention Residuals", Kimi team, 2026): a sublayer reads, token by token, a softmax-weighted mean of
    the embedding and of all earlier sublayers' outputs, by a learned query. Outputs are not summed. The query starts at 0:
    equal weights. The network's `first` sublayer has only the embedding, and no query."""

    def __init__(self, width: int, eps: float, *, first: bool = False) -> None:
        super().__init__()
        self.query = None if first else nn.Parameter(torch.zeros(width))
        self.eps = eps

    def begin(self, x: Tensor) -> DepthState:
        """The embedding alone."""
        return (self._entry(x),)

    def end(self, state: DepthState) -> Tensor:
        """The weighted mean, [row, length, width]."""
        if self.query is None:
            return state[0][0]
        query = self.query.to(state[0][1].dtype)
        weights = torch.stack([unit @ query for _, unit in state]).softmax(0).unsqueeze(-1)
        return torch.stack([weight * value for weight, (value, _) in zip(weights, state, strict=True)]).sum(0)

    def forward(self, state: DepthState, sublayer: Sublayer) -> DepthState:
        """The state and the sublayer's output."""
        return (*state, self._entry(sublayer(self.end(state))))

    def _entry(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, F.rms_norm(x, x.shape[-1:], None, self.eps)


class LongSkip(nn.Module):
    """Long skip of a U-ViT (arXiv 2209.12152): x and the output of a layer of the first half, concatenated, projected, and
    added to x. The projection starts at 0."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.project = nn.Linear(2 * width, width, bias=False)
        self.init_weights()

    def init_weights(self) -> None:
        """All zero."""
        nn.init.zeros_(self.project.weight)

    def forward(self, x: Tensor, earlier: Tensor) -> Tensor:
        """Two [..., width] -> [..., width]"""
        return x + self.project(torch.cat([x, earlier], -1))
