"""EMA of weights: shadow tensors (`EMA`, for the trainer), or a full copy of the model (`Averaged`, for loops of one's own).

    average <- d average + (1 - d) weights,        d = min(decay, (1 + n) / (10 + n)) at update n

`Averaged` samples, saves, and serves as a teacher while the model trains. Beside them, evaluation mode as a context.
"""

import copy
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn


@torch.no_grad()
def update_average(average: Sequence[Tensor], weights: Sequence[Tensor], decay: float, update: int) -> None:
    """Update an average in place, in its own precision; `update` counts from 1."""
    share = 1 - min(decay, (1 + update) / (10 + update))
    torch._foreach_lerp_(list(average), [w.detach().to(a) for a, w in zip(average, weights, strict=True)], share)


class EMA:
    """Shadows of a module's parameters, in fp32 or in their own precision, whichever is finer."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self._live = dict(module.named_parameters())
        self.shadows = {
            name: p.detach().to(torch.promote_types(p.dtype, torch.float32), copy=True) for name, p in self._live.items()
        }

    def update(self, step: int) -> None:
        """Update the average after step number `step`, from 1."""
        update_average(list(self.shadows.values()), list(self._live.values()), self.decay, step)

    def load(self, shadows: dict[str, Tensor]) -> None:
        """Replace the average. Raises KeyError or RuntimeError if names or shapes differ."""
        for name, shadow in self.shadows.items():
            shadow.copy_(shadows[name])

    def module(self, module: nn.Module) -> nn.Module:
        """A copy of the module that shares the shadows' memory as its weights and the module's buffers, so it always has the
        current average. Without gradients, in evaluation mode."""
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
            self.write(kept)

    @torch.no_grad()
    def write(self, values: dict[str, Tensor] | None = None) -> None:
        """Copy values (None: the averaged weights) into the module."""
        for name, p in self._live.items():
            p.copy_((self.shadows if values is None else values)[name])


class Averaged(nn.Module):
    """A copy of a model with averaged weights: call `update()` after each optimizer step.

    Other public names are the copy's (`generate`, `sample`, `save_pretrained`, `network`, ...). It never trains: no gradient,
    always in evaluation mode. Half-precision weights are averaged in fp32, where small updates are not rounded away.
    `state_dict` includes the number of updates.

    Args:
        model: the model to average; it is not a submodule.
        every: average only every so many calls of `update`.

    Raises:
        ValueError: a decay outside [0, 1), or `every` below 1.
    """

    def __init__(self, model: nn.Module, decay: float = 0.999, *, every: int = 1) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be in [0, 1), not {decay}; 0.999 is usual")
        if every < 1:
            raise ValueError(f"every must be at least 1, not {every}")
        self.decay, self.every, self.calls = decay, every, 0
        self._followed = (model,)  # in a tuple, so that it is no submodule
        self.model = copy.deepcopy(model).requires_grad_(False).eval()
        for p in self.model.parameters():
            p.data = p.data.to(torch.promote_types(p.dtype, torch.float32))

    @torch.no_grad()
    def update(self) -> None:
        """Average the model's weights, and copy its buffers. Raises ValueError if its weights have other names than before."""
        self.calls += 1
        if self.calls % self.every:
            return
        own, weights = dict(self.model.named_parameters()), dict(self._followed[0].named_parameters())
        if own.keys() != weights.keys():
            changed = ", ".join(sorted(own.keys() ^ weights.keys())[:4])
            raise ValueError(f"the model has other weights than its average ({changed}): make a new one")
        update_average(list(own.values()), [weights[name] for name in own], self.decay, self.calls // self.every)
        for own_buffer, buffer in zip(self.model.buffers(), self._followed[0].buffers(), strict=True):
            own_buffer.copy_(buffer)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The copy's forward, without gradient."""
        with torch.no_grad():
            return self.model(*args, **kwargs)

    def train(self, mode: bool = True) -> "Averaged":
        """No effect: an average does not train."""
        return self

    def get_extra_state(self) -> Tensor:
        """The number of calls, for `state_dict`."""
        return torch.tensor(self.calls)

    def set_extra_state(self, state: Tensor) -> None:
        """Restore it."""
        self.calls = int(state)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("_") or "model" not in self.__dict__.get("_modules", {}):
                raise
        return getattr(self.model, name)


class _InEvalMode:
    """A module inside `eval_mode`: how many blocks it is in, and the submodules that are to train again after the last."""

    def __init__(self) -> None:
        self.blocks = 0
        self.training: list[nn.Module] = []


_lock = threading.RLock()
_in_eval_mode: WeakKeyDictionary[nn.Module, _InEvalMode] = WeakKeyDictionary()


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Put a module in evaluation mode; afterwards each submodule is back in the mode that it was in.

    Blocks may overlap, in any order and in several threads: the last to end restores what the first found. A mode that is set
    meanwhile by `set_mode` is what is restored.
    """
    with _lock:
        state = _in_eval_mode.setdefault(module, _InEvalMode())
        if not state.blocks:
            state.training = [submodule for submodule in module.modules() if submodule.training]
            for submodule in state.training:
                submodule.training = False
        state.blocks += 1
    try:
        yield
    finally:
        with _lock:
            state.blocks -= 1
            if not state.blocks:
                del _in_eval_mode[module]
                for submodule in state.training:
                    submodule.training = True


def set_mode(module: nn.Module, mode: bool) -> None:
    """`nn.Module.train(module, mode)`, for the `train` of a class that also generates: inside an `eval_mode` block of another
    thread it holds at once, and after the block."""
    with _lock:
        nn.Module.train(module, mode)
        if module in _in_eval_mode:
            _in_eval_mode[module].training = [submodule for submodule in module.modules() if submodule.training]
