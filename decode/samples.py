"""The photos of a split on the device, as indices into the map's embeddings."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jzi.decode.tile_table import TileTable
from jzi.store.cache import FeatureCache


@dataclass(frozen=True)
class Samples:
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

    def draw_views(self, seed: int) -> Tensor:
        """(photo,) one of the views that each photo has, the plain one among them."""
        if self.views is None:
            return torch.zeros(len(self), dtype=torch.int64, device=self.query.device)
        share = torch.rand(len(self), generator=torch.Generator().manual_seed(seed)).to(self.query.device)
        return (share * (self.views + 1)).long()


def load_samples(cache: FeatureCache, table: TileTable, split: str, views: int = 0) -> Samples:
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
    frame = cache.queries.encoded()
    frame = frame[frame["split"] == split]
    latitude, longitude = frame["latitude"].to_numpy(float), frame["longitude"].to_numpy(float)
    paths = table.pyramid.paths(latitude, longitude).reshape(-1, table.pyramid.levels)
    keep = (paths[:, 0] >= 0) & table.reachable(np.maximum(paths, 0))
    query = torch.from_numpy(cache.queries.embedding(frame.index.to_numpy(np.int64)[keep], views))
    counts = np.minimum(frame["views"].to_numpy(np.int64)[keep], query.shape[1] - 1)
    return Samples(
        query=query.to(table.device),
        tiles=table.along(paths[keep]),
        actions=torch.from_numpy(paths[keep]).to(table.device),
        latitude=latitude[keep],
        longitude=longitude[keep],
        unreachable=int((~keep).sum()),
        views=torch.from_numpy(counts).to(table.device) if views else None,
    )
