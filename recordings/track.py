"""A track: positions over time, from a receiver or a trajectory; what lies between two of them, and where it leads."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jzi.errors import DatasetError
from jzi.store.geometry.pyramid import WGS84, geodesic_distance

#: Half of the way, metres, over which the direction of travel is measured. Neighbouring fixes of a receiver are off by
#: a few decimetres against one another, which over 10 m is about 3 degrees.
HEADING_M = 5.0

#: Shortest way, metres, that has a direction.
LEAST_M = 1.0


@dataclass(frozen=True, eq=False)
class Track:
    """Positions over time.

    Attributes:
        name: of the file, for messages.
        time_s: (point,) seconds since 1970, or since any other moment; increasing.
        latitude: (point,) degrees (WGS 84).
        longitude: (point,) degrees, without jumps at the antimeridian.
        heading: (point,) recorded headings, degrees; None if there are none.
        dropped: number of points without a usable position or time, or with the time of another one.
        unordered: whether points were not in the order of their times.
    """

    name: str
    time_s: NDArray[np.float64]
    latitude: NDArray[np.float64]
    longitude: NDArray[np.float64]
    heading: NDArray[np.float64] | None = None
    dropped: int = 0
    unordered: bool = False

    @classmethod
    def of(
        cls, name: str, time_s: ArrayLike, latitude: ArrayLike, longitude: ArrayLike, heading: ArrayLike | None = None
    ) -> Self:
        """Sort points by time; without those at 0, 0, elsewhere than on earth, without a time, or of a time twice.

        Raises:
            DatasetError: fewer than two points are left.
        """
        time, north, east = (np.asarray(each, float) for each in (time_s, latitude, longitude))
        usable = np.isfinite(time) & (np.abs(north) <= 90) & (np.abs(east) <= 180) & ~((north == 0) & (east == 0))
        kept = np.flatnonzero(usable)
        order = kept[np.argsort(time[kept], kind="stable")]
        first = np.concatenate([[True], np.diff(time[order]) > 0])[: len(order)]
        chosen = order[first]
        if len(chosen) < 2:
            lacking = "no times" if len(time) and not np.isfinite(time).any() else "no two points"
            raise DatasetError(
                f"{name} has {lacking} to go by: of its {len(time)} points {len(chosen)} have a position and a time of "
                "their own"
            )
        return cls(
            name,
            time[chosen],
            north[chosen],
            np.unwrap(east[chosen], period=360.0),
            None if heading is None else np.asarray(heading, float)[chosen],
            len(time) - len(chosen),
            bool((np.diff(kept[np.argsort(time[kept], kind="stable")]) < 0).any()),
        )

    @property
    def start_s(self) -> float:
        """Time of the first point."""
        return float(self.time_s[0])

    @property
    def end_s(self) -> float:
        """Time of the last point."""
        return float(self.time_s[-1])

    def at(
        self, time_s: ArrayLike, max_gap_s: float
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Interpolate (n,) latitudes, longitudes and headings; NaN outside of the track and in gaps.

        The heading is that of the nearest point in time if the track records headings, else the direction of travel,
        NaN where it is too short to have one.

        Args:
            time_s: (n,) times.
            max_gap_s: longest time between two points that is bridged, seconds.
        """
        time = np.asarray(time_s, float)
        known = self.covers(time, max_gap_s)
        latitude = np.where(known, np.interp(time, self.time_s, self.latitude), np.nan)
        longitude = np.where(known, _wrapped(np.interp(time, self.time_s, self.longitude)), np.nan)
        if self.heading is None:
            heading = self._direction(time, max_gap_s)
        else:
            after = np.clip(np.searchsorted(self.time_s, time), 1, len(self.time_s) - 1)
            nearer = time - self.time_s[after - 1] <= self.time_s[after] - time
            heading = self.heading[np.where(nearer, after - 1, after)] % 360
        return latitude, longitude, np.where(known, heading, np.nan)

    def covers(self, time_s: ArrayLike, max_gap_s: float) -> NDArray[np.bool_]:
        """(n,) whether times lie on the track and not in one of its gaps."""
        time = np.asarray(time_s, float)
        inside = (time >= self.start_s) & (time <= self.end_s)
        after = np.clip(np.searchsorted(self.time_s, time), 1, len(self.time_s) - 1)
        gap = self.time_s[after] - self.time_s[after - 1]
        at_point = (time == self.time_s[after]) | (time == self.time_s[after - 1])
        return inside & ((gap <= max_gap_s) | at_point)

    def spaced(
        self, every_m: float, *, start_s: float, end_s: float, min_speed: float, max_gap_s: float
    ) -> NDArray[np.float64]:
        """(n,) times at which the track has covered 0, 1, 2 ... times a distance.

        What is slower than a speed, and gaps, are left out of the distance and of the times.

        Args:
            every_m: the distance, metres.
            start_s: time to begin at.
            end_s: time to end at.
            min_speed: metres a second.
            max_gap_s: longest time between two points that is bridged, seconds.
        """
        start, end = max(start_s, self.start_s), min(end_s, self.end_s)
        if not start < end:
            return np.empty(0)
        inner = self.time_s[(self.time_s > start) & (self.time_s < end)]
        time = np.concatenate([[start], inner, [end]])
        latitude, longitude = (np.interp(time, self.time_s, each) for each in (self.latitude, self.longitude))
        length = geodesic_distance(latitude[:-1], longitude[:-1], latitude[1:], longitude[1:])
        step = np.diff(time)
        used = (length >= min_speed * step) & (length > 0) & self.covers((time[:-1] + time[1:]) / 2, max_gap_s)
        begin, step, length = time[:-1][used], step[used], length[used]
        covered = np.cumsum(length)
        if not len(covered):
            return np.empty(0)
        target = np.arange(0.0, covered[-1], every_m)
        part = np.minimum(np.searchsorted(covered, target, side="right"), len(covered) - 1)
        share = (target - (covered[part] - length[part])) / length[part]
        return begin[part] + np.clip(share, 0, 1) * step[part]

    def _direction(self, time: NDArray[np.float64], max_gap_s: float) -> NDArray[np.float64]:
        """(n,) direction of travel, measured over `HEADING_M` before and after, without bridging gaps."""
        length = geodesic_distance(self.latitude[:-1], self.longitude[:-1], self.latitude[1:], self.longitude[1:])
        covered = np.concatenate([[0.0], np.cumsum(length)])
        breaks = np.flatnonzero(np.diff(self.time_s) > max_gap_s)
        first = np.concatenate([[0], breaks + 1])
        last = np.concatenate([breaks, [len(covered) - 1]])
        piece = np.clip(np.searchsorted(self.time_s[first], time, side="right") - 1, 0, None)
        here = np.interp(time, self.time_s, covered)
        ends = [np.clip(here + step, covered[first[piece]], covered[last[piece]]) for step in (-HEADING_M, HEADING_M)]
        (west, south), (east, north) = (
            (np.interp(each, covered, self.longitude), np.interp(each, covered, self.latitude)) for each in ends
        )
        azimuth, _, way = WGS84.inv(west, south, east, north)
        return np.where(np.asarray(way) >= LEAST_M, np.asarray(azimuth) % 360, np.nan)


def _wrapped(longitude: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(np.abs(longitude) <= 180, longitude, (longitude + 180) % 360 - 180)


def iso_time(time_s: float, *, whole: bool = False) -> str:
    """A time as ISO 8601 text in UTC, with milliseconds unless it is `whole`; empty if it is none of a calendar.

    Args:
        time_s: seconds since 1970.
        whole: leave out fractions of a second, for messages.
    """
    try:
        moment = datetime.fromtimestamp(round(time_s, 3), UTC)
    except (ValueError, OverflowError, OSError):
        return ""
    return moment.replace(tzinfo=None).isoformat(timespec="seconds" if whole else "milliseconds") + "Z"


def parse_time(text: str) -> float | None:
    """Seconds since 1970 of ISO 8601 text; without an offset it is UTC. None if it is no time."""
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
