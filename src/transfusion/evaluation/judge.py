"""Judges: classifiers fitted on real pictures only, which say what a generated picture shows."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from sklearn.svm import SVC
from torch import Tensor, nn

from transfusion import chance


@runtime_checkable
class Judge(Protocol):
    """Says the class of pictures."""

    def classify(self, pictures: Tensor) -> Tensor:
        """Float[picture, channels, height, width] in [-1, 1] -> Int[picture]"""
        ...


class SmallJudge:
    """A support-vector machine on pixels, for pictures of some 64 pixels.

    Args:
        pictures, labels: real ones, to be fitted.
    """

    def __init__(self, pictures: Tensor, labels: Tensor) -> None:
        self._machine = SVC(gamma="scale", C=10).fit(pictures.flatten(1).numpy(), labels.numpy())

    def classify(self, pictures: Tensor) -> Tensor:
        """Classes."""
        return torch.from_numpy(self._machine.predict(pictures.float().cpu().clamp(-1, 1).flatten(1).numpy()))


class Convolutions(nn.Module):
    """Three convolutions, each halving the picture, and two linear layers."""

    def __init__(self, channels: int, side: int, classes: int, width: int = 32) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(channels, width, 3, padding=1), nn.Conv2d(width, 2 * width, 3, padding=1)
        self.third = nn.Conv2d(2 * width, 2 * width, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(n) for n in (width, 2 * width, 2 * width))
        self.wide = nn.Linear(2 * width * (side // 8) ** 2, 128)
        self.out = nn.Linear(128, classes)

    def forward(self, x: Tensor) -> Tensor:
        """[picture, channels, side, side] -> [picture, class]"""
        for layer, norm in zip((self.first, self.second, self.third), self.norms, strict=True):
            x = F.max_pool2d(F.relu(norm(layer(x))), 2)
        return self.out(F.relu(self.wide(x.flatten(1))))


@dataclass(frozen=True)
class JudgeTraining:
    """How a convolutional judge is fitted.

    Args:
        epochs: passes over the real pictures.
        size: pictures a step.
        lr: highest learning rate.
    """

    epochs: int = 4
    size: int = 256
    lr: float = 3e-3


class ConvolutionalJudge:
    """A small convolutional network, for square pictures from 16 pixels on."""

    def __init__(self, network: Convolutions) -> None:
        self.network = network.eval()

    @classmethod
    def fit(
        cls,
        pictures: Tensor,
        labels: Tensor,
        *,
        seed: int,
        training: JudgeTraining = JudgeTraining(),
        each: Callable[[int, int], None] = lambda step, steps: None,
    ) -> "ConvolutionalJudge":
        """Fit one on real pictures Float[picture, channels, side, side] and their classes.

        Args:
            each: called after every step with its number and how many there are.

        Raises:
            ValueError: pictures that are not square, or smaller than 16 pixels.
        """
        count, channels, side, width = pictures.shape
        if side != width or side < 16:
            raise ValueError(f"this judge takes square pictures from 16 pixels on, not {side} x {width}")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(chance.key(seed, "judge"))
            network = Convolutions(channels, side, int(labels.max()) + 1)
        optimizer = torch.optim.AdamW(network.parameters(), lr=training.lr, weight_decay=0.05)
        steps = training.epochs * (count // training.size)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, training.lr, total_steps=max(steps, 2))
        step = 0
        for epoch in range(training.epochs):
            order = torch.from_numpy(chance.generator(chance.key(seed, "judge", epoch)).permutation(count))
            for picked in order[: count // training.size * training.size].split(training.size):
                x = pictures[picked]
                if chance.uniform(seed, "flip", step) < 0.5:
                    x = x.flip(-1)
                loss = F.cross_entropy(network(x.contiguous(memory_format=torch.channels_last)), labels[picked])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                step += 1
                each(step, steps)
        return cls(network)

    @torch.no_grad()
    def classify(self, pictures: Tensor) -> Tensor:
        """Classes."""
        parts = pictures.float().cpu().clamp(-1, 1).split(1000)
        return torch.cat([self.network(part).argmax(-1) for part in parts])
