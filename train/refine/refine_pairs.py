"""Pairs of a photo and a window for training refinement.

A window's offset from its photo is drawn anew in each epoch, from a seed. No window is centred on its photo: a refiner
would learn the centre, and be no better than a guess on the windows of candidates.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from jzi.evaluate.nearest import nearest_distance
from jzi.evaluate.stages.metres import DUPLICATE_M
from jzi.refine.windows.window import Windows
from jzi.store.geometry.cell_grid import CellGrid
from jzi.store.trained_photos import Keys, photo_keys

#: Share of the windows that lie around one of the 8 cells beside the photo's own, and largest shift of any, metres.
NEIGHBOURS, JITTER_M = 0.3, 5.0

#: Least distance of a photo from the window's edge in uniform offsets, and around cells, fractions of the side. Padding
#: shows where the edge is.
MARGIN, CELL_MARGIN = 0.1, 0.025


@dataclass(frozen=True)
class PairPhotos:
    """Photos with known positions, and what is known of their cameras.

    Attributes:
        row: (photo,) rows of the cache, or indices of files.
        latitude: (photo,) degrees (WGS 84).
        longitude: (photo,) degrees.
        x: (photo,) in the area's CRS.
        y: (photo,) in the area's CRS.
        heading_deg: (photo,) of the centre column, clockwise from true north; nan if it is not known.
        heading_sd_deg: (photo,) standard deviation of the heading.
        hfov_deg: (photo,) horizontal field of view; 360 of a panorama.
        panorama: (photo,) bool, whether it shows the whole horizon.
        key: (photo,) hashes, of `jzi.store.trained_photos.photo_keys`.
    """

    row: NDArray[np.int64]
    latitude: NDArray[np.float64]
    longitude: NDArray[np.float64]
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    heading_deg: NDArray[np.float64]
    heading_sd_deg: NDArray[np.float64]
    hfov_deg: NDArray[np.float64]
    panorama: NDArray[np.bool_]
    key: Keys

    @classmethod
    def of(cls, area: CellGrid, frame: pd.DataFrame, hfov_deg: float, heading_sd_deg: float) -> PairPhotos:
        """The photos of a table, such as `PhotoFeatures.encoded`, indexed by their row in the cache.

        Args:
            area: the area whose CRS x and y are in.
            frame: columns id, latitude and longitude, and optionally those of
                `jzi.encode.photo.photo_view.PhotoView.to_columns`.
            hfov_deg: field of view of photos whose own is not known.
            heading_sd_deg: standard deviation of headings whose own is not known.
        """

        def column(name: str, missing: float) -> NDArray[np.float64]:
            values = pd.to_numeric(frame[name], errors="coerce") if name in frame else pd.Series(missing, frame.index)
            return np.where(np.isfinite(values), values, missing).astype(float)

        latitude, longitude = frame["latitude"].to_numpy(float), frame["longitude"].to_numpy(float)
        panorama = column("panorama", 0.0) == 1
        return cls(
            frame.index.to_numpy(np.int64),
            latitude,
            longitude,
            *area.project(latitude, longitude),
            column("heading_deg", np.nan),
            column("heading_sd_deg", heading_sd_deg),
            np.where(panorama, 360.0, column("hfov_deg", hfov_deg)),
            panorama,
            photo_keys(frame),
        )

    def __len__(self) -> int:
        return len(self.row)

    def __getitem__(self, index: NDArray[Any] | slice) -> PairPhotos:
        return PairPhotos(**{each.name: getattr(self, each.name)[index] for each in fields(self)})

    def spread(self, count: int) -> PairPhotos:
        """At most `count` of the photos, evenly spaced."""
        return self[np.linspace(0, len(self) - 1, count).astype(int)] if len(self) > count else self

    def near(self, others: PairPhotos, metres: float = DUPLICATE_M) -> NDArray[np.bool_]:
        """(photo,) whether one of the others was taken within a distance."""
        if not len(self) or not len(others):
            return np.zeros(len(self), bool)
        distance = nearest_distance(self.latitude, self.longitude, others.latitude, others.longitude)
        return distance <= metres


def draw_windows(
    photos: PairPhotos,
    area: CellGrid,
    side_m: float,
    pixels: int,
    offsets: Literal["cell", "uniform"],
    seed: tuple[int, ...],
) -> Windows:
    """Draw a window around each photo.

    Args:
        photos: the photos, inside the area.
        area: the area.
        side_m: side of a window, metres on the ground.
        pixels: pixels along its side.
        offsets: "cell": around the centre of the photo's cell, or with probability `NEIGHBOURS` of one beside it,
            shifted by up to `JITTER_M`; a window that would not contain its photo is drawn around the photo's own cell,
            else uniformly. "uniform": the photo is equally likely to be anywhere in the window but its margin.
        seed: of the random numbers; a photo's window depends on it and on the photo's number.

    Returns:
        (photo,) windows; every photo lies inside of its own.
    """
    rng = np.random.default_rng([*seed, 7])
    unit = side_m * Windows(area, photos.x, photos.y, side_m, pixels).scale  # of a window's side in the CRS
    free = (1 - 2 * MARGIN) * unit * (rng.random((2, len(photos))) - 0.5)
    x, y = photos.x - free[0], photos.y - free[1]
    beside = rng.random(len(photos)) < NEIGHBOURS
    ring = rng.integers(0, 8, len(photos))
    down, right = np.divmod(np.where(ring >= 4, ring + 1, ring), 3)
    shift = 2 * JITTER_M / side_m * unit * (rng.random((2, len(photos))) - 0.5)
    if offsets == "cell":
        row, col = area.cells_at(photos.latitude, photos.longitude)
        cell_x, cell_y = area.cell_centers(row, col)
        size = area.cell_size
        reach = (0.5 - CELL_MARGIN) * unit
        for away in (0, 1):  # the photo's own cell, then the cells beside it
            to_x = cell_x + shift[0] + away * (right - 1) * size
            to_y = cell_y + shift[1] - away * (down - 1) * size
            inside = (np.abs(photos.x - to_x) < reach) & (np.abs(photos.y - to_y) < reach) & (row >= 0)
            chosen = inside & beside if away else inside
            x, y = np.where(chosen, to_x, x), np.where(chosen, to_y, y)
    return Windows(area, x, y, side_m, pixels)


def places_in(windows: Windows, photos: PairPhotos) -> NDArray[np.float64]:
    """Where each photo lies in each window.

    Args:
        windows: (window,) of one area.
        photos: (photo,).

    Returns:
        (photo, window, 2) column and row from the window's centre, right and down positive, fractions of its side.
    """
    count = len(windows), len(photos)
    u, v = windows.crs_to_pixels(np.broadcast_to(photos.x, count), np.broadcast_to(photos.y, count))
    return np.stack([u.T, v.T], -1) / windows.pixels - 0.5


def own_places(windows: Windows, photos: PairPhotos) -> NDArray[np.float64]:
    """(photo, 2) where each photo lies in the window of its number, as `places_in`."""
    return np.stack(windows.crs_to_pixels(photos.x, photos.y), -1) / windows.pixels - 0.5
