"""Render every tile of a map and encode it into the cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from accelerate import PartialState
from accelerate.utils import gather_object
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from jzi.encode.device import processes
from jzi.encode.encoders.encoder import Encoder
from jzi.encode.progress import Progress
from jzi.encode.rasters.imagery import Imagery
from jzi.encode.rasters.tiles import Tile, TileRenderer
from jzi.store.cache.chunk_writer import TileWriter
from jzi.store.cache.feature_cache import ENCODED, MISSING, NODATA, FeatureCache
from jzi.store.features.token_features import TokenFeatures
from jzi.store.geometry.pyramid import Pyramid, TileKey


@dataclass(frozen=True)
class MapReport:
    """Counts of `encode_map`, in tiles of levels 0..L-1, summed over all processes.

    Attributes:
        encoded: tiles encoded by this run.
        reused: tiles that the cache already held.
        nodata: tiles without imagery, in all runs.
        damaged: tiles whose cached embeddings could not be read; included in `encoded`.
        tokens: tiles whose patch tokens were written by this run.
        tokens_damaged: tiles whose cached patch tokens could not be read; included in `tokens`.
        tokens_bytes: size on disk of the patch tokens of all tiles; 0 if they were not requested.
    """

    encoded: int
    reused: int
    nodata: int
    damaged: int
    tokens: int = 0
    tokens_damaged: int = 0
    tokens_bytes: int = 0


@dataclass(frozen=True)
class _Work:
    """The tiles to encode, as (row, col) masks by level.

    Attributes:
        missing: levels 0..L-1: tiles without embedding; level L: cells without status.
        missing_tokens: levels 0..L-1: tiles whose patch tokens are requested and missing.
        tokens: where to write patch tokens; None if they are not requested.
    """

    missing: list[NDArray[np.bool_]]
    missing_tokens: list[NDArray[np.bool_]]
    tokens: TokenFeatures | None = None

    @property
    def any_missing(self) -> list[NDArray[np.bool_]]:
        """Tiles without embedding or patch tokens, and cells without status."""
        return [*map(np.logical_or, self.missing[:-1], self.missing_tokens), self.missing[-1]]


@dataclass(frozen=True)
class Block:
    """A subtree of the map for another process to encode, which shares no chunk or shard with others.

    Attributes:
        root: its tile of the cache's `block_level`.
        missing: (row, col) of its tiles without embedding and its cells without status, for each level from the root's.
        missing_tokens: (row, col) of its tiles whose patch tokens are missing, for each level but that of the cells.
        keep: whether the root's own tile is to be returned, of which coarser ones are made.
    """

    root: TileKey
    missing: tuple[NDArray[np.bool_], ...]
    missing_tokens: tuple[NDArray[np.bool_], ...]
    keep: bool

    def __len__(self) -> int:
        """Number of tiles that are missing."""
        pairs = zip(self.missing[:-1], self.missing_tokens, strict=True)
        return sum(int((tiles | tokens).sum()) for tiles, tokens in pairs)


#: Encodes blocks elsewhere, counting tiles; returns their own tiles, where these are to be returned.
BlockRunner = Callable[[list[Block], tqdm], list[Tile]]


def encode_map(
    cache: FeatureCache,
    encoder: Encoder,
    imagery: Imagery,
    *,
    batch_size: int = 32,
    tokens: bool = False,
    run_blocks: BlockRunner | None = None,
) -> MapReport:
    """Encode the tiles that are missing in the cache; no imagery is read if none is.

    Under `accelerate launch` the processes share the blocks. Embeddings are written every few seconds (shards every few
    minutes, and when they are complete), and when the run is interrupted or fails.

    Args:
        cache: created for this encoder, pyramid and imagery, open for writing.
        encoder: the cache's encoder.
        imagery: the cache's imagery.
        batch_size: tiles per forward pass.
        tokens: also store the tiles' patch tokens; embeddings that the cache already holds are kept.
        run_blocks: encodes the blocks elsewhere (`jzi.cluster`); by default this process does.

    Returns:
        The counts.

    Raises:
        ImageryError: the imagery cannot be read.
        CacheError: the disk is full.
    """
    state = processes()
    if tokens:
        if state.is_main_process:
            cache.require_tokens(encoder.patches)
        state.wait_for_everyone()
    pyramid, levels = cache.pyramid, range(cache.pyramid.levels)
    status, damaged = zip(*(cache.tiles.readable_status(level) for level in range(pyramid.levels + 1)), strict=True)
    reused = sum(int((status[level] == ENCODED).sum()) for level in levels)
    work, tokens_damaged = _find_work(cache, list(status), tokens)
    tokens_reused = reused - sum(int(array.sum()) for array in work.missing_tokens)
    state.wait_for_everyone()  # nobody writes before all have read the status
    if any(array.any() for array in work.any_missing):
        renderer = TileRenderer(imagery, encoder.image_size)
        _fill(cache, encoder, renderer, work, batch_size, state, run_blocks)
        state.wait_for_everyone()
    if state.is_main_process:
        cache.consolidate()  # a killed run may have left the cache without
    after = np.concatenate([cache.tiles.status(level).ravel() for level in levels])
    encoded, nodata = int((after == ENCODED).sum()), int((after == NODATA).sum())
    report = MapReport(encoded - reused, reused, nodata, sum(damaged[:-1]))
    if work.tokens is None:
        return report
    return replace(
        report,
        tokens=encoded - tokens_reused,
        tokens_damaged=tokens_damaged,
        tokens_bytes=work.tokens.stored_bytes(),
    )


def _find_work(cache: FeatureCache, status: list[NDArray[np.uint8]], tokens: bool) -> tuple[_Work, int]:
    """The tiles to encode, and the number of tiles with damaged patch tokens."""
    missing = [array == MISSING for array in status]
    if not tokens:
        return _Work(missing, [np.zeros_like(array) for array in missing[:-1]]), 0
    features = cache.patch_tokens
    masks, damaged = zip(*(features.lacking(level, each) for level, each in enumerate(status[:-1])), strict=True)
    return _Work(missing, list(masks), features), sum(damaged)


def _fill(
    cache: FeatureCache,
    encoder: Encoder,
    renderer: TileRenderer,
    work: _Work,
    batch_size: int,
    state: PartialState,
    run_blocks: BlockRunner | None,
) -> None:
    top, missing = cache.tiles.block_level, work.any_missing
    roots = _incomplete_blocks(cache, missing)[state.process_index :: state.num_processes]
    coarse_missing = any(missing[level].any() for level in range(top))
    block_tiles: list[Tile] = []

    def tiles() -> Iterator[Tile]:
        # Rows of blocks are rendered together, unless they are shards, of which few fit into memory
        for group in [[root] for root in roots] if cache.header.shard else [roots]:
            for tile in renderer.render(group):
                yield tile
                if tile.key.level == top and coarse_missing:
                    block_tiles.append(renderer.reduced(tile))

    def coarse_tiles(blocks: list[Tile]) -> Iterator[Tile]:
        canvases: dict = {}
        for tile in blocks:
            yield from renderer.parents(tile, canvases)

    total = sum(int(missing[level].sum()) for level in range(cache.pyramid.levels))
    with tqdm(total=total, unit="tile", desc="map", disable=not state.is_main_process) as bar:
        if run_blocks is None:
            _encode(tiles(), cache, encoder, work, batch_size, bar)
        else:
            block_tiles = run_blocks([_block(cache.pyramid, work, root, coarse_missing) for root in roots], bar)
        if coarse_missing:
            blocks = gather_object(block_tiles) if state.num_processes > 1 else block_tiles
            if state.is_main_process:
                _encode(coarse_tiles(blocks), cache, encoder, work, batch_size, bar)


def encode_block(
    cache: FeatureCache,
    encoder: Encoder,
    renderer: TileRenderer,
    block: Block,
    progress: Progress,
    *,
    batch_size: int = 32,
    tokens: bool = False,
) -> Tile | None:
    """Encode a block for `encode_map`, which runs in another process and holds the cache's lock.

    Args:
        cache: the cache, open for writing.
        encoder: the cache's encoder.
        renderer: renderer of the cache's imagery.
        block: what to encode.
        progress: counts the tiles.
        batch_size: tiles per forward pass.
        tokens: also store the tiles' patch tokens.

    Returns:
        The tile of the block's root, reduced, if it is to be returned.
    """
    sides = [cache.pyramid.tiles_per_side(level) for level in range(cache.pyramid.levels + 1)]
    missing, missing_tokens = ([np.zeros((n, n), bool) for n in each] for each in (sides, sides[:-1]))
    for masks, parts in ((missing, block.missing), (missing_tokens, block.missing_tokens)):
        for level, part in enumerate(parts, block.root.level):
            masks[level][_window(cache.pyramid, block.root, level)] = part
    work, kept = _Work(missing, missing_tokens, cache.patch_tokens if tokens else None), []

    def tiles() -> Iterator[Tile]:
        for tile in renderer.render([block.root]):
            yield tile
            if block.keep and tile.key == block.root:
                kept.append(renderer.reduced(tile))

    _encode(tiles(), cache, encoder, work, batch_size, progress)
    return kept[0] if kept else None


def _block(pyramid: Pyramid, work: _Work, root: TileKey, keep: bool) -> Block:
    def parts(masks: list[NDArray[np.bool_]]) -> tuple[NDArray[np.bool_], ...]:
        levels = range(root.level, len(masks))
        return tuple(masks[level][_window(pyramid, root, level)].copy() for level in levels)

    return Block(root, parts(work.missing), parts(work.missing_tokens), keep)


def _window(pyramid: Pyramid, root: TileKey, level: int) -> tuple[slice, slice]:
    """The tiles of a level below a tile."""
    side = pyramid.tiles_per_side(level - root.level)
    return slice(root.row * side, (root.row + 1) * side), slice(root.col * side, (root.col + 1) * side)


def _incomplete_blocks(cache: FeatureCache, missing: list[NDArray[np.bool_]]) -> list[TileKey]:
    """Blocks with a missing tile or cell; all blocks if a tile above them is missing, which is their average."""
    top, n = cache.tiles.block_level, cache.pyramid.tiles_per_side(cache.tiles.block_level)
    needed = np.full((n, n), any(array.any() for array in missing[:top]))
    for array in missing[top:]:
        side = len(array) // n
        needed |= array.reshape(n, side, n, side).any(axis=(1, 3))
    return [TileKey(top, int(row), int(col)) for row, col in np.argwhere(needed)]


def _encode(
    tiles: Iterator[Tile], cache: FeatureCache, encoder: Encoder, work: _Work, batch_size: int, bar: Progress
) -> None:
    writer, missing = TileWriter(cache), work.any_missing
    batch: list[Tile] = []
    in_flight: tuple[list[Tile], Tensor, Tensor | None] | None = None

    def finish() -> None:
        nonlocal in_flight
        ready, in_flight = in_flight, None  # reset first: the `finally` below must not retry a batch that fails
        if not ready:
            return
        encoded, embedding, patches = ready
        stored = encoder.to_storage(embedding)
        if work.tokens is not None and patches is not None:  # before the status marks the tiles as encoded
            work.tokens.write([tile.key for tile in encoded], encoder.to_storage(patches))
        for tile, values in zip(encoded, stored, strict=True):
            if work.missing[tile.key.level][tile.key.row, tile.key.col]:
                writer.put(tile.key, ENCODED, values)
        bar.update(len(encoded))

    def launch() -> None:
        nonlocal in_flight
        images = np.stack([tile.image for tile in batch])
        if work.tokens is None:
            embedding, patches = encoder.encode_tiles(images), None
        else:
            embedding, patches = encoder.encode_tiles_and_patches(images)
        finish()  # the previous batch, while the device computes this one
        in_flight = list(batch), embedding, patches
        batch.clear()

    with writer:
        try:
            for tile in tiles:
                if tile.cells is not None:
                    writer.put_cells(tile.key, tile.cells)
                if not missing[tile.key.level][tile.key.row, tile.key.col]:
                    continue
                if tile.has_imagery:
                    batch.append(tile)
                    if len(batch) == batch_size:
                        launch()
                else:
                    writer.put(tile.key, NODATA, None)
                    bar.update()
                writer.write_if_due()
            if batch:
                launch()
        finally:
            finish()
