"""The photos' side of the feature cache: embeddings keyed by id and by a fingerprint of the photo's bytes (DESIGN 4).

View 0 is the plain photo; views 1.. are augmented ones, of which training photos have as many as the column `views`
says.

Rows are never moved or removed. A photo that leaves the table keeps its row with `listed` false, and is reused when it
comes back; stage two sees listed and encoded rows only.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import zarr
from numpy.typing import ArrayLike, NDArray

from jzi.errors import CacheCorruptError, CacheError
from jzi.store.storage import COMPRESSORS, corrupt, storage_errors

#: Rows to a chunk: 768 features in float16 make 393 kB, as much as a chunk of 16 x 16 tiles.
CHUNK = 256

#: Status of a photo.
MISSING, ENCODED, UNREADABLE = 0, 1, 2

#: The columns that every cache has, and what stands in a row that was never written.
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
    """The group `queries` of a feature cache."""

    def __init__(self, group: zarr.Group, path: str) -> None:
        self.group = group
        self.path = path

    @staticmethod
    def require_arrays(group: zarr.Group, width: int) -> None:
        """Create the arrays that are not there, with no rows."""
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
        """(query,) values of a column of every row, listed or not."""
        with storage_errors(self.path, f"queries/{name}"):
            return np.asarray(self._array(name)[: len(self)])

    def frame(self) -> pd.DataFrame:
        """What is known of every listed row, indexed by its row in the cache; `status` 1 says encoded."""
        names = [*_COLUMNS, *self._extra_columns()]
        frame = pd.DataFrame({name: self.column(name) for name in names})
        return frame[frame.pop("listed").to_numpy(bool)]

    def encoded(self) -> pd.DataFrame:
        """The listed rows that have an embedding.

        Raises:
            CacheError: there is none.
        """
        frame = self.frame()
        frame = frame[frame["status"] == ENCODED]
        if frame.empty:
            raise CacheError(f"{self.path} holds no photo: run `jzi encode-queries`")
        return frame

    def embedding(self, rows: ArrayLike, views: int = 0) -> NDArray[np.float16]:
        """(row, 1 + views, feature) of the given rows of the cache; nan where a row has not so many augmented views.

        Raises:
            CacheCorruptError: a chunk does not match its checksum, or has gone.
        """
        rows = np.asarray(rows)
        with storage_errors(self.path, "queries/embedding"):
            embedding: NDArray[np.float16] = np.asarray(self._array("embedding")[: len(self), : 1 + views])[rows]
        encoded = np.arange(embedding.shape[1]) <= self.column("views")[rows, None]
        if np.isnan(embedding[..., 0][encoded]).any():  # a chunk that is gone is nan in every feature
            raise corrupt(self.path, "queries/embedding", "a chunk is gone")
        return embedding

    @property
    def view_capacity(self) -> int:
        """How many augmented views a row has room for."""
        return self._array("embedding").shape[1] - 1

    def embedding_of_few(self, rows: NDArray[np.int64], views: int = 0) -> NDArray[np.float16]:
        """As `embedding`, reading only the chunks of the given rows; nan where one is damaged too."""
        starts = rows // CHUNK * CHUNK
        embedding = np.full((len(rows), 1 + views, self._array("embedding").shape[-1]), np.nan, np.float16)
        for start in np.unique(starts):
            inside = starts == start
            for view in range(1 + views):
                embedding[inside, view] = self._read_chunk(int(start), view)[rows[inside] - start]
        return embedding

    def damaged_rows(self) -> NDArray[np.int64]:
        """Rows that are marked as encoded and of which an embedding is damaged or gone."""
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
        """What the augmented views were made from, as `require_views` was told; empty where there are none."""
        return dict(self._queries.attrs.get("augmented", {}))  # type: ignore[arg-type]

    def _read_chunk(self, start: int, view: int) -> NDArray[np.float16]:
        """(row in chunk, feature) of the chunk that begins with row `start`; nan where it is damaged."""
        window = slice(start, min(start + CHUNK, len(self)))
        try:
            with storage_errors(self.path, "queries/embedding"):
                return np.asarray(self._array("embedding")[window, view])
        except CacheCorruptError:
            return np.full((window.stop - start, self._array("embedding").shape[-1]), np.nan, np.float16)

    # Writing

    def repair(self) -> None:
        """Empty the chunks of columns that do not match their checksum: `list_photos` and encoding fill them anew."""
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
        """Make the cache list exactly the photos of a query table, in rows of their own.

        Known ids keep their row and embedding; new ids are appended; what the table says of a photo is brought up to
        date. Nothing is written where nothing has changed.

        Args:
            frame: as `jzi.store.photo_table.PhotoTable.frame`.

        Returns:
            (photo,) the row of each photo in the cache.
        """
        with storage_errors(self.path, "queries"):
            return self._list_photos(frame)

    def _list_photos(self, frame: pd.DataFrame) -> NDArray[np.int64]:
        known = {name: row for row, name in enumerate(self.column("id")) if name}
        new = [name for name in frame["id"] if name not in known]
        start = len(self)
        if new:
            total = start + len(new)
            for name in ["embedding", *_COLUMNS, *self._extra_columns()]:
                if name != "id":
                    array = self._array(name)
                    array.resize((total, *array.shape[1:]))
            self._array("id").resize((total,))  # last: its length is the table's
            self._array("id")[start:] = np.array(new, dtype=object)
            known |= {name: start + offset for offset, name in enumerate(new)}
        rows = frame["id"].map(known).to_numpy(np.int64)
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
        """Make room for augmented views made with a seed and an augmentation version.

        Views of another augmentation are forgotten.

        Returns:
            whether there were any of another augmentation.
        """
        with storage_errors(self.path, "queries"):
            array, views = self._array("embedding"), self._array("views")
            others = self.augmentation not in ({}, augmentation) and bool(np.asarray(views[:]).any())
            if others:
                views[:] = np.zeros(len(self), np.uint8)
            if array.shape[1] < 1 + count:
                array.resize((array.shape[0], 1 + count, array.shape[2]))
            if self.augmentation != augmentation:
                self._queries.update_attributes({"augmented": augmentation})
        return others

    def write(
        self, rows: NDArray[np.int64], values: dict[str, ArrayLike], embedding: NDArray[Any] | None = None
    ) -> None:
        """Write rows of ONE chunk, which the caller alone writes: the embeddings first, then columns, the status last.

        Args:
            rows: (row,) of the cache.
            values: any of photo_sha256, photo_bytes, photo_mtime_ns, views and status, (row,) each.
            embedding: (row, feature) of the plain photo or (row, 1 + views, feature), nan where there is no such view;
                None to write columns only.
        """
        start = int(rows[0]) // CHUNK * CHUNK
        window = slice(start, min(start + CHUNK, len(self)))
        with storage_errors(self.path, "queries"):
            if embedding is not None:
                given = embedding if embedding.ndim == 3 else embedding[:, None]
                for view in range(given.shape[1]):
                    there = ~np.isnan(given[:, view]).all(-1)
                    if view == 0 or there.any():
                        block = self._read_chunk(start, view)
                        block[rows[there] - start] = given[there, view]
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
        wanted = np.dtype("float64") if numeric else np.dtypes.StringDType()
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
        self._update(name, rows, values if numeric else values.astype("string").fillna("").to_numpy(wanted))

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
