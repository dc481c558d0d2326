"""An area to train an encoder on: its map as images, and its photos with the keys of their tiles or cells."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from jzi.decode.tile_table import TileTable
from jzi.encode.cells import CellImages
from jzi.encode.device import allocate
from jzi.encode.imagery import Imagery
from jzi.encode.tiles import TileRenderer
from jzi.errors import TrainingError
from jzi.store.info import ImageryInfo
from jzi.store.map_embeddings import ENCODED, NODATA, MapEmbeddings
from jzi.store.photo_table import PhotoTable
from jzi.store.pyramid import Pyramid, TileKey
from jzi.train.photos import PhotoDataset


class Images(Protocol):
    """Images of an area's tiles: a tensor (tile, S, S, 3) uint8, or what cuts them out when they are asked for."""

    @property
    def device(self) -> torch.device:
        """Where indices are expected."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: Tensor, /) -> Tensor: ...


class Area(Protocol):
    """What is trained on: tiles as images, and photos that know their tiles."""

    @property
    def images(self) -> Images:
        """Of every tile."""
        ...

    @property
    def train(self) -> PhotoDataset:
        """Photos to learn from."""
        ...

    @property
    def val(self) -> PhotoDataset:
        """Photos to choose the epoch by."""
        ...


AreaType = TypeVar("AreaType", bound=Area)


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
            return tiles.tiles_along(paths), tiles.is_reachable(paths)

        split = {name: PhotoDataset.of(pyramid, table, name, find) for name in ("train", "val")}
        return cls(pyramid, imagery.info(), images, tiles, split["train"], split["val"].spread(val_photos))


@dataclass(frozen=True)
class CellArea:
    """One area, as map around cells, and photos that know their cell (`PhotoDataset.tiles`, one to a photo).

    Attributes:
        pyramid: how it is cut.
        imagery: what the cells were cut from.
        images: of all cells.
        train: photos to learn from.
        val: photos to choose the epoch by.
    """

    pyramid: Pyramid
    imagery: ImageryInfo
    images: CellImages
    train: PhotoDataset
    val: PhotoDataset

    @classmethod
    def load(cls, imagery: Imagery, table: PhotoTable, images: CellImages, val_photos: int) -> CellArea:
        """Work out in which cells the photos of a query table lie."""
        pyramid = imagery.pyramid

        def find(paths: NDArray[np.int64]) -> tuple[Tensor, NDArray[np.bool_]]:
            row, col = pyramid.path_to_tile(paths)
            return torch.from_numpy(row * images.cells + col)[:, None], images.has_imagery[row, col]

        train, val = (PhotoDataset.of(pyramid, table, split, find) for split in ("train", "val"))
        return cls(pyramid, imagery.info(), images, train, val.spread(val_photos))


def load_or_leave_nothing(folder: Path, load: Callable[[], list[AreaType]]) -> list[AreaType]:
    """Areas to train on, as a function loads them; a folder that was made for the run is removed again if it fails.

    Raises:
        TrainingError: there is no photo to train on.
    """
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        areas = load()
        if not sum(len(area.train) for area in areas):
            raise TrainingError("there is no photo to train on: none with split 'train' lies on the map's imagery")
        return areas
    except BaseException:
        if made:
            shutil.rmtree(folder, ignore_errors=True)
        raise


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
