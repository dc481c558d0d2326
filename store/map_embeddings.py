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
from jzi.store.pyramid import Pyramid

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
    def load(cls, path: Path, pyramid: Pyramid) -> MapEmbeddings:
        """Read a file that `save` wrote.

        Raises:
            ModelError: the file is missing, damaged or of another pyramid.
        """
        try:
            tensors = load_file(path)
            levels = range(pyramid.levels)
            embedding = tuple(tensors[f"embedding.{level}"] for level in levels)
            status = tuple(tensors[f"status.{level}"] for level in [*levels, pyramid.levels])
        except FileNotFoundError:
            raise ModelError(
                f"{path.parent} has no map (map.safetensors): read it from a cache (`--cache features.zarr`), or copy "
                "the model again"
            ) from None
        except (OSError, SafetensorError, KeyError) as error:
            raise ModelError(
                f"{path}, the model's map, cannot be read ({error}): train or copy the model again"
            ) from error
        if any(array.shape != (pyramid.tiles_per_side(level),) * 2 for level, array in enumerate(status)):
            raise ModelError(f"{path} has a map of another pyramid than the model's config.json: copy the model again")
        return cls(pyramid, embedding, status, tensors.get("cells"))
