"""The codec of sound: what its latents mean, how near the sound comes back, and that models carry it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from small import model, tone
from transfusion.api import Transfusion
from transfusion.codec.autoencoders import load_autoencoder
from transfusion.codec.codecs import Codecs, latent_form
from transfusion.codec.mel import DEVIATION, MEAN, Mel, MelConfig, triangles
from transfusion.config import ConfigError
from transfusion.data.document import Document, Media, Text
from transfusion.diffusion.sampler import Euler
from transfusion.modality import Modality
from transfusion.model.network import ModelConfig
from transfusion.run.latents import on_latents, open_autoencoder
from transfusion.run.record import Run

SETTINGS = MelConfig(rate=8000)
SOUND = Modality("sound", channels=1, shape=(2048,), patch=(256,), largest=(4096,), rate=8000)


def sound(*parts: np.ndarray) -> Tensor:
    return torch.from_numpy(np.concatenate(parts).astype(np.float32))[None, None]


def decibels(latents: Tensor) -> Tensor:
    return latents * DEVIATION + MEAN


def voice() -> Tensor:
    """A second of harmonics that glide from 120 to 200 Hz, in three formants, loud and soft."""
    time = np.arange(8192) / 8000
    pitch = 120 + 80 * time
    phase = 2 * np.pi * np.cumsum(pitch) / 8000
    waves = np.zeros_like(time)
    for n in range(1, 20):
        hertz = n * pitch
        strength = sum(np.exp(-(((hertz - centre) / 300) ** 2)) for centre in (500, 1500, 2500))
        waves += strength * np.sin(n * phase) * (hertz < 4000)
    return sound(0.05 * waves * (1.2 + np.sin(2 * np.pi * 3 * time)))


def test_a_frame_a_hop_and_a_level_in_decibels() -> None:
    codec = SETTINGS.build()
    latents = codec.encode(sound(tone(1000, 0.512, level=0.1)))
    assert latents.shape == (1, 64, 32) and codec.latent_shape((4096,)) == (64, 32)
    levels = decibels(latents)[0, :, 8:24]
    band = int(triangles(SETTINGS)[:, 64].argmax())  # 1 kHz is frequency 64 of 257
    assert int(levels.mean(1).argmax()) == band
    assert abs(float(levels[band].mean()) + 20) < 6  # -20 dB, of which a band as wide as some frequencies takes the mean
    assert (levels[40:] < -70).all()
    assert torch.allclose(decibels(codec.encode(torch.zeros(1, 1, 1024))), torch.tensor(-80.0))
    louder = decibels(codec.encode(sound(tone(1000, 0.512, level=0.2))))[0, band, 8:24] - levels[band]
    assert torch.allclose(louder, torch.tensor(6.0206), atol=0.02)


def test_sounds_come_back() -> None:
    """Magnitudes nearly, phases anew: a tone keeps its pitch and level, a voice its bands to 4.5 dB (measured: 3.5)."""
    codec = SETTINGS.build()
    again = codec.decode(codec.encode(sound(tone(700, 0.512))))
    assert again.shape == (1, 1, 4096)
    spectrum = torch.fft.rfft(again[0, 0, 1024:3072] * torch.hann_window(2048)).abs()
    assert abs(int(spectrum.argmax()) - 700 * 2048 / 8000) <= 4 and 0.3 < float(again.abs().amax()) < 0.8
    latents = codec.encode(voice())
    once, twice = codec.decode(latents), codec.decode(latents)
    assert torch.equal(once, twice)
    assert float((codec.encode(once) - latents).square().mean().sqrt()) * DEVIATION < 4.5
    assert not torch.allclose(once, voice(), atol=0.01)
    assert float(codec.decode(codec.encode(torch.zeros(1, 1, 2048))).abs().max()) < 1e-3


def test_more_iterations_come_nearer() -> None:
    errors = []
    for iterations in (0, 4, 64):
        codec = replace(SETTINGS, iterations=iterations).build()
        latents = codec.encode(voice())
        errors.append(float((codec.encode(codec.decode(latents)) - latents).square().mean()))
    assert errors[0] > 2 * errors[1] > 2 * errors[2]


def test_bands_cover_all_frequencies() -> None:
    found = triangles(replace(SETTINGS, bands=40))
    assert np.allclose(found.sum(1), 1) and (found[:, 1:-1].sum(0) > 0).all() and (np.diff(found.argmax(1)) > 0).all()
    with pytest.raises(ValueError, match=r"of 300 bands lie between.*fewer bands, or a longer window"):
        replace(SETTINGS, bands=300).build()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 128}, "window must be 256 to"),
        ({"hop": 3, "window": 512}, "must be even"),
        ({"floor": 0.0}, "floor must be"),
        ({"rate": -1}, "rate must be"),
        ({"bands": 0}, "bands must be"),
    ],
)
def test_settings_that_make_no_sense(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MelConfig(**options)  # type: ignore[arg-type]


def test_it_is_kept_in_a_folder(tmp_path: Path) -> None:
    codec = SETTINGS.build().freeze()
    codec.save(tmp_path)
    again = load_autoencoder(tmp_path)
    assert isinstance(again, Mel) and again.digest == codec.digest and again.rate == 8000
    x = sound(tone(300, 0.128))
    assert torch.equal(again.encode(x), codec.encode(x)) and torch.equal(
        again.decode(codec.encode(x)), codec.decode(codec.encode(x))
    )
    assert replace(SETTINGS, hop=64).build().digest != codec.digest
    with pytest.raises(ValueError, match="needs the rate"):
        MelConfig().build()


# ---- in a model -----------------------------------------------------------------------------------------------------


def test_a_model_draws_reads_and_keeps_sounds(tmp_path: Path) -> None:
    codec = SETTINGS.build()
    small = model(latent_form(SOUND, codec), autoencoder={"sound": codec}, coordinates=COORDINATES)
    assert small.item_modalities == (SOUND,) and small.config.model.modalities[0].channels == 64
    documents = [Document((Text("low"), Media(sound(tone(300, n / 8000))[0], "sound"))) for n in (512, 1024, 4096)]
    documents.append(Document((Media(sound(tone(300, 256 / 8000))[0], "sound"), Text("low"))))
    assert small.loss(documents).isfinite()
    (drawn,) = small.generate("low", force="sound", seed=1, sampler=Euler(3))
    assert drawn.media[0].tensor().shape == (1, 2048)
    small.save_pretrained(tmp_path)
    again = Transfusion.from_pretrained(tmp_path)
    assert torch.equal(
        again.generate("low", force="sound", seed=1, sampler=Euler(3))[0].media[0].tensor(), drawn.media[0].tensor()
    )
    (read,) = again.generate(documents[3].media[0], max_items=0, max_tokens=3)
    assert len(read.media) == 1
    with pytest.raises(ValueError, match=r"sounds of 16,000 samples a second, its codec takes 8,000"):
        Codecs({"sound": codec}, (replace(latent_form(SOUND, codec), rate=16000),))


COORDINATES = model(SOUND).config.model.coordinates


def test_a_run_on_latents_of_sounds() -> None:
    run = Run("speech", model=ModelConfig((SOUND, Modality("other", channels=2, shape=(8,), patch=(2,)))), sound=MelConfig())
    found = on_latents(run, None).model.modalities
    assert found[0] == Modality("sound", channels=64, shape=(16,), patch=(2,), largest=(32,), rate=8000)
    assert found[1] == run.model.modalities[1]
    assert on_latents(replace(run, sound=type(Run("x").sound)()), None).model.modalities == run.model.modalities
    clipped = on_latents(replace(run, model=ModelConfig((SOUND,)), sampler=Euler(clip=1.0)), None).sampler.clip
    assert clipped == pytest.approx(65 / 15)
    with pytest.raises(ConfigError, match="16,000 samples a second, and sounds of 8,000"):
        open_autoencoder(replace(run, sound=MelConfig(rate=16000)))
    with pytest.raises(ConfigError, match="multiple of"):
        open_autoencoder(replace(run, sound=MelConfig(hop=96, window=384)))
