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

from jzi.encode import photo_reader
from jzi.encode.device import SHARE
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
        unreadable: path of each photo that cannot be read, to the reason.
    """

    def __init__(self, shape: tuple[int, int]) -> None:
        capacity = int(SHARE * psutil.virtual_memory().available) // (3 * shape[0] * shape[1])
        self.reader = photo_reader.PhotoReader(shape, keep=capacity)
        self.unreadable: dict[str, str] = {}

    def read(self, paths: Iterable[str], ahead: int) -> Iterator[NDArray[np.uint8] | None]:
        """(height, width, 3) of each photo in their order; None for one that cannot be read."""
        for photo in self.reader.read(paths, ahead):
            if photo.pixels is None:
                self.unreadable[photo.name] = photo.error
            yield photo.pixels

    def batches(self, paths: Iterable[str], size: int) -> Iterator[list[NDArray[np.uint8] | None]]:
        """The same, `size` at a time."""
        photos = self.read(paths, 2 * size)
        while batch := list(islice(photos, size)):
            yield batch


def readable_photos(photos: list[NDArray[np.uint8] | None]) -> tuple[list[int], Tensor | None]:
    """Which photos could be read, and those as (n, height, width, 3); None if none could."""
    places = [place for place, photo in enumerate(photos) if photo is not None]
    readable = [photo for photo in photos if photo is not None]
    return places, torch.from_numpy(np.stack(readable)) if readable else None
