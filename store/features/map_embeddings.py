"""Embeddings of a map in memory, and as the file map.safetensors of a model folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from jzi.errors import ModelError
from jzi.store.geometry.pyramid import Pyramid
from jzi.store.tensors import check_finite, check_header

#: Status of a tile.
MISSING, ENCODED, NODATA = 0, 1, 2


@dataclass(frozen=True)
class MapEmbeddings:
    """Embeddings of every tile of a pyramid.

    Attributes:
        pyramid: geometry of the area.
        embedding: (row, col, feature) float16 of each level 0..L-1; nan where a tile has no imagery.
        status: (row, col) uint8 of each level 0..L: 1 encoded, 2 no imagery.
        cells: (row, col, feature) float16 of the terminal cells, nan where there is no imagery; None if they were not
            read.
    """

    pyramid: Pyramid
    embedding: tuple[NDArray[Any], ...]
    status: tuple[NDArray[np.uint8], ...]
    cells: NDArray[Any] | None = None

    @property
    def width(self) -> int:
        """Number of features."""
        width: int = self.embedding[0].shape[-1]
        return width

    def save(self, path: Path) -> None:
        """Write one safetensors file."""
        tensors = {f"embedding.{level}": array for level, array in enumerate(self.embedding)}
        tensors |= {f"status.{level}": array for level, array in enumerate(self.status)}
        tensors |= {} if self.cells is None else {"cells": self.cells}
        save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, path)

    @classmethod
    def load(cls, path: Path, pyramid: Pyramid, width: int) -> MapEmbeddings:
        """Read a file that `save` wrote.

        Args:
            path: the file.
            pyramid: geometry of the area.
            width: number of features.

        Raises:
            ModelError: the file is missing or damaged, or has another pyramid, another number of features or values
                that cannot be used.
        """
        map_tensors(path, pyramid, width)
        try:
            tensors = load_file(path)
        except (OSError, SafetensorError) as error:
            raise ModelError(
                f"{path}, the model's map, cannot be read ({error}): train or copy the model again"
            ) from error
        embedding = [tensors[f"embedding.{level}"] for level in range(pyramid.levels)]
        status = [tensors[f"status.{level}"] for level in range(pyramid.levels + 1)]
        if any((array > NODATA).any() for array in status):
            raise ModelError(f"{path} has a status of tiles that is none: copy the model again")
        for level, grid in enumerate(embedding):
            for values, tiles in zip(grid, status[level], strict=True):  # a row at a time: no second map in memory
                check_finite(path, {f"embedding.{level}": values[tiles == ENCODED]})
        return cls(pyramid, tuple(embedding), tuple(status), tensors.get("cells"))


def map_tensors(path: Path, pyramid: Pyramid, width: int) -> dict[str, str]:
    """Check the header of a file that `MapEmbeddings.save` wrote, and return the type of each of its tensors.

    Args:
        path: the file.
        pyramid: geometry of the area.
        width: number of features.

    Raises:
        ModelError: the file is missing or damaged, or has another pyramid or another number of features.
    """
    sides = [pyramid.tiles_per_side(level) for level in range(pyramid.levels + 1)]
    shapes = {f"embedding.{level}": (side, side, width) for level, side in enumerate(sides[:-1])}
    status_shapes = {f"status.{level}": (side, side) for level, side in enumerate(sides)}
    if not path.exists():
        raise ModelError(
            f"{path.parent} has no map (map.safetensors): read it from a cache (`--cache features.zarr`), or copy the "
            "model again"
        )
    types = dict.fromkeys(status_shapes, ("U8",))
    return check_header(path, {**shapes, **status_shapes}, types, optional={"cells": (sides[-1], sides[-1], width)})
