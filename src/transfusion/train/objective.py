"""What a trainer trains: networks and the losses of a batch (`Objective`), and where its batches come from (`Stream`).

    gradient of a step = d / d weights of   sum over losses of   weight * sum / count

where sums and counts are those of all batches of the step. Counts are known before the losses are, so a step may be split into
micro-batches, or over processes, and its gradient stays the same.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import nn

from transfusion.data.batch import Batch
from transfusion.model.auxiliary import Decoders
from transfusion.model.flops import FlopCounter
from transfusion.model.losses import Losses, Term
from transfusion.model.network import Network
from transfusion.nn.ema import EMA
from transfusion.nn.moe import balancing


class StreamBatch(Protocol):
    """A batch of any data. Its names and the lines about what could not be read are for messages."""

    @property
    def state(self) -> Any:
        """The stream's position after it: a frozen dataclass of ints."""
        ...

    @property
    def names(self) -> tuple[str, ...]: ...

    @property
    def unreadable(self) -> tuple[str, ...]: ...

    def to(self, device: torch.device) -> Any:
        """The batch on another device."""
        ...


B = TypeVar("B", bound=StreamBatch)
B_out = TypeVar("B_out", bound=StreamBatch, covariant=True)


class Stream(Protocol[B_out]):
    """Endless batches that can be read again from any position. `seed` keys what the trainer draws; `failed` has a line for
    each document that could not be read, by its number."""

    seed: int
    failed: dict[int, str]

    @property
    def start(self) -> Any:
        """The first position: a frozen dataclass of ints, whose class makes positions of what a checkpoint holds."""
        ...

    def batches(self, position: Any) -> Iterator[tuple[B_out, ...]]:
        """Steps from a position on, each a tuple of micro-batches; the state of the last one is the position after the step."""
        ...


@dataclass(frozen=True)
class At:
    """Where a batch stands in a run.

    Args:
        step: number of the step, from 0.
        steps: steps of the run.
        share: of the step's data that this batch is; times the number of processes, over which gradients are averaged.
    """

    step: int
    steps: int
    share: float = 1.0


class Objective(nn.Module, Generic[B], ABC):
    """Networks under training, and their losses.

    `model` is averaged, given to hooks and saved. What else a subclass holds (a discriminator) is trained and kept in
    checkpoints too, persistent buffers included; an optimizer takes the weights that it is built for.

    Args:
        model: the module whose weights are averaged.
    """

    unit = "items"
    """What `size` counts, in the plural."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    @abstractmethod
    def counts(self, batch: B) -> Mapping[str, int]:
        """The number of terms of each loss of a batch, by name, before it is computed."""

    @abstractmethod
    def loss(self, batch: B, at: At) -> Sequence[Term]:
        """The losses of a batch on the device, with their weights. Names are keys of `counts`."""

    @abstractmethod
    def size(self, batch: B) -> int:
        """Size of a batch in `unit`, for its share of a step and for speeds."""

    def costs(self, batch: B) -> Mapping[str, float]:
        """Further numbers of a batch, before it is on the device; the log has their sums over a step."""
        return {}

    def averaged(self, ema: EMA) -> None:
        """Called once, before the first step, with the average of `model`."""

    def end_step(self, at: At) -> Mapping[str, float]:
        """Called after each update of the weights. Returns further numbers for the log."""
        return {}


class TransfusionObjective(Objective[Batch]):
    """The method: next-token prediction on text and denoising of media (`model/losses.py`).

    Args:
        model: maps a Batch to Losses.
        media_weight: weight of the media loss, the paper's lambda.
        needs_ema_teacher: whether auxiliary losses compare with the averaged model; the model is then called with `teacher`.
        decoders: by modality, for the reconstruction loss; the model is then called with `decoders`.
    """

    unit = "tokens"

    def __init__(
        self, model: nn.Module, *, media_weight: float, needs_ema_teacher: bool = False, decoders: Decoders | None = None
    ) -> None:
        super().__init__(model)
        self.media_weight, self.decoders = media_weight, decoders
        self._needs_ema_teacher = needs_ema_teacher
        network = getattr(model, "network", model)
        self._flops = FlopCounter(network) if isinstance(network, Network) else None
        self._denoises = not isinstance(network, Network) or any(not m.codes for m in network.config.modalities)
        self._teacher: tuple[nn.Module, ...] = ()  # in a tuple, so that it is no submodule

    def averaged(self, ema: EMA) -> None:
        """The average is the teacher, where one is needed."""
        if self._needs_ema_teacher:
            self._teacher = (ema.module(self.model),)

    def counts(self, batch: Batch) -> dict[str, int]:
        """Text targets, and items with a loss; auxiliary losses are means over these items too."""
        items = sum(int((group.loss_weights > 0).sum()) for group in batch.media)
        return {"text": len(batch.loss_index), "media": items}

    def size(self, batch: Batch) -> int:
        """Tokens and slots, without padding."""
        return batch.num_tokens

    def costs(self, batch: Batch) -> dict[str, float]:
        """FLOPs, computed and as 6 N D (`model/flops.py`), and the tokens and documents that they were for."""
        if self._flops is None:
            return {}
        flops = self._flops.batch(batch)
        documents = int((batch.documents.amax(1) + 1).sum())
        return {"flops": flops.computed, "flops_6nd": flops.paper, "tokens": batch.num_tokens, "documents": documents}

    def loss(self, batch: Batch, at: At) -> tuple[Term, ...]:
        """Text, media and codes, where the model has such media, and the auxiliary losses that are on."""
        with balancing(at.share):
            terms = self.losses(batch).terms(self.media_weight)
        return tuple(term for term in terms if self._denoises or term.name != "media")

    def losses(self, batch: Batch) -> Losses:
        """The model's losses of a batch."""
        if not self._teacher and self.decoders is None:
            return self.model(batch)
        return self.model(batch, teacher=self._teacher[0] if self._teacher else None, decoders=self.decoders)
