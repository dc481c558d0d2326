"""Tokens of a cache as the source that a refiner is trained on: no image is opened."""

from __future__ import annotations

import hashlib
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import torch
from torch import Tensor

from jzi.encode.device import SHARE, allocate
from jzi.evaluate.stages.refined_photos import usable_photos
from jzi.refine.config import CachedRefinerConfig, RefineConfig
from jzi.refine.windows.tokens import WindowTokens, tokens_fingerprint
from jzi.refine.windows.window import Windows
from jzi.store.cache.feature_cache import FeatureCache
from jzi.store.features.token_info import PhotoTokensInfo
from jzi.store.geometry.pyramid import Pyramid
from jzi.train.config.refiner import RefinerTrainingConfig
from jzi.train.data import DataInfo
from jzi.train.refine.refine_data import Read
from jzi.train.refine.refine_pairs import PairPhotos

#: Photos whose tokens are read at once.
CHUNK = 256

#: Validation photos that must be left when those beside training photos are dropped; else all select the epoch.
LEAST_VAL = 30


@dataclass(frozen=True)
class PairSplits:
    """The photos of a map that a refiner is trained and validated on.

    Attributes:
        train: training photos.
        val: validation photos.
        duplicates: validation photos within 5 m of a training photo; they were left out of `val` unless fewer than
            `LEAST_VAL` would be left.
    """

    train: PairPhotos
    val: PairPhotos
    duplicates: int

    @classmethod
    def of(cls, area: Pyramid, frame: pd.DataFrame, refine: RefineConfig, config: RefinerTrainingConfig) -> PairSplits:
        """Split a table of photos; see `PairPhotos.of`.

        Args:
            area: the map.
            frame: photos with their `split`, all on the map's imagery.
            refine: defaults of cameras.
            config: the number of validation photos.
        """
        train, val = (
            PairPhotos.of(area, frame[frame["split"] == split], refine.hfov, refine.heading_sd_deg)
            for split in ("train", "val")
        )
        near = val.near(train)
        kept = val[~near] if (~near).sum() >= min(LEAST_VAL, len(val)) else val
        return cls(train, kept.spread(config.val_photos), int(near.sum()))


@dataclass(frozen=True)
class TokenSource:
    """Photos and windows of a cache (a `PairSource`).

    Attributes:
        area: the map.
        splits: training and validation photos.
        photos: (photo, H', W', F) int8 tokens of the photos of both.
        position: index in `photos` of each row of the cache.
        photo_scale: (F,) value of one step of a photo's features.
        windows: reads the tokens of windows.
        side: tokens along a side of a window.
        fingerprint: what the outcome of training depends on.
        info: of the photos' tokens.
        detail: digest of how the tokens were made, which a refiner depends on.
    """

    area: Pyramid
    splits: PairSplits
    photos: Tensor
    position: dict[int, int]
    photo_scale: Tensor
    windows: WindowTokens
    side: int
    fingerprint: dict[str, Any]
    info: PhotoTokensInfo
    detail: str
    images: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    @classmethod
    def load(
        cls, cache: FeatureCache, refine: RefineConfig, config: RefinerTrainingConfig, folder: Path
    ) -> TokenSource:
        """Read the tokens of all photos of a cache.

        Args:
            cache: with tokens of the map and of photos.
            refine: defaults of cameras.
            config: the number of validation photos.
            folder: folder of a file for the tokens, if memory has no room for them.

        Raises:
            CacheError: the cache lacks tokens, or is damaged.
        """
        tokens, windows = cache.queries.tokens, WindowTokens(cache, int(SHARE * psutil.virtual_memory().available))
        frame = usable_photos(cache, tokens=True)
        splits = PairSplits.of(cache.pyramid, frame, refine, config)
        rows = np.concatenate([splits.train.row, splits.val.row])
        info = tokens.info
        shape = len(rows), info.rows, info.cols, info.width
        photos = allocate(shape, torch.int8, torch.device("cpu"), folder)
        for start in range(0, len(rows), CHUNK):
            part = rows[start : start + CHUNK]
            photos[start : start + len(part)] = torch.from_numpy(tokens.read(part))
        data, detail = DataInfo.from_cache(cache), tokens_fingerprint(cache)
        return cls(
            area=cache.pyramid,
            splits=splits,
            photos=photos,
            position={int(row): index for index, row in enumerate(rows)},
            photo_scale=torch.from_numpy(tokens.projection.scale),
            windows=windows,
            side=refine.side,
            fingerprint={
                "encoder": data.encoder.fingerprint[:16],
                "imagery": data.imagery.fingerprint[:16] if data.imagery else "",
                "photos": data.photos,
                "views": _digest(frame),
                "tokens": detail[:16],
            },
            info=info,
            detail=detail,
        )

    def network(self, refine: RefineConfig) -> CachedRefinerConfig:
        """Architecture of a refiner of these tokens."""
        return refine.cached(self.windows.width, self.info.width, self.info.rows)

    @property
    def train(self) -> PairPhotos:
        """Training photos."""
        return self.splits.train

    @property
    def val(self) -> PairPhotos:
        """Validation photos."""
        return self.splits.val

    def read(self, photos: PairPhotos, windows: Windows) -> Read:
        """Tokens of photos and windows."""
        index = torch.tensor([self.position[int(row)] for row in photos.row], dtype=torch.long)
        with self._lock:  # tiles that are in memory are shared
            tokens, mask = self.windows.read(windows, self.side)
        return Read(self.photos[index].float() * self.photo_scale, torch.from_numpy(tokens), torch.from_numpy(mask))


def _digest(frame: pd.DataFrame) -> str:
    """Of what is known of the cameras."""
    names = [name for name in ("hfov_deg", "panorama", "heading_deg", "heading_sd_deg") if name in frame]
    values = pd.util.hash_pandas_object(frame[names], index=True).to_numpy() if names else np.empty(0)
    return hashlib.sha256(values.tobytes()).hexdigest()[:16]
