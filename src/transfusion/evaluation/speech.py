"""Words <-> sounds: do sounds say the word of their caption, and are real ones captioned by theirs?

agreement                   share of drawn sounds that the classifier hears as the word of their caption
classifier_accuracy         its accuracy on held-out real sounds
classifier_accuracy_coded   the same on those sounds after the model's codec, there and back: all that drawn ones can reach
reading_accuracy            share of held-out sounds whose caption names the right word and no other (`read.py`; where captions
                            name no words of few, `reading_cider`)
caption_preference, caption_gap, frechet_classifier, kernel_classifier, precision, recall, nearest_training: as in `draw.py`

What is judged is the sound that is written, never latents: it is analysed anew, into log-mel spectrograms of one form whatever
the model learns, which are images for the classifier and for people.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from transfusion.api import Transfusion
from transfusion.codec.mel import MelConfig
from transfusion.data.document import Document, Media
from transfusion.evaluation import read
from transfusion.evaluation.draw import Metrics, agreement, feature_metrics, nearest_training
from transfusion.evaluation.preference import caption_preference
from transfusion.evaluation.suite import (
    EvalContext,
    SuiteResult,
    caption,
    class_named,
    generate,
    make_record,
)

SIDE, FRAMES = 64, 62.5
"""Bands of a spectrogram, which is resized to as many frames; frames a second."""
BATCH = 100
"""Sounds that are analysed at a time."""
FLOOR, TOP = -80.0, -10.0
"""Decibels that are black and white: silence, and the loudest bands of near speech."""
COMPARED = ("frechet_classifier", "kernel_classifier", "precision", "recall")
NO_CLASSES = "captions are not single words of few, with 8 sounds or more each, so no classifier can be fitted"
NO_HELD_OUT = "no sounds are held out: give 100 documents or more, or Parquet files of which one is named test"


def spectrograms(sounds: Sequence[Media], samples: int, rate: int) -> Float[Tensor, "sound 1 SIDE SIDE"]:
    """Log-mel spectrograms in [-1, 1], low frequencies at the bottom, of sounds with silence behind them up to so many samples.
    Raises ValueError: the rate is too low for its bands."""
    hop = 2 * max(round(rate / FRAMES / 2), 1)
    codec = MelConfig(rate=rate, hop=hop, window=4 * hop, bands=SIDE, floor=FLOOR).build()
    length = -(-samples // hop) * hop
    found = []
    for first in range(0, len(sounds), BATCH):
        tensors = [sound.tensor().float() for sound in sounds[first : first + BATCH]]
        levels = codec.to_latents(torch.stack([F.pad(x, (0, length - x.shape[-1])) for x in tensors]))
        images = ((levels - FLOOR) / (TOP - FLOOR) * 2 - 1).clamp(-1, 1).flip(1)[:, None]
        found.append(F.interpolate(images, (SIDE, SIDE), mode="bilinear", antialias=True))
    return torch.cat(found)


def score(model: Transfusion, documents: Sequence[Document], context: EvalContext) -> SuiteResult:
    """Draw `context.samples` sounds from captions, every word in turn, with the model's sampler and guidance; read all
    documents.

    Args:
        documents: held-out sounds with their captions; none: the words alone are drawn. Of sounds that were trained on, which
            `context.held_out` denies, none is read.
        context: with a classifier of `spectrograms` and the names of its classes, or neither; `trained`: spectrograms of sounds
            that were trained on.

    Raises:
        ValueError: a model without sounds, nothing to draw, or drawn sounds with NaN.
    """
    sound = next((modality for modality in model.item_modalities if modality.rate), None)
    if sound is None:
        raise ValueError("this model has no modality of sounds")
    if not documents and not context.class_names:
        raise ValueError("there are no captions to draw from: give sounds with captions")
    samples, names, classifier = (sound.largest or sound.shape)[0], context.class_names, context.classifier
    captions = _captions(documents, names, context.samples)
    drawn = generate(model, captions, "speech", context, force=sound.name)
    images = spectrograms([document.media[-1] for document in drawn], samples, sound.rate)
    real = spectrograms([document.media[0] for document in documents], samples, sound.rate) if documents else None

    results, heard = Metrics(), [""] * len(drawn)
    if classifier is None:
        results.miss(NO_CLASSES, "agreement", "classifier_accuracy", *COMPARED)
    else:
        results.classifiers["classifier"] = classifier.digest
        asked, said = ([class_named(text, names) for text in texts] for texts in (captions, map(caption, documents)))
        results.measure(lambda: agreement(classifier, images, asked, real, said), "agreement")
        heard = [names[int(number)] for number in classifier.classify(images)]
        if real is not None:
            results.measure(lambda: feature_metrics(classifier, images, real, context.trained), *COMPARED)
            if sound.name in model.codecs.autoencoders:
                coded = spectrograms([_coded(model, document.media[0]) for document in documents], samples, sound.rate)
                accuracy = agreement(classifier, coded, said, None, [])["agreement"]
                results.metrics["classifier_accuracy_coded"] = accuracy
    if real is None:
        results.miss(
            NO_HELD_OUT, "reading_accuracy", "classifier_accuracy", "caption_preference", "nearest_training", *COMPARED
        )
    else:
        if context.held_out:
            found = read.score(model, documents, replace(context, suite="", samples=len(documents))).record
            for kept, of in ((results.metrics, found.metrics), (results.missing, found.missing)):
                kept |= {f"reading_{name}": value for name, value in of.items()}  # type: ignore[misc]
        else:
            results.miss(NO_HELD_OUT, "reading_accuracy")
        results.measure(
            lambda: caption_preference(model, documents, samples=len(documents), seed=context.seed, dtype=context.dtype),
            "caption_preference",
        )
        if (trained := context.trained) is not None:
            results.measure(lambda: nearest_training(images, real, trained), "nearest_training")
    record = make_record("speech", model, context, results.metrics, results.missing, results.classifiers)
    labels = (f"heard {word}" if word else "" for word in heard)
    shown = tuple(zip(images, captions, labels, strict=True))
    return SuiteResult(record, tuple(drawn), tuple(heard), shown, names)


def _captions(documents: Sequence[Document], names: Sequence[str], count: int) -> list[str]:
    """Captions to draw from: of every class in turn, and every paraphrase; without classes those of the documents."""
    if not documents:
        return [names[i % len(names)] for i in range(count)]
    groups: dict[int | None, list[Document]] = {}
    for document in documents:
        groups.setdefault(class_named(caption(document), names), []).append(document)
    classes = list(groups.values())
    turns = ((classes[i % len(classes)], i // len(classes)) for i in range(count))
    return [caption(of_class[turn % len(of_class)], turn) for of_class, turn in turns]


def _coded(model: Transfusion, sound: Media) -> Media:
    """A sound after the model's codec, there and back."""
    codec = model.codecs.autoencoders[sound.modality]
    return replace(sound, values=codec.decode(codec.encode(sound.tensor()[None].to(model.device)))[0].cpu())
