"""Several processes that train one model: who this one is, and what they tell each other.

    torchrun --nproc-per-node 2 -m transfusion train RECIPE ...

Each process holds the whole model and a share of every step's rows. One of them, the main one, writes the run's folder. Without
`torchrun` there is one process, and nothing here does anything.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")
STEP, WAIT = timedelta(minutes=30), timedelta(days=30)
"""How long a process waits for the others: within a step, and for the main one's own work (sheets, an autoencoder)."""


@dataclass(frozen=True)
class World:
    """The processes of a run, and which of them this is."""

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes the run's folder."""
        return self.rank == 0


_alone: ContextVar[bool] = ContextVar("alone", default=False)
_patient: list[Any] = []
"""The group in which processes wait for the main one."""


def world() -> World:
    """The processes that run together; one where there are no others, or where this one works alone."""
    if _alone.get() or not (dist.is_available() and dist.is_initialized()):
        return World()
    return World(dist.get_rank(), dist.get_world_size())


def processes() -> int:
    """How many processes train, also where the main one works alone."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


@contextmanager
def joined() -> Iterator[World]:
    """Join the processes that `torchrun` started; on one machine they share its cores. Raises ValueError: its variables are
    incomplete."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or dist.is_initialized():
        yield world()
        return
    missing = [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise ValueError(f"WORLD_SIZE is set and {', '.join(missing)} are not: start with torchrun, or unset WORLD_SIZE")
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, timeout=STEP)
    _patient[:] = [dist.new_group(backend="gloo", timeout=WAIT)]
    try:
        yield world()
    finally:
        _patient.clear()
        dist.destroy_process_group()


@contextmanager
def _by_itself() -> Iterator[None]:
    """Within, this process is the only one."""
    token = _alone.set(True)
    try:
        yield
    finally:
        _alone.reset(token)


def from_main(function: Callable[[], T]) -> T:
    """What a function gives in the main process, which runs it alone while the others wait. Its error ends all of them: the
    main process raises it, the others SystemExit."""
    here = world()
    if here.size == 1:
        return function()
    told: list[Any] = [None, None]
    error: BaseException | None = None
    if here.is_main:
        try:
            with _by_itself():
                told = [True, function()]
        except BaseException as raised:
            told, error = [False, None], raised
    dist.broadcast_object_list(told, group=_patient[0])
    if error is not None:
        raise error
    if not told[0]:
        raise SystemExit(1)
    return told[1]


def main_first(function: Callable[[], T]) -> T:
    """A function's result in each process, after the main one has its own: it may leave files that the others read."""
    if world().size == 1:
        return function()
    if world().is_main:
        result: list[T] = []

        def once() -> None:
            result.append(function())

        from_main(once)
        return result[0]
    from_main(lambda: None)
    with _by_itself():
        return function()


def total(numbers: Mapping[str, float]) -> dict[str, float]:
    """The sum of each number over all processes, which give the same names."""
    if world().size == 1:
        return dict(numbers)
    names = sorted(numbers)
    values = torch.tensor([numbers[name] for name in names], dtype=torch.float64)
    dist.all_reduce(values)
    return dict(zip(names, values.tolist(), strict=True))


def largest(number: float) -> float:
    """The largest of all processes' numbers."""
    if world().size == 1:
        return number
    value = torch.tensor(float(number), dtype=torch.float64)
    dist.all_reduce(value, dist.ReduceOp.MAX)
    return value.item()


def summed(x: Tensor) -> Tensor:
    """The sum of a tensor over all processes, without a gradient."""
    if world().size == 1:
        return x
    x = x.detach().clone()
    dist.all_reduce(x)
    return x


def gathered(x: Tensor) -> Tensor:
    """The rows of all processes, in their order, which may have different numbers of them; without a gradient."""
    here = world()
    if here.size == 1:
        return x
    counts = [torch.zeros((), dtype=torch.int64, device=x.device) for _ in range(here.size)]
    dist.all_gather(counts, torch.tensor(len(x), device=x.device))
    lengths = [int(count) for count in counts]
    padded = torch.cat([x.detach(), x.new_zeros(max(lengths) - len(x), *x.shape[1:])])
    parts = [torch.empty_like(padded) for _ in range(here.size)]
    dist.all_gather(parts, padded)
    return torch.cat([part[:length] for part, length in zip(parts, lengths, strict=True)])
