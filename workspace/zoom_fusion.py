"""The fusion of a square's zoom and a region's retriever: its weights, fitted on photos that both have encoded.

They are kept in a file beside the index of the region, since they belong to neither model.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from jzi.errors import ConfigError
from jzi.store.digest_memory import remembered_sha256
from jzi.store.files import write_whole
from jzi.store.model_folder import CONFIG
from jzi.store.plain import plain
from jzi.workspace.open import open_experts
from jzi.workspace.region_index import fusion_file, open_region_expert
from jzi.workspace.settings import FILE, RegionSettings, Settings, load_settings
from jzi.workspace.zoom_weights import ZoomFusion

if TYPE_CHECKING:
    from jzi.evaluate.photos import LabelledPhotos
    from jzi.locate.expert import Expert
    from jzi.locate.fusion import FusionWeights
    from jzi.locate.projected_expert import ProjectedExpert

#: Greatest number of photos that weights are fitted on, evenly spaced; 0.14 MB of memory each.
FIT_PHOTOS = 2048

#: Greatest difference between the positions of a photo in two caches, degrees.
_SAME_PLACE = 1e-6


@dataclass(frozen=True)
class ZoomedRegion:
    """A region's retriever and a square's zoom, and the photos that both have encoded.

    Attributes:
        settings: the settings of the region.
        retriever: folder of the retriever.
        square: the settings of the square.
        cells: the expert on the region's cells.
        tiles: the expert on the square's tiles.
    """

    settings: RegionSettings
    retriever: Path
    square: Settings
    cells: Expert
    tiles: Expert

    @classmethod
    def open(cls, settings: RegionSettings, retriever: Path, square: Path, experts: Sequence[str] = ()) -> ZoomedRegion:
        """Open the index of a region, and the model and the cache of a square.

        Args:
            settings: the settings of the region.
            retriever: folder of the retriever that has filled its index.
            square: folder of the square's jzi.toml.
            experts: experts of its model to fuse; all by default.

        Raises:
            JziError: a model or a cache cannot be used.
        """
        if not (square / FILE).exists():
            raise ConfigError(
                f"{square} has no {FILE}: give --zoom the folder of a square in which a zoom was trained, whose cache "
                "has the photos"
            )
        area = load_settings(square / FILE)
        model, _ = open_experts(area)
        cells, _ = open_region_expert(settings, retriever)
        return cls(settings, retriever, area, cells, model.fused(experts))

    @property
    def model(self) -> Path:
        """Folder of the zoom model."""
        return self.square.path(self.square.model.path)

    def photos(self, split: str) -> LabelledPhotos:
        """The photos of a split in the region and of none of the training splits, with the embeddings of both encoders.

        Raises:
            ConfigError: there is none.
        """
        import torch

        from jzi.evaluate.photos import LabelledPhotos
        from jzi.store.cache import FeatureCache

        region, square = FeatureCache.open(self.settings.cache_path), FeatureCache.open(self.square.cache_path)
        found, other = (cache.queries.encoded() for cache in (region, square))
        both = _matched(found[found["split"] == split], other[other["split"] != "train"])
        latitude, longitude = (both[name].to_numpy(float) for name in ("latitude", "longitude"))
        row, col = self.cells.area.cells_at(latitude, longitude)
        reachable = (row >= 0) & self.cells.cell_mask[row, col]
        if not reachable.any():
            raise ConfigError(
                f"no photo of split {split} is in {region.path} and, not of split train, in {square.path}, with the "
                "same id: run `jzi encode-queries` in both folders with the same table of photos"
            )
        parts = [
            cache.queries.embedding(both[name].to_numpy(np.int64)[reachable])[:, 0].astype(np.float32)
            for cache, name in ((square, "row_square"), (region, "row_region"))
        ]
        return LabelledPhotos(
            split=split,
            query=torch.from_numpy(np.concatenate(parts, 1)),
            latitude=latitude[reachable],
            longitude=longitude[reachable],
            row=row[reachable],
            col=col[reachable],
            unreachable=int((~reachable).sum()),
        )

    def expert(self, weights: tuple[float, float] = (1.0, 1.0)) -> ProjectedExpert:
        """The weighted product of both experts.

        Raises:
            ConfigError: the square does not overlap the region.
        """
        from jzi.locate.projected_expert import ProjectedExpert

        return ProjectedExpert(self.cells, self.tiles, weights)

    def fit(self, experts: Sequence[str] = (), split: str = "val") -> FusionWeights:
        """Fit the weights on photos of a split, and write the file.

        Args:
            experts: the experts of the zoom model that are fused, to be recorded.
            split: the split.
        """
        photos = self.photos(split).spread(FIT_PHOTOS)
        fitted = self.expert().fusion(photos.query).fit(photos.row, photos.col)
        fusion = ZoomFusion(
            cells=fitted.weights["cells"],
            zoom=fitted.weights["zoom"],
            gains=fitted.gains,
            photos=fitted.photos,
            retriever=remembered_sha256(self.retriever / CONFIG),
            model=remembered_sha256(self.model / CONFIG),
            experts=tuple(experts),
        )
        text = json.dumps(plain(fusion), indent=2) + "\n"
        write_whole(fusion_file(self.settings), partial(Path.write_text, data=text))
        return fitted

    def experts(self, fusion: ZoomFusion) -> dict[str, Expert]:
        """Both experts alone, on the cells of the region, and their fusion, by name."""
        return {"cells": self.expert((1.0, 0.0)), "zoom": self.expert((0.0, 1.0)), "fused": self.expert(fusion.weights)}


def _matched(region: pd.DataFrame, square: pd.DataFrame) -> pd.DataFrame:
    """Photos of the same id and place, with their rows in both caches."""
    left, right = (frame.reset_index(names="row")[["row", "id", "latitude", "longitude"]] for frame in (region, square))
    both = left.merge(right, on="id", suffixes=("_region", "_square"))
    near = [(both[f"{name}_region"] - both[f"{name}_square"]).abs() < _SAME_PLACE for name in ("latitude", "longitude")]
    both = both[near[0] & near[1]]
    return both.rename(columns={"latitude_region": "latitude", "longitude_region": "longitude"})
