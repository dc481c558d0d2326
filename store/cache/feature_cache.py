"""The feature cache: embeddings of map tiles, cells and photos in one Zarr v3 group.

A cache belongs to one encoder, pyramid and imagery. Embeddings of tiles are keyed by (level, row, col), those of photos
by id (`jzi.store.features.photo_features`). Chunks are written whole, the embedding before its status: a killed run
loses at most the chunks being written, and no status refers to an embedding that was not written.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import zarr
from numpy.typing import NDArray

from jzi.errors import CacheCorruptError, CacheError, CacheMismatchError
from jzi.store.cache import layout
from jzi.store.cache.cache_header import CacheHeader, PhotosHeader, new_header, read_format_1, read_header
from jzi.store.cache.documents import Documents
from jzi.store.disk.lock import LockMode, WriterLock
from jzi.store.disk.storage import exists, is_url, storage_errors, zarr_store
from jzi.store.features.cell_features import HINT as CELLS_HINT
from jzi.store.features.cell_features import CellFeatures
from jzi.store.features.detail_features import DetailFeatures, write_projection
from jzi.store.features.map_embeddings import ENCODED, MISSING, NODATA, MapEmbeddings
from jzi.store.features.photo_features import PhotoFeatures
from jzi.store.features.projection import Projection
from jzi.store.features.tile_features import TileFeatures
from jzi.store.features.token_features import TokenFeatures
from jzi.store.features.token_info import DetailInfo
from jzi.store.geometry.cell_grid import CellGrid
from jzi.store.geometry.pyramid import Pyramid
from jzi.store.geometry.region import RegionInfo
from jzi.store.info import EncoderInfo, ImageryInfo
from jzi.store.plain import plain

if TYPE_CHECKING:
    from xarray import DataTree


class FeatureCache:
    """Embeddings of every tile of a pyramid and of the photos, in one Zarr group.

    `FeatureCache.open` opens a cache, `FeatureCache.create` creates one; `FeatureCache.open_or_create` reuses a
    matching cache, creates one if there is none, and refuses one that does not match.
    """

    def __init__(self, path: str, documents: Documents, header: CacheHeader) -> None:
        self.path, self.documents, self.header = path, documents, header
        self._layout = layout.map_documents(header)
        self._arrays: dict[str, zarr.Array[Any]] = {}

    @property
    def area(self) -> CellGrid:
        """The cells of the pyramid, or the grid of the region."""
        return self.header.area

    @property
    def region(self) -> RegionInfo | None:
        """The region whose cells the cache holds; None for the cache of a pyramid."""
        return self.header.region

    @property
    def pyramid(self) -> Pyramid:
        """Geometry of the area.

        Raises:
            CacheError: the cache is of a region, which is not divided into tiles.
        """
        if self.header.pyramid is None:
            raise CacheError(
                f"{self.path} holds the cells of a region, not the tiles of a pyramid: give another cache.path"
            )
        return self.header.pyramid

    @property
    def levels(self) -> int:
        """Number of levels of tiles; 0 for the cache of a region."""
        return 0 if self.header.pyramid is None else self.header.pyramid.levels

    @property
    def encoder(self) -> EncoderInfo:
        """Encoder of the embeddings."""
        return self.header.encoder

    @property
    def imagery(self) -> ImageryInfo | None:
        """Imagery of the map; None if no map has been written."""
        return self.header.imagery

    def __repr__(self) -> str:
        size = self.region.label if self.region else f"{self.pyramid.tile_count} tiles"
        return f"FeatureCache({self.path!r}, {self.encoder.name}, {size})"

    # Creating and opening

    @classmethod
    def create(
        cls,
        path: str | Path,
        area: Pyramid | RegionInfo,
        encoder: EncoderInfo,
        imagery: ImageryInfo | None = None,
        *,
        lock: LockMode = "wait",
    ) -> FeatureCache:
        """Create an empty cache of a pyramid or of a region at a path or URL.

        Raises:
            CacheError: the path exists or cannot be written.
        """
        if exists(path):
            raise CacheError(f"{path} exists already: open it, or give another path")
        documents = Documents(path, read_only=False, lock=WriterLock(path, lock))
        header = new_header(area, encoder, imagery)
        if isinstance(area, Pyramid):
            header = replace(header, shard=layout.shard_side(area, encoder.width))
        with documents.released_on_error():
            # The root is written first: a killed process leaves nothing, or a cache that `open` completes
            documents.write("", layout.root_document(header, PhotosHeader()))
            cache = cls(str(path), documents, header)
            cache.write_layout()
        return cache

    @classmethod
    def open(cls, path: str | Path, mode: Literal["r", "r+"] = "r", *, lock: LockMode = "wait") -> FeatureCache:
        """Open the cache at a path or URL, to read ("r") or to read and write ("r+").

        A cache has one writer (`jzi.store.disk.lock`): opened for writing, it is locked until `close` is called, no
        object of it is left, or the process ends.

        Args:
            path: path or URL.
            mode: what to open it for.
            lock: what to do if another process writes to it: "wait" for it, or "refuse"; "shared" if another process of
                the same launch holds the lock for this one.

        Raises:
            CacheError: there is no cache, it has another format or is damaged, or another process writes to it and
                `lock` is "refuse".
        """
        if not exists(path):
            raise CacheError(
                f"there is no feature cache at {path}: create it with `jzi encode-map` or `jzi encode-queries`"
            )
        documents = Documents(path, read_only=mode == "r", lock=WriterLock(path, lock) if mode == "r+" else None)
        with documents.released_on_error():
            root = documents.read("")
            if root is None:
                raise CacheError(f"{path} is not a feature cache, it has no zarr.json: give another path")
            entries = documents.attribute_of(root, "jzi")
            if mode == "r+" and isinstance(entries, dict) and entries.get("format") == 1:
                return cls._convert(str(path), documents, entries)
            cache = cls(str(path), documents, read_header(str(path), entries))
            if mode == "r+" and lock != "shared":  # the holder of the lock has done it, and may be extending the cache
                documents.remove_leftovers()
                cache.write_layout()
        return cache

    @classmethod
    def _convert(cls, path: str, documents: Documents, entries: dict[str, Any]) -> FeatureCache:
        """Convert a cache of format 1, whose arrays had the same layout."""
        header = read_format_1(path, entries)
        levels = header.pyramid.levels if header.pyramid else 0
        shape = (documents.read(f"map/{levels - 1}/tokens") or {}).get("shape")
        tokens = shape[2] if isinstance(shape, list) and len(shape) == 4 else None
        header = read_format_1(path, entries, tokens, documents.attribute("cells", "footprint_m"))
        cache = cls(path, documents, header)
        cache.queries.convert()
        cache.write_layout()
        cache._write_header(header)
        return cache

    @classmethod
    def open_or_create(
        cls,
        path: str | Path,
        area: Pyramid | RegionInfo,
        encoder: EncoderInfo,
        imagery: ImageryInfo | None = None,
        *,
        lock: LockMode = "wait",
    ) -> FeatureCache:
        """Open the cache at `path` for writing, or create it.

        Args:
            path: path or URL.
            area: geometry of the area.
            encoder: the encoder of all embeddings.
            imagery: the imagery of the map; None to write photos only. It is recorded the first time it is given.
            lock: as for `open`.

        Raises:
            CacheMismatchError: the cache belongs to another encoder, pyramid or imagery; it is not changed.
            CacheError: as `open`.
        """
        with WriterLock(path, lock):  # of two processes, the second opens what the first has created
            if not exists(path):
                return cls.create(path, area, encoder, imagery, lock=lock)
            cache = cls.open(path, "r+", lock=lock)
        with cache.documents.released_on_error():
            cache.check(area=area, encoder=encoder, imagery=imagery)
            if imagery and imagery != cache.imagery:
                cache._write_header(replace(cache.header, imagery=imagery))
        return cache

    def check(
        self,
        *,
        area: Pyramid | RegionInfo | None = None,
        encoder: EncoderInfo | None = None,
        imagery: ImageryInfo | None = None,
        hint: str = "give another cache.path (`--set cache.path=other.zarr`), or delete the cache to encode again",
    ) -> None:
        """Check that the cache belongs to an area, an encoder and imagery; None is not checked.

        Args:
            area: geometry of the area; a region is compared by its cells, not by its name.
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
        if area and (difference := self._other_area(area)):
            raise CacheMismatchError(f"{self.path} belongs to another {difference}: {hint}")
        if imagery and self.imagery and imagery.fingerprint != self.imagery.fingerprint:
            raise CacheMismatchError(
                f"{self.path} was made from other imagery ({self.imagery.label}, not {imagery.label}): {hint}"
            )

    def _other_area(self, area: Pyramid | RegionInfo) -> str:
        """How an area differs from that of the cache; "" if it does not."""
        if isinstance(area, RegionInfo):
            if self.region is None:
                return "kind of area, a pyramid and not a region"
            same = replace(self.region, name=area.name) == area
            return "" if same else f"region ({self.region.label}, not {area.label})"
        if self.header.pyramid is None:
            return "kind of area, a region and not a pyramid"
        actual, expected = plain(self.pyramid), plain(area)
        differ = [f"{key} {actual[key]} not {expected[key]}" for key in actual if actual[key] != expected[key]]
        return f"pyramid ({', '.join(differ)})" if differ else ""

    def close(self) -> None:
        """Release the writer's lock; the cache must not be written afterwards."""
        if self.documents.lock is not None:
            self.documents.lock.release()

    def _write_header(self, header: CacheHeader) -> None:
        """Replace the header and its copy; the root is written last but for the copy, which `open` completes."""
        self.header, self._layout = header, layout.map_documents(header)
        self.documents.write("", layout.root_document(header, self.queries.header()))
        copy = layout.copy_of_header(header)
        self.documents.write(copy, self._layout[copy])

    def reload(self) -> None:
        """Read the header again, which another process may have changed."""
        self.header = read_header(self.path, self.documents.attribute("", "jzi"))
        self._layout = layout.map_documents(self.header)

    def consolidate(self) -> None:
        """Write the consolidated metadata, from which xarray opens the cache with one request, also over HTTP.

        Nothing is written if it is up to date.
        """
        expected = layout.root_document(self.header, self.queries.header())
        if self.documents.difference("", expected) is not None:
            self.documents.write("", expected)

    # Layout

    def metadata_damage(self) -> list[str]:
        """Describe each metadata document of the cache that is missing or not as its headers imply."""
        expected, damage = self._layout, []
        try:
            photos = self.queries.header()
            expected = {**expected, **layout.photo_documents(photos, self.encoder.width)}
        except CacheError as error:
            damage.append(str(error))
        differences = [self.documents.difference(name, document) for name, document in expected.items()]
        root = layout.root_document(self.header, self.queries.consolidated_header() or PhotosHeader())
        differences.insert(0, self.documents.difference("", root))  # it may be of fewer photos than there are now
        return damage + [difference for difference in differences if difference]

    def arrays(self) -> dict[str, zarr.Array[Any]]:
        """All arrays by name, without those of the photos if their header is damaged."""
        names = [name for name, document in self._layout.items() if document["node_type"] == "array"]
        arrays = {name: self.array(name) for name in sorted(names)}
        with contextlib.suppress(CacheError):
            arrays |= self.queries.arrays()
        return arrays

    def write_layout(self) -> None:
        """Write the documents that are missing or damaged, also after an interrupted `create`.

        Chunks are not changed. What the header of the photos says is restored from the consolidated metadata if it is
        damaged.
        """
        differ = [n for n, document in self._layout.items() if self.documents.difference(n, document) is not None]
        last = [
            name for name in differ if name.endswith(layout.COMPLETES_COORDINATES)
        ]  # so that coordinates are complete with them
        for name in differ:
            if name not in last:
                self.documents.write(name, self._layout[name])
        if differ:
            self.write_coordinates()
        for name in last:
            self.documents.write(name, self._layout[name])
        self.queries.write_layout()
        self.consolidate()

    def write_coordinates(self) -> list[str]:
        """Write the coordinates of tiles or bands that are damaged; returns the names of their arrays."""
        written = []
        for name, values in self._coordinates():
            with storage_errors(self.path, name):
                array = self.array(name)
                with contextlib.suppress(CacheCorruptError), storage_errors(self.path, name):
                    if np.array_equal(np.asarray(array[:]), values):
                        continue
                array[:] = values
            written.append(name)
        return written

    def _coordinates(self) -> Iterator[tuple[str, NDArray[Any]]]:
        """Name and values of each array of coordinates."""
        if self.region is not None:
            grid = self.region.grid
            values = grid.positions(np.arange(grid.rows), 0)[0], np.degrees(grid.step), grid.first, grid.count
            for name, each in zip(layout.BAND_COORDINATES, values, strict=True):
                yield f"cells/{name}", np.asarray(each)
        for level in range(self.levels + 1 if self.levels else 0):
            n = np.arange(self.pyramid.tiles_per_side(level))
            for axis, each in zip("xy", self.pyramid.tile_centers(level, n, n), strict=True):
                yield f"map/{level}/{axis}", each

    def array(self, name: str) -> zarr.Array[Any]:
        """Return an array of the map or the cells by its name, such as "map/2/embedding".

        Raises:
            CacheError: there is no such array, or its metadata is damaged.
        """
        if name not in self._arrays:
            if name not in self._layout:
                raise CacheError(f"{self.path} has no array {name}")
            self._arrays[name] = self.documents.array(name, self._layout[name])
        return self._arrays[name]

    # The map

    @property
    def tiles(self) -> TileFeatures:
        """Embeddings of the tiles of all levels.

        Raises:
            CacheError: the cache is of a region, which is not divided into tiles.
        """
        width, shard = self.encoder.width, self.header.shard
        return TileFeatures(self.pyramid, width, shard, self.path, self.array, self.documents.check_lock)

    def read_map(self, cells: bool = False) -> MapEmbeddings:
        """Read the whole map: 6.7 MB for the paper's pyramid, 101 MB with its terminal cells (768 features).

        Args:
            cells: whether to read the embeddings of terminal cells too.

        Raises:
            CacheError: tiles are missing, or cells if they are requested.
            CacheCorruptError: a chunk does not match its checksum, or its file is gone.
        """
        features = self.tiles.read()
        return replace(features, cells=self.cells.grid()) if cells else features

    # Patch tokens of tiles (optional)

    @property
    def has_tokens(self) -> bool:
        """Whether the cache has arrays for patch tokens; single tiles may still lack theirs."""
        return self._has("tokens")

    @property
    def patch_tokens(self) -> TokenFeatures:
        """The patch tokens of tiles.

        Raises:
            CacheError: the cache holds none.
        """
        if not self.has_tokens:
            raise CacheError(f"{self.path} holds no patch tokens: run `jzi encode-map --tokens`")
        return TokenFeatures([self.array(f"map/{level}/tokens") for level in range(self.pyramid.levels)], self.path)

    def require_tokens(self, count: int) -> TokenFeatures:
        """Patch tokens of tiles; the arrays for `count` tokens a tile are created if they do not exist.

        Raises:
            CacheMismatchError: the cache has another number of tokens.
        """
        if not self.has_tokens:
            self._extend(replace(self.header, tokens=count))
        if self.header.tokens != count:
            raise CacheMismatchError(
                f"{self.path} has {self.header.tokens} patch tokens of a tile, not {count}: give another cache"
            )
        return self.patch_tokens

    # Tokens of tiles at a high resolution (optional)

    @property
    def has_detail(self) -> bool:
        """Whether the cache has arrays for tokens at a high resolution; single tiles may still lack theirs."""
        return self._has("detail")

    @property
    def detail(self) -> DetailFeatures:
        """The tokens of tiles at a high resolution, which refiners read.

        Raises:
            CacheError: the cache holds none.
        """
        if not self.has_detail:
            raise CacheError(f"{self.path} holds no tokens for a refiner: run `jzi encode-map --detail`")
        assert self.header.detail is not None
        return DetailFeatures(self._members("detail"), self.header.detail, self.path)

    def require_detail(self, info: DetailInfo, projection: Projection | None = None) -> DetailFeatures:
        """Tokens of tiles at a high resolution; their arrays are created if they do not exist.

        Args:
            info: what the header records.
            projection: written with the arrays; needed if they do not exist.

        Raises:
            CacheMismatchError: the cache has tokens of another producer, resolution or projection.
        """
        if not self.has_detail and projection is not None:
            self.documents.delete("detail")  # what a killed run or `remove_detail` has left
            self._extend(
                replace(self.header, detail=info),
                lambda: write_projection(self._members("detail"), self.path, "detail", projection),
            )
        if self.header.detail != info:
            stored = self.header.detail.label if self.header.detail else "none"
            raise CacheMismatchError(
                f"{self.path} holds other tokens for a refiner ({stored}, not {info.label}): give another cache.path, "
                "or the settings that they were encoded with"
            )
        return self.detail

    def remove_detail(self) -> None:
        """Remove the tokens of tiles at a high resolution, if there are any; first from the header."""
        if self.has_detail:
            self._write_header(replace(self.header, detail=None))
            self.documents.delete("detail")

    def _members(self, group: str) -> dict[str, zarr.Array[Any]]:
        names = [name for name in self._layout if name.startswith(f"{group}/")]
        return {name.rpartition("/")[2]: self.array(name) for name in names}

    # Terminal cells (optional)

    @property
    def has_cells(self) -> bool:
        """Whether the cache has arrays for cells; single cells may still lack an embedding."""
        return self.region is not None or self._has("cells_m")

    @property
    def cells(self) -> CellFeatures:
        """Embeddings of the terminal cells.

        Raises:
            CacheError: the cache has no cells.
        """
        if not self.has_cells:
            raise CacheError(f"{self.path} holds no cells: {CELLS_HINT}")
        footprint, cells = self.header.cells_m or 0.0, self.region.cells if self.region else None
        return CellFeatures(self.array("cells/status"), self.array("cells/embedding"), self.path, footprint, cells)

    def require_cells(self, footprint: float) -> CellFeatures:
        """The terminal cells; their arrays are created if they do not exist.

        Args:
            footprint: side of a cell's reference crop, metres.

        Raises:
            CacheMismatchError: the cells of the cache have another footprint.
        """
        if self.region is not None:
            raise CacheMismatchError(f"{self.path} holds the cells of a region: give another cache.path")
        if not self.has_cells:
            self._extend(replace(self.header, cells_m=float(footprint)))
        stored = self.header.cells_m
        if stored is None or abs(stored - footprint) > 1e-6:
            raise CacheMismatchError(
                f"the cells of {self.path} were encoded from crops of {stored:g} m, not {footprint:g} m: give another "
                "cache"
            )
        return self.cells

    def _has(self, entry: str) -> bool:
        """Whether an entry of the header is set, possibly by another process since the cache was opened."""
        if getattr(self.header, entry) is None:
            self.reload()
        return getattr(self.header, entry) is not None

    def _extend(self, header: CacheHeader, fill: Callable[[], None] | None = None) -> None:
        """Create the arrays that a header adds, fill those that are complete with it, then record the header."""
        added = {name: each for name, each in layout.map_documents(header).items() if name not in self._layout}
        for name, document in added.items():
            self.documents.write(name, document)
        self._layout = self._layout | added
        if fill is not None:
            fill()
        self._write_header(header)

    # The photos

    @property
    def queries(self) -> PhotoFeatures:
        """Embeddings of the photos, and their table."""
        return PhotoFeatures(self.documents, self.encoder.width)

    # Views

    def to_xarray(self) -> DataTree:
        """A labelled, lazy view with the dimensions row, col, feature, query and view, and CF coordinates."""
        import xarray

        if damage := self.metadata_damage():
            raise self.documents.damaged(damage[0])
        return xarray.open_datatree(
            zarr_store(self.path) if is_url(self.path) else self.path, engine="zarr", consolidated=False, chunks=None
        )


__all__ = ["ENCODED", "MISSING", "NODATA", "FeatureCache"]
