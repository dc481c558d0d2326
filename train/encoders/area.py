"""Areas to train an encoder on: the images of the map, and the photos with the indices of their tiles or cells."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from jzi.decode.tile_table import TileTable
from jzi.encode.device import allocate
from jzi.encode.rasters.cells import CellImages
from jzi.encode.rasters.imagery import Imagery
from jzi.encode.rasters.tiles import TileRenderer
from jzi.errors import TrainingError
from jzi.store.features.map_embeddings import ENCODED, NODATA, MapEmbeddings
from jzi.store.geometry.pyramid import Pyramid, TileKey
from jzi.store.info import ImageryInfo
from jzi.store.photos.photo_table import PhotoTable
from jzi.train.encoders.photos import PhotoDataset


class Images(Protocol):
    """Images of an area's tiles, (tile, S, S, 3) uint8: a tensor, or an object that crops them when indexed."""

    @property
    def device(self) -> torch.device:
        """Device of the index tensors."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: Tensor, /) -> Tensor: ...


class Area(Protocol):
    """Training data of an encoder: images of tiles, and photos with the indices of their tiles."""

    @property
    def images(self) -> Images:
        """Images of all tiles."""
        ...

    @property
    def train(self) -> PhotoDataset:
        """Training photos."""
        ...

    @property
    def val(self) -> PhotoDataset:
        """Validation photos, which select the epoch."""
        ...


#: Why there is nothing to train on.
NO_PHOTO = "there is no photo to train on: none with split 'train' lies on the map's imagery"

AreaType = TypeVar("AreaType", bound=Area)


@dataclass(frozen=True)
class TrainingArea:
    """An area whose tiles are all rendered in advance, for fine-tuning.

    Attributes:
        pyramid: the area's tiles.
        imagery: info of the imagery that the tiles were rendered from.
        images: (tile, S, S, 3) uint8 of all tiles of levels 0..L-1, in the order of `TileTable`.
        table: the tiles, without embeddings.
        train: training photos.
        val: validation photos, which select the epoch.
        cells: reference crops of the terminal cells; None if they are not trained on.
    """

    pyramid: Pyramid
    imagery: ImageryInfo
    images: Tensor
    table: TileTable
    train: PhotoDataset
    val: PhotoDataset
    cells: CellImages | None = None

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
        cells: bool = False,
        progress: bool = True,
    ) -> TrainingArea:
        """Render every tile, and find the tiles of each photo.

        Args:
            imagery: the map.
            table: the photos.
            image_size: side of a tile, pixels.
            device: preferred device of the tiles; they are kept in memory or in a file if it has no room.
            folder: folder of that file.
            val_photos: maximum number of validation photos.
            cells: whether to render the terminal cells too, with the context that `jzi encode-map --cells` encodes.
            progress: whether to show a progress bar.

        Raises:
            ImageryError: the imagery cannot be read.
        """
        images, status = _render(imagery, image_size, device, folder, progress)
        pyramid = imagery.pyramid
        placeholder = tuple(np.zeros((*status[level].shape, 1), np.float16) for level in range(pyramid.levels))
        tiles = TileTable(MapEmbeddings(pyramid, placeholder, tuple(status)))

        def lookup(paths: NDArray[np.int64]) -> tuple[Tensor, NDArray[np.bool_]]:
            return tiles.tiles_along(paths), tiles.is_reachable(paths)

        train, val = (PhotoDataset.from_table(pyramid, table, split, lookup) for split in ("train", "val"))
        crops = None
        if cells:
            context = float(pyramid.grid)
            crops = CellImages(imagery, image_size, context, device=device, folder=folder, progress=progress)
        return cls(pyramid, imagery.info(), images, tiles, train, val.spread(val_photos), crops)


@dataclass(frozen=True)
class CellArea:
    """An area of reference crops, one per cell, for retrieval; `PhotoDataset.tiles` is (photo, 1), the photo's cell.

    Attributes:
        pyramid: the pyramid whose terminal cells these are.
        imagery: info of the imagery that the crops are rendered from.
        images: reference crops of all cells.
        train: training photos.
        val: validation photos, which select the epoch.
    """

    pyramid: Pyramid
    imagery: ImageryInfo
    images: CellImages
    train: PhotoDataset
    val: PhotoDataset

    @classmethod
    def load(cls, imagery: Imagery, table: PhotoTable, images: CellImages, val_photos: int) -> CellArea:
        """Find the cell of each photo.

        Args:
            imagery: the map.
            table: the photos.
            images: reference crops of all cells.
            val_photos: maximum number of validation photos.
        """
        pyramid = imagery.pyramid

        def lookup(paths: NDArray[np.int64]) -> tuple[Tensor, NDArray[np.bool_]]:
            row, col = pyramid.path_to_tile(paths)
            return torch.from_numpy(row * images.cells + col)[:, None], images.has_imagery[row, col]

        train, val = (PhotoDataset.from_table(pyramid, table, split, lookup) for split in ("train", "val"))
        return cls(pyramid, imagery.info(), images, train, val.spread(val_photos))


def load_areas(folder: Path, load: Callable[[], list[AreaType]]) -> list[AreaType]:
    """Create the run's folder and load its areas; if that fails, remove the folder again unless it existed before.

    Args:
        folder: the run's folder.
        load: loads the areas; may write to the folder.

    Raises:
        TrainingError: there is no photo to train on.
    """
    with new_folder(folder):
        areas = load()
        if not sum(len(area.train) for area in areas):
            raise TrainingError(NO_PHOTO)
        return areas


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[None]:
    """Create a folder; remove it again if an error is raised, unless it existed before."""
    existed = folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        if not existed:
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
