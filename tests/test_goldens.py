"""A refactor leaves the loss as it was: first losses of small runs, in float64, against numbers kept here.

A change of the method changes them on purpose: run with TRANSFUSION_WRITE_GOLDENS=1, and say why in LOG.md.
"""

import json
import os
from pathlib import Path

import pytest
import torch

from small import FREE, IMAGE, documents, model, picture
from transfusion.data.document import Document, Media, Text
from transfusion.data.tokenize import Coordinates
from transfusion.diffusion.process import PAPER, Diffusion

FILE = Path(__file__).parent / "goldens.json"
CASES = {
    "flow": lambda: model(IMAGE, double=True),
    "paper": lambda: model(IMAGE, double=True, diffusion=PAPER, coordinates=Coordinates("raster", axes=1)),
    "velocity": lambda: model(IMAGE, double=True, diffusion=Diffusion(prediction="velocity")),
    "sizes": lambda: model(FREE, double=True),
}


@pytest.mark.parametrize("name", CASES)
def test_losses_are_as_they_were(name: str) -> None:
    m = CASES[name]()
    docs = documents()
    if name == "sizes":
        docs.append(Document((Text("big"), Media(picture(9, 1, 8, 6)))))
    losses = m(m.batch(docs, seed=3))
    found = {"text": losses.text.value.item(), "media": losses.media.value.item()}
    kept = json.loads(FILE.read_text()) if FILE.exists() else {}
    if os.environ.get("TRANSFUSION_WRITE_GOLDENS"):
        FILE.write_text(json.dumps(kept | {name: found}, indent=1) + "\n")
        return
    for part, value in found.items():  # fp32 angles and noise: 1e-7 between machines
        assert value == pytest.approx(kept[name][part], rel=1e-6)


def test_losses_have_gradients_everywhere() -> None:
    m = model(IMAGE)
    m.loss(documents()).backward()
    missing = [name for name, p in m.named_parameters() if p.grad is None or p.grad.abs().sum() == 0]
    assert not missing


def test_the_media_loss_is_a_mean_over_items_and_the_text_loss_over_targets() -> None:
    """Whatever the share of either in the batch: more of one leaves the other's mean as it is."""
    m = model(IMAGE, double=True)
    few, many = m(m.batch([["a", picture(1)]])), m(m.batch([["a", picture(1)], ["some more text"], ["other text still"]]))
    assert torch.allclose(few.media.value, many.media.value) and many.text.count > few.text.count
    total = many.text.sum / many.text.count + 5.0 * many.media.sum / many.media.count
    assert torch.allclose(many.total(5.0), total)


def test_clean_items_take_no_loss_and_weights_scale() -> None:
    m = model(IMAGE, double=True)

    def media(item: Media):
        return m(m.batch([[item, "x"]])).media

    full = media(Media(picture(1)))
    assert media(Media(picture(1), times=(0.0, 0.0))).count == 0
    half = media(Media(picture(1), weight=0.5))
    assert torch.allclose(half.sum, full.sum / 2) and half.count == 1
