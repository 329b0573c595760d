"""The training loop: an objective and a stream of batches in, trained weights out; any checkpoint resumes it bit-exactly.

What is trained, and on what, is an `Objective` and a `Stream` (`objective.py`): the transformer here, autoencoders elsewhere.

Several processes (`distributed.py`) each work on a share of a step, under DistributedDataParallel. Losses are divided by the
counts of the whole step before the backward pass, so a step is the same in any number of processes; any number of them goes on
from a checkpoint of another. The main process writes checkpoints and logs and calls the hooks.
"""

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from transfusion import distributed, rng
from transfusion.data.loader import prefetch
from transfusion.model.losses import Term, total
from transfusion.nn.ema import EMA, eval_mode
from transfusion.train import checkpoint
from transfusion.train.device import tune_malloc
from transfusion.train.log import LogFn, Measured, SilentLog, TrainingLog
from transfusion.train.objective import At, B, Objective, Stream
from transfusion.train.optimizer import OptimizerConfig
from transfusion.train.stopping import Stopped, StopRequest, listening


@dataclass(frozen=True)
class TrainerConfig:
    """Number of steps, and what happens every so many of them.

    Args:
        steps: optimizer steps.
        accumulate: micro-batches that the rows of a step are split into, to save memory.
        ema_decay: decay of the averaged weights.
        log_every: steps between log lines, where there is no terminal.
        sample_every: steps between sample grids, and between measurements of caption preference (0: none).
        patience: consecutive steps without a finite loss and gradient after which the run stops.
    """

    steps: int = 1000
    accumulate: int = 1
    ema_decay: float = 0.999
    log_every: int = 50
    sample_every: int = 0
    patience: int = 20

    def __post_init__(self) -> None:
        if self.steps < 1 or self.accumulate < 1 or self.patience < 1:
            raise ValueError(
                f"steps, accumulate and patience must be at least 1, not {self.steps}, {self.accumulate} and {self.patience}"
            )
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema-decay must be from 0 (no average) to below 1, not {self.ema_decay}")
        if self.log_every < 1 or self.sample_every < 0:
            raise ValueError(
                f"log-every must be at least 1 and sample-every 0 or more, not {self.log_every} and {self.sample_every}"
            )


@dataclass(frozen=True)
class CheckpointConfig:
    """Checkpoints.

    Args:
        every: steps between checkpoints; the last step writes one too.
        keep: number of checkpoints to keep, the newest.
    """

    every: int = 500
    keep: int = 2

    def __post_init__(self) -> None:
        if self.every < 1 or self.keep < 1:
            raise ValueError(f"every and keep must be at least 1, not {self.every} and {self.keep}")


class Diverged(RuntimeError):
    """`patience` consecutive steps had no finite loss and gradient."""


@dataclass(frozen=True)
class Hook:
    """A function that is called after some steps with the number of the step, while the model has its averaged weights.

    Args:
        call: what it measures is logged beside the step's metrics.
        every: steps between calls (0: none).
        at_end: whether it is called after the last step; without it, the last step is left out.
    """

    call: Callable[[int], Measured | None]
    every: int
    at_end: bool = False


class Optimization:
    """An optimizer, its schedule, and the weights that it updates.

    Args:
        module: whose trainable weights they are: the objective, or a part of it.
        config: optimizer and schedule.
        name: of its gradient norm and learning rate in the log, before "grad_norm" and "lr".
        start: step from which on it updates them; its schedule runs from there to the end of the run.

    Raises:
        ValueError: the module has no trainable weights.
    """

    def __init__(self, module: nn.Module, config: OptimizerConfig, *, name: str = "", start: int = 0) -> None:
        self.config, self.name, self.start = config, name, start
        self.optimizer = config.build(module)
        updated = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        self.parameters = [p for p in module.parameters() if id(p) in updated]
        """The weights that it updates, in the module's order: the norm of their gradients depends on it in the last digit."""

    def prepare(self, step: int, steps: int) -> float:
        """Set the learning rate of a step, clip the gradients; returns their norm before. Before `start` they are dropped."""
        if step < self.start:
            self.optimizer.zero_grad(set_to_none=True)
            return 0.0
        rate = self.config.rate(step - self.start, steps - self.start)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get("lr_scale", 1.0)
        return float(nn.utils.clip_grad_norm_(self.parameters, self.config.max_grad_norm))

    def metrics(self, norm: float) -> dict[str, float]:
        """Gradient norm and learning rate, for the log."""
        label = f"{self.name}_" if self.name else ""
        return {f"{label}grad_norm": norm, f"{label}lr": self.optimizer.param_groups[0]["lr"]}


class _Losses(nn.Module):
    """The losses of an objective as a forward pass, which is what DistributedDataParallel wraps."""

    def __init__(self, objective: Objective[Any]) -> None:
        super().__init__()
        self.objective = objective

    def forward(self, batch: Any, at: At) -> list[Term]:
        """Those of a batch."""
        return list(self.objective.loss(batch, at))


class Trainer(Generic[B]):
    """Trains an objective.

    Args:
        objective: networks and their losses.
        stream: of batches.
        optimizers: each of weights of its own. One backward pass serves all.
        folder: of the run, for checkpoints and metrics.
        digest: of the configuration; a checkpoint of another one is refused.
        device, dtype: where to train, under bf16 autocast or in fp32.
        hooks: functions to call on the way and at the end.

    Raises:
        ValueError: two optimizers update the same weights, or none does.
    """

    def __init__(
        self,
        objective: Objective[B],
        stream: Stream[B],
        *,
        optimizers: Sequence[Optimization],
        config: TrainerConfig,
        checkpoint_config: CheckpointConfig,
        folder: Path,
        digest: str,
        device: torch.device,
        dtype: torch.dtype,
        hooks: Sequence[Hook] = (),
    ) -> None:
        self.objective, self.model, self.stream = objective, objective.model, stream
        self.optimizers, self.config, self.checkpoint_config = tuple(optimizers), config, checkpoint_config
        self.folder, self.digest, self.device, self.dtype, self.hooks = folder, digest, device, dtype, hooks
        updated = [id(p) for each in self.optimizers for p in each.parameters]
        if not updated or len(updated) != len(set(updated)):
            raise ValueError("a trainer needs optimizers, each of weights of its own")
        self.ema = EMA(self.model, config.ema_decay)
        objective.averaged(self.ema)
        self.step, self.position, self.skipped = 0, stream.start, 0
        self._saved, self._asked = -1, StopRequest()
        self.world = distributed.world()
        self._losses: nn.Module = _Losses(objective)
        if self.world.size > 1:
            # a batch may leave out any module (a patcher, an expert), which only this finds before the reduction
            self._losses = DistributedDataParallel(self._losses, find_unused_parameters=True, forward_sync_buffers=False)
        self._has_dropout = any(isinstance(module, nn.Dropout) for module in objective.modules())

    # ---- the run ----------------------------------------------------------------------------------------------------

    def resume(self, log: LogFn) -> bool:
        """Load the newest checkpoint of the folder; False if there is none.

        Raises:
            ValueError: it belongs to another configuration, or every checkpoint is damaged.
        """
        state = checkpoint.latest(self.folder / "checkpoints", log)
        if state is None:
            return False
        if state.plain.get("digest") != self.digest:
            raise ValueError(
                f"{self.folder} holds a run with other settings (see its run.yaml); repeat its own command to resume it, or "
                "choose another --out"
            )
        self.restore(state)
        return True

    def run(self) -> None:
        """Train until the last step.

        Raises:
            Diverged: `patience` consecutive steps without a finite loss and gradient.
            OSError: a checkpoint can't be written.
            Stopped: SIGTERM or Ctrl-C came; the run is saved.
        """
        self.objective.train()
        if self.device.type == "cpu":
            tune_malloc()
        opened = (
            TrainingLog(self.folder, first=self.step, steps=self.config.steps, every=self.config.log_every)
            if self.world.is_main
            else SilentLog(self.world.rank)
        )
        with (
            opened as log,
            closing(prefetch(self.stream.batches(self.position))) as stream,
            listening() as self._asked,
        ):
            bad = 0
            began = time.monotonic()
            while self.step < self.config.steps:
                batches = next(stream)
                waited = time.monotonic() - began
                measured, norm, size = self._step(batches)
                self.position = batches[-1].state
                for batch in batches:
                    for line in batch.unreadable:
                        log.line(f"left out: {line}")
                if math.isfinite(norm):
                    bad = 0
                else:
                    bad, self.skipped = bad + 1, self.skipped + 1
                    log.line(f"step {self.step}: loss or gradient is not finite; step skipped")
                    if bad >= self.config.patience:
                        names = ", ".join(dict.fromkeys(name for batch in batches for name in batch.names))[:500]
                        raise Diverged(f"no finite loss and gradient for {bad} steps; documents of the last step: {names}")
                now = time.monotonic()
                log.step(self.step, self._metrics(measured, size, now - began, waited), self.objective.unit)
                began = now
                self._end_step(log)
                began += time.monotonic() - now  # hooks and checkpoints are not the step's time
                self._stop_if_asked()
            if self.stream.failed:
                log.line(f"{len(self.stream.failed)} unreadable documents were left out")

    def _step(self, batches: Sequence[B]) -> tuple[dict[str, float], float, int]:
        """One step on micro-batches. Returns what was measured, the largest norm of a gradient, and the size of the data."""
        if self._has_dropout:  # a checkpoint does not hold the state of torch's generator
            rank, key = self.world.rank, rng.key(self.stream.seed, self.step, "dropout")
            torch.manual_seed(rng.key(key, "process", rank) if rank else key)
        # each micro-batch divides by the counts of the whole step, so the gradient does not depend on `accumulate`
        counts: Counter[str] = Counter()
        for batch in batches:
            counts.update(self.objective.counts(batch))
        sizes = [self.objective.size(batch) for batch in batches]
        known = distributed.total({**counts, "size": sum(sizes)})
        whole = int(known.pop("size"))
        divisors = {name: max(int(count), 1) for name, count in known.items()}
        costs: Counter[str] = Counter()
        for batch in batches:
            costs.update(self.objective.costs(batch))  # type: ignore[arg-type]
        sums: dict[str, Term] = {}
        # the reduction takes the mean over processes where the sum is wanted, so each counts as many times as there are
        for batch, size in zip(batches, sizes, strict=True):
            at = At(self.step, self.config.steps, size * self.world.size / max(whole, 1))
            with self._reducing(last=batch is batches[-1]):
                with torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16):
                    terms = self._losses(batch.to(self.device), at)
                (total(terms, divisors) * self.world.size).backward()
            for term in terms:
                sums[term.name] = sums[term.name] + term.detached() if term.name in sums else term.detached()
        norms = [each.prepare(self.step, self.config.steps) for each in self.optimizers]
        measured = self._measured(sums) | distributed.total(costs)
        for each, norm in zip(self.optimizers, norms, strict=True):
            measured |= each.metrics(norm)
        self.step += 1
        worst = max(norms, key=lambda norm: norm if math.isfinite(norm) else math.inf)
        if math.isfinite(worst):
            for each in self.optimizers:
                each.optimizer.step()
            self.ema.update(self.step)
            measured |= self.objective.end_step(At(self.step - 1, self.config.steps))
        for each in self.optimizers:
            each.optimizer.zero_grad(set_to_none=True)
        return measured, worst, whole

    def _reducing(self, *, last: bool) -> AbstractContextManager[Any]:
        """Gradients are summed over the processes once a step, by its last micro-batch."""
        if isinstance(self._losses, DistributedDataParallel) and not last:
            return self._losses.no_sync()
        return nullcontext()

    def _measured(self, sums: Mapping[str, Term]) -> dict[str, float]:
        """The mean of each loss, over all processes."""
        if self.world.size == 1:
            return {f"{name}_loss": term.mean.value.item() for name, term in sums.items()}
        parts = {f"{name}/{part}": getattr(term.mean, part).item() for name, term in sums.items() for part in ("sum", "count")}
        parts = distributed.total(parts)
        return {f"{name}_loss": parts[f"{name}/sum"] / max(parts[f"{name}/count"], 1) for name in sums}

    def _metrics(self, measured: dict[str, float], size: int, seconds: float, waited: float) -> dict[str, float]:
        return measured | {
            f"{self.objective.unit}_per_second": size / max(seconds, 1e-9),
            "seconds": seconds,
            "data_share": waited / max(seconds, 1e-9),
            "skipped": self.skipped,
        }

    def _end_step(self, log: TrainingLog | SilentLog) -> None:
        last = self.step == self.config.steps
        due = [hook for hook in self.hooks if (hook.at_end if last else hook.every and self.step % hook.every == 0)]
        saves = last or self.step % self.checkpoint_config.every == 0
        if not (due or saves):
            return

        def work() -> None:
            if saves:
                self._save()
            if due:
                with self.ema.swapped(), eval_mode(self.model):
                    for hook in due:
                        if measured := self._asked.interruptible(partial(hook.call, self.step)):
                            log.measured(self.step, measured)

        distributed.from_main(work)

    def _save(self) -> None:
        checkpoint.save(self.folder / "checkpoints", self.state(), self.checkpoint_config.keep)
        self._saved = self.step

    def _stop_if_asked(self) -> None:
        """Save and end a run that was asked to stop; processes agree on the step."""
        number = int(distributed.largest(self._asked.number))
        if not number:
            return
        if self._saved != self.step:
            distributed.from_main(self._save)
            self._saved = self.step
        raise Stopped(number, self.step)

    def average(self) -> None:
        """Replace the model's weights with their average."""
        self.ema.write()

    # ---- state ------------------------------------------------------------------------------------------------------

    def _parameters(self) -> dict[str, nn.Parameter]:
        return {_name(name): p for name, p in self.objective.named_parameters()}

    def _tensors(self) -> dict[str, Tensor]:
        """The objective's weights, and the buffers that it wants kept."""
        kept = self.objective.state_dict().keys()
        return self._parameters() | {_name(name): b for name, b in self.objective.named_buffers() if name in kept}

    def state(self) -> checkpoint.State:
        """The state that resumes the run bit-exactly."""
        names = {id(p): name for name, p in self._parameters().items()}
        moments: dict[str, Tensor] = {}
        for each in self.optimizers:
            for p, kept in each.optimizer.state.items():
                for key, value in kept.items():
                    moments[f"{names[id(p)]}/{key}"] = value
        tensors = {"model": self._tensors(), "ema": self.ema.shadows, "optimizer": moments}
        plain: dict[str, Any] = {"position": asdict(self.position), "skipped": self.skipped, "digest": self.digest}
        return checkpoint.State(self.step, tensors, plain | {"moments": sorted(moments)})

    @torch.no_grad()
    def restore(self, state: checkpoint.State) -> None:
        """Load a state. Raises CheckpointError, before anything is changed, unless it has exactly the weights of this objective
        and the moments that its optimizers had."""
        named, moments = self._tensors(), state.tensors.get("optimizer", {})
        checkpoint.check(state.tensors.get("model", {}), named, "model")
        checkpoint.check(state.tensors.get("ema", {}), self.ema.shadows, "ema")
        try:
            position = type(self.stream.start)(**state.plain["position"])
            step, skipped = int(state.step), int(state.plain["skipped"])
            kept = [str(key) for key in state.plain.get("moments", moments)]
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise checkpoint.CheckpointError(f"the checkpoint holds no position in the data ({error!r})") from error
        one = torch.tensor(0.0)  # of every entry but the count of steps, the optimizer keeps as many numbers as of the weight
        owners = {key: one if key.endswith("/step") else named.get(key.rpartition("/")[0]) for key in kept}
        checkpoint.check(moments, {key: p for key, p in owners.items() if p is not None}, "optimizer")
        self.step, self.skipped, self.position = step, skipped, position
        for name, tensor in named.items():
            tensor.copy_(state.tensors["model"][name])
        self.ema.load(state.tensors["ema"])
        optimizers = {id(p): each.optimizer for each in self.optimizers for p in each.parameters}
        for each in self.optimizers:
            each.optimizer.state.clear()
        parameters = self._parameters()
        for key, value in state.tensors["optimizer"].items():
            name, _, entry = key.rpartition("/")
            p = parameters[name]
            optimizers[id(p)].state[p][entry] = value.to(p.device, copy=True)


def _name(name: str) -> str:
    """The name in a checkpoint of a tensor of the objective: those of its `model` have the model's own names."""
    return name.removeprefix("model.") if name.startswith("model.") else f"objective.{name}"
