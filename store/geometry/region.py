"""The region that is searched: polygons, and the cells of a band grid that belong to it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.geometry import mapping, shape

from jzi.errors import BandsError
from jzi.store.geometry.bands import RADIUS, BandGrid
from jzi.store.geometry.geojson import read_polygons

#: Which cells belong to a region: those that it touches, that have a corner in it (Fervers et al. 2024), or the centre.
Rule = Literal["touch", "corners", "centre"]
RULES: tuple[Rule, ...] = ("touch", "corners", "centre")

#: Most pairs of an edge and a band that are computed at once.
_PAIRS = 2**22

#: Longitude from which a point is taken to be on the antimeridian, radians; a micrometre from it.
_ANTIMERIDIAN = np.pi - 1e-13

_Edges = NDArray[np.float64]


@dataclass(frozen=True)
class CellRuns:
    """Cells of a grid as runs of columns: of a state with millions of cells, a few thousand.

    Attributes:
        row: (run,) rows, ascending.
        start: (run,) first column of each run.
        stop: (run,) column after its last one; runs of a row neither overlap nor touch.
    """

    row: NDArray[np.int64]
    start: NDArray[np.int64]
    stop: NDArray[np.int64]

    @classmethod
    def merged(cls, row: NDArray[np.int64], start: NDArray[np.int64], stop: NDArray[np.int64]) -> CellRuns:
        """The union of runs in any order, which may overlap."""
        kept = stop > start
        row, start, stop = row[kept], start[kept], stop[kept]
        order = np.lexsort((start, row))
        row, start, stop = row[order], start[order], stop[order]
        if not len(row):
            return cls(row, start, stop)
        # Rows one behind the other on one line, so that the end of what came before is a running maximum
        length = int(stop.max()) + 2
        begin, end = row * length + start, np.maximum.accumulate(row * length + stop)
        new = np.concatenate([[True], begin[1:] > end[:-1]])
        last = np.concatenate([np.flatnonzero(new)[1:] - 1, [len(row) - 1]])
        return cls(row[new], start[new], end[last] - row[new] * length)

    @property
    def count(self) -> int:
        """Number of cells."""
        return int((self.stop - self.start).sum())

    @property
    def bands(self) -> int:
        """Number of rows that have cells."""
        return len(np.unique(self.row))

    def mask(self, rows: slice, cols: slice) -> NDArray[np.bool_]:
        """(row, col) whether each cell of a window is one of them."""
        height, width = rows.stop - rows.start, cols.stop - cols.start
        steps = np.zeros((height, width + 1), np.int32)
        first, last = np.searchsorted(self.row, [rows.start, rows.stop])
        row = self.row[first:last] - rows.start
        start, stop = (np.clip(each[first:last] - cols.start, 0, width) for each in (self.start, self.stop))
        np.add.at(steps, (row, start), 1)
        np.add.at(steps, (row, stop), -1)
        return steps[:, :-1].cumsum(1) > 0

    def contains(self, row: NDArray[np.int64], col: NDArray[np.int64]) -> NDArray[np.bool_]:
        """(n,) whether cells are among them; False for rows or columns of -1."""
        length = int(self.stop.max(initial=0)) + 1
        run = (
            np.searchsorted(self.row * length + self.start, row * length + np.minimum(col, length - 1), side="right")
            - 1
        )
        at = np.maximum(run, 0)
        inside = (run >= 0) & (self.row[at] == row) & (self.start[at] <= col) & (col < self.stop[at])
        return np.asarray(inside & (row >= 0) & (col >= 0))

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the runs."""
        return hashlib.sha256(np.stack([self.row, self.start, self.stop]).astype("<i8").tobytes()).hexdigest()


@dataclass(frozen=True)
class RegionInfo:
    """The cells of a region, as a cache records them.

    Attributes:
        grid: the grid that covers the region.
        rule: which cells belong to it.
        cells: number of its cells.
        fingerprint: SHA-256 of the cells.
        name: where the region comes from, for people.
    """

    grid: BandGrid
    rule: Rule
    cells: int
    fingerprint: str
    name: str

    def __post_init__(self) -> None:
        if not 1 <= self.cells <= int(self.grid.count.sum()):
            raise BandsError(f"a region of {self.cells} cells does not fit its grid of {int(self.grid.count.sum())}")

    @property
    def label(self) -> str:
        """Number and size of the cells, and the first digits of the fingerprint, for messages."""
        return f"{self.cells:,} cells of {self.grid.cell_m:g} m, {self.fingerprint[:8]}"


@dataclass(frozen=True)
class Region:
    """Polygons on the earth, whose edges are straight in longitude and latitude (RFC 7946).

    Attributes:
        geometry: their union, degrees.
        name: where they come from, for messages.
    """

    geometry: Any
    name: str = "the region"

    @classmethod
    def of(cls, polygons: Sequence[dict[str, Any]], name: str = "the region") -> Region:
        """From GeoJSON geometries, longitude and latitude in degrees.

        Raises:
            BandsError: a polygon crosses itself or the antimeridian, or has no area.
        """
        parts = []
        for polygon in polygons:
            part = shape(polygon)
            if not part.is_valid:
                raise BandsError(
                    f"{name} has a polygon that is not valid ({shapely.is_valid_reason(part)}): repair it "
                    "in a GIS, or draw it without crossing its own outline"
                )
            parts.append(shapely.force_2d(part))
            _check_edges(parts[-1], name)
        geometry = shapely.union_all(parts)
        if geometry.is_empty or geometry.area == 0:
            raise BandsError(f"{name} has no area: give a GeoJSON file with a polygon")
        return cls(geometry, name)

    @classmethod
    def read(cls, file: Path) -> Region:
        """From the polygons of a GeoJSON file, of any number of features.

        Raises:
            ConfigError: the file cannot be read or has no polygon.
            BandsError: a polygon crosses itself or the antimeridian, or has no area.
        """
        return cls.of(read_polygons(file), str(file))

    def to_geojson(self) -> dict[str, Any]:
        """As a GeoJSON geometry."""
        return dict(mapping(self.geometry))

    @property
    def _parts(self) -> list[Any]:
        return list(self.geometry.geoms) if self.geometry.geom_type == "MultiPolygon" else [self.geometry]

    @cached_property
    def edges(self) -> _Edges:
        """(edge, 4) longitude and latitude of both ends of every edge, radians."""
        rings = [np.asarray(ring.coords) for part in self._parts for ring in (part.exterior, *part.interiors)]
        edges = np.concatenate([np.concatenate([ring[:-1], ring[1:]], 1) for ring in rings])
        return np.asarray(np.radians(edges), np.float64)

    def grid(self, cell_m: float = 30.0) -> BandGrid:
        """The grid that covers the region; it begins east of the widest gap in longitude.

        Args:
            cell_m: side of a cell, metres.

        Raises:
            BandsError: the region reaches beyond 85.06 degrees, or has too many cells.
        """
        west, east = self._longitudes()
        south, north = self.geometry.bounds[1], self.geometry.bounds[3]
        return BandGrid.covering(west, south, east, north, cell_m)

    def _longitudes(self) -> tuple[float, float]:
        spans = sorted((part.bounds[0], part.bounds[2]) for part in self._parts)
        gaps, reached = [], spans[0][1]
        for west, east in spans[1:]:
            gaps.append((west - reached, reached, west))
            reached = max(reached, east)
        around = (spans[0][0] + 360 - reached, reached, spans[0][0])
        width, end, start = max([*gaps, around])
        if width <= 0:
            return -180.0, 180.0
        if start == 180:  # the region begins at the antimeridian
            start = -180.0
        return start, end if end > start else end + 360

    def cells(self, grid: BandGrid, rule: Rule = "touch") -> CellRuns:
        """The cells of a grid that belong to the region.

        Exact for cells as rectangles of latitude and longitude: intersections of edges with the parallels between
        bands, or through their centres, and of edges with bands.

        Args:
            grid: the grid; cells outside of it are left out.
            rule: "touch": the cell and the region have a point in common; "corners": a corner of the cell lies in the
                region; "centre": its centre does.

        Raises:
            BandsError: no cell belongs to it.
        """
        height, shift = grid.cell_m / RADIUS, {"touch": -0.5, "corners": -0.5, "centre": 0.0}[rule]
        bottom = int(grid.bands[-1])
        lines = np.arange(bottom, grid.top + (1 if rule == "centre" else 2))
        line, west, east = scanlines(self.edges, np.asarray((lines + shift) * height))
        line += bottom
        runs = []
        if rule == "centre":
            runs.append(_numbers(grid, line, west, east, 0.0, 0.0))
        else:
            for band in (line, line - 1):  # a line is the south edge of one band and the north edge of the next
                if rule == "touch":
                    runs.append(_numbers(grid, band, west, east, -1.0, 1.0))
                else:
                    runs += [_numbers(grid, band, west, east, side, side) for side in (-1.0, 1.0)]
            if rule == "touch":
                runs += [
                    _numbers(grid, band, west, east, -1.0, 1.0)
                    for band, west, east in _edges_in_bands(self.edges, grid)
                ]
        merged = CellRuns.merged(*(np.concatenate(each) for each in zip(*runs, strict=True)))
        if not merged.count:
            raise BandsError(
                f"no cell of {grid.cell_m:g} m belongs to {self.name}: give a larger region or another rule"
            )
        return merged


@dataclass(frozen=True)
class RegionCells:
    """A region and its cells.

    Attributes:
        region: the region.
        grid: the grid that covers it.
        rule: which cells belong to it.
        runs: those cells.
    """

    region: Region
    grid: BandGrid
    rule: Rule
    runs: CellRuns

    @classmethod
    def of(cls, region: Region, cell_m: float = 30.0, rule: Rule = "touch") -> RegionCells:
        """The cells of a region.

        Args:
            region: the region.
            cell_m: side of a cell, metres.
            rule: as for `Region.cells`.

        Raises:
            BandsError: the region reaches beyond 85.06 degrees, has too many cells, or none.
        """
        grid = region.grid(cell_m)
        return cls(region, grid, rule, region.cells(grid, rule))

    @cached_property
    def info(self) -> RegionInfo:
        """What a cache records of them."""
        return RegionInfo(self.grid, self.rule, self.runs.count, self.runs.fingerprint, Path(self.region.name).name)

    def contains(self, latitude: NDArray[np.float64], longitude: NDArray[np.float64]) -> NDArray[np.bool_]:
        """(n,) whether the cell of each position belongs to the region; degrees."""
        row, col = self.grid.cells_at(latitude, longitude)
        return (row >= 0) & self.runs.contains(row, col)


def scanlines(edges: _Edges, latitudes: NDArray[np.float64]) -> tuple[NDArray[np.int64], _Edges, _Edges]:
    """Where parallels run inside of a region.

    Args:
        edges: (edge, 4), radians.
        latitudes: (line,) ascending, radians.

    Returns:
        Index of the parallel, and longitudes of the ends of each stretch, (stretch,) each.
    """
    x0, y0, x1, y1 = edges.T
    first = np.searchsorted(latitudes, np.minimum(y0, y1))
    stop = np.searchsorted(latitudes, np.maximum(y0, y1))
    edge = np.repeat(np.arange(len(edges)), stop - first)
    line = np.arange(len(edge)) - np.repeat(np.cumsum(stop - first) - (stop - first), stop - first)
    line += np.repeat(first, stop - first)
    share = (latitudes[line] - y0[edge]) / (y1[edge] - y0[edge])
    x = x0[edge] + share * (x1[edge] - x0[edge])
    order = np.lexsort((x, line))
    line, x = line[order], x[order]
    return line[::2], x[::2], x[1::2]  # a parallel enters and leaves: the crossings come in pairs


def _edges_in_bands(edges: _Edges, grid: BandGrid) -> list[tuple[NDArray[np.int64], _Edges, _Edges]]:
    """Band, and longitudes of the ends of the part of each edge in each band that it runs through, in blocks."""
    height = grid.cell_m / RADIUS
    low, high = np.minimum(edges[:, 1], edges[:, 3]), np.maximum(edges[:, 1], edges[:, 3])
    first = np.maximum(np.floor(low / height + 0.5).astype(np.int64), grid.bands[-1])
    stop = np.minimum(np.floor(high / height + 0.5).astype(np.int64), grid.top) + 1
    length = np.maximum(stop - first, 0)
    blocks = []
    for block in np.split(np.arange(len(edges)), np.flatnonzero(np.diff(length.cumsum() // _PAIRS)) + 1):
        edge = np.repeat(block, length[block])
        before = np.repeat(length[block].cumsum() - length[block], length[block])
        band = np.arange(len(edge)) - before + first[edge]
        x0, y0, x1, y1 = edges[edge].T
        with np.errstate(divide="ignore", invalid="ignore"):
            shares = [np.clip(((band + side) * height - y0) / (y1 - y0), 0, 1) for side in (-0.5, 0.5)]
        level = y0 == y1  # runs along a parallel
        ends = [x0 + np.where(level, whole, share) * (x1 - x0) for share, whole in zip(shares, (0, 1), strict=True)]
        blocks.append((band, np.minimum(*ends), np.maximum(*ends)))
    return blocks


def _numbers(
    grid: BandGrid, band: NDArray[np.int64], west: _Edges, east: _Edges, left: float, right: float
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Runs of the cells of bands of which a point lies between two longitudes.

    Args:
        grid: the grid.
        band: (stretch,) numbers i.
        west: (stretch,) radians.
        east: (stretch,) radians.
        left: the point that must lie west of `east`: -1 the west edge of the cell, 0 its centre, 1 its east edge.
        right: the point that must lie east of `west`.
    """
    kept = (band <= grid.top) & (band > grid.top - grid.rows)
    row, west, east = grid.top - band[kept], west[kept], east[kept]
    step = grid.step[row]
    # A stretch that ends at the antimeridian contains all of the cell that this cuts
    west, east = np.where(west <= -_ANTIMERIDIAN, -4.0, west), np.where(east >= _ANTIMERIDIAN, 4.0, east)
    start = np.ceil(west / step - right / 2).astype(np.int64)
    stop = np.floor(east / step - left / 2).astype(np.int64)
    return grid.runs(row, start, stop)


def _check_edges(polygons: Any, name: str) -> None:
    """Raise a BandsError if an edge goes around the earth the long way, as of a polygon that crosses the antimeridian.

    The edges of a band around the whole earth, from -180 to 180 degrees, do not.
    """
    for part in shapely.get_parts(polygons):
        for ring in (part.exterior, *part.interiors):
            longitude = shapely.get_coordinates(ring)[:, 0]
            steps = np.abs(np.diff(longitude))
            if (long := np.flatnonzero((steps > 180) & (steps < 360))).size:
                west, east = longitude[long[0] : long[0] + 2]
                raise BandsError(
                    f"{name} has an edge from longitude {west:g} to {east:g}, more than half of the way around the "
                    "earth: split a region that crosses the antimeridian there into two polygons, as RFC 7946 says"
                )
