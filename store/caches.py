"""The caches of a folder: what there is and who needs it, and taking them away, together and apart."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from jzi.errors import CacheError, JziError
from jzi.store.cache import ENCODED, MISSING, FeatureCache
from jzi.store.cards import EncoderCard, ImageryCard
from jzi.store.pyramid import Pyramid


@dataclass(frozen=True)
class ModelCard:
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
    encoder: EncoderCard
    imagery: ImageryCard | None
    has_map: bool


@dataclass(frozen=True)
class CacheCard:
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
        missing_photos: how many of them have no embedding.
        models: those that belong to it.
    """

    path: Path
    pyramid: Pyramid
    encoder: EncoderCard
    imagery: ImageryCard | None
    size: int
    tiles: int
    missing_tiles: int
    photos: int
    missing_photos: int
    models: tuple[ModelCard, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether it has every tile, and photos."""
        return not self.missing_tiles and self.photos > self.missing_photos

    def is_like(self, other: CacheCard | ModelCard) -> bool:
        """Whether both are of one encoder, pyramid and imagery, as far as those are known."""
        known = self.imagery and other.imagery
        return (
            self.encoder.fingerprint == other.encoder.fingerprint
            and self.pyramid == other.pyramid
            and (not known or self.imagery.fingerprint == other.imagery.fingerprint)  # type: ignore[union-attr]
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
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
            "complete": self.complete,
            "models": [{"folder": str(model.folder), "has_map": model.has_map} for model in self.models],
        }

    def to_text(self) -> str:
        """For people."""
        pyramid = self.pyramid
        lacking = ((self.missing_tiles, "tiles"), (self.missing_photos, "photos"))
        lacks = [f"{count} {what}" for count, what in lacking if count]
        state = f"lacks {' and '.join(lacks)}" if lacks else "complete" if self.complete else "holds no photo"
        used = [f"{model.folder}{'' if model.has_map else ' (has no map of its own)'}" for model in self.models]
        shown = ", ".join(used[:3]) + (f" and {len(used) - 3} more" if len(used) > 3 else "")
        return "\n".join(
            [
                f"{self.path}: {self.size / 1e6:.1f} MB, {state}",
                f"  encoder  {self.encoder.label}",
                f"  map      {self.imagery.label if self.imagery else 'none yet'}",
                f"  pyramid  {pyramid.size:g} m, {pyramid.levels} steps of {pyramid.grid} x {pyramid.grid}, cells of "
                f"{pyramid.cell_size:.2f} m; {self.tiles} tiles, {self.photos} photos",
                f"  used by  {shown or 'no model here'}",
            ]
        )


def find_caches(folder: Path) -> list[CacheCard]:
    """Every feature cache in a folder and those below it, with the models there that belong to it.

    What is hidden is not looked into, and a cache that cannot be read is left out.

    Raises:
        CacheError: there is no such folder.
    """
    if not folder.is_dir():
        raise CacheError(f"there is no folder {folder}")
    caches, models = [], []
    for each in _folders(folder):
        if (each / "zarr.json").is_file():
            try:
                caches.append(describe_cache(each))
            except JziError:
                continue  # a Zarr group of others, or one that `jzi cache verify` has something to say about
        elif model := read_model_card(each):
            models.append(model)
    return [replace(cache, models=tuple(model for model in models if cache.is_like(model))) for cache in caches]


def _folders(folder: Path) -> Iterator[Path]:
    """The folder and those below it, in order; what lies in a Zarr group is its own affair."""
    for path, names, files in os.walk(folder):
        yield Path(path)
        names[:] = [] if "zarr.json" in files else sorted(name for name in names if not name.startswith("."))


def describe_cache(path: Path) -> CacheCard:
    """What a cache is, without the models that belong to it.

    Raises:
        CacheError: there is none.
        CacheCorruptError: what it says of tiles or photos is damaged.
    """
    cache = FeatureCache.open(path)
    missing = sum(int((cache.status(level) == MISSING).sum()) for level in range(cache.pyramid.levels))
    listed = cache.queries.column("listed").astype(bool)
    encoded = listed & (cache.queries.column("status") == ENCODED)
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return CacheCard(
        path=path,
        pyramid=cache.pyramid,
        encoder=cache.encoder,
        imagery=cache.imagery,
        size=size,
        tiles=cache.pyramid.tile_count,
        missing_tiles=missing,
        photos=int(listed.sum()),
        missing_photos=int((listed & ~encoded).sum()),
    )


def read_model_card(folder: Path) -> ModelCard | None:
    """Which embeddings a model folder belongs to; None where there is no model."""
    try:
        config = json.loads((folder / "config.json").read_text())
        return ModelCard(
            folder,
            Pyramid.from_dict(config["pyramid"]),
            EncoderCard(**config["encoder"]),
            ImageryCard(**config["imagery"]) if config["imagery"] else None,
            (folder / "map.safetensors").exists(),
        )
    except (OSError, ValueError, KeyError, TypeError, JziError):
        return None


def who_needs(cache: CacheCard, others: Iterable[CacheCard]) -> list[ModelCard]:
    """The models that have no map of their own, and no other complete map to take than this cache's."""
    spare = any(other.path != cache.path and not other.missing_tiles and other.is_like(cache) for other in others)
    return [] if spare else [model for model in cache.models if not model.has_map]


def remove_cache(path: Path) -> None:
    """Delete a cache; interrupted, it leaves nothing that could be taken for one.

    Raises:
        CacheError: there is no cache.
    """
    FeatureCache.open(path)
    doomed = path.with_name(f".{path.name}.{os.getpid()}.removed")
    path.rename(doomed)
    shutil.rmtree(doomed)


def same_photos(one: FeatureCache, other: FeatureCache) -> bool:
    """Whether both hold the same photos, in the same splits, with as many augmented views made in the same way."""
    names = ["id", "latitude", "longitude", "split", "photo_sha256", "views"]
    first, second = (each.queries.frame() for each in (one, other))
    first, second = (each[each["status"] == ENCODED][names].sort_values("id") for each in (first, second))
    same = first.reset_index(drop=True).equals(second.reset_index(drop=True))
    return same and (not first["views"].any() or one.queries.recipe == other.queries.recipe)


def most_views(cache: FeatureCache) -> int:
    """How many augmented views the photos of a cache have at most."""
    views = cache.queries.column("views")
    return int(np.max(views, initial=0))
