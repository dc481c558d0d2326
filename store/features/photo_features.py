"""Embeddings of photos in the feature cache, keyed by id and by the SHA-256 of the photo's file.

View 0 is the photo itself; views 1.. are augmented views of training photos, whose number is in the column `views`.

Rows are never moved or removed. A photo that is removed from the table keeps its row with `listed` false, and its
embedding is reused if it is added again. Training and evaluation read rows that are listed and encoded.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from statistics import mode
from typing import Any

import numpy as np
import pandas as pd
import zarr
from numpy.typing import ArrayLike, NDArray

from jzi.errors import CacheCorruptError, CacheError
from jzi.store.cache.cache_header import RESERVED_COLUMNS, PhotosHeader, check_photos_header, read_photos_header
from jzi.store.cache.documents import Documents
from jzi.store.cache.layout import (
    COLUMN_CHUNK,
    COLUMNS,
    PHOTO_CHUNK,
    WRITTEN_WITH_EMBEDDING,
    photo_array,
    photo_document,
    photo_documents,
    photo_token_documents,
)
from jzi.store.disk.storage import require_finite, storage_errors
from jzi.store.features.detail_features import PROJECTION, write_projection
from jzi.store.features.photo_tokens import PhotoTokens
from jzi.store.features.projection import Projection
from jzi.store.features.token_info import PhotoTokensInfo

#: Rows in a chunk.
CHUNK = PHOTO_CHUNK

#: Status of a photo.
MISSING, ENCODED, UNREADABLE = 0, 1, 2


class PhotoFeatures:
    """The group `queries` of a feature cache.

    Args:
        documents: metadata of the cache.
        width: number of features.
    """

    def __init__(self, documents: Documents, width: int) -> None:
        self.documents, self.path, self.width = documents, documents.path, width

    def __len__(self) -> int:
        return self.header().rows

    def header(self) -> PhotosHeader:
        """What the cache records about its photos.

        Raises:
            CacheError: the record is damaged.
        """
        return read_photos_header(self.path, self.documents.attribute("queries", "jzi"))

    # Reading

    def column(self, name: str) -> NDArray[Any]:
        """(query,) values of a column, of all rows, listed or not.

        Raises:
            CacheCorruptError: a chunk does not match its checksum.
        """
        return self._column(name, self.header())

    def _column(self, name: str, header: PhotosHeader) -> NDArray[Any]:
        array = self._array(name, header)
        with storage_errors(self.path, f"queries/{name}"):
            return np.asarray(array[:])

    def frame(self) -> pd.DataFrame:
        """The table of listed photos, indexed by their row in the cache; `status` is 1 for encoded photos."""
        header = self.header()
        names = [*COLUMNS, *sorted(header.columns)]
        frame = pd.DataFrame({name: self._column(name, header) for name in names})
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
            CacheCorruptError: a chunk does not match its checksum, its file is gone, or an embedding is not finite.
        """
        rows, array = np.asarray(rows), self._array("embedding")
        count = min(1 + views, array.shape[1])
        embedding = np.empty((len(rows), count, self.width), np.float16)
        block = rows // COLUMN_CHUNK
        with storage_errors(self.path, "queries/embedding"):
            for each in np.unique(block).tolist():  # what is read beside the result is one block
                inside = np.flatnonzero(block == each)
                start, stop = int(rows[inside].min()), int(rows[inside].max()) + 1
                embedding[inside] = np.asarray(array[start:stop, :count])[rows[inside] - start]
                views_of = self.block(start, stop, ["views"])["views"][rows[inside] - start]
                encoded = np.arange(count) <= views_of[:, None]
                require_finite(self.path, "queries/embedding", embedding[inside][encoded])
        return embedding

    def block(self, start: int, stop: int, columns: Iterable[str]) -> dict[str, NDArray[Any]]:
        """Read columns of some rows.

        Args:
            start: first row.
            stop: row after the last one.
            columns: names of columns.

        Returns:
            (row,) values by name.

        Raises:
            CacheCorruptError: a chunk does not match its checksum.
        """
        header, values = self.header(), {}
        for name in columns:
            with storage_errors(self.path, f"queries/{name}"):
                values[name] = np.asarray(self._array(name, header)[start:stop])
        return values

    def encoded_blocks(self, columns: Sequence[str]) -> Iterator[pd.DataFrame]:
        """Columns of `encoded`, some thousand rows at a time, for tables that do not fit into memory.

        Args:
            columns: names of columns.
        """
        for start in range(0, len(self), COLUMN_CHUNK):
            stop = min(start + COLUMN_CHUNK, len(self))
            values = self.block(start, stop, dict.fromkeys([*columns, "listed", "status"]))
            kept = values["listed"].astype(bool) & (values["status"] == ENCODED)
            yield pd.DataFrame({name: values[name] for name in columns}, index=np.arange(start, stop))[kept]

    def encoded_count(self) -> int:
        """Number of listed photos that have an embedding.

        Raises:
            CacheError: there are none.
        """
        count = int(((self.column("status") == ENCODED) & self.column("listed")).sum())
        if not count:
            raise CacheError(f"{self.path} holds no photo: run `jzi encode-queries`")
        return count

    @property
    def view_capacity(self) -> int:
        """Number of augmented views for which the array has space."""
        return self.header().views

    def embedding_of_few(self, rows: NDArray[np.int64], views: int = 0) -> NDArray[np.float16]:
        """Like `embedding`, but reads only the chunks of these rows, and damaged ones are nan."""
        starts, array = rows // CHUNK * CHUNK, self._array("embedding")
        embedding = np.full((len(rows), 1 + views, self.width), np.nan, np.float16)
        for start in np.unique(starts):
            inside = starts == start
            for view in range(1 + views):
                embedding[inside, view] = self._read_chunk(array, int(start), view)[rows[inside] - start]
        return embedding

    def damaged_rows(self) -> NDArray[np.int64]:
        """(row,) rows that are marked as encoded, but whose embedding is damaged or gone."""
        encoded, views = self.column("status") == ENCODED, self.column("views")
        array = self._array("embedding")
        lost = np.zeros(array.shape[0], bool)
        for view in range(array.shape[1]):
            marked = encoded & (views >= view)
            for start in range(0, len(lost), CHUNK):
                window = slice(start, start + CHUNK)
                if marked[window].any():
                    lost[window] |= marked[window] & ~np.isfinite(self._read_chunk(array, start, view)).all(-1)
        return np.flatnonzero(lost)

    @property
    def augmentation(self) -> dict[str, int]:
        """Seed and version of the augmentation, as given to `require_views`; empty if there are no views."""
        return self.header().augmented

    def _read_chunk(self, array: zarr.Array[Any], start: int, view: int) -> NDArray[np.float16]:
        """(row in chunk, feature) of the chunk of the embeddings that starts at row `start`; nan if it is damaged."""
        window = slice(start, min(start + CHUNK, array.shape[0]))
        try:
            with storage_errors(self.path, "queries/embedding"):
                return np.asarray(array[window, view])
        except CacheCorruptError:
            return np.full((window.stop - start, self.width), np.nan, np.float16)

    # Tokens (optional)

    @property
    def has_tokens(self) -> bool:
        """Whether there are arrays for tokens; single photos may still lack theirs."""
        return self.header().photo_tokens is not None

    @property
    def tokens(self) -> PhotoTokens:
        """The tokens of the photos, which refiners read.

        Raises:
            CacheError: the cache holds none.
        """
        header = self.header()
        if header.photo_tokens is None:
            raise CacheError(f"{self.path} holds no tokens of photos: run `jzi encode-queries --tokens`")
        return self._photo_tokens(header)

    def _photo_tokens(self, header: PhotosHeader) -> PhotoTokens:
        assert header.photo_tokens is not None
        arrays = {
            name.removeprefix("queries/"): self.documents.array(name, document, longer=True)
            for name, document in photo_token_documents(header).items()
        }
        return PhotoTokens(arrays, header.photo_tokens, self.path)

    def create_tokens(self, info: PhotoTokensInfo, projection: Projection) -> PhotoTokens:
        """Create the arrays of the tokens; columns of the photo table with their names are dropped.

        Args:
            info: what the header records.
            projection: from the encoder's tokens.

        Raises:
            CacheError: the disk is full.
        """
        header = self.header()
        columns = {name: kind for name, kind in header.columns.items() if name not in RESERVED_COLUMNS}
        if columns != header.columns:
            header = replace(header, columns=columns)
            self._write_header(header)
        header = replace(header, photo_tokens=info)
        for name, document in photo_token_documents(header).items():
            self.documents.delete(name)  # left by an interrupted run, or a column
            self.documents.write(name, document)
        documents = photo_token_documents(header)
        arrays = {name: self.documents.open(f"queries/tokens_{name}", documents[f"queries/tokens_{name}"])
                  for name in PROJECTION}  # fmt: skip
        write_projection(arrays, self.path, "queries/tokens", projection)
        self._write_header(header)  # last: it records that they are complete
        return self._photo_tokens(header)

    # Writing

    def repair(self) -> None:
        """Reset chunks of columns that do not match their checksum; `list_photos` and encoding fill them again."""
        header = self.header()
        arrays = [self._array(name, header) for name in [*COLUMNS, *sorted(header.columns)]]
        for name in [name for name in photo_token_documents(header) if name.endswith("_status")]:
            arrays.append(self.documents.array(name, photo_token_documents(header)[name], longer=True))
        for array in arrays:
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
            frame: as in `jzi.store.photos.photo_table.PhotoTable.frame`.

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
            header = replace(self.header(), rows=start + len(new))
            self._write_documents(header)
            self.documents.open("queries/id", photo_document(header, "id", self.width))[start:] = np.array(new, object)
            self._write_header(header)  # last: it records the number of rows
            row_of |= {name: start + offset for offset, name in enumerate(new)}
        rows = frame["id"].map(row_of).to_numpy(np.int64)
        for name in ("latitude", "longitude", "split", "path"):
            self._update(name, rows, frame[name])
        for name in frame.columns:
            if name not in COLUMNS and name not in ("photo", "embedding", "line", *RESERVED_COLUMNS):
                self._update_extra(str(name), rows, frame[name])
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
        header = self.header()
        with storage_errors(self.path, "queries"):
            views = self._array("views", header)
            outdated = header.augmented not in ({}, augmentation) and bool(np.asarray(views[:]).any())
            if outdated:
                views[:] = np.zeros(header.rows, np.uint8)
        changed = replace(header, views=max(header.views, count), augmented=dict(augmentation))
        if changed != header:
            self._write_documents(changed)
            self._write_header(changed)
        return outdated

    def write(
        self,
        rows: NDArray[np.int64],
        values: dict[str, ArrayLike],
        embedding: NDArray[Any] | None = None,
        tokens: Sequence[NDArray[np.int8] | None] | None = None,
    ) -> None:
        """Write rows of one chunk: the embeddings, then the columns, the status last.

        No other process may write to that chunk. Tokens of a photo whose file has changed are no longer valid, unless
        they are written too.

        Args:
            rows: (row,) rows of the cache, all in one chunk.
            values: (row,) values of any of photo_sha256, photo_bytes, photo_mtime_ns, views and status.
            embedding: (row, feature) of the photos or (row, 1 + views, feature), nan where a photo lacks a view; None
                to write columns only.
            tokens: (token row, token col, feature) int8 of each photo, None for those without; None if there are none.
        """
        self.documents.check_lock()
        start, header = int(rows[0]) // CHUNK * CHUNK, self.header()
        window = slice(start, min(start + CHUNK, header.rows))
        if header.photo_tokens is not None:
            self._write_tokens(rows, tokens, values.get("photo_sha256"), header)
        with storage_errors(self.path, "queries"):
            if embedding is not None:
                array = self._array("embedding", header)
                views = embedding if embedding.ndim == 3 else embedding[:, None]
                for view in range(views.shape[1]):
                    present = ~np.isnan(views[:, view]).all(-1)
                    if view == 0 or present.any():
                        block = self._read_chunk(array, start, view)
                        block[rows[present] - start] = views[present, view]
                        array[window, view] = block
            for name in WRITTEN_WITH_EMBEDDING:
                if name in values:
                    array = self._array(name, header)
                    column = np.asarray(array[window])
                    column[rows - start] = np.asarray(values[name], dtype=column.dtype)
                    array[window] = column

    def restore_digests(self, rows: NDArray[np.int64], sha256: ArrayLike) -> None:
        """Record the digests of photos again, which a damaged chunk held; embeddings and tokens are of these files.

        Args:
            rows: (row,) rows of the cache.
            sha256: (row,) SHA-256 of each file, in hexadecimal.
        """
        self.documents.check_lock()
        self._update("photo_sha256", rows, sha256)

    def _write_tokens(
        self,
        rows: NDArray[np.int64],
        tokens: Sequence[NDArray[np.int8] | None] | None,
        sha256: ArrayLike | None,
        header: PhotosHeader,
    ) -> None:
        stored = self._photo_tokens(header)
        present = [] if tokens is None else [each for each in tokens if each is not None]
        has = np.zeros(len(rows), bool) if tokens is None else np.array([each is not None for each in tokens])
        stale = np.zeros(len(rows), bool) if sha256 is None else self._column("photo_sha256", header)[rows] != sha256
        if (stale & ~has).any():
            stored.mark(rows[stale & ~has], 0)
        if present:
            stored.write(rows[has], present)
            stored.mark(rows[has], 1)

    def _update(self, name: str, rows: NDArray[np.int64], values: Any) -> None:
        old = self.column(name)
        new = old.copy()
        new[rows] = np.asarray(values, dtype=object if old.dtype.kind in "OT" else old.dtype)
        if not pd.Series(old).equals(pd.Series(new)):
            self._array(name)[: len(new)] = new

    def _update_extra(self, name: str, rows: NDArray[np.int64], values: pd.Series) -> None:
        kind: Any = "float64" if pd.api.types.is_numeric_dtype(values) else "string"
        values = values if kind == "float64" else values.astype("string").fillna("")
        header = self.header()
        if header.columns.get(name) == kind:
            self._update(name, rows, values.to_numpy(float if kind == "float64" else np.dtypes.StringDType()))
            return
        others = replace(header, columns={key: each for key, each in header.columns.items() if key != name})
        extended = replace(others, columns=dict(sorted({**others.columns, name: kind}.items())))
        check_photos_header(extended)
        if others != header:
            self._write_header(others)
        self.documents.delete(photo_array(name))  # of the other type, or left by an interrupted run
        document = photo_document(extended, name, self.width)
        self.documents.write(photo_array(name), document)
        column = np.full(header.rows, np.nan) if kind == "float64" else np.full(header.rows, "", object)
        column[rows] = values.to_numpy(column.dtype)
        self.documents.open(photo_array(name), document)[:] = column
        self._write_header(extended)

    # Metadata

    def arrays(self) -> dict[str, zarr.Array[Any]]:
        """All arrays by name, such as "queries/id".

        Raises:
            CacheError: the metadata is damaged.
        """
        header = self.header()
        names = [*COLUMNS, *header.columns, "embedding"]
        arrays = {photo_array(name): self._array(name, header) for name in sorted(names)}
        for name, document in photo_token_documents(header).items():
            arrays[name] = self.documents.array(name, document, longer=True)
        return arrays

    def write_layout(self) -> None:
        """Write the documents that are missing or damaged; chunks are not changed."""
        try:
            header = self.header()
        except CacheError:
            header = self._lost_header()
        self._write_documents(header)
        if self.documents.difference("queries", photo_documents(header, self.width)["queries"]):
            self._write_header(header)

    def convert(self) -> None:
        """Write the header of a cache of format 1, whose arrays had the same layout."""
        columns, augmented = (self.documents.attribute("queries", key) for key in ("columns", "augmented"))
        kinds = {name: self._stored(name).get("data_type") for name in columns or [] if isinstance(name, str)}
        header = PhotosHeader(
            rows=self._size("id", 0),
            views=self._size("embedding", 1) - 1,
            columns={name: kind for name, kind in kinds.items() if kind in ("string", "float64")},
            augmented=augmented or {},
        )
        check_photos_header(header)
        self._write_header(header)

    def consolidated_header(self) -> PhotosHeader | None:
        """The header in the consolidated metadata, which may be outdated; None if it is missing or damaged."""
        try:
            members = self.documents.read("")["consolidated_metadata"]["metadata"]  # type: ignore[index]
            return read_photos_header(self.path, members["queries"]["attributes"]["jzi"])
        except (CacheError, KeyError, TypeError):
            return None

    def _lost_header(self) -> PhotosHeader:
        """The header of the consolidated metadata, with the sizes of most arrays."""
        header = self.consolidated_header() or PhotosHeader(augmented={"lost": 1})  # no seed: views are encoded again
        header = replace(header, rows=mode(self._size(name, 0) for name in COLUMNS))
        header = replace(header, views=max(header.views, self._size("embedding", 1) - 1))
        check_photos_header(header)
        return header

    def _stored(self, name: str) -> dict[str, Any]:
        return self.documents.read(photo_array(name)) or {}

    def _size(self, name: str, axis: int) -> int:
        """Length of an array on disk along an axis; 0 if its document is damaged."""
        try:
            return int(self._stored(name)["shape"][axis])
        except (CacheError, KeyError, TypeError, ValueError, IndexError, OverflowError):
            return 0

    def _write_documents(self, header: PhotosHeader) -> None:
        for name, document in photo_documents(header, self.width).items():
            if name != "queries" and self.documents.difference(name, document) is not None:
                self.documents.write(name, document)

    def _write_header(self, header: PhotosHeader) -> None:
        check_photos_header(header)
        self.documents.write("queries", photo_documents(header, self.width)["queries"])

    def _array(self, name: str, header: PhotosHeader | None = None) -> zarr.Array[Any]:
        """An array of the photos; its metadata is read, and so is the header if it is not given."""
        header = header or self.header()
        if name != "embedding" and name not in COLUMNS and name not in header.columns:
            raise CacheError(f"{self.path} has no column {name!r} of photos: run `jzi encode-queries`")
        return self.documents.array(photo_array(name), photo_document(header, name, self.width), longer=True)
