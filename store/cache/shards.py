"""Write whole shards, and list what is stored in one file or object."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.core.array_spec import ArrayConfig
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync

Window = tuple[slice, ...]


def write_whole(array: zarr.Array[Any], window: tuple[slice, ...], values: NDArray[Any]) -> None:
    """Write a whole chunk, or a whole shard in one request.

    zarr reads a shard before it writes to it, whatever part of it is written: a torn shard could not be replaced, and
    of two writers one would lose what it has written (zarr-python issues 3682, 3683).

    Args:
        array: the array.
        window: rows and columns of the chunk or shard, which may be cut at the end of the array.
        values: (row, column, ...).
    """
    if array.shards is None:
        array[window] = values
        return
    padded = values
    if values.shape != array.shards:
        padded = np.full(array.shards, array.fill_value, array.dtype)
        padded[tuple(slice(size) for size in values.shape)] = values
    corner = [part.start // size for part, size in zip(window, array.shards, strict=False)]
    coordinates = (*corner, *(0,) * (array.ndim - len(corner)))
    sync(_write_shard(array.async_array, coordinates, padded))


async def _write_shard(array: zarr.AsyncArray[Any], coordinates: tuple[int, ...], values: NDArray[Any]) -> None:
    prototype = default_buffer_prototype()
    spec = array.metadata.get_chunk_spec(coordinates, ArrayConfig.from_dict({}), prototype)
    (encoded,) = await array.codec_pipeline.encode([(prototype.nd_buffer.from_numpy_array(values), spec)])
    place = array.store_path / array.metadata.encode_chunk_key(coordinates)
    if encoded is None:  # nothing but the fill value
        await place.delete()
    else:
        await place.set(encoded)


def stored_windows(array: zarr.Array[Any]) -> Iterator[Window]:
    """Yield the window of each chunk, or of each shard of an array that has shards."""
    sides = array.shards or array.chunks
    ranges = (range(0, size, side) for size, side in zip(array.shape, sides, strict=True))
    for corner in itertools.product(*ranges):
        yield tuple(
            slice(start, min(start + side, size)) for start, side, size in zip(corner, sides, array.shape, strict=True)
        )
