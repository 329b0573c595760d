"""Encode pictures as latents once, or measure an autoencoder's latents.

usage: transfusion data encode SOURCE --autoencoder C --out FOLDER [--size 64 64] [--crops N] [--flips True] [--ids True]
                                      [--name VALUE ...]
       transfusion data measure SOURCE --autoencoder C --out FOLDER [--size 64 64] [--name VALUE ...]

`encode` writes what `transfusion train pictures --data FOLDER --autoencoder C` then reads instead of the pictures; with `--ids
True` ids of a codebook, for `--model.kind chameleon`. Stopped and repeated, it goes on where it was. `measure` writes the
autoencoder with mean and scale of its latents per channel, and their range, measured on pictures: for one of diffusers, which
has none of its own.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from transfusion import rng
from transfusion.codec.autoencoders import load_autoencoder
from transfusion.codec.codecs import Codecs, latent_form
from transfusion.codec.codes import Codes
from transfusion.codec.encoding import Views, encode
from transfusion.config import ConfigError, nearest
from transfusion.data.document import MediaError
from transfusion.data.media import Fit
from transfusion.data.sources.latents import HELD_OUT, TRAIN, refuse_latents
from transfusion.data.sources.read import has_held_out, read
from transfusion.modality import IMAGE, Modality
from transfusion.run.command_line import parse, split_positional
from transfusion.train.device import Device, pick_device
from transfusion.train.log import LogFn, progress

VERBS = ("encode", "measure")


@dataclass(frozen=True)
class EncodeOptions:
    """Pictures to latents.

    Args:
        autoencoder: a folder that `transfusion train` or diffusers wrote, or hf://OWNER/MODEL[/SUBFOLDER].
        out: folder for the latents.
        size: height and width that pictures are fitted to, those of the run.
        crops: random crops of each picture to encode beside it; each epoch learns from one of them.
        flips: encode the mirror image of each, too.
        ids: write ids of the autoencoder's codebook, which a run of `--model.kind chameleon` reads.
        per_shard: documents of a file.
        seed: random seed of the crops.
        device: auto takes cuda, else mps, else cpu.
    """

    autoencoder: str = ""
    out: str = ""
    size: tuple[int, int] = (64, 64)
    crops: int = 0
    flips: bool = False
    ids: bool = False
    per_shard: int = 1024
    seed: int = 0
    device: Device = "auto"


@dataclass(frozen=True)
class MeasureOptions:
    """The normalisation of an autoencoder's latents.

    Args:
        autoencoder: as for `encode`.
        out: folder for the autoencoder with its measured normalisation.
        size: height and width that pictures are fitted to.
        samples: pictures to measure on, a random subset.
        seed: random seed of the subset.
        device: auto takes cuda, else mps, else cpu.
    """

    autoencoder: str = ""
    out: str = ""
    size: tuple[int, int] = (64, 64)
    samples: int = 2000
    seed: int = 0
    device: Device = "auto"


def run(arguments: list[str], log: LogFn) -> int:
    """The command."""
    verb, *rest = arguments or [""]
    if verb in ("", "-h", "--help"):
        print(__doc__)
        return 0
    if verb not in VERBS:
        raise ConfigError(f"data: no {verb!r}{nearest(verb, VERBS)}")
    missing = f"data {verb} needs a source: transfusion data {verb} SOURCE --autoencoder C --out FOLDER"
    sources, words = split_positional(rest, missing, __doc__, most=1)
    if verb == "encode":
        _encode(sources, words, log)
    else:
        _measure(sources, words, log)
    return 0


def _encode(sources: list[str], words: list[str], log: LogFn) -> None:
    options = parse(EncodeOptions(), words, "transfusion data encode SOURCE")
    (source,) = _named(sources, options)
    autoencoder = load_autoencoder(options.autoencoder)
    if options.ids:
        autoencoder = Codes.of(autoencoder).freeze()
    autoencoder.to(pick_device(options.device))
    pictures = Modality(IMAGE, channels=autoencoder.channels, shape=options.size, patch=(1, 1))
    codecs = Codecs(autoencoder, (latent_form(pictures, autoencoder),))  # a size that does not fit is refused here
    fit = Fit(options.size, autoencoder.channels)
    splits = {TRAIN: read(source, fit).report(log)}
    if has_held_out(source):
        splits[HELD_OUT] = read(source, fit, train=False).report(log)
    with progress("encoding") as each:
        encode(
            splits,
            codecs,
            Path(options.out),
            size=options.size,
            source=source,
            autoencoder=options.autoencoder,
            views=Views(options.crops, options.flips, options.seed),
            per_shard=options.per_shard,
            log=log,
            progress=each,
        )
    size = f"--model.modalities.0.shape {options.size[0]} {options.size[1]}"
    size += " --model.kind chameleon" if isinstance(autoencoder, Codes) else ""
    what = "ids" if isinstance(autoencoder, Codes) else "latents"
    log(f"{sum(map(len, splits.values())):,} documents as {what} of autoencoder {autoencoder.digest}")
    log(f"next: transfusion train pictures --data {options.out} --autoencoder {options.autoencoder} {size}")


def _measure(sources: list[str], words: list[str], log: LogFn) -> None:
    options = parse(MeasureOptions(), words, "transfusion data measure SOURCE")
    (source,) = _named(sources, options)
    autoencoder = load_autoencoder(options.autoencoder, freeze=False).to(pick_device(options.device))
    autoencoder.latent_shape(options.size)
    corpus = read(source, Fit(options.size, autoencoder.channels)).report(log)
    items = [item for document in corpus for item in document.media if item.modality == IMAGE]
    order = rng.generator(rng.key("measure", options.seed)).permutation(len(items))[: options.samples]

    def pictures() -> Iterator[Tensor]:
        for i in order:
            try:
                yield items[int(i)].tensor()[None]
            except MediaError as error:
                log(f"left out: {error}")

    autoencoder.measure(pictures())
    autoencoder.cpu().freeze().save(options.out)
    mean, scale = (", ".join(f"{x:.3g}" for x in v.tolist()) for v in (autoencoder.latent_mean, autoencoder.latent_scale))
    log(f"on {len(order):,} pictures: mean {mean}; scale {scale}; the largest normalised latent {autoencoder.bound:.3g}")
    log(f"autoencoder {autoencoder.digest}: {options.out}")


def _named(sources: list[str], options: EncodeOptions | MeasureOptions) -> list[str]:
    """The source. Raises ConfigError: it, the autoencoder or the output is not named; ValueError: it is latents."""
    if not (sources and options.autoencoder and options.out):
        raise ConfigError("give SOURCE, --autoencoder C and --out FOLDER")
    refuse_latents(sources[0], "an autoencoder", option="")
    return sources
