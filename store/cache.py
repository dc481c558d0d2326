"""The feature cache: where the two stages meet (DESIGN 4).

One Zarr v3 group per encoder, pyramid and imagery. The map's embeddings are keyed by (level, row, col), the photos' by
id (`jzi.store.photo_features`). Chunks are written whole, the status after the embedding, so that a killed run
loses at most what was in flight, and a chunk's status never speaks of an embedding that is not there.
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

    Open one with `FeatureCache.open`, make one with `FeatureCache.create`, or let `open_or_create` decide: it resumes
    or reuses a cache that matches and refuses one that does not.
    """

    def __init__(self, group: zarr.Group, path: str) -> None:
        self.group = group
        self.path = path
        info = group.attrs.get("jzi")
        if not isinstance(info, dict):
            raise CacheError(f"{path} is a Zarr group but no jzi feature cache: give another path")
        if info.get("format") != FORMAT:
            raise CacheError(
                f"{path} has cache format {info.get('format')} and this is jzi {__version__}, which reads format "
                f"{FORMAT}: encode anew with another cache.path"
            )
        self.pyramid = Pyramid.from_dict(info["pyramid"])
        self.encoder = EncoderInfo(**info["encoder"])
        self.imagery = ImageryInfo(**info["imagery"]) if info.get("imagery") else None

    def __repr__(self) -> str:
        return f"FeatureCache({self.path!r}, {self.encoder.name}, {self.pyramid.tile_count} tiles)"

    # Making and opening

    @classmethod
    def create(
        cls, path: str | Path, pyramid: Pyramid, encoder: EncoderInfo, imagery: ImageryInfo | None = None
    ) -> FeatureCache:
        """A new, empty cache at a path or URL.

        Raises:
            CacheError: there is something at that path, or it cannot be written.
        """
        if exists(path):
            raise CacheError(f"{path} exists already: open it, or give another path")
        with storage_errors(path):
            info: dict[str, Any] = {
                "format": FORMAT,
                "version": __version__,
                "pyramid": pyramid.to_dict(),
                "encoder": encoder.to_dict(),
                "imagery": imagery.to_dict() if imagery else None,
            }
            # With the group itself: a kill at any moment leaves either nothing or a cache that `open` makes whole
            group = zarr.open_group(zarr_store(path), mode="w-", zarr_format=3, attributes={"jzi": info})
            cache = cls(group, str(path))
            cache._require_arrays()
            cache.consolidate()
        return cache

    @classmethod
    def open(cls, path: str | Path, mode: Literal["r", "r+"] = "r") -> FeatureCache:
        """The cache at a path or URL; mode "r" reads, "r+" writes too.

        Raises:
            CacheError: there is none, or it is of another format.
        """
        if not exists(path):
            raise CacheError(f"there is no feature cache at {path}: `jzi encode-map` and `jzi encode-queries` make it")
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
        """Resume or reuse the cache at `path`, or create it.

        `imagery` is None for who only writes photos. The first who writes the map sets it.

        Raises:
            CacheMismatchError: the cache there belongs to another encoder, pyramid or imagery. Nothing is changed.
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
        hint: str = "give another cache.path (`--set cache.path=other.zarr`), or delete the cache to encode anew",
    ) -> None:
        """Raise CacheMismatchError, with advice, where the cache does not belong to what is given."""
        if encoder and encoder.fingerprint != self.encoder.fingerprint:
            raise CacheMismatchError(
                f"{self.path} was filled by another encoder ({self.encoder.label}, not {encoder.label}): {hint}"
            )
        if pyramid and pyramid != self.pyramid:
            ours, theirs = self.pyramid.to_dict(), pyramid.to_dict()
            differences = ", ".join(f"{key} {ours[key]} not {theirs[key]}" for key in ours if ours[key] != theirs[key])
            raise CacheMismatchError(f"{self.path} belongs to another pyramid ({differences}): {hint}")
        if imagery and self.imagery and imagery.fingerprint != self.imagery.fingerprint:
            raise CacheMismatchError(
                f"{self.path} was made from other imagery ({self.imagery.label}, not {imagery.label}): {hint}"
            )

    def _set_imagery(self, imagery: ImageryInfo) -> None:
        with storage_errors(self.path):
            self.group.update_attributes({"jzi": {**self.group.attrs["jzi"], "imagery": imagery.to_dict()}})  # type: ignore[dict-item]
        self.imagery = imagery
        self.consolidate()  # new attributes drop the consolidated metadata

    def consolidate(self) -> None:
        """Gather the metadata in one object, so that xarray opens the cache at once, over HTTP too.

        Nothing is written where it is gathered already.
        """
        with storage_errors(self.path):
            if not self._is_consolidated():
                # Zarr warns that readers of other languages may not know consolidated metadata; they can do without.
                zarr.consolidate_metadata(self.group.store)

    def _is_consolidated(self) -> bool:
        """Whether the gathered metadata knows all photos, views, columns and patch tokens that there are."""
        try:
            gathered = zarr.open_group(self.group.store, mode="r", use_consolidated=True)
            shape, attributes = gathered["queries/embedding"].shape, dict(gathered["queries"].attrs)  # type: ignore[union-attr]
        except (ValueError, KeyError):
            return False
        if has_tokens(gathered, self.pyramid) != has_tokens(self.group, self.pyramid):
            return False
        return shape == self.array("queries/embedding").shape and attributes == dict(self.group["queries"].attrs)

    # Layout

    @cached_property
    def block_level(self) -> int:
        """The level of the tiles whose subtrees have chunks of their own at every level below.

        Two writers of different subtrees never share a chunk, so that they need no lock.
        """
        depth = 0
        while self.pyramid.grid ** (depth + 1) <= MAX_CHUNK:
            depth += 1
        return max(0, self.pyramid.levels - 1 - depth)

    def chunk_side(self, level: int) -> int:
        """Side of a chunk in tiles: what one tile of `block_level` covers, or as much as fits in 16 x 16 above it."""
        g = self.pyramid.grid
        if level >= self.block_level:
            return self.pyramid.tiles_per_side(level - self.block_level)
        side = 1
        while side * g <= min(MAX_CHUNK, self.pyramid.tiles_per_side(level)):
            side *= g
        return side

    def _require_arrays(self) -> None:
        """Create what is not there yet, so that a cache whose making was interrupted becomes whole."""
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
        with contextlib.suppress(ContainsArrayError):  # another process may be making the same cache
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
        """One of the group's arrays, such as "map/2/embedding"."""
        try:
            array = self.group[name]
        except KeyError as error:
            raise CacheError(f"{self.path} lacks {name}: `jzi encode-map` makes the cache whole again") from error
        assert isinstance(array, zarr.Array)
        return array

    # The map

    def status(self, level: int) -> NDArray[np.uint8]:
        """(row, col) of a level, 0..L: 0 missing, 1 encoded (level L: has imagery), 2 no imagery."""
        with storage_errors(self.path, f"map/{level}/status"):
            return np.asarray(self.array(f"map/{level}/status")[:])

    def level(self, level: int) -> NDArray[np.float16]:
        """(row, col, feature) embeddings of a level, 0..L-1; nan where there is none.

        Raises:
            CacheCorruptError: a chunk does not match its checksum.
        """
        with storage_errors(self.path, f"map/{level}/embedding"):
            return np.asarray(self.array(f"map/{level}/embedding")[:])

    def embedding(self, key: TileKey) -> NDArray[np.float16]:
        """(feature,) of one tile, reading one chunk; nan where there is none.

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
        """(g*g, feature) of a tile's children in the order of the actions, for keys of level 0..L-2."""
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
            col: likewise.
            status: (side, side).
            embedding: (side, side, feature); None at level L.

        Raises:
            CacheError: it is not a whole chunk, or the disk is full.
        """
        side = self.chunk_side(level)
        if row % side or col % side or status.shape != (side, side):
            raise CacheError(f"level {level} is written in whole chunks of {side} x {side} tiles")
        window = slice(row, row + side), slice(col, col + side)
        with storage_errors(self.path, f"map/{level}"):
            if embedding is not None:
                self.array(f"map/{level}/embedding")[window] = embedding.astype(np.float16)
            self.array(f"map/{level}/status")[window] = status

    def read_map(self, cells: bool = False) -> MapEmbeddings:
        """The whole map in memory: 6.7 MB for the paper's pyramid, and 101 MB with its terminal cells.

        Raises:
            CacheError: tiles are missing, or cells where they are wanted.
            CacheCorruptError: a chunk does not match its checksum, or has gone.
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
        """`status`, with 0 (missing) for tiles that cannot be read, and the number of those."""
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
        """Status and embedding (None at level L) of the chunk whose north-west tile is (row, col).

        Tiles that cannot be read are missing, with nan.
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

    # The tiles' patch tokens, which a cache holds where it was asked to

    @property
    def has_tokens(self) -> bool:
        """Whether `require_tokens` was called once; tiles may lack theirs still."""
        return has_tokens(self.group, self.pyramid)

    @property
    def patch_tokens(self) -> TokenFeatures:
        """The patch tokens of tiles.

        Raises:
            CacheError: the cache holds none.
        """
        return TokenFeatures(self.group, self.path, self.pyramid)

    def tokens(self, key: TileKey) -> NDArray[np.float16]:
        """(token, feature) of one tile, reading one chunk; nan where there are none.

        Raises:
            CacheError: the cache holds no patch tokens, or the pyramid has no such tile.
            CacheCorruptError: the chunk does not match its checksum.
        """
        self._check_key(key)
        return self.patch_tokens.read(key)

    def require_tokens(self, count: int) -> TokenFeatures:
        """The same, with room for `count` tokens of every tile, which is made if there is none."""
        with storage_errors(self.path):
            for level in range(self.pyramid.levels):
                n, width = self.pyramid.tiles_per_side(level), self.encoder.width
                shape, chunks = (n, n, count, width), (1, 1, count, width)
                attributes = {"grid_mapping": "spatial_ref", "coordinates": "x y spatial_ref"}
                dimensions = ("row", "col", "token", "feature")
                self._require(tokens_name(level), shape, chunks, "float16", dimensions, np.nan, attributes)
        self.consolidate()
        return self.patch_tokens

    # The terminal cells, of which a cache holds embeddings where it was asked to

    @property
    def has_cells(self) -> bool:
        """Whether `CellFeatures.require` was called once; cells may lack theirs still."""
        return CellFeatures.there(self.group)

    @property
    def cells(self) -> CellFeatures:
        """The embeddings of the terminal cells.

        Raises:
            CacheError: the cache has no cells.
        """
        return CellFeatures(self.group, self.path)

    # The photos

    @property
    def queries(self) -> PhotoFeatures:
        """The photos' embeddings and what is known of them."""
        return PhotoFeatures(self.group, self.path)

    # Views

    def to_xarray(self) -> DataTree:
        """A labelled, lazy view: dimensions row, col, feature, query, view; x, y and spatial_ref as CF has them."""
        import xarray

        return xarray.open_datatree(
            zarr_store(self.path) if is_url(self.path) else self.path, engine="zarr", consolidated=False, chunks=None
        )


__all__ = ["ENCODED", "MISSING", "NODATA", "FeatureCache"]
