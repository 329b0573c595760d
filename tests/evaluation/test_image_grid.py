"""Image grids: a label takes a line below each caption."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from transfusion.evaluation.image_grid import image_grid


def test_labels_are_below_the_captions(tmp_path: Path) -> None:
    images, captions = [torch.zeros(1, 8, 8)] * 3, ["one", "two words and more of them", "three"]
    image_grid(images, captions, tmp_path / "plain.png", columns=2)
    image_grid(images, captions, tmp_path / "labelled.png", columns=2, labels=["7", "8", "9"])
    with Image.open(tmp_path / "plain.png") as plain, Image.open(tmp_path / "labelled.png") as labelled:
        assert labelled.size == (plain.size[0], plain.size[1] + 2 * 12)
    with pytest.raises(ValueError):
        image_grid(images, captions, tmp_path / "no.png", labels=["7"])
