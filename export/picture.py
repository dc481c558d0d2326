"""Draw figures with matplotlib: the zoom of one located photo, and a calibration plot."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jzi.encode.photo.photos import open_photo
from jzi.encode.rasters.imagery import Imagery
from jzi.evaluate.calibration import Calibration, reliability
from jzi.export.files import write_file
from jzi.export.fix_picture import draw_fix, fix_bounds
from jzi.export.marks import ANSWER, Marks
from jzi.export.overlay import is_quick_to_read
from jzi.export.posterior_picture import (
    LEAST,
    Squares,
    all_squares,
    coloured,
    dimmed,
    draw_colour_bar,
)
from jzi.export.scale_bar import draw_scale_bar
from jzi.locate.answer.location import Location
from jzi.locate.ranges import PIXELS
from jzi.store.geometry.cell_grid import Bounds
from jzi.store.geometry.lengths import distance_text
from jzi.store.geometry.pyramid import Pyramid, geodesic_distance
from jzi.store.geometry.scale import ground_metres
from jzi.store.plain import percent, share_text
from jzi.store.printable import printable

#: Inches: side of the panels of the first row and of the second one at most, space between panels, above a panel for
#: its title, and below one for its colour bar; width of the legend.
_SIDE, _STEP, _GAP, _TITLE, _BAR, _LEGEND = 3.7, 2.9, 0.14, 0.42, 0.5, 2.7

#: Least and greatest width of the photo's panel, as a share of its height: panoramas are wider and are drawn lower.
_ASPECTS = (0.6, 1.6)

#: Characters to an inch of text at 7 points, about.
_CHARACTERS = 15


@dataclass(frozen=True)
class _Panel:
    """A part of the picture: the width as a share of the height, the title, and what draws it on axes."""

    aspect: float
    title: str
    draw: Callable[[Any], None]


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
    """Write a PNG of the photo, the answer, the posterior, and the L tiles of the zoom with the chosen child outlined.

    Panels of the map have a scale bar, a legend names what is drawn, and the credit line of the imagery is below. The
    posterior is shown where it is: a colour is the probability of a cell, or of a block of cells where these would be
    too small to see. There are no tiles where the area is no pyramid. An answer to metres has a panel more, with its
    probabilities, the ellipses of 68 and 95 % and the heading.

    Args:
        location: location of the photo.
        photo: file of the photo.
        imagery: imagery from which the tiles are drawn; None draws them gray.
        output: PNG file to write.
        truth: latitude and longitude that the photo records, if it does.
        title: line above the figure; by default the photo's name.
        pixels: side of a drawn tile, 1..4096.

    Raises:
        ExportError: the file cannot be written.
        ConfigError: `pixels` is out of range.
    """
    PIXELS.check("pixels", pixels)
    area, best, marks = location.posterior.area, location.best, Marks()
    true_xy: tuple[float, float] | None = None
    if truth:
        x, y = area.project(*truth)
        true_xy = float(x), float(y)

    def draw_map(axis: Any, bounds: Bounds, *, dim: bool = False) -> None:
        seen = imagery is not None and (isinstance(area, Pyramid) or is_quick_to_read(imagery, bounds))
        image = imagery.render(bounds, pixels)[0] if imagery and seen else np.full((1, 1, 3), 205, np.uint8)
        axis.imshow(dimmed(image) if dim else image, extent=_extent(bounds))
        axis.set_xlim(bounds.west, bounds.east)
        axis.set_ylim(bounds.south, bounds.north)

    def finish(axis: Any, bounds: Bounds) -> None:
        if true_xy is not None:
            marks.truth(axis, true_xy, bounds)
        draw_scale_bar(axis, area, bounds)

    image = open_photo(photo)
    aspect = min(max(image.width / image.height, _ASPECTS[0]), _ASPECTS[1])
    name = _shortened(printable(photo.name), round(aspect * _SIDE * 12))
    first = [_Panel(aspect, name, lambda axis: axis.imshow(image))]
    second = []
    tile = _around(best.x, best.y, area.cell_size)
    if isinstance(area, Pyramid):
        tiles = [area.tile_bounds(key) for key in area.keys(np.array(best.path))]
        tile = tiles[-1]
        for step, (bounds, child, probability) in enumerate(
            zip(tiles, tiles[1:], best.step_probabilities, strict=False), 1
        ):

            def draw_step(axis: Any, bounds: Bounds = bounds, child: Bounds = child) -> None:
                draw_map(axis, bounds)
                marks.grid(axis, bounds, area.grid)
                marks.chosen(axis, child)
                finish(axis, bounds)

            side = f"{(bounds.east - bounds.west) * ground_metres(area, bounds):,.0f} m"
            second.append(_Panel(1.0, f"Step {step}: {side}\nchosen with {percent(probability)}", draw_step))

    reach = 1.2 * (best.radius_m or 0.0) / ground_metres(area, tile)
    close_up = _around(best.x, best.y, max(5 * area.cell_size, 2 * reach))

    def draw_answer(axis: Any) -> None:
        draw_map(axis, close_up)
        if isinstance(area, Pyramid):
            marks.chosen(axis, tile)
        if best.radius_m:
            marks.radius(axis, location, best.radius_m / ground_metres(area, tile))
        marks.candidates(axis, location.candidates[1:], close_up)
        marks.answer(axis, best.x, best.y)
        finish(axis, close_up)

    position = f"Answer: {location.latitude:.5f}, {location.longitude:.5f}"
    first.append(_Panel(1.0, f"{position}\n{percent(location.confidence)} {location.extent}", draw_answer))
    squares = all_squares(location, true_xy)
    greatest = max(float(squares.probability.max(initial=0.0)), 1e-12)

    def draw_posterior(axis: Any) -> None:
        draw_map(axis, squares.bounds, dim=True)
        axis.imshow(coloured(squares.probability, greatest), extent=_extent(squares.bounds), interpolation="nearest")
        axis.set_xlim(squares.bounds.west, squares.bounds.east)
        axis.set_ylim(squares.bounds.south, squares.bounds.north)
        marks.circles(axis, location, squares.bounds)
        marks.candidates(axis, location.candidates[1:], squares.bounds)
        marks.answer(axis, best.x, best.y)
        finish(axis, squares.bounds)

    first.append(_Panel(1.0, f"Posterior\n{_posterior_text(location, squares)}", draw_posterior))
    if location.fix:
        fix, around = location.fix, fix_bounds(location.fix, location)

        def draw_metres(axis: Any) -> None:
            draw_map(axis, around)
            draw_fix(axis, fix, location, around, marks)
            finish(axis, around)

        headings = ", ".join(f"{each.heading_deg % 360:.0f}° ± {each.sd_deg:.0f}°" for each in fix.directions[:2])
        major, minor = fix.semi_axes(0.68)
        text = f"Metres: 68 % ellipse {major:.1f} × {minor:.1f} m\nheading {headings or 'unknown'}"
        first.append(_Panel(1.0, text, draw_metres))

    def draw_scale(figure: Any, axis: Any) -> None:
        kind = "cell" if squares.side <= area.cell_size * 1.01 else "square"
        side = squares.side * ground_metres(area, squares.bounds)
        draw_colour_bar(figure, axis, greatest, f"probability of a {kind} of {side:.0f} m", LEAST)

    figure = _compose(first, second, _heading(location, truth, title or location.photo), draw_scale, marks,
                      imagery.attribution if imagery else "")  # fmt: skip
    _save(figure, output)


def _compose(
    first: list[_Panel],
    second: list[_Panel],
    heading: list[str],
    draw_scale: Callable[[Any, Any], None],
    marks: Marks,
    credit: str,
) -> Any:
    """Lay out two rows of panels, the heading, the colour bar below the third panel, the legend and the credit line."""
    from matplotlib.figure import Figure

    width = sum(each.aspect * _SIDE for each in first) + _GAP * (len(first) + 1)
    step = min(_STEP, (width - _LEGEND - _GAP) / max(1, len(second)) - _GAP) if second else 1.1
    lines = [line for each in heading for line in textwrap.wrap(each, round(width * 12))]
    credits = textwrap.wrap(f"Imagery: {printable(credit)}", round(width * _CHARACTERS)) if credit else []
    top, bottom = 0.22 * len(lines) + 0.12, 0.14 * len(credits) + 0.1
    height = top + _TITLE + _SIDE + _BAR + _TITLE + step + bottom
    figure = Figure(figsize=(width, height))

    def axes(left: float, down: float, wide: float, high: float) -> Any:
        return figure.add_axes((left / width, 1 - (down + high) / height, wide / width, high / height))

    for number, line in enumerate(lines):
        figure.text(_GAP / width, 1 - (0.22 * number + 0.1) / height, line, fontsize=10 if number else 11, va="top",
                    weight="normal" if number else "bold", parse_math=False)  # fmt: skip
    for row, down, side in ((first, top + _TITLE, _SIDE), (second, top + 2 * _TITLE + _SIDE + _BAR, step)):
        left = _GAP
        for number, panel in enumerate(row):
            axis = axes(left, down, panel.aspect * side, side)
            panel.draw(axis)
            axis.set_xticks([])
            axis.set_yticks([])
            axis.set_anchor("NW")
            axis.set_title(panel.title, fontsize=8.5, loc="left", pad=4, parse_math=False)
            if row is first and number == 2:
                draw_scale(figure, axes(left, down + side + 0.24, side, 0.1))
            left += panel.aspect * side + _GAP
    left = len(second) * (step + _GAP) + (_GAP if second else 0)
    figure.legend(handles=marks.handles, loc="upper left", frameon=False, fontsize=8,
                  bbox_to_anchor=(left / width, 1 - (top + 2 * _TITLE + _SIDE + _BAR - 0.05) / height),
                  ncol=1 if second else 3)  # fmt: skip
    for number, line in enumerate(reversed(credits)):
        figure.text(1 - _GAP / width, (0.06 + 0.14 * number) / height, line, fontsize=7, ha="right", va="bottom",
                    color="#444444", parse_math=False)  # fmt: skip
    return figure


def _heading(location: Location, truth: tuple[float, float] | None, title: str) -> list[str]:
    """The title, what the answer is, and warnings."""
    answer = f"{location.latitude:.5f}, {location.longitude:.5f}: {percent(location.confidence)} {location.extent}"
    if truth:
        error = float(geodesic_distance(location.latitude, location.longitude, *truth))
        distance = distance_text(error, 1 if location.fix and error < 100 else 0)
        answer += f"; {distance} from the position that the photo records"
    if location.inside is not None:
        answer += f"; {percent(location.inside)} that it was taken in this area"
    return [printable(title), answer, *(f"Note: {note}" for note in location.notes)]


def _posterior_text(location: Location, squares: Squares) -> str:
    parts = [
        f"{share} % within {radius:,.0f} m"
        for share, radius in ((68, location.radius_68), (95, location.radius_95))
        if math.isfinite(radius)
    ]
    if location.residual >= 0.005:
        parts.append(f"{percent(location.residual)} not searched")
    if squares.outside >= 0.005:
        parts.append(f"{percent(squares.outside)} not shown")
    return ", ".join(parts)


def _shortened(text: str, characters: int) -> str:
    """A text without its middle if it is too long."""
    half = max(4, characters // 2 - 2)
    return text if len(text) <= characters else f"{text[:half]}…{text[-half:]}"


def _extent(bounds: Bounds) -> tuple[float, float, float, float]:
    return bounds.west, bounds.east, bounds.south, bounds.north


def _around(x: float, y: float, side: float) -> Bounds:
    """Return a square around a point."""
    return Bounds(x - side / 2, y - side / 2, x + side / 2, y + side / 2)


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
    kinds = [("calibrated", calibration.default, calibration.error_after, ANSWER)]
    if calibration.uncalibrated is not None and calibration.error_before is not None:
        kinds.insert(0, ("before", calibration.uncalibrated, calibration.error_before, "#8f9bb3"))
    for name, answers, error, colour in kinds:
        bins = reliability(answers.confidence, answers.error <= calibration.radius)
        size = [8 + 150 * bin.photos / calibration.photos for bin in bins]
        x, y = [bin.confidence for bin in bins], [bin.right for bin in bins]
        left.plot(x, y, color=colour, linewidth=1.2)
        left.scatter(x, y, size, color=colour, label=f"{name}: calibration error {share_text(error)}")
    left.set(xlabel="confidence", ylabel=f"share within {calibration.radius:g} m", xlim=(0, 1), ylim=(0, 1))
    left.legend(frameon=False, loc="upper left")
    shares = np.linspace(1 / calibration.photos, 1, 200)
    right.plot(shares, [calibration.covering(share)[1] for share in shares], color=ANSWER)
    right.set(xlabel="coverage (share of photos answered, most confident first)", ylim=(0, 1), xlim=(0, 1))
    right.set_ylabel(f"recall within {calibration.radius:g} m")
    figure.suptitle(f"{calibration.photos} held-out photos; dot size shows the number of photos", fontsize=10)
    _save(figure, output)


def _save(figure: Any, output: Path) -> None:
    write_file(output, lambda file: figure.savefig(file, dpi=110, format=Path(output).suffix[1:] or "png"))
