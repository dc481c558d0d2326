"""Find, inspect and delete the feature caches and models of a folder."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from jzi.errors import CacheError, JziError, ModelError
from jzi.refine.info import INFO, read_refiner_info
from jzi.store.cache.feature_cache import ENCODED, MISSING, NODATA, FeatureCache
from jzi.store.disk.lock import WriterLock
from jzi.store.disk.object_store import delete_all
from jzi.store.disk.storage import is_url
from jzi.store.features.cell_features import CellFeatures
from jzi.store.features.photo_features import UNREADABLE
from jzi.store.geometry.pyramid import Pyramid
from jzi.store.geometry.region import RegionInfo
from jzi.store.info import EncoderInfo, ImageryInfo
from jzi.store.model_config import CONFIG, AnyModelConfig, StatewideModelConfig, read_config
from jzi.store.model_folder import MAP
from jzi.workspace.stages.refiner import REFINER

#: Names of the status of tiles and cells.
_STATUS = {"encoded": ENCODED, "without_imagery": NODATA, "missing": MISSING}


@dataclass(frozen=True)
class ModelInfo:
    """Contents of a model folder, without its weights.

    Attributes:
        folder: the model folder.
        config: its config.json.
        has_map: whether it contains the map and needs no cache.
        refiner: whether it contains a refiner that reads tokens of a cache.
    """

    folder: Path
    config: AnyModelConfig
    has_map: bool
    refiner: bool = False


@dataclass(frozen=True)
class CacheInfo:
    """Contents of a cache.

    Attributes:
        path: path or URL.
        pyramid: geometry of the area; None for a region.
        region: the region; None for a pyramid.
        encoder: encoder of the embeddings.
        imagery: imagery of the map; None if no tile has been encoded.
        size: bytes on disk; 0 for a URL.
        tiles: number of tiles of levels 0..L-1 that are encoded, without_imagery and missing.
        cells: the same for terminal cells; None if the cache has no arrays for cells.
        photos: number of listed photos.
        missing_photos: number of listed photos that have not been encoded.
        unreadable_photos: number of listed photos that cannot be read.
        splits: number of encoded photos by split.
        patch_tokens: number of patch tokens of a tile; 0 if none are stored.
        patch_tokens_size: bytes of the patch tokens on disk.
        detail: number of tiles whose tokens at a high resolution are encoded, without_imagery and missing; None if the
            cache has no arrays for them.
        detail_label: what these tokens are; empty if there are none.
        detail_size: their bytes on disk.
        photo_tokens: what the tokens of photos are; empty if the cache has no arrays for them.
        missing_photo_tokens: number of encoded photos without tokens; 0 if the cache has no arrays for them.
        photo_tokens_size: bytes of the tokens of photos on disk.
    """

    path: str
    pyramid: Pyramid | None
    region: RegionInfo | None
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
    detail: dict[str, int] | None = None
    detail_label: str = ""
    detail_size: int = 0
    photo_tokens: str = ""
    missing_photo_tokens: int = 0
    photo_tokens_size: int = 0

    @property
    def is_index(self) -> bool:
        """Whether the cache is the index of a retriever: it has cells, but no tiles. A region's always is."""
        return self.cells is not None and self.tiles["missing"] == sum(self.tiles.values())

    @property
    def missing_tiles(self) -> int:
        """Number of tiles that have not been encoded; 0 for an index, which needs none."""
        return 0 if self.is_index else self.tiles["missing"]

    @property
    def missing_cells(self) -> int:
        """Number of terminal cells that have not been encoded; 0 if the cache has no arrays for cells."""
        return self.cells["missing"] if self.cells else 0

    @property
    def complete(self) -> bool:
        """Whether the cache has photos, and no tile, cell, photo or token is missing."""
        missing = self.missing_tiles, self.missing_cells, self.missing_photos
        return not (any(missing) or self.missing_detail or self.missing_photo_tokens) and self.photos > 0

    @property
    def missing_detail(self) -> int:
        """Number of tiles without tokens at a high resolution; 0 if the cache has no arrays for them."""
        return self.detail["missing"] if self.detail else 0

    def belongs_to(self, model: ModelInfo) -> bool:
        """Whether a model was trained with this encoder and pyramid, and on this imagery if both record one.

        The caches of a state-wide retriever, which is of no area, are all those of its towers.
        """
        config = model.config
        if isinstance(config, StatewideModelConfig):
            return self.encoder.fingerprint == config.encoder.fingerprint
        return (
            self.encoder.fingerprint == config.encoder.fingerprint
            and self.pyramid == config.pyramid
            and (
                self.imagery is None or config.imagery is None or self.imagery.fingerprint == config.imagery.fingerprint
            )
        )

    @property
    def encoded_cells(self) -> int:
        """Number of terminal cells that have an embedding."""
        return self.cells["encoded"] if self.cells else 0


def scan_folder(folder: Path) -> tuple[list[CacheInfo], list[ModelInfo]]:
    """Find all feature caches and models in a folder and its subfolders.

    Hidden folders are skipped, and so are caches that cannot be read.

    Raises:
        CacheError: the folder does not exist.
    """
    if not folder.is_dir():
        raise CacheError(f"there is no folder {folder}")
    caches, models = [], []
    for path, names, files in os.walk(folder):
        if "zarr.json" in files:
            with suppress(JziError):  # another Zarr group, or a damaged cache
                caches.append(inspect_cache(path))
            names.clear()  # do not search in a Zarr group
        elif CONFIG in files:
            with suppress(ModelError):  # such as the config of an encoder
                models.append(inspect_model(Path(path)))
        names[:] = sorted(name for name in names if not name.startswith("."))
    return caches, models


def inspect_cache(path: str | Path) -> CacheInfo:
    """Inspect a cache; reads all status arrays, but no embeddings.

    Raises:
        CacheError: there is no cache.
        CacheCorruptError: a status array or a column is damaged.
    """
    cache = FeatureCache.open(path)
    tiles = _count(
        np.concatenate([np.empty(0, np.uint8), *(cache.tiles.status(n).ravel() for n in range(cache.levels))])
    )
    listed = cache.queries.column("listed").astype(bool)
    status, split = (cache.queries.column(name)[listed] for name in ("status", "split"))
    splits = Counter(map(str, split[status == ENCODED]))
    tokens = cache.patch_tokens if cache.has_tokens else None
    detail = cache.detail if cache.has_detail else None
    photo_tokens = cache.queries.tokens if cache.queries.has_tokens else None
    without = 0 if photo_tokens is None else int(((status == ENCODED) & (photo_tokens.status()[listed] == 0)).sum())
    files = [] if is_url(path) else [file for file in Path(path).rglob("*") if file.is_file()]
    return CacheInfo(
        path=str(path),
        pyramid=cache.header.pyramid,
        region=cache.region,
        encoder=cache.encoder,
        imagery=cache.imagery,
        size=sum(file.stat().st_size for file in files),
        tiles=tiles,
        cells=_count_cells(cache.cells) if cache.has_cells else None,
        photos=len(status),
        missing_photos=int((status == MISSING).sum()),
        unreadable_photos=int((status == UNREADABLE).sum()),
        splits=dict(splits.most_common()),
        patch_tokens=tokens.count if tokens else 0,
        patch_tokens_size=tokens.stored_bytes() if tokens else 0,
        detail=_count(detail.status()) if detail else None,
        detail_label=detail.info.label if detail else "",
        detail_size=detail.stored_bytes() if detail else 0,
        photo_tokens=photo_tokens.info.label if photo_tokens else "",
        missing_photo_tokens=without,
        photo_tokens_size=photo_tokens.stored_bytes() if photo_tokens else 0,
    )


def _count(status: NDArray[np.uint8]) -> dict[str, int]:
    return {name: int((status == value).sum()) for name, value in _STATUS.items()}


def _count_cells(cells: CellFeatures) -> dict[str, int]:
    status = cells.status()
    return {**_count(status), "missing": cells.missing(status)}


def inspect_model(folder: Path) -> ModelInfo:
    """Inspect a model folder; reads only its config.json, and refiner.json.

    Raises:
        ModelError: there is no model, or its config.json is invalid.
    """
    return ModelInfo(folder, read_config(folder), (folder / MAP).exists(), _reads_tokens(folder / REFINER))


def _reads_tokens(folder: Path) -> bool:
    """Whether there is a refiner that reads tokens of a cache in a folder; True if its refiner.json is damaged."""
    if not (folder / INFO).is_file():
        return False
    try:
        return read_refiner_info(folder).kind == "cached"
    except ModelError:
        return True


def models_needing(cache: CacheInfo, models: Iterable[ModelInfo], others: Iterable[CacheInfo]) -> list[ModelInfo]:
    """Return the models that would have no map without a cache, or no tokens for their refiner.

    Args:
        cache: the cache to be deleted.
        models: all models.
        others: the remaining caches.
    """
    complete = [other for other in others if not (other.missing_tiles or (other.is_index and other.missing_cells))]
    alike = [other for other in complete if (other.detail_label, other.missing_detail) == (cache.detail_label, 0)]

    def needs(model: ModelInfo) -> bool:
        without_map = not model.has_map and not any(other.belongs_to(model) for other in complete)
        tokens = model.refiner and cache.detail is not None
        return without_map or (tokens and not any(other.belongs_to(model) for other in alike))

    return [model for model in models if cache.belongs_to(model) and needs(model)]


def remove_cache(path: str | Path) -> None:
    """Delete a cache.

    A local one is renamed first, so an interrupted deletion leaves no incomplete cache under its name. Of one at a URL
    the metadata goes last, so an interrupted deletion can be repeated.

    Raises:
        CacheError: there is no cache, another process writes to it, or the store refuses.
    """
    FeatureCache.open(path)
    with WriterLock(path, "refuse"):
        if is_url(path):
            delete_all(str(path))
            return
        path = Path(path)
        trash = path.with_name(f".{path.name}.{os.getpid()}.removed")
        path.rename(trash)
    shutil.rmtree(trash)
