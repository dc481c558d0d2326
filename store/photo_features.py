"""Embeddings of photos in the feature cache, keyed by id and by the SHA-256 of the photo's file.

View 0 is the photo itself; views 1.. are augmented views of training photos, whose number is in the column `views`.

Rows are never moved or removed. A photo that is removed from the table keeps its row with `listed` false, and its
embedding is reused if it is added again. Training and evaluation read rows that are listed and encoded.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import zarr
from numpy.typing import ArrayLike, NDArray

from jzi.errors import CacheCorruptError, CacheError
from jzi.store.storage import COMPRESSORS, corrupt, storage_errors

#: Rows in a chunk: with 768 features in float16 it has 393 kB, like a chunk of 16 x 16 tiles.
CHUNK = 256

#: Status of a photo.
MISSING, ENCODED, UNREADABLE = 0, 1, 2

#: Type and fill value of the columns that every cache has.
_COLUMNS: dict[str, tuple[Any, Any]] = {
    "id": (str, ""),
    "latitude": ("float64", np.nan),
    "longitude": ("float64", np.nan),
    "split": (str, ""),
    "path": (str, ""),
    "listed": (bool, False),
    "status": ("uint8", MISSING),
    "photo_sha256": (str, ""),
    "photo_bytes": ("int64", -1),
    "photo_mtime_ns": ("int64", -1),
    "views": ("uint8", 0),
}
_UNITS = {"latitude": "degrees_north", "longitude": "degrees_east"}
_WRITTEN_WITH_EMBEDDING = ("photo_sha256", "photo_bytes", "photo_mtime_ns", "views", "status")


class PhotoFeatures:
    """The group `queries` of a feature cache.

    Args:
        group: the group of the cache.
        path: path or URL of the cache, for error messages.
    """

    def __init__(self, group: zarr.Group, path: str) -> None:
        self.group = group
        self.path = path

    @staticmethod
    def require_arrays(group: zarr.Group, width: int) -> None:
        """Create the arrays that do not exist, with no rows.

        Args:
            group: the group of the cache, open for writing.
            width: number of features.
        """
        if "queries/embedding" not in group:
            group.create_array(
                "queries/embedding",
                shape=(0, 1, width),
                chunks=(CHUNK, 1, width),
                dtype="float16",
                fill_value=np.nan,
                dimension_names=("query", "view", "feature"),
                attributes={"coordinates": "id latitude longitude split"},
                compressors=COMPRESSORS,
            )
        for name, (dtype, fill) in _COLUMNS.items():
            if f"queries/{name}" not in group:
                group.create_array(
                    f"queries/{name}",
                    shape=(0,),
                    chunks=(CHUNK,) if name in _WRITTEN_WITH_EMBEDDING else (CHUNK * 64,),
                    dtype=dtype,
                    fill_value=fill,
                    dimension_names=("query",),
                    compressors=COMPRESSORS,
                    attributes={"units": _UNITS[name]} if name in _UNITS else {},
                )

    def __len__(self) -> int:
        return self._array("id").shape[0]

    # Reading

    def column(self, name: str) -> NDArray[Any]:
        """(query,) values of a column, of all rows, listed or not.

        Raises:
            CacheCorruptError: a chunk does not match its checksum.
        """
        with storage_errors(self.path, f"queries/{name}"):
            return np.asarray(self._array(name)[: len(self)])

    def frame(self) -> pd.DataFrame:
        """The table of listed photos, indexed by their row in the cache; `status` is 1 for encoded photos."""
        names = [*_COLUMNS, *self._extra_columns()]
        frame = pd.DataFrame({name: self.column(name) for name in names})
        return frame[frame.pop("listed").to_numpy(bool)]

    def encoded(self) -> pd.DataFrame:
        """The rows of `frame` that have an embedding.

        Raises:
            CacheError: there are none.
        """
        frame = self.frame()
        frame = frame[frame["status"] == ENCODED]
        if frame.empty:
            raise CacheError(f"{self.path} holds no photo: run `jzi encode-queries`")
        return frame

    def embedding(self, rows: ArrayLike, views: int = 0) -> NDArray[np.float16]:
        """Read embeddings of photos and of their augmented views.

        Args:
            rows: (row,) rows of the cache.
            views: number of augmented views to read.

        Returns:
            (row, 1 + views, feature); nan where a photo has fewer views.

        Raises:
            CacheCorruptError: a chunk does not match its checksum, or its file is gone.
        """
        rows = np.asarray(rows)
        with storage_errors(self.path, "queries/embedding"):
            embedding: NDArray[np.float16] = np.asarray(self._array("embedding")[: len(self), : 1 + views])[rows]
        encoded = np.arange(embedding.shape[1]) <= self.column("views")[rows, None]
        if np.isnan(embedding[..., 0][encoded]).any():  # a missing chunk is nan in every feature
            raise corrupt(self.path, "queries/embedding", "a chunk is gone")
        return embedding

    @property
    def view_capacity(self) -> int:
        """Number of augmented views for which the array has space."""
        return self._array("embedding").shape[1] - 1

    def embedding_of_few(self, rows: NDArray[np.int64], views: int = 0) -> NDArray[np.float16]:
        """Like `embedding`, but reads only the chunks of these rows, and damaged ones are nan."""
        starts = rows // CHUNK * CHUNK
        embedding = np.full((len(rows), 1 + views, self._array("embedding").shape[-1]), np.nan, np.float16)
        for start in np.unique(starts):
            inside = starts == start
            for view in range(1 + views):
                embedding[inside, view] = self._read_chunk(int(start), view)[rows[inside] - start]
        return embedding

    def damaged_rows(self) -> NDArray[np.int64]:
        """(row,) rows that are marked as encoded, but whose embedding is damaged or gone."""
        encoded, views = self.column("status") == ENCODED, self.column("views")
        lost = np.zeros(len(self), bool)
        for view in range(self._array("embedding").shape[1]):
            marked = encoded & (views >= view)
            for start in range(0, len(self), CHUNK):
                window = slice(start, start + CHUNK)
                if marked[window].any():
                    lost[window] |= marked[window] & np.isnan(self._read_chunk(start, view)).any(-1)
        return np.flatnonzero(lost)

    @property
    def augmentation(self) -> dict[str, int]:
        """Seed and version of the augmentation, as given to `require_views`; empty if there are no views."""
        return dict(self._queries.attrs.get("augmented", {}))  # type: ignore[arg-type]

    def _read_chunk(self, start: int, view: int) -> NDArray[np.float16]:
        """(row in chunk, feature) of the chunk that starts at row `start`; nan if it is damaged."""
        window = slice(start, min(start + CHUNK, len(self)))
        try:
            with storage_errors(self.path, "queries/embedding"):
                return np.asarray(self._array("embedding")[window, view])
        except CacheCorruptError:
            return np.full((window.stop - start, self._array("embedding").shape[-1]), np.nan, np.float16)

    # Writing

    def repair(self) -> None:
        """Reset chunks of columns that do not match their checksum; `list_photos` and encoding fill them again."""
        for name in [*_COLUMNS, *self._extra_columns()]:
            array = self._array(name)
            if self._readable(array, slice(None)):
                continue
            for start in range(0, array.shape[0], array.chunks[0]):
                window = slice(start, start + array.chunks[0])
                if not self._readable(array, window):
                    array[window] = array.fill_value

    def _readable(self, array: zarr.Array[Any], window: slice) -> bool:
        try:
            with storage_errors(self.path, "queries"):
                array[window]
        except CacheCorruptError:
            return False
        return True

    def list_photos(self, frame: pd.DataFrame) -> NDArray[np.int64]:
        """List exactly the photos of a table in the cache.

        Ids that the cache has keep their row and embedding, new ids are appended, and columns are updated. Nothing is
        written if nothing has changed.

        Args:
            frame: as in `jzi.store.photo_table.PhotoTable.frame`.

        Returns:
            (photo,) row of each photo in the cache.
        """
        with storage_errors(self.path, "queries"):
            return self._list_photos(frame)

    def _list_photos(self, frame: pd.DataFrame) -> NDArray[np.int64]:
        row_of = {name: row for row, name in enumerate(self.column("id")) if name}
        new = [name for name in frame["id"] if name not in row_of]
        start = len(self)
        if new:
            total = start + len(new)
            for name in ["embedding", *_COLUMNS, *self._extra_columns()]:
                if name != "id":
                    array = self._array(name)
                    array.resize((total, *array.shape[1:]))
            self._array("id").resize((total,))  # last: its length is that of the table
            self._array("id")[start:] = np.array(new, dtype=object)
            row_of |= {name: start + offset for offset, name in enumerate(new)}
        rows = frame["id"].map(row_of).to_numpy(np.int64)
        for name in ("latitude", "longitude", "split", "path"):
            self._update(name, rows, frame[name])
        extra = [
            str(name) for name in frame.columns if name not in _COLUMNS and name not in ("photo", "embedding", "line")
        ]
        for name in extra:
            self._update_extra(name, rows, frame[name])
        if set(extra) - set(self._extra_columns()):
            self._queries.update_attributes({"columns": sorted({*extra, *self._extra_columns()})})
        self._update("listed", np.arange(len(self)), np.isin(np.arange(len(self)), rows))
        return rows

    def require_views(self, count: int, augmentation: dict[str, int]) -> bool:
        """Allocate space for augmented views; views of another augmentation are discarded.

        Args:
            count: number of views of a photo.
            augmentation: seed and augmentation version.

        Returns:
            whether views were discarded.
        """
        with storage_errors(self.path, "queries"):
            array, views = self._array("embedding"), self._array("views")
            outdated = self.augmentation not in ({}, augmentation) and bool(np.asarray(views[:]).any())
            if outdated:
                views[:] = np.zeros(len(self), np.uint8)
            if array.shape[1] < 1 + count:
                array.resize((array.shape[0], 1 + count, array.shape[2]))
            if self.augmentation != augmentation:
                self._queries.update_attributes({"augmented": augmentation})
        return outdated

    def write(
        self, rows: NDArray[np.int64], values: dict[str, ArrayLike], embedding: NDArray[Any] | None = None
    ) -> None:
        """Write rows of one chunk: the embeddings, then the columns, the status last.

        No other process may write to that chunk.

        Args:
            rows: (row,) rows of the cache, all in one chunk.
            values: (row,) values of any of photo_sha256, photo_bytes, photo_mtime_ns, views and status.
            embedding: (row, feature) of the photos or (row, 1 + views, feature), nan where a photo lacks a view; None
                to write columns only.
        """
        start = int(rows[0]) // CHUNK * CHUNK
        window = slice(start, min(start + CHUNK, len(self)))
        with storage_errors(self.path, "queries"):
            if embedding is not None:
                views = embedding if embedding.ndim == 3 else embedding[:, None]
                for view in range(views.shape[1]):
                    present = ~np.isnan(views[:, view]).all(-1)
                    if view == 0 or present.any():
                        block = self._read_chunk(start, view)
                        block[rows[present] - start] = views[present, view]
                        self._array("embedding")[window, view] = block
            for name in _WRITTEN_WITH_EMBEDDING:
                if name in values:
                    column = np.asarray(self._array(name)[window])
                    column[rows - start] = np.asarray(values[name], dtype=column.dtype)
                    self._array(name)[window] = column

    def _update(self, name: str, rows: NDArray[np.int64], values: Any) -> None:
        old = self.column(name)
        new = old.copy()
        new[rows] = np.asarray(values, dtype=object if old.dtype.kind in "OT" else old.dtype)
        if not pd.Series(old).equals(pd.Series(new)):
            self._array(name)[: len(new)] = new

    def _update_extra(self, name: str, rows: NDArray[np.int64], values: pd.Series) -> None:
        numeric = pd.api.types.is_numeric_dtype(values)
        full = f"queries/{name}"
        if full not in self.group or (self._array(name).dtype.kind == "f") != numeric:
            self.group.create_array(
                full,
                shape=(len(self),),
                chunks=(CHUNK * 64,),
                dtype="float64" if numeric else str,
                fill_value=np.nan if numeric else "",
                dimension_names=("query",),
                compressors=COMPRESSORS,
                overwrite=True,
            )
        self._update(
            name, rows, values if numeric else values.astype("string").fillna("").to_numpy(np.dtypes.StringDType())
        )

    def _extra_columns(self) -> list[str]:
        return list(self._queries.attrs.get("columns", []))  # type: ignore[arg-type]

    @property
    def _queries(self) -> zarr.Group:
        queries = self.group["queries"]
        assert isinstance(queries, zarr.Group)
        return queries

    def _array(self, name: str) -> zarr.Array[Any]:
        array = self.group[f"queries/{name}"]
        assert isinstance(array, zarr.Array)
        return array
