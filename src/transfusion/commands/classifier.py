"""Fit a classifier of images, which `transfusion evaluate --classifier FOLDER` judges generated images with.

usage: transfusion train classifier [--data PATH] [--out FOLDER] [--name VALUE ...]

Without --data it is fitted on scikit-learn's handwritten digits. Accuracy on the 10,000 test images of MNIST: 0.996; of
Fashion-MNIST: 0.932, with --training.flip True --training.shift 0.04 --training.turn 0 --training.zoom 0. Each takes some
330 seconds of one core.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from time import monotonic

import torch

from transfusion import rng
from transfusion.config import ConfigError
from transfusion.data.document import Document
from transfusion.data.media import Fit
from transfusion.data.sources.latents import refuse_latents
from transfusion.data.sources.read import read
from transfusion.evaluation.classifier import ClassifierTraining, ConvolutionalClassifier
from transfusion.recipes import digits
from transfusion.run.command_line import HELP, parse
from transfusion.run.recipe import Labelled
from transfusion.train.device import Device, Dtype, pick_device, pick_dtype
from transfusion.train.log import LogFn, progress


@dataclass(frozen=True)
class ClassifierOptions:
    """Data and training of a classifier.

    Args:
        data: images whose captions are their classes: a folder with a folder for each class, idx or Parquet files (default:
            scikit-learn's digits, 8 x 8 grey).
        out: folder to save it in.
        seed: random seed.
        names: names of the classes in the order of their numbers, where the data has only numbers.
        channels: 1 (grey) or 3 (colour).
        side: images are fitted to side x side pixels.
        device: auto takes cuda, else mps, else cpu.
        dtype: fp32, or bf16 under autocast; auto takes bf16 where the device is faster with it.
        training: epochs, learning rate, augmentation.
    """

    data: str = ""
    out: str = "runs/classifier"
    seed: int = 0
    names: tuple[str, ...] = ()
    channels: int = 1
    side: int = 28
    device: Device = "auto"
    dtype: Dtype = "auto"
    training: ClassifierTraining = ClassifierTraining()


def run(arguments: list[str], log: LogFn) -> int:
    """The command: fit a classifier, measure its accuracy on held-out images, save it.

    Raises:
        ValueError: the data can't be read, or its captions are no classes.
    """
    if HELP & set(arguments):
        print((__doc__ or "").strip() + "\n")
    options = parse(ClassifierOptions(), arguments, "transfusion train classifier")
    began = monotonic()
    if options.data:
        names, train, held_out = _read(options, log)
    else:
        names, train, held_out = digits.NAMES, digits.labelled(held_out=False), digits.labelled(held_out=True)
    device = pick_device(options.device)
    log(f"{len(train[1]):,} images of {len(names)} classes; {len(held_out[1]):,} held out")
    with progress("fitting the classifier") as each:
        classifier = ConvolutionalClassifier.fit(
            train[0].to(device),
            train[1].to(device),
            seed=options.seed,
            names=names,
            training=options.training,
            dtype=pick_dtype(options.dtype, device),
            progress=each,
        ).measured(*held_out)
    classifier.save(options.out)
    log(f"accuracy on held-out images: {classifier.accuracy}")
    log(f"{monotonic() - began:.0f} seconds; classifier {classifier.digest} is saved in {options.out}")
    return 0


def _read(options: ClassifierOptions, log: LogFn) -> tuple[tuple[str, ...], Labelled, Labelled]:
    """Names of the classes, training images, held-out images."""
    refuse_latents(options.data, "a classifier")
    fit = Fit((options.side, options.side), options.channels)
    train = list(read(options.data, fit).report(log))
    try:
        held_out, reason = list(read(options.data, fit, train=False)), "the data has no held-out split"
    except ValueError as error:
        held_out, reason = train, str(error)
    if {document.name for document in held_out} & {document.name for document in train}:
        log(f"{reason}: a tenth of the images is held out")
        names = {document.name for document in train if rng.uniform("judge", "held out", document.name) < 0.1}
        train, held_out = [d for d in train if d.name not in names], [d for d in train if d.name in names]
    if any(len(document.media) != 1 for document in (*train, *held_out)):
        raise ConfigError(f"{options.data}: a document must hold one image and its class; leave out the others")
    counts = Counter(document.text for document in train)
    if len(counts) < 2 or len(counts) > len(train) // 2:
        raise ConfigError(
            f"{options.data}: {len(counts)} different captions of {len(train)} images are no classes; name each folder for its "
            "class, or give idx files or a Parquet column label"
        )
    captions = sorted(counts, key=lambda text: (int(text), "") if text.isdecimal() else (0, text))
    if options.names and len(options.names) != len(captions):
        raise ConfigError(f"{len(options.names)} names for the {len(captions)} classes {', '.join(captions)}: give one each")
    if unknown := {document.text for document in held_out} - set(captions):
        raise ConfigError(
            f"{options.data}: held-out images of {', '.join(sorted(unknown))}, which no training image has: move some over"
        )
    if not held_out:
        raise ConfigError(f"{options.data}: {len(train)} images leave none to hold out; give more")

    def tensors(documents: Sequence[Document]) -> Labelled:
        images = torch.stack([document.media[0].tensor() for document in documents])
        return images, torch.tensor([captions.index(document.text) for document in documents])

    return options.names or tuple(captions), tensors(train), tensors(held_out)
