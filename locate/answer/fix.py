"""The position of a photo to metres, with its uncertainty and heading: the answer of a stage that refines."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jzi.store.plain import percent, plain, share_text

#: Standard deviation from which a heading is unknown, degrees: its 68 % interval is then a third of the circle.
UNKNOWN_DEG = 60.0


@dataclass(frozen=True)
class Mode:
    """Another place that is probable.

    Attributes:
        latitude: degrees (WGS 84).
        longitude: degrees.
        probability: probability that the photo was taken near it, 0..1.
    """

    latitude: float
    longitude: float
    probability: float


@dataclass(frozen=True)
class HeadingPeak:
    """A direction that is probable.

    Attributes:
        heading_deg: azimuth of the photo's centre column, degrees clockwise from true north.
        sd_deg: circular standard deviation of the directions nearer to this peak than to others, degrees.
        probability: probability of these directions, 0..1.
    """

    heading_deg: float
    sd_deg: float
    probability: float


@dataclass(frozen=True, eq=False)
class FineGrid:
    """Probabilities of the pixels of a window.

    Attributes:
        west: west edge in the area's CRS.
        north: north edge in the area's CRS.
        pixel: side of a pixel in units of the CRS.
        probability: (row, col) of each pixel; the sum over a photo's windows is 1 less what lies outside of them.
    """

    west: float
    north: float
    pixel: float
    probability: NDArray[np.float32]


@dataclass(frozen=True)
class Fix:
    """Where a photo was taken, to metres.

    Probabilities are of the whole map: those of all windows, and of what lies outside of them, sum to 1.

    Attributes:
        latitude: of the point, degrees (WGS 84).
        longitude: of the point, degrees.
        x: of the point in the area's CRS.
        y: of the point.
        cell: row and column of the cell that the point lies in; that of the window if it lies in none.
        sd_major_m: standard deviation along the ellipse's major axis, metres.
        sd_minor_m: the same along its minor axis.
        axis_deg: azimuth of the major axis, degrees clockwise from true north, 0..180.
        mode_mass: probability that the photo was taken within 10 m of the point, 0..1.
        radius_68_m: radius around the point that contains 68 % of the probability, metres; inf if less was searched.
        radius_95_m: the same for 95 %.
        heading_deg: azimuth of the photo's centre column, degrees clockwise from true north; None if it is unknown.
        heading_sd_deg: circular standard deviation of all directions, degrees.
        probability: probability of the candidate whose window this is, 0..1.
        candidate_rank: rank of the candidate before it was refined, from 1.
        source: name of the stage.
        modes: other places, at least 10 m apart, the most probable first.
        headings: the peaks of the directions' distribution if there are two or more, the most probable first.
        grids: probabilities of the pixels of all windows of the photo, with the answer's fix alone.
    """

    latitude: float
    longitude: float
    x: float
    y: float
    cell: tuple[int, int]
    sd_major_m: float
    sd_minor_m: float
    axis_deg: float
    mode_mass: float
    radius_68_m: float
    radius_95_m: float
    heading_deg: float | None
    heading_sd_deg: float | None
    probability: float
    candidate_rank: int
    source: str = "refine"
    modes: tuple[Mode, ...] = ()
    headings: tuple[HeadingPeak, ...] = ()
    grids: tuple[FineGrid, ...] = field(default=(), repr=False, compare=False)

    def semi_axes(self, share: float) -> tuple[float, float]:
        """Semi-major and semi-minor axis, metres, of the ellipse with a share of the probability near the point.

        Args:
            share: 0..1, for a normal distribution: 0.68 or 0.95.
        """
        factor = math.sqrt(-2 * math.log(1 - share))
        return factor * self.sd_major_m, factor * self.sd_minor_m

    @property
    def directions(self) -> tuple[HeadingPeak, ...]:
        """The peaks of the heading's distribution, one where `headings` has none; none if the heading is unknown.

        A heading is unknown from a standard deviation of `UNKNOWN_DEG` on.
        """
        if self.headings:
            return self.headings
        if self.heading_deg is None or self.heading_sd_deg is None or self.heading_sd_deg >= UNKNOWN_DEG:
            return ()
        return (HeadingPeak(self.heading_deg, self.heading_sd_deg, 1.0),)

    @property
    def text(self) -> str:
        """The ellipse, the probability of the mode and the heading in words."""
        ellipse = (
            f"standard deviation {self.sd_major_m:.1f} m along {self.axis_deg:.0f}°, {self.sd_minor_m:.1f} m across"
        )
        parts = [f"{ellipse}; {percent(self.mode_mass)} within 10 m"]
        parts += [
            f"heading {each.heading_deg % 360:.0f}° ± {each.sd_deg:.0f}°"
            + (f" ({share_text(each.probability, 0)})" if self.headings else "")
            for each in self.directions
        ]
        if self.heading_deg is not None and not self.directions:
            parts.append("heading unknown")
        return "; ".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, without the grids; an infinite radius is None."""
        entries: dict[str, Any] = plain(
            {each.name: getattr(self, each.name) for each in fields(self) if each.name != "grids"}
        )
        return entries
