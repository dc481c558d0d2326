"""The feature cache: embeddings of map tiles, cells and photos in one Zarr v3 group.

A cache belongs to one encoder, pyramid and imagery. Embeddings of tiles are keyed by (level, row, col), those of photos
by id (`jzi.store.photo_features`). Chunks are written whole, the embedding before its status: a killed run loses at
most the chunks being written, and no status refers to an embedding that was not written.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import zarr
from numpy.typing import NDArray
from pyproj import CRS
from zarr.errors import ContainsArrayError

from jzi.errors import CacheCorruptError, CacheError, CacheMismatchError
from jzi.store.cell_features import CellFeatures
from jzi.store.info import EncoderInfo, ImageryInfo
from jzi.store.map_embeddings import ENCODED, MISSING, NODATA, MapEmbeddings
from jzi.store.photo_features import PhotoFeatures
from jzi.store.plain import plain
from jzi.store.pyramid import Pyramid, TileKey
from jzi.store.storage import COMPRESSORS, corrupt, exists, is_url, storage_errors, zarr_store
from jzi.store.token_features import TokenFeatures, has_tokens, tokens_name
from jzi.version import __version__

if TYPE_CHECKING:
    from xarray import DataTree

FORMAT = 1

#: Side of the largest chunk, in tiles.
MAX_CHUNK = 16


class FeatureCache:
    """Embeddings of every tile of a pyramid and of the photos, in one Zarr group.

    `FeatureCache.open` opens a cache, `FeatureCache.create` creates one; `FeatureCache.open_or_create` reuses a
    matching cache, creates one if there is none, and refuses one that does not match.
    """

    def __init__(self, group: zarr.Group, path: str) -> None:
        self.group = group
        self.path = path
        info = group.attrs.get("jzi")
        if not isinstance(info, dict):
            raise CacheError(f"{path} is a Zarr group but not a jzi feature cache: give another path")
        if info.get("format") != FORMAT:
            raise CacheError(
                f"{path} has cache format {info.get('format')}, but jzi {__version__} reads format {FORMAT}: encode "
                "again with another cache.path"
            )
        self.pyramid = Pyramid(**info["pyramid"])
        self.encoder = EncoderInfo(**info["encoder"])
        self.imagery = ImageryInfo(**info["imagery"]) if info.get("imagery") else None

    def __repr__(self) -> str:
        return f"FeatureCache({self.path!r}, {self.encoder.name}, {self.pyramid.tile_count} tiles)"

    # Creating and opening

    @classmethod
    def create(
        cls, path: str | Path, pyramid: Pyramid, encoder: EncoderInfo, imagery: ImageryInfo | None = None
    ) -> FeatureCache:
        """Create an empty cache at a path or URL.

        Raises:
            CacheError: the path exists or cannot be written.
        """
        if exists(path):
            raise CacheError(f"{path} exists already: open it, or give another path")
        with storage_errors(path):
            info: dict[str, Any] = {
                "format": FORMAT,
                "version": __version__,
                "pyramid": plain(pyramid),
                "encoder": plain(encoder),
                "imagery": plain(imagery),
            }
            # Attributes are written with the group: a killed process leaves nothing or a cache that `open` completes
            group = zarr.open_group(zarr_store(path), mode="w-", zarr_format=3, attributes={"jzi": info})
            cache = cls(group, str(path))
            cache._require_arrays()
            cache.consolidate()
        return cache

    @classmethod
    def open(cls, path: str | Path, mode: Literal["r", "r+"] = "r") -> FeatureCache:
        """Open the cache at a path or URL, to read ("r") or to read and write ("r+").

        Raises:
            CacheError: there is no cache, or it has another format.
        """
        if not exists(path):
            raise CacheError(
                f"there is no feature cache at {path}: create it with `jzi encode-map` or `jzi encode-queries`"
            )
        with storage_errors(path):
            try:
                group = zarr.open_group(zarr_store(path), mode=mode, use_consolidated=False)
            except (FileNotFoundError, ValueError) as error:
                raise CacheError(f"{path} is not a feature cache ({error}): give another path") from error
            cache = cls(group, str(path))
            if mode == "r+":
                cache._require_arrays()
        return cache

    @classmethod
    def open_or_create(
        cls, path: str | Path, pyramid: Pyramid, encoder: EncoderInfo, imagery: ImageryInfo | None = None
    ) -> FeatureCache:
        """Open the cache at `path` for writing, or create it.

        Args:
            path: path or URL.
            pyramid: geometry of the area.
            encoder: the encoder of all embeddings.
            imagery: the imagery of the map; None to write photos only. It is recorded the first time it is given.

        Raises:
            CacheMismatchError: the cache belongs to another encoder, pyramid or imagery; it is not changed.
        """
        if not exists(path):
            return cls.create(path, pyramid, encoder, imagery)
        cache = cls.open(path, "r+")
        cache.check(pyramid=pyramid, encoder=encoder, imagery=imagery)
        if imagery and imagery != cache.imagery:
            cache._set_imagery(imagery)
        return cache

    def check(
        self,
        *,
        pyramid: Pyramid | None = None,
        encoder: EncoderInfo | None = None,
        imagery: ImageryInfo | None = None,
        hint: str = "give another cache.path (`--set cache.path=other.zarr`), or delete the cache to encode again",
    ) -> None:
        """Check that the cache belongs to a pyramid, an encoder and imagery; None is not checked.

        Args:
            pyramid: geometry of the area.
            encoder: compared by its fingerprint.
            imagery: compared by its fingerprint; not checked if the cache has no map yet.
            hint: what to do, for the error message.

        Raises:
            CacheMismatchError: one of them differs.
        """
        if encoder and encoder.fingerprint != self.encoder.fingerprint:
            raise CacheMismatchError(
                f"{self.path} was filled by another encoder ({self.encoder.label}, not {encoder.label}): {hint}"
            )
        if pyramid and pyramid != self.pyramid:
            actual, expected = plain(self.pyramid), plain(pyramid)
            differences = ", ".join(
                f"{key} {actual[key]} not {expected[key]}" for key in actual if actual[key] != expected[key]
            )
            raise CacheMismatchError(f"{self.path} belongs to another pyramid ({differences}): {hint}")
        if imagery and self.imagery and imagery.fingerprint != self.imagery.fingerprint:
            raise CacheMismatchError(
                f"{self.path} was made from other imagery ({self.imagery.label}, not {imagery.label}): {hint}"
            )

    def _set_imagery(self, imagery: ImageryInfo) -> None:
        with storage_errors(self.path):
            self.group.update_attributes({"jzi": {**self.group.attrs["jzi"], "imagery": plain(imagery)}})  # type: ignore[dict-item]
        self.imagery = imagery
        self.consolidate()  # updating attributes drops the consolidated metadata

    def consolidate(self) -> None:
        """Consolidate the metadata, so that xarray opens the cache with one request, also over HTTP.

        Nothing is written if the consolidated metadata is up to date.
        """
        with storage_errors(self.path):
            if not self._is_consolidated():
                # Zarr warns that other implementations may not read consolidated metadata; they can open it without.
                zarr.consolidate_metadata(self.group.store)

    def _is_consolidated(self) -> bool:
        """Whether the consolidated metadata has all photos, views, columns and patch tokens."""
        try:
            consolidated = zarr.open_group(self.group.store, mode="r", use_consolidated=True)
            shape, attributes = consolidated["queries/embedding"].shape, dict(consolidated["queries"].attrs)  # type: ignore[union-attr]
        except (ValueError, KeyError):
            return False
        if has_tokens(consolidated, self.pyramid) != has_tokens(self.group, self.pyramid):
            return False
        return shape == self.array("queries/embedding").shape and attributes == dict(self.group["queries"].attrs)

    # Layout

    @cached_property
    def block_level(self) -> int:
        """The level from which on no chunk spans two subtrees.

        Processes that write the subtrees of different tiles of this level share no chunk and need no lock.
        """
        depth = 0
        while self.pyramid.grid ** (depth + 1) <= MAX_CHUNK:
            depth += 1
        return max(0, self.pyramid.levels - 1 - depth)

    def chunk_side(self, level: int) -> int:
        """Side of a chunk in tiles: the extent of one tile of `block_level`; above that level up to `MAX_CHUNK`."""
        g = self.pyramid.grid
        if level >= self.block_level:
            return self.pyramid.tiles_per_side(level - self.block_level)
        side = 1
        while side * g <= min(MAX_CHUNK, self.pyramid.tiles_per_side(level)):
            side *= g
        return side

    def _require_arrays(self) -> None:
        """Create the arrays that do not exist, also after an interrupted `create`."""
        for level in range(self.pyramid.levels + 1):
            n, chunk = self.pyramid.tiles_per_side(level), self.chunk_side(level)
            encoded = level < self.pyramid.levels  # terminal cells have a status, but no embedding
            grid_mapping = {"grid_mapping": "spatial_ref", "coordinates": "x y spatial_ref"}
            self._require(f"map/{level}/status", (n, n), (chunk, chunk), "uint8", ("row", "col"), 0, grid_mapping)
            if encoded:
                shape, chunks = (n, n, self.encoder.width), (chunk, chunk, self.encoder.width)
                self._require(
                    f"map/{level}/embedding", shape, chunks, "float16", ("row", "col", "feature"), np.nan, grid_mapping
                )
            if f"map/{level}/spatial_ref" not in self.group:
                x, y = self.pyramid.tile_centers(level, np.arange(n), np.arange(n))
                for name, values, dimension in (("x", x, "col"), ("y", y, "row")):
                    attrs = {"standard_name": f"projection_{name}_coordinate", "units": "m"}
                    self._require(f"map/{level}/{name}", (n,), (n,), "float64", (dimension,), 0.0, attrs)[:] = values
                cf = CRS.from_user_input(self.pyramid.crs).to_cf()
                self._require(f"map/{level}/spatial_ref", (), (), "int64", (), 0, cf)
        PhotoFeatures.require_arrays(self.group, self.encoder.width)

    def _require(
        self,
        name: str,
        shape: tuple[int, ...],
        chunks: tuple[int, ...],
        dtype: str,
        dimensions: tuple[str, ...],
        fill: float,
        attributes: dict[str, Any],
    ) -> zarr.Array[Any]:
        with contextlib.suppress(ContainsArrayError):  # another process may be creating the same cache
            if name not in self.group:
                return self.group.create_array(
                    name,
                    shape=shape,
                    chunks=chunks or "auto",
                    dtype=dtype,
                    dimension_names=dimensions,
                    fill_value=fill,
                    compressors=COMPRESSORS,
                    attributes=attributes,
                )
        return self.array(name)

    def array(self, name: str) -> zarr.Array[Any]:
        """Return an array of the group by its name, such as "map/2/embedding".

        Raises:
            CacheError: there is no such array.
        """
        try:
            array = self.group[name]
        except KeyError as error:
            raise CacheError(f"{self.path} lacks {name}: `jzi encode-map` completes the cache") from error
        assert isinstance(array, zarr.Array)
        return array

    # The map

    def status(self, level: int) -> NDArray[np.uint8]:
        """(row, col) status of a level 0..L: 0 missing, 1 encoded (at level L: has imagery), 2 no imagery."""
        with storage_errors(self.path, f"map/{level}/status"):
            return np.asarray(self.array(f"map/{level}/status")[:])

    def level(self, level: int) -> NDArray[np.float16]:
        """(row, col, feature) embeddings of a level 0..L-1; nan where there is none.

        Raises:
            CacheCorruptError: a chunk does not match its checksum.
        """
        with storage_errors(self.path, f"map/{level}/embedding"):
            return np.asarray(self.array(f"map/{level}/embedding")[:])

    def embedding(self, key: TileKey) -> NDArray[np.float16]:
        """(feature,) embedding of one tile, nan where there is none; reads one chunk.

        Raises:
            CacheError: the pyramid has no such tile.
        """
        self._check_key(key)
        level, row, col = key
        with storage_errors(self.path, f"map/{level}/embedding"):
            return np.asarray(self.array(f"map/{level}/embedding")[row, col])

    def _check_key(self, key: TileKey) -> None:
        level, row, col = key
        n = self.pyramid.tiles_per_side(level) if 0 <= level < self.pyramid.levels else 0
        if not (0 <= row < n and 0 <= col < n):
            raise CacheError(
                f"{self.path} has no tile (level {level}, row {row}, col {col}): its last level is "
                f"{self.pyramid.levels - 1}"
            )

    def children(self, key: TileKey) -> NDArray[np.float16]:
        """(g*g, feature) embeddings of the children of a tile of level 0..L-2, in the order of the actions."""
        level, row, col = key
        g = self.pyramid.grid
        with storage_errors(self.path, f"map/{level + 1}/embedding"):
            array = self.array(f"map/{level + 1}/embedding")
            block = np.asarray(array[row * g : (row + 1) * g, col * g : (col + 1) * g])
        return block.reshape(g * g, -1)

    def write_chunk(
        self, level: int, row: int, col: int, status: NDArray[np.uint8], embedding: NDArray[Any] | None
    ) -> None:
        """Write the whole chunk whose north-west tile is (row, col): the embedding first, the status last.

        Args:
            level: 0..L.
            row: a multiple of `chunk_side(level)`.
            col: a multiple of `chunk_side(level)`.
            status: (side, side).
            embedding: (side, side, feature); None at level L.

        Raises:
            CacheError: row, col or shape is not that of a whole chunk, or the disk is full.
        """
        side = self.chunk_side(level)
        if row % side or col % side or status.shape != (side, side):
            raise CacheError(
                f"level {level} is written in whole chunks of {side} x {side} tiles, not {status.shape} at {row}, {col}"
            )
        window = slice(row, row + side), slice(col, col + side)
        with storage_errors(self.path, f"map/{level}"):
            if embedding is not None:
                self.array(f"map/{level}/embedding")[window] = embedding.astype(np.float16)
            self.array(f"map/{level}/status")[window] = status

    def read_map(self, cells: bool = False) -> MapEmbeddings:
        """Read the whole map: 6.7 MB for the paper's pyramid, 101 MB with its terminal cells (768 features).

        Args:
            cells: whether to read the embeddings of terminal cells too.


        Raises:
            CacheError: tiles are missing, or cells if they are requested.
            CacheCorruptError: a chunk does not match its checksum, or its file is gone.
        """
        levels = range(self.pyramid.levels)
        status = [self.status(level) for level in range(self.pyramid.levels + 1)]
        missing = sum(int((status[level] == MISSING).sum()) for level in levels)
        if missing:
            raise CacheError(f"{self.path} lacks {missing} of {self.pyramid.tile_count} tiles: run `jzi encode-map`")
        embedding = [self.level(level) for level in levels]
        for level in levels:
            if np.isnan(embedding[level][status[level] == ENCODED]).any():
                raise corrupt(self.path, f"map/{level}/embedding", "a chunk is gone")
        features = MapEmbeddings(self.pyramid, tuple(embedding), tuple(status))
        return replace(features, cells=self.cells.grid()) if cells else features

    def readable_status(self, level: int) -> tuple[NDArray[np.uint8], int]:
        """(row, col) `status`, with 0 (missing) for tiles that cannot be read, and their number."""
        n, side = self.pyramid.tiles_per_side(level), self.chunk_side(level)
        try:
            return self._readable_status(level, slice(0, n), slice(0, n))
        except CacheCorruptError:
            status, damaged = np.full((n, n), MISSING, np.uint8), 0
        for row in range(0, n, side):
            for col in range(0, n, side):
                window = slice(row, row + side), slice(col, col + side)
                try:
                    status[window], lost = self._readable_status(level, *window)
                except CacheCorruptError:
                    lost = side**2
                damaged += lost
        return status, damaged

    def _readable_status(self, level: int, rows: slice, cols: slice) -> tuple[NDArray[np.uint8], int]:
        with storage_errors(self.path, f"map/{level}"):
            status = np.asarray(self.array(f"map/{level}/status")[rows, cols])
            if level == self.pyramid.levels or not (status == ENCODED).any():
                return status, 0
            lost = np.isnan(np.asarray(self.array(f"map/{level}/embedding")[rows, cols])).any(-1)
        lost &= status == ENCODED
        return np.where(lost, MISSING, status), int(lost.sum())

    def read_chunk(self, level: int, row: int, col: int) -> tuple[NDArray[np.uint8], NDArray[np.float16] | None]:
        """(side, side) status and (side, side, feature) embedding of the chunk whose north-west tile is (row, col).

        The embedding is None at level L. Tiles that cannot be read have status 0 (missing) and nan.
        """
        side = self.chunk_side(level)
        window = slice(row, row + side), slice(col, col + side)
        status = np.full((side, side), MISSING, np.uint8)
        with contextlib.suppress(CacheCorruptError):
            status, _ = self._readable_status(level, *window)
        if level == self.pyramid.levels:
            return status, None
        embedding = np.full((side, side, self.encoder.width), np.nan, np.float16)
        if (status == ENCODED).any():
            embedding = np.asarray(self.array(f"map/{level}/embedding")[window])
        return status, embedding

    # Patch tokens of tiles (optional)

    @property
    def has_tokens(self) -> bool:
        """Whether the cache has arrays for patch tokens; single tiles may still lack theirs."""
        return has_tokens(self.group, self.pyramid)

    @property
    def patch_tokens(self) -> TokenFeatures:
        """The patch tokens of tiles.

        Raises:
            CacheError: the cache holds none.
        """
        return TokenFeatures(self.group, self.path, self.pyramid)

    def tokens(self, key: TileKey) -> NDArray[np.float16]:
        """(token, feature) patch tokens of one tile, nan where there are none; reads one chunk.

        Raises:
            CacheError: the cache holds no patch tokens, or the pyramid has no such tile.
            CacheCorruptError: the chunk does not match its checksum.
        """
        self._check_key(key)
        return self.patch_tokens.read(key)

    def require_tokens(self, count: int) -> TokenFeatures:
        """Patch tokens of tiles; the arrays for `count` tokens a tile are created if they do not exist."""
        with storage_errors(self.path):
            for level in range(self.pyramid.levels):
                n, width = self.pyramid.tiles_per_side(level), self.encoder.width
                shape, chunks = (n, n, count, width), (1, 1, count, width)
                attributes = {"grid_mapping": "spatial_ref", "coordinates": "x y spatial_ref"}
                dimensions = ("row", "col", "token", "feature")
                self._require(tokens_name(level), shape, chunks, "float16", dimensions, np.nan, attributes)
        self.consolidate()
        return self.patch_tokens

    # Terminal cells (optional)

    @property
    def has_cells(self) -> bool:
        """Whether the cache has arrays for cells; single cells may still lack an embedding."""
        return CellFeatures.there(self.group)

    @property
    def cells(self) -> CellFeatures:
        """Embeddings of the terminal cells.

        Raises:
            CacheError: the cache has no cells.
        """
        return CellFeatures(self.group, self.path)

    # The photos

    @property
    def queries(self) -> PhotoFeatures:
        """Embeddings of the photos, and their table."""
        return PhotoFeatures(self.group, self.path)

    # Views

    def to_xarray(self) -> DataTree:
        """A labelled, lazy view with the dimensions row, col, feature, query and view, and CF coordinates."""
        import xarray

        return xarray.open_datatree(
            zarr_store(self.path) if is_url(self.path) else self.path, engine="zarr", consolidated=False, chunks=None
        )


__all__ = ["ENCODED", "MISSING", "NODATA", "FeatureCache"]
