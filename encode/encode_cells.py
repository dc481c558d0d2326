"""Fills the cells' side of a cache: the database of flat retrieval, an embedding for every terminal cell."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from jzi.encode.cells import CellImages
from jzi.encode.device import processes
from jzi.encode.encoder import Encoder
from jzi.encode.imagery import Imagery
from jzi.store.cache import FeatureCache
from jzi.store.cell_features import CellFeatures
from jzi.store.map_embeddings import ENCODED, NODATA
from jzi.store.storage import is_url


@dataclass(frozen=True)
class IndexReport:
    """What `index_cells` did, all processes together.

    Attributes:
        encoded: cells encoded by this run.
        reused: cells that the cache already had.
        nodata: cells with no imagery, of all runs.
        bytes: of the embeddings of all cells as they lie in memory, float16.
    """

    encoded: int
    reused: int
    nodata: int
    bytes: int


def index_cells(
    cache: FeatureCache, encoder: Encoder, imagery: Imagery, context: float, *, batch_size: int = 32
) -> IndexReport:
    """Encode the cells that the cache lacks; nothing is read or encoded when it lacks none.

    A chunk is written once it is whole, so that a run that was stopped goes on with the next. Under `accelerate launch`
    the processes share the chunks.

    Args:
        cache: made for this encoder, pyramid and imagery, open for writing.
        encoder: as in the cache.
        imagery: as in the cache.
        context: side of the piece of map that stands for a cell, in cells.
        batch_size: images to a forward pass.

    Raises:
        ImageryError: the imagery cannot be read.
        CacheError: the disk is full, or the cells there have another footprint.
    """
    state, pyramid = processes(), cache.pyramid
    side = pyramid.tiles_per_side(pyramid.levels)
    with state.main_process_first():
        cells = CellFeatures.require(cache.group, cache.path, side, encoder.width, context * pyramid.cell_size)
    missing = [chunk for chunk in cells.chunks if not cells.whole(chunk)]
    state.wait_for_everyone()  # all have read the same state
    if missing:
        images = CellImages(
            imagery,
            encoder.image_size,
            context,
            device=encoder.device,
            folder=Path(tempfile.gettempdir() if is_url(cache.path) else cache.path).parent,
            progress=state.is_main_process,
        )
        mine = missing[state.process_index :: state.num_processes]
        number = np.arange(side * side).reshape(side, side)
        bar = tqdm(mine, unit="chunk", desc="index", disable=not state.is_main_process)
        for chunk in bar:
            there = images.has_imagery[chunk]
            wanted = torch.from_numpy(number[chunk][there])
            embedding = np.full((*there.shape, encoder.width), np.nan, np.float16)
            if len(wanted):
                parts = [encoder.encode_tiles(images[part]) for part in wanted.split(batch_size)]
                embedding[there] = encoder.to_storage(torch.cat(parts))
            cells.write(chunk, np.where(there, ENCODED, NODATA).astype(np.uint8), embedding)
        state.wait_for_everyone()
    status = cells.status()
    encoded = sum(int((status[chunk] == ENCODED).sum()) for chunk in missing)
    total = int((status == ENCODED).sum())
    if state.is_main_process:
        cache.consolidate()
    return IndexReport(encoded, total - encoded, int((status == NODATA).sum()), 2 * total * encoder.width)
