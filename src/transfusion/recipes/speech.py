"""Spoken digits, or other words: sounds of a second with their captions (--data).

transfusion train speech --data PATH

PATH is a folder of WAV files, JSONL or Parquet. Sounds are learned as log-mel spectrograms, drawn from captions and read. On
the Free Spoken Digit Dataset, 15 minutes of one core: 0.998 of the drawn sounds are the digit of their caption to a classifier
of real recordings, 0.997 of the held-out recordings are read.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from transfusion import rng
from transfusion.api import Transfusion
from transfusion.codec.mel import MelConfig
from transfusion.config import ConfigError
from transfusion.data.document import Document
from transfusion.data.loader import PackingConfig
from transfusion.data.media import Fit
from transfusion.data.sources.latents import refuse_latents
from transfusion.data.sources.read import has_held_out, read
from transfusion.data.transforms import ConditionDropout, DocumentTransform
from transfusion.data.vocabulary import BPE
from transfusion.diffusion.guidance import Guidance
from transfusion.diffusion.sampler import Euler
from transfusion.evaluation import speech
from transfusion.evaluation.classifier import ClassifierTraining, ConvolutionalClassifier
from transfusion.evaluation.suite import EvalContext, Progress, SuiteResult, class_named
from transfusion.modality import SOUND, Modality
from transfusion.model.network import ModelConfig
from transfusion.nn.config import TransformerConfig
from transfusion.run.judge import fitted_classifier, kept_classifier
from transfusion.run.recipe import Recipe, SuiteTask
from transfusion.run.record import ReportConfig, Run
from transfusion.train.device import pick_dtype
from transfusion.train.log import LogFn
from transfusion.train.optimizer import MuonConfig
from transfusion.train.trainer import CheckpointConfig, TrainerConfig

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
NUMBERED = re.compile(r"(\d)( \w+ \d+)?")
"""A caption that is a digit, or the name of a file of the Free Spoken Digit Dataset, 7_jackson_32.wav."""
PARAPHRASES = ("{}", "a voice says {}", "someone says {}", "the spoken word {}")
MOST_CLASSES, LEAST_SOUNDS = 100, 8
"""Words that a classifier tells apart, at most; sounds of each, at least."""
CLASSIFIER = ClassifierTraining(shift=0.08, turn=0.0, zoom=0.05)


def run() -> Run:
    """The settings."""
    sound = Modality(SOUND, channels=1, shape=(8192,), patch=(256,), rate=8000)
    return Run(
        recipe="speech",
        held_out=0.1,
        sound=MelConfig(),
        tokenizer=BPE(384),
        model=ModelConfig(
            modalities=(sound,),
            transformer=TransformerConfig(width=192, depth=6, num_heads=6),
            media_weight=3.0,
            context_length=256,
        ),
        transform=DocumentTransform(image_first=0.5, condition_dropout=ConditionDropout(text=0.1)),
        packing=PackingConfig(row_length=1024, rows=2),
        trainer=TrainerConfig(steps=1200, ema_decay=0.998, sample_every=300),
        optimizer=MuonConfig(lr=3e-3, warmup=100, weight_decay=0.05),
        checkpoint=CheckpointConfig(every=200, keep=2),
        sampler=Euler(num_steps=25, shift=2.0),
        guidance=Guidance(text=2.0),
        report=ReportConfig(images=500),
    )


def captions(text: str) -> tuple[str, ...]:
    """The paraphrases of a word; a digit becomes its word."""
    found = NUMBERED.fullmatch(text)
    return tuple(paraphrase.format(DIGITS[int(found[1])] if found else text) for paraphrase in PARAPHRASES)


def documents(run: Run, log: LogFn) -> Sequence[Document]:
    """The captioned sounds of a path; unreadable ones are logged. Raises ConfigError without `--data`, for anything but sounds,
    or where the model has no modality of sounds."""
    if not run.data:
        raise ConfigError("speech needs --data PATH: a folder of WAV files, a .jsonl or a .parquet file")
    refuse_latents(run.data, "speech")
    corpus = read(run.data, _fit(run), captions)
    if others := [d.name for d in corpus if any(media.modality != SOUND for media in d.media)]:
        raise ConfigError(
            f"{run.data} holds {len(others):,} documents with pictures, such as {others[0]}, and speech learns sounds: "
            "transfusion train pictures learns them"
        )
    if not any(document.media for document in corpus):
        raise ConfigError(f"{run.data} holds text alone, and speech learns sounds: give WAV files with captions")
    corpus.report(log)
    if not words(list(corpus)):
        log(f"note: {speech.NO_CLASSES}: what drawn sounds say will not be judged")
    return corpus


def held_out(run: Run) -> Sequence[Document]:
    """The held-out split of the data; empty where it has none."""
    return read(run.data, _fit(run), captions, train=False) if has_held_out(run.data) else ()


def _fit(run: Run) -> Fit:
    fit = Fit.of(run.model.modalities)
    if fit is None or fit.sound(SOUND) is None:
        raise ConfigError(f"speech needs a modality {SOUND!r} with a rate, for example --model.modalities.0.rate 8000")
    return fit


def words(documents: Sequence[Document]) -> tuple[str, ...]:
    """The captions of documents, as names of classes: digits by their numbers, then others by the alphabet. Empty where they
    are no classes: too many, of too few sounds, or words of the paraphrases."""
    counts = Counter(document.text for document in _spoken(documents))
    names = sorted(counts, key=lambda name: (DIGITS.index(name) if name in DIGITS else len(DIGITS), name))
    few = 2 <= len(names) <= MOST_CLASSES and min(counts.values()) >= LEAST_SOUNDS
    said = ((i, text) for i, name in enumerate(names) for text in captions(name))
    return tuple(names) if few and all(class_named(text, names) == i for i, text in said) else ()


def prompts(documents: Sequence[Document]) -> list[str]:
    """Two captions of each word; where captions are no words of few, 20 of them."""
    names = words(documents) or tuple(dict.fromkeys(document.text for document in _spoken(documents)))
    return [paraphrase.format(name) for paraphrase in PARAPHRASES[1::-1] for name in names[:: max(len(names) // 10, 1)][:10]]


def check(run: Run, documents: Sequence[Document]) -> None:
    """Refuse a rate that has no spectrograms, and a classifier that cannot judge them. Raises ConfigError, ValueError."""
    spectrogram = _images(run, _spoken(documents)[:1])
    if (names := words(documents)) and (classifier := kept_classifier(run, names)):
        classifier.classify(spectrogram)


def score(run: Run, model: Transfusion, context: EvalContext) -> SuiteResult:
    """Draw and read, judged by a classifier of the words that the run was trained on. Where captions are no such words and none
    are held out, what was trained on is drawn and measured, and said to be."""
    trained, kept = (_spoken(found) for found in RECIPE.split(run, lambda line: None))
    if not kept and not words(trained):
        kept, context = trained, replace(context, held_out=False)
    order = rng.generator(rng.key("evaluate", context.seed)).permutation(len(kept))[: run.report.readings or len(kept)]
    if names := words(trained):
        images = _images(run, trained)

        def fit(run: Run, progress: Progress) -> ConvolutionalClassifier:
            labels = torch.tensor([names.index(document.text) for document in trained])
            dtype = pick_dtype(run.dtype, images.device)
            return ConvolutionalClassifier.fit(
                images, labels, seed=0, names=names, training=CLASSIFIER, dtype=dtype, progress=progress
            )

        classifier = context.classifier or fitted_classifier(run, names, fit)
        context = replace(context, classifier=classifier, class_names=names, trained=images)
    return speech.score(model, [kept[i] for i in order], context)


def _spoken(documents: Sequence[Document]) -> list[Document]:
    """Documents of one sound and a caption."""
    return [document for document in documents if len(document.media) == 1 and document.text]


def _images(run: Run, documents: Sequence[Document]) -> Tensor:
    sound = next(modality for modality in run.model.modalities if modality.name == SOUND)
    return speech.spectrograms([document.media[0] for document in documents], (sound.largest or sound.shape)[0], sound.rate)


RECIPE = Recipe(run, documents, prompts, SuiteTask(score, check), held_out=held_out)
