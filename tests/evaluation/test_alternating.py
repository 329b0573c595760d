"""Documents of labels and images in turn: what counts as one, and what is measured of them."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from command import SHORT, command
from small import model, write_idx
from transfusion.data.document import Document, Media, Text
from transfusion.evaluation import alternating
from transfusion.evaluation.classifier import ConvolutionalClassifier
from transfusion.evaluation.suite import EvalContext
from transfusion.recipes import find
from transfusion.recipes.alternating import NAMES


class Brightness:
    """Gives an image the class of its brightness, in tenths."""

    digest, space = "brightness", "pixels"

    def classify(self, images: Tensor) -> Tensor:
        return (images.flatten(1).mean(1) * 10).round().long()


def turn(label: str, shown: int) -> tuple[Text, Media]:
    return Text(label), Media(torch.full((1, 4, 4), shown / 10))


WRITTEN = [
    Document((*turn("3", 3), *turn("7", 7))),
    Document((*turn(" 3 ", 4), *turn("7", 7), Text(""))),
    Document((*turn("1", 1), Text("7"))),
    Document((*turn("1", 1), *turn("none", 0))),
    Document((Text("5"),)),
]


def test_labels_and_both_images_are_counted_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alternating, "generate", lambda *args, **options: WRITTEN)
    context = EvalContext(samples=len(WRITTEN), classifier=Brightness(), class_names=NAMES)  # type: ignore[arg-type]
    result = alternating.score(model(), (), context)
    m = result.record.metrics
    assert (m["well_formed"].value, m["well_formed"].count) == (0.4, 5)
    assert (m["first_agreement"].value, m["first_agreement"].count) == (0.75, 4)
    assert (m["second_agreement"].value, m["second_agreement"].count) == (1.0, 2)
    assert m["label_1"].value == m["label_3"].value == m["label_7"].value == pytest.approx(1 / 3) and m["label_5"].value == 0
    assert m["labels_least"].value == 0 and m["labels_most"].value == pytest.approx(1 / 3) and m["label_1"].count == 6
    assert result.verdicts == ("++", "-+", "+", "+", "")
    with pytest.raises(ValueError, match="need a classifier"):
        alternating.score(model(), (), replace(context, classifier=None))


@pytest.mark.slow
def test_from_idx_files_to_the_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    monkeypatch.chdir(tmp_path)
    fit = ConvolutionalClassifier.fit
    monkeypatch.setattr(
        ConvolutionalClassifier, "fit", lambda *a, training, **kw: fit(*a, training=replace(training, epochs=1), **kw)
    )
    write_idx(Path("data"), 200)
    recipe = find("alternating")
    documents = recipe.documents(replace(recipe.run(), data="data"), lambda line: None)
    assert len(documents) == 200 and {len(d.media) for d in documents} == {2}
    assert all(text.content in NAMES for d in documents for text in d.segments if isinstance(text, Text))
    assert len({d.name for d in documents}) == 200
    quick = "--report.images 6 --sampler.num-steps 2"
    assert command(f"train alternating --data data --out run {SHORT} {quick} --trainer.sample-every 2") == 0
    assert json.loads(Path("run/report.json").read_text())["well_formed_count"] == 6
    assert command("evaluate run --suite alternating --samples 3 --sampler.num-steps 2") == 0
    records = [json.loads(path.read_text())["metrics"] for path in Path("run/records").glob("alternating*.json")]
    assert {metrics["well_formed"]["count"] for metrics in records} == {3, 6}
    assert all(metrics["classifier_accuracy"]["count"] == 200 for metrics in records)
