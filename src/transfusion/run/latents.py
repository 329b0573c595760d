"""A run on latents. Its settings state items as its data has them (pixels, also a patch's extent); here they become those of a
model that learns their latents.

    --autoencoder C     with --model.kind chameleon, C of a codebook: ids instead of latents, a token each
    --autoencoder C     a picture of 64 x 64 pixels in patches of 8 x 8, and C of reduction 4: 16 x 16 latents, patches of 2 x 2
"""

from dataclasses import replace

from transfusion.codec.autoencoder import Autoencoder
from transfusion.codec.autoencoders import load_autoencoder
from transfusion.codec.codecs import latent_form
from transfusion.codec.codes import Codes
from transfusion.config import ConfigError
from transfusion.modality import IMAGE
from transfusion.run.record import Run

PIXELS = 1.0
"""The clip of a sampler that bounds pixels."""


def open_autoencoder(run: Run, autoencoder: Autoencoder | None = None) -> tuple[Run, Autoencoder | None]:
    """The run with the digest of its autoencoder recorded, and the autoencoder.

    Args:
        autoencoder: one made in Python, instead of that of `run.autoencoder`.

    Raises:
        ConfigError: it is another one than the run records, or does not fit the run's pictures.
        ValueError: it can't be read.
    """
    if autoencoder is None and not run.autoencoder:
        if run.autoencoder_digest:
            raise ConfigError(f"this run learns latents of autoencoder {run.autoencoder_digest}: give it with --autoencoder")
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
    """The run with the modality "image" in the form of latents, and the bound on a sampler's estimates: where it is that of
    pixels, it becomes the autoencoder's measured one, or none. Raises ConfigError: pictures that do not fit the autoencoder."""
    if autoencoder is None:
        return run
    if not any(modality.name == IMAGE for modality in run.model.modalities):
        raise ConfigError(f"--autoencoder is for a modality {IMAGE!r}, which this run does not have")
    try:
        modalities = tuple(latent_form(m, autoencoder) if m.name == IMAGE else m for m in run.model.modalities)
    except ValueError as error:
        raise ConfigError(f"--autoencoder {run.autoencoder}: {error}") from error
    sampler = run.sampler if run.sampler.clip != PIXELS else replace(run.sampler, clip=autoencoder.bound)
    return replace(run, model=replace(run.model, modalities=modalities), sampler=sampler)
