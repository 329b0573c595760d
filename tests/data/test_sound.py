"""Sounds are read from WAV files of every form, fitted to their modality, and written; all else is refused with a remedy."""

import json
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from small import png, tone, wav
from transfusion.data.corpus import media_digest, media_files
from transfusion.data.document import Document, Media, MediaError, Text
from transfusion.data.media import Fit, SoundFit
from transfusion.data.outputs import write_documents
from transfusion.data.sound import EncodedSound, resample, to_wav
from transfusion.data.sources.read import read
from transfusion.modality import Modality

SOUND = Modality("sound", channels=1, shape=(2400,), patch=(100,), largest=(4000,), rate=8000)
FIT = SoundFit("sound", 8000, 100, 4000)
MANY = Fit(sounds=(FIT,))


def open_(data: bytes | Path, fit: SoundFit = FIT) -> EncodedSound:
    return EncodedSound.open(data, fit, "it")


def load(data: bytes, fit: SoundFit = FIT) -> torch.Tensor:
    return open_(data, fit).load()


@pytest.mark.parametrize(
    ("bits", "floats", "tolerance"),
    [(8, False, 8e-3), (16, False, 4e-5), (24, False, 2e-7), (32, False, 1e-7), (32, True, 1e-7), (64, True, 1e-7)],
)
@pytest.mark.parametrize("extensible", [False, True])
def test_samples_of_every_form(bits: int, floats: bool, tolerance: float, extensible: bool) -> None:
    samples = tone(440)
    found = load(wav(samples, bits=bits, floats=floats, extensible=extensible))
    assert found.shape == (1, 2400) and found.dtype == torch.float32
    assert np.abs(found[0].numpy() - samples).max() < tolerance


def test_channels_are_mixed() -> None:
    left, right = tone(440), tone(700, level=0.3)
    found = load(wav(np.stack([left, right, right], 1), bits=24))
    assert np.abs(found[0].numpy() - (left + 2 * right) / 3).max() < 1e-6


@pytest.mark.parametrize("rate", [4000, 16000, 22050, 44100, 48000, 11111])
def test_a_tone_of_another_rate_stays_the_same_tone(rate: int) -> None:
    found = load(wav(tone(440, rate=rate), rate, 32, floats=True))[0].numpy()
    assert len(found) == 2400
    assert np.abs(found - tone(440))[200:-200].max() < 3e-3


def test_what_the_new_rate_cannot_hold_is_removed() -> None:
    assert np.abs(resample(tone(5000, rate=16000), 16000, 8000)[100:-100]).max() < 2e-3
    kept = resample(tone(3000, rate=16000), 16000, 8000)[100:-100]
    assert abs(np.abs(kept).max() - 0.5) < 0.01


def test_lengths_are_filled_up_and_cut() -> None:
    short = load(wav(tone(440, seconds=0.0263)))  # 210 samples
    assert short.shape == (1, 300) and short[0, :210].abs().max() > 0.4 and not short[0, 210:].any()
    long = wav(tone(440, seconds=5, rate=44100), 44100, 32, floats=True)
    assert open_(long).shape == (1, 4000) and open_(long).length == 40000
    whole = resample(tone(440, seconds=5, rate=44100), 44100, 8000)[:4000]  # only its beginning is read
    assert np.abs(load(long)[0].numpy() - whole).max() < 1e-6
    assert load(wav(tone(440)), SoundFit("sound", 8000, 3000, 3000)).shape == (1, 3000)


def test_the_form_of_a_modality() -> None:
    fixed = Modality("noise", channels=64, shape=(5000,), patch=(100,), rate=16000)
    fit = Fit.of((Modality("image", channels=1, shape=(4, 4), patch=(2, 2)), SOUND, fixed))
    assert fit == Fit((4, 4), 1, (FIT, SoundFit("noise", 16000, 5000, 5000)))
    assert Fit.of((SOUND,)) == MANY and MANY.sound("sound") == FIT and MANY.sound("noise") is None
    for shape, rate in (((4, 4), 8000), ((4,), -1), ((4,), 10**6)):
        with pytest.raises(ValueError, match="a sound has one axis and a rate"):
            Modality("sound", channels=1, shape=shape, patch=(2,) * len(shape), rate=rate)


def without_end(data: bytes) -> bytes:
    """The file of a recorder that was cut off before it could write the length."""
    at = data.index(b"data") + 4
    return data[:at] + b"\xff\xff\xff\xff" + data[at + 4 :]


def test_a_stream_whose_length_was_never_written() -> None:
    data = wav(tone(440))
    assert torch.equal(load(without_end(data)), load(data))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"fLaC" + bytes(50), "a sound in FLAC; only WAV is read.*ffmpeg -i IN"),
        (b"OggS" + bytes(50), "in Ogg"),
        (b"ID3\x03" + bytes(50), "in MP3"),
        (b"\0\0\0 ftypM4A " + bytes(50), "in MP4"),
        (b"FORM" + bytes(50), "in AIFF"),
        (b"", "no sound in WAV"),
        (b"\x89PNG" + bytes(50), "no sound in WAV"),
        (wav(tone(440)).replace(struct.pack("<H", 1), struct.pack("<H", 7), 1), "mu-law.*ffmpeg"),
        (wav(tone(440), bits=32, floats=True).replace(struct.pack("<HH", 3, 1), struct.pack("<HH", 9, 1), 1), "format 9"),
        (wav(np.zeros(0)), "empty sound"),
        (wav(tone(440))[:200], "cut off: .* bytes that its header names"),
        (wav(tone(440))[:40], "ends before its samples"),
        (wav(tone(440), rate=10), "10 samples a second"),
        (wav(np.zeros((9, 100))), "100 channels"),
    ],
)
def test_what_is_no_sound_is_refused_with_a_remedy(data: bytes, message: str) -> None:
    with pytest.raises(MediaError, match=f"(?s)it: .*{message}"):
        open_(data)


def test_numbers_that_are_not_finite() -> None:
    samples = tone(440)
    samples[7] = np.nan
    with pytest.raises(MediaError, match="NaN"):
        Media(open_(wav(samples, bits=32, floats=True)), "sound").tensor()


def test_a_file_that_is_gone_or_has_changed(tmp_path: Path) -> None:
    file = tmp_path / "a.wav"
    with pytest.raises(MediaError, match="no such file"):
        open_(file)
    file.write_bytes(wav(tone(440)))
    sound = open_(file)
    file.write_bytes(wav(tone(440), 16000))
    with pytest.raises(MediaError, match="has changed"):
        sound.load()


# ---- sources --------------------------------------------------------------------------------------------------------


def test_a_folder_of_sounds(tmp_path: Path) -> None:
    """Captions are the text beside, or the folder's name, or in the top folder the sound's own."""
    (tmp_path / "low tone").mkdir()
    for name in ("7_ann_0.wav", "b.wav", "low tone/c.WAV"):
        (tmp_path / name).write_bytes(wav(tone(440)))
    (tmp_path / "b.txt").write_text("a bell\n")
    corpus = read(tmp_path, MANY)
    assert [d.text for d in corpus] == ["7 ann 0", "a bell", "low tone"]
    assert {m.modality for d in corpus for m in d.media} == {"sound"} and not corpus.notes
    assert [f.name for f in media_files(corpus)] == ["7_ann_0.wav", "b.wav", "c.WAV"]


def test_other_containers_in_a_folder_are_named(tmp_path: Path) -> None:
    for i in range(40):
        (tmp_path / f"{i}.wav").write_bytes(wav(tone(440, 0.05)))
    (tmp_path / "x.flac").write_bytes(b"fLaC" + bytes(50))
    corpus = read(tmp_path, MANY)
    assert len(corpus) == 40 and "x.flac: a sound in FLAC" in corpus.unreadable[0]


def test_what_is_done_to_sounds_is_said(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(wav(np.stack([tone(440), tone(440)], 1)))
    (tmp_path / "b.wav").write_bytes(wav(tone(440, rate=16000), 16000))
    (tmp_path / "c.wav").write_bytes(wav(tone(440, 1.25, rate=44100), 44100))
    notes = read(tmp_path, MANY).notes
    assert notes == [
        "1 of 3 sounds have several channels: their mean is taken",
        "2 of 3 sounds are resampled to 8,000 a second, from 16,000 (1 sounds), 44,100 (1 sounds)",
        "1 of 3 sounds are longer than 0.5 seconds and are cut there; the longest has 1.25: to learn them whole, the "
        "modality's largest 10000, with --packing.row-length and --model.context-length that hold it",
    ]
    fit = Fit.of((Modality("image", channels=1, shape=(4, 4), patch=(2, 2)), replace(SOUND, largest=None, shape=(4000,))))
    assert fit is not None and "to learn them whole, --model.modalities.1.shape 12000, with" in read(tmp_path, fit).notes[-1]


def test_a_table_of_sounds(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    audio = pa.array([{"bytes": wav(tone(440)), "path": "a.wav"}, {"bytes": wav(tone(660)), "path": "b.wav"}])
    pq.write_table(pa.table({"audio": audio, "text": ["low", "high"], "label": [0, 1]}), tmp_path / "train.parquet")
    corpus = read(tmp_path, MANY)
    assert [d.text for d in corpus] == ["low", "high"] and corpus[1].media[0].modality == "sound"
    assert np.abs(corpus[1].media[0].tensor()[0].numpy() - tone(660)).max() < 1e-4
    other = read(tmp_path, MANY)
    other.documents.reverse()
    assert media_digest(corpus) == media_digest(read(tmp_path, MANY)) != media_digest(other)
    with pytest.raises(ValueError, match=r"holds sounds.*transfusion train speech"):
        read(tmp_path, Fit((8, 8)))
    pq.write_table(pa.table({"words": ["low", "high"]}), tmp_path / "train.parquet")
    with pytest.raises(ValueError, match="needs a column audio"):
        read(tmp_path, MANY)


def test_lines_with_sounds_in_both_forms(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(wav(tone(440)))
    lines = [{"segments": [{"sound": "a.wav", "use": "read"}, {"text": "a"}]}, {"sound": "a.wav", "text": "b"}]
    (tmp_path / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    first, second = read(tmp_path, MANY)
    assert first.media[0].use == "read" and second.text == "b" and len(second.media) == 1
    with pytest.raises(ValueError, match=r"a\.wav: a sound, and the model has no modality 'sound' of sounds"):
        read(tmp_path, Fit((8, 8)))


def test_a_folder_of_sounds_where_pictures_are_wanted(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(wav(tone(440)))
    with pytest.raises(ValueError, match=r"it holds sounds, such as a\.wav.*transfusion train speech"):
        read(tmp_path, Fit((8, 8)))
    png(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a picture with its sound")
    assert [d.name for d in read(tmp_path, Fit((8, 8)))] == ["a.png"]


def test_written_sounds_are_read_back(tmp_path: Path) -> None:
    sound = torch.from_numpy(tone(440)[None].astype(np.float32))
    documents = [Document((Text("a"), Media(sound, "sound"))), Document((Media(sound * 3, "sound"), Media(sound, "other")))]
    write_documents(documents, tmp_path, (SOUND,))
    assert sorted(f.name for f in tmp_path.iterdir()) == ["00000-1.wav", "00001-0.wav", "00001-1.npy", "outputs.jsonl"]
    first, second = read(tmp_path / "outputs.jsonl", MANY)
    assert (first.media[0].tensor() - sound).abs().max() < 4e-5
    assert (second.media[0].tensor() - (sound * 3).clamp(-1, 1)).abs().max() < 4e-5
    with pytest.raises(ValueError, match=r"a sound is \(1, samples\)"):
        to_wav(sound[0], 8000)
