"""The recipe of sounds: captions and classes of its data, what is refused before training, its measure, and the whole way."""

import json
import wave
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch

from command import SHORT, command
from small import png, tone, wav, write_idx
from transfusion.api import Transfusion
from transfusion.codec.mel import MelConfig
from transfusion.config import ConfigError
from transfusion.data.corpus import captioned
from transfusion.data.document import Document, Media
from transfusion.data.vocabulary import Bytes, Vocabulary
from transfusion.evaluation import speech
from transfusion.evaluation.classifier import ClassifierTraining, ConvolutionalClassifier
from transfusion.evaluation.suite import ON_TRAINED, EvalContext
from transfusion.modality import Modality
from transfusion.model.network import ModelConfig
from transfusion.model_folder import TransfusionConfig
from transfusion.nn.config import TransformerConfig
from transfusion.recipes import find
from transfusion.recipes.speech import DIGITS, PARAPHRASES, captions, words
from transfusion.run.record import ReportConfig, Run

RECIPE = find("speech")
SOUND = Modality("sound", channels=64, shape=(16,), patch=(2,), rate=8000)
PITCHES = {"low": 300.0, "high": 2500.0}


def spoken(name: str, number: int) -> Document:
    values = torch.zeros(1, 2048)
    sound = torch.from_numpy(tone(PITCHES[name] * (1 + number / 100), seconds=0.2)).float()
    values[0, : len(sound)] = sound * 0.9**number
    return captioned(captions(name), Media(values, "sound"), f"{name} {number}")


class ByPitch:
    """Hears a sound as high where the upper half of its spectrogram is the brighter one."""

    space: ClassVar[str] = "classifier"
    digest = "by pitch"

    def classify(self, images: torch.Tensor) -> torch.Tensor:
        upper, lower = images[..., :32, :].mean((1, 2, 3)), images[..., 32:, :].mean((1, 2, 3))
        return (upper > lower).long()

    def features(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1)


def write_tones(folder: Path, count: int) -> None:
    """Folders `low` and `high` of short tones."""
    for name, hertz in PITCHES.items():
        (folder / name).mkdir(parents=True)
        for i in range(count):
            (folder / name / f"{i}.wav").write_bytes(wav(tone(hertz * (1 + i / 500), seconds=0.2)))


def run_of(data: Path | str, **settings: object) -> Run:
    return replace(RECIPE.run(), data=str(data), **settings)


def model() -> Transfusion:
    torch.manual_seed(0)
    network = ModelConfig((SOUND,), TransformerConfig(width=32, depth=1, num_heads=2), context_length=96)
    vocabulary = Vocabulary(Bytes().build([]), (SOUND,))
    sampler = replace(TransfusionConfig().sampler, num_steps=2)
    mel = MelConfig(rate=8000, iterations=4).build()
    return Transfusion(TransfusionConfig(network, sampler=sampler), vocabulary, autoencoder={"sound": mel}).eval()


def test_captions_are_words_or_digits() -> None:
    assert captions("7") == captions("7 jackson 32") == captions("seven")
    assert captions("seven") == tuple(p.format("seven") for p in PARAPHRASES) and captions("7 up")[0] == "7 up"


def test_words_are_classes_where_they_are_few() -> None:
    def of(*names: str, each: int = 8) -> list[Document]:
        return [captioned(captions(name), Media(torch.zeros(1, 256), "sound"), name) for name in names for _ in range(each)]

    assert words(of("yes", "two", "no", "0")) == ("zero", "two", "no", "yes")
    assert not words(of("yes", "no", each=7)) and not words(of("yes")) and not words([])
    assert not words(of("yes", "a")) and not words(of(*(f"w{i}" for i in range(101))))
    assert RECIPE.prompts(of("yes", "no")) == ["a voice says no", "a voice says yes", "no", "yes"]
    assert len(RECIPE.prompts(of(*map(str, range(10))))) == 20


def test_files_of_digits_are_read_and_some_are_held_out(tmp_path: Path) -> None:
    for digit in range(10):
        for i in range(12):
            (tmp_path / f"{digit}_theo_{i}.wav").write_bytes(wav(tone(200 + 50 * digit)))
    lines: list[str] = []
    documents, held_out = RECIPE.split(run_of(tmp_path), lines.append)
    assert words(documents) == DIGITS and len(documents) + len(held_out) == 120 and 1 <= len(held_out) < 30
    assert not {d.name for d in documents} & {d.name for d in held_out}
    assert any("are held out" in line for line in lines)


def test_what_is_done_to_sounds_is_said_before_training(tmp_path: Path) -> None:
    write_tones(tmp_path, 8)
    (tmp_path / "low" / "stereo.wav").write_bytes(wav(np.stack([tone(300), tone(310)], 1)))
    (tmp_path / "low" / "fast.wav").write_bytes(wav(tone(300, rate=16000), 16000))
    (tmp_path / "low" / "long.wav").write_bytes(wav(tone(300, seconds=1.5)))
    lines: list[str] = []
    documents = RECIPE.documents(run_of(tmp_path), lines.append)
    assert len(documents) == 19 and {d.media[0].values.shape for d in documents if d.media[0].values is not None} == {(1, 8192)}
    said = "\n".join(lines)
    for words_of in (
        "1 of 19 sounds have several channels",
        "resampled to 8,000 a second",
        "longer than 1.02 seconds and are cut",
    ):
        assert words_of in said


def test_what_is_no_sound_is_refused(tmp_path: Path) -> None:
    def refused(message: str, data: Path | str, **settings: object) -> None:
        with pytest.raises(ValueError, match=message):
            RECIPE.documents(run_of(data, **settings), lambda line: None)

    refused("needs --data PATH", "")
    refused("no data at", tmp_path / "nothing")
    png(tmp_path / "pictures" / "cat" / "a.png")
    refused("with pictures, such as cat/a.png, and speech learns sounds: transfusion train pictures", tmp_path / "pictures")
    write_idx(tmp_path, 20)
    refused("with pictures", tmp_path)
    (tmp_path / "texts.jsonl").write_text('{"segments": [{"text": "seven"}]}\n')
    refused("text alone", tmp_path / "texts.jsonl")
    write_tones(tmp_path / "tones", 8)
    silent = replace(RECIPE.run().model, modalities=(Modality("sound", channels=1, shape=(8192,), patch=(256,)),))
    refused("needs a modality 'sound' with a rate", tmp_path / "tones", model=silent)


def test_a_classifier_that_cannot_judge_is_refused_before_training(tmp_path: Path) -> None:
    write_tones(tmp_path / "tones", 8)
    images, labels = torch.rand(32, 1, 8, 8), torch.arange(32) % 2
    quick = ClassifierTraining(epochs=1)
    for names, message in ((("a", "b"), "has a, b; the captions of speech name high, low"), (("high", "low"), "1 x 8 x 8")):
        ConvolutionalClassifier.fit(images, labels, seed=0, names=names, training=quick).save(tmp_path / "judge")
        run = run_of(tmp_path / "tones", report=ReportConfig(classifier=str(tmp_path / "judge")))
        with pytest.raises((ConfigError, ValueError), match=message):
            RECIPE.task.check(run, RECIPE.documents(run, lambda line: None))  # type: ignore[union-attr]


def test_spectrograms_show_pitch_time_and_loudness() -> None:
    """Low pitches are at the bottom, silence is black, and sounds of another rate look alike."""
    low, high = (Media(torch.from_numpy(tone(hertz, seconds=0.5)).float()[None], "sound") for hertz in (300, 2500))
    images = speech.spectrograms([low, high], 8192, 8000)
    assert images.shape == (2, 1, 64, 64) and images.min() == -1 and images.max() <= 1
    rows = images[:, 0, :, :24].mean(-1).argmax(1)
    assert rows[0] > 45 and rows[1] < 20 and (images[..., 36:] == -1).all()
    fast = Media(torch.from_numpy(tone(300, seconds=0.5, rate=16000)).float()[None], "sound")
    assert speech.spectrograms([fast], 16384, 16000).shape == (1, 1, 64, 64)
    with pytest.raises(ValueError, match="bands"):
        speech.spectrograms([low], 8192, 500)


def test_the_measure_is_that_of_the_sounds_that_are_written() -> None:
    """Against the classifier on spectrograms of the drawn documents; what is missing is said."""
    trained = [spoken(name, i) for name in PITCHES for i in range(20)]
    images = speech.spectrograms([d.media[0] for d in trained], 2048, 8000)
    classifier = ByPitch()
    held_out = [spoken(name, i) for i in range(30, 33) for name in PITCHES]
    context = EvalContext(samples=6, classifier=classifier, class_names=tuple(PITCHES), trained=images)
    result = speech.score(model(), held_out, context)
    assert result.class_names == tuple(PITCHES) and result.record.suite == "speech"
    drawn = speech.spectrograms([d.media[-1] for d in result.documents], 2048, 8000)
    heard = classifier.classify(drawn)
    assert {d.text for d in result.documents} == {p.format(name) for p in PARAPHRASES[:3] for name in PITCHES}
    metrics, asked = result.record.metrics, torch.tensor([list(PITCHES).index(d.text.split()[-1]) for d in result.documents])
    assert metrics["agreement"].value == (heard == asked).float().mean()
    assert result.verdicts == tuple(list(PITCHES)[int(i)] for i in heard)
    assert metrics["classifier_accuracy"].value == metrics["classifier_accuracy_coded"].value == 1
    assert {"reading_accuracy", "caption_preference", "nearest_training"} <= set(metrics)
    assert "too few" in result.record.missing["frechet_classifier"]

    without = speech.score(model(), (), context).record
    assert "no sounds are held out" in without.missing["reading_accuracy"] and list(without.metrics) == ["agreement"]
    alone = speech.score(model(), held_out, EvalContext(samples=2)).record
    assert "no classifier" in alone.missing["agreement"] and "reading_accuracy" not in alone.metrics
    with pytest.raises(ValueError, match="no captions"):
        speech.score(model(), (), EvalContext())


def test_few_sounds_that_are_no_classes_are_measured_as_what_they_are(tmp_path: Path) -> None:
    """Nothing is held out of them, and no classifier can be fitted: both are said before the training."""
    for i in range(12):
        (tmp_path / f"sentence_{'abcdefghijkl'[i]}.wav").write_bytes(wav(tone(300 + 50 * i, seconds=0.2)))
    settings = RECIPE.run().model
    short = replace(settings, modalities=(replace(settings.modalities[0], shape=(2048,)),))
    run, lines = run_of(tmp_path, model=short), list[str]()
    documents, held_out = RECIPE.split(run, lines.append)
    said = "\n".join(lines)
    assert len(documents) == 12 and not held_out
    assert "nothing is held out of 12 documents" in said and "no classifier can be fitted" in said
    result = RECIPE.task.score(run, model(), EvalContext(samples=3))  # type: ignore[union-attr]
    preferred = result.record.metrics["caption_preference"]
    assert preferred.count == 12 and preferred.note.endswith(ON_TRAINED) and result.record.settings["measured"] == ON_TRAINED
    assert "no sounds are held out" in result.record.missing["reading_accuracy"] and len(result.documents) == 3


@pytest.mark.slow
def test_from_sounds_to_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    monkeypatch.chdir(tmp_path)
    write_tones(Path("tones"), 60)
    quick = "--report.images 4 --sampler.num-steps 2 --trainer.sample-every 2"
    assert command(f"train speech --data tones --out run {SHORT} {quick}") == 0
    assert "transfusion generate run --prompt low --out sounds" in capfd.readouterr().out
    report = json.loads(Path("run/report.json").read_text())
    assert report["agreement_count"] == 4 and report["classifier_accuracy"] > 0.9 and "reading_accuracy" in report
    for file in ("run/drawn/00000-1.wav", "run/samples/step-00000002/00000-1.wav"):
        with wave.open(file) as sound:
            assert (sound.getframerate(), sound.getnchannels(), sound.getnframes()) == (8000, 1, 8192)
    assert Path("run/samples.png").exists() and Path("run/classifier/classifier.json").exists()
    assert command("generate run --prompt high --out answers --sampler.num-steps 2") == 0
    assert json.loads(Path("answers/outputs.jsonl").read_text())["segments"] == [{"text": "high"}, {"sound": "00000-1.wav"}]
    Path("read.jsonl").write_text('{"segments": [{"sound": "answers/00000-1.wav"}]}\n')
    assert command("generate run --prompts read.jsonl --out texts --max-tokens 4") == 0
    assert command("evaluate run --suite task --samples 4 --sampler.num-steps 2") == 0
