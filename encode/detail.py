"""Encode the tiles of the last level again, with more pixels, into the tokens that refiners read.

Tiles are encoded in units, squares of some tiles, and a unit is always written whole: what a killed run left is encoded
anew to the same bytes, whatever the batches.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from jzi.encode.device import processes
from jzi.encode.prefetch import prefetch, reader_threads
from jzi.encode.progress import Progress, UnitRunner, unit_size, unit_tasks
from jzi.encode.rasters.detail_tiles import DetailTile, DetailTiles, TokenProducer
from jzi.encode.rasters.imagery import Imagery
from jzi.errors import CacheCorruptError, CacheError, CacheMismatchError
from jzi.store.cache.feature_cache import FeatureCache
from jzi.store.cache.layout import detail_unit
from jzi.store.features.detail_features import DetailFeatures, Unit
from jzi.store.features.map_embeddings import ENCODED, MISSING, NODATA
from jzi.store.features.projection import ABSENT, MAX_FEATURES, Projection
from jzi.store.features.token_info import DetailInfo

#: Tokens that the projection is fitted to, and tiles that they are taken from.
SAMPLE_TOKENS, SAMPLE_TILES = 20_000, 64

#: Seed of the choice of tiles and tokens for the projection.
SEED = 0

#: Units that are rendered at the same time.
UNIT_THREADS = 4

#: Tiles that another process is given at once, unless a shard has more: it renders ahead across units.
TASK_TILES = 256

#: Batches that are encoded to measure the time, after one that is not measured.
MEASURED = 2


@dataclass(frozen=True)
class DetailReport:
    """Counts of `encode_detail`, in tiles of level L-1, summed over all processes.

    Attributes:
        encoded: tiles encoded by this run; without those that were only encoded again with others of their unit.
        reused: tiles that the cache already held.
        nodata: tiles without imagery, in all runs.
        damaged: tiles whose cached tokens could not be read; included in `encoded`.
        bytes: size on disk of the tokens of all tiles.
        tokens: number of tokens along a side of a tile.
        width: number of features.
    """

    encoded: int
    reused: int
    nodata: int
    damaged: int
    bytes: int
    tokens: int
    width: int


@dataclass(frozen=True)
class DetailEstimate:
    """What `encode_detail` will take.

    Attributes:
        tiles: tiles that are missing.
        bytes: size on disk of their tokens, before compression.
        seconds: time, from the batches that were measured, all processes at work; without reading the map.
        token_m: side of a token, units of the CRS.
    """

    tiles: int
    bytes: int
    seconds: float
    token_m: float


def encode_detail(
    cache: FeatureCache,
    producer: TokenProducer,
    imagery: Imagery,
    pixels: int,
    *,
    batch_size: int = 32,
    replace: bool = False,
    run_units: UnitRunner | None = None,
) -> DetailReport:
    """Encode the tokens that are missing in the group `detail` of a cache; no imagery is read if none is.

    The projection to few features is fitted once, to tokens of random tiles. Under `accelerate launch` the processes
    share the units.

    Args:
        cache: created for the encoder, pyramid and imagery, open for writing.
        producer: makes the tokens.
        imagery: the cache's imagery.
        pixels: side of a tile's image (`detail_pixels`).
        batch_size: tiles per forward pass.
        replace: whether tokens of another producer or resolution are removed, not refused.
        run_units: encodes the units elsewhere (`jzi.cluster`); by default this process does.

    Returns:
        The counts.

    Raises:
        ImageryError: the imagery cannot be read.
        CacheMismatchError: the cache has tokens of another producer or resolution.
        CacheError: the disk is full, or the map has no imagery at all.
    """
    state = processes()
    tiles = DetailTiles(imagery, pixels, producer)
    if state.is_main_process:
        if replace and not _has_tokens_of(cache, producer, pixels):
            cache.remove_detail()
        prepare_detail(cache, producer, tiles, batch_size)
    state.wait_for_everyone()
    cache.reload()
    detail = cache.detail
    status, damaged = detail.readable_status()
    reused = int((status == ENCODED).sum())
    state.wait_for_everyone()  # nobody writes before all have read the status
    units = [unit for unit in detail.units if (status[unit] == MISSING).any()]
    units = units[state.process_index :: state.num_processes]
    with tqdm(total=sum(map(unit_size, units)), unit="tile", desc="detail", disable=not state.is_main_process) as bar:
        if run_units is None:
            encode_detail_units(cache, producer, tiles, units, bar, batch_size=batch_size)
        else:
            run_units(unit_tasks(units, TASK_TILES), bar)
    state.wait_for_everyone()
    if state.is_main_process:
        cache.consolidate()
    after = detail.status()
    encoded, nodata = int((after == ENCODED).sum()), int((after == NODATA).sum())
    return DetailReport(encoded - reused, reused, nodata, damaged, detail.stored_bytes(), detail.side, detail.width)


def prepare_detail(
    cache: FeatureCache, producer: TokenProducer, tiles: DetailTiles, batch_size: int = 32
) -> DetailFeatures:
    """Create the arrays of the tokens and fit their projection, unless the cache has them.

    A projection that is damaged is fitted again.

    Raises:
        CacheMismatchError: the cache has tokens of another producer or resolution.
        CacheError: the disk is full, the map has no imagery at all, or the projection is damaged and is another one if
            it is fitted here.
    """
    stored, projection = cache.header.detail if cache.has_detail else None, None
    if stored and not _has_tokens_of(cache, producer, tiles.pixels):
        side = tiles.pixels // producer.patch
        raise CacheMismatchError(
            f"{cache.path} holds other tokens for a refiner ({stored.label}, not {side} x {side} tokens, "
            f"{producer.kind} {producer.fingerprint[:8]}): replace them with `jzi encode-map --detail --replace`, or "
            "give another cache.path or the settings that they were encoded with"
        )
    damage = _projection_damage(cache) if stored else None
    if stored is None or damage:
        sample = _sample(cache, producer, tiles, batch_size)
        projection = Projection.fit(sample, MAX_FEATURES, rotate=producer.kind == "encoder")
    if stored and projection and damage and stored.projection != projection.digest:
        raise CacheError(
            f"the projection of the tokens in {cache.path} is damaged, and another one is fitted here: run `jzi "
            "encode-map --detail` on the machine that encoded them, copy the cache again, or give another cache.path"
        ) from damage
    info = DetailInfo(
        pixels=tiles.pixels,
        patch=producer.patch,
        margin=producer.margin,
        producer=producer.kind,
        fingerprint=producer.fingerprint,
        source_width=producer.width,
        width=len(projection.scale) if projection else stored.width if stored else 0,
        projection=projection.digest if projection else stored.projection if stored else "",
    )
    detail = cache.require_detail(info, projection)
    if damage and projection:
        detail.write_projection(projection)
    return detail


def _has_tokens_of(cache: FeatureCache, producer: TokenProducer, pixels: int) -> bool:
    """Whether the cache has tokens of a producer at a resolution; single tiles may lack theirs."""
    stored = cache.header.detail if cache.has_detail else None
    if stored is None:
        return False
    made = stored.producer, stored.fingerprint, stored.patch, stored.margin, stored.pixels
    return made == (producer.kind, producer.fingerprint, producer.patch, producer.margin, pixels)


def _projection_damage(cache: FeatureCache) -> CacheCorruptError | None:
    """Why the projection of the tokens cannot be read; None if it can."""
    try:
        cache.detail.projection  # noqa: B018 - it is read here
    except CacheCorruptError as error:
        return error
    return None


def estimate_detail(
    cache: FeatureCache, producer: TokenProducer, pixels: int, *, batch_size: int = 32, processes: int = 1
) -> DetailEstimate:
    """Estimate what `encode_detail` takes, by encoding a few images.

    Args:
        cache: the cache, whose map may have been encoded.
        producer: makes the tokens.
        pixels: side of a tile's image.
        batch_size: tiles per forward pass.
        processes: number of processes that will share the work, each with a device of its own.
    """
    pyramid, level = cache.pyramid, cache.pyramid.levels - 1
    missing = cache.tiles.status(level) != NODATA
    if _has_tokens_of(cache, producer, pixels):
        missing &= cache.detail.status() == MISSING
    count, side = int(missing.sum()), pixels // producer.patch
    size = min(batch_size, cache.pyramid.grid**2) if producer.device.type == "cuda" else 1
    images = np.zeros((size, *(pixels + 2 * producer.margin,) * 2, 3), np.uint8)
    start = time.perf_counter()
    for number in range(1 + MEASURED if count else 0):
        if number == 1:  # the first compiles kernels and allocates memory
            start = time.perf_counter()
        producer.tokens(images).cpu()
    seconds = (time.perf_counter() - start) / (MEASURED * size) if count else 0.0
    width = min(MAX_FEATURES, producer.width) if producer.kind == "encoder" else producer.width
    return DetailEstimate(count, count * side**2 * width, seconds * count / processes, pyramid.footprint(level) / side)


def _sample(cache: FeatureCache, producer: TokenProducer, tiles: DetailTiles, batch_size: int) -> NDArray[np.float32]:
    """(token, feature) random tokens with imagery, of random tiles; the same in every run."""
    rng = np.random.default_rng(SEED)
    keys = rng.permutation(np.argwhere(cache.tiles.status(cache.pyramid.levels - 1) != NODATA))
    each = math.ceil(SAMPLE_TOKENS / max(1, min(SAMPLE_TILES, len(keys))))
    chosen: list[DetailTile] = []
    for (tile,) in prefetch(lambda key: tiles.render(int(key[0]), int(key[1]), 1), keys, _threads()):
        if tile.mask.any():
            chosen.append(tile)
        if len(chosen) == SAMPLE_TILES:
            break
    if not chosen:
        raise CacheError(f"the map of {cache.path} has no imagery, of which tokens could be made: check map.rasters")
    parts = []
    with tqdm(total=len(chosen), unit="tile", desc="projection") as bar:
        for start in range(0, len(chosen), batch_size):
            batch = chosen[start : start + batch_size]
            for tile, tokens in zip(batch, _encode(producer, batch), strict=True):
                valid = tokens[tile.mask]
                parts.append(valid[rng.permutation(len(valid))[:each]])
            bar.update(len(batch))
    return np.concatenate(parts)[:SAMPLE_TOKENS]


def encode_detail_units(
    cache: FeatureCache,
    producer: TokenProducer,
    tiles: DetailTiles,
    units: Sequence[Unit],
    progress: Progress,
    *,
    batch_size: int = 32,
) -> None:
    """Encode whole units for `encode_detail`, which may run in another process and hold the cache's lock.

    Args:
        cache: with arrays for the tokens, open for writing; as are the others those of `encode_detail`.
        producer: makes the tokens.
        tiles: images of the tiles.
        units: rows and columns of the units.
        progress: counts the tiles.
        batch_size: tiles per forward pass.
    """
    detail, empty = cache.detail, cache.tiles.status(cache.pyramid.levels - 1) == NODATA
    projection = detail.projection

    def render(unit: Unit) -> list[DetailTile]:
        return [] if empty[unit].all() else tiles.render(unit[0].start, unit[1].start, unit[0].stop - unit[0].start)

    side = detail_unit(cache.pyramid)
    parts = {number: _parts(unit, side) for number, unit in enumerate(units)}
    # Rendered ahead across the ends of units
    squares = prefetch(render, [part for each in parts.values() for part in each], _threads())
    for number, unit in enumerate(units):
        status, values = np.full(empty[unit].shape, NODATA, np.uint8), {}
        for _, rendered in zip(parts[number], squares, strict=False):
            visible = [tile for tile in rendered if tile.mask.any()]
            for start in range(0, len(visible), batch_size):
                batch = visible[start : start + batch_size]
                for tile, tokens in zip(batch, projection.quantise(_encode(producer, batch)), strict=True):
                    tokens[~tile.mask] = ABSENT
                    status[tile.key[0] - unit[0].start, tile.key[1] - unit[1].start] = ENCODED
                    values[tile.key] = tokens
            progress.update(side**2)
        cache.documents.check_lock()
        detail.write(list(values), list(values.values()))
        detail.write_status(unit, status)


def _parts(unit: Unit, side: int) -> list[Unit]:
    """The squares of a unit that are rendered at once."""
    rows, cols = (range(part.start, part.stop, side) for part in unit)
    return [(slice(row, row + side), slice(col, col + side)) for row in rows for col in cols]


def _encode(producer: TokenProducer, tiles: list[DetailTile]) -> NDArray[np.float32]:
    """(tile, token, token, feature) tokens."""
    return producer.tokens(np.stack([tile.image for tile in tiles])).float().cpu().numpy()


def _threads() -> int:
    return min(UNIT_THREADS, reader_threads())
