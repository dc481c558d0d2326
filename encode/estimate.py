"""What encoding the cells of a region will take, before hours of it begin."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np
import torch

from jzi.encode.encode_bands import CellEncoder, blocks_to_encode, missing_units
from jzi.encode.prefetch import reader_threads
from jzi.encode.rasters.cell_blocks import BlockKey
from jzi.encode.rasters.cell_crops import CellCrops
from jzi.encode.rasters.overviews import ReadingCost, reading_cost
from jzi.store.features.cell_features import CellFeatures, Unit
from jzi.store.geometry.region import CellRuns

#: Most batches that are encoded to measure the time, after one that is not measured.
BATCHES = 3


@dataclass(frozen=True)
class EncodingEstimate:
    """What `index_bands` will take.

    Attributes:
        cells: cells of the region that are missing in the cache, with and without imagery.
        images: their images, one per level of detail.
        source_pixels: pixels of the imagery that will be read.
        bytes: size on disk of the embeddings of those cells.
        seconds: time, from the blocks that were measured, all processes at work.
        blocks: number of blocks of cells.
        measured: number of blocks that were rendered to measure the time.
        with_imagery: share of the cells of those blocks that have imagery; `seconds` assumes it for all.
        reading: what a pixel costs to read, and a warning about missing overviews.
    """

    cells: int
    images: int
    source_pixels: int
    bytes: int
    seconds: float
    blocks: int
    measured: int
    with_imagery: float
    reading: ReadingCost


def estimate(
    cells: CellFeatures,
    encoder: CellEncoder,
    crops: CellCrops,
    runs: CellRuns,
    *,
    batch_size: int = 32,
    processes: int = 1,
    missing: list[Unit] | None = None,
    sample: int | None = None,
) -> EncodingEstimate:
    """Estimate what encoding the missing cells of a region takes, by rendering some blocks and encoding some batches.

    Args:
        cells: the region's cells in the cache.
        encoder: the cache's encoder.
        crops: images of the cells of the region's grid.
        runs: the cells of the region.
        batch_size: cells per forward pass.
        missing: what `missing_units` has returned, if at hand.
        processes: number of processes that will share the work, each with a device of its own.
        sample: number of blocks to render, spread over the region; by default two per reader thread, at least 4.

    Raises:
        ImageryError: the imagery cannot be read.
    """
    units = missing_units(cells, runs) if missing is None else missing
    keys = [key for unit in units for key in blocks_to_encode(cells, crops, runs, unit)]
    count = sum(key.cells for key in keys)
    reading = reading_cost(crops)
    number = min(len(keys), sample or max(4, 2 * reader_threads()))
    chosen = [keys[int(index)] for index in np.linspace(0, len(keys) - 1, number)] if keys else []
    rendering, encoding, share = _measure(chosen, encoder, crops, batch_size)
    rendered, encoded = rendering * len(keys), encoding * count * share
    # A GPU encodes while the CPU renders; else both share the cores
    seconds = max(rendered, encoded) if encoder.device.type == "cuda" else rendered + encoded
    pixels = sum(_pixels(key, crops, level) * cost for key in keys for level, cost in enumerate(reading.per_pixel))
    return EncodingEstimate(
        cells=count,
        images=count * len(crops.lods_m),
        source_pixels=round(pixels),
        bytes=2 * encoder.width * count,
        seconds=seconds / processes,
        blocks=len(keys),
        measured=len(chosen),
        with_imagery=share,
        reading=reading,
    )


def _measure(
    keys: list[BlockKey], encoder: CellEncoder, crops: CellCrops, batch_size: int
) -> tuple[float, float, float]:
    """Seconds per block of rendering, seconds per cell of encoding, and the share of cells with imagery."""
    batches: list[torch.Tensor] = []
    wanted = found = 0
    start = time.perf_counter()
    cutting = 0.0
    for key, block in zip(keys, crops.blocks(keys), strict=True):
        wanted, found = wanted + key.cells, found + len(block)
        if len(block) and len(batches) <= BATCHES:
            begin = time.perf_counter()
            batches.append(block[:batch_size])
            cutting += time.perf_counter() - begin
    rendering = (time.perf_counter() - start - cutting) / max(1, len(keys))
    if not batches:
        return rendering, 0.0, 0.0
    encoder.to_storage(encoder.encode_cells(batches[0].to(encoder.device)))  # compiles kernels, allocates memory
    measured = batches[1:] or batches
    start = time.perf_counter()
    for batch in measured:
        encoder.to_storage(encoder.encode_cells(batch.to(encoder.device)))
    encoding = (time.perf_counter() - start) / sum(map(len, measured))
    if encoder.device.type == "cpu":
        encoding += cutting / sum(map(len, batches))  # a GPU cuts images in no time
    return rendering, encoding, found / wanted


def _pixels(key: BlockKey, crops: CellCrops, level: int) -> int:
    """Pixels of the mosaic of a block."""
    cells = crops.grid.cell_size / crops.lods_m[level]  # pixels per cell
    shape = ((part.stop - part.start - 1) * cells + crops.image_size for part in (key.rows, key.cols))
    return math.prod(math.ceil(side) for side in shape)
