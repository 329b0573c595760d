"""A run on latents. Its settings state items as its data has them (pixels, also a patch's extent); here they become those of a
model that learns their latents.

    --autoencoder C     with --model.kind chameleon, C of a codebook: ids instead of latents, a token each
    --autoencoder C     a picture of 64 x 64 pixels in patches of 8 x 8, and C of reduction 4: 16 x 16 latents, patches of 2 x 2
    --sound.kind mel    4,096 samples in patches of 256, and a hop of 128: 32 frames of bands, patches of 2
"""

from dataclasses import replace

from transfusion.codec.autoencoder import Autoencoder
from transfusion.codec.autoencoders import load_autoencoder
from transfusion.codec.codecs import latent_form
from transfusion.codec.codes import Codes
from transfusion.codec.mel import MelConfig
from transfusion.config import ConfigError
from transfusion.modality import IMAGE, Modality
from transfusion.run.adopt import adopt_autoencoder
from transfusion.run.record import Run

NONE = "none"
"""As `autoencoder`: pixels, also where the model of `init` has one."""
PIXELS = 1.0
"""The clip of a sampler that bounds pixels."""


def open_autoencoder(run: Run, autoencoder: Autoencoder | None = None) -> tuple[Run, Autoencoder | None]:
    """The run with its autoencoder and the digest of it recorded, and the autoencoder; where it names none, that of the weights
    that it starts from.

    Args:
        autoencoder: one made in Python, instead of that of `run.autoencoder`.

    Raises:
        ConfigError: it is another one than the run records, or does not fit the run's pictures; or the run's codec does not
            fit its sounds.
        ValueError: it can't be read.
    """
    run = adopt_autoencoder(run) if autoencoder is None else run
    if autoencoder is None and run.autoencoder in ("", NONE):
        if run.autoencoder_digest:
            raise ConfigError(f"this run learns latents of autoencoder {run.autoencoder_digest}: give it with --autoencoder")
        on_latents(run, None)
        return run, None
    autoencoder = load_autoencoder(run.autoencoder) if autoencoder is None else autoencoder.freeze()
    if run.model.kind == "chameleon":
        try:
            autoencoder = Codes.of(autoencoder).freeze()
        except ValueError as error:
            raise ConfigError(f"--autoencoder {run.autoencoder}: {error}") from error
    if run.autoencoder_digest not in ("", autoencoder.digest):
        raise ConfigError(
            f"--autoencoder {run.autoencoder} has digest {autoencoder.digest}, the run wants {run.autoencoder_digest}: give "
            "that one, or leave out --autoencoder-digest"
        )
    on_latents(run, autoencoder)
    return replace(run, autoencoder_digest=autoencoder.digest), autoencoder


def on_latents(run: Run, autoencoder: Autoencoder | None) -> Run:
    """The run with the modality "image" in the form of latents, and those of sounds in that of their codec's; and the bound on
    a sampler's estimates: where it is that of pixels, it becomes the largest that a codec knows, or none. Raises ConfigError:
    items that do not fit."""
    codecs = autoencoders_of(run, autoencoder)
    if not codecs:
        return run
    if autoencoder is not None and not any(modality.name == IMAGE for modality in run.model.modalities):
        raise ConfigError(f"--autoencoder is for a modality {IMAGE!r}, which this run does not have")
    modalities = tuple(
        _latent_form(run, modality, codecs[modality.name]) if modality.name in codecs else modality
        for modality in run.model.modalities
    )
    bounds = [codecs[m.name].bound if m.name in codecs else PIXELS for m in modalities]
    bound = None if None in bounds else max(b for b in bounds if b is not None)
    sampler = run.sampler if run.sampler.clip != PIXELS else replace(run.sampler, clip=bound)
    return replace(run, model=replace(run.model, modalities=modalities), sampler=sampler)


def _latent_form(run: Run, modality: Modality, codec: Autoencoder) -> Modality:
    try:
        return latent_form(modality, codec)
    except ValueError as error:
        option = "--sound" if modality.rate else f"--autoencoder {run.autoencoder}"
        raise ConfigError(f"{option}: {error}") from error


def autoencoders_of(run: Run, autoencoder: Autoencoder | None) -> dict[str, Autoencoder]:
    """By the names of modalities, the autoencoder of a run's pictures and the codecs of its sounds. Raises ConfigError: a codec
    of another rate, or that cannot be."""
    codecs = {} if autoencoder is None else {IMAGE: autoencoder}
    if isinstance(run.sound, MelConfig):
        for modality in run.model.modalities:
            if modality.rate:
                try:
                    codecs[modality.name] = run.sound.at(modality.rate).build()
                except ValueError as error:
                    raise ConfigError(f"--sound: {error}") from error
    return codecs
