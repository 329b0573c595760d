"""Classifiers fitted on real images only: generated images in, their classes and features out.

A convolutional classifier is saved in a folder, so that the same one measures many runs; records hold its digest:

    classifier.json           names of the classes, channels, side, width, accuracy on held-out real images, digest
    classifier.safetensors    weights
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from transfusion import rng
from transfusion.evaluation import digest
from transfusion.evaluation.estimate import Estimate
from transfusion.files import read_json, write_tensors, write_text

MANIFEST, WEIGHTS = "classifier.json", "classifier.safetensors"


@runtime_checkable
class Classifier(Protocol):
    """Classes and features of images."""

    space: ClassVar[str]
    """Its features: "classifier", the layer before its classes, or "pixels"."""

    @property
    def digest(self) -> str:
        """12 hex digits of its weights and classes."""
        ...

    def classify(self, images: Tensor) -> Tensor:
        """Float[image, channels, height, width] in [-1, 1] -> Int[image]"""
        ...

    def features(self, images: Tensor) -> Tensor:
        """Float[image, channels, height, width] in [-1, 1] -> Float[image, feature], for distances between sets."""
        ...


class SmallClassifier:
    """A support-vector machine on pixels, for images of about 64 pixels: fitted on real ones, Float[image, channels, height,
    width] in [-1, 1], and their classes, Int[image].
    """

    space: ClassVar[str] = "pixels"

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        from sklearn.svm import SVC

        self._shape = tuple(images.shape[1:])
        self._machine = SVC(gamma="scale", C=10).fit(images.flatten(1).numpy(), labels.numpy())
        self.digest = digest.of_tensors({"pictures": images, "labels": labels}, repr(self._machine.get_params()))

    def classify(self, images: Tensor) -> Tensor:
        """Classes. Raises ValueError for images of another size, or that hold NaN."""
        return torch.from_numpy(self._machine.predict(self.features(images).numpy()))

    def features(self, images: Tensor) -> Tensor:
        """The pixels themselves, clamped to [-1, 1], Float32[image, pixel]: no layer lies between them and the classes."""
        return _checked(images.cpu(), self._shape).flatten(1)


class Convolutions(nn.Module):
    """Four convolutions, the first three followed by 2 x 2 max pooling, and two linear layers."""

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
        """[image, channels, side, side] -> [image, 128], the layer before the classes"""
        for number, (layer, norm) in enumerate(zip(self.layers, self.norms, strict=True)):
            x = layer(x)
            x = F.relu(norm(F.max_pool2d(x, 2) if number < 3 else x))
        return F.relu(self.wide(x.flatten(1)))

    def forward(self, x: Tensor) -> Tensor:
        """[image, channels, side, side] -> [image, class]"""
        return self.out(self.features(x))


@dataclass(frozen=True)
class ClassifierTraining:
    """Training of a convolutional classifier.

    Args:
        epochs: passes over the real images.
        batch_size: images per step; smaller where an epoch has fewer than 40 steps, down to 16.
        lr: peak learning rate of the one-cycle schedule.
        weight_decay: of AdamW.
        shift: largest random translation, as a fraction of the side.
        turn: largest random rotation, in degrees.
        zoom: largest random scaling, as a fraction.
        flip: mirror half of the images; not for digits or letters.
    """

    epochs: int = 14
    batch_size: int = 256
    lr: float = 4e-3
    weight_decay: float = 0.05
    shift: float = 0.07
    turn: float = 8.0
    zoom: float = 0.08
    flip: bool = False

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 2:
            raise ValueError(f"epochs ({self.epochs}) must be at least 1 and batch_size ({self.batch_size}) at least 2")


@dataclass(frozen=True, eq=False)
class ConvolutionalClassifier:
    """A small convolutional network, for square images of at least 8 x 8 pixels.

    Args:
        network: the fitted network.
        names: names of the classes, in the order of their numbers.
        accuracy: on held-out real images, where that was measured.
    """

    network: Convolutions
    names: tuple[str, ...]
    accuracy: Estimate | None = None
    space: ClassVar[str] = "classifier"

    def __post_init__(self) -> None:
        if len(self.names) != self.network.classes:
            raise ValueError(f"{self.network.classes} classes but {len(self.names)} names: give each class its name")
        self.network.eval().requires_grad_(False).to(memory_format=torch.channels_last)

    @classmethod
    def fit(
        cls,
        images: Tensor,
        labels: Tensor,
        *,
        seed: int,
        names: Sequence[str] = (),
        training: ClassifierTraining = ClassifierTraining(),
        dtype: torch.dtype = torch.float32,
        progress: Callable[[int, int], None] = lambda step, steps: None,
    ) -> "ConvolutionalClassifier":
        """Fit a classifier on real images and their classes, on the device of the images.

        Args:
            images: Float[image, channels, side, side] in [-1, 1].
            labels: Int[image].
            seed: random seed of weights, order and augmentation.
            names: names of the classes (default: their numbers).
            dtype: bfloat16 computes under autocast.
            progress: called after every step with its number and the number of steps.

        Raises:
            ValueError: images that are not square, are smaller than 8 pixels or hold NaN; labels without a name.
        """
        count, channels, side, width = images.shape
        if side != width or side < 8:
            raise ValueError(f"this classifier takes square images of at least 8 pixels, not {side} x {width}: resize them")
        if not count or len(labels) != count:
            raise ValueError(f"{count} images and {len(labels)} labels: give each image its class")
        first, last = int(labels.min()), int(labels.max())
        names = tuple(names) or tuple(map(str, range(last + 1)))
        if not 0 <= first <= last < len(names):
            raise ValueError(f"labels {first} to {last}, but {len(names)} names: name every class")
        images = _checked(images, (channels, side, side))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(rng.key(seed, "judge"))
            network = Convolutions(channels, side, len(names))
        network.to(images.device).to(memory_format=torch.channels_last)
        batch_size = min(count, training.batch_size, max(count // 40, 16))
        steps = training.epochs * (count // batch_size)
        optimizer = torch.optim.AdamW(network.parameters(), lr=training.lr, weight_decay=training.weight_decay)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, training.lr, total_steps=max(steps, 2))
        step = 0
        for epoch in range(training.epochs):
            order = torch.from_numpy(rng.generator(rng.key(seed, "judge", epoch)).permutation(count))
            for picked in order[: count // batch_size * batch_size].to(images.device).split(batch_size):
                x = _augment(images[picked], training, rng.generator(rng.key(seed, "judge moves", step)))
                with torch.autocast(images.device.type, dtype, enabled=dtype != torch.float32):
                    scores = network(x.contiguous(memory_format=torch.channels_last))
                loss = F.cross_entropy(scores.float(), labels[picked])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                step += 1
                progress(step, steps)
        return cls(network.cpu(), names)

    def measured(self, images: Tensor, labels: Tensor) -> "ConvolutionalClassifier":
        """This classifier with its accuracy on held-out real images."""
        return replace(self, accuracy=accuracy(self, images, labels))

    @torch.no_grad()
    def classify(self, images: Tensor) -> Tensor:
        """Classes. Raises ValueError for images of another size, or that hold NaN."""
        return torch.cat([self.network(batch).argmax(-1) for batch in self._batches(images)])

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """The layer before the classes, Float32[image, 128]. Raises as `classify`."""
        return torch.cat([self.network.features(batch) for batch in self._batches(images)])

    def _batches(self, images: Tensor) -> Sequence[Tensor]:
        shape = (self.network.channels, self.network.side, self.network.side)
        return _checked(images.cpu(), shape).split(1000)

    @property
    def digest(self) -> str:
        """12 hex digits of its weights and the names of its classes."""
        return digest.of_tensors(self.network.state_dict(), *self.names)

    def save(self, folder: str | Path) -> None:
        """Save it in a folder, which is made if need be."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        sizes = {name: getattr(self.network, name) for name in ("channels", "side", "width")}
        accuracy = self.accuracy and asdict(self.accuracy)
        manifest = {"names": list(self.names), **sizes, "accuracy": accuracy, "digest": self.digest}
        write_tensors(folder / WEIGHTS, self.network.state_dict())
        write_text(folder / MANIFEST, json.dumps(manifest, indent=2) + "\n")

    @classmethod
    def load(cls, folder: str | Path) -> "ConvolutionalClassifier":
        """Load one from a folder. Raises ValueError if the folder holds none, or a damaged one."""
        folder, make = Path(folder), "with transfusion train classifier"
        if not (folder / MANIFEST).exists():
            raise ValueError(f"no classifier in {folder}: make one {make} --data PATH --out {folder}")
        try:
            manifest = read_json(folder / MANIFEST)
            names, accuracy = tuple(manifest["names"]), manifest["accuracy"]
            network = Convolutions(manifest["channels"], manifest["side"], len(names), manifest["width"])
            network.load_state_dict(load_file(folder / WEIGHTS))
            classifier = cls(network, names, accuracy and Estimate(**accuracy))
            if classifier.digest != manifest["digest"]:
                raise ValueError("the digest in its manifest is not that of its weights")
        except (OSError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
            raise ValueError(f"the classifier in {folder} is damaged ({error}): make it again {make}") from error
        return classifier


def accuracy(classifier: Classifier, images: Tensor, labels: Tensor) -> Estimate:
    """Share of images, Float[image, channels, height, width], that get their label, Int[image]."""
    return Estimate.proportion(int((classifier.classify(images) == labels.cpu()).sum()), len(labels))


def _checked(images: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Float32 images of a shape, clamped to [-1, 1]."""
    if tuple(images.shape[1:]) != shape:
        actual, expected = (" x ".join(map(str, sizes)) for sizes in (images.shape[1:], shape))
        fits = f"the classifier takes {expected} (channels x height x width)"
        raise ValueError(f"images are {actual}, {fits}: resize them, or fit another")
    if not torch.isfinite(images).all():
        raise ValueError("images hold NaN or infinity: look at how they were made before they are classified")
    return images.float().clamp(-1, 1)


def _augment(images: Tensor, training: ClassifierTraining, generator: np.random.Generator) -> Tensor:
    """Images [n, c, side, side], each shifted, turned, zoomed and mirrored at random."""
    n = len(images)
    shift, turn, zoom = generator.uniform(-1, 1, (n, 2, 1)), generator.uniform(-1, 1, n), generator.uniform(-1, 1, n)
    mirror = np.where(training.flip & (generator.random(n) < 0.5), -1.0, 1.0)
    angle, scale = np.deg2rad(training.turn) * turn, 1 + training.zoom * zoom
    cos, sin = scale * np.cos(angle), scale * np.sin(angle)
    matrix = rearrange([mirror * cos, -sin, mirror * sin, cos], "(i j) n -> n i j", i=2)
    # grid coordinates run over [-1, 1], so a fraction of the side is twice that fraction
    affine = np.concatenate([matrix, 2 * training.shift * shift], -1, dtype=np.float32)
    grid = F.affine_grid(torch.from_numpy(affine).to(images.device), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)
