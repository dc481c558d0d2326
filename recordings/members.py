"""Read some members of the objects of a large JSON file; the others are skipped without being built.

A reconstruction holds millions of points beside its photos, which as Python objects would take tens of gigabytes. The
file is mapped into memory; what is skipped is only scanned for brackets and strings.
"""

from __future__ import annotations

import json
import mmap
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from jzi.errors import DatasetError, first_line
from jzi.store.photos.photo_file import open_regular_file

#: Largest member that is built, bytes, and deepest nesting of what is skipped.
MAX_MEMBER, MAX_DEPTH = 2**29, 1000

_SPACE = re.compile(rb"[ \t\r\n]*+")
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[{}\[\]]', re.DOTALL)
_SCALAR = re.compile(rb"[^,\]}\s]++")


def read_members(file: Path, wanted: Collection[str], what: str) -> Iterator[dict[str, Any]]:
    """The wanted members of each object of a JSON array of objects, or of a single object.

    Args:
        file: the file.
        wanted: names of the members.
        what: what the file should hold, for messages.

    Raises:
        DatasetError: it cannot be read, is no such JSON, or a wanted member is too large.
    """
    try:
        with open_regular_file(file) as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
            at = _after_space(data, 3 if data[:3] == b"\xef\xbb\xbf" else 0)
            if data[at : at + 1] == b"{":
                yield _object(data, at, wanted)[0]
                return
            at = _expect(data, at, b"[")
            while data[at : at + 1] != b"]":
                members, at = _object(data, at, wanted)
                yield members
                at = _comma(data, at, b"]")
    except FileNotFoundError:
        raise DatasetError(f"there is no {file}, {what}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise DatasetError(f"{file} is not {what}: {first_line(error)}") from error


def read_json(file: Path, limit: int, what: str) -> Any:
    """Read a small JSON file whole.

    Args:
        file: the file.
        limit: most bytes.
        what: what the file should hold, for messages.

    Raises:
        DatasetError: it does not exist, is larger, or is no JSON.
    """
    try:
        with open_regular_file(file) as opened:
            content = opened.read(limit + 1)
        if len(content) > limit:
            raise ValueError(f"it has more than {limit} bytes")
        return json.loads(content)
    except FileNotFoundError:
        raise DatasetError(f"there is no {file}, {what}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise DatasetError(f"{file} is not {what}: {first_line(error)}") from error


def _object(data: mmap.mmap, at: int, wanted: Collection[str]) -> tuple[dict[str, Any], int]:
    members: dict[str, Any] = {}
    at = _expect(data, at, b"{")
    while data[at : at + 1] != b"}":
        match = _STRING.match(data, at)
        if not match:
            raise ValueError(f"a name is expected at byte {at}")
        name = json.loads(match[0]) if len(match[0]) < 1000 else ""
        at = _expect(data, _after_space(data, match.end()), b":")
        end = _end(data, at)
        if name in wanted:
            if end - at > MAX_MEMBER:
                raise ValueError(f"its {name} take more than {MAX_MEMBER} bytes")
            members[name] = json.loads(data[at:end])
        at = _comma(data, _after_space(data, end), b"}")
    return members, _after_space(data, at + 1)


def _end(data: mmap.mmap, at: int) -> int:
    """Where the value that begins at a byte ends."""
    if data[at : at + 1] not in (b"{", b"["):
        match = _STRING.match(data, at) or _SCALAR.match(data, at)
        if not match:
            raise ValueError(f"a value is expected at byte {at}")
        return match.end()
    depth = 0
    for token in _TOKEN.finditer(data, at):
        kind = token[0]
        if kind in (b"{", b"["):
            depth += 1
            if depth > MAX_DEPTH:
                raise ValueError(f"it is nested more than {MAX_DEPTH} deep")
        elif kind in (b"}", b"]"):
            depth -= 1
            if not depth:
                return token.end()
    raise ValueError("it ends early; copy it again")


def _after_space(data: mmap.mmap, at: int) -> int:
    match = _SPACE.match(data, at)
    return match.end() if match else at


def _expect(data: mmap.mmap, at: int, character: bytes) -> int:
    if data[at : at + 1] != character:
        raise ValueError(f"{character.decode()!r} is expected at byte {at}")
    return _after_space(data, at + 1)


def _comma(data: mmap.mmap, at: int, closing: bytes) -> int:
    """The next element's start, or that of the closing bracket."""
    if data[at : at + 1] == closing:
        return at
    at = _expect(data, at, b",")
    if data[at : at + 1] == closing:
        raise ValueError(f"an element is expected at byte {at}")
    return at
