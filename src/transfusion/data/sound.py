"""Sounds <-> tensors: WAV files, decoded when they are loaded, under limits. PCM of 8, 16, 24 and 32 bits and floats of 32 and
64 are read; any other container or compression is refused with what converts it.

Sounds become Float32[1, samples] at the rate of their modality, full scale at -1 and 1: the mean of their channels, resampled
by a windowed sinc in polyphase form, cut at the longest that the modality has, with silence behind them up to a whole patch.
`to_wav` is the inverse.
"""

import io
import math
import struct
import wave
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from transfusion.data.document import Document
from transfusion.data.media import SoundFit, media_errors
from transfusion.files import open_file
from transfusion.modality import MAX_RATE

SUFFIXES = (".wav", ".wave", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".aac", ".aif", ".aiff", ".wma")
"""Suffixes of the sounds in a folder: of those that are read, and of those that are refused by name."""
MIN_RATE, MAX_CHANNELS, MAX_CHUNKS = 100, 64, 1000
"""Samples a second at least; channels at most; chunks of a file before its samples, at most."""
PCM, FLOAT, EXTENSIBLE = 1, 3, 0xFFFE
COMPRESSED = {2: "ADPCM", 6: "A-law", 7: "mu-law", 17: "ADPCM", 49: "GSM", 85: "MP3"}
"""Formats of WAV files that are not read, by their number."""
OTHERS = {
    b"fLaC": "FLAC",
    b"OggS": "Ogg",
    b"ID3": "MP3",
    b"\xff\xfb": "MP3",
    b"\xff\xf3": "MP3",
    b"\xff\xf1": "AAC",
    b"FORM": "AIFF",
    b"RF64": "RF64",
    b".snd": "AU",
    b"caff": "CAF",
}
"""How other containers begin; MP4's has its word at the fifth byte."""
CONVERT = "only WAV is read, uncompressed: convert it first, for example by ffmpeg -i IN -c:a pcm_s16le OUT.wav"


@dataclass(frozen=True)
class WavHeader:
    """Where and how a WAV file holds its samples.

    Args:
        start, frames: byte of the first sample; samples of each channel.
        width: bytes of a sample.
        is_float: whether samples are floats.
    """

    start: int
    frames: int
    rate: int
    channels: int
    width: int
    is_float: bool

    @classmethod
    def read(cls, file: BinaryIO) -> "WavHeader":
        """The header of a file. Raises ValueError: another container or format, an empty sound, or a damaged file."""
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
        head = file.read(12)
        if head[:4] != b"RIFF" or head[8:] != b"WAVE":
            other = next((name for start, name in OTHERS.items() if head.startswith(start)), None)
            other = "MP4" if head[4:8] == b"ftyp" else other
            raise ValueError(f"{f'a sound in {other}' if other else 'no sound in WAV'}; {CONVERT}")
        form: bytes | None = None
        for _ in range(MAX_CHUNKS):
            name, length = _chunk(file)
            if name == b"fmt ":
                form = file.read(min(length, 64))
                file.seek(length + length % 2 - len(form), io.SEEK_CUR)
            elif name == b"data" and form is not None:
                start = file.tell()
                streamed = length in (0, 2**32 - 1)  # a recorder that could not go back to write it
                if not streamed and start + length > size:
                    raise ValueError(f"cut off: {size - start:,} of the {length:,} bytes that its header names")
                return cls._of(form, start, size - start if streamed else length)
            else:
                file.seek(length + length % 2, io.SEEK_CUR)
        raise ValueError("damaged: no samples behind its first chunks")

    @classmethod
    def _of(cls, form: bytes, start: int, length: int) -> "WavHeader":
        kind, channels, rate, _, _, bits = struct.unpack_from("<HHIIHH", form)
        if kind == EXTENSIBLE:
            (kind,) = struct.unpack_from("<H", form, 24)
        width = (bits + 7) // 8
        known = (kind == PCM and 1 <= width <= 4) or (kind == FLOAT and width in (4, 8))
        if not known:
            what = COMPRESSED.get(kind, f"format {kind}")
            raise ValueError(f"a WAV file of {what}, {bits} bits; {CONVERT}")
        if not (1 <= channels <= MAX_CHANNELS and MIN_RATE <= rate <= MAX_RATE):
            raise ValueError(
                f"damaged, or no sound: {channels} channels of {rate:,} samples a second; 1 to {MAX_CHANNELS} of {MIN_RATE} to "
                f"{MAX_RATE:,} are read"
            )
        frames = length // (width * channels)
        if not frames:
            raise ValueError("an empty sound, without samples: leave it out")
        return cls(start, frames, rate, channels, width, kind == FLOAT)

    def decode(self, data: bytes) -> np.ndarray:
        """Float64 [frame, channel] of samples, full scale at -1 and 1."""
        if self.is_float:
            values = np.frombuffer(data, f"<f{self.width}").astype(np.float64)
        elif self.width == 1:
            values = np.frombuffer(data, np.uint8).astype(np.float64) / 128 - 1
        else:
            padded = np.zeros((len(data) // self.width, 4), np.uint8)
            padded[:, 4 - self.width :] = np.frombuffer(data, np.uint8).reshape(-1, self.width)
            values = padded.view("<i4")[:, 0] / 2.0**31
        return values.reshape(-1, self.channels)


def _chunk(file: BinaryIO) -> tuple[bytes, int]:
    head = file.read(8)
    if len(head) < 8:
        raise ValueError("damaged: it ends before its samples")
    return head[:4], int.from_bytes(head[4:], "little")


@dataclass(frozen=True)
class EncodedSound:
    """A sound in a WAV file, or the bytes of one, decoded when it is loaded. Make it with `open`, which reads its header."""

    source: Path | bytes
    fit: SoundFit
    name: str
    header: WavHeader

    @classmethod
    def open(cls, source: Path | bytes, fit: SoundFit, name: str) -> "EncodedSound":
        """Read the header. Raises MediaError, naming the sound: it is missing, empty, damaged or of another format."""
        with _opened(source, name) as file:
            return cls(source, fit, name, WavHeader.read(file))

    @property
    def length(self) -> int:
        """Samples at the rate of its modality, before it is cut."""
        return math.ceil(self.header.frames * self.fit.rate / self.header.rate)

    @property
    def shape(self) -> tuple[int, ...]:
        """(1, samples)"""
        return (1, self.fit.samples(self.length))

    def load(self) -> Tensor:
        """Float32[1, samples]. Raises MediaError, naming it, if it cannot be decoded."""
        header, (_, samples) = self.header, self.shape
        # no more than is kept, and what the filter reaches beyond it
        frames = min(header.frames, math.ceil(samples * header.rate / self.fit.rate) + header.rate // 10 + 64)
        with _opened(self.source, self.name) as file:
            if WavHeader.read(file) != header:
                raise ValueError("the file has changed since it was first read")
            file.seek(header.start)
            mixed = header.decode(file.read(frames * header.channels * header.width)).mean(1)
        found = resample(mixed, header.rate, self.fit.rate)[:samples]
        values = np.zeros((1, samples), np.float32)
        values[0, : len(found)] = found
        return torch.from_numpy(values)


@contextmanager
def _opened(source: Path | bytes, name: str) -> Iterator[BinaryIO]:
    with media_errors(name), io.BytesIO(source) if isinstance(source, bytes) else open_file(source) as file:
        yield file


def resample(values: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    """Samples of another rate, by a sinc under a Kaiser window that removes what the lower of the two rates cannot hold."""
    if rate == wanted:
        return values
    from scipy.signal import resample_poly

    common = math.gcd(rate, wanted)
    return resample_poly(values, wanted // common, rate // common)


def to_wav(values: Tensor, rate: int) -> bytes:
    """Float[1, samples], cut off at -1 and 1 -> a WAV file of 16 bits. Raises ValueError for any other shape."""
    if values.ndim != 2 or values.shape[0] != 1:
        raise ValueError(f"a sound is (1, samples), not {tuple(values.shape)}")
    samples = (values.detach().float().cpu()[0].clamp(-1, 1) * 32767).round().to(torch.int16).numpy()
    with io.BytesIO() as buffer:
        with wave.open(buffer, "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(rate)
            file.writeframes(samples.astype("<i2").tobytes())
        return buffer.getvalue()


def sound_notes(documents: Iterable[Document]) -> list[str]:
    """What is done to the sounds of documents so that they fit their modality, a line for each sort of change."""
    sounds = [media.values for document in documents for media in document.media if isinstance(media.values, EncodedSound)]
    notes = []
    if mixed := sum(sound.header.channels > 1 for sound in sounds):
        notes.append(f"{mixed:,} of {len(sounds):,} sounds have several channels: their mean is taken")
    if rates := Counter(sound.header.rate for sound in sounds if sound.header.rate != sound.fit.rate):
        each = ", ".join(f"{rate:,} ({count:,} sounds)" for rate, count in sorted(rates.items())[:8])
        notes.append(
            f"{rates.total():,} of {len(sounds):,} sounds are resampled to {sounds[0].fit.rate:,} a second, from {each}"
        )
    if cut := [sound for sound in sounds if sound.length > sound.fit.longest]:
        fit, longest = cut[0].fit, max(sound.length for sound in cut)
        option = fit.option or "the modality's largest"
        notes.append(
            f"{len(cut):,} of {len(sounds):,} sounds are longer than {fit.seconds:.3g} seconds and are cut there; the longest "
            f"has {longest / fit.rate:.3g}: to learn them whole, {option} {math.ceil(longest / fit.step) * fit.step}, with "
            "--packing.row-length and --model.context-length that hold it"
        )
    return notes
