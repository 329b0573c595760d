"""Exponential moving average of weights: what is sampled and saved. One formula, and two who keep such an average:

    average <- d average + (1 - d) weights,        d = min(decay, (1 + n) / (10 + n)) at update n

`EMA` keeps the numbers alone, for a trainer that puts them in place when it needs them. `Averaged` is a whole second model,
for those who write their own loop: it samples, saves, and serves as a teacher while the first one learns.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@torch.no_grad()
def follow(average: Sequence[Tensor], weights: Sequence[Tensor], decay: float, update: int) -> None:
    """Move an average towards the weights, in place and in its own precision.

    Args:
        decay: share of the old average kept; in the first updates less: (1 + n) / (10 + n).
        update: number of this update, from 1.
    """
    share = 1 - min(decay, (1 + update) / (10 + update))
    torch._foreach_lerp_(list(average), [w.detach().to(a) for a, w in zip(average, weights, strict=True)], share)


class EMA:
    """fp32 shadows of a module's parameters.

    Args:
        decay: see `follow`.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self._live = dict(module.named_parameters())
        self.shadows = {name: p.detach().float().clone() for name, p in self._live.items()}

    def update(self, step: int) -> None:
        """Take the weights after step number `step` (from 1) into the average."""
        follow(list(self.shadows.values()), list(self._live.values()), self.decay, step)

    def load(self, shadows: dict[str, Tensor]) -> None:
        """Replace the average. Raises KeyError or RuntimeError where names or shapes differ."""
        for name, shadow in self.shadows.items():
            shadow.copy_(shadows[name])

    def module(self, module: nn.Module) -> nn.Module:
        """A copy of the followed module that runs under the average as it stands at any time: its weights are the shadows' own
        memory, its buffers the module's. Without gradients, in evaluation mode."""
        shared: dict[int, Any] = {id(b): b for b in module.buffers()}
        for name, p in self._live.items():
            shared[id(p)] = nn.Parameter(self.shadows[name], requires_grad=False)
        return copy.deepcopy(module, shared).eval()

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Within this block the module has the averaged weights."""
        kept = {name: p.detach().clone() for name, p in self._live.items()}
        self.write()
        try:
            yield
        finally:
            self._write(kept)

    def write(self) -> None:
        """Give the module the averaged weights."""
        self._write(self.shadows)

    @torch.no_grad()
    def _write(self, values: dict[str, Tensor]) -> None:
        for name, p in self._live.items():
            p.copy_(values[name])


class Averaged(nn.Module):
    """A copy of a model whose weights are the average of that model's: `update()` after each optimiser step.

    What the model can do, its average can: every public name that is not found here is the copy's own (`generate`, `sample`,
    `save_pretrained`, `network`, ...). It never trains: no gradient, always in evaluation mode. Weights of half precision are
    averaged in fp32, where small steps are not rounded away. `state_dict` holds the number of updates too.

    Args:
        model: what to follow; it is not part of this module, so neither its weights nor its device are.
        decay: see `follow`.
        every: calls of `update` for each one that counts.

    Raises:
        ValueError: a decay outside [0, 1), or `every` below 1.
    """

    def __init__(self, model: nn.Module, decay: float = 0.999, *, every: int = 1) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise ValueError(f"the decay is the share of the old average that is kept, in [0, 1), not {decay}; 0.999 is usual")
        if every < 1:
            raise ValueError(f"every must be at least 1, not {every}")
        self.decay, self.every, self.calls = decay, every, 0
        self._followed = (model,)  # in a tuple, so that it is no submodule
        self.model = copy.deepcopy(model).requires_grad_(False).eval()
        for p in self.model.parameters():
            p.data = p.data.to(torch.promote_types(p.dtype, torch.float32))

    @torch.no_grad()
    def update(self) -> None:
        """Take the model's weights, and copy its buffers. Raises ValueError where it is no longer the model it was."""
        self.calls += 1
        if self.calls % self.every:
            return
        own, weights = dict(self.model.named_parameters()), dict(self._followed[0].named_parameters())
        if own.keys() != weights.keys():
            changed = ", ".join(sorted(own.keys() ^ weights.keys())[:4])
            raise ValueError(f"the model has other weights than when its average was made ({changed}): make a new one")
        follow(list(own.values()), [weights[name] for name in own], self.decay, self.calls // self.every)
        for mine, theirs in zip(self.model.buffers(), self._followed[0].buffers(), strict=True):
            mine.copy_(theirs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The copy's answer, without gradient."""
        with torch.no_grad():
            return self.model(*args, **kwargs)

    def train(self, mode: bool = True) -> "Averaged":
        """Nothing: an average does not train."""
        return self

    def get_extra_state(self) -> Tensor:
        """The number of calls, for `state_dict`."""
        return torch.tensor(self.calls)

    def set_extra_state(self, state: Tensor) -> None:
        """Take it back."""
        self.calls = int(state)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("_") or "model" not in self.__dict__.get("_modules", {}):
                raise
        return getattr(self.model, name)
