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
from jzi.store.disk.digest_memory import remembered_sha256
from jzi.store.disk.files import write_whole
from jzi.store.model_config import CONFIG
from jzi.store.plain import plain
from jzi.workspace.models.evaluated import open_experts
from jzi.workspace.regions.region_index import fusion_file, open_region_expert
from jzi.workspace.regions.zoom_weights import ZoomFusion
from jzi.workspace.setup.settings import FILE, RegionSettings, Settings
from jzi.workspace.setup.settings_file import load_settings

if TYPE_CHECKING:
    from torch import Tensor

    from jzi.evaluate.photos import LabelledPhotos
    from jzi.locate.expert import Expert
    from jzi.locate.joint.fusion_weights import FusionWeights
    from jzi.locate.joint.projected_expert import ProjectedExpert
    from jzi.store.cache.feature_cache import FeatureCache

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
        names: the experts of the square's model that `tiles` fuses; empty for all.
        index: the index of the region.
        cache: the cache of the square.
    """

    settings: RegionSettings
    retriever: Path
    square: Settings
    cells: Expert
    tiles: Expert
    names: tuple[str, ...]
    index: FeatureCache
    cache: FeatureCache

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
        model, cache = open_experts(area)
        cells, index = open_region_expert(settings, retriever)
        return cls(settings, retriever, area, cells, model.fused(experts), tuple(experts), index, cache)

    @property
    def model(self) -> Path:
        """Folder of the zoom model."""
        return self.square.path(self.square.model.path)

    def photos(self, split: str) -> LabelledPhotos:
        """The photos of a split in the region and of none of the training splits, with the embeddings of both encoders.

        Raises:
            ConfigError: there is none.
            ModelError: the model or the retriever was trained on some of them, in another split.
        """
        import torch

        from jzi.evaluate.photos import LabelledPhotos

        found, other = self.index.queries.encoded(), self.cache.queries.encoded()
        both = _matched(found[found["split"] == split], other[other["split"] != "train"])

        def embedding(photos: pd.DataFrame) -> Tensor:
            rows = ((self.cache, "row_square"), (self.index, "row_region"))
            parts = [cache.queries.embedding(photos[name].to_numpy(np.int64))[:, 0] for cache, name in rows]
            return torch.from_numpy(np.concatenate(parts, 1).astype(np.float32))

        photos = LabelledPhotos.of(self.cells, split, both, embedding)
        if photos is None:
            raise ConfigError(
                f"no photo of split {split} is in {self.index.path} and, not of split train, in {self.cache.path}, "
                "with the same id: run `jzi encode-queries` in both folders with the same table of photos"
            )
        for folder in (self.model, self.retriever):
            photos.check_held_out(folder)
        return photos

    def expert(self, weights: tuple[float, float] = (1.0, 1.0)) -> ProjectedExpert:
        """The weighted product of both experts.

        Raises:
            ConfigError: the square does not overlap the region.
        """
        from jzi.locate.joint.projected_expert import ProjectedExpert

        return ProjectedExpert(self.cells, self.tiles, weights)

    def fit(self) -> FusionWeights:
        """Fit the weights on photos of the split val, and write the file."""
        photos = self.photos("val").spread(FIT_PHOTOS)
        fitted = self.expert().fusion(photos.query).fit(photos.row, photos.col)
        fusion = ZoomFusion(
            cells=fitted.weights["cells"],
            zoom=fitted.weights["zoom"],
            gains=fitted.gains,
            photos=fitted.photos,
            retriever=remembered_sha256(self.retriever / CONFIG),
            model=remembered_sha256(self.model / CONFIG),
            experts=self.names,
        )
        text = json.dumps(plain(fusion), indent=2) + "\n"
        write_whole(fusion_file(self.settings), partial(Path.write_text, data=text))
        return fitted


def _matched(region: pd.DataFrame, square: pd.DataFrame) -> pd.DataFrame:
    """Photos of the same id and place, with their rows in both caches."""
    left, right = (frame.reset_index(names="row")[["row", "id", "latitude", "longitude"]] for frame in (region, square))
    both = left.merge(right, on="id", suffixes=("_region", "_square"))
    near = [(both[f"{name}_region"] - both[f"{name}_square"]).abs() < _SAME_PLACE for name in ("latitude", "longitude")]
    both = both[near[0] & near[1]]
    return both.rename(columns={"latitude_region": "latitude", "longitude_region": "longitude"})
