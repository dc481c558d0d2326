"""Datasets of photos and their true paths, in tensors on the device."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from jzi.decode.tile_table import TileTable
from jzi.store.cache.feature_cache import FeatureCache


@dataclass(frozen=True)
class ZoomDataset(Dataset[dict[str, Tensor]]):
    """Embedded photos with their positions and true paths, a `torch.utils.data.Dataset` off the cache.

    Step k of a zoom sees tile `tiles[k]` of level k and chooses the child `actions[k]` of it; the last one is a cell.
    No image is opened.

    Example:
        >>> import jzi
        >>> cache = jzi.FeatureCache.open("features.zarr")  # doctest: +SKIP
        >>> table = jzi.TileTable(cache.read_map())  # doctest: +SKIP
        >>> train = jzi.ZoomDataset.load(cache, table, "train")  # doctest: +SKIP
        >>> item = train[0]  # doctest: +SKIP
        >>> table.embedding[item["tiles"]]  # (L, feature) of the tiles that the zoom sees  # doctest: +SKIP

    Attributes:
        query: (photo, view, feature) float16 on the device; view 0 is the plain photo, the others are augmented.
        tiles: (photo, L) int64 on the device, indices into the tile table along the true path.
        actions: (photo, L) int64 on the device, true actions.
        latitude: (photo,) degrees.
        longitude: (photo,) degrees.
        unreachable: number of photos of the split left out because the map has no imagery at their position.
        views: (photo,) int64 on the device, number of augmented views; None if only plain photos are loaded.
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

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """One photo.

        Returns:
            `query`: (feature,) float32 embedding of the plain photo; `tiles`: (L,) int64 indices into the tile table;
            `actions`: (L,) int64 true actions; `latitude` and `longitude`: float64, degrees.
        """
        return {
            "query": self.query[index, 0].float(),
            "tiles": self.tiles[index],
            "actions": self.actions[index],
            "latitude": torch.tensor(self.latitude[index]),
            "longitude": torch.tensor(self.longitude[index]),
        }

    @classmethod
    def load(cls, cache: FeatureCache, table: TileTable, split: str, views: int = 0) -> ZoomDataset:
        """The encoded photos of a split, on the device of the table; there may be none.

        Args:
            cache: cache with photos.
            table: the map.
            split: "train", "val" or "test".
            views: maximum number of augmented views per photo.

        Raises:
            CacheError: the cache has no encoded photos.
            CacheCorruptError: a chunk is damaged.
        """
        return load_splits(cache, table, cache.queries.encoded(), {split: views})[0]

    def with_views(self, limit: int) -> ZoomDataset:
        """Return the same photos with at most `limit` augmented views each."""
        if self.views is None or not limit:
            return replace(self, query=self.query[:, :1], views=None)
        query = self.query[:, : 1 + limit]
        return replace(self, query=query, views=self.views.clamp(max=query.shape[1] - 1))

    def draw_views(self, seed: int) -> Tensor:
        """Draw a view of each photo at random.

        Args:
            seed: the same seed draws the same views.

        Returns:
            (photo,) int64 indices into the views on the device; 0 is the plain photo.
        """
        if self.views is None:
            return torch.zeros(len(self), dtype=torch.int64, device=self.query.device)
        share = torch.rand(len(self), generator=torch.Generator().manual_seed(seed)).to(self.query.device)
        return (share * (self.views + 1)).long()


def load_splits(
    cache: FeatureCache, table: TileTable, frame: pd.DataFrame, splits: dict[str, int]
) -> list[ZoomDataset]:
    """Load the photos of several splits, reading their embeddings from the cache once.

    Args:
        cache: cache with photos.
        table: the map.
        frame: the cache's `queries.encoded()`.
        splits: maximum number of augmented views per photo, by split.

    Returns:
        A dataset per split, in order.

    Raises:
        CacheCorruptError: a chunk is damaged.
    """
    parts = [frame[frame["split"] == split] for split in splits]
    positions = [(part["latitude"].to_numpy(float), part["longitude"].to_numpy(float)) for part in parts]
    paths = [table.pyramid.paths(*each).reshape(-1, table.pyramid.levels) for each in positions]
    masks = [(each[:, 0] >= 0) & table.is_reachable(np.maximum(each, 0)) for each in paths]
    rows = [part.index.to_numpy(np.int64)[reachable] for part, reachable in zip(parts, masks, strict=True)]
    embedding = torch.from_numpy(cache.queries.embedding(np.concatenate(rows), max(splits.values())))
    datasets = []
    for query, part, (latitude, longitude), path, reachable, views in zip(
        embedding.split([len(each) for each in rows]), parts, positions, paths, masks, splits.values(), strict=True
    ):
        plain = ZoomDataset(
            query=query[:, : 1 + views].contiguous().to(table.device),
            tiles=table.tiles_along(path[reachable]),
            actions=torch.from_numpy(path[reachable]).to(table.device),
            latitude=latitude[reachable],
            longitude=longitude[reachable],
            unreachable=int((~reachable).sum()),
        )
        counts = torch.from_numpy(part["views"].to_numpy(np.int64)[reachable]).to(table.device)
        datasets.append(replace(plain, views=counts).with_views(views))
    return datasets
