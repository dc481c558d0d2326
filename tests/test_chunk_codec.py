"""Claims about chunks whose compressed bytes come from strangers."""

from __future__ import annotations

import resource
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
from numcodecs.zstd import Zstd  # type: ignore[import-untyped]

from jzi.errors import CacheCorruptError
from jzi.store.cache.chunk_codec import content_size
from jzi.store.cache.feature_cache import ENCODED, FeatureCache
from jzi.store.geometry.pyramid import Pyramid, TileKey
from jzi.store.info import EncoderInfo, ImageryInfo

IMAGERY = ImageryInfo("f" * 64, (("map.tif", 10, 20, "a" * 64),), "bands [1, 2, 3] as RGB")


@pytest.mark.parametrize("size", [0, 1, 255, 256, 257, 65535, 65791, 65792, 2**20])
def test_the_header_of_a_frame_says_the_size_of_its_content(size: int) -> None:
    assert content_size(Zstd(3).encode(bytes(size))) == size


@pytest.mark.parametrize("frame", [b"", b"(\xb5/\xfd", b"(\xb5/\xfd\x00X", b"text" * 9, b"(\xb5/\xfd\xe0\x01"])
def test_what_does_not_say_its_size_is_refused(frame: bytes) -> None:
    with pytest.raises(RuntimeError, match="Zstd"):
        content_size(frame)


@pytest.mark.parametrize("lies", [False, True], ids=["and says so", "but says otherwise"])
def test_a_chunk_that_becomes_larger_than_its_array_is_refused_before_it_does(
    tmp_path: Path, pyramid: Pyramid, info: EncoderInfo, lies: bool
) -> None:
    cache = FeatureCache.create(tmp_path / "town.zarr", pyramid, info, IMAGERY)
    cache.tiles.write_chunk(0, 0, 0, np.full((1, 1), ENCODED, np.uint8), np.ones((1, 1, info.width), np.float16))
    assert cache.tiles.embedding(TileKey(0, 0, 0)).sum() == info.width
    bomb = bytearray(Zstd(1).encode(bytes(2**28)))
    if lies:
        start = 5 + (not bomb[4] >> 5 & 1)
        bomb[start : start + 4] = (2 * info.width).to_bytes(4, "little")
    chunk = tmp_path / "town.zarr/map/0/embedding/c/0/0/0"
    chunk.write_bytes(bytes(bomb) + google_crc32c.value(bytes(bomb)).to_bytes(4, "little"))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CacheCorruptError, match="map/0/embedding"):
        cache.tiles.embedding(TileKey(0, 0, 0))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**16, "kB"
