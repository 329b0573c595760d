"""What is found out of pictures before anything is chosen for them."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from transfusion.data.document import Document, Media
from transfusion.data.media import DecodedImage, Fit
from transfusion.data.sources.read import read
from transfusion.data.survey import Survey, survey

FIT = Fit((16, 16))


def picture(name: str, size: tuple[int, int] = (40, 20), *, mode: str = "RGB", seed: int = 0, grey: bool = False) -> None:
    """An image of noise; `grey`: of equal channels."""
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    channels = {"L": 1, "RGB": 3, "RGBA": 4, "CMYK": 4}[mode]
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], channels), dtype=np.uint8)
    if grey:
        pixels[:] = pixels[..., :1]
    Image.fromarray(pixels.squeeze(), mode).save(path)


def found(path: str = "data") -> Survey:
    return survey(read(path, FIT, uncaptioned=True))


def caption(name: str, text: str) -> None:
    Path(name).write_text(text)


def test_numbers_sizes_and_captions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for i, size in enumerate(((40, 20), (30, 30), (64, 90))):
        picture(f"data/{i}.png", size, seed=i)
        caption(f"data/{i}.txt", ("a cat", "a cat", "a dog on the left side")[i])
    picture("data/copy.png", (40, 20), seed=0)
    s = found()
    assert (s.pictures, s.captioned, s.captions, s.repeated) == (4, 3, 2, 1) and s.colour and s.widest == 2.0
    assert (s.sides.least, s.sides.median, s.sides.most) == (20, 25, 64)
    assert (s.words.least, s.words.median, s.words.most) == (2, 2, 6) and s.names_sides == pytest.approx(1 / 3)
    lines = "\n".join(s.lines())
    assert "4 pictures, in colour, shorter sides of 25 (20 to 64) pixels" in lines
    assert (
        "1 of them has no caption: it is learned without one (copy.png)" in lines
        and "2 different ones" in lines
        and "1 picture is a copy of another" in lines
    )
    assert "up to 2.0 times as long as wide" in lines


def test_one_picture_is_spoken_of_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    picture("data/0.png", (30, 30))
    caption("data/0.txt", "cat")
    lines = list(found().lines())
    assert lines == ["data: 1 picture, in colour, shorter side of 30 pixels", "a caption of one word"]


def test_odd_pictures_are_named_with_their_fate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    picture("data/a/clear.png", mode="RGBA")
    picture("data/a/inks.jpg", mode="CMYK")
    Image.fromarray(np.full((20, 20), 40_000, np.uint16)).save("data/a/deep.png")
    frames = [Image.fromarray(np.full((20, 20, 3), i, np.uint8)) for i in (0, 255)]
    frames[0].save("data/a/moving.webp", save_all=True, append_images=frames[1:], lossless=True)
    s = found()
    assert (s.transparent, s.inks, s.deep, s.moving) == (1, 1, 1, 1)
    lines = "\n".join(s.lines())
    for fate in ("blended with white", "scaled to 8", "red, green and blue", "first frame is taken", "all captions are alike"):
        assert fate in lines
    assert s.is_uncaptioned


def test_grey_is_seen_as_grey_whatever_its_file_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    picture("data/a.png", mode="L")
    picture("data/b.png", grey=True)
    assert not found().colour
    picture("data/c.png", seed=3)
    assert found().colour


def test_pictures_in_memory_and_none_at_all() -> None:
    one = Document((Media(DecodedImage(np.zeros((8, 12), np.uint8), FIT)),))
    s = survey([one, one])
    assert (s.pictures, s.repeated, s.captioned) == (2, 1, 0) and not s.colour and s.is_uncaptioned
    with pytest.raises(ValueError, match="has no pictures"):
        survey([Document(())])
