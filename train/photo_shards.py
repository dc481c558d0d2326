"""Training photos that do not fit into memory: read from the cache in shuffled shards.

A shard is a run of rows of the cache. An epoch takes the shards in a random order, as many at once as the buffer holds,
and the photos of a buffer in a random order; the next buffer is read meanwhile. Everything random is a function of the
epoch's seed. If all shards fit into one buffer, the batches are those of training in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jzi.decode.tile_table import TileTable
from jzi.encode.prefetch import prefetch
from jzi.store.cache.feature_cache import FeatureCache
from jzi.store.cache.layout import COLUMN_CHUNK
from jzi.store.features.photo_features import ENCODED

#: Buffers in memory at once: one in use, one that has been read, and one being read.
BUFFERS = 3

#: Columns of the cache that say where a photo was taken and whether it is trained on.
COLUMNS = ("latitude", "longitude", "split", "status", "listed", "views")


@dataclass(frozen=True)
class ZoomBatch:
    """Photos with their true paths; see `jzi.decode.dataset.ZoomDataset`.

    Attributes:
        query: (photo, feature) float16.
        tiles: (photo, L) int64.
        actions: (photo, L) int64.
    """

    query: Tensor
    tiles: Tensor
    actions: Tensor

    def __len__(self) -> int:
        return len(self.query)

    def of(self, index: Tensor) -> ZoomBatch:
        """Some of the photos."""
        return ZoomBatch(self.query[index], self.tiles[index], self.actions[index])

    def to(self, device: torch.device) -> ZoomBatch:
        """The same photos on a device."""
        return ZoomBatch(*(each.to(device, non_blocking=True) for each in (self.query, self.tiles, self.actions)))

    @staticmethod
    def concatenate(parts: list[ZoomBatch]) -> ZoomBatch:
        """The photos of several batches."""
        return ZoomBatch(
            torch.cat([each.query for each in parts]),
            torch.cat([each.tiles for each in parts]),
            torch.cat([each.actions for each in parts]),
        )


@dataclass(frozen=True)
class PhotoShards:
    """The training photos of a cache.

    Attributes:
        cache: the cache.
        table: the map.
        counts: (shard,) number of photos to train on.
        unreachable: number of photos left out because the map has no imagery at their position.
        limit: maximum number of augmented views.
        rows: rows of the cache in a shard.
        together: shards in a buffer.
    """

    cache: FeatureCache
    table: TileTable
    counts: NDArray[np.int64]
    unreachable: int
    limit: int
    rows: int
    together: int

    @classmethod
    def open(
        cls, cache: FeatureCache, table: TileTable, views: int, memory: int, rows: int = COLUMN_CHUNK
    ) -> PhotoShards:
        """Count the photos of each shard; reads every position once.

        Args:
            cache: a cache with photos.
            table: the map.
            views: maximum number of augmented views to draw from beside the plain photo.
            memory: bytes of the photos in memory.
            rows: rows of a shard: by default those of a chunk of most columns.

        Raises:
            CacheCorruptError: a chunk is damaged.
        """
        shards = -(-len(cache.queries) // rows)
        photo = 2 * cache.encoder.width + 16 * cache.levels
        together = max(1, min(shards, memory // (BUFFERS * rows * photo)))
        limit = min(views, cache.queries.view_capacity)
        result = cls(cache, table, np.zeros(shards, np.int64), 0, limit, rows, int(together))
        unreachable = 0
        for shard in range(shards):
            _, paths, reachable, _ = result._positions(shard)
            result.counts[shard] = reachable.sum()
            unreachable += len(paths) - int(reachable.sum())
        return replace(result, unreachable=unreachable)

    def __len__(self) -> int:
        return int(self.counts.sum())

    def with_views(self, limit: int) -> PhotoShards:
        """The same photos with at most `limit` augmented views each."""
        return replace(self, limit=min(limit, self.limit))

    def buffers(self, seed: int) -> list[NDArray[np.int64]]:
        """The shards of each buffer of an epoch, in increasing order.

        Args:
            seed: of the epoch.
        """
        shards = np.flatnonzero(self.counts)
        if len(shards) <= self.together:
            return [shards]
        order = torch.randperm(len(shards), generator=torch.Generator().manual_seed(seed)).numpy()
        return [np.sort(shards[part]) for part in np.split(order, range(self.together, len(order), self.together))]

    def batches(self, seed: int, size: int, first: int = 0, processes: int = 1) -> Iterator[ZoomBatch]:
        """The batches of an epoch.

        Args:
            seed: of the epoch.
            size: photos of a batch; the last one may have fewer.
            first: number of batches to skip, of which nothing is read.
            processes: the number of photos of each batch is a multiple of it, for which photos come twice.

        Raises:
            CacheCorruptError: a chunk is damaged.
        """
        order, views = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed)
        skip, plans = first * size, []
        for shards in self.buffers(seed):
            count = int(self.counts[shards].sum())
            permutation, share = torch.randperm(count, generator=order), torch.rand(count, generator=views)
            if skip < count:
                plans.append((shards, permutation, share, skip))
            skip = max(0, skip - count)
        padding = -len(self) % processes

        def load(plan: tuple[NDArray[np.int64], Tensor, Tensor, int]) -> tuple[ZoomBatch, Tensor, int]:
            shards, permutation, share, start = plan
            return self.read(shards, share), permutation, start

        left: list[ZoomBatch] = []
        for number, (photos, permutation, start) in enumerate(prefetch(load, plans, 1, ahead=1), 1):
            if number == len(plans) and padding:
                permutation = torch.cat([permutation, permutation[:padding]])
            have = sum(map(len, left))
            parts = list(permutation[start:].split(size)) if not have else [
                permutation[start : start + size - have],
                *permutation[start + size - have :].split(size),
            ]  # fmt: skip
            for index in parts:
                left.append(photos.of(index))
                if sum(map(len, left)) == size:
                    yield ZoomBatch.concatenate(left)
                    left = []
        if left:
            yield ZoomBatch.concatenate(left)

    def read(self, shards: NDArray[np.int64], share: Tensor) -> ZoomBatch:
        """Read the photos of shards, in the order of their rows, with a view of each.

        Args:
            shards: numbers of shards, in increasing order.
            share: (photo,) random numbers in 0..1 that choose the views.
        """
        parts, begin = [], 0
        for shard in shards.tolist():
            rows, paths, reachable, views = self._positions(shard)
            rows, paths, views = rows[reachable], paths[reachable], views[reachable]
            draw = (share[begin : begin + len(rows)] * (torch.from_numpy(views) + 1)).long().numpy()
            begin += len(rows)
            embedding = self.cache.queries.embedding(rows, self.limit)
            query = torch.from_numpy(embedding[np.arange(len(rows)), draw])
            parts.append(ZoomBatch(query, self.table.tiles_along(paths).cpu(), torch.from_numpy(paths)))
        return ZoomBatch.concatenate(parts)

    def _positions(
        self, shard: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_], NDArray[np.int64]]:
        """Rows of the training photos of a shard, their paths, whether the map has these, and their views."""
        start, stop = shard * self.rows, min((shard + 1) * self.rows, len(self.cache.queries))
        values = self.cache.queries.block(start, stop, COLUMNS)
        kept = np.flatnonzero(values["listed"] & (values["status"] == ENCODED) & (values["split"] == "train"))
        paths = self.table.pyramid.paths(values["latitude"][kept], values["longitude"][kept])
        paths = paths.reshape(-1, self.table.pyramid.levels)
        reachable = (paths[:, 0] >= 0) & self.table.is_reachable(np.maximum(paths, 0))
        return start + kept, paths, reachable, np.minimum(values["views"][kept].astype(np.int64), self.limit)
