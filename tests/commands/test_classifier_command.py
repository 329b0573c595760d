"""transfusion train classifier, from its command to the folder that holds it."""

import shutil
from pathlib import Path

import pytest

from command import command
from small import png, write_idx
from transfusion.evaluation.classifier import ConvolutionalClassifier

SHORT = "--training.epochs 1 --device cpu"


@pytest.mark.slow
def test_idx_files_and_their_own_held_out_part(capfd) -> None:
    write_idx(Path("data"), 200, zipped=True)
    assert command(f"train classifier --data data {SHORT}") == 0
    classifier = ConvolutionalClassifier.load("runs/classifier")
    assert classifier.names == tuple("0123456789") and classifier.accuracy is not None and classifier.accuracy.count == 200
    out = capfd.readouterr().out
    assert "saved in runs/classifier" in out and classifier.digest in out and str(classifier.accuracy) in out


def test_names_for_numbers(capfd) -> None:
    write_idx(Path("data"), 60)
    assert command(f"train classifier --data data --out one {SHORT} --names a b c d e f g h i j") == 0
    assert ConvolutionalClassifier.load("one").names == tuple("abcdefghij")
    assert command(f"train classifier --data data --out one {SHORT} --names a b") == 2
    assert "2 names for the 10 classes" in capfd.readouterr().err


def test_folders_named_for_classes(capfd) -> None:
    for i in range(60):
        png(Path("data") / ("cat", "big_dog")[i % 2] / f"{i}.png", i, size=(20, 16))
    assert command(f"train classifier --data data --out one --channels 3 --side 16 {SHORT} --dtype fp32") == 0
    classifier = ConvolutionalClassifier.load("one")
    assert classifier.names == ("big dog", "cat") and (classifier.network.channels, classifier.network.side) == (3, 16)
    assert classifier.accuracy is not None and 0 < classifier.accuracy.count < 20
    assert "a tenth of the images is held out" in capfd.readouterr().out


def test_captions_are_no_classes(capfd) -> None:
    for i in range(12):
        png(Path("data") / f"{i}.png", i)
        Path(f"data/{i}.txt").write_text(f"picture {i}")
    assert command(f"train classifier --data data {SHORT}") == 2
    assert "are no classes" in capfd.readouterr().err
    Path("texts.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n' * 5)
    assert command(f"train classifier --data texts.jsonl {SHORT}") == 2
    assert "one image and its class" in capfd.readouterr().err
    shutil.rmtree("data")
    assert command(f"train classifier --data data {SHORT}") == 1
    assert "no data at" in capfd.readouterr().err
    assert command("train classifier --datta data") == 2
    assert "data" in capfd.readouterr().err


@pytest.mark.slow
def test_the_digits_that_come_with_the_package(capfd) -> None:
    assert command("train classifier --device cpu --training.epochs 8") == 0
    classifier = ConvolutionalClassifier.load("runs/classifier")
    assert classifier.names[3] == "three" and classifier.accuracy is not None and classifier.accuracy.value > 0.95
    capfd.readouterr()
