"""Training data of the decoder, read from a cache once and shared by several runs."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import pandas as pd
import torch

from jzi.decode.dataset import ZoomDataset, load_splits
from jzi.decode.patch_tokens import PatchTokens
from jzi.decode.tile_table import TileTable
from jzi.store.cache import FeatureCache
from jzi.store.info import EncoderInfo, ImageryInfo
from jzi.store.map_embeddings import MapEmbeddings
from jzi.store.pyramid import Pyramid


@dataclass(frozen=True)
class DataInfo:
    """Provenance of the training data: what the outcome of a run depends on beside its settings.

    Attributes:
        pyramid: the area's tiles.
        encoder: encoder of the embeddings.
        imagery: imagery of the tiles; None if unknown.
        photos: number of photos, and the first digits of a SHA-256 over their columns.
        augmentation: parameters of the augmented views; empty if no photo has any.
        cell_m: side of a terminal cell's reference crop, metres; None if the cache has no cells.
    """

    pyramid: Pyramid
    encoder: EncoderInfo
    imagery: ImageryInfo | None
    photos: str
    augmentation: dict[str, int]
    cell_m: float | None = None

    @classmethod
    def from_cache(cls, cache: FeatureCache, frame: pd.DataFrame | None = None) -> DataInfo:
        """The info of a cache.

        Args:
            cache: with encoded photos.
            frame: its `queries.encoded()`, if already read.

        Raises:
            CacheError: no photo is encoded.
        """
        frame = cache.queries.encoded() if frame is None else frame
        columns = frame[["id", "latitude", "longitude", "split", "photo_sha256", "views"]]
        # Hash the columns' bytes: converting 300 000 rows to text would take a second
        hashes = pd.util.hash_pandas_object(columns, index=False, categorize=False).to_numpy()
        digest = hashlib.sha256(hashes.tobytes()).hexdigest()
        augmentation = cache.queries.augmentation if frame["views"].any() else {}
        cell_m = cache.cells.footprint if cache.has_cells else None
        return cls(cache.pyramid, cache.encoder, cache.imagery, f"{len(frame)}, {digest[:16]}", augmentation, cell_m)


@dataclass(frozen=True)
class TrainingData:
    """The map and the photos of a cache, in memory and on the device.

    Attributes:
        path: path of the cache.
        info: provenance of the data.
        map_embeddings: the map in memory, as a model folder stores it.
        table: the map on the device, with the tiles' patch tokens if the cache has any.
        train: training photos with their augmented views.
        val: validation photos, which select the epoch; plain views only.
        test: held-out photos; plain views only.
    """

    path: str
    info: DataInfo
    map_embeddings: MapEmbeddings
    table: TileTable
    train: ZoomDataset
    val: ZoomDataset
    test: ZoomDataset

    @classmethod
    def load(
        cls, cache: FeatureCache, device: torch.device | str = "cpu", views: int = 255, cells: bool = False
    ) -> TrainingData:
        """Read the map and the photos of a cache.

        Args:
            cache: a complete cache.
            device: device of the embeddings.
            views: maximum number of augmented views to load for a training photo.
            cells: whether to read the terminal cells, which the experts cells and levels need.

        Raises:
            CacheError: the cache is incomplete or damaged.
        """
        map_embeddings = cache.read_map(cells)
        table = TileTable(map_embeddings, device, PatchTokens.of(cache, device))
        frame = cache.queries.encoded()
        train, val, test = load_splits(cache, table, frame, {"train": views, "val": 0, "test": 0})
        return cls(cache.path, DataInfo.from_cache(cache, frame), map_embeddings, table, train, val, test)
