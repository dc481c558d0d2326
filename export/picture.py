"""Draw figures with matplotlib: the zoom of one located photo, and a calibration plot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jzi.encode.imagery import Imagery
from jzi.encode.photos import open_photo
from jzi.evaluate.calibration import Calibration, reliability
from jzi.export.files import write_file
from jzi.export.fix_picture import draw_fix, fix_bounds
from jzi.export.overlay import draw_cells
from jzi.locate.location import Location
from jzi.locate.ranges import PIXELS
from jzi.store.cell_grid import Bounds
from jzi.store.printable import printable
from jzi.store.pyramid import Pyramid, geodesic_distance

_ANSWER, _TRUTH = "#ff2d78", "#00e5ff"


def draw_zoom(
    location: Location,
    photo: Path,
    imagery: Imagery | None,
    output: Path,
    *,
    truth: tuple[float, float] | None = None,
    title: str = "",
    pixels: int = 384,
) -> None:
    """Write a PNG of the photo, the L tiles with the chosen child outlined, a close-up of the answer and the posterior.

    There are no tiles where the area is no pyramid; the close-up then outlines a square of a cell's size around the
    answer, and the posterior is drawn where it is. An answer to metres has a panel more, with its probabilities, the
    ellipses of 68 and 95 % and the heading.

    Args:
        location: location of the photo.
        photo: file of the photo.
        imagery: imagery from which the tiles are drawn; None draws them gray.
        output: PNG file to write.
        truth: latitude and longitude where the photo was taken, if known.
        title: line above the figure.
        pixels: side of a drawn tile, 1..4096.

    Raises:
        ExportError: the file cannot be written.
        ConfigError: `pixels` is out of range.
    """
    PIXELS.check("pixels", pixels)
    from matplotlib.figure import Figure

    area, best = location.posterior.area, location.best
    tiles, titles = [], []
    if isinstance(area, Pyramid):
        tiles = [area.tile_bounds(key) for key in area.keys(np.array(best.path))]
        titles = [
            f"step {step + 1}: {area.footprint(step):.0f} m, {probability:.0%}"
            for step, probability in enumerate(best.step_probabilities)
        ]
    else:
        tiles = [_around(best.x, best.y, area.cell_size)]

    def draw_map(axis: Any, bounds: Bounds) -> None:
        image = imagery.render(bounds, pixels)[0] if imagery else np.full((1, 1, 3), 205, np.uint8)
        axis.imshow(image, extent=_extent(bounds))

    panels = len(tiles) + (2 if location.fix else 1)
    figure = Figure(figsize=(2.6 * (panels + 2), 3.4), layout="constrained")  # the photo is twice as wide
    every = figure.subplots(1, panels + 1, width_ratios=[2, *[1] * panels])
    axes = every[: len(tiles) + 2]
    axes[0].imshow(open_photo(photo))
    axes[0].set_title(printable(photo.name), parse_math=False)
    true_xy = area.project(*truth) if truth else None
    for axis, bounds, child, step in zip(axes[1:-2], tiles, tiles[1:], titles, strict=False):
        draw_map(axis, bounds)
        _outline(axis, child)
        axis.set_title(step)
        _mark(axis, true_xy, bounds)
    close_up = _padded(tiles[-1], 2.0)
    draw_map(axes[-2], close_up)
    _outline(axes[-2], tiles[-1])
    axes[-2].plot(best.x, best.y, marker="+", markersize=12, color=_ANSWER, markeredgewidth=2.5)
    _mark(axes[-2], true_xy, close_up)
    if isinstance(area, Pyramid):
        grid, whole = location.posterior.grid(), area.bounds
        share = np.sqrt(grid / grid.max())
        draw_map(axes[-1], whole)
    else:
        drawn = draw_cells(location.posterior, area.crs)
        share, whole = drawn.share, Bounds(drawn.west, drawn.south, drawn.east, drawn.north)
    _draw_posterior(axes[-1], location, share, whole)
    _mark(axes[-1], true_xy, whole)
    axes[-1].set_title(f"posterior\n{_radii_text(location)}")
    answer = f"answer: {location.latitude:.5f}, {location.longitude:.5f}\nconfidence {location.confidence:.1%}"
    if truth:
        error = float(geodesic_distance(location.latitude, location.longitude, *truth))
        answer += f", error {error:.{1 if location.fix else 0}f} m"
    axes[-2].set_title(answer)
    if location.fix:
        around = fix_bounds(location.fix, location)
        draw_map(every[-1], around)
        draw_fix(every[-1], location.fix, location, around)
        _mark(every[-1], true_xy, around)
    for axis in every:
        axis.set_xticks([])
        axis.set_yticks([])
        axis.title.set_fontsize(9)
    legend = "pink: chosen" + ("    cyan: where the photo was taken" if truth else "")
    legend += "    blue: heading" if location.fix and location.fix.directions else ""
    figure.suptitle(f"{title}    {legend}" if title else legend, fontsize=9)
    _save(figure, output)


def _draw_posterior(axis: Any, location: Location, share: NDArray[np.float64], bounds: Bounds) -> None:
    """Draw the cells' probabilities over the map, with circles that contain 68 and 95 % of them.

    `share` is (row, col) the square root of the probability relative to the greatest.
    """
    from matplotlib import colormaps
    from matplotlib.patches import Circle

    colours = colormaps["inferno"](0.25 + 0.75 * share)
    colours[..., 3] = np.minimum(1.0, 0.25 + share) * (share > 0.03)
    axis.imshow(np.full((1, 1), 0.0), extent=_extent(bounds), cmap="gray", alpha=0.45)
    axis.imshow(colours, extent=_extent(bounds), interpolation="nearest")
    for radius in (location.radius_68, location.radius_95):
        if np.isfinite(radius):
            center = (location.best.x, location.best.y)
            axis.add_patch(Circle(center, radius, fill=False, edgecolor=_ANSWER, linewidth=1.4))
    axis.set_xlim(bounds.west, bounds.east)
    axis.set_ylim(bounds.south, bounds.north)


def _radii_text(location: Location) -> str:
    parts = [
        f"{share} % within {radius:.0f} m"
        for share, radius in ((68, location.radius_68), (95, location.radius_95))
        if np.isfinite(radius)
    ]
    return ", ".join(parts) or f"{location.residual:.0%} not searched"


def _extent(bounds: Bounds) -> tuple[float, float, float, float]:
    return bounds.west, bounds.east, bounds.south, bounds.north


def _outline(axis: Any, bounds: Bounds) -> None:
    from matplotlib.patches import Rectangle

    size = bounds.east - bounds.west
    axis.add_patch(Rectangle((bounds.west, bounds.south), size, size, fill=False, edgecolor=_ANSWER, linewidth=2.2))


def _mark(axis: Any, xy: Any, bounds: Bounds) -> None:
    if xy is not None and bounds.west <= xy[0] <= bounds.east and bounds.south <= xy[1] <= bounds.north:
        axis.plot(*xy, marker="o", markersize=7, markerfacecolor="none", markeredgecolor=_TRUTH, markeredgewidth=2)


def _around(x: float, y: float, side: float) -> Bounds:
    """Return a square around a point."""
    return Bounds(x - side / 2, y - side / 2, x + side / 2, y + side / 2)


def _padded(bounds: Bounds, share: float) -> Bounds:
    """Return square bounds extended on every side by `share` of their side."""
    margin = (bounds.east - bounds.west) * share
    return Bounds(bounds.west - margin, bounds.south - margin, bounds.east + margin, bounds.north + margin)


def draw_calibration(calibration: Calibration, output: Path) -> None:
    """Write a PNG with a reliability diagram and the recall of the most confident answers by coverage.

    Args:
        calibration: calibration measured on held-out photos.
        output: PNG file to write.

    Raises:
        ExportError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot([0, 1], [0, 1], color="#9aa3b2", linewidth=1)
    kinds = [("calibrated", calibration.default, calibration.error_after, _ANSWER)]
    if calibration.uncalibrated is not None and calibration.error_before is not None:
        kinds.insert(0, ("before", calibration.uncalibrated, calibration.error_before, "#8f9bb3"))
    for name, answers, error, colour in kinds:
        bins = reliability(answers.confidence, answers.error <= calibration.radius)
        size = [8 + 150 * bin.photos / calibration.photos for bin in bins]
        x, y = [bin.confidence for bin in bins], [bin.right for bin in bins]
        left.plot(x, y, color=colour, linewidth=1.2)
        left.scatter(x, y, size, color=colour, label=f"{name}: calibration error {error:.1%}")
    left.set(xlabel="confidence", ylabel=f"share within {calibration.radius:g} m", xlim=(0, 1), ylim=(0, 1))
    left.legend(frameon=False, loc="upper left")
    shares = np.linspace(1 / calibration.photos, 1, 200)
    right.plot(shares, [calibration.covering(share)[1] for share in shares], color=_ANSWER)
    right.set(xlabel="coverage (share of photos answered, most confident first)", ylim=(0, 1), xlim=(0, 1))
    right.set_ylabel(f"recall within {calibration.radius:g} m")
    figure.suptitle(f"{calibration.photos} held-out photos; dot size shows the number of photos", fontsize=10)
    _save(figure, output)


def _save(figure: Any, output: Path) -> None:
    write_file(output, lambda file: figure.savefig(file, dpi=110, format=output.suffix[1:] or "png"))
