"""What search needs of a store of vectors of cells, and how it reads from it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from jzi.encode.prefetch import GeneratorPool

T = TypeVar("T")

#: Side of the blocks of cells that `gather` calls follow; the chunks of embeddings are as large.
CHUNK = 32

#: Difference up to which similarities of unit vectors are taken to be equal: the sum of the same products in float32 is
#: rounded differently in products of matrices of other shapes.
TIE = 1e-6

#: Cells that are gathered at once: 32 MB in float16 with 1024 features.
GATHERED = 16_384


class Block(NamedTuple):
    """Some cells of a store.

    Attributes:
        row: (cell,) rows.
        col: (cell,) columns.
        vectors: (cell, feature) float16 vectors of unit length.
    """

    row: NDArray[np.int64]
    col: NDArray[np.int64]
    vectors: NDArray[np.float16]


class VectorStore(Protocol):
    """Vectors of cells, read in units that are written whole; `jzi.store.features.cell_features.CellFeatures` is one.

    Attributes:
        path: path or URL, for error messages.
    """

    path: str

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        ...

    @property
    def width(self) -> int:
        """Number of features of a vector."""
        ...

    @property
    def units(self) -> Sequence[tuple[slice, slice]]:
        """Rows and columns of the units, in the order of `blocks`."""
        ...

    def status(self) -> NDArray[np.uint8]:
        """(row, col) status of the cells; 1 for those with a vector."""
        ...

    def blocks(
        self, mask: NDArray[np.bool_] | None = None
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float16]]]:
        """Row (cell,), column (cell,) and vector (cell, feature) of the cells, a unit at a time, in a fixed order.

        Args:
            mask: (row, col) the cells to read; units without any are not read.
        """
        ...

    def gather(self, row: NDArray[np.int64], col: NDArray[np.int64]) -> NDArray[np.float16]:
        """(cell, feature) vectors of some cells; each chunk is read once."""
        ...


def read_blocks(
    store: VectorStore,
    *,
    mask: NDArray[np.bool_] | None = None,
    cells: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None,
) -> Iterator[Block]:
    """Yield the cells of a store in blocks, the next one being read while one is used.

    Args:
        store: the store.
        mask: (row, col) the cells to read; all by default.
        cells: rows (cell,) and columns (cell,) of the cells to read instead; they must have vectors.
    """
    if cells is not None:
        return read_ahead(_gathered(store, *cells))
    return read_ahead(Block(*block) for block in store.blocks(mask))


def read_with_progress(store: VectorStore, cells: int, label: str) -> Iterator[Block]:
    """Yield all cells of a store in blocks, and show how many of `cells` have been read."""
    with tqdm(total=cells, desc=label, unit="cell", unit_scale=True) as progress:
        for block in read_blocks(store):
            yield block
            progress.update(len(block.row))


def by_chunk(row: NDArray[np.int64], col: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Yield indices of cells in parts of about `GATHERED` such that the cells of a chunk are in one part."""
    chunk = (row // CHUNK) * (int(col.max(initial=0)) // CHUNK + 1) + col // CHUNK
    order = chunk.argsort(kind="stable")
    starts = np.append(np.flatnonzero(np.diff(chunk[order], prepend=-1)), len(order))
    begin = 0
    while begin < len(order):
        # The last start within the bound, or the next one where a chunk has more cells (repeated ones) than that
        end = int(starts[starts.searchsorted(begin + GATHERED, side="right") - 1])
        end = end if end > begin else int(starts[starts.searchsorted(begin, side="right")])
        yield order[begin:end]
        begin = end


def _gathered(store: VectorStore, row: NDArray[np.int64], col: NDArray[np.int64]) -> Iterator[Block]:
    for part in by_chunk(row, col):
        yield Block(row[part], col[part], store.gather(row[part], col[part]))


def read_ahead(items: Iterator[T]) -> Iterator[T]:
    """Yield items in order; a thread computes the next one meanwhile."""
    end: Any = object()
    with GeneratorPool(1, "jzi-vectors") as pool:
        pending = pool.submit(next, items, end)
        while (item := pending.result()) is not end:
            pending = pool.submit(next, items, end)
            yield item
