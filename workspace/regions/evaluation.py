"""Evaluate a state-wide retriever among all cells of a region."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from jzi.errors import ConfigError
from jzi.evaluate.cases import find_cases
from jzi.evaluate.photos import LabelledPhotos
from jzi.evaluate.retrieval import RADII, Distance, RetrievalEvaluation, evaluate_retrieval
from jzi.workspace.gallery import write_cases
from jzi.workspace.regions.region_index import open_region_expert

if TYPE_CHECKING:
    import pandas as pd

    from jzi.store.cache.feature_cache import FeatureCache
    from jzi.workspace.setup.settings import RegionSettings


def evaluate_region(
    settings: RegionSettings,
    retriever: Path,
    split: str | None = None,
    *,
    radii: Sequence[float] | None = None,
    distance: Distance = "ellipsoid",
    time_zone: str | None = None,
    min_photos: int = 1,
) -> tuple[RetrievalEvaluation, str]:
    """Recall at k among all cells of a region, of the photos of its index.

    Args:
        settings: settings of the region.
        retriever: the retriever's folder.
        split: of the photos, or "all"; by default test, or val if there is none.
        radii: metres, 0 for the photo's own cell; by default those within which every photo has a cell.
        distance: how distances are measured.
        time_zone: of the photos, for recall by hour.
        min_photos: photos of a year or hour from which its recall is reported.

    Returns:
        The evaluation, and the split.

    Raises:
        ConfigError: the index has no photo of the split.
        JziError: the retriever or the index cannot be used.
    """
    expert, cache = open_region_expert(settings, retriever)
    photos, name = split_photos(cache, split, retriever)
    if radii is None:
        radii = [radius for radius in RADII if radius == 0 or radius >= cache.area.cell_size / 2**0.5]
    evaluation = evaluate_retrieval(
        cache.area,
        expert.cell_mask,
        cache.cells,
        cache.queries.embedding(photos.index.to_numpy(np.int64))[:, 0].astype(np.float32),
        photos["latitude"].to_numpy(float),
        photos["longitude"].to_numpy(float),
        radii=tuple(radii),
        distance=distance,
        frame=photos,
        timezone=time_zone,
        min_photos=min_photos,
    )
    return evaluation, name


def split_photos(cache: FeatureCache, split: str | None, retriever: Path) -> tuple[pd.DataFrame, str]:
    """The encoded photos of a split, and its name; arguments and errors as of `evaluate_region`."""
    frame, name = cache.queries.encoded(), split or "test"
    if split is None and not (frame["split"] == name).any():
        name = "val"
    photos = frame if name == "all" else frame[frame["split"] == name]
    if photos.empty:
        raise ConfigError(
            f"{cache.path} has no photo of split {name}: run `jzi encode-queries --retriever {retriever}`, or give "
            "another --split, such as all where the retriever was not trained on these photos"
        )
    return photos, name


def write_region_failures(
    path: Path, settings: RegionSettings, retriever: Path, split: str, *, count: int, radius: float
) -> int:
    """Locate the photos of a split, and write the report of the worst and best ones; returns its size, bytes.

    Args:
        path: file to write.
        settings: settings of the region; they name the map and the photos.
        retriever: the retriever's folder.
        split: of the photos, or "all".
        count: number of photos, at most.
        radius: radius of the answer, metres.

    Raises:
        ConfigError: a number is out of range, or no photo lies on a cell of the region.
        ExportError: the file cannot be written.
    """
    expert, cache = open_region_expert(settings, retriever)
    frame, _ = split_photos(cache, split, retriever)

    def embedding(rows: pd.DataFrame) -> torch.Tensor:
        return torch.from_numpy(cache.queries.embedding(rows.index.to_numpy(np.int64))[:, 0]).float()

    photos = LabelledPhotos.of(expert, split, frame, embedding)
    if photos is None:
        raise ConfigError(f"no photo of split {split} lies in a cell of the region with imagery: give another --split")
    cases = find_cases(expert, photos, count, radius=radius)
    title = f"{retriever.name}: {len(photos)} photos of the {split} split"
    return write_cases(path, settings, cases, expert, cache, {}, title=title)
