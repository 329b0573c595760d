"""Judges: classifiers fitted on real pictures only, which say what a generated picture shows.

A convolutional judge is kept in a folder, so that one and the same measures many runs; its digest names it in their reports:

    judge.json           names of the classes, channels, side, width, the share of held-out real pictures it finds right, digest
    judge.safetensors    its weights
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from transfusion import rng
from transfusion.evaluation import digest
from transfusion.evaluation.record import Proportion

ABOUT, WEIGHTS = "judge.json", "judge.safetensors"


@runtime_checkable
class Classifier(Protocol):
    """Says the class of pictures."""

    space: ClassVar[str]
    """What its features are: "mini", a layer of a small network, or "pixels"."""

    @property
    def digest(self) -> str:
        """12 hex digits that name what it learned."""
        ...

    def classify(self, pictures: Tensor) -> Tensor:
        """Float[picture, channels, height, width] in [-1, 1] -> Int[picture]"""
        ...

    def features(self, pictures: Tensor) -> Tensor:
        """Float[picture, channels, height, width] in [-1, 1] -> Float[picture, feature], for distances between sets."""
        ...


class SmallClassifier:
    """A support-vector machine on pixels, for pictures of some 64 pixels.

    Args:
        pictures, labels: real ones, to be fitted.
    """

    space: ClassVar[str] = "pixels"

    def __init__(self, pictures: Tensor, labels: Tensor) -> None:
        from sklearn.svm import SVC

        self._shape = tuple(pictures.shape[1:])
        self._machine = SVC(gamma="scale", C=10).fit(pictures.flatten(1).numpy(), labels.numpy())
        self.digest = digest.of_tensors({"pictures": pictures, "labels": labels}, repr(self._machine.get_params()))

    def classify(self, pictures: Tensor) -> Tensor:
        """Classes. Raises ValueError for pictures of another size, or that hold NaN."""
        return torch.from_numpy(self._machine.predict(self.features(pictures).numpy()))

    def features(self, pictures: Tensor) -> Tensor:
        """The pixels themselves, cut to [-1, 1], Float32[picture, pixel]: it has no layer between them and the classes."""
        return _checked(pictures, self._shape).flatten(1)


class Convolutions(nn.Module):
    """Four convolutions, the first three of which halve the picture, and two linear layers."""

    def __init__(self, channels: int, side: int, classes: int, width: int = 32) -> None:
        super().__init__()
        self.channels, self.side, self.classes, self.width = channels, side, classes, width
        widths = (channels, width, 2 * width, 4 * width, 4 * width)
        pairs = list(pairwise(widths))
        self.layers = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1, bias=False) for a, b in pairs)
        self.norms = nn.ModuleList(nn.BatchNorm2d(b) for _, b in pairs)
        self.wide = nn.Linear(4 * width * (side // 8) ** 2, 128)
        self.out = nn.Linear(128, classes)

    def features(self, x: Tensor) -> Tensor:
        """[picture, channels, side, side] -> [picture, 128], the layer before the classes"""
        for number, (layer, norm) in enumerate(zip(self.layers, self.norms, strict=True)):
            x = layer(x)
            x = F.relu(norm(F.max_pool2d(x, 2) if number < 3 else x))
        return F.relu(self.wide(x.flatten(1)))

    def forward(self, x: Tensor) -> Tensor:
        """[picture, channels, side, side] -> [picture, class]"""
        return self.out(self.features(x))


@dataclass(frozen=True)
class ClassifierTraining:
    """How a convolutional judge is fitted.

    Args:
        epochs: passes over the real pictures.
        size: pictures a step; fewer where there are not 40 such steps in an epoch, down to 16.
        lr: highest learning rate.
        decay: weight decay.
        shift: how far pictures are moved at random, as a share of their side.
        turn: how far they are turned at random, in degrees.
        zoom: how much they are shrunk or enlarged at random, as a share.
        flip: whether half of them are mirrored; not for digits or letters.
    """

    epochs: int = 14
    size: int = 256
    lr: float = 4e-3
    decay: float = 0.05
    shift: float = 0.07
    turn: float = 8.0
    zoom: float = 0.08
    flip: bool = False

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.size < 2:
            raise ValueError(f"{self.epochs} epochs of {self.size} pictures a step: take at least 1, and at least 2 pictures")


@dataclass(frozen=True, eq=False)
class ConvolutionalClassifier:
    """A small convolutional network, for square pictures from 8 pixels on.

    Args:
        network: fitted.
        names: of the classes, in their order.
        accuracy: share of held-out real pictures that it finds right, where that was measured.
    """

    network: Convolutions
    names: tuple[str, ...]
    accuracy: Proportion | None = None
    space: ClassVar[str] = "mini"

    def __post_init__(self) -> None:
        if len(self.names) != self.network.classes:
            raise ValueError(f"{self.network.classes} classes but {len(self.names)} names: give each class its name")
        self.network.eval().requires_grad_(False).to(memory_format=torch.channels_last)

    @classmethod
    def fit(
        cls,
        pictures: Tensor,
        labels: Tensor,
        *,
        seed: int,
        names: Sequence[str] = (),
        training: ClassifierTraining = ClassifierTraining(),
        dtype: torch.dtype = torch.float32,
        each: Callable[[int, int], None] = lambda step, steps: None,
    ) -> "ConvolutionalClassifier":
        """Fit one on real pictures Float[picture, channels, side, side] in [-1, 1] and their classes Int[picture].

        Args:
            names: of the classes; their numbers if none are given.
            dtype: bfloat16 computes under autocast; where the pictures are.
            each: called after every step with its number and how many there are.

        Raises:
            ValueError: pictures that are not square, smaller than 8 pixels, or that hold NaN; labels without a name.
        """
        count, channels, side, width = pictures.shape
        if side != width or side < 8:
            raise ValueError(f"this judge takes square pictures from 8 pixels on, not {side} x {width}: resize them")
        if not count or len(labels) != count:
            raise ValueError(f"{count} pictures and {len(labels)} labels: give each picture its class")
        names = tuple(names) or tuple(str(i) for i in range(int(labels.max()) + 1))
        if not 0 <= int(labels.min()) <= int(labels.max()) < len(names):
            raise ValueError(f"labels {int(labels.min())} to {int(labels.max())}, but {len(names)} names: name every class")
        pictures = _checked(pictures, (channels, side, side), move=False)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(rng.key(seed, "judge"))
            network = Convolutions(channels, side, len(names))
        network.to(pictures.device).to(memory_format=torch.channels_last)
        size = min(count, training.size, max(count // 40, 16))
        steps = training.epochs * (count // size)
        optimizer = torch.optim.AdamW(network.parameters(), lr=training.lr, weight_decay=training.decay)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, training.lr, total_steps=max(steps, 2))
        step = 0
        for epoch in range(training.epochs):
            order = torch.from_numpy(rng.generator(rng.key(seed, "judge", epoch)).permutation(count))
            for picked in order[: count // size * size].to(pictures.device).split(size):
                x = _moved(pictures[picked], training, rng.generator(rng.key(seed, "judge moves", step)))
                with torch.autocast(pictures.device.type, dtype, enabled=dtype != torch.float32):
                    scores = network(x.contiguous(memory_format=torch.channels_last))
                loss = F.cross_entropy(scores.float(), labels[picked])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                step += 1
                each(step, steps)
        return cls(network.cpu(), names)

    def measured(self, pictures: Tensor, labels: Tensor) -> "ConvolutionalClassifier":
        """Itself with its accuracy on held-out real pictures."""
        return replace(self, accuracy=Proportion(int((self.classify(pictures) == labels.cpu()).sum()), len(labels)))

    @torch.no_grad()
    def classify(self, pictures: Tensor) -> Tensor:
        """Classes. Raises ValueError for pictures of another size, or that hold NaN."""
        return torch.cat([self.network(part).argmax(-1) for part in self._parts(pictures)])

    @torch.no_grad()
    def features(self, pictures: Tensor) -> Tensor:
        """The layer before the classes, Float32[picture, 128]. Raises as `classify`."""
        return torch.cat([self.network.features(part) for part in self._parts(pictures)])

    def _parts(self, pictures: Tensor) -> Sequence[Tensor]:
        network = self.network
        return _checked(pictures, (network.channels, network.side, network.side)).split(1000)

    @property
    def digest(self) -> str:
        """12 hex digits of its weights and its classes' names."""
        return digest.of_tensors(self.network.state_dict(), *self.names)

    def save(self, folder: str | Path) -> None:
        """Keep it in a folder, which is made if need be."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        network, accuracy = self.network, self.accuracy
        about = {
            "names": list(self.names),
            "channels": network.channels,
            "side": network.side,
            "width": network.width,
            "accuracy": accuracy and {"successes": accuracy.successes, "count": accuracy.count},
            "digest": self.digest,
        }
        save_file({name: value.contiguous() for name, value in network.state_dict().items()}, folder / WEIGHTS)
        (folder / ABOUT).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> "ConvolutionalClassifier":
        """The judge that a folder keeps.

        Raises:
            ValueError: there is none, or it is damaged.
        """
        folder = Path(folder)
        if not (folder / ABOUT).exists():
            raise ValueError(f"no judge in {folder}: make one with transfusion train judge --data PATH --out {folder}")
        try:
            about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
            names, accuracy = tuple(about["names"]), about["accuracy"]
            network = Convolutions(about["channels"], about["side"], len(names), about["width"])
            network.load_state_dict(load_file(folder / WEIGHTS))
            judge = cls(network, names, accuracy and Proportion(accuracy["successes"], accuracy["count"]))
            if judge.digest != about["digest"]:
                raise ValueError("its digest is not that of its weights")
        except (OSError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
            raise ValueError(
                f"the judge in {folder} is damaged ({error}): make it again with transfusion train judge"
            ) from error
        return judge


def _checked(pictures: Tensor, shape: tuple[int, ...], *, move: bool = True) -> Tensor:
    """Float32 pictures of a shape, cut to [-1, 1]; on the CPU if they may be moved."""
    if tuple(pictures.shape[1:]) != shape:
        given, own = (" x ".join(map(str, one)) for one in (pictures.shape[1:], shape))
        raise ValueError(
            f"pictures are {given}, the judge knows {own} (channels x height x width): resize them, or fit another"
        )
    if not torch.isfinite(pictures).all():
        raise ValueError("pictures hold NaN or infinity: look at how they were made before judging them")
    return (pictures.cpu() if move else pictures).float().clamp(-1, 1)


def _moved(pictures: Tensor, training: ClassifierTraining, rng: np.random.Generator) -> Tensor:
    """Pictures [n, c, side, side], each shifted, turned, zoomed and mirrored by its own chance."""
    n = len(pictures)
    shift, turn, zoom = rng.uniform(-1, 1, (n, 2, 1)), rng.uniform(-1, 1, n), rng.uniform(-1, 1, n)
    mirror = np.where(training.flip & (rng.random(n) < 0.5), -1.0, 1.0)
    angle, scale = np.deg2rad(training.turn) * turn, 1 + training.zoom * zoom
    cos, sin = scale * np.cos(angle), scale * np.sin(angle)
    matrix = rearrange([mirror * cos, -sin, mirror * sin, cos], "(i j) n -> n i j", i=2)
    # grid coordinates run over [-1, 1], so a share of the side is twice that share
    affine = np.concatenate([matrix, 2 * training.shift * shift], -1, dtype=np.float32)
    grid = F.affine_grid(torch.from_numpy(affine).to(pictures.device), list(pictures.shape), align_corners=False)
    return F.grid_sample(pictures, grid, padding_mode="border", align_corners=False)
