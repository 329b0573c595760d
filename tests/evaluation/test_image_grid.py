"""Image grids: a label takes a line below each caption."""

from pathlib import Path

import pytest
import torch
from PIL import Image, ImageFont

from transfusion.evaluation.image_grid import _wrap, image_grid


def test_labels_are_below_the_captions(tmp_path: Path) -> None:
    images, captions = [torch.zeros(1, 8, 8)] * 3, ["one", "two words and more of them", "three"]
    image_grid(images, captions, tmp_path / "plain.png", columns=2)
    image_grid(images, captions, tmp_path / "labelled.png", columns=2, labels=["7", "8", "9"])
    with Image.open(tmp_path / "plain.png") as plain, Image.open(tmp_path / "labelled.png") as labelled:
        assert labelled.size == (plain.size[0], plain.size[1] + 2 * 12)
    with pytest.raises(ValueError):
        image_grid(images, captions, tmp_path / "no.png", labels=["7"])


def test_captions_keep_to_the_width_and_rows_to_their_own_height(tmp_path: Path) -> None:
    width, font = 72, ImageFont.load_default(10)
    for text in (
        "picture_number_004_of_many.png",
        "one two",
        "W" * 200,
        "a caption of many more words than four lines of it can hold",
    ):
        lines = _wrap(text, width, font)
        assert len(lines) <= 4 and all(font.getlength(line) <= width for line in lines)
        whole = "".join(lines).replace(" ", "") == text.replace(" ", "")
        assert whole != lines[-1].endswith("..."), lines
    assert _wrap("", width, font) == [""] and _wrap("one two", width, font) == ["one two"]
    captions = ["a caption of many words that takes three lines", "", "", ""]
    image_grid([torch.zeros(1, 8, 8)] * 4, captions, tmp_path / "rows.png", columns=2)
    lines = len(_wrap(captions[0], width, font))
    with Image.open(tmp_path / "rows.png") as grid:
        assert lines > 1 and grid.height == 6 + 2 * (72 + 6) + 12 * (lines + 1)
