"""Read and write the metadata documents (zarr.json) of a feature cache, and open arrays whose document is as expected.

Documents are bounded in size and compared with the expected ones; arrays are made from the latter.
"""

from __future__ import annotations

import copy
import json
import os
import re
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import zarr
from zarr.abc.store import RangeByteRequest, Store
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import LocalStore, StorePath

from jzi.errors import CacheError, first_line
from jzi.store.cache.chunk_codec import bounded
from jzi.store.cache.layout import Document
from jzi.store.disk.lock import WriterLock
from jzi.store.disk.storage import is_url, storage_errors, zarr_store

#: Largest documents, bytes: the root lists the files of the imagery (a hundred thousand take 16 MB).
MAX_ROOT, MAX_DOCUMENT = 2**24, 2**20

#: Name of a temporary file of zarr's LocalStore.
_LEFTOVER = re.compile(r".+\.[0-9a-f]{32}\.partial")

#: Ends the error about a document that is not as expected.
HINT = "`jzi cache verify --repair {}` rewrites it"


class Documents:
    """The documents of a Zarr hierarchy.

    Args:
        path: path or URL of the cache.
        read_only: whether writing is refused.
        check: whether arrays are only opened if their document is as expected.
        lock: the lock of the writer, which is released with the last object that can write; None to read.
    """

    def __init__(
        self, path: str | Path, *, read_only: bool, check: bool = True, lock: WriterLock | None = None
    ) -> None:
        self.path, self.check, self.lock = str(path), check, lock
        store = zarr_store(path)
        self.store: Store = LocalStore(store, read_only=read_only) if isinstance(store, Path) else store
        if self.store.read_only != read_only:
            self.store = self.store.with_read_only(read_only)
        self._folder = None if is_url(path) else Path(path)
        if lock is not None:  # arrays hold the store, not this object
            lock.release_with(self.store)

    def check_lock(self) -> None:
        """Check that no other process has taken over the writer's lock.

        Raises:
            CacheError: another process has.
        """
        if self.lock is not None:
            self.lock.check()

    def released_on_error(self) -> AbstractContextManager[None]:
        """Context manager that releases the writer's lock if the block raises."""
        return self.lock.released_on_error() if self.lock is not None else nullcontext()

    def read_bytes(self, name: str) -> bytes | None:
        """Bytes of the document of a group or array ("" is the root), at most one more than allowed; None without one.

        Raises:
            CacheError: it cannot be read.
        """
        limit = _limit(name)
        with storage_errors(self.path, name):
            if self._folder is not None:
                try:
                    with (self._folder / name / "zarr.json").open("rb") as file:
                        data = file.read(limit + 1)
                except (FileNotFoundError, NotADirectoryError):
                    return None
            else:
                request = RangeByteRequest(0, limit + 1)
                buffer = sync(self.store.get(_key(name), default_buffer_prototype(), request))
                if buffer is None:
                    return None
                data = buffer.to_bytes()
        return data

    def read(self, name: str) -> Document | None:
        """The document of a group or array ("" is the root); None if there is none.

        Raises:
            CacheError: it is too large, not a JSON object, or cannot be read.
        """
        document, reason = self._parse(name)
        if reason:
            raise self.damaged(reason)
        return document

    def _parse(self, name: str) -> tuple[Document | None, str]:
        """The document, or why it cannot be used."""
        data = self.read_bytes(name)
        if data is None:
            return None, ""
        if len(data) > (limit := _limit(name)):
            return None, f"{_key(name)} is larger than {limit >> 20} MiB"
        try:
            document = json.loads(data)
            _canonical(document)  # raises too if it is nested too deeply
        except (ValueError, RecursionError) as error:
            return None, f"{_key(name)} is not JSON ({first_line(error):.100})"
        return (document, "") if isinstance(document, dict) else (None, f"{_key(name)} is not a JSON object")

    def attribute(self, name: str, key: str) -> Any:
        """An attribute of a group; None if there is no such group or attribute."""
        return self.attribute_of(self.read(name) or {}, key)

    @staticmethod
    def attribute_of(document: Document, key: str) -> Any:
        """An attribute of a document; None if there is none."""
        attributes = document.get("attributes")
        return attributes.get(key) if isinstance(attributes, dict) else None

    def write(self, name: str, document: Document) -> None:
        """Write the document of a group or array ("" is the root).

        Raises:
            CacheError: it cannot be written.
        """
        self.check_lock()
        data = json.dumps(document, indent=2).encode()
        with storage_errors(self.path, name):
            sync(self.store.set(_key(name), default_buffer_prototype().buffer.from_bytes(data)))

    def delete(self, name: str) -> None:
        """Delete a group or array with everything in it, if there is one."""
        with storage_errors(self.path, name):
            sync(self.store.delete_dir(name))

    def remove_leftovers(self) -> None:
        """Remove temporary files that killed processes left in a local cache; the lock must be held.

        zarr's LocalStore writes a file under such a name and renames it.
        """
        if self._folder is not None:
            with storage_errors(self.path):
                for folder, _, names in os.walk(self._folder):
                    for name in names:
                        if _LEFTOVER.fullmatch(name):
                            Path(folder, name).unlink(missing_ok=True)

    def difference(self, name: str, expected: Document, *, longer: bool = False) -> str | None:
        """Say how a document differs from the expected one; None if it does not.

        Args:
            name: name of a group or array.
            expected: the expected document.
            longer: whether the array may be longer than expected along any dimension, as interrupted runs leave it.
        """
        document, reason = self._parse(name)
        if document is None:
            return reason or f"{_key(name)} is missing"
        if _canonical(document) == _canonical(expected):
            return None
        if longer and _is_longer(document.get("shape"), expected["shape"]):
            document = {**document, "shape": expected["shape"]}
        found = _difference(document, expected)
        return f"{_key(name)} {found}" if found else None

    def array(self, name: str, expected: Document, *, longer: bool = False) -> zarr.Array[Any]:
        """Open an array.

        Args:
            name: name of the array.
            expected: its expected document.
            longer: whether it may be longer on disk; the rest is not read.

        Raises:
            CacheError: its document is missing or not as expected.
        """
        if self.check and (difference := self.difference(name, expected, longer=longer)) is not None:
            raise self.damaged(difference)
        return self.open(name, expected)

    def open(self, name: str, expected: Document) -> zarr.Array[Any]:
        """Open an array by its expected document, whatever its document on disk is."""
        return zarr.Array(zarr.AsyncArray(bounded(copy.deepcopy(expected)), StorePath(self.store, name)))

    def damaged(self, difference: str) -> CacheError:
        """Return the error for a document that cannot be used."""
        return CacheError(f"{self.path} has damaged metadata, {difference}: {HINT.format(self.path)}")


def _limit(name: str) -> int:
    return MAX_DOCUMENT if name else MAX_ROOT


def _key(name: str) -> str:
    return f"{name}/zarr.json" if name else "zarr.json"


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _difference(value: Any, expected: Any, entry: str = "") -> str | None:
    """The first difference between two documents or parts of them; None if there is none."""
    if _canonical(value) == _canonical(expected):
        return None
    if not (isinstance(value, dict) and isinstance(expected, dict)):
        return f"has {entry} {json.dumps(value):.80}, not {json.dumps(expected):.80}"
    keys = [key for key in {**expected, **value} if _canonical(value.get(key)) != _canonical(expected.get(key))]
    name = f"{entry}.{keys[0]}".lstrip(".") if keys else entry
    if not keys or keys[0] not in value:
        return f"lacks {name:.120}"
    if keys[0] not in expected:
        return f"has an unexpected entry {name!r:.120}"
    return _difference(value[keys[0]], expected[keys[0]], name)


def _is_longer(shape: Any, expected: list[int]) -> bool:
    return (
        isinstance(shape, list)
        and len(shape) == len(expected)
        and all(type(size) is int and size >= least for size, least in zip(shape, expected, strict=True))
    )
