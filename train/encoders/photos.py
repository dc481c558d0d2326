"""Training photos of an encoder: paths with positions, and a reader that decodes ahead."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from torch import Tensor

from jzi.encode.device import SHARE
from jzi.encode.photo import photo_reader
from jzi.store.geometry.pyramid import Pyramid
from jzi.store.photos.photo_table import PhotoTable

#: (photo, L) actions to (photo, n) indices of tiles and (photo,) whether there is imagery.
TileLookup = Callable[[NDArray[np.int64]], tuple[Tensor, NDArray[np.bool_]]]


@dataclass(frozen=True)
class PhotoDataset:
    """The photos of a split as files; `jzi.decode.dataset.ZoomDataset` is the same for embedded photos.

    Attributes:
        paths: (photo,) paths of the files.
        tiles: (photo, L) indices of the tiles along the true path, or (photo, 1) index of the cell.
        actions: (photo, L) true actions.
        latitude: (photo,) degrees.
        longitude: (photo,) degrees.
        unreachable: photos left out because the map has no imagery where they were taken.
    """

    paths: NDArray[np.object_]
    tiles: Tensor
    actions: Tensor
    latitude: NDArray[np.float64]
    longitude: NDArray[np.float64]
    unreachable: int

    @classmethod
    def from_table(cls, pyramid: Pyramid, table: PhotoTable, split: str, lookup: TileLookup) -> PhotoDataset:
        """The photos of a split that lie on the map's imagery, sorted by id.

        Args:
            pyramid: the area's tiles.
            table: the photos.
            split: "train" or "val".
            lookup: finds the tiles of photos; it is called with actions of 0 for photos outside of the area.
        """
        frame = table.frame[table.frame["split"] == split].sort_values("id")  # listing order of folders varies
        latitude, longitude = frame["latitude"].to_numpy(float), frame["longitude"].to_numpy(float)
        paths = pyramid.paths(latitude, longitude).reshape(-1, pyramid.levels)
        tiles, has_imagery = lookup(np.maximum(paths, 0))
        reachable = (paths[:, 0] >= 0) & has_imagery
        return cls(
            paths=frame["photo"].to_numpy(object)[reachable],
            tiles=tiles[torch.from_numpy(reachable).to(tiles.device)],
            actions=torch.from_numpy(paths[reachable]),
            latitude=latitude[reachable],
            longitude=longitude[reachable],
            unreachable=int((~reachable).sum()),
        )

    def __len__(self) -> int:
        return len(self.paths)

    def spread(self, count: int) -> PhotoDataset:
        """At most `count` of the photos, evenly spaced."""
        if len(self) <= count:
            return self
        index = np.linspace(0, len(self) - 1, count).astype(int)
        return replace(
            self,
            paths=self.paths[index],
            tiles=self.tiles[index],
            actions=self.actions[index],
            latitude=self.latitude[index],
            longitude=self.longitude[index],
        )


class PhotoReader:
    """Reads photos ahead at the encoder's size, and caches decoded ones in a share of the available memory.

    Args:
        shape: height and width, pixels.
        resampling: how photos are resized (`Encoder.resampling`).

    Raises:
        ConfigError: resampling is "reference", and OpenCV is not installed.

    Attributes:
        unreadable: path of each photo that could not be read, to the reason.
    """

    def __init__(self, shape: tuple[int, int], resampling: str = "antialias") -> None:
        capacity = int(SHARE * psutil.virtual_memory().available) // (3 * shape[0] * shape[1])
        self.reader = photo_reader.PhotoReader(shape, resampling, keep=capacity)
        self.unreadable: dict[str, str] = {}

    def read(self, paths: Iterable[str], ahead: int) -> Iterator[NDArray[np.uint8] | None]:
        """Each photo in order, (height, width, 3) uint8; None if it cannot be read.

        Args:
            paths: of the photos.
            ahead: number of photos to read ahead.
        """
        for photo in self.reader.read(paths, ahead):
            if photo.pixels is None:
                self.unreadable[photo.name] = photo.error
            yield photo.pixels

    def batches(self, paths: Iterable[str], size: int) -> Iterator[list[NDArray[np.uint8] | None]]:
        """As `read`, in lists of `size` photos."""
        photos = self.read(paths, 2 * size)
        while batch := list(islice(photos, size)):
            yield batch


def stack_readable(photos: list[NDArray[np.uint8] | None]) -> tuple[list[int], Tensor | None]:
    """Indices of the photos that could be read, and those photos as (n, height, width, 3); None if there are none."""
    indices = [index for index, photo in enumerate(photos) if photo is not None]
    readable = [photo for photo in photos if photo is not None]
    return indices, torch.from_numpy(np.stack(readable)) if readable else None
