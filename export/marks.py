"""What pictures draw on panels of the map, and the legend of what was drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from jzi.locate.answer.location import Candidate, Location
from jzi.store.geometry.cell_grid import Bounds
from jzi.store.geometry.scale import units_per_metre
from jzi.store.plain import share_text

#: Colours of the answer and what search chose, of the true position, of headings, and of other places. They differ in
#: lightness and are drawn with different shapes, for colour-blind people.
ANSWER, TRUTH, HEADING, OTHER = "#ff2d78", "#00e5ff", "#2979ff", "#ffb300"

#: Dashes and gaps of circles and ellipses of 95 %.
_DASHES = (0, (4, 3))


class Marks:
    """Draws marks on matplotlib's axes, and remembers a handle of each kind for the legend.

    Attributes:
        handles: a handle of every kind of mark that was drawn, in that order.
    """

    def __init__(self) -> None:
        self._handles: dict[str, Any] = {}

    @property
    def handles(self) -> list[Any]:
        """A handle of every kind of mark that was drawn."""
        return list(self._handles.values())

    def grid(self, axis: Any, bounds: Bounds, parts: int) -> None:
        """Thin lines between the parts of a tile; they are not in the legend."""
        for number in range(1, parts):
            share = number / parts
            axis.axvline(bounds.west + share * (bounds.east - bounds.west), color="white", linewidth=0.5, alpha=0.55)
            axis.axhline(bounds.south + share * (bounds.north - bounds.south), color="white", linewidth=0.5, alpha=0.55)

    def chosen(self, axis: Any, bounds: Bounds) -> None:
        """The frame of the part of a tile that search chose."""
        from matplotlib.patches import Patch, Rectangle

        corner, size = (bounds.west, bounds.south), bounds.east - bounds.west
        axis.add_patch(Rectangle(corner, size, size, fill=False, edgecolor="black", linewidth=3.6, alpha=0.6))
        axis.add_patch(Rectangle(corner, size, size, fill=False, edgecolor=ANSWER, linewidth=2.2))
        self._add("chosen", Patch(facecolor="none", edgecolor=ANSWER, linewidth=2.2, label="chosen part of the tile"))

    def answer(self, axis: Any, x: float, y: float) -> None:
        """A cross at the answer, open in the middle, so that the cell below it is seen."""
        from matplotlib.path import Path

        arms = [(0.35, 0), (1, 0), (-0.35, 0), (-1, 0), (0, 0.35), (0, 1), (0, -0.35), (0, -1)]
        cross = Path(arms, [Path.MOVETO, Path.LINETO] * 4)
        self._points(axis, "answer", "answer", [(x, y)], marker=cross, markersize=22, color=ANSWER, markeredgewidth=2.2)

    def truth(self, axis: Any, xy: Any, bounds: Bounds) -> None:
        """A ring at the position that the photo records, if that is on the panel."""
        if _within(xy, bounds):
            self._points(axis, "truth", "position that the photo records", [tuple(xy)], marker="o", markersize=8,
                         color=TRUTH, markerfacecolor="none", markeredgewidth=2)  # fmt: skip

    def candidates(self, axis: Any, candidates: Sequence[Candidate], bounds: Bounds) -> None:
        """Triangles at the other candidates that are on the panel."""
        points = [(each.x, each.y) for each in candidates if _within((each.x, each.y), bounds)]
        if points:
            self._points(axis, "candidates", "other candidates", points, marker="^", markersize=7, color=OTHER,
                         markerfacecolor="none", markeredgewidth=1.8)  # fmt: skip

    def radius(self, axis: Any, location: Location, units: float) -> None:
        """The circle that the confidence is of, with a radius in units of the CRS."""
        from matplotlib.lines import Line2D
        from matplotlib.patches import Circle

        style: Any = (0, (1, 2))
        center = (location.best.x, location.best.y)
        axis.add_patch(Circle(center, units, fill=False, edgecolor="black", linewidth=3, alpha=0.4))
        axis.add_patch(Circle(center, units, fill=False, edgecolor=ANSWER, linewidth=1.6, linestyle=style))
        label = f"{location.extent} of the answer"
        self._add("radius", Line2D([], [], color=ANSWER, linewidth=1.6, linestyle=style, label=label))

    def circles(self, axis: Any, location: Location, bounds: Bounds) -> None:
        """Circles around the answer that contain 68 and 95 % of the probability, of those that fit the panel."""
        from matplotlib.lines import Line2D
        from matplotlib.patches import Circle

        reach = math.hypot(bounds.east - bounds.west, bounds.north - bounds.south)
        for share, radius in ((68, location.radius_68), (95, location.radius_95)):
            style: Any = "-" if share < 90 else _DASHES
            radius *= units_per_metre(location.posterior.area)
            if not math.isfinite(radius) or radius > reach:
                continue
            center = (location.best.x, location.best.y)
            axis.add_patch(Circle(center, radius, fill=False, edgecolor="white", linewidth=1.4, linestyle=style))
            label = f"{share} % of the probability"
            self._add(f"circle {share}", Line2D([], [], color="#888888", linewidth=1.4, linestyle=style, label=label))

    def modes(self, axis: Any, points: Sequence[tuple[float, float]]) -> None:
        """Dots at other places of an answer to metres."""
        if points:
            self._points(axis, "modes", "other places to metres", points, marker="o", markersize=4, color=OTHER)

    def wedge(self, axis: Any, corners: Any) -> None:
        """The sector of a heading."""
        from matplotlib.patches import Patch, Polygon

        axis.add_patch(Polygon(corners, facecolor=HEADING, alpha=0.45, linewidth=0))
        axis.add_patch(Polygon(corners, fill=False, edgecolor="white", linewidth=0.8))
        self._add("heading", Patch(facecolor=HEADING, alpha=0.6, label="heading ± its standard deviation"))

    def ellipse(self, axis: Any, corners: Any, share: float) -> None:
        """The ellipse of a share of an answer to metres."""
        from matplotlib.lines import Line2D
        from matplotlib.patches import Polygon

        style: Any = "-" if share < 0.9 else _DASHES
        axis.add_patch(Polygon(corners, fill=False, edgecolor=ANSWER, linewidth=1.8, linestyle=style))
        label = f"{share_text(share, 0)} ellipse"
        self._add(f"ellipse {share}", Line2D([], [], color=ANSWER, linewidth=1.8, linestyle=style, label=label))

    def _points(self, axis: Any, kind: str, label: str, points: Sequence[tuple[float, float]], **style: Any) -> None:
        from matplotlib.lines import Line2D
        from matplotlib.patheffects import withStroke

        x, y = zip(*points, strict=True)
        (line,) = axis.plot(x, y, linestyle="", zorder=8, **style)
        line.set_path_effects([withStroke(linewidth=style.get("markeredgewidth", 1) + 1.6, foreground="black")])
        size = min(style.pop("markersize"), 13)
        self._add(kind, Line2D([], [], linestyle="", label=label, markersize=size, **style))

    def _add(self, kind: str, handle: Any) -> None:
        self._handles.setdefault(kind, handle)


def _within(xy: Any, bounds: Bounds) -> bool:
    return bool(bounds.west <= xy[0] <= bounds.east and bounds.south <= xy[1] <= bounds.north)
