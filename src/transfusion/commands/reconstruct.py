"""Measure an autoencoder on held-out images.

PSNR, SSIM and Fréchet distances beside what a bicubic reduction reaches, and a sheet of reconstructions.

usage: transfusion reconstruct AUTOENCODER --data PATH [--out FOLDER] [--name VALUE ...]

AUTOENCODER is a run of `transfusion train vae` or `train vq`, a folder that diffusers wrote, or hf://OWNER/MODEL.
"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from transfusion.codec.autoencoder import Autoencoder
from transfusion.codec.autoencoders import load_autoencoder
from transfusion.codec.vq import VQ
from transfusion.commands.report import print_table
from transfusion.data.document import Document, MediaError
from transfusion.data.images import Image, images, read_images, titles
from transfusion.data.media import Fit
from transfusion.evaluation.classifier import ConvolutionalClassifier
from transfusion.evaluation.features import InceptionFeatures
from transfusion.evaluation.reconstruction import Features, reconstruct, score, sheet
from transfusion.evaluation.record import Record
from transfusion.run.autoencoder import ReconstructionReport
from transfusion.run.command_line import changes, parse, split_positional
from transfusion.train.device import Device, pick_device
from transfusion.train.log import LogFn


@dataclass(frozen=True)
class ReconstructOptions:
    """Data and measures.

    Args:
        data: images; the held-out ones are measured.
        out: folder for `reconstruction.json` and `reconstructions.png`.
        side: images are side x side pixels.
        seed: random seed of the intervals.
        device: auto takes cuda, else mps, else cpu.
        report: number of images, and whose features Fréchet distances are taken in.
    """

    data: str = ""
    out: str = "runs/reconstruct"
    side: int = 64
    seed: int = 0
    device: Device = "auto"
    report: ReconstructionReport = ReconstructionReport()


@dataclass(frozen=True, eq=False)
class Judges:
    """Extractors of the features that Fréchet distances are taken in, by name, their digests, and why others are missing."""

    features: dict[str, Features]
    digests: dict[str, str]
    missing: dict[str, str]


def run(arguments: list[str], log: LogFn) -> int:
    """The command.

    Raises:
        ValueError: the autoencoder or the images can't be read, or do not fit each other.
    """
    names, rest = split_positional(
        arguments, "reconstruct needs an autoencoder: its folder, or hf://OWNER/MODEL", __doc__, most=1
    )
    options = parse(ReconstructOptions(), rest, "transfusion reconstruct AUTOENCODER")
    if not names:
        return 0
    device = pick_device(options.device)
    autoencoder = load_autoencoder(names[0]).to(device)
    autoencoder.latent_shape((options.side, options.side))
    judges = load_judges(options.report, device)
    fit = Fit((options.side, options.side), autoencoder.channels)
    _, held_out, note = read_images(options.data, fit)
    if note:
        log(note)
    items, shown = load_held_out(held_out, fit, options.report.images, log)
    command = shlex.join(["transfusion", "reconstruct", names[0], *changes(options, ReconstructOptions())])
    report(autoencoder, items, shown, judges, Path(options.out), log, seed=options.seed, command=command)
    return 0


def report(
    autoencoder: Autoencoder,
    items: torch.Tensor,
    titles: Sequence[str],
    judges: Judges,
    folder: Path,
    log: LogFn,
    *,
    seed: int,
    command: str,
) -> None:
    """Reconstruct images: the record and the sheet in a folder, and a table."""
    found = reconstruct(autoencoder, items)
    metrics = score(autoencoder, found, seed=seed, features=judges.features)
    settings = {"images": len(items), "side": items.shape[-1], "reduction": autoencoder.reduction}
    settings["latent_channels"] = autoencoder.latent_channels
    settings |= {"num_codes": autoencoder.num_codes} if isinstance(autoencoder, VQ) else {}
    record = Record("reconstruction", metrics, judges.missing, autoencoder.digest, judges.digests, seed, settings, command)
    path = record.save(folder)
    sheet(found, folder / "reconstructions.png", titles)
    rows = {name.replace("_", " "): estimate for name, estimate in metrics.items()}
    print_table(f"autoencoder {autoencoder.digest}, {len(items):,} held-out images", rows)
    log(f"numbers: {path}; sheet: {folder / 'reconstructions.png'}")


def load_judges(config: ReconstructionReport, device: torch.device) -> Judges:
    """Raises ValueError: a classifier or Inception's weights that cannot be read."""
    features: dict[str, Features] = {}
    digests: dict[str, str] = {}
    missing: dict[str, str] = {}
    if config.classifier:
        classifier = ConvolutionalClassifier.load(config.classifier)
        features["classifier"], digests["classifier"] = classifier.features, classifier.digest
    else:
        missing["frechet_classifier"] = "no classifier: fit one with transfusion train classifier, and give --report.classifier"
    if config.inception:
        inception = InceptionFeatures(config.inception, device)
        features["inception"], digests["inception"] = inception, inception.digest
    else:
        missing["frechet_inception"] = "no Inception weights: give the file with --report.inception"
    return Judges(features, digests, missing)


def load_held_out(documents: Sequence[Document], fit: Fit, most: int, log: LogFn) -> tuple[torch.Tensor, list[str]]:
    """The first images of documents, and their titles; those that cannot be read are told and left out. Raises ValueError if
    none can be."""
    (found, _), named = images(documents), titles(documents)
    items, kept = load_images(found[:most], fit, log)
    if not kept:
        raise ValueError("none of the held-out images can be read: mend them, or give others with --data")
    return items, [named[i] for i in kept]


def load_images(chosen: Sequence[Image], fit: Fit, log: LogFn) -> tuple[torch.Tensor, list[int]]:
    """Float32[image, channels, height, width] of the images that can be read, and their numbers; the others are told."""
    items: dict[int, torch.Tensor] = {}
    for number, image in enumerate(chosen):
        try:
            items[number] = replace(image, fit=fit).load()
        except MediaError as error:
            log(f"left out: {error}")
    return torch.stack([*items.values()]) if items else torch.zeros(0, *fit.shape), [*items]
