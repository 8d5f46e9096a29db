"""Drawings on flat backgrounds: shapes, icons, line diagrams, plots and scanned forms; no two are copies."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import PIL.Image
import PIL.ImageDraw

SIDE = 96
_WORDS = ("the", "of", "and", "to", "in", "is", "that", "was", "year", "date", "name", "sum", "total", "city", "bed")


def drawings(count: int, seed: int = 0) -> Iterator[np.ndarray]:
    """Yields drawings uint8 [SIDE, SIDE, 3], one kind after the other."""
    rng = np.random.default_rng(seed)
    kinds = (shape, icon, diagram, plot, form)
    for index in range(count):
        image = PIL.Image.new("RGB", (SIDE, SIDE), "white")
        kinds[index % len(kinds)](PIL.ImageDraw.Draw(image), rng)
        yield np.asarray(image)


def shape(draw: PIL.ImageDraw.ImageDraw, rng: np.random.Generator) -> None:
    """Draws one filled shape at a random place."""
    size = rng.uniform(20, 44)
    x, y = rng.uniform(size / 2, SIDE - size / 2, 2)
    box = [x - size / 2, y - size / 2, x + size / 2, y + size / 2]
    kind = rng.integers(3)
    if kind == 0:
        draw.ellipse(box, fill=(20, 20, 20))
    elif kind == 1:
        draw.rectangle(box, fill=(20, 20, 20))
    else:
        draw.polygon([(x, box[1]), (box[0], box[3]), (box[2], box[3])], fill=(20, 20, 20))


def icon(draw: PIL.ImageDraw.ImageDraw, rng: np.random.Generator) -> None:
    """Draws a random symmetric pattern of 8 x 8 cells, like a default avatar."""
    colour = tuple(int(value) for value in rng.integers(0, 160, 3))
    for row, column in np.argwhere(rng.random((8, 4)) < 0.5):
        for x in (column, 7 - column):
            draw.rectangle([8 + 10 * x, 8 + 10 * row, 17 + 10 * x, 17 + 10 * row], fill=colour)


def diagram(draw: PIL.ImageDraw.ImageDraw, rng: np.random.Generator) -> None:
    """Draws four boxes at fixed places, connected at random."""
    corners = [(10, 10), (62, 10), (10, 66), (62, 66)]
    for x, y in corners:
        draw.rectangle([x, y, x + 24, y + 20], outline="black", width=2)
    for _ in range(3):
        one, other = (corners[index] for index in rng.choice(4, 2, replace=False))
        end = tuple(value + 10 + int(rng.integers(-6, 7)) for value in other)
        draw.line([(one[0] + 12, one[1] + 10), end], fill="black", width=2)


def plot(draw: PIL.ImageDraw.ImageDraw, rng: np.random.Generator) -> None:
    """Draws a curve over axes."""
    draw.line([(10, 6), (10, 86), (90, 86)], fill="black", width=2)
    heights = 50 + np.cumsum(rng.normal(0, 6, 16))
    points = [(12 + 5 * index, float(np.clip(height, 8, 84))) for index, height in enumerate(heights)]
    draw.line(points, fill=(200, 30, 30), width=2)


def form(draw: PIL.ImageDraw.ImageDraw, rng: np.random.Generator) -> None:
    """Draws lines of text, as on a scanned form."""
    for line in range(6):
        words = " ".join(rng.choice(_WORDS, 3))
        draw.text((6, 6 + 14 * line), f"{words} {rng.integers(1000)}", fill="black")
