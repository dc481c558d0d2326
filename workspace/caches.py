"""The caches of a folder: what there is, which models need it, and taking one away."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jzi.errors import CacheError, JziError, ModelError
from jzi.store.cache import ENCODED, MISSING, NODATA, FeatureCache
from jzi.store.cell_features import CellFeatures
from jzi.store.info import EncoderInfo, ImageryInfo
from jzi.store.model_folder import CONFIG, MAP, ModelConfig, read_config
from jzi.store.photo_features import UNREADABLE
from jzi.store.pyramid import Pyramid
from jzi.store.storage import is_url

#: What the status of tiles and cells is called.
_STATUS = {"encoded": ENCODED, "without_imagery": NODATA, "missing": MISSING}


@dataclass(frozen=True)
class ModelInfo:
    """A model folder, as far as it can be known without reading weights.

    Attributes:
        folder: the model.
        config: its config.json.
        has_map: whether it carries the map along, and needs no cache.
    """

    folder: Path
    config: ModelConfig
    has_map: bool


@dataclass(frozen=True)
class CacheInfo:
    """What a cache holds.

    Attributes:
        path: its path or URL.
        pyramid: how its area is cut.
        encoder: which encoder filled it.
        imagery: which imagery; None where the map has not been begun.
        size: bytes on disk; 0 for a URL.
        tiles: how many tiles of levels 0..L-1 are encoded, without_imagery and missing.
        cells: the same of terminal cells; None where there are no embeddings of cells.
        photos: how many are listed.
        missing_photos: how many of them have not been encoded.
        unreadable_photos: how many of them cannot be read.
        splits: how many encoded photos each split has.
        patch_tokens: how many patch tokens of a tile are kept; 0 for none.
        patch_tokens_size: bytes that they take.
    """

    path: str
    pyramid: Pyramid
    encoder: EncoderInfo
    imagery: ImageryInfo | None
    size: int
    tiles: dict[str, int]
    cells: dict[str, int] | None
    photos: int
    missing_photos: int
    unreadable_photos: int
    splits: dict[str, int]
    patch_tokens: int = 0
    patch_tokens_size: int = 0

    @property
    def is_index(self) -> bool:
        """Whether it is the index of a retriever: cells, and not one tile."""
        return self.cells is not None and self.tiles["missing"] == sum(self.tiles.values())

    @property
    def missing_tiles(self) -> int:
        """How many tiles have not been encoded; an index needs none."""
        return 0 if self.is_index else self.tiles["missing"]

    @property
    def missing_cells(self) -> int:
        """How many terminal cells have not been encoded, where any was to be."""
        return self.cells["missing"] if self.cells else 0

    @property
    def complete(self) -> bool:
        """Whether nothing is missing of what it is for, and it has photos."""
        return not (self.missing_tiles or self.missing_cells or self.missing_photos) and self.photos > 0

    def belongs_to(self, model: ModelInfo) -> bool:
        """Whether a model was trained with this encoder and pyramid, and on this imagery, as far as it is known."""
        config = model.config
        return (
            self.encoder.fingerprint == config.encoder.fingerprint
            and self.pyramid == config.pyramid
            and (
                self.imagery is None or config.imagery is None or self.imagery.fingerprint == config.imagery.fingerprint
            )
        )

    def to_dict(self, models: Iterable[ModelInfo]) -> dict[str, Any]:
        """Plain values, for JSON, with those of some models that belong to it."""
        return {
            "path": self.path,
            "encoder": self.encoder.to_dict(),
            "imagery": self.imagery.to_dict() if self.imagery else None,
            "pyramid": self.pyramid.to_dict(),
            "bytes": self.size,
            "tiles": sum(self.tiles.values()),
            "missing_tiles": self.tiles["missing"],
            "photos": self.photos,
            "missing_photos": self.missing_photos,
            "cells": self._encoded_cells,
            "missing_cells": self.missing_cells,
            "complete": self.complete,
            "models": [{"folder": str(model.folder), "has_map": model.has_map} for model in self._own(models)],
        }

    def to_text(self, models: Iterable[ModelInfo]) -> str:
        """For people."""
        pyramid = self.pyramid
        lacking = ((self.missing_tiles, "tiles"), (self.missing_photos, "photos"), (self.missing_cells, "cells"))
        lacks = [f"{count} {what}" for count, what in lacking if count]
        state = f"lacks {' and '.join(lacks)}" if lacks else "complete" if self.complete else "holds no photo"
        holds = [] if self.is_index else [f"{sum(self.tiles.values())} tiles"]
        holds += [f"{self._encoded_cells} cells"] if self._encoded_cells else []
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

    @property
    def _encoded_cells(self) -> int:
        return self.cells["encoded"] if self.cells else 0

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
                caches.append(inspect_cache(path))
            names.clear()  # what lies in a Zarr group is its own affair
        elif CONFIG in files:
            with suppress(ModelError):  # the config of an encoder, say
                models.append(inspect_model(Path(path)))
        names[:] = sorted(name for name in names if not name.startswith("."))
    return caches, models


def inspect_cache(path: str | Path) -> CacheInfo:
    """What a cache holds; reads every status, and no embedding.

    Raises:
        CacheError: there is none.
        CacheCorruptError: what it says of tiles or photos is damaged.
    """
    cache = FeatureCache.open(path)
    tiles = _count(np.concatenate([cache.status(level).ravel() for level in range(cache.pyramid.levels)]))
    listed = cache.queries.column("listed").astype(bool)
    status, split = (cache.queries.column(name)[listed] for name in ("status", "split"))
    splits = Counter(map(str, split[status == ENCODED]))
    tokens = cache.patch_tokens if cache.has_tokens else None
    files = [] if is_url(path) else [file for file in Path(path).rglob("*") if file.is_file()]
    return CacheInfo(
        path=str(path),
        pyramid=cache.pyramid,
        encoder=cache.encoder,
        imagery=cache.imagery,
        size=sum(file.stat().st_size for file in files),
        tiles=tiles,
        cells=_count(CellFeatures.of(cache).status()) if CellFeatures.there(cache.group) else None,
        photos=len(status),
        missing_photos=int((status == MISSING).sum()),
        unreadable_photos=int((status == UNREADABLE).sum()),
        splits=dict(splits.most_common()),
        patch_tokens=tokens.count if tokens else 0,
        patch_tokens_size=tokens.stored_bytes() if tokens else 0,
    )


def _count(status: NDArray[np.uint8]) -> dict[str, int]:
    return {name: int((status == value).sum()) for name, value in _STATUS.items()}


def inspect_model(folder: Path) -> ModelInfo:
    """What a model folder holds; reads its config.json alone.

    Raises:
        ModelError: there is no model, or its config.json cannot be used.
    """
    return ModelInfo(folder, read_config(folder), (folder / MAP).exists())


def models_needing(cache: CacheInfo, models: Iterable[ModelInfo], others: Iterable[CacheInfo]) -> list[ModelInfo]:
    """The models that would be without a map if a cache went: they have none of their own, nor has another cache.

    Args:
        cache: the one that may go.
        models: those that there are.
        others: the caches that stay.
    """
    spare = [other for other in others if not (other.missing_tiles or (other.is_index and other.missing_cells))]
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
