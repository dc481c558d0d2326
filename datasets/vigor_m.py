"""VIGOR-M (Fan et al. 2026, GeoMoE): panoramas of four cities, and each city as a square of 4 x 4 tiles, three times.

metadata/city_bounds.csv                              city, l0_min_lon, l0_min_lat, l0_max_lon, l0_max_lat
metadata/{same,cross}_area_{train,test}.csv           city, ground, ground_path, lat, lon, L0, L1, L2, L3
panoramas/<city>/<latitude>,<longitude>_<year>_<month>_<id>.jpg
satellite/<city>/L3/<city>_L3_r00_c00.png             64 x 64 tiles; also L0 to L2, which the finest ones cover

Also with the names before the release: Pano/, level/, meta/level_pano/ and
figures/pano_distribution/pano_distribution_summary.csv. Tiles are equal steps of latitude and longitude between a
city's bounds: in the equirectangular projection in which the bounds are a square, they are the cells of a pyramid of
three levels.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Literal

import numpy as np
import pandas as pd
from pyproj import CRS

from jzi.datasets.tiled_layout import TiledLayout
from jzi.errors import DatasetError, PhotoError, first_line
from jzi.store.disk.files import write_whole
from jzi.store.geometry.pyramid import Pyramid, geodesic_distance
from jzi.store.photos.photo_file import open_image, open_regular_file

Area = Literal["same", "cross"]

CITIES = ("Chicago", "NewYork", "SanFrancisco", "Seattle")

#: Levels, tiles per side of a tile, and radius of the sphere, metres.
LEVELS, GRID, RADIUS_M = 3, 4, 6_378_137.0

#: Most bytes of a table; that of all photos takes 20 MB.
MAX_TABLE = 2**28

_BOUNDS = ("l0_min_lon", "l0_min_lat", "l0_max_lon", "l0_max_lat")
_COLUMNS = ("lat", "lon", "L3")
_PANORAMA = re.compile(r"[+-]?\d+(?:\.\d+)?,\s*[+-]?\d+(?:\.\d+)?_\d{4}_\d{2}_(?P<id>.+)\.jpe?g", re.IGNORECASE)
_TILE = re.compile(r"(?P<city>[A-Za-z]+)_L3_r(?P<row>\d{1,2})_c(?P<col>\d{1,2})")


@dataclass(frozen=True)
class City:
    """A city of the data set.

    Attributes:
        name: one of `CITIES`.
        pyramid: its area; the cells are the tiles of L3.
        tiles: folder of the tiles of L3.
        panoramas: folder of the photos.
        photos: a photo table: id, path, latitude, longitude, panorama, split, and the sequence of tiles that the data
            set gives.
    """

    name: str
    pyramid: Pyramid
    tiles: Path
    panoramas: Path
    photos: pd.DataFrame

    @property
    def cell_m(self) -> tuple[float, float]:
        """Width and height of a cell in the middle of the city, metres."""
        row = col = self.pyramid.shape[0] // 2
        x, y = self.pyramid.cell_centers(row, col)
        half = self.pyramid.cell_size / 2
        north, east = self.pyramid.unproject(np.array([x - half, x + half, x, x]), np.array([y, y, y - half, y + half]))
        width, height = geodesic_distance(north[::2], east[::2], north[1::2], east[1::2])
        return float(width), float(height)

    def layout(self) -> TiledLayout:
        """The tiles of L3, as what writes a VRT of them.

        Raises:
            DatasetError: there is no tile, or the first one is no square image.
        """
        first = next(iter(sorted(self.tiles.glob(f"{self.name}_L{LEVELS}_r*_c*.png"))), None)
        if first is None:
            raise DatasetError(f"{self.tiles} has no tiles {self.name}_L{LEVELS}_r00_c00.png: complete the data set")
        try:
            with open_image(first, str(first)) as image:
                width, height = image.size
        except PhotoError as error:
            raise DatasetError(str(error)) from error
        if width != height:
            raise DatasetError(f"{first} is {width} x {height} pixels: tiles of VIGOR-M are square")
        area = self.pyramid
        return TiledLayout(
            folder=self.tiles,
            crs=CRS.from_user_input(area.crs),
            axes=("east", "south"),
            pixels=width,
            side=area.cell_size,
            origin=(area.west, area.north - area.size),
            size=(area.size, area.size),
            zoom=0,
            path=f"{self.name}_L{LEVELS}_r{{y}}_c{{x}}.png",
        )


def read(folder: Path, area: Area) -> list[City]:
    """Read the cities of the data set that are on disk.

    Args:
        folder: of the data set.
        area: "same": trained and tested in all cities; "cross": trained in two, tested in the others.

    Raises:
        DatasetError: the folder is none of VIGOR-M, or a table of it is damaged.
    """
    bounds = _bounds(folder)
    panoramas, satellite = _first(folder, "panoramas", "Pano"), _first(folder, "satellite", "level")
    if panoramas is None or satellite is None:
        raise DatasetError(f"{folder} lacks panoramas/ or satellite/: give the folder of VIGOR-M")
    photos = _photos(folder, area)
    cities = []
    for name in CITIES:
        rows = photos[photos["city"] == name]
        if name in bounds and len(rows) and (satellite / name).is_dir() and (panoramas / name).is_dir():
            table = _table(rows, panoramas / name)
            tiles = satellite / name / f"L{LEVELS}"
            cities.append(City(name, area_of(*bounds[name], name=name), tiles, panoramas / name, table))
    if not cities:
        raise DatasetError(
            f"{folder} has bounds, photos, panoramas and tiles of none of {', '.join(CITIES)}: complete the data set"
        )
    return cities


def area_of(min_lon: float, min_lat: float, max_lon: float, max_lat: float, *, name: str) -> Pyramid:
    """The pyramid whose cells are a city's tiles of L3.

    It is in the equirectangular projection in which the bounds are a square: true to scale at the latitude whose cosine
    is their ratio.

    Args:
        min_lon: west, degrees.
        min_lat: south, degrees.
        max_lon: east, degrees.
        max_lat: north, degrees.
        name: of the city, for messages.

    Raises:
        DatasetError: the bounds are none, or further from a square than twice or half.
    """
    if not (-180 <= min_lon < max_lon <= 180 and -85 <= min_lat < max_lat <= 85):
        raise DatasetError(f"{name} has the bounds {min_lon:g}..{max_lon:g}, {min_lat:g}..{max_lat:g}, which are none")
    ratio = (max_lat - min_lat) / (max_lon - min_lon)
    expected = math.cos(math.radians((min_lat + max_lat) / 2))
    if not (ratio <= 1 and 0.5 <= ratio / expected <= 2):
        raise DatasetError(
            f"{name} is {max_lon - min_lon:g} by {max_lat - min_lat:g} degrees, no square: check city_bounds.csv"
        )
    crs = (
        f"+proj=eqc +lat_ts={math.degrees(math.acos(ratio))!r} +lon_0={min_lon!r} +R={RADIUS_M:.0f} +units=m +no_defs "
        "+type=crs"
    )
    size = RADIUS_M * math.radians(max_lat - min_lat)
    return Pyramid(crs, 0.0, RADIUS_M * math.radians(max_lat), size, GRID, LEVELS)


def write_photos(city: City, table: Path) -> None:
    """Write the photo table of a city as CSV, atomically."""
    write_whole(table, lambda file: city.photos.to_csv(file, index=False))


def _first(folder: Path, *names: str) -> Path | None:
    return next((folder / name for name in names if (folder / name).exists()), None)


def _bounds(folder: Path) -> dict[str, tuple[float, float, float, float]]:
    file = _first(folder, "metadata/city_bounds.csv", "figures/pano_distribution/pano_distribution_summary.csv")
    if file is None:
        raise DatasetError(f"{folder} has no metadata/city_bounds.csv: give the folder of VIGOR-M")
    frame = _read_csv(file, ("city", *_BOUNDS))
    numbers = frame[list(_BOUNDS)].apply(pd.to_numeric, errors="coerce").to_numpy(float)
    rows = zip(frame["city"], numbers.tolist(), strict=True)
    return {str(city): (row[0], row[1], row[2], row[3]) for city, row in rows}


def _photos(folder: Path, area: Area) -> pd.DataFrame:
    """The rows of the published lists of a protocol, with city and split."""
    metadata = _first(folder, "metadata", "meta/level_pano")
    if metadata is None:
        raise DatasetError(f"{folder} has no metadata/, the published splits: give the folder of VIGOR-M")
    frames = []
    for split in ("train", "test"):
        file = metadata / f"{area}_area_{split}.csv"
        if file.is_file():
            frames.append(_read_csv(file, ("city", *_COLUMNS)).assign(split=split))
        elif area == "same":
            for city in CITIES:
                if part := _first(metadata, f"{city}/{city}_{split}.csv", f"{city}_{split}.csv"):
                    frames.append(_read_csv(part, _COLUMNS).assign(city=city, split=split))
    if {frame["split"].iloc[0] for frame in frames if len(frame)} != {"train", "test"}:
        raise DatasetError(f"{metadata} lacks {area}_area_train.csv or {area}_area_test.csv: complete the data set")
    return pd.concat(frames, ignore_index=True)


def _read_csv(file: Path, columns: Iterable[str]) -> pd.DataFrame:
    try:
        with open_regular_file(file) as opened:
            if opened.seek(0, 2) > MAX_TABLE:
                raise ValueError(f"it has more than {MAX_TABLE} bytes")
            opened.seek(0)
            frame = pd.read_csv(opened, dtype={"city": str, "ground": str, "ground_path": str, "L3": str})
    except (OSError, ValueError) as error:  # pandas' errors are ValueErrors
        raise DatasetError(f"{file} cannot be read as a table: {first_line(error)}") from error
    if missing := [name for name in columns if name not in frame]:
        raise DatasetError(f"{file} has no column {', '.join(missing)}: it is no table of VIGOR-M")
    return frame


def _table(rows: pd.DataFrame, panoramas: Path) -> pd.DataFrame:
    """The photo table of a city's rows. Paths are names of files: older lists have those of another machine."""
    given = rows["ground_path"] if "ground_path" in rows else rows.get("ground", pd.Series("", index=rows.index))
    names = [PureWindowsPath(str(path)).name for path in given.fillna("")]
    matches = [_PANORAMA.fullmatch(name) for name in names]
    ids = [match["id"] if match else name for name, match in zip(names, matches, strict=True)]
    return pd.DataFrame({
        "id": ids,
        "path": names,
        "latitude": pd.to_numeric(rows["lat"], errors="coerce").to_numpy(float),
        "longitude": pd.to_numeric(rows["lon"], errors="coerce").to_numpy(float),
        "panorama": True,
        "split": rows["split"].to_numpy(),
        "sequence": [_sequence(tile) for tile in rows["L3"].fillna("")],
    })  # fmt: skip


def _sequence(tile: str) -> str:
    """The actions that lead to a tile of L3, as a photo table has them; empty if its name is none."""
    match = _TILE.fullmatch(tile)
    side = GRID**LEVELS
    if not match or int(match["row"]) >= side or int(match["col"]) >= side:
        return ""
    row, col = int(match["row"]), int(match["col"])
    scales = [GRID**power for power in range(LEVELS - 1, -1, -1)]
    return str([row // scale % GRID * GRID + col // scale % GRID for scale in scales])
