"""Training data of the decoder, read from a cache once and shared by several runs, or read where it is needed."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch

from jzi.decode.dataset import ZoomDataset, load_splits
from jzi.decode.model import open_map
from jzi.decode.patch_tokens import PatchTokens
from jzi.decode.tile_table import TileTable
from jzi.encode.device import buffer_bytes
from jzi.errors import CacheError, TrainingError
from jzi.store.cache.feature_cache import FeatureCache
from jzi.store.features.map_embeddings import MapEmbeddings
from jzi.store.features.map_pages import PagedMap
from jzi.store.geometry.pyramid import Pyramid
from jzi.store.info import EncoderInfo, ImageryInfo
from jzi.store.trained_photos import Keys, TrainedPhotos, photo_keys
from jzi.train.photo_shards import PhotoShards

#: Columns of the photos that the outcome of a run depends on.
HASHED = ["id", "latitude", "longitude", "split", "photo_sha256", "views"]

#: Maximum number of validation photos, and of test photos, of a cache whose photos do not fit into memory: 200 MB with
#: 768 features, and recall within 0.3 percentage points.
HELD_OUT = 2**17

#: Memory of data that are needed as a whole.
UNLIMITED = 2**62

#: Bytes of a photo beside its embeddings while the table of photos is read: ids, paths and digests are text.
ROW_BYTES = 512


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
        trained: the training photos, for the record of what a model was trained on.
        validation: (photo,) hashes of the validation photos, which nothing may have been trained on.
    """

    pyramid: Pyramid
    encoder: EncoderInfo
    imagery: ImageryInfo | None
    photos: str
    augmentation: dict[str, int]
    cell_m: float | None = None
    trained: TrainedPhotos = field(default_factory=TrainedPhotos, compare=False, repr=False)
    validation: Keys = field(default_factory=lambda: np.empty(0, np.uint64), compare=False, repr=False)

    @classmethod
    def from_cache(cls, cache: FeatureCache, frame: pd.DataFrame | None = None) -> DataInfo:
        """The info of a cache.

        Args:
            cache: with encoded photos.
            frame: its `queries.encoded()`, if already read.

        Raises:
            CacheError: no photo is encoded.
        """
        digest, count, views = hashlib.sha256(), 0, False
        photos: dict[str, list[Keys]] = {"train": [], "val": []}
        for block in [frame] if frame is not None else cache.queries.encoded_blocks(HASHED):
            # Hash the columns' bytes: converting 300 000 rows to text would take a second
            digest.update(pd.util.hash_pandas_object(block[HASHED], index=False, categorize=False).to_numpy().tobytes())
            count, views = count + len(block), views or bool(block["views"].any())
            for split, keys in photos.items():
                keys.append(photo_keys(block[block["split"] == split]))
        if not count:
            raise CacheError(f"{cache.path} holds no photo: run `jzi encode-queries`")
        train, val = (np.concatenate(keys) for keys in photos.values())
        return cls(
            pyramid=cache.pyramid,
            encoder=cache.encoder,
            imagery=cache.imagery,
            photos=f"{count}, {digest.hexdigest()[:16]}",
            augmentation=cache.queries.augmentation if views else {},
            cell_m=cache.cells.footprint if cache.has_cells else None,
            trained=TrainedPhotos(model=train),
            validation=val,
        )


@dataclass(frozen=True)
class TrainingData:
    """The map and the photos of a cache, in memory and on the device, or read where they are needed.

    Attributes:
        path: path of the cache.
        info: provenance of the data.
        map_embeddings: the map, as a model folder stores it; it may not be in memory.
        table: the map on the device, with the tiles' patch tokens if the cache has any.
        train: training photos with their augmented views; `PhotoShards` if they do not fit into memory.
        val: validation photos, which select the epoch; plain views only.
        test: held-out photos; plain views only.
    """

    path: str
    info: DataInfo
    map_embeddings: MapEmbeddings | PagedMap
    table: TileTable
    train: ZoomDataset | PhotoShards
    val: ZoomDataset
    test: ZoomDataset

    @classmethod
    def load(
        cls,
        cache: FeatureCache,
        device: torch.device | str = "cpu",
        views: int = 255,
        cells: bool = False,
        *,
        map_memory: int | None = None,
        photo_memory: int | None = None,
    ) -> TrainingData:
        """Read the map and the photos of a cache, or open them if they do not fit into memory.

        Args:
            cache: a complete cache.
            device: device of the embeddings.
            views: maximum number of augmented views to load for a training photo.
            cells: whether to read the terminal cells, which the experts cells and levels need; those of a map that does
                not fit into memory are not read.
            map_memory: bytes that the map may take; by default a share of what is free.
            photo_memory: bytes that the photos may take; by default a share of what is free.

        Raises:
            CacheError: the cache is incomplete or damaged.
        """
        map_embeddings = open_map(cache, map_memory, device, cells=cells)
        if cells and isinstance(map_embeddings, PagedMap):
            map_embeddings = open_map(cache, map_memory, device)
        table = TileTable(map_embeddings, device, PatchTokens.of(cache, device))
        stored = min(views, cache.queries.view_capacity)
        photo = 2 * (1 + stored) * cache.encoder.width + 16 * cache.levels + ROW_BYTES
        memory = buffer_bytes(photo_memory, photo * len(cache.queries), torch.device(device))
        if memory is not None:
            info = DataInfo.from_cache(cache)
            train: ZoomDataset | PhotoShards = PhotoShards.open(cache, table, views, memory)
            val, test = load_splits(cache, table, _held_out(cache), {"val": 0, "test": 0})
            return cls(cache.path, info, map_embeddings, table, train, val, test)
        frame = cache.queries.encoded()
        train, val, test = load_splits(cache, table, frame, {"train": views, "val": 0, "test": 0})
        return cls(cache.path, DataInfo.from_cache(cache, frame), map_embeddings, table, train, val, test)

    @property
    def whole_map(self) -> MapEmbeddings:
        """The map in memory.

        Raises:
            TrainingError: it does not fit.
        """
        if isinstance(self.map_embeddings, MapEmbeddings):
            return self.map_embeddings
        raise TrainingError(f"the map of {self.path} must be in memory for this: raise map.memory")

    @property
    def dataset(self) -> ZoomDataset:
        """The training photos in memory.

        Raises:
            TrainingError: they do not fit.
        """
        if isinstance(self.train, ZoomDataset):
            return self.train
        raise TrainingError(f"the photos of {self.path} must be in memory for this: raise train.memory")


def _held_out(cache: FeatureCache) -> pd.DataFrame:
    """The validation and test photos, of each split at most `HELD_OUT`, evenly spaced over the rows of the cache."""
    columns = ["latitude", "longitude", "split", "views"]
    blocks = [block[block["split"] != "train"] for block in cache.queries.encoded_blocks(columns)]
    frame = pd.concat(blocks)
    parts = [frame[frame["split"] == split] for split in ("val", "test")]
    return pd.concat([part.iloc[:: -(-len(part) // HELD_OUT) or 1] for part in parts])
