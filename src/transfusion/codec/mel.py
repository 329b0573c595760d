"""Sound as a log-mel spectrogram, and back by Griffin-Lim: a codec of sound that is known in full, without weights.

    sound [item, 1, samples]  -- |STFT| -> bands -> decibels -->  latents [item, bands, samples / hop]
    latents  -- bands -> |STFT| by least squares -> phases by Griffin-Lim -->  sound

Why not an autoencoder of waveforms: a few hundred slots must hold a spoken word, and a few minutes must train it. Learned from
twenty minutes of speech, one costs as long as the transformer itself, keeps the errors that its training left, and needs a
discriminator to sound like anything. The bands are there at once, the same on every machine, and their distances are near
those that an ear hears: noise of one size blurs all of a sound alike, as diffusion wants. What it costs is the phase, which
Griffin-Lim finds anew: speech stays intelligible and sounds a little hollow.

Frames are `window` samples long (Hann) and `hop` apart, the first one's centre half a hop behind the first sample, so that a
sound of n hops has n frames. Bands are triangles over frequency, evenly spaced on the mel scale of Slaney's Auditory Toolbox
(1998): linear below 1 kHz, logarithmic above. A band's value is in decibels below a full-scale sine, less about the mean of
speech and over its standard deviation: constants, so that the same sound has the same latents in every run.
"""

import math
from dataclasses import dataclass, replace
from typing import ClassVar, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from transfusion.codec.autoencoder import Autoencoder
from transfusion.modality import MAX_RATE

MAX_WINDOW, MAX_BANDS = 2**16, 1024
LINEAR, PER_HERTZ, PER_FACTOR = 1000.0, 3 / 200, 27 / math.log(6.4)
"""The mel scale: linear up to 1 kHz, 15 mels there, then 27 for each factor of 6.4."""
UPDATES = 60
"""Multiplicative updates (Lee and Seung 2001) from bands to magnitudes."""
MEAN, DEVIATION = -65.0, 15.0
"""Decibels: of the spoken digits of FSDD, whose peaks are between -25 and -2."""
DECIBELS = 20 / math.log(10)


@dataclass(frozen=True)
class MelConfig:
    """A log-mel spectrogram, inverted by Griffin-Lim.

    Args:
        rate: samples a second of its sounds (0: that of the modality).
        hop: samples for one frame of latents.
        window: samples of a frame; four hops or more, so that phases can be found.
        bands: of frequencies, the channels of latents.
        floor: level of silence, in decibels below a full-scale sine; it is added to that of every band.
        iterations: of Griffin-Lim, only in decoding.
        momentum: of the same (Perraudin, Balazs, Søndergaard 2013).

    Raises:
        ValueError: a number out of its range, or bands that hold no frequency.
    """

    kind: ClassVar[str] = "mel"
    rate: int = 0
    hop: int = 128
    window: int = 512
    bands: int = 64
    floor: float = -80.0
    iterations: int = 32
    momentum: float = 0.99

    def __post_init__(self) -> None:
        for name, least, most in (
            ("rate", 0, MAX_RATE),
            ("hop", 1, MAX_WINDOW),
            ("window", 2 * self.hop, MAX_WINDOW),
            ("bands", 1, MAX_BANDS),
            ("iterations", 0, 10_000),
        ):
            if not least <= getattr(self, name) <= most:
                raise ValueError(f"{name} must be {least:,} to {most:,}, not {getattr(self, name):,}")
        if not (-200 <= self.floor <= -10 and 0 <= self.momentum <= 1):
            raise ValueError(f"floor must be -200 to -10 and momentum 0 to 1, not {self.floor:g} and {self.momentum:g}")
        if self.window % 2 or self.hop % 2:
            raise ValueError(f"hop and window must be even, not {self.hop} and {self.window}")

    def at(self, rate: int) -> "MelConfig":
        """These settings for sounds of a rate. Raises ValueError: they name another."""
        if self.rate not in (0, rate):
            raise ValueError(f"a codec for {self.rate:,} samples a second, and sounds of {rate:,}: give both the same rate")
        return replace(self, rate=rate)

    def build(self) -> "Mel":
        """The codec. Raises ValueError: it has no rate, or more bands than its window can tell apart."""
        return Mel(self)

    def __str__(self) -> str:
        """In a few words."""
        return f"{self.bands} mel bands, a frame each {1000 * self.hop / max(self.rate, 1):.3g} ms, heard by Griffin-Lim"


@dataclass(frozen=True)
class Samples:
    """No codec: a sound is learned as its samples."""

    kind: ClassVar[str] = "samples"


SoundCodec: TypeAlias = Samples | MelConfig


class Mel(Autoencoder):
    """A log-mel spectrogram as the latents of a sound, by its settings. It has no weights; phases start at zero, so that
    decoding draws no random number."""

    tile = 2**40  # a sound is small, and its frames overlap

    def __init__(self, settings: MelConfig) -> None:
        if not settings.rate:
            raise ValueError("a codec of sound needs the rate of its sounds, for example MelConfig(rate=8000)")
        super().__init__(channels=1, latent_channels=settings.bands, reduction=settings.hop, settings=settings)
        self.mel, self.rate = settings, settings.rate
        mean, scale = (torch.full((settings.bands,), value) for value in (MEAN, DEVIATION))
        self.normalize(mean, scale, max(abs(settings.floor - MEAN), abs(MEAN)) / DEVIATION)
        self._floor = math.exp(settings.floor / DECIBELS)
        # not of torch: an autoencoder is built on the meta device, and has no weights to load there
        self._window, self._filters = np.hanning(settings.window + 1)[:-1], triangles(settings)

    def to_latents(self, items: Float[Tensor, "item 1 samples"]) -> Float[Tensor, "item bands frames"]:
        """The decibels of the bands."""
        sounds, pad = items.squeeze(1).float(), (self.mel.window - self.mel.hop) // 2
        spectrum = self._spectrum(F.pad(sounds, (pad, pad)))
        level = _like(self._filters, sounds) @ (spectrum.abs() / (self.mel.window / 4))
        return DECIBELS * (level + self._floor).log()

    def to_items(self, latents: Float[Tensor, "item bands frames"]) -> Float[Tensor, "item 1 samples"]:
        """Sounds of decibels."""
        level = ((latents.float().clamp(self.mel.floor, 0) / DECIBELS).exp() - self._floor).clamp_min(0)
        return self._with_phases(self._magnitudes(level) * (self.mel.window / 4))[:, None]

    # ---- bands and magnitudes ----------------------------------------------------------------------------------------

    def _magnitudes(self, wanted: Float[Tensor, "item bands frames"]) -> Float[Tensor, "item frequency frames"]:
        """Magnitudes of 0 or more whose bands are as near to the wanted ones as they can be."""
        filters = _like(self._filters, wanted)
        square, start = filters.T @ filters, filters.T @ wanted
        x = start / filters.sum(0).square().clamp_min(1e-6)[:, None]
        for _ in range(UPDATES):
            x = x * start / (square @ x).clamp_min(1e-12)
        return x

    def _with_phases(self, magnitudes: Float[Tensor, "item frequency frames"]) -> Float[Tensor, "item samples"]:
        """Sounds of these magnitudes (Griffin and Lim 1984, with momentum)."""
        phases = torch.ones_like(magnitudes, dtype=torch.complex64)
        before = torch.zeros_like(phases)
        for _ in range(self.mel.iterations):
            found = self._spectrum(self._sound(magnitudes * phases))
            ahead = found + self.mel.momentum * (found - before)
            phases, before = ahead / ahead.abs().clamp_min(1e-12), found
        pad = (self.mel.window - self.mel.hop) // 2
        return self._sound(magnitudes * phases)[:, pad:-pad]

    # ---- the transform -----------------------------------------------------------------------------------------------

    def _spectrum(self, padded: Float[Tensor, "item padded"]) -> Tensor:
        """[item, frequency, frame], complex"""
        window = _like(self._window, padded)
        return torch.stft(padded, self.mel.window, self.mel.hop, window=window, center=False, return_complex=True)

    def _sound(self, spectrum: Tensor) -> Float[Tensor, "item padded"]:
        """The padded sounds whose spectrum is nearest: frames added where they overlap, over the squares of their windows."""
        window = _like(self._window, spectrum.real)[:, None]
        frames = torch.fft.irfft(spectrum, n=self.mel.window, dim=1) * window
        weights = window.square().expand(1, -1, frames.shape[-1])
        length = self.mel.window + self.mel.hop * (frames.shape[-1] - 1)
        added, weight = (
            F.fold(x, (1, length), (1, self.mel.window), stride=(1, self.mel.hop)).flatten(1) for x in (frames, weights)
        )
        return added / weight.clamp_min(1e-3)


def _like(array: np.ndarray, x: Tensor) -> Tensor:
    return torch.from_numpy(array).to(x)


def triangles(settings: MelConfig) -> Float[np.ndarray, "band frequency"]:
    """The bands over the frequencies of a spectrum: triangles, each from one neighbour's centre to the other's, that sum to 1.
    Raises ValueError: one of them holds no frequency."""
    hertz = np.linspace(0, settings.rate / 2, settings.window // 2 + 1)
    edges = _hertz(np.linspace(0, _mels(hertz[-1:])[0], settings.bands + 2))
    rising = (hertz - edges[:-2, None]) / np.diff(edges)[:-1, None]
    falling = (edges[2:, None] - hertz) / np.diff(edges)[1:, None]
    found = np.minimum(rising, falling).clip(0)
    total = found.sum(1, keepdims=True)
    if empty := int((total == 0).sum()):
        raise ValueError(
            f"{empty} of {settings.bands} bands lie between the frequencies that a window of {settings.window} samples tells "
            "apart: take fewer bands, or a longer window"
        )
    return found / total


def _mels(hertz: np.ndarray) -> np.ndarray:
    above = np.log(np.maximum(hertz, LINEAR) / LINEAR)
    return np.minimum(hertz, LINEAR) * PER_HERTZ + PER_FACTOR * above


def _hertz(mels: np.ndarray) -> np.ndarray:
    above = np.maximum(mels - LINEAR * PER_HERTZ, 0) / PER_FACTOR
    return np.minimum(mels / PER_HERTZ, LINEAR) * np.exp(above)
