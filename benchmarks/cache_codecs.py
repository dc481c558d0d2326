"""Compare codecs for the cache: size and time to write and read the same embeddings.

    python -m benchmarks.cache_codecs [CACHE]

Without a cache the embeddings are normal random numbers, which compress as well as real ones.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec

from jzi.store.cache.feature_cache import FeatureCache

CODECS = {
    "none": [],
    "zstd 1": [ZstdCodec(level=1)],
    "zstd 9": [ZstdCodec(level=9)],
    "blosc zstd 3, byte shuffle": [BloscCodec(cname="zstd", clevel=3, shuffle="shuffle", typesize=2)],
    "blosc zstd 3, bit shuffle": [BloscCodec(cname="zstd", clevel=3, shuffle="bitshuffle", typesize=2)],
    "blosc lz4 5, bit shuffle": [BloscCodec(cname="lz4", clevel=5, shuffle="bitshuffle", typesize=2)],
}


def embeddings(arguments: list[str]) -> np.ndarray:
    """Return the embeddings of the finest level, (row, col, feature) float16."""
    if arguments:
        cache = FeatureCache.open(arguments[0])
        return cache.tiles.level(cache.pyramid.levels - 1)
    rng = np.random.default_rng(0)
    return (rng.normal(size=(64, 64, 768)) * 2).astype(np.float16)


def main() -> None:
    data = embeddings(sys.argv[1:])
    print(f"{data.shape} float16, {data.nbytes / 1e6:.1f} MB; all codecs with crc32c; best of 5")
    print(f"{'codec':<28} {'size':>6} {'write':>9} {'read':>9}")
    for name, codecs in CODECS.items():
        with tempfile.TemporaryDirectory() as folder:
            side = min(16, data.shape[0])
            array = zarr.create_array(
                folder,
                name="x",
                shape=data.shape,
                chunks=(side, side, data.shape[2]),
                dtype=data.dtype,
                compressors=[*codecs, Crc32cCodec()],
            )
            write, read = [], []
            for _ in range(5):
                start = time.perf_counter()
                array[:] = data
                write.append(time.perf_counter() - start)
                start = time.perf_counter()
                array[:]
                read.append(time.perf_counter() - start)
            size = sum(file.stat().st_size for file in (Path(folder) / "x" / "c").rglob("*") if file.is_file())
        print(f"{name:<28} {size / data.nbytes:6.3f} {1e3 * min(write):6.1f} ms {1e3 * min(read):6.1f} ms")


if __name__ == "__main__":
    main()
