"""The picture of a model's card: the area, where it has imagery, without the imagery."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from jzi.publish.pictures import save, scale_bar
from jzi.store.geometry.pyramid import Pyramid

#: Side of the map, pixels, and its resolution, pixels an inch.
SIDE, _DPI = 640, 100


def draw_area(area: Pyramid, cell_mask: NDArray[np.bool_] | None, output: Path) -> None:
    """Write a PNG of an area: a square with its corners in degrees, the cells with imagery, and a scale bar.

    Args:
        area: the area.
        cell_mask: (row, col) whether each cell has imagery; None if it is unknown.
        output: PNG file to write.

    Raises:
        DatasetError: the file cannot be written.
    """
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure

    bounds, inches = area.bounds, SIDE / _DPI
    figure = Figure(figsize=(inches + 0.4, inches + 1.0), dpi=_DPI, facecolor="white")
    axis = figure.add_axes((0.2 / (inches + 0.4), 0.5 / (inches + 1), inches / (inches + 0.4), inches / (inches + 1)))
    axis.set_facecolor("#f4f4f2")
    extent = (bounds.west, bounds.east, bounds.south, bounds.north)
    if cell_mask is not None:
        colours = ListedColormap(["#f4f4f2", "#b9cbb4"])
        axis.imshow(cell_mask, cmap=colours, vmin=0, vmax=1, extent=extent, interpolation="nearest")
    for line in range(1, area.grid):
        at = line * area.size / area.grid
        axis.axvline(bounds.west + at, color="white", linewidth=1)
        axis.axhline(bounds.south + at, color="white", linewidth=1)
    axis.set(xlim=extent[:2], ylim=extent[2:], xticks=[], yticks=[], aspect="equal")
    latitude, longitude = area.unproject([bounds.west, bounds.east], [bounds.north, bounds.south])
    axis.text(0, 1.015, _degrees(latitude[0], longitude[0]), transform=axis.transAxes, fontsize=10)
    axis.text(0, -0.045, _degrees(latitude[1], longitude[1]) + " (lower right)", transform=axis.transAxes, fontsize=10)
    scale_bar(axis, bounds, SIDE)
    save(figure, output)


def _degrees(latitude: float, longitude: float) -> str:
    north, east = "N" if latitude >= 0 else "S", "E" if longitude >= 0 else "W"
    return f"{abs(latitude):.4f}° {north}, {abs(longitude):.4f}° {east}"
