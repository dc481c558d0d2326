"""Gather what is encoded one by one, and write it to a feature cache in whole chunks.

Cells need no gathering: `jzi.encode.encode_cells` encodes a chunk of them at a time.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jzi.store.cache import FeatureCache
from jzi.store.map_embeddings import ENCODED, MISSING, NODATA
from jzi.store.photo_features import CHUNK, UNREADABLE, PhotoFeatures
from jzi.store.photo_features import ENCODED as PHOTO_ENCODED
from jzi.store.pyramid import TileKey

#: A killed run loses what it has encoded since the last write. A write of the paper's four open chunks takes 6 ms
#: (`python -m benchmarks.cache_codecs`), less than a hundredth of the time.
WRITE_EVERY_S = 1.0


class ChunkWriter(ABC):
    """Writes what was gathered when it is due, and on the way out: a context manager, which writes after errors too."""

    def __init__(self) -> None:
        self.written_at = time.monotonic()

    def __enter__(self) -> Any:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.write()

    def write_if_due(self) -> None:
        """`write`, if the last time was more than `WRITE_EVERY_S` ago."""
        if time.monotonic() - self.written_at > WRITE_EVERY_S:
            self.write()

    def write(self) -> None:
        """Write all that was gathered since the last time.

        Raises:
            CacheError: the disk is full.
        """
        self._write()
        self.written_at = time.monotonic()

    @abstractmethod
    def _write(self) -> None: ...


@dataclass
class _Chunk:
    """A chunk of tiles in memory."""

    status: NDArray[np.uint8]
    embedding: NDArray[np.float16] | None
    changed: bool = False


class TileWriter(ChunkWriter):
    """Writes tiles, the deepest level first, so that a tile is never marked encoded before its cells are marked.

    Args:
        cache: open for writing.
    """

    def __init__(self, cache: FeatureCache) -> None:
        super().__init__()
        self.cache = cache
        self.chunks: dict[TileKey, _Chunk] = {}

    def put(self, key: TileKey, status: int, embedding: NDArray[np.float16] | None) -> None:
        """Gather a tile.

        Args:
            key: of the tile.
            status: ENCODED or NODATA.
            embedding: (feature,); None for a tile without imagery.
        """
        chunk, row, col = self._chunk(key)
        chunk.status[row, col] = status
        if embedding is not None and chunk.embedding is not None:
            chunk.embedding[row, col] = embedding

    def put_cells(self, key: TileKey, cells: NDArray[np.bool_]) -> None:
        """Gather (row, col) which children of a tile of the last level have imagery."""
        g = self.cache.pyramid.grid
        chunk, row, col = self._chunk(TileKey(key.level + 1, key.row * g, key.col * g))
        chunk.status[row : row + g, col : col + g] = np.where(cells, ENCODED, NODATA)

    def _write(self) -> None:
        for key in sorted(self.chunks, reverse=True):
            chunk = self.chunks[key]
            if chunk.changed:
                self.cache.write_chunk(*key, chunk.status, chunk.embedding)
                chunk.changed = False
            if (chunk.status != MISSING).all():
                del self.chunks[key]

    def _chunk(self, key: TileKey) -> tuple[_Chunk, int, int]:
        side = self.cache.chunk_side(key.level)
        origin = TileKey(key.level, key.row // side * side, key.col // side * side)
        if origin not in self.chunks:
            self.chunks[origin] = _Chunk(*self.cache.read_chunk(*origin))
        self.chunks[origin].changed = True
        return self.chunks[origin], key.row - origin.row, key.col - origin.col


class PhotoWriter(ChunkWriter):
    """Writes photos, the embeddings of a chunk before their status.

    Args:
        queries: of a cache that is open for writing.
    """

    def __init__(self, queries: PhotoFeatures) -> None:
        super().__init__()
        self.queries = queries
        self.rows: dict[int, tuple[tuple[str, int, int], NDArray[np.float16] | None]] = {}

    def put(self, row: int, stamp: tuple[str, int, int], embedding: NDArray[np.float16] | None) -> None:
        """Gather a photo.

        Args:
            row: of the cache.
            stamp: SHA-256, size and modification time (ns) of its file.
            embedding: (1 + views, feature); None for a photo that cannot be read.
        """
        self.rows[row] = stamp, embedding

    def _write(self) -> None:
        for rows in rows_by_chunk(np.array(sorted(self.rows), np.int64)):
            entries = [self.rows.pop(int(row)) for row in rows]
            sha256, size, mtime_ns = zip(*(stamp for stamp, _ in entries), strict=True)
            self.queries.write(
                rows,
                {
                    "photo_sha256": np.array(sha256, dtype=object),
                    "photo_bytes": list(size),
                    "photo_mtime_ns": list(mtime_ns),
                    "views": [0 if embedding is None else len(embedding) - 1 for _, embedding in entries],
                    "status": [UNREADABLE if embedding is None else PHOTO_ENCODED for _, embedding in entries],
                },
                _stack([embedding for _, embedding in entries]),
            )


def rows_by_chunk(rows: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Sorted rows of photos, those of one chunk of the cache at a time."""
    if len(rows):
        yield from np.split(rows, np.flatnonzero(np.diff(rows // CHUNK)) + 1)


def _stack(embeddings: list[NDArray[np.float16] | None]) -> NDArray[np.float16] | None:
    """(row, view, feature) of as many views as any has, nan where there is none; None where there is nothing at all."""
    present = [embedding for embedding in embeddings if embedding is not None]
    if not present:
        return None
    stacked = np.full((len(embeddings), max(map(len, present)), present[0].shape[1]), np.nan, np.float16)
    for row, embedding in zip(stacked, embeddings, strict=True):
        if embedding is not None:
            row[: len(embedding)] = embedding
    return stacked
