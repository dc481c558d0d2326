"""The caches of a folder: what there is, which models need it, and taking one away."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jzi.errors import CacheError, JziError, ModelError
from jzi.store.cache import ENCODED, MISSING, FeatureCache
from jzi.store.cell_features import CellFeatures
from jzi.store.info import EncoderInfo, ImageryInfo
from jzi.store.model_folder import MAP, read_config
from jzi.store.pyramid import Pyramid


@dataclass(frozen=True)
class ModelInfo:
    """Which embeddings a model belongs to.

    Attributes:
        folder: the model.
        pyramid: how its area is cut.
        encoder: which encoder made the embeddings that it was trained on.
        imagery: which imagery; None where that is not known.
        has_map: whether it carries the map along, and needs no cache.
    """

    folder: Path
    pyramid: Pyramid
    encoder: EncoderInfo
    imagery: ImageryInfo | None
    has_map: bool


@dataclass(frozen=True)
class CacheInfo:
    """What a cache is.

    Attributes:
        path: where it lies.
        pyramid: how its area is cut.
        encoder: which encoder filled it.
        imagery: which imagery; None where the map has not been begun.
        size: bytes on disk.
        tiles: how many the pyramid has.
        missing_tiles: how many of them have not been encoded.
        photos: how many are listed.
        missing_photos: how many of them have not been encoded; those that cannot be read are not missing.
        cells: how many terminal cells it has an embedding of, for retrieval.
        missing_cells: how many have not been encoded, where any was to be.
    """

    path: Path
    pyramid: Pyramid
    encoder: EncoderInfo
    imagery: ImageryInfo | None
    size: int
    tiles: int
    missing_tiles: int
    photos: int
    missing_photos: int
    cells: int = 0
    missing_cells: int = 0

    @property
    def is_index(self) -> bool:
        """Whether it is the index of a retriever: cells, and not one tile."""
        return self.cells > 0 and self.missing_tiles == self.tiles

    @property
    def complete(self) -> bool:
        """Whether it has every tile, and photos."""
        return not (self.missing_tiles or self.missing_photos) and self.photos > 0

    def belongs_to(self, model: ModelInfo) -> bool:
        """Whether a model was trained with this encoder and pyramid, and on this imagery, as far as it is known."""
        known = self.imagery is not None and model.imagery is not None
        return (
            self.encoder.fingerprint == model.encoder.fingerprint
            and self.pyramid == model.pyramid
            and (not known or self.imagery.fingerprint == model.imagery.fingerprint)  # type: ignore[union-attr]
        )

    def to_dict(self, models: Iterable[ModelInfo]) -> dict[str, Any]:
        """Plain values, for JSON, with those of some models that belong to it."""
        return {
            "path": str(self.path),
            "encoder": self.encoder.to_dict(),
            "imagery": self.imagery.to_dict() if self.imagery else None,
            "pyramid": self.pyramid.to_dict(),
            "bytes": self.size,
            "tiles": self.tiles,
            "missing_tiles": self.missing_tiles,
            "photos": self.photos,
            "missing_photos": self.missing_photos,
            "cells": self.cells,
            "missing_cells": self.missing_cells,
            "complete": self.complete,
            "models": [{"folder": str(model.folder), "has_map": model.has_map} for model in self._own(models)],
        }

    def to_text(self, models: Iterable[ModelInfo]) -> str:
        """For people."""
        pyramid = self.pyramid
        lacking = (
            (0 if self.is_index else self.missing_tiles, "tiles"),
            (self.missing_photos, "photos"),
            (self.missing_cells, "cells"),
        )
        lacks = [f"{count} {what}" for count, what in lacking if count]
        held = "complete" if self.complete or (self.is_index and self.photos) else "holds no photo"
        state = f"lacks {' and '.join(lacks)}" if lacks else held
        holds = [f"{self.tiles} tiles"] * (not self.is_index) + [f"{self.cells} cells"] * (self.cells > 0)
        used = [f"{model.folder}{'' if model.has_map else ' (has no map of its own)'}" for model in self._own(models)]
        shown = ", ".join(used[:3]) + (f" and {len(used) - 3} more" if len(used) > 3 else "")
        return "\n".join(
            [
                f"{self.path}: {self.size / 1e6:.1f} MB, {state}",
                f"  encoder  {self.encoder.label}",
                f"  map      {self.imagery.label if self.imagery else 'none yet'}",
                f"  pyramid  {pyramid.size:g} m, {pyramid.levels} steps of {pyramid.grid} x {pyramid.grid}, cells of "
                f"{pyramid.cell_size:.2f} m; {', '.join(holds)}, {self.photos} photos",
                f"  used by  {shown or 'no model here'}",
            ]
        )

    def _own(self, models: Iterable[ModelInfo]) -> list[ModelInfo]:
        return [model for model in models if self.belongs_to(model)]


def scan_folder(folder: Path) -> tuple[list[CacheInfo], list[ModelInfo]]:
    """Every feature cache and every model in a folder and those below it.

    What is hidden is not looked into; a cache that cannot be read is left out.

    Raises:
        CacheError: there is no such folder.
    """
    if not folder.is_dir():
        raise CacheError(f"there is no folder {folder}")
    caches, models = [], []
    for path, names, files in os.walk(folder):
        if "zarr.json" in files:
            with suppress(JziError):  # a Zarr group of others, or one that `jzi cache verify` has more to say about
                caches.append(describe_cache(Path(path)))
            names.clear()  # what lies in a Zarr group is its own affair
        elif model := read_model_info(Path(path)):
            models.append(model)
        names[:] = sorted(name for name in names if not name.startswith("."))
    return caches, models


def describe_cache(path: Path) -> CacheInfo:
    """What a cache is, without the models that belong to it.

    Raises:
        CacheError: there is none.
        CacheCorruptError: what it says of tiles or photos is damaged.
    """
    cache = FeatureCache.open(path)
    missing = sum(int((cache.status(level) == MISSING).sum()) for level in range(cache.pyramid.levels))
    listed = cache.queries.column("listed").astype(bool)
    status = cache.queries.column("status")
    cells = CellFeatures.of(cache).status() if CellFeatures.there(cache.group) else np.empty(0, np.uint8)
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return CacheInfo(
        path=path,
        pyramid=cache.pyramid,
        encoder=cache.encoder,
        imagery=cache.imagery,
        size=size,
        tiles=cache.pyramid.tile_count,
        missing_tiles=missing,
        photos=int(listed.sum()),
        missing_photos=int((listed & (status == MISSING)).sum()),
        cells=int((cells == ENCODED).sum()),
        missing_cells=int((cells == MISSING).sum()),
    )


def read_model_info(folder: Path) -> ModelInfo | None:
    """Which embeddings a model folder belongs to; None where there is no model."""
    try:
        config = read_config(folder)
    except ModelError:
        return None
    return ModelInfo(folder, config.pyramid, config.encoder, config.imagery, (folder / MAP).exists())


def models_needing(cache: CacheInfo, models: Iterable[ModelInfo], others: Iterable[CacheInfo]) -> list[ModelInfo]:
    """The models that would be without a map if a cache went: they have none of their own, nor has another cache.

    Args:
        cache: the one that may go.
        models: those that there are.
        others: the caches that stay.
    """
    spare = [other for other in others if not other.missing_tiles or (other.is_index and not other.missing_cells)]
    return [
        model
        for model in models
        if not model.has_map and cache.belongs_to(model) and not any(other.belongs_to(model) for other in spare)
    ]


def remove_cache(path: Path) -> None:
    """Delete a cache; interrupted, it leaves nothing that could be taken for one.

    Raises:
        CacheError: there is no cache.
    """
    FeatureCache.open(path)
    doomed = path.with_name(f".{path.name}.{os.getpid()}.removed")
    path.rename(doomed)
    shutil.rmtree(doomed)
