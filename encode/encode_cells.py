"""Encode the terminal cells of a map into the cache: the database of the retriever."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from jzi.encode.device import processes
from jzi.encode.encoders.encoder import Encoder
from jzi.encode.rasters.cells import CellImages
from jzi.encode.rasters.imagery import Imagery
from jzi.store.cache.feature_cache import FeatureCache
from jzi.store.disk.storage import is_url
from jzi.store.features.map_embeddings import ENCODED, NODATA


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
    cache: FeatureCache, encoder: Encoder, imagery: Imagery, context: float, *, batch_size: int = 32
) -> IndexReport:
    """Encode the cells that are missing in the cache; no imagery is read if none is.

    Only complete chunks are written, so an interrupted run resumes at the next chunk. Under `accelerate launch` the
    processes share the chunks.

    Args:
        cache: created for this encoder, pyramid and imagery, open for writing.
        encoder: the cache's encoder.
        imagery: the cache's imagery.
        context: side of a cell's reference crop, in cells.
        batch_size: crops per forward pass.

    Returns:
        The counts.

    Raises:
        ImageryError: the imagery cannot be read.
        CacheError: the disk is full, or the cache holds cells with a different context.
    """
    state, pyramid = processes(), cache.pyramid
    side = pyramid.tiles_per_side(pyramid.levels)
    with state.main_process_first():
        cells = cache.require_cells(context * pyramid.cell_size)
    missing = [unit for unit in cells.units if not cells.whole(unit)]
    state.wait_for_everyone()  # nobody writes before all have listed the missing chunks
    if missing:
        images = CellImages(
            imagery,
            encoder.image_size,
            context,
            device=encoder.device,
            folder=Path(tempfile.gettempdir() if is_url(cache.path) else cache.path).parent,
            progress=state.is_main_process,
        )
        process_chunks = missing[state.process_index :: state.num_processes]
        number = np.arange(side * side).reshape(side, side)
        for chunk in tqdm(process_chunks, unit="chunk", desc="index", disable=not state.is_main_process):
            has_imagery = images.has_imagery[chunk]
            index = torch.from_numpy(number[chunk][has_imagery])
            embedding = np.full((*has_imagery.shape, encoder.width), np.nan, np.float16)
            if len(index):
                parts = [encoder.encode_tiles(images[part]) for part in index.split(batch_size)]
                embedding[has_imagery] = encoder.to_storage(torch.cat(parts))
            cache.documents.check_lock()
            cells.write(chunk, np.where(has_imagery, ENCODED, NODATA).astype(np.uint8), embedding)
        state.wait_for_everyone()
    status = cells.status()
    encoded = sum(int((status[chunk] == ENCODED).sum()) for chunk in missing)
    total = int((status == ENCODED).sum())
    if state.is_main_process:
        cache.consolidate()
    return IndexReport(encoded, total - encoded, int((status == NODATA).sum()), 2 * total * encoder.width)
