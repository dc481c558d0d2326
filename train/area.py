"""What fine-tuning reads of one area: its tiles as images, and its photos with the zooms that lead to them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from jzi.decode.tile_table import TileTable
from jzi.encode import photo_reader
from jzi.encode.device import SHARE, allocate
from jzi.encode.imagery import Imagery
from jzi.encode.tiles import TileRenderer
from jzi.store.info import ImageryInfo
from jzi.store.map_embeddings import ENCODED, NODATA, MapEmbeddings
from jzi.store.photo_table import PhotoTable
from jzi.store.pyramid import Pyramid, TileKey

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
        return PhotoDataset(
            self.paths[index],
            self.tiles[index],
            self.actions[index],
            self.latitude[index],
            self.longitude[index],
            self.unreachable,
        )


@dataclass(frozen=True)
class TrainingArea:
    """One area.

    Attributes:
        pyramid: how it is cut.
        imagery: what its tiles were cut from.
        images: (tile, S, S, 3) uint8 of all tiles of levels 0..L-1, in the order of `TileTable`.
        table: with no embeddings yet.
        train: photos to learn from.
        val: photos to choose the epoch by.
    """

    pyramid: Pyramid
    imagery: ImageryInfo
    images: Tensor
    table: TileTable
    train: PhotoDataset
    val: PhotoDataset

    @classmethod
    def load(
        cls,
        imagery: Imagery,
        table: PhotoTable,
        image_size: int,
        *,
        device: torch.device,
        folder: Path,
        val_photos: int,
        progress: bool = True,
    ) -> TrainingArea:
        """Render every tile, and work out where the photos of a query table lie.

        Args:
            imagery: the map.
            table: the photos.
            image_size: side of a tile, pixels.
            device: where the tiles are wanted.
            folder: for a file with the tiles, if they fit nowhere else.
            val_photos: how many validation photos to keep.
            progress: whether to show it.

        Raises:
            ImageryError: the imagery cannot be read.
        """
        images, status = _render(imagery, image_size, device, folder, progress)
        pyramid = imagery.pyramid
        nothing = tuple(np.zeros((*status[level].shape, 1), np.float16) for level in range(pyramid.levels))
        tiles = TileTable(MapEmbeddings(pyramid, nothing, tuple(status)))

        def find(paths: NDArray[np.int64]) -> tuple[Tensor, NDArray[np.bool_]]:
            return tiles.along(paths), tiles.reachable(paths)

        split = {name: PhotoDataset.of(pyramid, table, name, find) for name in ("train", "val")}
        return cls(pyramid, imagery.info(), images, tiles, split["train"], split["val"].spread(val_photos))


def _render(
    imagery: Imagery, image_size: int, device: torch.device, folder: Path, progress: bool
) -> tuple[Tensor, list[NDArray[np.uint8]]]:
    pyramid = imagery.pyramid
    sides = [pyramid.tiles_per_side(level) for level in range(pyramid.levels + 1)]
    offsets = np.concatenate([[0], np.cumsum([side**2 for side in sides])])
    images = allocate((pyramid.tile_count, image_size, image_size, 3), torch.uint8, device, folder)
    status = [np.full((side, side), NODATA, np.uint8) for side in sides]
    tiles = TileRenderer(imagery, image_size).render([TileKey(0, 0, 0)])
    for tile in tqdm(tiles, total=pyramid.tile_count, unit="tile", desc="map", disable=not progress):
        level, row, col = tile.key
        images[int(offsets[level]) + row * sides[level] + col] = torch.from_numpy(tile.image.copy())
        status[level][row, col] = ENCODED if tile.has_imagery else NODATA
        if tile.cells is not None:
            g = pyramid.grid
            cells = status[level + 1][row * g : (row + 1) * g, col * g : (col + 1) * g]
            cells[:] = np.where(tile.cells, ENCODED, NODATA)
    return images, status


class PhotoReader:
    """Reads photos ahead, at the encoder's size; keeps them decoded as far as there is memory.

    Args:
        shape: height and width, pixels.

    Attributes:
        unreadable: what is wrong with each photo that cannot be read.
    """

    def __init__(self, shape: tuple[int, int]) -> None:
        room = int(SHARE * psutil.virtual_memory().available) // (3 * shape[0] * shape[1])
        self.reader = photo_reader.PhotoReader(shape, keep=room)
        self.unreadable: dict[str, str] = {}

    def read(self, paths: Iterable[str], ahead: int) -> Iterator[NDArray[np.uint8] | None]:
        """(height, width, 3) of each photo in turn; None for one that cannot be read."""
        for photo in self.reader.read(paths, ahead):
            if photo.pixels is None:
                self.unreadable[photo.name] = photo.error
            yield photo.pixels

    def batches(self, paths: Iterable[str], size: int) -> Iterator[list[NDArray[np.uint8] | None]]:
        """The same, `size` at a time."""
        photos = self.read(paths, 2 * size)
        while batch := list(islice(photos, size)):
            yield batch
