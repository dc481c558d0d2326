"""Photos to train an encoder on, as files, and the reader that decodes them ahead."""

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
from jzi.encode.photos import open_photo, resize_photo
from jzi.encode.prefetch import prefetch, reader_threads
from jzi.errors import PhotoError
from jzi.store.photo_table import PhotoTable
from jzi.store.pyramid import Pyramid

Find = Callable[[NDArray[np.int64]], tuple[Tensor, NDArray[np.bool_]]]


@dataclass(frozen=True)
class PhotoDataset:
    """Photos of a split, as `jzi.decode.dataset.ZoomDataset`, but as files.

    Attributes:
        paths: (photo,) files.
        tiles: (photo, L) indices of the tiles along the true path.
        actions: (photo, L) true actions.
        latitude: (photo,) degrees.
        longitude: (photo,) degrees.
        unreachable: photos that were left out, because the map has no imagery where they were taken.
    """

    paths: NDArray[np.object_]
    tiles: Tensor
    actions: Tensor
    latitude: NDArray[np.float64]
    longitude: NDArray[np.float64]
    unreachable: int

    @classmethod
    def of(cls, pyramid: Pyramid, table: PhotoTable, split: str, find: Find) -> PhotoDataset:
        """Those of a split of a query table that lie on the map's imagery, whatever order a folder is listed in.

        Args:
            pyramid: how the area is cut.
            table: the photos.
            split: which of them.
            find: (photo, L) actions, zeros outside of the area, to (photo, n) tiles and (photo,) whether there is
                imagery.
        """
        frame = table.frame[table.frame["split"] == split].sort_values("id")
        latitude, longitude = frame["latitude"].to_numpy(float), frame["longitude"].to_numpy(float)
        paths = pyramid.paths(latitude, longitude).reshape(-1, pyramid.levels)
        tiles, there = find(np.maximum(paths, 0))
        keep = (paths[:, 0] >= 0) & there
        return cls(
            paths=frame["photo"].to_numpy(object)[keep],
            tiles=tiles[torch.from_numpy(keep).to(tiles.device)],
            actions=torch.from_numpy(paths[keep]),
            latitude=latitude[keep],
            longitude=longitude[keep],
            unreachable=int((~keep).sum()),
        )

    def __len__(self) -> int:
        return len(self.paths)

    def spread(self, count: int) -> PhotoDataset:
        """At most `count` of them, evenly spread over all."""
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
    """Reads photos ahead, at the encoder's size; keeps them decoded as far as there is memory.

    Args:
        shape: height and width, pixels.

    Attributes:
        unreadable: what is wrong with each photo that cannot be read.
    """

    def __init__(self, shape: tuple[int, int]) -> None:
        self.height, self.width = shape
        self.unreadable: dict[str, str] = {}
        self._kept: dict[str, NDArray[np.uint8]] = {}
        self._room = int(SHARE * psutil.virtual_memory().available) // (3 * self.height * self.width)

    def read(self, paths: Iterable[str], ahead: int) -> Iterator[NDArray[np.uint8] | None]:
        """(height, width, 3) of each photo in turn; None for one that cannot be read."""
        return prefetch(self._read, paths, reader_threads(), ahead)

    def batches(self, paths: Iterable[str], size: int) -> Iterator[list[NDArray[np.uint8] | None]]:
        """The same, `size` at a time."""
        photos = self.read(paths, 2 * size)
        while batch := list(islice(photos, size)):
            yield batch

    def _read(self, path: str) -> NDArray[np.uint8] | None:
        if path in self._kept:
            return self._kept[path]
        try:
            photo = resize_photo(open_photo(path), self.width, self.height)
        except PhotoError as error:
            self.unreadable[path] = str(error)
            return None
        if len(self._kept) < self._room:
            self._kept[path] = photo
        return photo


def readable_photos(photos: list[NDArray[np.uint8] | None]) -> tuple[list[int], Tensor | None]:
    """Which photos could be read, and those as (n, height, width, 3); None if none could."""
    places = [place for place, photo in enumerate(photos) if photo is not None]
    readable = [photo for photo in photos if photo is not None]
    return places, torch.from_numpy(np.stack(readable)) if readable else None
