"""Pictures of a data card: photos by split over the imagery, and histograms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from jzi.curate.folder import cannot_write
from jzi.encode.rasters.imagery import Imagery
from jzi.encode.rasters.raster import RasterOptions
from jzi.errors import DatasetError
from jzi.publish.facts import HEADING_DEG, HFOV_DEG, OTHERS, CardFacts, unwrapped
from jzi.store.disk.files import write_whole
from jzi.store.geometry.cell_grid import Bounds
from jzi.store.geometry.lengths import length_text, round_length
from jzi.store.geometry.pyramid import Pyramid
from jzi.store.photos.splits import SPLITS
from jzi.store.printable import printable

#: Colours of the splits, which people who are colour-blind can tell apart (Okabe and Ito), over imagery too.
COLOURS = {"train": "#56b4e9", "val": "#f0e442", "test": "#d55e00", "": "#56b4e9"}

#: Longer side of the map, pixels; the shorter one is a third of it or more.
PIXELS, NARROWEST = 1200, 1 / 3

#: Margin around photos, as a share of the longer side, and the least side of a map, metres.
MARGIN, LEAST_M = 0.05, 200.0

_INK, _BAR, _DPI = "#30343c", "#0072b2", 100

#: Inches beside the map, and above and below it, where the legend, the scale bar and the credit are.
_RIM, _STRIP = 0.1, 0.45


def draw_map(
    photos: pd.DataFrame, output: Path, rasters: Sequence[str] = (), credit: str = "", remote: bool = False
) -> None:
    """Write a PNG of photos, coloured by split, over imagery: north up, with a scale bar and a credit line.

    Imagery is read at the resolution of the picture, from overviews if the rasters have them.

    Args:
        photos: columns latitude, longitude and, if they have one, split.
        output: PNG file to write.
        rasters: the imagery; none for a plain ground.
        credit: the line that the licences of imagery and photos ask for.
        remote: whether rasters may be URLs, or name files elsewhere.

    Raises:
        ImageryError: the rasters cannot be read or do not overlap the photos.
        DatasetError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    latitude, longitude = photos["latitude"].to_numpy(float), unwrapped(photos["longitude"].to_numpy(float))
    middle = (latitude.min() + latitude.max()) / 2, (longitude.min() + longitude.max()) / 2
    local = Pyramid.around(middle[0], (middle[1] + 180) % 360 - 180, LEAST_M, levels=1)  # for its projection
    x, y = local.project(latitude, photos["longitude"].to_numpy(float))
    longer = max(np.ptp(x), np.ptp(y), LEAST_M) * (1 + 2 * MARGIN)
    sides = [max(float(np.ptp(each)) + 2 * MARGIN * longer, NARROWEST * longer) for each in (x, y)]
    cols, rows = (max(1, round(side / longer * PIXELS)) for side in sides)
    west = (x.min() + x.max() - cols * longer / PIXELS) / 2
    south = (y.min() + y.max() - rows * longer / PIXELS) / 2
    bounds = Bounds(west, south, west + cols * longer / PIXELS, south + rows * longer / PIXELS)

    width, height = cols / _DPI + 2 * _RIM, rows / _DPI + 2 * _STRIP  # nothing covers the map
    figure = Figure(figsize=(width, height), dpi=_DPI, facecolor="white")
    axis = figure.add_axes((_RIM / width, _STRIP / height, cols / _DPI / width, rows / _DPI / height))
    extent = (bounds.west, bounds.east, bounds.south, bounds.north)
    if rasters:
        around = Pyramid.around(middle[0], (middle[1] + 180) % 360 - 180, 2.2 * longer, levels=1)
        with Imagery(rasters, around, RasterOptions(remote=remote)) as imagery:
            image, covered = imagery.render(bounds, (rows, cols), crs=local.crs)
        image = np.where(covered[..., None], image, np.uint8(236))
        axis.imshow(image, extent=extent, interpolation="nearest")
    else:
        axis.set_facecolor("#f4f4f2")
    split = photos["split"] if "split" in photos and photos["split"].isin(SPLITS).any() else pd.Series("", photos.index)
    size = float(np.clip(40_000 / len(photos), 3, 26))
    for name in SPLITS if (split != "").any() else ("",):
        of_split = (split == name).to_numpy()
        if of_split.any():
            label = f"{name or 'photos'} ({of_split.sum():,})".replace(",", " ")
            axis.scatter(x[of_split], y[of_split], size, COLOURS[name], edgecolors="black", linewidths=0.3, label=label)
    axis.set(xlim=extent[:2], ylim=extent[2:], xticks=[], yticks=[], aspect="equal")
    axis.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, fontsize=10, frameon=False, borderpad=0.2,
                markerscale=min(3, 6 / size**0.5))  # fmt: skip
    arrow = {"arrowstyle": "-|>", "color": _INK, "linewidth": 2, "shrinkA": 0, "shrinkB": 0}
    axis.annotate("", (cols - 20, rows + 40), (cols - 20, rows + 4), "axes pixels", arrowprops=arrow,
                  annotation_clip=False)  # fmt: skip
    axis.annotate("N", (cols - 34, rows + 22), None, "axes pixels", ha="right", va="center", fontsize=12, weight="bold",
                  annotation_clip=False)  # fmt: skip
    scale_bar(axis, bounds, rows)
    if credit:
        figure.text(_RIM / width, 0.1 / height, _short(credit, max(20, cols // 8)), fontsize=8, parse_math=False,
                    color=_INK)  # fmt: skip
    save(figure, output)


def scale_bar(axis: Any, bounds: Bounds, rows: int) -> None:
    """A bar of a round length, about a fifth of the picture, below the map at the right."""
    width, line = bounds.east - bounds.west, -14 / rows
    length = round_length(width / 5)
    ends = np.array([bounds.east - length, bounds.east])
    axis.plot(ends, [line, line], color="black", linewidth=4, solid_capstyle="butt", clip_on=False,
              transform=axis.get_xaxis_transform())  # fmt: skip
    axis.annotate(length_text(length), (ends[0], line), (-6, 0), axis.get_xaxis_transform(), "offset points",
                  ha="right", va="center", fontsize=10, annotation_clip=False)  # fmt: skip


def draw_histograms(facts: CardFacts, output: Path) -> None:
    """Write a PNG with histograms: years, months, hours, headings, fields of view, devices, filters, distances.

    Panels of what is unknown of all photos say so.

    Raises:
        DatasetError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(16, 7.2), dpi=_DPI, facecolor="white")
    grid = figure.add_gridspec(2, 4, left=0.04, right=0.98, top=0.93, bottom=0.08, wspace=0.42, hspace=0.35)
    kept = {"kept": facts.photos}
    filters = {each.name: each.removed for each in facts.filters if each.removed} | kept
    panels: tuple[tuple[str, Callable[[Any], None]], ...] = (
        ("years", lambda axis: _bars(axis, facts.years)),
        ("months", lambda axis: _month_bars(axis, list(facts.months.values()))),
        ("hours, local mean solar time", lambda axis: _bars(axis, facts.hours)),
        ("headings", lambda axis: _rose(axis, facts.headings)),
        ("horizontal field of view, degrees", lambda axis: _bars(axis, facts.fields_of_view, HFOV_DEG)),
        ("devices", lambda axis: _lying(axis, facts.devices)),
        ("photos by filter", lambda axis: _lying(axis, filters)),
        ("distance to the nearest training photo", lambda axis: _distances(axis, facts)),
    )
    for number, (title, draw) in enumerate(panels):
        polar = {"projection": "polar"} if title == "headings" else {}
        axis = figure.add_subplot(grid[number // 4, number % 4], **polar)
        draw(axis)
        axis.set_title(title, fontsize=11)
        axis.tick_params(labelsize=8)
    save(figure, output)


def _bars(axis: Any, counts: dict[int, int], width: int = 1) -> None:
    if not sum(counts.values()):
        _unknown(axis)
        return
    axis.bar(list(counts), list(counts.values()), 0.9 * width, align="edge" if width > 1 else "center", color=_BAR)
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.yaxis.get_major_locator().set_params(integer=True)
    if width == 1:
        axis.ticklabel_format(axis="x", useOffset=False)
        axis.set_xlim(min(counts) - 1.5, max(counts) + 1.5)  # a bar alone would be as wide as the picture
    else:
        axis.set_xlim(0, max(120, *(value + width for value in counts)))


def _month_bars(axis: Any, counts: list[int]) -> None:
    if not sum(counts):
        _unknown(axis)
        return
    axis.bar(range(len(counts)), counts, 0.9, color=_BAR)
    axis.set_xticks(range(len(counts)), "JFMAMJJASOND")
    axis.yaxis.get_major_locator().set_params(integer=True)


def _rose(axis: Any, counts: dict[int, int]) -> None:
    axis.set_theta_zero_location("N")
    axis.set_theta_direction(-1)
    axis.set_yticklabels([])
    axis.set_xticks(np.radians(range(0, 360, 45)), ["N", "NE", "E", "SE", "S", "SW", "W", "NW"])
    if not sum(counts.values()):
        _unknown(axis)
        return
    axis.bar(np.radians(list(counts)), list(counts.values()), np.radians(HEADING_DEG), align="edge", color=_BAR)


def _lying(axis: Any, counts: dict[str, int], most: int = 10) -> None:
    if not counts:
        _unknown(axis)
        return
    shown = list(counts.items())
    if len(shown) > most:
        shown = [*shown[: most - 1], (OTHERS, sum(count for _, count in shown[most - 1 :]))]
    names, values = zip(*shown[::-1], strict=True)
    axis.barh(range(len(values)), values, color=_BAR)
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.set_yticks(range(len(values)), [_short(name, 24) for name in names], parse_math=False)


def _distances(axis: Any, facts: CardFacts) -> None:
    nearest = facts.split.nearest if facts.split else ()
    if not nearest:
        _unknown(axis)
        return
    for each in nearest:
        metres = [max(value, 1.0) for value in each.quantiles_m.values()]
        axis.plot(metres, list(each.quantiles_m), marker="o", color=COLOURS[each.split], label=each.split,
                  markeredgecolor="black")  # fmt: skip
    farthest = max(value for each in nearest for value in each.quantiles_m.values())
    axis.set(xscale="log", xlim=(1, max(1000, 1.2 * farthest)), ylim=(0, 1), xlabel="metres", ylabel="share of photos")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)


def _unknown(axis: Any) -> None:
    axis.text(0.5, 0.5, "unknown", transform=axis.transAxes, ha="center", va="center", color="#888888")
    axis.set_yticks([])


def _short(text: str, most: int) -> str:
    text = printable(text)
    return text if len(text) <= most else f"{text[: most - 1]}…"


def save(figure: Any, output: Path) -> None:
    try:
        write_whole(output, lambda file: figure.savefig(file, format="png"))
    except OSError as error:
        raise DatasetError(cannot_write(output, error)) from error
