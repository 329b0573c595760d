"""The training loop: a model and a loader in, trained weights out; any checkpoint resumes it bit-exactly.

To train another objective, subclass `Trainer` and override `losses(batch)`.
"""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from transfusion import rng
from transfusion.data.batch import Batch, Position
from transfusion.data.loader import Loader, prefetch
from transfusion.model.auxiliary import Decoders
from transfusion.model.losses import Losses
from transfusion.nn.ema import EMA, eval_mode
from transfusion.nn.moe import balancing
from transfusion.train import checkpoint
from transfusion.train.device import tune_malloc
from transfusion.train.log import LogFn, Measured, TrainingLog
from transfusion.train.optimizer import OptimizerConfig


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
        if self.steps < 1 or self.accumulate < 1:
            raise ValueError(f"steps and accumulate must be at least 1, not {self.steps} and {self.accumulate}")
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


class Trainer:
    """Trains a model that maps a Batch to Losses.

    Args:
        media_weight: weight of the media loss, the paper's lambda.
        folder: of the run, for checkpoints and metrics.
        digest: of the configuration; a checkpoint of another one is refused.
        device, dtype: where to train, under bf16 autocast or in fp32.
        hooks: functions to call on the way and at the end.
        needs_ema_teacher: whether auxiliary losses compare with the averaged model; the model is then called with `teacher`.
        decoders: by modality, for the reconstruction loss; the model is then called with `decoders`.
    """

    def __init__(
        self,
        model: nn.Module,
        loader: Loader,
        *,
        config: TrainerConfig,
        optimizer: OptimizerConfig,
        checkpoint_config: CheckpointConfig,
        media_weight: float,
        folder: Path,
        digest: str,
        device: torch.device,
        dtype: torch.dtype,
        hooks: Sequence[Hook] = (),
        needs_ema_teacher: bool = False,
        decoders: Decoders | None = None,
    ) -> None:
        self.model, self.loader = model, loader
        self.config, self.optimizer_config, self.checkpoint_config = config, optimizer, checkpoint_config
        self.media_weight, self.folder, self.digest = media_weight, folder, digest
        self.device, self.dtype, self.hooks = device, dtype, hooks
        self.optimizer = optimizer.build(model)
        self.ema = EMA(model, config.ema_decay)
        self.teacher = self.ema.module(model) if needs_ema_teacher else None
        self.decoders = decoders
        self.step, self.position, self.skipped = 0, Position(), 0
        self._has_dropout = any(isinstance(module, nn.Dropout) for module in model.modules())

    def losses(self, batch: Batch) -> Losses:
        """The losses of a batch: the method to override."""
        if self.teacher is None and self.decoders is None:
            return self.model(batch)
        return self.model(batch, teacher=self.teacher, decoders=self.decoders)

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
        """
        self.model.train()
        if self.device.type == "cpu":
            tune_malloc()
        with (
            TrainingLog(self.folder, first=self.step, steps=self.config.steps, every=self.config.log_every) as log,
            closing(prefetch(self.loader.batches(self.position))) as stream,
        ):
            bad = 0
            began = time.monotonic()
            while self.step < self.config.steps:
                batches = next(stream)
                waited = time.monotonic() - began
                losses, norm, tokens = self._step(batches)
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
                log.step(self.step, self._metrics(losses, norm, tokens, now - began, waited))
                began = now
                self._end_step(log)
                began += time.monotonic() - now  # hooks and checkpoints are not the step's time
            if self.loader.failed:
                log.line(f"{len(self.loader.failed)} unreadable documents were left out")

    def _step(self, batches: tuple[Batch, ...]) -> tuple[Losses, float, int]:
        """One optimizer step on micro-batches. Returns their losses, the norm of the gradient and the number of tokens."""
        if self._has_dropout:  # a checkpoint does not hold the state of torch's generator
            torch.manual_seed(rng.key(self.loader.seed, self.step, "dropout"))
        rate = self.optimizer_config.rate(self.step, self.config.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get("lr_scale", 1.0)
        # each micro-batch divides by the counts of the whole step, so the gradient does not depend on `accumulate`
        texts = sum(len(b.loss_index) for b in batches)
        items = sum(int((g.loss_weights > 0).sum()) for b in batches for g in b.media)
        tokens = [batch.num_tokens for batch in batches]
        total: Losses | None = None
        for batch, count in zip(batches, tokens, strict=True):
            share = count / max(sum(tokens), 1)
            with balancing(share), torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16):
                losses = self.losses(batch.to(self.device))
            losses.over(self.media_weight, max(texts, 1), max(items, 1)).backward()
            losses = losses.detached()
            total = losses if total is None else total + losses
        assert total is not None
        norm = float(nn.utils.clip_grad_norm_(self.model.parameters(), self.optimizer_config.max_grad_norm))
        self.step += 1
        if math.isfinite(norm):
            self.optimizer.step()
            self.ema.update(self.step)
        self.optimizer.zero_grad(set_to_none=True)
        return total, norm, sum(tokens)

    def _metrics(self, losses: Losses, norm: float, tokens: int, seconds: float, waited: float) -> dict[str, float]:
        return {
            "text_loss": losses.text.value.item(),
            "media_loss": losses.media.value.item(),
            **{f"{term.name}_loss": term.mean.value.item() for term in losses.auxiliary},
            "grad_norm": norm,
            "lr": self.optimizer.param_groups[0]["lr"],
            "tokens_per_second": tokens / max(seconds, 1e-9),
            "seconds": seconds,
            "data_share": waited / max(seconds, 1e-9),
            "skipped": self.skipped,
        }

    def _end_step(self, log: TrainingLog) -> None:
        last = self.step == self.config.steps
        if last or self.step % self.checkpoint_config.every == 0:
            checkpoint.save(self.folder / "checkpoints", self.state(), self.checkpoint_config.keep)
        due = [hook for hook in self.hooks if (hook.at_end if last else hook.every and self.step % hook.every == 0)]
        if due:
            with self.ema.swapped(), eval_mode(self.model):
                for hook in due:
                    if measured := hook.call(self.step):
                        log.measured(self.step, measured)

    def average(self) -> None:
        """Replace the model's weights with their average."""
        self.ema.write()

    # ---- state ------------------------------------------------------------------------------------------------------

    def state(self) -> checkpoint.State:
        """The state that resumes the run bit-exactly."""
        names = {id(p): name for name, p in self.model.named_parameters()}
        moments: dict[str, Tensor] = {}
        for p, kept in self.optimizer.state.items():
            for key, value in kept.items():
                moments[f"{names[id(p)]}/{key}"] = value
        tensors = {"model": dict(self.model.named_parameters()), "ema": self.ema.shadows, "optimizer": moments}
        plain: dict[str, Any] = {"position": asdict(self.position), "skipped": self.skipped, "digest": self.digest}
        return checkpoint.State(self.step, tensors, plain | {"moments": sorted(moments)})

    @torch.no_grad()
    def restore(self, state: checkpoint.State) -> None:
        """Load a state. Raises CheckpointError, before anything is changed, unless it has exactly the weights of this model and
        the moments that its optimizer had."""
        named, moments = dict(self.model.named_parameters()), state.tensors.get("optimizer", {})
        checkpoint.check(state.tensors.get("model", {}), named, "model")
        checkpoint.check(state.tensors.get("ema", {}), self.ema.shadows, "ema")
        try:
            position, step, skipped = Position(**state.plain["position"]), int(state.step), int(state.plain["skipped"])
            kept = [str(key) for key in state.plain.get("moments", moments)]
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise checkpoint.CheckpointError(f"the checkpoint holds no position in the data ({error!r})") from error
        one = torch.tensor(0.0)  # of every entry but the count of steps, the optimizer keeps as many numbers as of the weight
        owners = {key: one if key.endswith("/step") else named.get(key.rpartition("/")[0]) for key in kept}
        checkpoint.check(moments, {key: p for key, p in owners.items() if p is not None}, "optimizer")
        self.step, self.skipped, self.position = step, skipped, position
        for name, p in named.items():
            p.copy_(state.tensors["model"][name])
        self.ema.load(state.tensors["ema"])
        self.optimizer.state.clear()
        for key, value in state.tensors["optimizer"].items():
            name, _, entry = key.rpartition("/")
            self.optimizer.state[named[name]][entry] = value.to(named[name].device, copy=True)
