"""Classifiers: what they learn, how they are saved, what they refuse."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from transfusion.evaluation.classifier import Classifier, ClassifierTraining, ConvolutionalClassifier, SmallClassifier

SHORT = ClassifierTraining(epochs=2, batch_size=32)


def bars(count: int, side: int = 16, channels: int = 1, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Noise with a bright bar: horizontal (0) or vertical (1)."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(count, channels, side, side, generator=generator) - 1
    labels = torch.arange(count) % 2
    for image, label in zip(images, labels, strict=True):
        at = side // 4 + int(torch.randint(side // 2, (), generator=generator))
        (image if label == 0 else image.transpose(1, 2))[:, at] += 1
    return images, labels


@pytest.fixture(scope="module")
def classifier() -> ConvolutionalClassifier:
    return ConvolutionalClassifier.fit(*bars(200), seed=0, names=("horizontal", "vertical"), training=SHORT)


def test_it_learns_and_measures_its_accuracy(classifier: ConvolutionalClassifier) -> None:
    measured = classifier.measured(*bars(100, seed=1))
    assert measured.accuracy is not None and measured.accuracy.value > 0.95 and measured.accuracy.count == 100
    assert isinstance(classifier, Classifier) and classifier.accuracy is None and measured.digest == classifier.digest
    images, _ = bars(10)
    features = classifier.features(images)
    assert features.shape == (10, 128) and torch.equal(classifier.network.out(features).argmax(-1), classifier.classify(images))
    assert torch.allclose(classifier.features(images[3:4]), features[3:4], atol=1e-5)


def test_the_same_seed_gives_the_same_classifier() -> None:
    one, same, other = (ConvolutionalClassifier.fit(*bars(64), seed=s, training=SHORT).digest for s in (3, 3, 4))
    assert one == same != other


@pytest.mark.parametrize(
    "training",
    [ClassifierTraining(epochs=2, batch_size=32, flip=True), ClassifierTraining(epochs=1, shift=0.0, turn=0.0, zoom=0.0)],
)
def test_colour_and_other_settings(training: ClassifierTraining) -> None:
    steps = []
    classifier = ConvolutionalClassifier.fit(
        *bars(100, side=24, channels=3), seed=0, training=training, progress=lambda *s: steps.append(s)
    )
    assert classifier.names == ("0", "1") and classifier.classify(bars(3, 24, 3)[0]).shape == (3,)
    assert steps[-1][0] == steps[-1][1] == len(steps)


def test_it_comes_back_from_its_folder(classifier: ConvolutionalClassifier, tmp_path: Path) -> None:
    classifier = classifier.measured(*bars(50, seed=1))
    classifier.save(tmp_path / "classifier")
    again = ConvolutionalClassifier.load(tmp_path / "classifier")
    images, _ = bars(20, seed=2)
    assert torch.equal(again.features(images), classifier.features(images))
    assert (again.names, again.accuracy, again.digest) == (classifier.names, classifier.accuracy, classifier.digest)
    manifest = json.loads((tmp_path / "classifier" / "classifier.json").read_text())
    assert manifest["side"] == 16 and manifest["channels"] == 1 and manifest["names"] == ["horizontal", "vertical"]


def test_a_damaged_classifier_is_refused(classifier: ConvolutionalClassifier, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no classifier in"):
        ConvolutionalClassifier.load(tmp_path)
    classifier.save(tmp_path)
    manifest = json.loads((tmp_path / "classifier.json").read_text())
    for wrong in ({"digest": "0"}, {"side": 32}, {"names": ["one"]}, {"width": None}):
        (tmp_path / "classifier.json").write_text(json.dumps(manifest | wrong))
        with pytest.raises(ValueError, match="damaged"):
            ConvolutionalClassifier.load(tmp_path)
    (tmp_path / "classifier.json").write_text(json.dumps(manifest))
    (tmp_path / "classifier.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match="damaged"):
        ConvolutionalClassifier.load(tmp_path)


def test_other_images_are_refused(classifier: ConvolutionalClassifier) -> None:
    small = SmallClassifier(*bars(20))
    for either in (classifier, small):
        for shape in ((1, 20, 20), (3, 16, 16)):
            with pytest.raises(ValueError, match=f"{shape[0]} x {shape[1]}.*takes 1 x 16 x 16"):
                either.classify(torch.zeros(2, *shape))
        with pytest.raises(ValueError, match="NaN"):
            either.classify(torch.full((2, 1, 16, 16), torch.nan))


def test_unusable_training_data_is_refused() -> None:
    images, labels = bars(20)
    for wrong, message in (
        ((images[:, :, :8], labels), "square"),
        ((images[:, :, :4, :4], labels), "8 pixels"),
        ((images, labels[:5]), "each image its class"),
        ((images.clone().fill_(torch.nan), labels), "NaN"),
    ):
        with pytest.raises(ValueError, match=message):
            ConvolutionalClassifier.fit(*wrong, seed=0)
    with pytest.raises(ValueError, match="name every class"):
        ConvolutionalClassifier.fit(images, labels, seed=0, names=("one",))


def test_the_digest_of_the_small_classifier_is_that_of_its_data() -> None:
    images, labels = bars(40)
    one, same, other = (
        SmallClassifier(images, labels),
        SmallClassifier(images, labels),
        SmallClassifier(images, 1 - labels),
    )
    assert one.digest == same.digest != other.digest and isinstance(one, Classifier)
    assert torch.equal(one.features(images), images.flatten(1)) and (one.classify(images) == labels).all()


def test_settings_that_fit_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="at least"):
        ClassifierTraining(epochs=0)
    with pytest.raises(ValueError, match="at least"):
        ClassifierTraining(batch_size=1)
