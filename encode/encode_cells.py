"""Encode the terminal cells of a map into the cache: the database of the retriever."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from jzi.encode.device import processes
from jzi.encode.encoders.encoder import Encoder
from jzi.encode.prefetch import prefetch
from jzi.encode.progress import Progress, UnitRunner, unit_size, unit_tasks
from jzi.encode.rasters.cells import CellImages
from jzi.encode.rasters.imagery import Imagery
from jzi.store.cache.feature_cache import FeatureCache
from jzi.store.features.cell_features import Unit
from jzi.store.features.map_embeddings import ENCODED, NODATA

#: Cells that another process is given at once, unless a chunk or shard has more: the next chunk is rendered while one
#: is encoded.
TASK_CELLS = 4096


@dataclass(frozen=True)
class IndexReport:
    """Counts of `index_cells`, summed over all processes.

    Attributes:
        encoded: cells encoded by this run.
        reused: cells that the cache already held.
        nodata: cells without imagery, in all runs.
        bytes: size in memory of the float16 embeddings of all cells.
    """

    encoded: int
    reused: int
    nodata: int
    bytes: int


def index_cells(
    cache: FeatureCache,
    encoder: Encoder,
    imagery: Imagery,
    context: float,
    *,
    batch_size: int = 32,
    run_units: UnitRunner | None = None,
) -> IndexReport:
    """Encode the cells that are missing in the cache; no imagery is read if none is.

    Only complete units (chunks or shards) are written, so an interrupted run resumes at the next unit. Under
    `accelerate launch` the processes share the units.

    Args:
        cache: created for this encoder, pyramid and imagery, open for writing.
        encoder: the cache's encoder.
        imagery: the cache's imagery.
        context: side of a cell's reference crop, in cells.
        batch_size: crops per forward pass.
        run_units: encodes the units elsewhere (`jzi.cluster`); by default this process does.

    Returns:
        The counts.

    Raises:
        ImageryError: the imagery cannot be read.
        CacheError: the disk is full, or the cache holds cells with a different context.
    """
    state = processes()
    with state.main_process_first():
        cells = cache.require_cells(context * cache.pyramid.cell_size)
    missing = [unit for unit in cells.units if not cells.whole(unit)]
    state.wait_for_everyone()  # nobody writes before all have listed the missing units
    units = missing[state.process_index :: state.num_processes]
    hide_bar = not (state.is_main_process and units)
    with tqdm(total=sum(map(unit_size, units)), unit="cell", desc="cells", disable=hide_bar) as bar:
        if run_units is None:
            encode_cell_units(cache, encoder, imagery, context, units, bar, batch_size=batch_size)
        else:
            run_units(unit_tasks(units, TASK_CELLS), bar)
    state.wait_for_everyone()
    status = cells.status()
    encoded = sum(int((status[unit] == ENCODED).sum()) for unit in missing)
    total = int((status == ENCODED).sum())
    if state.is_main_process:
        cache.consolidate()
    return IndexReport(encoded, total - encoded, int((status == NODATA).sum()), 2 * total * encoder.width)


def encode_cell_units(
    cache: FeatureCache,
    encoder: Encoder,
    imagery: Imagery,
    context: float,
    units: Sequence[Unit],
    progress: Progress,
    *,
    batch_size: int = 32,
) -> None:
    """Encode whole units for `index_cells`, which may run in another process and hold the cache's lock.

    Args:
        cache: with arrays for the cells, open for writing; as are the others those of `index_cells`.
        encoder: the cache's encoder.
        imagery: the cache's imagery.
        context: side of a cell's reference crop, in cells.
        units: rows and columns of the units.
        progress: counts the cells.
        batch_size: crops per forward pass.
    """

    def render(unit: Unit) -> CellImages:
        folder = Path(tempfile.gettempdir())
        return CellImages(
            imagery, encoder.image_size, context, device=encoder.device, folder=folder, window=unit, progress=False
        )

    for unit, images in zip(units, prefetch(render, units, 1, ahead=1), strict=True):
        has_imagery = images.has_imagery
        index = torch.from_numpy(np.flatnonzero(has_imagery))
        embedding = np.full((*has_imagery.shape, encoder.width), np.nan, np.float16)
        progress.update(has_imagery.size - len(index))
        parts = []
        for part in index.split(batch_size) if len(index) else ():
            parts.append(encoder.encode_tiles(images[part]))
            progress.update(len(part))
        if parts:
            embedding[has_imagery] = encoder.to_storage(torch.cat(parts))
        cache.documents.check_lock()
        cache.cells.write(unit, np.where(has_imagery, ENCODED, NODATA).astype(np.uint8), embedding)
