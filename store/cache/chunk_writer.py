"""Collect encoded tiles and photos, and write them to a feature cache in whole chunks and shards.

Cells are not collected: `jzi.encode.encode_cells` encodes a chunk of them at a time.
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

from jzi.errors import CacheError
from jzi.store.cache.feature_cache import FeatureCache
from jzi.store.features.map_embeddings import ENCODED, MISSING, NODATA
from jzi.store.features.photo_features import CHUNK, UNREADABLE, PhotoFeatures
from jzi.store.features.photo_features import ENCODED as PHOTO_ENCODED
from jzi.store.geometry.pyramid import TileKey

#: Seconds between writes: a killed run loses what it encoded since the last one. Writing the four open chunks of the
#: paper's map takes 6 ms (`python -m benchmarks.cache_codecs`), less than 1 % of the time.
WRITE_EVERY_S = 1.0

#: Times the duration of a write that passes until the next one, in units of `WRITE_EVERY_S`: a shard takes seconds.
WRITE_PAUSE = 100


class ChunkWriter(ABC):
    """Context manager that writes collected entries at intervals and on exit, also after an error.

    After a `CacheError` nothing is written: the disk is full or the store does not answer.
    """

    def __init__(self) -> None:
        self.written_at, self.took_s = time.monotonic(), 0.0

    def __enter__(self) -> Any:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not isinstance(error, CacheError):
            self.write()

    def write_if_due(self) -> None:
        """Write if the last write was more than `WRITE_EVERY_S` ago, or longer if it took long."""
        if self._is_full() or time.monotonic() - self.written_at > WRITE_EVERY_S * max(1.0, WRITE_PAUSE * self.took_s):
            self.write()

    def write(self) -> None:
        """Write everything collected since the last write.

        Raises:
            CacheError: the disk is full.
        """
        start = time.monotonic()
        self._write()
        self.written_at = time.monotonic()
        self.took_s = self.written_at - start

    def _is_full(self) -> bool:
        """Whether to write at once, for what is collected is large."""
        return False

    @abstractmethod
    def _write(self) -> None: ...


@dataclass
class _Chunk:
    status: NDArray[np.uint8]
    embedding: NDArray[np.float16] | None
    missing: int
    changed: bool = False


class TileWriter(ChunkWriter):
    """Writes tiles, the deepest level first: a tile is never marked as encoded before its cells are.

    A shard of the last level is written as soon as it is complete, so that hardly more than one is in memory.

    Args:
        cache: the cache, open for writing.
    """

    def __init__(self, cache: FeatureCache) -> None:
        super().__init__()
        self.cache = cache
        self.chunks: dict[TileKey, _Chunk] = {}

    def put(self, key: TileKey, status: int, embedding: NDArray[np.float16] | None) -> None:
        """Add a tile.

        Args:
            key: key of the tile.
            status: ENCODED or NODATA.
            embedding: (feature,); None for a tile without imagery.
        """
        chunk, row, col = self._chunk(key)
        chunk.missing -= int(chunk.status[row, col] == MISSING)
        chunk.status[row, col] = status
        if embedding is not None and chunk.embedding is not None:
            chunk.embedding[row, col] = embedding

    def put_cells(self, key: TileKey, cells: NDArray[np.bool_]) -> None:
        """Add the status of the cells of a tile of level L-1.

        Args:
            key: key of the tile.
            cells: (g, g) whether each cell has imagery.
        """
        g = self.cache.pyramid.grid
        chunk, row, col = self._chunk(TileKey(key.level + 1, key.row * g, key.col * g))
        window = chunk.status[row : row + g, col : col + g]
        chunk.missing -= int((window == MISSING).sum())
        window[:] = np.where(cells, ENCODED, NODATA)

    def _is_full(self) -> bool:
        last = self.cache.levels - 1
        return self.cache.header.shard is not None and any(
            key.level == last and chunk.changed and not chunk.missing for key, chunk in self.chunks.items()
        )

    def _write(self) -> None:
        for key in sorted(self.chunks, reverse=True):
            chunk = self.chunks[key]
            if chunk.changed:
                self.cache.tiles.write_chunk(*key, chunk.status, chunk.embedding)
                chunk.changed = False
            if not chunk.missing:
                del self.chunks[key]

    def _chunk(self, key: TileKey) -> tuple[_Chunk, int, int]:
        side = self.cache.tiles.chunk_side(key.level)
        origin = TileKey(key.level, key.row // side * side, key.col // side * side)
        if origin not in self.chunks:
            status, embedding = self.cache.tiles.read_chunk(*origin)
            self.chunks[origin] = _Chunk(status, embedding, int((status == MISSING).sum()))
        self.chunks[origin].changed = True
        return self.chunks[origin], key.row - origin.row, key.col - origin.col


class PhotoWriter(ChunkWriter):
    """Writes photos: the embeddings of a chunk, then their status.

    Args:
        queries: photos of a cache that is open for writing.
    """

    def __init__(self, queries: PhotoFeatures) -> None:
        super().__init__()
        self.queries = queries
        self.rows: dict[int, tuple[tuple[str, int, int], NDArray[np.float16] | None]] = {}
        self.tokens: dict[int, NDArray[np.int8]] = {}

    def put(
        self,
        row: int,
        stamp: tuple[str, int, int],
        embedding: NDArray[np.float16] | None,
        tokens: NDArray[np.int8] | None = None,
    ) -> None:
        """Add a photo.

        Args:
            row: row of the photo in the cache.
            stamp: SHA-256, size and modification time (ns) of its file.
            embedding: (1 + views, feature); None for a photo that cannot be read.
            tokens: (token row, token col, feature), if the cache has tokens.
        """
        self.rows[row] = stamp, embedding
        if tokens is not None:
            self.tokens[row] = tokens

    def put_tokens(self, row: int, tokens: NDArray[np.int8]) -> None:
        """Add the tokens of a photo whose embedding the cache has.

        Args:
            row: row of the photo in the cache.
            tokens: (token row, token col, feature).
        """
        self.tokens[row] = tokens

    def _write(self) -> None:
        alone = np.array(sorted(self.tokens.keys() - self.rows.keys()), np.int64)
        for rows in rows_by_chunk(alone):
            self.queries.write(rows, {}, tokens=[self.tokens.pop(int(row)) for row in rows])
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
                [self.tokens.pop(int(row), None) for row in rows],
            )


def rows_by_chunk(rows: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Yield sorted rows of photos in groups (row,), one for each chunk of the cache."""
    if len(rows):
        yield from np.split(rows, np.flatnonzero(np.diff(rows // CHUNK)) + 1)


def _stack(embeddings: list[NDArray[np.float16] | None]) -> NDArray[np.float16] | None:
    """(row, view, feature), nan where a photo lacks a view; None if there is no embedding."""
    present = [embedding for embedding in embeddings if embedding is not None]
    if not present:
        return None
    stacked = np.full((len(embeddings), max(map(len, present)), present[0].shape[1]), np.nan, np.float16)
    for row, embedding in zip(stacked, embeddings, strict=True):
        if embedding is not None:
            row[: len(embedding)] = embedding
    return stacked
