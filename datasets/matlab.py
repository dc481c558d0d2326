"""Read numbers, texts and structures from MATLAB files of version 5, without SciPy and within bounds.

A file is a sequence of elements: a type and a size, then data, padded to 8 bytes. Elements of type matrix hold elements
in turn: class, shape and name, then the values; elements may be compressed by zlib. The format is MathWorks' "MAT-File
Level 5 File Format". Other versions, and classes that hold code, are refused or passed over; nothing is executed.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jzi.errors import PairsError, first_line
from jzi.store.photos.photo_file import open_regular_file

#: Most bytes of a file and of a decompressed variable. That of CVACT takes 8 MB.
MAX_BYTES = 256 * 2**20

#: Deepest nesting of structures and cell arrays, and the most of their entries.
DEPTH, ENTRIES = 8, 2_000_000

_NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_MATRIX, _COMPRESSED = 14, 15
_TEXT = {1: "latin-1", 2: "latin-1", 16: "utf-8", 17: "utf-16", 18: "utf-32", 4: "utf-16"}
_CELL, _STRUCT, _CHAR, _NUMERIC = 1, 2, 4, range(6, 16)

#: A variable: numbers, the rows of a text, a cell array as a flat list, or the fields of a structure.
Value = Any


class _DamagedError(Exception):
    """The file is not what it should be."""


@dataclass
class _Reader:
    """Reads elements of a byte order; `left` bounds the entries of all structures and cell arrays."""

    order: str
    left: int = ENTRIES

    def elements(self, data: memoryview) -> Iterator[tuple[int, memoryview]]:
        """Type and data of each element."""
        at = 0
        while at + 8 <= len(data):
            kind, size = (int(word) for word in np.frombuffer(data[at : at + 8], f"{self.order}u4"))
            if kind >> 16:  # a small element, with its data beside the type
                kind, size, start, end = kind & 0xFFFF, kind >> 16, at + 4, at + 8
                if size > 4:
                    raise _DamagedError("a small element is too large")
            else:
                start, end = at + 8, at + 8 + size + (-size % 8 if kind != _COMPRESSED else 0)
            if start + size > len(data):
                raise _DamagedError("it is truncated")
            yield kind, data[start : start + size]
            at = end

    def numbers(self, kind: int, data: memoryview) -> NDArray[Any]:
        """The values of a numeric element."""
        if kind not in _NUMBERS:
            raise _DamagedError(f"an element of numbers has the type {kind}")
        dtype = np.dtype(f"{self.order}{_NUMBERS[kind]}")
        return np.frombuffer(data[: len(data) // dtype.itemsize * dtype.itemsize], dtype)

    def matrix(self, data: memoryview, names: Collection[str] | None, depth: int = 0) -> tuple[str, Value]:
        """Name and value of a matrix; the value is None if its name is not among those wanted.

        Args:
            data: of the element.
            names: names of variables that are wanted; None for all.
            depth: of nesting.
        """
        if depth > DEPTH:
            raise _DamagedError(f"it is nested deeper than {DEPTH}")
        parts = self.elements(data)
        flags, shape, name = (self._next(parts) for _ in range(3))
        kind = int(self.numbers(*flags)[0]) & 0xFF
        dimensions = [int(size) for size in self.numbers(*shape)]
        text = bytes(name[1]).decode("latin-1")
        count = math.prod(dimensions)
        if min(dimensions, default=-1) < 0 or len(dimensions) > 8 or count > MAX_BYTES:
            raise _DamagedError("an array has no sensible shape")
        if names is not None and text not in names:
            return text, None
        if kind in _NUMERIC:
            values = self.numbers(*self._next(parts))
            if len(values) != count:
                raise _DamagedError(f"{text or 'an array'} has {len(values)} values, not {count}")
            return text, values.reshape(dimensions, order="F")
        if kind == _CHAR:
            return text, self._rows(*self._next(parts), dimensions)
        if kind == _CELL:
            return text, [self._nested(parts, depth) for _ in range(self._claim(count))]
        if kind == _STRUCT:
            length = int(self.numbers(*self._next(parts))[0])
            raw = bytes(self._next(parts)[1])
            if length < 1 or len(raw) % length:
                raise _DamagedError("a structure has no field names")
            keys = [raw[at : at + length].split(b"\0")[0].decode("latin-1") for at in range(0, len(raw), length)]
            self._claim(count * len(keys))
            entries = [{key: self._nested(parts, depth) for key in keys} for _ in range(count)]
            return text, entries[0] if count == 1 else entries
        return text, None

    def _next(self, parts: Iterator[tuple[int, memoryview]]) -> tuple[int, memoryview]:
        part = next(parts, None)
        if part is None:
            raise _DamagedError("an array is incomplete")
        return part

    def _nested(self, parts: Iterator[tuple[int, memoryview]], depth: int) -> Value:
        kind, data = self._next(parts)
        if kind != _MATRIX:
            raise _DamagedError("a structure or cell holds no array")
        return self.matrix(data, None, depth + 1)[1] if len(data) else None

    def _claim(self, count: int) -> int:
        self.left -= count
        if self.left < 0:
            raise _DamagedError(f"it has more than {ENTRIES} entries of structures and cells")
        return count

    def _rows(self, kind: int, data: memoryview, dimensions: list[int]) -> list[str]:
        """The rows of an array of characters, which are stored column by column."""
        if kind not in _TEXT:
            raise _DamagedError(f"a text has the type {kind}")
        codec = _TEXT[kind]
        if codec in ("utf-16", "utf-32"):
            codec += "-le" if self.order == "<" else "-be"
        text = bytes(data).decode(codec)
        rows = dimensions[0]
        if rows == 0:
            return []
        if len(text) != math.prod(dimensions):
            raise _DamagedError("a text has another length than its shape")
        return [text[row::rows] for row in range(rows)]


def read_matlab(file: Path, names: Collection[str]) -> dict[str, Value]:
    """Variables of a MATLAB file.

    Args:
        file: the file, of version 5 (`save` writes it unless "-v7.3" is given).
        names: names of the variables; those that the file does not have are left out.

    Returns:
        Name to value: arrays of numbers as numpy arrays, texts as lists of their rows, cell arrays as lists, a
        structure as a dict of its fields, several as a list of dicts.

    Raises:
        PairsError: it does not exist, is of another format, damaged, or exceeds the bounds above.
    """
    try:
        with open_regular_file(file) as opened:
            content = opened.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise _DamagedError(f"it has more than {MAX_BYTES} bytes")
        order = {b"IM": "<", b"MI": ">"}.get(content[126:128])
        if order is None or int(np.frombuffer(content[124:126], f"{order}u2")[0]) != 0x0100:
            raise _DamagedError("it is not of version 5")
        reader, values = _Reader(order), {}
        for kind, data in reader.elements(memoryview(content)[128:]):
            for inner, matrix in reader.elements(_decompress(data)) if kind == _COMPRESSED else [(kind, data)]:
                if inner != _MATRIX:
                    continue
                name, value = reader.matrix(matrix, names)
                if name in names:
                    values[name] = value
        return values
    except FileNotFoundError:
        raise PairsError(f"there is no {file}: check that the data set is complete") from None
    except (_DamagedError, OSError, ValueError, IndexError, zlib.error, UnicodeDecodeError) as error:
        raise PairsError(f"{file} is not a MATLAB file that can be read: {first_line(error)}") from error


def _decompress(data: memoryview) -> memoryview:
    decompressor = zlib.decompressobj()
    content = decompressor.decompress(data, MAX_BYTES)
    if decompressor.unconsumed_tail or not decompressor.eof:
        raise _DamagedError(f"a variable is truncated or takes more than {MAX_BYTES} bytes")
    return memoryview(content)
