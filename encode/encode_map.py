"""Fills the map's side of a cache: every tile of every level is rendered and encoded, once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from accelerate import PartialState
from accelerate.utils import gather_object
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from jzi.encode.device import processes
from jzi.encode.encoder import Encoder
from jzi.encode.imagery import Imagery
from jzi.encode.tiles import Tile, TileRenderer
from jzi.store.cache import ENCODED, MISSING, NODATA, FeatureCache
from jzi.store.chunk_writer import TileWriter
from jzi.store.pyramid import TileKey
from jzi.store.token_features import TokenFeatures


@dataclass(frozen=True)
class MapReport:
    """What `encode_map` did, in tiles of levels 0..L-1, all processes together.

    Attributes:
        encoded: tiles encoded by this run.
        reused: tiles that the cache already had.
        nodata: tiles with no imagery, of all runs.
        damaged: tiles that the cache claimed to have and could not give; they are among the encoded.
        tokens: tiles whose patch tokens were written by this run.
        tokens_damaged: tiles whose patch tokens could not be read; they are among those.
        tokens_bytes: what the patch tokens of all tiles take on the disk; 0 where none were asked for.
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
    """What is to be made, (row, col) by level.

    Attributes:
        missing: of tiles that have no embedding, and at level L of cells that are not marked.
        lacking: levels 0..L-1: of tiles that have no patch tokens, where those are wanted.
        tokens: where to write patch tokens; None where they are not wanted.
    """

    missing: list[NDArray[np.bool_]]
    lacking: list[NDArray[np.bool_]]
    tokens: TokenFeatures | None = None

    @property
    def wanted(self) -> list[NDArray[np.bool_]]:
        """Any of it."""
        return [*map(np.logical_or, self.missing[:-1], self.lacking), self.missing[-1]]


def encode_map(
    cache: FeatureCache, encoder: Encoder, imagery: Imagery, *, batch_size: int = 32, tokens: bool = False
) -> MapReport:
    """Encode the tiles that the cache lacks; nothing is read or encoded when it lacks none.

    Under `accelerate launch` the processes share the blocks. What was encoded is written every few seconds, also when
    the run is interrupted or the imagery cannot be read half-way.

    Args:
        cache: made for this encoder, pyramid and imagery, open for writing.
        encoder: as in the cache.
        imagery: as in the cache.
        batch_size: tiles to a forward pass.
        tokens: keep the patch tokens of tiles too; a cache that was filled without keeps its embeddings as they are.

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
    status, damaged = zip(*(cache.readable_status(level) for level in range(pyramid.levels + 1)), strict=True)
    reused = sum(int((status[level] == ENCODED).sum()) for level in levels)
    work, broken = _work(cache, list(status), tokens)
    had = reused - sum(int(array.sum()) for array in work.lacking)
    state.wait_for_everyone()  # all have read the same state
    if any(array.any() for array in work.wanted):
        _fill(cache, encoder, TileRenderer(imagery, encoder.image_size), work, batch_size, state)
        state.wait_for_everyone()
    after = np.concatenate([cache.status(level).ravel() for level in levels])
    encoded, nodata = int((after == ENCODED).sum()), int((after == NODATA).sum())
    report = MapReport(encoded - reused, reused, nodata, sum(damaged[:-1]))
    if work.tokens is None:
        return report
    return replace(report, tokens=encoded - had, tokens_damaged=broken, tokens_bytes=work.tokens.stored_bytes())


def _work(cache: FeatureCache, status: list[NDArray[np.uint8]], tokens: bool) -> tuple[_Work, int]:
    """What is to be made, and how many tiles have damaged patch tokens."""
    missing = [array == MISSING for array in status]
    if not tokens:
        return _Work(missing, [np.zeros_like(array) for array in missing[:-1]]), 0
    features = cache.patch_tokens
    lacking, broken = zip(*(features.lacking(level, each) for level, each in enumerate(status[:-1])), strict=True)
    return _Work(missing, list(lacking), features), sum(broken)


def _fill(
    cache: FeatureCache,
    encoder: Encoder,
    renderer: TileRenderer,
    work: _Work,
    batch_size: int,
    state: PartialState,
) -> None:
    top, wanted = cache.block_level, work.wanted
    roots = _incomplete_blocks(cache, wanted)[state.process_index :: state.num_processes]
    coarse_missing = any(wanted[level].any() for level in range(top))
    block_tiles: list[Tile] = []

    def tiles() -> Iterator[Tile]:
        for tile in renderer.render(roots):
            yield tile
            if tile.key.level == top and coarse_missing:
                block_tiles.append(tile)

    def coarse_tiles(blocks: list[Tile]) -> Iterator[Tile]:
        canvases: dict = {}
        for tile in blocks:
            yield from renderer.parents(tile, canvases)

    total = sum(int(wanted[level].sum()) for level in range(cache.pyramid.levels))
    with tqdm(total=total, unit="tile", desc="map", disable=not state.is_main_process) as bar:
        _encode(tiles(), cache, encoder, work, batch_size, bar)
        if coarse_missing:
            blocks = gather_object(block_tiles) if state.num_processes > 1 else block_tiles
            if state.is_main_process:
                _encode(coarse_tiles(blocks), cache, encoder, work, batch_size, bar)


def _incomplete_blocks(cache: FeatureCache, wanted: list[NDArray[np.bool_]]) -> list[TileKey]:
    """The blocks that lack a tile or a cell, or are needed to make a coarser tile that is missing."""
    top, n = cache.block_level, cache.pyramid.tiles_per_side(cache.block_level)
    needed = np.full((n, n), any(array.any() for array in wanted[:top]))
    for array in wanted[top:]:
        side = len(array) // n
        needed |= array.reshape(n, side, n, side).any(axis=(1, 3))
    return [TileKey(top, int(row), int(col)) for row, col in np.argwhere(needed)]


def _encode(
    tiles: Iterator[Tile], cache: FeatureCache, encoder: Encoder, work: _Work, batch_size: int, bar: tqdm
) -> None:
    writer, wanted = TileWriter(cache), work.wanted
    batch: list[Tile] = []
    on_device: tuple[list[Tile], Tensor, Tensor | None] | None = None

    def finish() -> None:
        nonlocal on_device
        ready, on_device = on_device, None  # at once: what fails must not be tried again on the way out
        if not ready:
            return
        done, embedding, patches = ready
        stored = encoder.to_storage(embedding)
        if work.tokens is not None and patches is not None:  # before a status speaks of the tile
            work.tokens.write([tile.key for tile in done], encoder.to_storage(patches))
        for tile, values in zip(done, stored, strict=True):
            if work.missing[tile.key.level][tile.key.row, tile.key.col]:
                writer.put(tile.key, ENCODED, values)
        bar.update(len(done))

    def launch() -> None:
        nonlocal on_device
        images = np.stack([tile.image for tile in batch])
        if work.tokens is None:
            embedding, patches = encoder.encode_tiles(images), None
        else:
            embedding, patches = encoder.encode_tiles_and_patches(images)
        finish()  # the batch before, while this one is being computed
        on_device = list(batch), embedding, patches
        batch.clear()

    with writer:
        try:
            for tile in tiles:
                if tile.cells is not None:
                    writer.put_cells(tile.key, tile.cells)
                if not wanted[tile.key.level][tile.key.row, tile.key.col]:
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
