"""Images with their captions in, a PNG with a grid of them out, for people to look at."""

from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from transfusion.data.media import to_image

CAPTION_LINES = 4
LINE, GAP = 12, 6
"""Pixels of a line of text, and between images."""


def image_grid(
    images: Sequence[Tensor],
    captions: Sequence[str],
    path: Path,
    *,
    labels: Sequence[str] = (),
    columns: int = 10,
    side: int = 72,
) -> None:
    """Write a PNG of images, Float[channels, height, width] in [-1, 1], each above its caption, which is cut to four lines of
    the image's width.

    Args:
        labels: a line for each image, below its caption.
        columns: images in a row of the grid.
        side: pixels of an image's longer side in the grid.
    """
    rows = -(-len(images) // columns)
    font = ImageFont.load_default(10)
    texts = [_wrap(caption, side, font) for caption in captions]
    if labels:
        texts = [[*lines, label] for lines, label in zip(texts, labels, strict=True)]
    heights = [side + LINE * max(map(len, texts[i * columns : (i + 1) * columns])) + GAP for i in range(rows)]
    tops = [GAP, *(GAP + height for height in accumulate(heights))]
    grid = Image.new("RGB", (columns * (side + GAP) + GAP, tops[-1]), "white")
    draw = ImageDraw.Draw(grid)
    for index, (image, lines) in enumerate(zip(images, texts, strict=True)):
        x, y = GAP + index % columns * (side + GAP), tops[index // columns]
        shown = to_image(image)
        method = Image.Resampling.NEAREST if max(shown.size) * 2 <= side else Image.Resampling.BICUBIC
        width, height = (max(round(side * n / max(shown.size)), 1) for n in shown.size)
        grid.paste(shown.resize((width, height), method), (x + (side - width) // 2, y + (side - height) // 2))
        for number, line in enumerate(lines):
            draw.text((x, y + side + number * LINE), line, fill="black", font=font)
    path.parent.mkdir(parents=True, exist_ok=True)
    grid.save(path)


def _wrap(text: str, width: int, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> list[str]:
    """The lines of a caption, none wider than the width; a word that is wider is cut, and what is left out becomes an
    ellipsis."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
            continue
        if lines[-1]:
            lines.append("")
        for character in word:
            if font.getlength(lines[-1] + character) > width:
                lines.append("")
            lines[-1] += character
    if len(lines) <= CAPTION_LINES:
        return lines
    last = lines[CAPTION_LINES - 1]
    while last and font.getlength(f"{last}...") > width:
        last = last[:-1]
    return [*lines[: CAPTION_LINES - 1], f"{last.rstrip()}..."]
