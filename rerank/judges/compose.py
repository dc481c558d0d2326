"""Images of questions: squares, and a canvas that shows a photo and crops at once."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from jzi.rerank.question import LETTERS, Picture, Question

#: Side of a canvas, pixels: four of the squares of 336 that LLaVA-NeXT cuts it into.
CANVAS = 672

#: Gray around images that do not fill their place.
GRAY = 127


def squared(picture: Picture) -> Picture:
    """Pad a picture with gray to a square; for models that would cut or stretch it to one."""
    rows, cols, _ = picture.pixels.shape
    if rows == cols:
        return picture
    side = max(rows, cols)
    square = np.full((side, side, 3), GRAY, np.uint8)
    top, left = (side - rows) // 2, (side - cols) // 2
    square[top : top + rows, left : left + cols] = picture.pixels
    return Picture(square)


def canvas(question: Question, side: int = CANVAS) -> Picture:
    """Draw a question's photo and crops onto one square image.

    The photo fills the upper half; of two crops the first is in the lower left, the second in the lower right; a
    single one is in the lower left; more are a grid in the lower half. None is stretched. Several crops have letters.

    Args:
        question: of any kind.
        side: of the canvas, pixels.
    """
    half = side // 2
    drawn = Image.new("RGB", (side, side), (GRAY, GRAY, GRAY))
    _paste(drawn, question.photo, 0, 0, side, half)
    count = len(question.crops)
    cols = max(range(1, max(count, 2) + 1), key=lambda cols: (_cell(cols, count, side), -cols))
    cell = _cell(cols, count, side)
    for i, crop in enumerate(question.crops):
        left, top = i % cols * cell, half + i // cols * cell
        _paste(drawn, crop, left, top, cell, cell)
        if count > 1:
            _write(drawn, LETTERS[i], left, top, max(cell // 8, 8))
    return Picture(np.asarray(drawn))


def _cell(cols: int, count: int, side: int) -> int:
    """Side of the squares of a grid in the lower half, pixels."""
    return min(side // cols, side // 2 // -(-count // cols))


def _fitted(pixels: NDArray[np.uint8], width: int, height: int) -> Image.Image:
    """Resize to the largest image of the same aspect ratio that fits."""
    rows, cols, _ = pixels.shape
    scale = min(width / cols, height / rows)
    size = (max(round(cols * scale), 1), max(round(rows * scale), 1))
    image = Image.fromarray(pixels)
    return image if image.size == size else image.resize(size, Image.Resampling.BICUBIC)


def _paste(drawn: Image.Image, picture: Picture, left: int, top: int, width: int, height: int) -> None:
    image = _fitted(picture.pixels, width, height)
    drawn.paste(image, (left + (width - image.width) // 2, top + (height - image.height) // 2))


def _write(drawn: Image.Image, letter: str, left: int, top: int, size: int) -> None:
    """Write a white letter on a black square into the corner of a crop."""
    draw = ImageDraw.Draw(drawn)
    side = round(1.25 * size)
    draw.rectangle((left, top, left + side, top + side), fill="black")
    middle = (left + side // 2, top + side // 2)
    draw.text(middle, letter, fill="white", font=ImageFont.load_default(size), anchor="mm")
