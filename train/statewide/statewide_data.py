"""What state-wide retrieval is trained and validated on: photos and turned cells of one or several areas."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import psutil
from numpy.typing import NDArray

from jzi.encode.device import SHARE
from jzi.encode.encoders.photo_encoder import PhotoEncoder
from jzi.encode.photo.photo_reader import PhotoReader
from jzi.encode.photo.photos import PANORAMA
from jzi.encode.prefetch import prefetch, reader_threads
from jzi.encode.rasters.cell_blocks import BlockKey
from jzi.encode.rasters.cell_crops import BLOCK, CellCrops
from jzi.errors import ConfigError
from jzi.store.geometry.bands import BandGrid
from jzi.store.geometry.mercator import MercatorGrid
from jzi.store.geometry.region import CellRuns
from jzi.store.photos.photo_table import PhotoTable
from jzi.store.plain import plain
from jzi.train.statewide.stream import Samples, SampleStream

#: Why panoramas are left out: the towers fit the field of view of a plain camera into their input.
NO_PANORAMAS = "it looks like a 360° panorama (2:1), which is no photo of a plain camera"

#: Photos, or samples, that are read ahead: two batches of the published size. A sample takes 3 MB.
AHEAD = 60


@dataclass(frozen=True)
class StatewideArea:
    """A map and its photos.

    Attributes:
        crops: images of the area's cells.
        table: the photos.
        region: the cells of the area in which photos are located, for validation; None for all cells of the grid.
    """

    crops: CellCrops
    table: PhotoTable
    region: CellRuns | None = None

    @property
    def grid(self) -> BandGrid | MercatorGrid:
        """The cells."""
        grid = self.crops.grid
        if not isinstance(grid, BandGrid | MercatorGrid):
            raise ConfigError(f"the cells of a {type(grid).__name__} cannot be trained on: give bands or Web Mercator")
        return grid

    def fingerprint(self) -> str:
        """What the outcome of training depends on, for people and for comparison."""
        photos = self.table.frame[["id", "latitude", "longitude", "split"]].sort_values("id")
        digest = hashlib.sha256(photos.to_csv(index=False).encode()).hexdigest()[:16]
        cells = hashlib.sha256(str(plain(self.grid)).encode()).hexdigest()[:8]
        region = f", region {self.region.fingerprint[:8]}" if self.region else ""
        imagery = self.crops.imagery.info().fingerprint[:16]
        return f"{cells}, {imagery}, {len(photos)} photos, {digest}{region}"


@dataclass(frozen=True)
class AreaPhotos:
    """Photos of a split that lie on cells with imagery, of one or several areas.

    Attributes:
        paths: (photo,) paths of the files.
        latitude: (photo,) degrees.
        longitude: (photo,) degrees.
        area: (photo,) index of each photo's area.
        unreachable: photos left out because their cell is outside of the grid or has no imagery.
    """

    paths: NDArray[np.object_]
    latitude: NDArray[np.float64]
    longitude: NDArray[np.float64]
    area: NDArray[np.int64]
    unreachable: int

    @classmethod
    def of(cls, areas: Sequence[StatewideArea], split: str) -> AreaPhotos:
        """The photos of a split, by area and id.

        Args:
            areas: the areas.
            split: "train" or "val".

        Raises:
            ImageryError: the imagery cannot be read.
        """
        paths, latitude, longitude, number = [], [], [], []
        unreachable = 0
        for index, area in enumerate(areas):
            frame = area.table.frame[area.table.frame["split"] == split].sort_values("id")
            position = frame["latitude"].to_numpy(float), frame["longitude"].to_numpy(float)
            reachable = _has_imagery(area, *position)
            paths.append(frame["photo"].to_numpy(object)[reachable])
            latitude.append(position[0][reachable])
            longitude.append(position[1][reachable])
            number.append(np.full(np.count_nonzero(reachable), index))
            unreachable += int(np.count_nonzero(~reachable))
        return cls(
            np.concatenate(paths),
            np.concatenate(latitude),
            np.concatenate(longitude),
            np.concatenate(number),
            unreachable,
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: NDArray[Any]) -> AreaPhotos:
        return replace(
            self,
            paths=self.paths[index],
            latitude=self.latitude[index],
            longitude=self.longitude[index],
            area=self.area[index],
        )

    def spread(self, count: int) -> AreaPhotos:
        """At most `count` photos of each area, evenly spaced."""
        kept = []
        for area in np.unique(self.area):
            index = np.flatnonzero(self.area == area)
            kept.append(index[np.linspace(0, len(index) - 1, min(count, len(index))).astype(int)])
        return self[np.concatenate([np.empty(0, np.int64), *kept])]


def _has_imagery(
    area: StatewideArea, latitude: NDArray[np.float64], longitude: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """(n,) whether the cell of each position has imagery; a cell is looked at once."""
    cells, index = np.unique(np.stack(area.grid.cells_at(latitude, longitude), 1), axis=0, return_inverse=True)
    covered = cells[:, 0] >= 0
    centers = area.grid.positions(*cells[covered].T)
    covered[covered] = area.crops.covered(*centers, threads=reader_threads())
    return covered[index.reshape(-1)]


def ground_size(grid: BandGrid | MercatorGrid, latitude: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n,) side of the cells at some latitudes, metres on the ground: in Web Mercator, smaller towards the poles."""
    shrink = np.cos(np.radians(latitude)) if isinstance(grid, MercatorGrid) else np.ones_like(latitude)
    return grid.cell_size * shrink


@dataclass(frozen=True)
class LoadedSamples:
    """This process's samples of a batch, read.

    Attributes:
        batch: the samples of all processes, those of one behind those of another.
        number: (sample,) numbers of this process's samples in the stream.
        photos: (sample, height, width, 3) uint8; black if a photo cannot be read.
        readable: (sample,) bool, which photos could be read.
        boxes: first row, row after the last, first column and column after the last of each photo without padding.
        cells: (sample, level, S, S, 3) uint8.
    """

    batch: Samples
    number: NDArray[np.int64]
    photos: NDArray[np.uint8]
    readable: NDArray[np.bool_]
    boxes: list[tuple[int, int, int, int]]
    cells: NDArray[np.uint8]


class _Loaded(NamedTuple):
    """A sample as loaded in a thread."""

    photo: NDArray[np.uint8] | None
    box: tuple[int, int, int, int]
    cell: NDArray[np.uint8]


def content_box(photo: NDArray[np.uint8]) -> tuple[int, int, int, int]:
    """First row, row after the last, first column and column after the last of a photo without its black padding."""
    if photo[0].any() and photo[-1].any() and photo[:, 0].any() and photo[:, -1].any():
        return 0, photo.shape[0], 0, photo.shape[1]
    rows, cols = (np.flatnonzero(photo.any((axis, 2))) for axis in (1, 0))
    return (int(rows[0]), int(rows[-1]) + 1, int(cols[0]), int(cols[-1]) + 1) if len(rows) else (0, 0, 0, 0)


class SampleReader:
    """Reads photos and images of their cells ahead, in threads.

    Args:
        areas: the areas.
        photos: their photos.
        stream: the samples of these photos.
        encoder: how photos are resized.
        process: index of this process.
        processes: number of processes, which divides the size of a batch.

    Attributes:
        unreadable: path of each photo that could not be read, or is a panorama, to the reason.
    """

    def __init__(
        self,
        areas: Sequence[StatewideArea],
        photos: AreaPhotos,
        stream: SampleStream,
        encoder: PhotoEncoder,
        process: int = 0,
        processes: int = 1,
    ) -> None:
        self.areas, self.photos, self.stream = areas, photos, stream
        self.process, self.processes = process, processes
        height, width = encoder.photo_shape
        capacity = int(SHARE * psutil.virtual_memory().available) // (3 * height * width)
        self.reader = PhotoReader((height, width), encoder.resampling, fit=encoder.fit, keep=capacity)
        self.unreadable: dict[str, str] = {}

    def read(self, batches: Iterable[NDArray[np.int64]]) -> Iterator[LoadedSamples]:
        """This process's share of each batch, in order.

        Args:
            batches: (sample,) numbers of the samples of each batch, of all processes.

        Raises:
            ImageryError: the imagery cannot be read.
        """
        begun: deque[Samples] = deque()

        def shares() -> Iterator[Samples]:
            for numbers in batches:
                batch = self.stream.samples(share_evenly(numbers, self.processes))
                begun.append(batch)
                share = len(batch) // self.processes
                for index in range(self.process * share, (self.process + 1) * share):
                    yield batch[index : index + 1]

        loaded = prefetch(self._load, shares(), reader_threads(), ahead=AHEAD)
        for first in loaded:
            batch = begun.popleft()
            share = len(batch) // self.processes
            part = [first, *islice(loaded, share - 1)]
            empty = np.zeros((self.reader.height, self.reader.width, 3), np.uint8)
            yield LoadedSamples(
                batch,
                batch.number[self.process * share : (self.process + 1) * share],
                np.stack([empty if each.photo is None else each.photo for each in part]),
                np.array([each.photo is not None for each in part]),
                [each.box for each in part],
                np.stack([each.cell for each in part]),
            )

    def read_photos(self, paths: Sequence[str]) -> Iterator[NDArray[np.uint8] | None]:
        """Photos in order; None for one that cannot be read."""
        return prefetch(self._photo, paths, reader_threads(), ahead=AHEAD)

    def _load(self, sample: Samples) -> _Loaded:
        number = int(sample.photo[0])
        crops = self.areas[int(self.photos.area[number])].crops
        cell = crops.at(sample.latitude, sample.longitude, sample.rotation_deg)[0]
        photo = self._photo(self.photos.paths[number])
        return _Loaded(photo, (0, 0, 0, 0) if photo is None else content_box(photo), cell)

    def _photo(self, path: str) -> NDArray[np.uint8] | None:
        read = self.reader.read_one(path)
        if read.pixels is not None and PANORAMA not in read.notes:
            return read.pixels
        self.unreadable[path] = read.error or NO_PANORAMAS
        return None


def share_evenly(numbers: NDArray[np.int64], processes: int) -> NDArray[np.int64]:
    """Reorder the samples of a batch so that each process has as many, one process behind the other."""
    return np.concatenate([numbers[start::processes] for start in range(processes)])


@dataclass(frozen=True)
class Gallery:
    """Cells to search in a validation, and the validation photos in them.

    Attributes:
        area: the area.
        keys: blocks of cells.
        photos: the photos.
    """

    area: StatewideArea
    keys: list[BlockKey]
    photos: AreaPhotos

    @classmethod
    def of(cls, area: StatewideArea, photos: AreaPhotos, cells: int) -> Gallery:
        """All cells of an area, or else the blocks that hold most photos.

        Args:
            area: the area.
            photos: its validation photos.
            cells: largest number of cells; a block is always taken.
        """
        if _cell_count(area) <= cells:
            return cls(area, _blocks(area, 0, 0, area.grid.shape)[0], photos)
        row, col = (each // BLOCK for each in area.grid.cells_at(photos.latitude, photos.longitude))
        blocks, index, count = np.unique(np.stack([row, col], 1), axis=0, return_inverse=True, return_counts=True)
        keys: list[BlockKey] = []
        kept, taken = np.zeros(len(blocks), bool), 0
        for number in np.argsort(-count, kind="stable"):
            top, left = (blocks[number] * BLOCK).tolist()
            added, size = _blocks(area, top, left, (BLOCK, BLOCK))
            if taken and taken + size > cells:
                break
            keys, taken = [*keys, *added], taken + size
            kept[number] = True
        return cls(area, keys, photos[kept[index.reshape(-1)]])


def _cell_count(area: StatewideArea) -> int:
    """Number of cells of an area."""
    if area.region is not None:
        return area.region.count
    return int(area.grid.count.sum()) if isinstance(area.grid, BandGrid) else int(np.prod(area.grid.shape))


def _blocks(area: StatewideArea, top: int, left: int, shape: tuple[int, int]) -> tuple[list[BlockKey], int]:
    """Blocks of a rectangle of cells, and their number of cells at most."""
    rows, cols = (slice(a, min(a + n, m)) for a, n, m in zip((top, left), shape, area.grid.shape, strict=True))
    wanted = None if area.region is None else area.region.mask(rows, cols)
    keys = area.crops.keys(rows, cols, wanted)
    count = sum((key.rows.stop - key.rows.start) * (key.cols.stop - key.cols.start) for key in keys)
    return keys, count if wanted is None else int(wanted.sum())
