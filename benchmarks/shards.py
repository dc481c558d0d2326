"""Compare tiles in shards with tiles in chunks: time to write and read the same embeddings, files, memory.

    python -m benchmarks.shards

The embeddings, of 256 x 256 tiles with 768 features, are normal random numbers, which compress as well as real ones.
Each measurement runs in a process of its own, alternating.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from jzi.store.cache.cache_header import PhotosHeader, new_header
from jzi.store.cache.documents import Documents
from jzi.store.cache.feature_cache import ENCODED, FeatureCache
from jzi.store.cache.layout import root_document
from jzi.store.geometry.pyramid import Pyramid, TileKey
from jzi.store.info import EncoderInfo

SIDE, WIDTH, LEVEL, TILES = 256, 768, 4, 200
INFO = EncoderInfo("random", False, "0" * 64, WIDTH, 224, "halves")


def create(path: Path, shard: int | None) -> FeatureCache:
    """A cache of 256 x 256 tiles on the last level, in one shard or in chunks; the choice is not that of its size."""
    pyramid = Pyramid.around(0, 0, 1e5, grid=4, levels=LEVEL + 1)
    header = replace(new_header(pyramid, INFO, None), shard=shard)
    documents = Documents(path, read_only=False)
    documents.write("", root_document(header, PhotosHeader()))
    cache = FeatureCache(str(path), documents, header)
    cache.write_layout()
    return cache


def measure(shard: int | None) -> dict[str, float]:
    rng = np.random.default_rng(0)
    data = np.empty((SIDE, SIDE, WIDTH), np.float16)
    for part in data:  # the numbers before they are rounded would be the peak of the memory
        part[:] = rng.normal(scale=2, size=part.shape)
    rows, cols = rng.integers(0, SIDE, (2, TILES))
    with tempfile.TemporaryDirectory() as folder:
        cache = create(Path(folder) / "x.zarr", shard)
        side = cache.tiles.chunk_side(LEVEL)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start = time.perf_counter()
        for row in range(0, SIDE, side):
            for col in range(0, SIDE, side):
                window = slice(row, row + side), slice(col, col + side)
                cache.tiles.write_chunk(LEVEL, row, col, np.full((side, side), ENCODED, np.uint8), data[window])
        write = time.perf_counter() - start
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        start = time.perf_counter()
        cache.tiles.level(LEVEL)
        read = time.perf_counter() - start
        start = time.perf_counter()
        for row, col in zip(rows.tolist(), cols.tolist(), strict=True):
            cache.tiles.embedding(TileKey(LEVEL, row, col))
        tile = (time.perf_counter() - start) / TILES
        files = sum(file.is_file() for file in Path(folder, f"x.zarr/map/{LEVEL}").rglob("c/**/*"))
    return {"write_s": write, "read_s": read, "tile_ms": 1e3 * tile, "memory_mb": memory / 1e3, "files": files}


def main() -> None:
    if len(sys.argv) > 1:
        print(json.dumps(measure(int(sys.argv[1]) or None)))
        return
    results: dict[str, list[dict[str, float]]] = {"chunks": [], "shard": []}
    for _ in range(3):
        for name, shard in (("chunks", 0), ("shard", SIDE)):
            command = [sys.executable, "-m", "benchmarks.shards", str(shard)]
            results[name].append(json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout))
    for name, runs in results.items():
        best = {key: min(run[key] for run in runs) for key in runs[0]}
        print(name, ", ".join(f"{key} {value:.2f}" for key, value in best.items()))


if __name__ == "__main__":
    main()
