"""The photos of a split on the device, as indices into the map's embeddings."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from jzi.decode.tile_table import TileTable
from jzi.store.cache import FeatureCache


@dataclass(frozen=True)
class ZoomDataset:
    """Photos, where they were taken, and the zooms that lead there.

    Attributes:
        query: (photo, view, feature) float16 on the device; view 0 is the plain photo, the others are augmented.
        tiles: (photo, L) indices into the tile table along the true path, on the device.
        actions: (photo, L) true actions, on the device.
        latitude: (photo,) degrees.
        longitude: (photo,) degrees.
        unreachable: photos of the split that were left out, because the map has no imagery where they were taken.
        views: (photo,) how many augmented views each has, on the device; None where no more than the plain one is here.
    """

    query: Tensor
    tiles: Tensor
    actions: Tensor
    latitude: NDArray[np.float64]
    longitude: NDArray[np.float64]
    unreachable: int
    views: Tensor | None = None

    def __len__(self) -> int:
        return len(self.query)

    def with_views(self, most: int) -> ZoomDataset:
        """The same photos with no more than `most` augmented views of each."""
        if self.views is None or not most:
            return replace(self, query=self.query[:, :1], views=None)
        query = self.query[:, : 1 + most]
        return replace(self, query=query, views=self.views.clamp(max=query.shape[1] - 1))

    def draw_views(self, seed: int) -> Tensor:
        """(photo,) one of the views that each photo has, the plain one among them."""
        if self.views is None:
            return torch.zeros(len(self), dtype=torch.int64, device=self.query.device)
        share = torch.rand(len(self), generator=torch.Generator().manual_seed(seed)).to(self.query.device)
        return (share * (self.views + 1)).long()


def load_dataset(cache: FeatureCache, table: TileTable, split: str, views: int = 0) -> ZoomDataset:
    """The encoded photos of a split ("train", "val" or "test"); there may be none.

    Args:
        cache: with photos.
        table: the map.
        split: which photos.
        views: how many augmented views of each to load, where it has them.

    Raises:
        CacheError: no photo is encoded at all.
        CacheCorruptError: a chunk is damaged.
    """
    return load_splits(cache, table, cache.queries.encoded(), {split: views})[0]


def load_splits(
    cache: FeatureCache, table: TileTable, frame: pd.DataFrame, splits: dict[str, int]
) -> list[ZoomDataset]:
    """The photos of several splits, whose embeddings are read from the cache in one go.

    Args:
        cache: with photos.
        table: the map.
        frame: the cache's `queries.encoded()`.
        splits: each split, and how many augmented views of its photos to load, where they have them.

    Raises:
        CacheCorruptError: a chunk is damaged.
    """
    parts = [frame[frame["split"] == split] for split in splits]
    positions = [(part["latitude"].to_numpy(float), part["longitude"].to_numpy(float)) for part in parts]
    paths = [table.pyramid.paths(*each).reshape(-1, table.pyramid.levels) for each in positions]
    keep = [(each[:, 0] >= 0) & table.reachable(np.maximum(each, 0)) for each in paths]
    rows = [part.index.to_numpy(np.int64)[kept] for part, kept in zip(parts, keep, strict=True)]
    embedding = torch.from_numpy(cache.queries.embedding(np.concatenate(rows), max(splits.values())))
    samples = []
    for query, part, (latitude, longitude), path, kept, views in zip(
        embedding.split([len(each) for each in rows]), parts, positions, paths, keep, splits.values(), strict=True
    ):
        plain = ZoomDataset(
            query=query[:, : 1 + views].contiguous().to(table.device),
            tiles=table.along(path[kept]),
            actions=torch.from_numpy(path[kept]).to(table.device),
            latitude=latitude[kept],
            longitude=longitude[kept],
            unreachable=int((~kept).sum()),
        )
        counts = torch.from_numpy(part["views"].to_numpy(np.int64)[kept]).to(table.device)
        samples.append(replace(plain, views=counts).with_views(views))
    return samples
