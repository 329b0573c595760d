"""Exponential moving average of the weights: what is sampled and saved."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class EMA:
    """fp32 shadows of a module's parameters.

    Args:
        decay: share of the old average kept at each step; in the first steps less: (1 + n) / (10 + n).
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self._live = dict(module.named_parameters())
        self.shadows = {name: p.detach().float().clone() for name, p in self._live.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take the weights after step number `step` (from 1) into the average."""
        share = 1 - min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.shadows.values()), [p.detach().float() for p in self._live.values()], share)

    def load(self, shadows: dict[str, Tensor]) -> None:
        """Replace the average. Raises KeyError or RuntimeError where names or shapes differ."""
        for name, shadow in self.shadows.items():
            shadow.copy_(shadows[name])

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
