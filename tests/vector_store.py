"""A store of vectors in memory, as search reads it, with clustered vectors."""

from __future__ import annotations

import numpy as np

UNIT, CHUNK = 64, 32


class MemoryStore:
    """Vectors (row, col, feature) in memory, nan where a cell has none; remembers which units and chunks were read."""

    def __init__(self, vectors: np.ndarray, path: str = "memory.zarr") -> None:
        self.path, self.vectors = path, vectors.astype(np.float16)
        self.present = ~np.isnan(vectors).any(-1)
        self.units_read: list[tuple[slice, slice]] = []
        self.chunks_read: list[tuple[int, int]] = []

    @property
    def shape(self) -> tuple[int, int]:
        return self.present.shape

    @property
    def width(self) -> int:
        return self.vectors.shape[2]

    @property
    def units(self):
        rows, cols = self.shape
        return [
            (slice(row, min(row + UNIT, rows)), slice(col, min(col + UNIT, cols)))
            for row in range(0, rows, UNIT)
            for col in range(0, cols, UNIT)
        ]

    def status(self):
        return np.where(self.present, 1, 2).astype(np.uint8)

    def blocks(self, mask=None):
        for unit in self.units:
            wanted = self.present[unit] if mask is None else self.present[unit] & mask[unit]
            if mask is None or wanted.any():
                self.units_read.append(unit)
                row, col = np.nonzero(wanted)
                yield row + unit[0].start, col + unit[1].start, self.vectors[unit][wanted]

    def gather(self, row, col):
        self.chunks_read += sorted(set(zip((row // CHUNK).tolist(), (col // CHUNK).tolist(), strict=True)))
        return self.vectors[row, col]


def clustered(rows: int, cols: int, width: int, *, seed: int = 0, missing: float = 0.1) -> np.ndarray:
    """(row, col, feature) unit vectors around 1 center for 100 cells; a share of the cells has none."""
    rng = np.random.default_rng(seed)
    centers = rng.normal(size=(max(4, rows * cols // 100), width))
    vectors = centers[rng.integers(len(centers), size=(rows, cols))] + 0.6 * rng.normal(size=(rows, cols, width))
    vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
    vectors[rng.random((rows, cols)) < missing] = np.nan
    return vectors.astype(np.float16)


def near(store: MemoryStore, count: int, *, seed: int = 1, noise: float = 0.05) -> np.ndarray:
    """(query, feature) queries near vectors of the store."""
    rng = np.random.default_rng(seed)
    row, col = np.nonzero(store.present)
    picked = rng.integers(len(row), size=count)
    query = store.vectors[row[picked], col[picked]].astype(np.float32)
    return query + noise * rng.normal(size=query.shape).astype(np.float32)


def dense(store: MemoryStore, query: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows and columns (cell,) of all cells, row by row, and (query, cell) similarities, by one product."""
    row, col = np.nonzero(store.present)
    query = query / np.linalg.norm(query, axis=1, keepdims=True)
    return row, col, query @ store.vectors[row, col].astype(np.float32).T
