"""What the decoder is trained on, read from a cache once: several runs can share it."""

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
    """Which data it is: what the outcome of a training run depends on, beside its settings.

    Attributes:
        pyramid: how the area is cut.
        encoder: which encoder made the embeddings.
        imagery: which imagery the tiles were cut from, if that is known.
        photos: how many there are, and the first digits of a SHA-256 over what is known of them.
        augmentation: what the augmented views were made from; empty where no photo has any.
        cell_m: side of the piece of map that stands for a terminal cell, metres; None where there are no cells.
    """

    pyramid: Pyramid
    encoder: EncoderInfo
    imagery: ImageryInfo | None
    photos: str
    augmentation: dict[str, int]
    cell_m: float | None = None

    @classmethod
    def of(cls, cache: FeatureCache, frame: pd.DataFrame | None = None) -> DataInfo:
        """The info of a cache; `frame` is its `queries.encoded()`, where that has been read already.

        Raises:
            CacheError: no photo is encoded.
        """
        frame = cache.queries.encoded() if frame is None else frame
        known = frame[["id", "latitude", "longitude", "split", "photo_sha256", "views"]]
        # by the bytes of the columns: writing 300 000 rows out as text would take a second
        hashes = pd.util.hash_pandas_object(known, index=False, categorize=False).to_numpy()
        digest = hashlib.sha256(hashes.tobytes()).hexdigest()
        augmentation = cache.queries.augmentation if frame["views"].any() else {}
        cell_m = cache.cells.footprint if cache.has_cells else None
        return cls(cache.pyramid, cache.encoder, cache.imagery, f"{len(frame)}, {digest[:16]}", augmentation, cell_m)


@dataclass(frozen=True)
class TrainingData:
    """The map and the photos of a cache: in memory, and on the device.

    Attributes:
        path: of the cache.
        info: which data it is.
        features: the map, as a model folder carries it.
        table: the map on the device, with the patch tokens of tiles where the cache holds any.
        train: the photos to train on, with their augmented views.
        val: the photos that choose the epoch, plain.
        test: the photos that are held out, plain.
    """

    path: str
    info: DataInfo
    features: MapEmbeddings
    table: TileTable
    train: ZoomDataset
    val: ZoomDataset
    test: ZoomDataset

    @classmethod
    def load(
        cls, cache: FeatureCache, device: torch.device | str = "cpu", views: int = 255, cells: bool = False
    ) -> TrainingData:
        """Read a cache, its columns and its embeddings once.

        Args:
            cache: complete.
            device: where the embeddings are put.
            views: how many augmented views of a training photo to load, where it has them.
            cells: whether to read the terminal cells, which a decoder with `look_ahead` "cells" needs.

        Raises:
            CacheError: the cache is incomplete or damaged.
        """
        features = cache.read_map(cells)
        table = TileTable(features, device, PatchTokens.of(cache, device))
        frame = cache.queries.encoded()
        train, val, test = load_splits(cache, table, frame, {"train": views, "val": 0, "test": 0})
        return cls(cache.path, DataInfo.of(cache, frame), features, table, train, val, test)
