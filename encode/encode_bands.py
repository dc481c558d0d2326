"""Encode the cells of a region into the cache: the database of retrieval in a state or a country."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from accelerate.utils import gather_object
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from jzi.encode.device import processes
from jzi.encode.progress import Progress
from jzi.encode.rasters.cell_blocks import BlockKey, CellBlock
from jzi.encode.rasters.cell_crops import CellCrops
from jzi.errors import CacheCorruptError
from jzi.store.cache.feature_cache import FeatureCache
from jzi.store.features.cell_features import OUTSIDE, CellFeatures, Unit
from jzi.store.features.map_embeddings import ENCODED, MISSING, NODATA
from jzi.store.geometry.region import CellRuns


class CellEncoder(Protocol):
    """A network that embeds cells by their images at several levels of detail."""

    @property
    def device(self) -> torch.device:
        """Device that it computes on."""
        ...

    @property
    def width(self) -> int:
        """Number of features."""
        ...

    def encode_cells(self, images: Tensor) -> Tensor:
        """(n, level, S, S, 3) uint8 to (n, feature) of unit length."""
        ...

    def to_storage(self, embedding: Tensor) -> NDArray[np.float16]:
        """Embeddings as they are stored."""
        ...


@dataclass(frozen=True)
class RegionReport:
    """Counts of `index_bands`, in cells of the region, summed over all processes.

    Attributes:
        encoded: cells encoded by this run.
        reused: cells that the cache already held.
        nodata: cells without imagery, in all runs.
        bytes: size in memory of the float16 embeddings of all cells.
        empty: share of the pixels of the images of this run that have no imagery: at the edge of the map.
    """

    encoded: int
    reused: int
    nodata: int
    bytes: int
    empty: float


#: Seconds after which a unit that is not complete is written; a shard of 16 384 cells takes about one to write.
SAVE_S = 60.0


@dataclass(frozen=True)
class CellUnit:
    """A chunk or shard of cells for another process to encode.

    Attributes:
        unit: its rows and columns.
        count: number of its cells that belong to the region.
    """

    unit: Unit
    count: int

    def __len__(self) -> int:
        return self.count


#: A unit, its status, its embeddings, and the sum of the shares of empty pixels of its cells; None while it is begun.
_Encoded = tuple[Unit, NDArray[np.uint8], NDArray[np.float16], float | None]

#: Encodes units elsewhere, counting cells; returns for each the sum of the shares of empty pixels of its cells.
UnitRunner = Callable[[list[CellUnit], tqdm], list[float]]


def index_bands(
    cache: FeatureCache,
    encoder: CellEncoder,
    crops: CellCrops,
    runs: CellRuns,
    *,
    batch_size: int = 32,
    missing: list[Unit] | None = None,
    run_units: UnitRunner | None = None,
) -> RegionReport:
    """Encode the cells of a region that are missing in its cache; no imagery is read if none is.

    Units (chunks or shards) are written whole, the status last: when all of their cells are encoded, and every `SAVE_S`
    seconds. A killed run loses what it has encoded since then, and is resumed at the next cell. Under `accelerate
    launch` the processes share the units.

    Args:
        cache: of the region, created for this encoder and imagery, open for writing.
        encoder: the cache's encoder.
        crops: images of the cells of the region's grid.
        runs: the cells of the region.
        batch_size: cells per forward pass.
        missing: what `missing_units` has returned, if at hand.
        run_units: encodes the units elsewhere (`jzi.cluster`); by default this process does.

    Returns:
        The counts.

    Raises:
        ImageryError: the imagery cannot be read.
        CacheError: the disk is full, or another process has taken over the cache.
    """
    state, cells = processes(), cache.cells
    if missing is None:
        missing = missing_units(cells, runs, progress=state.is_main_process)
    begun = (_Begun.read(cells, unit) for unit in missing)
    kept = sum(int((part.status == ENCODED).sum()) for part in begun if part is not None)
    state.wait_for_everyone()  # nobody writes before all have listed the missing units
    units = missing[state.process_index :: state.num_processes]
    tasks = [CellUnit(unit, int(runs.mask(*unit).sum())) for unit in units]
    with tqdm(total=sum(map(len, tasks)), unit="cell", desc="cells", disable=not state.is_main_process) as bar:
        if run_units is None:
            empty = _write(cache, _encoded(cells, units, encoder, crops, runs, batch_size, bar))
        else:
            empty = run_units(tasks, bar)
    state.wait_for_everyone()
    status = cells.status()
    encoded = sum(int((status[unit] == ENCODED).sum()) for unit in missing) - kept
    total = int((status == ENCODED).sum())
    shares = gather_object(empty) if state.num_processes > 1 else empty
    if state.is_main_process:
        cache.consolidate()
    return RegionReport(
        encoded,
        total - encoded,
        int((status == NODATA).sum()),
        2 * total * encoder.width,
        sum(shares) / encoded if encoded else 0.0,
    )


def encode_unit(
    cache: FeatureCache,
    encoder: CellEncoder,
    crops: CellCrops,
    runs: CellRuns,
    task: CellUnit,
    progress: Progress,
    *,
    batch_size: int = 32,
) -> float:
    """Encode a unit for `index_bands`, which runs in another process and holds the cache's lock.

    Args:
        cache: of the region, open for writing, as are the others those of `index_bands`.
        encoder: the cache's encoder.
        crops: images of the cells.
        runs: the cells of the region.
        task: what to encode.
        progress: counts the cells.
        batch_size: cells per forward pass.

    Returns:
        The sum of the shares of empty pixels of its cells.
    """
    return sum(_write(cache, _encoded(cache.cells, [task.unit], encoder, crops, runs, batch_size, progress)))


def _write(cache: FeatureCache, encoded: Iterable[_Encoded]) -> list[float]:
    """Write units as `_encoded` yields them; returns the sum of the shares of empty pixels of the cells of each."""
    empty = []
    for unit, status, embedding, share in encoded:
        cache.documents.check_lock()
        cache.cells.write(unit, status, embedding)
        if share is not None:
            empty.append(share)
    return empty


@dataclass(frozen=True)
class _Begun:
    """A unit of which a killed run has written some of the cells.

    Attributes:
        status: (row, col) status; `MISSING` where cells are not encoded.
        embedding: (row, col, feature) embeddings; nan there.
    """

    status: NDArray[np.uint8]
    embedding: NDArray[np.float16]

    @classmethod
    def read(cls, cells: CellFeatures, unit: Unit) -> _Begun | None:
        """What there is of a unit; None if there is nothing, or some of it cannot be read."""
        try:
            if not np.isin(cells.read_status(unit), (ENCODED, NODATA)).any():
                return None
            status, embedding = cells.read_unit(unit)
        except CacheCorruptError:
            return None
        return None if np.isnan(embedding[status == ENCODED]).any() else cls(status, embedding)


def blocks_to_encode(cells: CellFeatures, crops: CellCrops, runs: CellRuns, unit: Unit) -> list[BlockKey]:
    """The blocks of a unit, of those that `missing_units` lists, with a cell that is to be encoded.

    All cells of the region in a block are rendered, those that are encoded too, since what is rendered depends on it.
    """
    return _blocks(crops, unit, runs.mask(*unit), _Begun.read(cells, unit))


def _blocks(crops: CellCrops, unit: Unit, mask: NDArray[np.bool_], begun: _Begun | None) -> list[BlockKey]:
    todo = mask if begun is None else mask & (begun.status == MISSING)
    return [key for key in crops.keys(*unit, mask) if todo[_part(key, unit)].any()]


def _part(key: BlockKey, unit: Unit) -> Unit:
    """Rows and columns of a block in its unit."""
    rows, cols = (
        slice(own.start - whole.start, own.stop - whole.start)
        for own, whole in zip((key.rows, key.cols), unit, strict=True)
    )
    return rows, cols


def missing_units(cells: CellFeatures, runs: CellRuns, progress: bool = False) -> list[Unit]:
    """The units of a region's cells that are to be written: with a cell that was not encoded, or cannot be read.

    Reads every embedding that is there, a unit at a time.
    """
    units = [unit for unit in cells.units if runs.mask(*unit).any()]

    def is_missing(unit: Unit) -> bool:
        try:
            status = cells.read_status(unit)
        except CacheCorruptError:
            return True
        return bool((status[runs.mask(*unit)] == MISSING).any()) or not cells.whole(unit)

    return [unit for unit in tqdm(units, unit="chunk", desc="check", disable=not progress) if is_missing(unit)]


def _encoded(
    cells: CellFeatures,
    units: list[Unit],
    encoder: CellEncoder,
    crops: CellCrops,
    runs: CellRuns,
    batch_size: int,
    bar: Progress,
) -> Iterator[_Encoded]:
    """Each unit with its status, its embeddings, and the sum of the shares of empty pixels of its cells.

    Every `SAVE_S` seconds comes the unit as far as it is encoded, with None for the sum.
    """
    # Rendered ahead across the ends of units, so that the encoder need not wait there
    blocks = crops.blocks(key for unit in units for key in blocks_to_encode(cells, crops, runs, unit))
    saved = time.monotonic()
    for unit in units:
        mask, empty = runs.mask(*unit), 0.0
        status = np.where(mask, MISSING, OUTSIDE).astype(np.uint8)
        embedding = np.full((*mask.shape, encoder.width), np.nan, np.float16)
        begun = _Begun.read(cells, unit)
        keys = _blocks(crops, unit, mask, begun)
        if begun is not None:
            status, embedding = np.where(mask, begun.status, OUTSIDE).astype(np.uint8), begun.embedding.copy()
            bar.update(int(mask.sum()) - sum(key.cells for key in keys))
        for key in keys:
            block, part = next(blocks), _part(key, unit)
            todo = status[part] == MISSING
            status[part][todo & ~block.has_imagery] = NODATA
            first = len(block) - int((todo & block.has_imagery).sum())  # those before it are encoded
            empty += float(block.empty[first:].sum())
            for stop, vectors in _embedded(block, first, encoder, batch_size, saved + SAVE_S):
                row, col = block.row[first:stop], block.col[first:stop]
                status[part][row, col], embedding[part][row, col] = ENCODED, vectors
                first = stop
                if time.monotonic() > saved + SAVE_S and (status == MISSING).any():
                    yield unit, status, embedding, None
                    saved = time.monotonic()
            bar.update(key.cells)
        yield unit, status, embedding, empty
        saved = time.monotonic()


def _embedded(
    block: CellBlock, first: int, encoder: CellEncoder, batch_size: int, due: float
) -> Iterator[tuple[int, NDArray[np.float16]]]:
    """(n, feature) embeddings of the next cells of a block that have images, and the number of the cell after them.

    They are fetched from the device when the block ends, or after each batch once it is due.
    """
    block = block.to(encoder.device)
    parts: list[Tensor] = []
    for start in range(first, len(block), batch_size):
        parts.append(encoder.encode_cells(block[start : start + batch_size]))
        stop = min(start + batch_size, len(block))
        if stop == len(block) or time.monotonic() > due:
            yield stop, encoder.to_storage(torch.cat(parts))
            parts = []
