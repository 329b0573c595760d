"""Other residual streams than x + part(x): hyper-connections, attention over depth, and long skips between the halves.

Each stands around a part of a layer: `stream(state, part) -> state`, where `part` maps [row, length, width] to the same.
"""

from collections.abc import Callable
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Sublayer: TypeAlias = Callable[[Tensor], Tensor]
"""A layer's attention or feed-forward, [row, length, width] -> [row, length, width]."""


class HyperConnections(nn.Module):
    """Dynamic hyper-connections (arXiv 2409.19606): n streams [row, length, n, width]. A part reads a mixture of them; they are
    mixed among themselves, and the part's output is added to each by a share of its own. All three depend on the token.

    Args:
        index: number of the part in the network; in the beginning it reads stream index mod n and writes into all of them,
            which is the plain residual.
    """

    def __init__(self, width: int, streams: int, index: int, eps: float) -> None:
        super().__init__()
        self.streams, self.index, self.eps = streams, index, eps
        self.norm = nn.Parameter(torch.ones(width))
        self.dynamic = nn.Linear(width, streams + 2, bias=False)
        self.scale = nn.Parameter(torch.full((2,), 0.01))
        self.read = nn.Parameter(torch.empty(streams))
        self.mix = nn.Parameter(torch.empty(streams, streams))
        self.write = nn.Parameter(torch.empty(streams))
        self.start()

    def start(self) -> None:
        """First weights: those of the plain residual (the paper's eq. 14)."""
        nn.init.zeros_(self.dynamic.weight)
        nn.init.eye_(self.mix)
        nn.init.ones_(self.write)
        with torch.no_grad():
            self.read.copy_(torch.eye(self.streams)[self.index % self.streams])

    def forward(self, state: Tensor, part: Sublayer) -> Tensor:
        """[row, length, stream, width] -> the same"""
        n = self.streams
        moved = self.dynamic(F.rms_norm(state, state.shape[-1:], self.norm.to(state.dtype), self.eps)).to(state.dtype).tanh()
        read = moved[..., 0] * self.scale[0] + self.read
        mix = moved[..., 1 : 1 + n] * self.scale[0] + self.mix
        write = moved[..., 1 + n] * self.scale[1] + self.write
        out = part((read.unsqueeze(-1) * state).sum(-2))
        mixed = mix.transpose(-1, -2).to(state.dtype) @ state
        return mixed + write.unsqueeze(-1) * out.unsqueeze(-2)

    @staticmethod
    def begin(x: Tensor, streams: int) -> Tensor:
        """Every stream begins with the embedding."""
        return x.unsqueeze(-2).expand(*x.shape[:-1], streams, x.shape[-1])

    @staticmethod
    def end(state: Tensor) -> Tensor:
        """The sum of the streams."""
        return state.sum(-2)


State: TypeAlias = tuple[tuple[Tensor, Tensor], ...]
"""The embedding and the output of every part so far, each with its normalised form."""


class DepthAttention(nn.Module):
    """Attention residual ("Attention Residuals", Kimi team, 2026): a part reads, token by token, a softmax-weighted mean of the
    embedding and of all earlier parts' outputs, by a learned query; nothing else is summed up. The query begins at 0, so that
    all weigh the same. The network's very `first` part has nothing to choose from."""

    def __init__(self, width: int, eps: float, *, first: bool = False) -> None:
        super().__init__()
        self.query = None if first else nn.Parameter(torch.zeros(width))
        self.eps = eps

    def read(self, state: State) -> Tensor:
        """[row, length, width] from all that there is."""
        if self.query is None:
            return state[0][0]
        query = self.query.to(state[0][1].dtype)
        weights = torch.stack([unit @ query for _, unit in state]).softmax(0).unsqueeze(-1)
        return torch.stack([weight * value for weight, (value, _) in zip(weights, state, strict=True)]).sum(0)

    def forward(self, state: State, part: Sublayer) -> State:
        """The state, and the part's output."""
        return (*state, noted(part(self.read(state)), self.eps))


def noted(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """An entry of `State`."""
    return x, F.rms_norm(x, x.shape[-1:], None, eps)


class LongSkip(nn.Module):
    """A long skip of a U-ViT (arXiv 2209.12152): x and what left a layer of the first half, concatenated and projected; the
    projection is added to x and begins at 0."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.project = nn.Linear(2 * width, width, bias=False)
        self.start()

    def start(self) -> None:
        """First weights: zero."""
        nn.init.zeros_(self.project.weight)

    def forward(self, x: Tensor, earlier: Tensor) -> Tensor:
        """Two of [..., width] -> one"""
        return x + self.project(torch.cat([x, earlier], -1))


def paired(depth: int) -> int:
    """Layers of each half that long skips join: the first with the last, and so on; one or two are left in the middle."""
    return (depth - 1) // 2
