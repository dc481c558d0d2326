"""One located photo as a picture: the photo, what the zoom saw at every step, and the answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from jzi.encode.imagery import Imagery
from jzi.encode.photos import open_photo
from jzi.evaluate.calibration import Calibration, reliability
from jzi.locate.location import Location
from jzi.store.pyramid import Bounds, geodesic_distance

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
    """Write a PNG: the photo, the L tiles with the chosen child outlined, the answer close by, and the posterior.

    Args:
        location: the answer.
        photo: the photo that it answers.
        imagery: the map, to draw the tiles from; gray without.
        output: the PNG.
        truth: latitude and longitude where the photo was taken, if known.
        title: a line above it all.
        pixels: side of a drawn tile.
    """
    from matplotlib.figure import Figure

    pyramid, best = location.pyramid, location.best
    keys = pyramid.keys(np.array(best.path))

    def draw_map(axis: Any, bounds: Bounds) -> None:
        image = imagery.render(bounds, pixels)[0] if imagery else np.full((1, 1, 3), 205, np.uint8)
        axis.imshow(image, extent=_extent(bounds))

    columns = len(keys) + 3  # the photo is twice as wide
    figure = Figure(figsize=(2.6 * columns, 3.4), layout="constrained")
    axes = figure.subplots(1, len(keys) + 2, width_ratios=[2, *[1] * (len(keys) + 1)])
    axes[0].imshow(open_photo(photo))
    axes[0].set_title(photo.name)
    true_xy = pyramid.project(*truth) if truth else None
    for step, (axis, key) in enumerate(zip(axes[1:-2], keys, strict=False)):
        bounds = pyramid.tile_bounds(key)
        draw_map(axis, bounds)
        _outline(axis, pyramid.tile_bounds(keys[step + 1]))
        axis.set_title(f"step {step + 1}: {pyramid.footprint(key.level):.0f} m, {best.step_probabilities[step]:.0%}")
        _mark(axis, true_xy, bounds)
    around = _around(pyramid.tile_bounds(keys[-1]), 2.0)
    draw_map(axes[-2], around)
    _outline(axes[-2], pyramid.tile_bounds(keys[-1]))
    axes[-2].plot(best.x, best.y, marker="+", markersize=12, color=_ANSWER, markeredgewidth=2.5)
    _mark(axes[-2], true_xy, around)
    draw_map(axes[-1], pyramid.bounds)
    _draw_posterior(axes[-1], location)
    _mark(axes[-1], true_xy, pyramid.bounds)
    axes[-1].set_title(f"posterior\n{_spread(location)}")
    answer = f"answer: {location.latitude:.5f}, {location.longitude:.5f}\nconfidence {location.confidence:.1%}"
    if truth:
        error = float(geodesic_distance(location.latitude, location.longitude, *truth))
        answer += f", {error:.0f} m off"
    axes[-2].set_title(answer)
    for axis in axes:
        axis.set_xticks([])
        axis.set_yticks([])
        axis.title.set_fontsize(9)
    legend = "pink: chosen" + ("    cyan: where the photo was taken" if truth else "")
    figure.suptitle(f"{title}    {legend}" if title else legend, fontsize=9)
    figure.savefig(output, dpi=110)


def _draw_posterior(axis: Any, location: Location) -> None:
    """Probabilities of cells over the map, and the circles that hold 68 and 95 %."""
    from matplotlib import colormaps
    from matplotlib.patches import Circle

    grid, bounds = location.posterior.grid(), location.pyramid.bounds
    share = np.sqrt(grid / grid.max())
    colours = colormaps["inferno"](0.25 + 0.75 * share)
    colours[..., 3] = np.minimum(1.0, 0.25 + share) * (share > 0.03)
    axis.imshow(np.full((1, 1), 0.0), extent=_extent(bounds), cmap="gray", alpha=0.45)
    axis.imshow(colours, extent=_extent(bounds), interpolation="nearest")
    for radius in (location.radius_68, location.radius_95):
        if np.isfinite(radius):
            middle = (location.best.x, location.best.y)
            axis.add_patch(Circle(middle, radius, fill=False, edgecolor=_ANSWER, linewidth=1.4))
    axis.set_xlim(bounds.west, bounds.east)
    axis.set_ylim(bounds.south, bounds.north)


def _spread(location: Location) -> str:
    told = [
        f"{share} % within {radius:.0f} m"
        for share, radius in ((68, location.radius_68), (95, location.radius_95))
        if np.isfinite(radius)
    ]
    return ", ".join(told) or f"{location.residual:.0%} not searched"


def _extent(bounds: Bounds) -> tuple[float, float, float, float]:
    return bounds.west, bounds.east, bounds.south, bounds.north


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


def draw_calibration(calibration: Calibration, output: Path) -> None:
    """Write a PNG: how often answers of a confidence are right, and the recall of the most confident ones.

    Args:
        calibration: of held-out photos.
        output: the PNG.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot([0, 1], [0, 1], color="#9aa3b2", linewidth=1)
    kinds = [("calibrated", calibration.answers["radius"], calibration.error_after, _ANSWER)]
    if calibration.uncalibrated is not None and calibration.error_before is not None:
        kinds.insert(0, ("before", calibration.uncalibrated, calibration.error_before, "#8f9bb3"))
    for name, answers, error, colour in kinds:
        bins = reliability(answers.confidence, answers.error <= calibration.radius)
        size = [8 + 150 * each.photos / calibration.photos for each in bins]
        x, y = [each.confidence for each in bins], [each.right for each in bins]
        left.plot(x, y, color=colour, linewidth=1.2)
        left.scatter(x, y, size, color=colour, label=f"{name}: {error:.1%} off on average")
    left.set(xlabel="confidence", ylabel=f"share within {calibration.radius:g} m", xlim=(0, 1), ylim=(0, 1))
    left.legend(frameon=False, loc="upper left")
    shares = np.linspace(1 / calibration.photos, 1, 200)
    right.plot(shares, [calibration.covering(share)[1] for share in shares], color=_ANSWER)
    right.set(xlabel="coverage: share of photos answered, the most confident", ylim=(0, 1), xlim=(0, 1))
    right.set_ylabel(f"recall within {calibration.radius:g} m")
    figure.suptitle(f"{calibration.photos} held-out photos; the larger a dot, the more photos", fontsize=10)
    figure.savefig(output, dpi=110)
