"""Embeddings of photos with known positions, on which experts are evaluated."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from jzi.decode.dataset import ZoomDataset
from jzi.errors import TrainingError
from jzi.evaluate.nearest import nearest_distance
from jzi.locate.expert import Expert
from jzi.locate.ranges import RANKS
from jzi.store.cache.feature_cache import FeatureCache
from jzi.store.geometry.pyramid import Pyramid
from jzi.store.trained_photos import check_held_out, photo_keys

#: Photos whose posteriors are computed at once.
BATCH = 32


@dataclass(frozen=True)
class LabelledPhotos:
    """Photos of a split that lie in cells with imagery.

    Attributes:
        split: "train", "val" or "test".
        query: (photo, feature) embeddings of the plain photos.
        latitude: (photo,) degrees (WGS 84).
        longitude: (photo,) degrees.
        row: (photo,) row of the cell that each photo lies in.
        col: (photo,) column of that cell.
        unreachable: photos of the split left out because the map has no imagery where they were taken.
        training_distance: (photo,) distance to the nearest training photo, metres; None if there is no training photo,
            these are the training photos, or it was not computed.
        ids: (photo,) their ids in the cache; empty if they do not come from one.
    """

    split: str
    query: Tensor
    latitude: NDArray[np.float64]
    longitude: NDArray[np.float64]
    row: NDArray[np.int64]
    col: NDArray[np.int64]
    unreachable: int
    training_distance: NDArray[np.float64] | None = None
    ids: tuple[str, ...] = ()

    @classmethod
    def load(cls, cache: FeatureCache, expert: Expert, split: str | None = None) -> LabelledPhotos:
        """Read the encoded photos of a split from a cache.

        Args:
            cache: a cache of the expert's encoder.
            expert: the expert to evaluate; photos are assigned to its cells.
            split: "train", "val" or "test"; by default test, or val if there is no test photo.

        Raises:
            CacheError: no photo is encoded.
            CacheCorruptError: a chunk is damaged.
            TrainingError: the split has no photo in a cell with imagery.
        """
        frame = cache.queries.encoded()

        def embedding(photos: pd.DataFrame) -> Tensor:
            return torch.from_numpy(cache.queries.embedding(photos.index.to_numpy(np.int64))[:, 0])

        for name in [split] if split else ["test", "val"]:
            photos = cls.of(expert, name, frame[frame["split"] == name], embedding, frame)
            if photos is not None:
                return photos
        expected = f"split {split!r}" if split else "split 'test' or 'val'"
        raise TrainingError(
            f"{cache.path} has no photo with {expected} to evaluate on: encode some, or give another --split"
        )

    @classmethod
    def of(
        cls,
        expert: Expert,
        split: str,
        photos: pd.DataFrame,
        embedding: Callable[[pd.DataFrame], Tensor],
        every: pd.DataFrame | None = None,
    ) -> LabelledPhotos | None:
        """Photos in cells with imagery; None if there is none.

        Args:
            expert: the expert to evaluate; photos are assigned to its cells.
            split: name of the split.
            photos: rows of the photos, with `latitude` and `longitude`.
            embedding: called with the rows of those that are kept, returns their (photo, feature) embeddings.
            every: rows of the photos of all splits, for the distances to the nearest training photo; None to leave
                these out.
        """
        latitude, longitude = photos["latitude"].to_numpy(float), photos["longitude"].to_numpy(float)
        row, col = expert.area.cells_at(latitude, longitude)
        reachable = (row >= 0) & expert.cell_mask[row, col]
        if not reachable.any():
            return None
        return cls(
            split=split,
            query=embedding(photos[reachable]),
            latitude=latitude[reachable],
            longitude=longitude[reachable],
            row=row[reachable],
            col=col[reachable],
            unreachable=int((~reachable).sum()),
            training_distance=None if every is None else _training_distance(every, photos[reachable]),
            ids=tuple(photos["id"][reachable].astype(str)) if "id" in photos else (),
        )

    @classmethod
    def from_dataset(
        cls, pyramid: Pyramid, dataset: ZoomDataset, split: str, train: ZoomDataset | None = None
    ) -> LabelledPhotos:
        """From a dataset that is on the device already.

        Args:
            pyramid: the pyramid of the dataset's cells.
            dataset: the photos of the split.
            split: name of the split.
            train: training photos, for the distances to the nearest one; None to leave them out.
        """
        row, col = pyramid.path_to_tile(dataset.actions.cpu().numpy())
        query, positions = dataset.query[:, 0], (dataset.latitude, dataset.longitude)
        distance = None
        if train is not None and len(train) and split != "train":
            distance = nearest_distance(*positions, train.latitude, train.longitude)
        return cls(split, query, *positions, row, col, dataset.unreachable, distance)

    def check_held_out(self, folder: Path) -> None:
        """Check that a model was trained on none of these photos, unless they are training photos.

        Args:
            folder: the model folder.

        Raises:
            ModelError: it, or its encoder, was trained on some of them, which were in another split then.
        """
        positions = {"id": self.ids, "latitude": self.latitude, "longitude": self.longitude}
        check_held_out(folder, self.split, photo_keys(pd.DataFrame(positions)))

    def spread(self, count: int) -> LabelledPhotos:
        """At most `count` of the photos, evenly spaced.

        Raises:
            ConfigError: `count` is out of range.
        """
        RANKS.check("count", count)
        if len(self) <= count:
            return self
        index = np.linspace(0, len(self) - 1, count).round().astype(np.int64)
        arrays = {name: getattr(self, name)[index] for name in ("latitude", "longitude", "row", "col")}
        distance = None if self.training_distance is None else self.training_distance[index]
        query = self.query[torch.from_numpy(index).to(self.query.device)]
        ids = tuple(self.ids[each] for each in index) if self.ids else ()
        return replace(self, query=query, training_distance=distance, ids=ids, **arrays)

    def batches(self, label: str) -> Iterator[NDArray[np.int64]]:
        """Indices of the photos, `BATCH` at a time, with a progress bar of that label."""
        with tqdm(total=len(self), unit="photo", desc=label) as progress:
            for part in np.array_split(np.arange(len(self)), range(BATCH, len(self), BATCH)):
                yield part
                progress.update(len(part))

    def __len__(self) -> int:
        return len(self.query)


def _training_distance(frame: pd.DataFrame, photos: pd.DataFrame) -> NDArray[np.float64] | None:
    training = frame[frame["split"] == "train"]
    if training.empty or (photos["split"] == "train").any():
        return None
    columns = (each[name].to_numpy(float) for each in (photos, training) for name in ("latitude", "longitude"))
    return nearest_distance(*columns)
