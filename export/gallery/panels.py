"""Parts of the map with marks: the window of an answer to metres, and the aerial images of data sets of pairs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from jzi.evaluate.cases import Case
from jzi.export.fine_grid import fine_shares
from jzi.export.fix_picture import FAR_M, SEEN, fix_bounds
from jzi.export.gallery.pool import ImagePool
from jzi.export.gallery.sources import Sources
from jzi.export.gallery.steps import tile_image
from jzi.export.posterior_picture import coloured
from jzi.export.scale_bar import LONGEST
from jzi.locate.answer.fix_shapes import ellipse, heading_line
from jzi.locate.answer.location import Location
from jzi.store.geometry.cell_grid import Bounds
from jzi.store.geometry.lengths import length_text, round_length
from jzi.store.geometry.scale import ground_metres

#: Side of a panel, pixels.
PANEL = 360

Point = tuple[float, float]


def panel(
    image: str,
    side_m: float,
    title: str,
    text: str,
    *,
    answer: Point | None = None,
    truth: Point | None = None,
    ellipses: Sequence[Sequence[Point]] = (),
    headings: Sequence[Sequence[Point]] = (),
) -> dict[str, Any]:
    """What the page shows of a square part of the map; points are percent of its side from the left and from above.

    Args:
        image: class of its image.
        side_m: its side on the ground, metres.
        title: what it is.
        text: what there is to say of it.
        answer: the answer.
        truth: where the photo was taken.
        ellipses: corners of ellipses, the inner one first.
        headings: lines from the answer to where the photo looks.
    """
    bar = round_length(LONGEST * side_m)
    return {
        "image": image,
        "title": title,
        "text": text,
        "answer": answer,
        "truth": truth if truth and all(0 <= each <= 100 for each in truth) else None,
        "ellipses": [" ".join(f"{x},{y}" for x, y in each) for each in ellipses],
        "headings": [" ".join(f"{x},{y}" for x, y in each) for each in headings],
        "bar": [round(100 * bar / side_m, 2), length_text(bar)],
    }


def fix_panels(case: Case, sources: Sources, pool: ImagePool) -> list[dict[str, Any]]:
    """The surroundings of an answer to metres: density, point, ellipses, headings and truth; none without such.

    Raises:
        ImageryError: the imagery cannot be read.
    """
    location, fix = case.location, case.location.fix
    if fix is None:
        return []
    area = location.posterior.area
    bounds = fix_bounds(fix, location)
    x, y = (float(each) for each in area.project(case.latitude, case.longitude))
    far = FAR_M / ground_metres(area, bounds)
    half = max((bounds.east - bounds.west) / 2, 1.2 * max(abs(x - fix.x), abs(y - fix.y)))
    if half <= far:  # so that both are seen
        bounds = Bounds(fix.x - half, fix.y - half, fix.x + half, fix.y + half)
    side = bounds.east - bounds.west

    def at(positions: NDArray[np.float64]) -> list[Point]:
        x, y = area.project(positions[:, 0], positions[:, 1])
        return [_percent(east - bounds.west, bounds.north - north, side) for east, north in zip(x, y, strict=True)]

    image = np.asarray(tile_image(sources.imagery, bounds, PANEL).convert("RGB").resize((PANEL, PANEL)), np.float64)
    colours = _density(location, bounds)
    alpha = SEEN * colours[..., 3:]
    image = image * (1 - alpha) + 255 * colours[..., :3] * alpha
    text = fix.text[:1].upper() + fix.text[1:]
    return [
        panel(
            pool.add(Image.fromarray(image.astype(np.uint8)), PANEL),
            side * ground_metres(area, bounds),
            "Answer to metres",
            f"{text}. Ellipses of 68 and 95 %",
            answer=(50.0, 50.0),
            truth=_percent(x - bounds.west, bounds.north - y, side),
            ellipses=[at(ellipse(fix, share)) for share in (0.68, 0.95)],
            headings=[at(heading_line(fix, each)) for each in fix.directions],
        )
    ]


def _density(location: Location, bounds: Bounds) -> NDArray[np.float64]:
    """(row, col, 4) colours of the probability of the pixels of windows within bounds."""
    at = (np.arange(PANEL) + 0.5) / PANEL * (bounds.east - bounds.west)
    colours = np.zeros((PANEL, PANEL, 4))
    for relative, window in fine_shares(location):
        rows, cols = relative.shape
        col = np.floor((bounds.west + at - window.west) / (window.east - window.west) * cols).astype(int)
        row = np.floor((window.north - bounds.north + at) / (window.north - window.south) * rows).astype(int)
        inside = np.ix_((row >= 0) & (row < rows), (col >= 0) & (col < cols))
        seen = coloured(relative**2, 1.0)[row[inside[0].ravel()]][:, col[inside[1].ravel()]]
        colours[inside] = np.where(seen[..., 3:] > colours[inside][..., 3:], seen, colours[inside])
    return colours


def _percent(right: float, down: float, side: float) -> Point:
    return round(100 * float(right) / side, 2), round(100 * float(down) / side, 2)
