"""Small things that many tests need: models with random weights everywhere, documents, data on disk."""

import gzip
import struct
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from transfusion.api import Transfusion
from transfusion.codec.autoencoder import Autoencoder
from transfusion.codec.codecs import Autoencoders
from transfusion.codec.custom_patcher import CustomModules
from transfusion.codec.patchers import LinearPatcherConfig, PatcherConfig
from transfusion.data.document import Document, Media, Text
from transfusion.data.tokenize import Coordinates
from transfusion.data.transforms import ConditionDropout
from transfusion.data.vocabulary import Bytes, Vocabulary
from transfusion.diffusion.guidance import Guidance
from transfusion.diffusion.process import Diffusion
from transfusion.diffusion.sampler import Euler
from transfusion.modality import Modality
from transfusion.model.auxiliary import AuxiliaryLossConfig
from transfusion.model.network import ModelConfig
from transfusion.model_folder import TransfusionConfig
from transfusion.nn.config import TransformerConfig

IMAGE = Modality("image", channels=1, shape=(4, 4), patch=(2, 2))
FREE = Modality("image", channels=1, shape=(4, 4), patch=(2, 2), largest=(8, 8))
SOUND = Modality("sound", channels=3, shape=(6,), patch=(2,))
VECTOR = Modality("vector", channels=5, shape=(), patch=())
CODED = Modality("image", channels=1, shape=(2, 3), patch=(1, 1), codes=7)
IDS = torch.tensor([[[3.0, 0.0, 6.0], [1.0, 1.0, 2.0]]])
"""An item of `CODED`."""


class Unshuffle(Autoencoder):
    """Squares of pixels, turned by a random orthogonal matrix: latents of any size, from which the item comes back exactly."""

    def __init__(self, channels: int = 1, reduction: int = 2, seed: int = 0) -> None:
        super().__init__(channels=channels, latent_channels=channels * reduction**2, reduction=reduction)
        turned = torch.linalg.qr(torch.randn(2 * (self.latent_channels,), generator=torch.Generator().manual_seed(seed)))[0]
        self.register_buffer("turned", turned)

    def to_latents(self, items: Tensor) -> Tensor:
        return torch.einsum("oc,ichw->iohw", self.turned, F.pixel_unshuffle(items, self.reduction))

    def to_items(self, latents: Tensor) -> Tensor:
        return F.pixel_shuffle(torch.einsum("oc,iohw->ichw", self.turned, latents), self.reduction)


def vocabulary(*modalities: Modality) -> Vocabulary:
    return Vocabulary(Bytes().build([]), modalities)


def model(
    *modalities: Modality,
    double: bool = False,
    coordinates: Coordinates = Coordinates(),
    context_length: int = 160,
    diffusion: Diffusion = Diffusion(),
    drop: ConditionDropout = ConditionDropout(text=0.1, media=0.1, both=0.1),
    guidance: Guidance = Guidance(text=3.0),
    patcher: PatcherConfig = LinearPatcherConfig(),
    modules: CustomModules | None = None,
    autoencoder: Autoencoders | None = None,
    axial: bool = False,
    auxiliary: AuxiliaryLossConfig = AuxiliaryLossConfig(),
    **transformer: object,
) -> Transfusion:
    """A model whose every weight is random, so that no path agrees with another by being zero."""
    settings = TransfusionConfig(
        ModelConfig(
            modalities=modalities or (IMAGE,),
            transformer=TransformerConfig(**({"width": 32, "depth": 2, "num_heads": 4, "num_kv_heads": 2} | transformer)),  # type: ignore[arg-type]
            coordinates=coordinates,
            axial=axial,
            context_length=context_length,
            diffusion=diffusion,
            patcher=patcher,
            auxiliary=auxiliary,
        ),
        condition_dropout=drop,
        sampler=Euler(num_steps=3),
        guidance=guidance,
    )
    torch.manual_seed(1)
    found = Transfusion(settings, vocabulary(*settings.model.modalities), modules=modules, autoencoder=autoencoder).eval()
    with torch.no_grad():
        for p in found.parameters():
            p.copy_(torch.randn(p.shape) * (0.3 if p.ndim > 1 else 0.5) + (1.0 if p.ndim == 1 else 0.0))
    return found.double() if double else found


def picture(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape or (1, 4, 4), generator=torch.Generator().manual_seed(seed))


def drawn(seed: int, *shape: int, **options: object) -> Media:
    """A picture that stands once, noised, whatever follows it."""
    return Media(picture(seed, *shape), use="draw", **options)  # type: ignore[arg-type]


def documents() -> list[Document]:
    """Text and pictures in several orders and lengths; every picture stands once."""
    return [
        Document((Text("a cat"), drawn(1))),
        Document((drawn(2), Text("what a long caption for one"))),
        Document((Text("x"), drawn(3), Text(" and "), drawn(4, private=True), Text(" end"))),
        Document((Text("only text"),)),
        Document((drawn(5), drawn(6))),
    ]


def png(path, seed: int = 0, size: tuple[int, int] = (12, 10), mode: str = "RGB") -> None:
    shape = (size[1], size[0]) if mode == "L" else (size[1], size[0], len(mode))
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def folder(path: Path, count: int = 30) -> Path:
    """Captioned pictures of the folder, 000.png and 000.txt and so on."""
    for i in range(count):
        png(path / f"{i:03d}.png", i)
        (path / f"{i:03d}.txt").write_text(f"caption {i}")
    return path


def write_idx(path: Path, count: int = 5, *, zipped: bool = False) -> None:
    path.mkdir(exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (count, 28, 28), dtype=np.uint8)
    labels = (np.arange(count) % 10).astype(np.uint8)
    for part in ("train", "t10k"):
        for name, array in ((f"{part}-images-idx3-ubyte", pixels), (f"{part}-labels-idx1-ubyte", labels)):
            data = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
            (path / (name + ".gz" * zipped)).write_bytes(gzip.compress(data) if zipped else data)


def tone(hertz: float, seconds: float = 0.3, rate: int = 8000, level: float = 0.5) -> np.ndarray:
    """A sine, Float64[sample]."""
    return level * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)


def wav(samples: np.ndarray, rate: int = 8000, bits: int = 16, *, floats: bool = False, extensible: bool = False) -> bytes:
    """A WAV file of samples, [frame] or [frame, channel], full scale at 1."""
    samples = samples[:, None] if samples.ndim == 1 else samples
    if floats:
        data = samples.astype(f"<f{bits // 8}").tobytes()
    elif bits == 8:
        data = (samples * 127 + 128).round().astype(np.uint8).tobytes()
    else:
        whole = (samples * (2 ** (bits - 1) - 1)).round().astype("<i8")
        data = whole.view(np.uint8).reshape(*whole.shape, 8)[..., : bits // 8].tobytes()
    kind, channels, width = (3 if floats else 1), samples.shape[1], samples.shape[1] * bits // 8
    form = struct.pack("<HHIIHH", 0xFFFE if extensible else kind, channels, rate, rate * width, width, bits)
    form += struct.pack("<HHIH", 22, bits, 0, kind) + bytes(14) if extensible else b""
    chunks = b"LIST" + struct.pack("<I", 3) + b"abc\0" + b"fmt " + struct.pack("<I", len(form)) + form
    chunks += b"data" + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks
