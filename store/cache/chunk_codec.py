"""Decompress chunks of a feature cache into no more memory than their array needs."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
from zarr.abc.codec import Codec
from zarr.codecs import ShardingCodec, ZstdCodec
from zarr.core.array_spec import ArraySpec
from zarr.core.buffer import Buffer
from zarr.core.metadata.v3 import ArrayV3Metadata

#: Most bytes of a chunk of text, whose size does not follow from its shape: 16 384 paths of 4 kB.
MAX_TEXT = 2**26

#: The magic number of a frame, and the sizes of the entries of its header. Source: RFC 8878, section 3.1.1.
_MAGIC = b"\x28\xb5\x2f\xfd"
_ID_BYTES, _SIZE_BYTES = (0, 1, 2, 4), (0, 2, 4, 8)

#: Bytes of the longest header.
MAX_HEADER = 18


class BoundedZstdCodec(ZstdCodec):
    """zarr's Zstandard codec, but a chunk that would become larger than its array allows is an error."""

    def _decode_sync(self, chunk_bytes: Buffer, chunk_spec: ArraySpec) -> Buffer:
        data = chunk_bytes.as_numpy_array().view(np.uint8)
        item = chunk_spec.dtype.to_native_dtype()
        limit = MAX_TEXT if item.hasobject or item.kind == "T" else math.prod(chunk_spec.shape) * item.itemsize
        if (size := content_size(data[:MAX_HEADER].tobytes())) > limit:
            raise RuntimeError(f"Zstd decompression error: {size} bytes in a chunk of at most {limit}")
        decoded = np.empty(size, np.uint8)
        self._zstd_codec.decode(data, decoded)
        return chunk_spec.prototype.buffer.from_array_like(decoded)


def content_size(frame: bytes) -> int:
    """The size of a Zstandard frame's content by its header, bytes, which no decoder exceeds.

    Args:
        frame: its first `MAX_HEADER` bytes, or more.

    Raises:
        RuntimeError: it is no frame, or does not say its size, as all that are compressed at once do.
    """
    descriptor = frame[4] if len(frame) > 4 and frame[:4] == _MAGIC else 0
    single_segment = descriptor >> 5 & 1
    start = 5 + (not single_segment) + _ID_BYTES[descriptor & 3]
    length = _SIZE_BYTES[descriptor >> 6] or single_segment
    entry = frame[start : start + length]
    if not length or len(entry) < length:
        raise RuntimeError("Zstd decompression error: no frame with the size of its content")
    return int.from_bytes(entry, "little") + (256 if length == 2 else 0)


def bounded(document: dict[str, Any]) -> ArrayV3Metadata:
    """The metadata of an array's document, with codecs that bound what they decompress."""
    metadata = ArrayV3Metadata.from_dict(document)
    return replace(metadata, codecs=tuple(map(_bounded, metadata.codecs)))


def _bounded(codec: Codec) -> Codec:
    if isinstance(codec, ShardingCodec):
        return replace(codec, codecs=tuple(map(_bounded, codec.codecs)))
    return BoundedZstdCodec(level=codec.level, checksum=codec.checksum) if isinstance(codec, ZstdCodec) else codec
