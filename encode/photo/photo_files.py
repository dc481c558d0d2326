"""Files of photos: size, modification time and digest of each, and copies of one file under several names."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from jzi.encode.prefetch import prefetch, reader_threads
from jzi.store.photos.photo_file import open_regular_file
from jzi.store.photos.photo_table import PhotoTable
from jzi.store.photos.splits import copies_together

#: In place of the digest of a file that cannot be read.
UNKNOWN = "unreadable"


class PhotoFiles:
    """The files of a table of photos; the status of each is requested once, and each is read at most once.

    Args:
        frame: columns id and photo, the path.

    Attributes:
        path: paths by id.
        size: bytes by id; -1 for files that do not exist, which reading them reports.
        mtime_ns: modification times by id; -1 for those files.
    """

    def __init__(self, frame: pd.DataFrame) -> None:
        self.path: pd.Series = frame.set_index("id")["photo"]
        stat = np.array([_stat(Path(photo)) for photo in self.path], np.int64).reshape(-1, 2)
        self.size, self.mtime_ns = (pd.Series(column, self.path.index) for column in stat.T)
        self._digests: dict[str, str] = {}

    def digests(self, ids: Iterable[str]) -> NDArray[np.object_]:
        """(photo,) SHA-256 of files in hexadecimal; `UNKNOWN` for those that cannot be read.

        Args:
            ids: of the photos.
        """
        ids = list(ids)
        names = [name for name in dict.fromkeys(ids) if name not in self._digests]
        read = prefetch(_sha256, [Path(photo) for photo in self.path[names]], reader_threads())
        self._digests.update(zip(names, read, strict=True))
        return np.array([self._digests[name] for name in ids], dtype=object)


def with_copies_together(table: PhotoTable, known: pd.DataFrame, files: PhotoFiles) -> tuple[PhotoTable, int]:
    """Assign copies of a file to one split.

    Splits that a table brings along are left as they are. Only files of equal size are read, and of those only the ones
    whose digest is not known.

    Args:
        table: the photos.
        known: what a cache holds of photos: columns id, photo_bytes, photo_mtime_ns and photo_sha256.
        files: of the table.

    Returns:
        The table, and the number of photos that are copies of a file of another split.
    """
    frame = table.frame
    known = known[known["id"] != ""].set_index("id")  # ids of a damaged chunk
    size, mtime_ns = (each.set_axis(frame.index) for each in (files.size, files.mtime_ns))
    candidates = frame.index[(size > 0) & (frame["split"].groupby(size).transform("nunique") > 1)]
    listed = known.reindex(frame["id"][candidates]).set_index(candidates)
    same = (listed["photo_bytes"] == size[candidates]) & (listed["photo_mtime_ns"] == mtime_ns[candidates])
    digest = pd.Series("", frame.index, dtype=object)
    digest[candidates] = listed["photo_sha256"].where(same, "").fillna("")
    unknown = candidates[(digest[candidates] == "").to_numpy()]
    digest[unknown] = files.digests(frame["id"][unknown])
    split = copies_together(frame["split"], digest.where(digest != UNKNOWN, ""))
    count = int((split != frame["split"]).sum())
    return (replace(table, frame=frame.assign(split=split)) if table.split.requested else table), count


def _stat(path: Path) -> tuple[int, int]:
    try:
        stat = path.stat()
    except OSError:
        return -1, -1
    return stat.st_size, stat.st_mtime_ns


def _sha256(path: Path) -> str:
    try:
        with open_regular_file(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return UNKNOWN
