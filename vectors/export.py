"""Write the vectors of cells as a Parquet file, for vector databases such as Milvus and Qdrant."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jzi.errors import ExportError, first_line
from jzi.store.disk.files import write_whole
from jzi.store.features.map_embeddings import ENCODED
from jzi.store.geometry.bands import BandGrid
from jzi.store.geometry.cell_grid import CellGrid
from jzi.vectors.store import VectorStore, read_with_progress

#: Rows of a row group: 64 MB with 1024 features in float32.
GROUP = 16_384


def export_vectors(store: VectorStore, area: CellGrid, path: Path) -> int:
    """Write id, latitude and longitude of the centre (degrees, WGS 84) and vector (float32) of every cell with one.

    The id is the key of the cell, the same in every region of this cell size (`BandGrid.ids`); on other grids it is row
    * columns + column. The file is written in row groups, with a unit of the store in memory at a time.

    Args:
        store: the vectors.
        area: the grid of the cells.
        path: the file; one that exists is replaced.

    Returns:
        Number of cells.

    Raises:
        ExportError: the file cannot be written.
        CacheCorruptError: the store is damaged.
    """
    schema = pa.schema(
        [
            pa.field("id", pa.int64(), nullable=False),
            pa.field("latitude", pa.float64(), nullable=False),
            pa.field("longitude", pa.float64(), nullable=False),
            pa.field("vector", pa.list_(pa.float32(), store.width), nullable=False),
        ]
    )
    encoded, cells = int((store.status() == ENCODED).sum()), 0

    def write(temporary: Path) -> None:
        nonlocal cells
        # Vectors do not compress: dictionaries and codecs would only take time
        with pq.ParquetWriter(temporary, schema, compression="none", use_dictionary=False) as writer:
            for block in read_with_progress(store, encoded, "export"):
                if isinstance(area, BandGrid):
                    ids = area.ids(block.row, block.col)
                    latitude, longitude = area.positions(block.row, block.col)
                else:
                    ids = block.row * area.shape[1] + block.col
                    latitude, longitude = area.unproject(*area.cell_centers(block.row, block.col))
                values = pa.array(np.ascontiguousarray(block.vectors, np.float32).ravel())
                vectors = pa.FixedSizeListArray.from_arrays(values, store.width)
                columns = [pa.array(ids), pa.array(np.array(latitude)), pa.array(np.array(longitude)), vectors]
                writer.write_table(pa.Table.from_arrays(columns, schema=schema), row_group_size=GROUP)
                cells += len(block.row)

    try:
        write_whole(path, write)
    except (OSError, pa.ArrowException) as error:
        raise ExportError(f"{path} cannot be written: {first_line(error)}") from error
    return cells
