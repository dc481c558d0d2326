"""Verify feature caches, and repair their metadata."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from jzi.errors import CacheCorruptError, CacheError
from jzi.store.cache.cache_header import CacheHeader, read_header
from jzi.store.cache.documents import Documents
from jzi.store.cache.feature_cache import ENCODED, MISSING, FeatureCache
from jzi.store.cache.shards import stored_windows
from jzi.store.disk.lock import WriterLock
from jzi.store.disk.storage import storage_errors
from jzi.store.features.cell_features import OUTSIDE
from jzi.store.features.detail_features import DetailFeatures
from jzi.store.features.photo_tokens import PhotoTokens


@dataclass(frozen=True)
class VerifyReport:
    """Result of `verify_cache`.

    Attributes:
        path: path or URL of the cache.
        chunks: number of chunks and shards read.
        metadata: metadata documents that are missing, damaged or edited, with the difference.
        damaged: chunks and shards that do not match their checksum or cannot be read: array and first index.
        lost: tiles and photos that are marked as encoded, but whose embedding is damaged or gone.
        missing: tiles, cells and photos that have not been encoded, and those that lack tokens.
        repaired: metadata documents that were rewritten, with the difference.
    """

    path: str
    chunks: int
    metadata: tuple[str, ...]
    damaged: tuple[str, ...]
    lost: tuple[str, ...]
    missing: tuple[str, ...]
    repaired: tuple[str, ...] = ()

    @property
    def sound(self) -> bool:
        """Whether nothing is damaged or missing."""
        return not (self.metadata or self.damaged or self.lost or self.missing)


def verify_cache(cache: FeatureCache) -> VerifyReport:
    """Compare all metadata with the headers, verify the checksum of every chunk, and list missing entries.

    Raises:
        CacheError: the cache cannot be read.
    """
    # Chunks are read even if the metadata of their array is damaged
    cache = FeatureCache(cache.path, Documents(cache.path, read_only=True, check=False), cache.header)
    metadata, arrays, damaged = cache.metadata_damage(), cache.arrays(), []
    windows = {name: list(stored_windows(array)) for name, array in arrays.items()}
    chunks = sum(map(len, windows.values()))
    with tqdm(total=chunks, unit="chunk", desc="verify") as bar:
        for name, array in arrays.items():
            for window in windows[name]:
                bar.update()
                try:
                    with storage_errors(cache.path, name):
                        array[window]
                except CacheCorruptError:
                    damaged.append(f"{name} {[part.start for part in window]}")
    damaged += _projections(cache)
    lost, missing, has_tiles = [], [], False
    for level in range(cache.levels):
        status, unreadable = cache.tiles.readable_status(level)
        has_tiles |= bool((status != MISSING).any())
        lost += [f"{unreadable} tiles of level {level}"] if unreadable else []
        absent = int((status == MISSING).sum()) - unreadable
        missing += [f"{absent} tiles of level {level}"] if absent else []
    if cache.has_cells:
        cells_lost, cells_missing = _cells(cache)
        if not has_tiles:
            missing = []  # the index of a retriever has no tiles
        lost += [f"cells of {cells_lost} chunks"] if cells_lost else []
        missing += [f"{cells_missing} cells"] if cells_missing else []
    if cache.has_detail:
        status, unreadable = cache.detail.readable_status()
        absent = int((status == MISSING).sum()) - unreadable
        lost += [f"detail tokens of {unreadable} tiles"] if unreadable else []
        missing += [f"detail tokens of {absent} tiles"] if absent else []
    with suppress(CacheError):  # of a column or the header; it is among `damaged` or `metadata`
        photos_lost, photos_missing = _photos(cache)
        lost += [f"{photos_lost} photos"] if photos_lost else []
        missing += [f"{photos_missing} photos"] if photos_missing else []
        tokens_lost, tokens_missing = _photo_tokens(cache)
        lost += [f"tokens of {tokens_lost} photos"] if tokens_lost else []
        missing += [f"tokens of {tokens_missing} photos"] if tokens_missing else []
    return VerifyReport(cache.path, chunks, tuple(metadata), tuple(damaged), tuple(lost), tuple(missing))


def repair_cache(path: str | Path) -> tuple[str, ...]:
    """Rewrite what is damaged of a cache's metadata; convert a cache of an older format.

    Everything follows from the two headers, of which the cache has copies. Chunks are not changed but for those of the
    coordinates; `jzi encode-map` and `jzi encode-queries` encode tiles and photos that are damaged again.

    Args:
        path: path or URL.

    Returns:
        What was rewritten, with what was wrong with it.

    Raises:
        CacheError: there is no cache, or its header and the copy of it are both damaged.
    """
    documents, repaired = Documents(path, read_only=False, lock=WriterLock(path, "refuse")), []
    documents.remove_leftovers()
    try:
        entries = documents.attribute("", "jzi")
        if isinstance(entries, dict) and entries.get("format") == 1:
            FeatureCache.open(path, "r+")
            return ("zarr.json had format 1, without digests",)
        header = read_header(str(path), entries)
    except CacheError as error:
        header, name = _copied_header(path, documents, error)
        repaired.append(f"zarr.json had another header than its copy in {name}/zarr.json")
    cache = FeatureCache(str(path), documents, header)
    repaired += cache.metadata_damage()
    cache.write_layout()
    return (*repaired, *cache.write_coordinates())


def _copied_header(path: str | Path, documents: Documents, error: CacheError) -> tuple[CacheHeader, str]:
    """The copy of a damaged header, and the group that has it; raises the error about the header if there is none."""
    for name in ("map", "cells"):
        with suppress(CacheError):
            return read_header(str(path), documents.attribute(name, "jzi")), name
    raise error from None


def _cells(cache: FeatureCache) -> tuple[int, int]:
    """Number of units that contain cells that cannot be read, and number of cells that have not been encoded."""
    cells, lost, done = cache.cells, 0, 0
    for unit in cells.units:
        try:
            status = cells.read_status(unit)
            done += int(((status != MISSING) & (status != OUTSIDE)).sum())
            lost += bool((status == ENCODED).any()) and not bool(
                np.isfinite(cells.read_unit(unit)[1][status == ENCODED]).all()
            )
        except CacheCorruptError:
            lost += 1
    return lost, cells.cells - done


def _photos(cache: FeatureCache) -> tuple[int, int]:
    """Number of photos whose embedding, id or digest is lost, and of those that have not been encoded."""
    queries = cache.queries
    listed, status = queries.column("listed").astype(bool), queries.column("status")
    unknown = (queries.column("id") == "") | ((status == ENCODED) & (queries.column("photo_sha256") == ""))
    lost = len(set(queries.damaged_rows()) | set(np.flatnonzero(listed & unknown)))
    return lost, int((listed & (status == MISSING)).sum())


def _projections(cache: FeatureCache) -> Iterator[str]:
    """Projections of tokens whose values are not those of the header, though each chunk may match its checksum."""
    groups: dict[str, DetailFeatures | PhotoTokens] = {}
    if cache.has_detail:
        with suppress(CacheError):  # of metadata, as below: it is among `metadata`
            groups["detail"] = cache.detail
    with suppress(CacheError):
        if cache.queries.has_tokens:
            groups["queries/tokens"] = cache.queries.tokens
    for name, group in groups.items():
        try:
            group.projection  # noqa: B018 - it is read here
        except CacheCorruptError:
            yield f"{name} (its projection)"
        except CacheError:
            pass


def _photo_tokens(cache: FeatureCache) -> tuple[int, int]:
    """Number of photos whose tokens are lost, and of encoded ones without tokens; 0 if the cache has no tokens."""
    queries = cache.queries
    if not queries.has_tokens:
        return 0, 0
    has = queries.tokens.status() == 1
    encoded = queries.column("listed").astype(bool) & (queries.column("status") == ENCODED)
    return len(queries.tokens.damaged_rows()), int((encoded & ~has).sum())
