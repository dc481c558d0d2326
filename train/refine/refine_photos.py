"""Photos of an area that a refiner is trained on from images: their splits, and their pixels in memory."""

from __future__ import annotations

import hashlib
import threading
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import psutil
from numpy.typing import NDArray

from jzi.encode.device import SHARE
from jzi.encode.photo.photo_view import with_view_columns
from jzi.encode.rasters.imagery import Imagery
from jzi.errors import PhotoError, TrainingError
from jzi.refine.config import CachedRefinerConfig, RefineConfig
from jzi.refine.photos import read_pixels
from jzi.refine.ray_config import RayConfig
from jzi.store.geometry.pyramid import Pyramid
from jzi.store.photos.photo_table import PhotoTable
from jzi.store.plain import plain
from jzi.train.config.refiner import RefinerTrainingConfig
from jzi.train.refine.refine_pairs import PairPhotos
from jzi.train.refine.refine_tokens import PairSplits


@dataclass(frozen=True)
class AreaPhotos:
    """The photos of an area; their pixels are kept while memory has room. Threads may share it.

    Attributes:
        splits: training and validation photos.
        paths: path of each photo, by `PairPhotos.row`.
        config: architecture of the refiner, which says how large photos are.
        fingerprint: what the outcome of training depends on.
    """

    splits: PairSplits
    paths: NDArray[np.object_]
    config: CachedRefinerConfig | RayConfig
    fingerprint: dict[str, Any]
    _kept: dict[int, NDArray[np.uint8]] = field(default_factory=dict, repr=False, compare=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    @classmethod
    def of(
        cls,
        imagery: Imagery,
        frame: pd.DataFrame,
        network: CachedRefinerConfig | RayConfig,
        refine: RefineConfig,
        config: RefinerTrainingConfig,
    ) -> AreaPhotos:
        """Split photos; none is opened.

        Args:
            imagery: the map.
            frame: of `photo_frame`, those on the map's imagery.
            network: architecture of the refiner.
            refine: defaults of cameras.
            config: the number of validation photos.
        """
        area = imagery.pyramid
        paths = np.empty(int(frame.index.max()) + 1 if len(frame) else 0, object)
        paths[frame.index] = frame["photo"]
        columns = [name for name in frame.columns if name not in ("photo", "path", "line")]
        digest = hashlib.sha256(frame[columns].to_csv(index=False).encode()).hexdigest()[:16]
        fingerprint = {
            "imagery": imagery.info().fingerprint[:16],
            "photos": f"{len(frame)}, {digest}",
            "area": hashlib.sha256(str(plain(area)).encode()).hexdigest()[:8],
        }
        return cls(PairSplits.of(area, frame, refine, config), paths, network, fingerprint)

    def read(self, row: int, *, panorama: bool) -> NDArray[np.uint8]:
        """(height, width, 3) pixels of a photo.

        Args:
            row: of `PairPhotos`.
            panorama: whether it is one.

        Raises:
            TrainingError: it cannot be read.
        """
        if row in self._kept:
            return self._kept[row]
        try:
            pixels, _ = read_pixels(str(self.paths[row]), self.config, panorama=panorama)
        except PhotoError as error:
            raise TrainingError(f"{error}: remove it from queries.table, and train again") from error
        with self._lock:
            if (len(self._kept) + 1) * pixels.nbytes < SHARE * psutil.virtual_memory().available:
                self._kept[row] = pixels
        return pixels


@dataclass(frozen=True)
class PixelSource:
    """What sources of photos and windows as pixels have in common.

    Attributes:
        area: the map.
        photos: training and validation photos.
        imagery: the map's.
    """

    area: Pyramid
    photos: AreaPhotos
    imagery: Imagery

    @property
    def splits(self) -> PairSplits:
        """Training and validation photos."""
        return self.photos.splits

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What the outcome of training depends on."""
        return self.photos.fingerprint

    @property
    def train(self) -> PairPhotos:
        """Training photos."""
        return self.splits.train

    @property
    def val(self) -> PairPhotos:
        """Validation photos."""
        return self.splits.val


def photo_frame(table: PhotoTable, refine: RefineConfig) -> pd.DataFrame:
    """Photos of a table by id, with the columns of `PhotoView.to_columns`; without those whose size cannot be read.

    Args:
        table: the photos.
        refine: standard deviation of magnetic headings.
    """
    return with_view_columns(table.frame.sort_values("id").reset_index(drop=True), refine.magnetic_sd_deg)
