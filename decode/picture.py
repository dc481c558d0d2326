"""One located photo as a picture: the photo, what the zoom saw at every step, and the answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jzi.decode.locate import Location
from jzi.encode.imagery import Imagery
from jzi.encode.photos import open_photo
from jzi.store.pyramid import Bounds, geodesic_distance

_ANSWER, _TRUTH = "#ff2d78", "#00e5ff"


def draw_zoom(
    location: Location,
    photo: Path,
    imagery: Imagery,
    output: Path,
    *,
    truth: tuple[float, float] | None = None,
    title: str = "",
    pixels: int = 384,
) -> None:
    """Write a PNG: the photo, the L tiles with the chosen child outlined, and the cell with its surroundings.

    Args:
        location: the answer.
        photo: the photo that it answers.
        imagery: the map, to draw the tiles from.
        output: the PNG.
        truth: latitude and longitude where the photo was taken, if known.
        title: a line above it all.
        pixels: side of a drawn tile.
    """
    from matplotlib.figure import Figure

    pyramid, best = imagery.pyramid, location.best
    keys = pyramid.keys(best.path)
    columns = len(keys) + 2  # the photo is twice as wide
    figure = Figure(figsize=(2.6 * columns, 3.4), layout="constrained")
    axes = figure.subplots(1, len(keys) + 1, width_ratios=[2, *[1] * len(keys)])
    axes[0].imshow(open_photo(photo))
    axes[0].set_title(photo.name)
    true_xy = pyramid.project(*truth) if truth else None
    for step, (axis, key) in enumerate(zip(axes[1:-1], keys, strict=False)):
        bounds = pyramid.tile_bounds(key)
        _draw_map(axis, imagery.render(bounds, pixels)[0], bounds)
        _outline(axis, pyramid.tile_bounds(keys[step + 1]))
        axis.set_title(f"step {step + 1}: {pyramid.footprint(key.level):.0f} m, {best.step_probabilities[step]:.0%}")
        _mark(axis, true_xy, bounds)
    around = _around(pyramid.tile_bounds(keys[-1]), 2.0)
    _draw_map(axes[-1], imagery.render(around, pixels)[0], around)
    _outline(axes[-1], pyramid.tile_bounds(keys[-1]))
    _mark(axes[-1], true_xy, around)
    answer = f"answer: {location.latitude:.5f}, {location.longitude:.5f}\nconfidence {location.confidence:.1%}"
    if truth:
        error = float(geodesic_distance(location.latitude, location.longitude, *truth))
        answer += f", {error:.0f} m off"
    axes[-1].set_title(answer)
    for axis in axes:
        axis.set_xticks([])
        axis.set_yticks([])
        axis.title.set_fontsize(9)
    legend = "pink: chosen" + ("    cyan: where the photo was taken" if truth else "")
    figure.suptitle(f"{title}    {legend}" if title else legend, fontsize=9)
    figure.savefig(output, dpi=110)


def _draw_map(axis: Any, image: NDArray[np.uint8], bounds: Bounds) -> None:
    axis.imshow(image, extent=(bounds.west, bounds.east, bounds.south, bounds.north))


def _outline(axis: Any, bounds: Bounds) -> None:
    from matplotlib.patches import Rectangle

    size = bounds.east - bounds.west
    axis.add_patch(Rectangle((bounds.west, bounds.south), size, size, fill=False, edgecolor=_ANSWER, linewidth=2.2))


def _mark(axis: Any, xy: Any, bounds: Bounds) -> None:
    if xy is not None and bounds.west <= xy[0] <= bounds.east and bounds.south <= xy[1] <= bounds.north:
        axis.plot(*xy, marker="o", markersize=7, markerfacecolor="none", markeredgecolor=_TRUTH, markeredgewidth=2)


def _around(bounds: Bounds, times: float) -> Bounds:
    """The same middle, each side so many times longer on either hand."""
    margin = (bounds.east - bounds.west) * times
    return Bounds(bounds.west - margin, bounds.south - margin, bounds.east + margin, bounds.north + margin)
