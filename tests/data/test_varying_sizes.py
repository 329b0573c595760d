"""Pictures that keep their form: which size each gets, in whole patches, and that it is the size of what is loaded."""

import io
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from small import png
from transfusion.data.document import Document, Media, Text
from transfusion.data.learned import MOST_SIZES, LearnedDocuments
from transfusion.data.media import DecodedImage, EncodedImage, Fit
from transfusion.data.sources.read import read
from transfusion.data.survey import survey
from transfusion.data.transforms import DocumentTransform
from transfusion.modality import Modality

FIT = Fit((64, 64), 3, patch=(8, 8), largest=(96, 96))


def test_the_fit_of_a_modality_whose_sizes_vary() -> None:
    image = Modality(channels=3, shape=(64, 64), patch=(8, 8), largest=(96, 96))
    assert Fit.of((image,)) == FIT and Fit.of((replace(image, largest=None),)) == Fit((64, 64))


@pytest.mark.parametrize(
    ("own", "size"),
    [
        ((64, 64), (64, 64)),
        ((300, 300), (64, 64)),
        ((100, 200), (40, 88)),
        ((200, 100), (88, 40)),
        ((480, 640), (56, 72)),
        ((10, 1000), (8, 96)),
        ((1, 1), (64, 64)),
    ],
)
def test_the_nearest_size_in_whole_patches(own: tuple[int, int], size: tuple[int, int]) -> None:
    assert FIT.at(*own).size == size and FIT.at(*own).largest is None


def test_no_size_is_larger_or_has_more_slots_than_it_may() -> None:
    generator = np.random.default_rng(0)
    for _ in range(500):
        height, width = (int(n) for n in generator.integers(1, 400, 2))
        rows, columns = (extent // 8 for extent in FIT.at(height, width).size)
        assert 1 <= rows <= 12 and 1 <= columns <= 12 and rows * columns <= 64
        if 0.5 < height / width < 2:
            assert abs(math.log(rows / columns) - math.log(height / width)) < 0.2


def test_files_tables_and_pixels_say_the_size_that_they_load(tmp_path: Path) -> None:
    png(tmp_path / "a.png", size=(200, 100))
    upright = Image.fromarray(np.zeros((100, 200, 3), np.uint8))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    turned = io.BytesIO()
    upright.save(turned, "JPEG", exif=exif)
    for values, shape in (
        (EncodedImage(tmp_path / "a.png", FIT).checked(), (3, 40, 88)),
        (EncodedImage(tmp_path / "a.png", FIT), (3, 40, 88)),
        (EncodedImage(turned.getvalue(), FIT).checked(), (3, 88, 40)),
        (DecodedImage(np.zeros((100, 200), np.uint8), FIT), (3, 40, 88)),
    ):
        assert values.shape == shape == tuple(values.load().shape)
    varied = DocumentTransform(flip=True, crop=1.25)(Document((Media(EncodedImage(tmp_path / "a.png", FIT)),)), 0, 0, 0)
    assert varied.media[0].tensor().shape == (3, 40, 88)


def test_what_keeps_its_form_is_not_said_to_be_cut(tmp_path: Path) -> None:
    png(tmp_path / "a.png", size=(160, 80))
    for fit, lines in ((Fit((64, 64)), 1), (FIT, 0)):
        found = survey(read(tmp_path, fit, uncaptioned=True))
        assert sum("cut out of each" in line for line in found.lines()) == lines


def test_a_size_that_was_not_learned_is_doubted() -> None:
    def drawn(height: int, width: int) -> Document:
        return Document((Text("a"), Media(DecodedImage(np.zeros((height, width), np.uint8)))))

    learned = LearnedDocuments()
    assert not learned.doubt_size("image", (8, 8))
    learned.note([drawn(8, 8), drawn(8, 4), drawn(8, 8)])
    assert learned.sizes == {"image": {"8x8": 2, "8x4": 1}} and not learned.doubt_size("image", (8, 4))
    assert "never learned image of size 4x8" in learned.doubt_size("image", (4, 8))
    assert not learned.doubt_size("sound", (4,))
    learned.note(drawn(i, 1) for i in range(1, MOST_SIZES + 1))
    assert not learned.doubt_size("image", (4, 8)), "too many to be known"
