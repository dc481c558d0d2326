"""Held-out photos of a cache on which refinement is evaluated: embeddings, tokens, cameras and positions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from jzi.encode.photo.photo_view import COLUMNS, PhotoView
from jzi.errors import CacheError, TrainingError
from jzi.evaluate.nearest import nearest_distance
from jzi.evaluate.photos import LabelledPhotos
from jzi.evaluate.stages.metres import DUPLICATE_M
from jzi.locate.expert import Expert
from jzi.refine.photos import PhotoData
from jzi.refine.stage import RefineStage
from jzi.store.cache.feature_cache import FeatureCache
from jzi.store.features.map_embeddings import ENCODED

#: Most photos that are evaluated, evenly spaced: a photo takes up to a tenth of a second on a CPU.
PHOTOS = 2000


@dataclass(frozen=True)
class RefinedPhotos:
    """Photos of a split that lie on the map.

    Attributes:
        frame: their rows of the cache, with id, split, latitude, longitude and the columns of `PhotoView.to_columns`.
        query: (photo, feature) embeddings.
        read: reads one of them by its number.
        duplicates: photos left out because they were taken within 5 m of a training photo.
    """

    frame: pd.DataFrame
    query: Tensor
    read: Callable[[int], PhotoData | None]
    duplicates: int = 0

    @classmethod
    def load(
        cls,
        cache: FeatureCache,
        split: str | None = None,
        *,
        pixels: Callable[[str, bool], PhotoData | None] | None = None,
        count: int = PHOTOS,
    ) -> RefinedPhotos:
        """Read the photos of a split from a cache.

        Args:
            cache: with embeddings of photos, and with their tokens unless there are pixels.
            split: "train", "val" or "test"; by default test, or val if there is no test photo.
            pixels: reads a photo by its id, and whether it is a panorama, for refiners that see pixels; None for tokens
                of the cache.
            count: most photos, evenly spaced.

        Raises:
            CacheError: the cache has no such photo, lacks what is known of the photos' views, or is damaged.
            TrainingError: no photo of the split is left.
        """
        usable = usable_photos(cache, tokens=pixels is None)
        if not set(COLUMNS) <= set(usable):
            raise CacheError(
                f"{cache.path} does not record the headings and fields of view of its photos: run "
                "`jzi encode-queries --tokens`"
            )
        splits = [split] if split else ["test", "val"]
        found = next((part for name in splits if len(part := usable[usable["split"] == name])), usable[:0])
        frame, duplicates = without_duplicates(usable, found)
        if frame.empty:
            raise TrainingError(
                f"{cache.path} has no photo with split {' or '.join(splits)} on the map that is {DUPLICATE_M:g} m from "
                f"training photos ({duplicates} are nearer): give another --split, or split photos by block"
            )
        frame = frame.iloc[np.linspace(0, len(frame) - 1, min(count, len(frame))).astype(int)]
        rows = frame.index.to_numpy(np.int64)
        embedding = torch.from_numpy(cache.queries.embedding(rows)[:, 0])
        if pixels is not None:
            panorama = (frame["panorama"] == 1).to_numpy() if "panorama" in frame else np.zeros(len(frame), bool)
            names = frame["id"].tolist()
            return cls(frame, embedding, lambda number: pixels(names[number], bool(panorama[number])), duplicates)
        tokens = cache.queries.tokens

        def read(number: int) -> PhotoData:
            return PhotoData(tokens=torch.from_numpy(tokens.projection.to_float(tokens.read(rows[number, None])[0])))

        return cls(frame, embedding, read, duplicates)

    def __len__(self) -> int:
        return len(self.frame)

    @property
    def split(self) -> str:
        """Split of the photos."""
        return str(self.frame["split"].iloc[0])

    def take(self, photos: NDArray[np.int64]) -> RefinedPhotos:
        """Some of the photos, by their numbers."""
        query = self.query[torch.from_numpy(photos).to(self.query.device)]
        read = self.read
        return RefinedPhotos(self.frame.iloc[photos], query, lambda number: read(int(photos[number])))

    def labelled(self, expert: Expert) -> LabelledPhotos:
        """The same photos as those on which an expert is evaluated."""
        frame = self.frame
        latitude, longitude = frame["latitude"].to_numpy(float), frame["longitude"].to_numpy(float)
        row, col = expert.area.cells_at(latitude, longitude)
        names = tuple(frame["id"].astype(str))
        return LabelledPhotos(self.split, self.query, latitude, longitude, row, col, 0, None, names)

    def view(self, number: int, stage: RefineStage) -> PhotoView:
        """What is known of a photo's camera, completed with the stage's defaults."""
        options = stage.options
        row = self.frame.iloc[number]
        columns = (float(row.get(name, np.nan)) for name in ("hfov_deg", "panorama", "heading_deg", "heading_sd_deg"))
        view = PhotoView.from_columns(*columns)
        return view.completed(options.hfov_deg, options.heading_sd_deg, options.magnetic_sd_deg)


def usable_photos(cache: FeatureCache, *, tokens: bool) -> pd.DataFrame:
    """The encoded photos of a cache that lie in a cell with imagery, by their row.

    Args:
        cache: of a pyramid.
        tokens: whether they must have tokens.

    Raises:
        CacheError: there are none.
    """
    frame = cache.queries.encoded()
    row, col = cache.pyramid.cells_at(frame["latitude"].to_numpy(float), frame["longitude"].to_numpy(float))
    usable = (row >= 0) & (cache.tiles.status(cache.pyramid.levels)[row, col] == ENCODED)
    if tokens:
        usable &= cache.queries.tokens.status()[frame.index.to_numpy(np.int64)] == 1
    if not usable.any():
        hint = "`jzi encode-queries --tokens`" if tokens else "`jzi encode-map`"
        raise CacheError(f"{cache.path} has no photo to refine on its map: run {hint}")
    return frame[usable]


def without_duplicates(
    frame: pd.DataFrame, photos: pd.DataFrame, metres: float = DUPLICATE_M
) -> tuple[pd.DataFrame, int]:
    """The photos that were not taken within some metres of a training photo, and the number of the others.

    Args:
        frame: photos of all splits.
        photos: the photos; training photos are not left out.
        metres: distance.
    """
    training = frame[frame["split"] == "train"]
    if training.empty or photos.empty or (photos["split"] == "train").any():
        return photos, 0
    positions = (each[name].to_numpy(float) for each in (photos, training) for name in ("latitude", "longitude"))
    near = nearest_distance(*positions) <= metres
    return photos[~near], int(near.sum())
