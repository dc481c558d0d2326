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
        query: (photo, view, feature) float16 on the device.
        tiles: (photo, L) indices into the tile table along the true path, on the device.
        actions: (photo, L) true actions, on the device.
        latitude: (photo,) degrees.
        longitude: (photo,) degrees.
        unreachable: photos of the split that were left out, because the map has no imagery where they were taken.
    """

    query: Tensor
    tiles: Tensor
    actions: Tensor
    latitude: NDArray[np.float64]
    longitude: NDArray[np.float64]
    unreachable: int

    def __len__(self) -> int:
        return len(self.query)


def load_samples(cache: FeatureCache, table: TileTable, split: str) -> Samples:
    """The encoded photos of a split ("train", "val" or "test"); there may be none.

    Raises:
        CacheError: no photo is encoded at all.
        CacheCorruptError: a chunk is damaged.
    """
    frame = cache.queries.encoded()
    frame = frame[frame["split"] == split]
    latitude, longitude = frame["latitude"].to_numpy(float), frame["longitude"].to_numpy(float)
    paths = table.pyramid.paths(latitude, longitude).reshape(-1, table.pyramid.levels)
    keep = (paths[:, 0] >= 0) & table.reachable(np.maximum(paths, 0))
    query = torch.from_numpy(cache.queries.embedding(frame.index.to_numpy(np.int64)[keep]))
    return Samples(
        query=query.to(table.device),
        tiles=table.along(paths[keep]),
        actions=torch.from_numpy(paths[keep]).to(table.device),
        latitude=latitude[keep],
        longitude=longitude[keep],
        unreachable=int((~keep).sum()),
    )
