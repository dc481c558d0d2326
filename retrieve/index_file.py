"""The index of a published flat retriever: the embeddings of all cells in one file, index.safetensors.

Tensors `row` (cell,) int32, `col` (cell,) int32 and `embedding` (cell, feature) float16. The index that `jzi index`
writes is a cache, which also holds the positions of photos; this file does not.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save

from jzi.errors import ModelError, first_line
from jzi.store.geometry.pyramid import Pyramid
from jzi.store.model_config import HINT
from jzi.store.tensors import check_finite, check_header

Cells = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[Any]]


def pack_index(cells: Cells) -> bytes:
    """The bytes of an index.safetensors.

    Args:
        cells: (cell,) rows, (cell,) columns and (cell, feature) embeddings, as `CellFeatures.read` returns them.
    """
    row, col, embedding = cells
    arrays = {"row": row.astype(np.int32), "col": col.astype(np.int32), "embedding": embedding.astype(np.float16)}
    return save({name: np.ascontiguousarray(array) for name, array in arrays.items()})


def read_index(path: Path, area: Pyramid, width: int) -> Cells:
    """Read an index.safetensors, whose digest was verified.

    Args:
        path: the file.
        area: pyramid of the cells.
        width: number of features.

    Returns:
        (cell,) rows, (cell,) columns and (cell, feature) embeddings.

    Raises:
        ModelError: it cannot be read, or holds something else than cells of the area, each once.
    """
    try:
        with safe_open(path, "np") as file:
            count = file.get_slice("row").get_shape()[0]
    except (OSError, SafetensorError, IndexError) as error:
        raise ModelError(f"{path} cannot be read ({first_line(error)}): {HINT}") from error
    rows, cols = area.shape
    if not 1 <= count <= rows * cols:
        raise ModelError(f"{path} has {count:,} cells, but the area {rows * cols:,}: {HINT}")
    shapes = {"row": (count,), "col": (count,), "embedding": (count, width)}
    check_header(path, shapes, {"row": ("I32",), "col": ("I32",), "embedding": ("F16",)})
    arrays = load_file(path)
    row, col = (arrays[name].astype(np.int64) for name in ("row", "col"))
    inside = (row >= 0) & (row < rows) & (col >= 0) & (col < cols)
    if not inside.all() or len(np.unique(row * cols + col)) < count:
        raise ModelError(f"{path} has cells outside of the area, or some twice: {HINT}")
    check_finite(path, {"embedding": arrays["embedding"]})
    return row, col, arrays["embedding"]
