"""Compare and merge feature caches."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from tqdm import tqdm

from jzi.errors import CacheMismatchError
from jzi.store.cache.chunk_writer import rows_by_chunk
from jzi.store.cache.feature_cache import ENCODED, MISSING, FeatureCache
from jzi.store.features.photo_features import CHUNK


def same_photos(one: FeatureCache, other: FeatureCache) -> bool:
    """Whether two caches have the same photos in the same splits, with the same augmented views."""
    names = ["id", "latitude", "longitude", "split", "photo_sha256", "views"]
    first, second = (each.queries.frame() for each in (one, other))
    first, second = (each[each["status"] == ENCODED][names].sort_values("id") for each in (first, second))
    same = first.reset_index(drop=True).equals(second.reset_index(drop=True))
    return same and (not first["views"].any() or one.queries.augmentation == other.queries.augmentation)


def most_views(cache: FeatureCache) -> int:
    """Largest number of augmented views of a photo in a cache."""
    views = cache.queries.column("views")
    return int(np.max(views, initial=0))


# Merging


@dataclass(frozen=True)
class MergeReport:
    """What `merge_caches` copied.

    Attributes:
        tiles: tiles of levels 0..L-1.
        photos: photos that had no embedding in the target.
        views: photos of which augmented views were copied, with or without the photo itself.
        cells: terminal cells.
        different: photos that both caches have, with different file contents; the target's are kept.
        detail: tiles whose tokens at a high resolution were copied.
        tokens: photos whose tokens were copied. Tokens of another projection than the target's are not.
    """

    tiles: int
    photos: int
    views: int
    cells: int
    different: int
    detail: int = 0
    tokens: int = 0


def merge_caches(source: FeatureCache, target: FeatureCache) -> MergeReport:
    """Copy the tiles, cells and photos (by id) that one cache has and another lacks.

    Entries of the target are replaced only if they are damaged. An interrupted merge can be run again.

    Args:
        source: open for reading; damaged entries are not copied.
        target: a cache of the same encoder, area and imagery, open for writing.

    Raises:
        CacheMismatchError: the caches do not belong together; nothing is copied.
        CacheError: the disk is full.
    """
    if source.path == target.path:
        raise CacheMismatchError(f"{source.path} cannot be merged into itself: name two caches")
    hint = "only caches of the same encoder, area and imagery can be merged"
    area = source.region or source.pyramid
    target.check(area=area, encoder=source.encoder, imagery=source.imagery, hint=hint)
    if source.imagery and target.imagery is None:
        target = FeatureCache.open_or_create(target.path, area, source.encoder, source.imagery)
    tiles = _merge_map(source, target)
    photos, views, different = _merge_photos(source, target)
    cells = _merge_cells(source, target)
    detail, tokens = _merge_detail(source, target), _merge_photo_tokens(source, target)
    target.consolidate()
    return MergeReport(tiles, photos, views, cells, different, detail, tokens)


def _merge_map(source: FeatureCache, target: FeatureCache) -> int:
    copied = 0
    for level in reversed(range(source.levels + 1 if source.levels else 0)):  # a tile is marked only after its cells
        side, n = source.tiles.chunk_side(level), source.pyramid.tiles_per_side(level)
        for row, col in tqdm(
            itertools.product(range(0, n, side), repeat=2), total=(n // side) ** 2, unit="chunk", desc=f"level {level}"
        ):
            status, embedding = target.tiles.read_chunk(level, row, col)
            source_status, source_embedding = source.tiles.read_chunk(level, row, col)
            new = (status == MISSING) & (source_status != MISSING)
            if not new.any():
                continue
            status = np.where(new, source_status, status)
            if embedding is not None and source_embedding is not None:
                embedding = np.where(new[..., None], source_embedding, embedding)
                copied += int(new.sum())
            target.tiles.write_chunk(level, row, col, status, embedding)
    return copied


def _merge_cells(source: FeatureCache, target: FeatureCache) -> int:
    if not source.has_cells:
        return 0
    source_cells, copied = source.cells, 0
    target_cells = target.cells if source.region else target.require_cells(source_cells.footprint)
    for unit in tqdm(target_cells.units, unit="chunk", desc="cells"):
        if not (source_cells.read_status(unit) != MISSING).any():
            continue
        if not target_cells.whole(unit) and source_cells.whole(unit):
            status, embedding = source_cells.read_unit(unit)
            target_cells.write(unit, status, embedding)
            copied += int((status == ENCODED).sum())
    return copied


def _merge_detail(source: FeatureCache, target: FeatureCache) -> int:
    if not source.has_detail or (target.has_detail and target.header.detail != source.header.detail):
        return 0
    theirs = source.detail
    ours, copied = target.require_detail(theirs.info, theirs.projection), 0
    (status, _), (source_status, _) = ours.readable_status(), theirs.readable_status()
    for unit in tqdm(ours.units, unit="unit", desc="detail"):
        new = (status[unit] == MISSING) & (source_status[unit] != MISSING)
        if not new.any():
            continue
        tiles = [(int(row) + unit[0].start, int(col) + unit[1].start) for row, col in np.argwhere(new)]
        encoded = [tile for tile in tiles if source_status[tile] == ENCODED]
        ours.write(encoded, theirs.read_many(encoded))
        ours.write_status(unit, np.where(new, source_status[unit], status[unit]))
        copied += len(encoded)
    return copied


def _merge_photo_tokens(source: FeatureCache, target: FeatureCache) -> int:
    info = source.queries.header().photo_tokens
    if info is None or (target.queries.has_tokens and target.queries.header().photo_tokens != info):
        return 0
    theirs = source.queries.tokens
    ours = target.queries.tokens if target.queries.has_tokens else target.queries.create_tokens(info, theirs.projection)
    for rows in rows_by_chunk(ours.damaged_rows()):
        ours.mark(rows, 0)
    lost = theirs.damaged_rows()
    frames = []
    for cache, tokens in ((source, theirs), (target, ours)):
        frame = cache.queries.frame()
        frame["tokens"] = tokens.status()[frame.index]
        frames.append(frame.loc[frame["status"] == ENCODED, ["id", "photo_sha256", "tokens"]].reset_index(names="row"))
    both = frames[0].merge(frames[1], on=["id", "photo_sha256"], suffixes=("", "_ours")).sort_values("row_ours")
    both = both[(both["tokens"] == 1) & (both["tokens_ours"] == 0) & ~both["row"].isin(lost)]
    for _, part in tqdm(both.groupby(both["row_ours"] // CHUNK), unit="chunk", desc="tokens"):
        rows = part["row_ours"].to_numpy(np.int64)
        ours.write(rows, list(theirs.read(part["row"].to_numpy())))
        ours.mark(rows, 1)
    return len(both)


def _merge_photos(source: FeatureCache, target: FeatureCache) -> tuple[int, int, int]:
    theirs, ours = source.queries.frame(), target.queries.frame()
    if theirs.empty:
        return 0, 0, 0
    new = theirs[~theirs["id"].isin(ours["id"])]
    target.queries.repair()
    target.queries.list_photos(pd.concat([ours, new], ignore_index=True) if len(ours) else new)
    ours = target.queries.frame()
    augmentation = source.queries.augmentation
    with_views = bool(augmentation) and target.queries.augmentation in ({}, augmentation)
    if with_views:
        target.queries.require_views(source.queries.view_capacity, augmentation)
    ours.loc[ours.index.isin(target.queries.damaged_rows()), "status"] = MISSING
    theirs = theirs.drop(source.queries.damaged_rows(), errors="ignore").reset_index(names="row")
    both = theirs[theirs["status"] == ENCODED].merge(ours.reset_index(names="row"), on="id", suffixes=("", "_ours"))
    in_target = both["status_ours"] == ENCODED
    same = both["photo_sha256"] == both["photo_sha256_ours"]
    more_views = with_views & (both["views"] > both["views_ours"])
    copied = both[~in_target | (same & more_views)].sort_values("row_ours")
    copied = copied.assign(views=copied["views"] if with_views else 0)
    for _, part in tqdm(copied.groupby(copied["row_ours"] // CHUNK), unit="chunk", desc="photos"):
        embedding = source.queries.embedding_of_few(part["row"].to_numpy(), int(part["views"].max()))
        names = ["photo_sha256", "photo_bytes", "photo_mtime_ns", "views", "status"]
        values: dict[str, ArrayLike] = {name: part[name].to_numpy() for name in names}
        target.queries.write(part["row_ours"].to_numpy(), values, embedding)
    missing = int((~in_target).sum())
    return missing, int((copied["views"] > 0).sum()), int((in_target & ~same).sum())
