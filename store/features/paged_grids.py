"""Arrays that are larger than memory, of which elements are read where they are needed.

A `MappedGrid` is a tensor of a file that is mapped into memory, a `ChunkedGrid` a Zarr array of which the chunks that
were used last are kept.
"""

from __future__ import annotations

import json
import math
import mmap
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import zarr

#: Chunks that are read at once. A request of an object store takes about 20 ms, whatever its size, and stores serve
#: hundreds at once; on a local disk the processor is the limit, and more threads than cores cost nothing.
THREADS = 32

#: Bytes that a read of one row of a mapped file may make resident: Linux maps up to 16 pages around a fault.
FAULT = 16 * mmap.PAGESIZE

#: Types of the tensors, by the names of safetensors.
DTYPES = {
    "F16": np.dtype(np.float16),
    "F32": np.dtype(np.float32),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(bool),
}


class Grid(Protocol):
    """An array (row, col, ...) of which some elements are read."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def gather(self, row: NDArray[np.int64], col: NDArray[np.int64]) -> NDArray[Any]:
        """(n, ...) elements at rows (n,) and columns (n,)."""
        ...

    def rows(self, start: int, stop: int) -> NDArray[Any]:
        """(row, col, ...) of some rows, which do not stay in memory."""
        ...


class MappedGrid:
    """A tensor of a safetensors file, mapped into memory.

    The operating system keeps the pages that were read as long as nobody else needs the memory. They are released from
    this process whenever more than `limit` bytes may have become resident; a page that is still in the page cache comes
    back without being read from the disk.

    Args:
        path: the file.
        dtype: type of the values.
        offset: first byte of the tensor.
        shape: shape of the tensor.
        limit: resident bytes.
    """

    def __init__(self, path: Path, dtype: Any, offset: int, shape: tuple[int, ...], limit: int) -> None:
        self.shape, self.dtype, self.limit = shape, np.dtype(dtype), limit
        self._path, self._offset = path, offset
        self._array = np.memmap(path, dtype, "r", offset, shape)
        self._map: mmap.mmap = self._array._mmap  # type: ignore[attr-defined]
        if hasattr(mmap, "MADV_RANDOM"):
            self._map.madvise(mmap.MADV_RANDOM)  # no read-ahead between scattered rows
        self._touched = 0

    def gather(self, row: NDArray[np.int64], col: NDArray[np.int64]) -> NDArray[Any]:
        """See `Grid.gather`."""
        result = np.asarray(self._array[row, col])
        self._release(len(row) * (FAULT + result.nbytes // max(1, len(row))))
        return result

    def rows(self, start: int, stop: int) -> NDArray[Any]:
        """See `Grid.rows`; it reads the file, which is faster than the mapping from end to end."""
        row = math.prod(self.shape[1:])
        offset = self._offset + start * row * self._array.dtype.itemsize
        values = np.fromfile(self._path, self._array.dtype, (stop - start) * row, offset=offset)
        return values.reshape(stop - start, *self.shape[1:])

    def _release(self, count: int) -> None:
        self._touched += count
        if self._touched > self.limit and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)
            self._touched = 0


class ChunkedGrid:
    """An array of a cache, of which the chunks that were used last are in memory.

    Chunks that are missing are read at the same time, each once. Safe for threads.

    Args:
        array: (row, col, ...) Zarr array.
        limit: bytes of the chunks in memory; at least one is.
        path: path of the cache, for error messages.
        name: name of the array, for error messages.

    Attributes:
        reads: number of chunks that were read.
    """

    def __init__(self, array: zarr.Array[Any], limit: int, path: str, name: str) -> None:
        self.shape, self.dtype, self.path, self.name, self.reads = array.shape, array.dtype, path, name, 0
        self._array, (self._height, self._width) = array, array.chunks[:2]
        rows, self._cols = -(-self.shape[0] // self._height), -(-self.shape[1] // self._width)
        chunk = (self._height, self._width, *self.shape[2:])
        slots = max(1, min(rows * self._cols, limit // max(1, math.prod(chunk) * array.dtype.itemsize)))
        self._chunks = np.empty((slots, *chunk), array.dtype)  # the pages of slots that are not used take no memory
        self._slot_of = np.full(rows * self._cols, -1, np.int32)
        self._chunk_in = np.full(slots, -1, np.int64)
        self._used = np.zeros(slots, np.int64)
        self._clock, self._lock = 0, threading.Lock()
        self._threads: ThreadPoolExecutor | None = None

    def gather(self, row: NDArray[np.int64], col: NDArray[np.int64]) -> NDArray[Any]:
        """See `Grid.gather`.

        Raises:
            CacheCorruptError: a chunk does not match its checksum.
        """
        result = np.empty((len(row), *self.shape[2:]), self._chunks.dtype)
        distinct, place = np.unique(row // self._height * self._cols + col // self._width, return_inverse=True)
        with self._lock:
            for first in range(0, len(distinct), len(self._used)):
                slot = self._require(distinct[first : first + len(self._used)])
                here = slice(None) if len(slot) == len(distinct) else (place >= first) & (place < first + len(slot))
                at = slot[place[here] - first]
                result[here] = self._chunks[at, row[here] % self._height, col[here] % self._width]
        return result

    def rows(self, start: int, stop: int) -> NDArray[Any]:
        """See `Grid.rows`; errors as of `gather`."""
        from jzi.store.disk.storage import storage_errors  # loads zarr

        with storage_errors(self.path, self.name):
            return np.asarray(self._array[start:stop])

    def _require(self, chunks: NDArray[np.int64]) -> NDArray[np.int32]:
        """The slots of distinct chunks, of which there are no more than slots."""
        self._clock += 1
        slot = self._slot_of[chunks]
        self._used[slot[slot >= 0]] = self._clock
        if len(missing := chunks[slot < 0]):
            free = np.argpartition(self._used, len(missing) - 1)[: len(missing)]  # the least recently used ones
            lost = self._chunk_in[free]
            self._slot_of[lost[lost >= 0]] = -1
            self._chunk_in[free] = -1
            self._read_all(missing, free)
            self._slot_of[missing], self._chunk_in[free], self._used[free] = free, missing, self._clock
            slot = self._slot_of[chunks]
        return slot

    def _read_all(self, chunks: NDArray[np.int64], slots: NDArray[np.int64]) -> None:
        self.reads += len(chunks)
        if len(chunks) == 1:
            return self._read(int(chunks[0]), int(slots[0]))
        self._threads = self._threads or ThreadPoolExecutor(THREADS, "jzi-map")
        list(self._threads.map(self._read, chunks.tolist(), slots.tolist()))
        return None

    def _read(self, chunk: int, slot: int) -> None:
        from jzi.store.disk.storage import storage_errors  # loads zarr

        top, left = chunk // self._cols * self._height, chunk % self._cols * self._width
        with storage_errors(self.path, self.name):
            values = np.asarray(self._array[top : top + self._height, left : left + self._width])
        self._chunks[slot, : values.shape[0], : values.shape[1]] = values


def mapped_tensors(path: Path, names: Sequence[str], limit: int) -> list[MappedGrid]:
    """Map tensors of a safetensors file, whose header is checked already, into memory.

    Args:
        path: the file.
        names: names of tensors of at least one dimension.
        limit: bytes of all of them that may be resident.
    """
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        entries = json.loads(file.read(size))
    spans = [entries[name]["data_offsets"] for name in names]
    limits = shares([last - first for first, last in spans], limit)
    return [
        MappedGrid(path, DTYPES[entries[name]["dtype"]], 8 + size + first, tuple(entries[name]["shape"]), share)
        for name, (first, _), share in zip(names, spans, limits, strict=True)
    ]


def shares(sizes: list[int], limit: int) -> list[int]:
    """Divide memory among arrays, so that small ones fit in whole and the others get equal parts.

    Args:
        sizes: bytes of each array.
        limit: bytes of all.

    Example:
        >>> shares([10, 1000, 2000], 510)
        [10, 250, 250]
    """
    result, left = [0] * len(sizes), limit
    order = sorted(range(len(sizes)), key=sizes.__getitem__)
    for number, index in enumerate(order):
        result[index] = min(sizes[index], left // (len(sizes) - number))
        left -= result[index]
    return result
