"""Sheets: pictures with their captions, for people to look at."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from transfusion.data.media import to_image


def sheet(
    pictures: Sequence[Tensor],
    captions: Sequence[str],
    path: Path,
    *,
    labels: Sequence[str] = (),
    columns: int = 10,
    side: int = 72,
) -> None:
    """Write a PNG of pictures (Float[channels, height, width] in [-1, 1]), each over its caption.

    Args:
        labels: a line for each picture to stand under its caption, such as its seed.
        side: pixels of a picture on the sheet.
    """
    rows = -(-len(pictures) // columns)
    font = ImageFont.load_default(10)
    lines = [_wrap(caption, side, font) for caption in captions]
    if labels:
        lines = [[*words, label] for words, label in zip(lines, labels, strict=True)]
    line, gap = 12, 6
    high = side + line * max(len(one) for one in lines) + gap
    image = Image.new("RGB", (columns * (side + gap) + gap, rows * high + gap), "white")
    draw = ImageDraw.Draw(image)
    for index, (picture, caption) in enumerate(zip(pictures, lines, strict=True)):
        x, y = gap + index % columns * (side + gap), gap + index // columns * high
        one = to_image(picture)
        pixelated = max(one.size) * 2 <= side
        image.paste(one.resize((side, side), Image.Resampling.NEAREST if pixelated else Image.Resampling.BICUBIC), (x, y))
        for number, words in enumerate(caption):
            draw.text((x, y + side + number * line), words, fill="black", font=font)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def _wrap(text: str, width: int, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines[:4]
