"""Measure search among the cells of a state: time, memory, disk and recall of every backend.

    python -m benchmarks.statewide_scale --folder scale [--cells 1000000] [--dimensions 256] [--queries 200]
        [--backend exact --backend district ...]
    python -m benchmarks.statewide_scale --folder scale --cells 25000000 --lists 8192 --queries 100 --single 20
        --backend exact --backend district --backend ivf-rabitq+copy            # a state: 27 GB of disk

The cells of a square region get random unit vectors: 200 cells around a center each, drawn anywhere in the region, as
places that look alike are. Queries are cells with noise. The vectors are in a feature cache on disk, as `jzi index`
writes it; a cache that is there is used again, so that one backend at a time can be measured. For each backend: seconds
to build it, bytes on disk and in memory, milliseconds for one query (median and 95th percentile) and for each of a
batch, recall of the exact ten best cells, chunks of the store that one query reads, and the most memory that the
process has taken so far, building included. `district` searches 16 tiles of about 1 km, the right one among them, and
its recall is that of the best cell. `lance` is a LanceDB table (`jzi[lance]`), and "+copy" an index with a copy of the
vectors beside it, which is searched without the copy as well.

Each index is deleted when it is measured, unless --keep is given. What is needed of the disk is printed first, and the
run is refused if there is less; a graph that does not fit into memory is left out.
"""

from __future__ import annotations

import importlib.util
import math
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import psutil
import torch

from jzi.locate.posterior import Posterior
from jzi.store.cache.feature_cache import FeatureCache
from jzi.store.features.cell_features import CellFeatures
from jzi.store.features.map_embeddings import ENCODED, MISSING
from jzi.store.geometry.bands import BandGrid
from jzi.store.geometry.pyramid import Pyramid
from jzi.store.geometry.region import RegionInfo
from jzi.store.info import EncoderInfo
from jzi.vectors.district import districts
from jzi.vectors.exact import Neighbors, scan
from jzi.vectors.faiss_index import LISTS, VectorIndex
from jzi.vectors.index_files import KINDS, IndexInfo, code_parts
from jzi.vectors.lance_index import SUFFIX, LanceIndex

LATITUDE, LONGITUDE, CELL = 42.4, -71.5, 30.0
PER_CENTER, SPREAD, NOISE = 200, 0.6, 0.4
BACKENDS = ("exact", "district", *KINDS, "ivf-pq+copy", "ivf-rabitq+copy", "lance")


def index_bytes(backend: str, cells: int, width: int) -> int:
    """Bytes of an index on disk, at most about; 0 for search without one."""
    kind, _, copy = backend.partition("+")
    vectors, ids = 2 * width * cells, 8 * cells
    if kind == "lance":
        return vectors + ids + cells * (code_parts(width) + 8)
    if kind not in KINDS:
        return 0
    lists = 0 if kind == "hnsw" else round(LISTS * math.sqrt(cells))
    info = IndexInfo(kind, cells, width, (1, cells), "0" * 64, lists, bool(copy), {})
    return info.file_bytes[1] + ids + (vectors if copy else 0)


def check_disk(folder: Path, backends: Sequence[str], cells: int, width: int, stored: bool, keep: bool) -> None:
    """Print how much of the disk the store and the indexes take at most, and exit if there is less."""
    store = 0 if stored else 2 * width * cells
    sizes = {backend: index_bytes(backend, cells, width) for backend in backends}
    needed = store + (sum if keep else max)([0, *sizes.values()])
    free = shutil.disk_usage(folder).free
    parts = ", ".join(f"{backend} {size / 1e9:.2f} GB" for backend, size in sizes.items() if size)
    print(f"disk: vectors {store / 1e9:.2f} GB{', then ' if parts else ''}{parts}; at once {needed / 1e9:.2f} of "
          f"{free / 1e9:.1f} GB that are free", flush=True)  # fmt: skip
    if needed > free:
        sys.exit(f"statewide_scale: {needed / 1e9:.1f} GB are needed in {folder}, {free / 1e9:.1f} GB are free: give "
                 "fewer cells, fewer --backend, or another --folder")  # fmt: skip


Search = Callable[[slice], Neighbors]


@dataclass(frozen=True)
class Backend:
    """A way to search, and what it takes besides the store: seconds to build it, bytes on disk and in memory."""

    name: str
    search: Search
    build_s: float = 0.0
    disk: int = 0
    memory: int = 0
    ranked: int = 10  # cells that recall counts


def region(cells: int) -> RegionInfo:
    """A square of about so many cells."""
    side = math.sqrt(cells) * CELL / 111_320
    east = side / math.cos(math.radians(LATITUDE))
    grid = BandGrid.covering(LONGITUDE, LATITUDE, LONGITUDE + east, LATITUDE + side, CELL)
    return RegionInfo(grid, "touch", int(grid.count.sum()), "0" * 64, "benchmark")


def fill(store: CellFeatures, grid: BandGrid) -> None:
    """Write the vectors, a unit at a time; each follows from its unit, so that a filled part is kept."""
    count = max(1, int(grid.count.sum()) // PER_CENTER)
    for number, unit in enumerate(store.units):
        col = np.arange(unit[1].start, unit[1].stop)
        inside = col < grid.count[unit[0], None]
        if not inside.any() or (store.read_status(unit)[inside] != MISSING).all():
            continue
        rng = np.random.default_rng(number)
        chosen = rng.integers(count, size=int(inside.sum()))
        vectors = centers(count, store.width)[chosen]
        vectors += SPREAD * rng.standard_normal(vectors.shape, np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        embedding = np.full((*inside.shape, store.width), np.nan, np.float16)
        embedding[inside] = vectors
        store.write(unit, np.where(inside, ENCODED, 3).astype(np.uint8), embedding)


_CENTERS: dict[tuple[int, int], np.ndarray] = {}


def centers(count: int, width: int) -> np.ndarray:
    if (count, width) not in _CENTERS:
        _CENTERS[count, width] = np.random.default_rng(2**32).standard_normal((count, width), np.float32)
    return _CENTERS[count, width]


def make_queries(store: CellFeatures, grid: BandGrid, count: int) -> tuple[np.ndarray, np.ndarray, torch.Tensor]:
    """Rows and columns (query,) of cells, and (query, feature) their vectors with noise."""
    rng = np.random.default_rng(7)
    row = rng.integers(grid.rows, size=count)
    col = (rng.random(count) * grid.count[row]).astype(np.int64)
    vectors = store.gather(row, col).astype(np.float32)
    noise = rng.standard_normal(vectors.shape, np.float32)
    return row, col, torch.from_numpy(vectors + NOISE * noise / math.sqrt(store.width))


def tiles_around(grid: BandGrid, row: np.ndarray, col: np.ndarray) -> Posterior:
    """A posterior of 16 tiles for each query, its own and random ones."""
    rng = np.random.default_rng(8)
    side = CELL * max(grid.shape)
    levels = max(1, round(math.log(side / 1100, 4)))
    tiles = Pyramid.around(*grid.center, side * 1.05, levels=levels)
    positions = grid.positions(row, col)
    own = tiles.cells_at(*positions)
    others = rng.integers(tiles.shape[0], size=(2, len(row), 15))
    rows, cols = (np.concatenate([own[axis][:, None], others[axis]], 1) for axis in (0, 1))
    return Posterior(tiles, rows, cols, np.full(rows.shape, 1 / 16), np.zeros(len(rows)))


def recall(found: Neighbors, exact: Neighbors, count: int) -> float:
    def cells(neighbors: Neighbors, number: int) -> set[tuple[int, int]]:
        row, col = (each[number, :count].tolist() for each in (neighbors.row, neighbors.col))
        return {*zip(row, col, strict=True)}

    hits = [len(cells(found, number) & cells(exact, number)) for number in range(len(found.row))]
    return float(np.mean(hits)) / count


def timed(work: Callable[[int], object], numbers: range) -> np.ndarray:
    """(number,) milliseconds."""
    times = []
    for number in numbers:
        start = time.perf_counter()
        work(number)
        times.append(1e3 * (time.perf_counter() - start))
    return np.array(times)


def index_path(folder: Path, backend: str) -> Path:
    return folder / (f"cells{SUFFIX}" if backend == "lance" else backend)


def folder_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def backends_of(
    name: str, store: CellFeatures, grid: BandGrid, folder: Path, queries: int, lists: int | None
) -> Iterator[Backend]:
    """Build what is named; an index with a copy of the vectors is two backends, the second without the copy."""
    row, col, query = make_queries(store, grid, queries)
    kind, _, copy = name.partition("+")
    if name == "exact":
        rows, cols = store.units[0]
        memory = 6 * store.width * (rows.stop - rows.start) * (cols.stop - cols.start)
        yield Backend(name, lambda part: scan(store, query[part], 10).neighbors, memory=memory)
        return
    if name == "district":
        coarse = tiles_around(grid, row, col)
        sizes: list[int] = []

        def search_districts(part: slice) -> Neighbors:
            found = []
            for number in range(queries)[part]:
                [district] = districts(coarse.of(number), grid, kept=1.0)
                sizes.append(2 * store.width * len(district.row))
                neighbors = scan(store, query[number : number + 1], 10, cells=(district.row, district.col)).neighbors
                found.append((neighbors.row, neighbors.col, neighbors.similarity))
            return Neighbors(*(np.concatenate(each) for each in zip(*found, strict=True)))

        search_districts(slice(0, queries))
        yield Backend(name, search_districts, memory=max(sizes), ranked=1)
        return
    start, path = time.perf_counter(), index_path(folder, name)
    index: VectorIndex | LanceIndex
    if kind == "lance":
        index = LanceIndex.build(store, str(path))
        memory = index.sample.nbytes
    else:
        index = VectorIndex.build(store, path, kind, copy=bool(copy), lists=None if kind == "hnsw" else lists)
        memory = index.memory_bytes
    build_s, disk = time.perf_counter() - start, folder_bytes(path)
    yield Backend(name, lambda part: index.search(query[part], 10), build_s, disk, memory)
    if copy and isinstance(index, VectorIndex) and index.vectors is not None:
        disk -= index.vectors.nbytes
        index.vectors = None
        yield Backend(kind, lambda part: index.search(query[part], 10), build_s, disk, memory)


def print_row(backend: Backend, store: CellFeatures, queries: int, single: int, exact: Neighbors) -> None:
    """Search with all queries at once, then with some of them one after another, and print a row of the table."""
    start = time.perf_counter()
    found = backend.search(slice(0, queries))
    batch_ms = 1e3 * (time.perf_counter() - start) / queries
    reads = store.reads
    times = timed(lambda number: backend.search(slice(number, number + 1)), range(min(single, queries)))
    p50, p95 = np.percentile(times, [50, 95])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(
        f"| {backend.name} | {backend.build_s:.0f} s | {backend.disk / 1e6:.0f} MB | {backend.memory / 1e6:.0f} MB "
        f"| {p50:.1f} ms | {p95:.1f} ms | {batch_ms:.1f} ms | {recall(found, exact, backend.ranked):.3f} "
        f"| {(store.reads - reads) / len(times):.0f} | {peak:.1f} GB |",
        flush=True,
    )


@click.command()
@click.option("--folder", type=click.Path(path_type=Path), required=True, help="Folder of the store and the indexes.")
@click.option("--cells", default=1_000_000, show_default=True)
@click.option("--dimensions", default=256, show_default=True)
@click.option("--queries", default=200, show_default=True)
@click.option("--backend", "backends", multiple=True, type=click.Choice(BACKENDS),
              help="May be repeated.  [default: all that are installed]")  # fmt: skip
@click.option("--lists", type=int, help="Inverted lists of an index.  [default: four times the root of the cells]")
@click.option("--keep", is_flag=True, help="Keep the indexes.")
@click.option("--single", default=50, show_default=True, help="Queries that are timed alone; 3 with exact search.")
def main(
    folder: Path,
    cells: int,
    dimensions: int,
    queries: int,
    backends: tuple[str, ...],
    lists: int | None,
    keep: bool,
    single: int,
) -> None:
    """Fill the store, and measure the backends one after another."""
    if not backends:
        installed = importlib.util.find_spec("lancedb") is not None
        backends = BACKENDS if installed else tuple(each for each in BACKENDS if each != "lance")
    folder.mkdir(parents=True, exist_ok=True)
    info, path = region(cells), folder / f"{cells}-{dimensions}.zarr"
    check_disk(folder, backends, info.cells, dimensions, path.exists(), keep)
    if path.exists():
        cache = FeatureCache.open(path, "r+")
    else:
        cache = FeatureCache.create(path, info, EncoderInfo("random", False, "0" * 64, dimensions, 384, "fit"))
    start = time.perf_counter()
    fill(cache.cells, info.grid)
    size = folder_bytes(path)
    print(f"{info.cells:,} cells of {dimensions} dimensions, {size / 1e9:.2f} GB, written in", end=" ")
    print(f"{time.perf_counter() - start:.0f} s; {2 * dimensions * info.cells / 1e9:.2f} GB of float16")
    cache.close()
    store = FeatureCache.open(path).cells
    query = make_queries(store, info.grid, queries)[2]
    exact = scan(store, query, 10).neighbors
    print("| backend | build | disk | memory | p50 | p95 | batch | recall@10 | chunks | peak of the process |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for backend in backends:
        # A graph is in memory, and is copied while it grows
        needed, free = 2 * index_bytes(backend, info.cells, dimensions), psutil.virtual_memory().available
        if backend == "hnsw" and needed > free:
            print(f"| {backend} | not built: it takes {needed / 1e9:.0f} GB of memory, and {free / 1e9:.0f} are free |")
            continue
        for each in backends_of(backend, store, info.grid, folder, queries, lists):
            print_row(each, store, queries, 3 if backend == "exact" else single, exact)
        if not keep:
            shutil.rmtree(index_path(folder, backend), ignore_errors=True)


if __name__ == "__main__":
    main()
