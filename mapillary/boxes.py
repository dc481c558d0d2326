"""Boxes that searches go through: a fixed grid of longitude and latitude, whose boxes are split into four."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import shapely

from jzi.errors import DatasetError
from jzi.store.geometry.region import Region

#: Side of a box, degrees: 1.1 km from south to north. The service allows 0.1; from a city it answers boxes of that size
#: with its limit of 2000 photos, or with an error.
SIDE_DEG = 0.01

#: How often a box may be split: to 4 m. In 2026 the service refused boxes of more than 0.0002 degrees in some cities.
MAX_DEPTH = 8

#: Most boxes of a region: about a million square kilometres.
MAX_BOXES = 1_000_000

#: Boxes that are compared with the region at once.
_BLOCK = 100_000

#: Least side of a box that is asked about, degrees: a centimetre.
_LEAST_DEG = 1e-7


class Box(NamedTuple):
    """A box of the grid.

    Attributes:
        depth: how often it was split.
        x: its column, from longitude -180, in boxes of its size.
        y: its row, from latitude -90.
    """

    depth: int
    x: int
    y: int

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """West, south, east, north in degrees."""
        side = SIDE_DEG / 2**self.depth
        return self.x * side - 180, self.y * side - 90, (self.x + 1) * side - 180, (self.y + 1) * side - 90

    def children(self) -> list[Box]:
        """The four boxes that it splits into."""
        return [Box(self.depth + 1, 2 * self.x + i, 2 * self.y + j) for j in range(2) for i in range(2)]


class BoxGrid:
    """The boxes that touch a region.

    Args:
        region: the region.

    Raises:
        DatasetError: it has too many boxes.
    """

    def __init__(self, region: Region) -> None:
        self._geometry = region.geometry
        shapely.prepare(self._geometry)
        self._west, self._south, self._east, self._north = shapely.bounds(self._geometry)
        area = self._geometry.area / SIDE_DEG**2
        if area > MAX_BOXES or sum(len(x) * len(y) for x, y in self._parts()) > 10 * MAX_BOXES:
            raise DatasetError(
                f"{region.name} is too large: it has about {area:,.0f} boxes of {SIDE_DEG} degrees, and "
                f"{MAX_BOXES:,} are allowed; divide it, and give each part a folder of its own"
            )

    def _parts(self) -> Iterator[tuple[range, range]]:
        """Columns and rows of the grid around each polygon of the region."""
        for west, south, east, north in shapely.bounds(shapely.get_parts(self._geometry)):
            yield _steps(west + 180, east + 180), _steps(south + 90, north + 90)

    def __iter__(self) -> Iterator[Box]:
        """The boxes of the grid that touch the region, each once."""
        seen: set[Box] = set()
        for columns, rows in self._parts():
            per_block = max(1, _BLOCK // len(columns))
            for start in range(0, len(rows), per_block):
                block = [Box(0, x, y) for y in rows[start : start + per_block] for x in columns]
                touching = [box for box in self.touching(block) if box not in seen]
                seen.update(touching)
                yield from touching

    def touching(self, boxes: list[Box]) -> list[Box]:
        """Those of some boxes that touch the region."""
        bounds = np.array([self.clipped(box) for box in boxes]).reshape(-1, 4)
        wide = (bounds[:, 2] - bounds[:, 0] > _LEAST_DEG) & (bounds[:, 3] - bounds[:, 1] > _LEAST_DEG)
        touch = wide & shapely.intersects(self._geometry, shapely.box(*bounds.T))
        return [box for box, each in zip(boxes, touch.tolist(), strict=True) if each]

    def clipped(self, box: Box) -> tuple[float, float, float, float]:
        """West, south, east, north of the part of a box within the bounds of the region, degrees."""
        west, south, east, north = box.bounds
        return max(west, self._west), max(south, self._south), min(east, self._east), min(north, self._north)

    def contains(self, longitude: Any, latitude: Any) -> Any:
        """(n,) whether positions in degrees lie in the region or on its edge."""
        return shapely.intersects_xy(self._geometry, longitude, latitude)


def _steps(low: float, high: float) -> range:
    return range(int(low // SIDE_DEG), int(high // SIDE_DEG) + 1)
