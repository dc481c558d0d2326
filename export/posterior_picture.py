"""The panel of a picture that shows the posterior: probabilities of squares of the map, with a colour bar."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import LogNorm
from numpy.typing import NDArray

from jzi.export.overlay import CELL_PIXELS, values_at
from jzi.locate.answer.location import Location
from jzi.store.geometry.cell_grid import Bounds
from jzi.store.geometry.pyramid import Pyramid
from jzi.store.geometry.scale import units_per_metre

#: Most squares along a side of the panel: each then has at least 4 pixels of a PNG.
SQUARES = 96

#: Fewest cells along a side of the panel: cells of a concentrated posterior are then small enough to see the map
#: between them.
CELLS = 12

#: Least probability that is drawn, as a share of the greatest: two decades, which separate a second place of 1 % from
#: nothing beside a first one of 90 %.
LEAST = 0.01

#: Opacity of the least and of the greatest probability.
FAINT, OPAQUE = 0.55, 0.95

#: Part of the panel's colour map: "inferno" grows evenly in lightness, so that it reads in gray and for colour-blind
#: people; its darkest third would look like the darkened map.
_COLOURS = colormaps["inferno"](np.linspace(0.36, 1.0, 256))

#: Shares of the side of the area: a view that is larger than this becomes the whole area.
WHOLE = 0.7

#: Farthest position that the photo records for which a view of a region is enlarged, in radii of 95 %.
FAR_TRUTH = 4.0


@dataclass(frozen=True)
class Squares:
    """Probabilities of squares of the map.

    Attributes:
        probability: (row, col) of the square that each pixel lies in, 0..1; north is up.
        bounds: the rectangle that they cover, in the area's CRS.
        side: side of a square, metres in the area's CRS; a pixel of it, or several if rows of cells are not aligned.
        outside: probability of the cells outside of the rectangle.
    """

    probability: NDArray[np.float64]
    bounds: Bounds
    side: float
    outside: float


def posterior_view(location: Location, truth: tuple[float, float] | None = None) -> Bounds:
    """The square that shows where a photo may have been taken, in the CRS of the area.

    It contains the circle of 95 % around the answer, and the true position if that lies in the area, or is not far off
    in a region. It is the whole area, of a region the part with the probable cells, if that is little larger, or if
    search did not reach 95 %.

    Args:
        location: location of the photo.
        truth: x and y of the true position, if it is known.
    """
    if not isinstance(location.posterior.area, Pyramid):
        return _region_view(location, truth)
    area, best = location.pyramid, location.best
    whole, cell = area.bounds, area.cell_size
    if not np.isfinite(location.radius_95):
        return whole
    half = location.radius_95 * units_per_metre(area)
    if truth is not None and whole.west <= truth[0] <= whole.east and whole.south <= truth[1] <= whole.north:
        half = max(half, abs(truth[0] - best.x), abs(truth[1] - best.y))
    side = max(2 * 1.25 * half, CELLS * cell)
    if side >= WHOLE * area.size:
        return whole
    west = min(max(best.x - side / 2, whole.west), whole.east - side)
    north = max(min(best.y + side / 2, whole.north), whole.south + side)
    first_col, first_row = int((west - whole.west) // cell), int((whole.north - north) // cell)
    cells = int(side // cell) + 1  # whole cells
    west, north = whole.west + first_col * cell, whole.north - first_row * cell
    return Bounds(west, north - cells * cell, west + cells * cell, north)


def squares_of(location: Location, view: Bounds) -> Squares:
    """Probabilities of the squares of a view: of cells, or of blocks of cells where these would be too small to see.

    Args:
        location: location of the photo, in a pyramid.
        view: a square of whole cells, see `posterior_view`.

    Raises:
        PyramidError: the area is no pyramid.
    """
    area, posterior = location.pyramid, location.posterior
    cell, cells = area.cell_size, round((view.east - view.west) / area.cell_size)
    block = -(-cells // SQUARES)
    row = posterior.row[0] - round((area.bounds.north - view.north) / cell)
    col = posterior.col[0] - round((view.west - area.bounds.west) / cell)
    inside = (row >= 0) & (row < cells) & (col >= 0) & (col < cells)
    shares = posterior.probability[0]
    count = -(-cells // block)
    grid = np.zeros((count, count))
    np.add.at(grid, (row[inside] // block, col[inside] // block), shares[inside])
    side = count * block * cell
    bounds = Bounds(view.west, view.north - side, view.west + side, view.north)
    return Squares(grid, bounds, block * cell, float(shares[~inside].sum()))


def _region_view(location: Location, truth: tuple[float, float] | None) -> Bounds:
    posterior, best = location.posterior, location.best
    area, shares = posterior.area, posterior.probability[0]
    drawn = shares >= LEAST * shares.max(initial=0.0)
    x, y = area.cell_centers(posterior.row[0][drawn], posterior.col[0][drawn])
    west, east = float(x.min(initial=best.x)), float(x.max(initial=best.x))
    south, north = float(y.min(initial=best.y)), float(y.max(initial=best.y))
    whole = max(east - west + 2 * area.cell_size, north - south + 2 * area.cell_size, CELLS * area.cell_size)
    half = location.radius_95
    if truth is not None:
        distance = max(abs(truth[0] - best.x), abs(truth[1] - best.y))
        half = max(half, distance) if distance <= FAR_TRUTH * half else half
    side = max(2 * 1.25 * half, CELLS * area.cell_size)
    if side < WHOLE * whole:
        return Bounds(best.x - side / 2, best.y - side / 2, best.x + side / 2, best.y + side / 2)
    west, south = (west + east - whole) / 2, (south + north - whole) / 2
    return Bounds(west, south, west + whole, south + whole)


def squares_of_region(location: Location, view: Bounds) -> Squares:
    """Probabilities of the cells of a region in a view, or of squares of it where cells would be too small to see.

    Args:
        location: location of the photo.
        view: a square, see `posterior_view`.
    """
    posterior, side = location.posterior, view.east - view.west
    area, shares = posterior.area, posterior.probability[0]
    x, y = area.cell_centers(posterior.row[0], posterior.col[0])
    block = int(np.ceil(side / area.cell_size / SQUARES))
    count = int(np.ceil(side / area.cell_size / block)) * (CELL_PIXELS if block == 1 else 1)
    pixel = side / count
    col, row = np.floor((x - view.west) / pixel).astype(int), np.floor((view.north - y) / pixel).astype(int)
    inside = (row >= 0) & (row < count) & (col >= 0) & (col < count)
    if block == 1:  # rows of cells are not aligned: each pixel is looked up
        right, down = np.meshgrid(
            view.west + (np.arange(count) + 0.5) * pixel, view.north - (np.arange(count) + 0.5) * pixel
        )
        at = area.unproject(right.ravel(), down.ravel())
        grid = values_at(area, posterior.row[0], posterior.col[0], shares, *at).reshape(count, count)
    else:
        grid = np.zeros((count, count))
        np.add.at(grid, (row[inside], col[inside]), shares[inside])
    return Squares(grid, view, area.cell_size if block == 1 else pixel, float(shares[~inside].sum()))


def all_squares(location: Location, truth: tuple[float, float] | None = None) -> Squares:
    """Probabilities of squares around the answer; arguments as `posterior_view`."""
    view = posterior_view(location, truth)
    is_pyramid = isinstance(location.posterior.area, Pyramid)
    return squares_of(location, view) if is_pyramid else squares_of_region(location, view)


def coloured(values: NDArray[np.floating[Any]], greatest: float, least: float = LEAST) -> NDArray[np.float64]:
    """(row, col, 4) colours of probabilities or densities, on a logarithmic scale; transparent below the least.

    Args:
        values: (row, col), 0 or more.
        greatest: the greatest value of the scale, more than 0.
        least: the least value of the scale, as a share of the greatest.
    """
    positive = np.maximum(values, np.finfo(np.float32).tiny)
    share = np.log(positive / (greatest * least)) / -np.log(least)  # 0..1 between least and greatest
    colours = np.array(_COLOURS[(share.clip(0, 1) * 255).astype(int)])
    colours[..., 3] = np.where(share >= 0, FAINT + (OPAQUE - FAINT) * share.clip(0, 1), 0.0)
    return colours


def draw_colour_bar(figure: Any, axis: Any, greatest: float, title: str, least: float = LEAST) -> None:
    """Draw the scale of `coloured` with a unit.

    Args:
        figure: matplotlib's figure.
        axis: axes to draw it into, wider than high.
        greatest: the greatest value of the scale, a share.
        title: what the values are.
        least: the least value of the scale, as a share of the greatest.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap

    norm = LogNorm(greatest * least, greatest)
    bar = figure.colorbar(ScalarMappable(norm, ListedColormap(_COLOURS)), cax=axis, orientation="horizontal")
    ticks = [greatest * least, greatest * least**0.5, greatest]
    bar.set_ticks(ticks, labels=[percent_text(each) for each in ticks])
    bar.minorticks_off()
    for label, side in zip(axis.get_xticklabels(), ("left", "center", "right"), strict=True):
        label.set_horizontalalignment(side)
    axis.tick_params(labelsize=7, length=2, pad=1.5)
    axis.set_title(title, fontsize=7.5, loc="left", pad=3)


def percent_text(share: float) -> str:
    """A share in percent with two significant digits, for scales and single cells, whose shares may be tiny.

    Example:
        >>> percent_text(0.354), percent_text(0.0354), percent_text(0.000354)
        ('35 %', '3.5 %', '0.035 %')
    """
    return f"{100 * share:.0f} %" if share >= 0.0995 else f"{float(f'{100 * share:.2g}'):g} %"


def dimmed(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(row, col, 3) imagery in dark gray, on which the colours of probabilities are the only ones."""
    gray = image[..., :3] @ np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
    return np.repeat((0.42 * gray).astype(np.uint8)[..., None], 3, axis=2)
