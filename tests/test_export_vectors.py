"""Exported vectors are those of the store, with the keys and positions of their cells."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq
import pytest

from jzi.errors import CacheCorruptError, ExportError
from jzi.store.geometry.bands import BandGrid
from jzi.store.geometry.pyramid import Pyramid
from jzi.vectors.export import export_vectors

from .vector_store import MemoryStore, clustered


def test_every_cell_is_exported_with_its_key_its_position_and_its_vector(tmp_path) -> None:
    area = BandGrid.covering(-71.1, 42.32, -71.06, 42.35, cell_m=30.0)
    vectors = clustered(*area.shape, 12)
    vectors[np.arange(area.shape[1]) >= area.count[:, None]] = np.nan
    store = MemoryStore(vectors)
    assert export_vectors(store, area, tmp_path / "cells.parquet") == store.present.sum()
    file = pq.ParquetFile(tmp_path / "cells.parquet")
    assert file.num_row_groups > 1  # one for each unit at least
    table = file.read().to_pandas()
    row, col = area.rows_of(table["id"].to_numpy())
    assert len({*zip(row.tolist(), col.tolist(), strict=True)}) == store.present.sum()
    assert (np.stack(table["vector"]) == store.vectors[row, col].astype(np.float32)).all()
    at_row, at_col = area.cells_at(table["latitude"], table["longitude"])
    assert (at_row == row).all() and (at_col == col).all()


def test_cells_of_a_square_area_are_numbered_row_by_row(tmp_path) -> None:
    area = Pyramid.around(48.2, 16.37, 160.0, levels=2)
    store = MemoryStore(clustered(*area.shape, 8))
    export_vectors(store, area, tmp_path / "cells.parquet")
    table = pq.read_table(tmp_path / "cells.parquet").to_pandas()
    row, col = area.cells_at(table["latitude"], table["longitude"])
    assert (table["id"] == row * 16 + col).all()


def test_a_file_that_cannot_be_written_is_one_sentence_and_leaves_nothing(tmp_path) -> None:
    area = Pyramid.around(48.2, 16.37, 160.0, levels=2)
    store = MemoryStore(clustered(*area.shape, 8))
    with pytest.raises(ExportError, match=r"cells.parquet cannot be written"):
        export_vectors(store, area, tmp_path / "missing" / "cells.parquet")

    def damaged(mask=None):
        raise CacheCorruptError("a chunk is damaged")
        yield

    store.blocks = damaged
    with pytest.raises(CacheCorruptError, match="a chunk is damaged"):
        export_vectors(store, area, tmp_path / "cells.parquet")
    assert not list(tmp_path.iterdir())
