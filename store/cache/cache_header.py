"""Headers of a feature cache: the records from which the metadata of all its arrays follows, with their digests.

The header of the cache is the attribute `jzi` of its root group, with a copy in the group `map`; that of the photos is
the attribute `jzi` of the group `queries`. Each contains a SHA-256 of its other entries, so no edit goes unnoticed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pyproj import CRS

from jzi.errors import CacheError, JziError, first_line
from jzi.store.features.token_info import DetailInfo, PhotoTokensInfo
from jzi.store.geometry.cell_grid import CellGrid
from jzi.store.geometry.pyramid import Pyramid
from jzi.store.geometry.region import RegionInfo
from jzi.store.info import EncoderInfo, ImageryInfo
from jzi.store.plain import plain
from jzi.store.setting_checks import first_invalid
from jzi.version import __version__

FORMAT = 2

#: Most rows of a cache: a hundred times the photos of the paper.
MAX_ROWS = 2**25

#: Most columns that a photo table can add, and characters of their names.
MAX_COLUMNS, MAX_NAME = 512, 200

#: Most patch tokens of a tile; a chunk of them takes at most 268 MB.
MAX_TOKENS = 2**14

#: Most values of the embeddings in a shard: 1 GB in float16.
MAX_SHARD_VALUES = 5 * 10**8

#: Entries that are left out where they are None: caches from before there were any remain as they are.
_LEFT_OUT = {"detail", "photo_tokens", "shard"}

_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

#: Names of the arrays of the photos' tokens and of their projection, which columns of a photo table do not get.
RESERVED_COLUMNS = {"tokens", "tokens_status", "tokens_mean", "tokens_basis", "tokens_scale"}

ColumnName = Annotated[str, Field(min_length=1, max_length=MAX_NAME)]


@dataclass(frozen=True, kw_only=True)
class CacheHeader:
    """What a cache records about itself.

    Attributes:
        pyramid: geometry of the area; None for the cells of a region.
        region: the region; None for a pyramid.
        encoder: encoder of the embeddings.
        imagery: imagery of the map; None if no map has been written.
        tokens: number of patch tokens of a tile; None if the cache has no arrays for them.
        cells_m: side of a terminal cell's reference crop, metres; None if the cache has no arrays for cells.
        detail: tokens of tiles at a high resolution; None if the cache has no arrays for them.
        shard: side in tiles of a shard of the last level of a pyramid, a power of the grid; None if there are none.
        spatial_ref: CF attributes of the CRS; those of `Pyramid.crs`, as the PROJ that created the cache writes them.
        version: version of jzi that created the cache.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    pyramid: Pyramid | None = None
    region: RegionInfo | None = None
    encoder: EncoderInfo
    imagery: ImageryInfo | None = None
    tokens: Annotated[int, Field(ge=1, le=MAX_TOKENS)] | None = None
    cells_m: Annotated[float, Field(gt=0)] | None = None
    detail: DetailInfo | None = None
    shard: Annotated[int, Field(ge=2)] | None = None
    spatial_ref: dict[str, Any] = field(default_factory=dict)
    version: str = __version__

    def __post_init__(self) -> None:
        if (self.pyramid is None) == (self.region is None):
            raise CacheError("a cache is either of a pyramid or of a region")
        if self.region is not None and (self.tokens, self.cells_m, self.detail) != (None, None, None):
            raise CacheError("the cache of a region has neither tokens of tiles nor crops of one size")
        if self.shard is not None and not self._has_valid_shards(self.shard):
            raise CacheError(f"shards of {self.shard} x {self.shard} tiles do not fit the pyramid")

    def _has_valid_shards(self, shard: int) -> bool:
        """Whether shards are squares of the pyramid that fit into memory."""
        if self.pyramid is None or shard**2 * self.encoder.width > MAX_SHARD_VALUES:
            return False
        sides = {self.pyramid.tiles_per_side(level) for level in range(1, self.pyramid.levels)}
        return shard in sides

    @property
    def area(self) -> CellGrid:
        """The cells of the pyramid, or the grid of the region."""
        if self.pyramid is not None:
            return self.pyramid
        assert self.region is not None
        return self.region.grid


@dataclass(frozen=True, kw_only=True)
class PhotosHeader:
    """What a cache records about its photos.

    Attributes:
        rows: number of rows; rows of the arrays beyond it were left by an interrupted run and are not read.
        views: number of augmented views for which the embeddings have space.
        columns: type of each column beside those that every cache has.
        augmented: seed and version of the augmentation; empty if there are no views.
        photo_tokens: tokens of the photos; None if the cache has no arrays for them.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    rows: Annotated[int, Field(ge=0, le=MAX_ROWS)] = 0
    views: Annotated[int, Field(ge=0, le=255)] = 0
    columns: Annotated[dict[ColumnName, Literal["string", "float64"]], Field(max_length=MAX_COLUMNS)] = field(
        default_factory=dict
    )
    augmented: dict[str, int] = field(default_factory=dict)
    photo_tokens: PhotoTokensInfo | None = None

    def __post_init__(self) -> None:
        if self.photo_tokens is not None and (taken := self.columns.keys() & RESERVED_COLUMNS):
            raise CacheError(f"a column of the photos has the name of an array of their tokens, {min(taken)}")


_CACHE, _PHOTOS = TypeAdapter(CacheHeader), TypeAdapter(PhotosHeader)


def new_header(area: Pyramid | RegionInfo, encoder: EncoderInfo, imagery: ImageryInfo | None) -> CacheHeader:
    """Return the header of an empty cache."""
    if isinstance(area, RegionInfo):
        return CacheHeader(region=area, encoder=encoder, imagery=imagery)
    spatial_ref = plain(CRS.from_user_input(area.crs).to_cf())
    return CacheHeader(pyramid=area, encoder=encoder, imagery=imagery, spatial_ref=spatial_ref)


def entries_of(header: CacheHeader | PhotosHeader) -> dict[str, Any]:
    """Return the entries of a header as JSON holds them, with their digest."""
    entries = {name: value for name, value in plain(header).items() if value is not None or name not in _LEFT_OUT}
    if isinstance(header, CacheHeader):
        unused = "region" if header.region is None else "pyramid"
        entries = {"format": FORMAT, **{name: value for name, value in entries.items() if name != unused}}
    return {**entries, "digest": _digest(entries)}


def read_header(path: str, entries: Any) -> CacheHeader:
    """Check the entries of a cache's header.

    Args:
        path: path or URL of the cache, for error messages.
        entries: the attribute `jzi` of the root group.

    Raises:
        CacheError: they are not a header, of another format, or were edited or damaged.
    """
    if not isinstance(entries, dict) or "format" not in entries:
        raise CacheError(f"{path} is a Zarr group but not a jzi feature cache: give another path")
    if entries["format"] == 1:
        raise CacheError(
            f"{path} has cache format 1, which records no digests: `jzi cache verify --repair {path}` converts it to "
            f"format {FORMAT} without encoding"
        )
    if entries["format"] != FORMAT:
        raise CacheError(
            f"{path} has cache format {entries['format']!r:.20}, but jzi {__version__} reads format {FORMAT}: encode "
            "again with another cache.path"
        )
    hint = f"`jzi cache verify --repair {path}` restores it"
    header: CacheHeader = _validated(_CACHE, entries, f"the header of {path}", hint)
    return header


def read_photos_header(path: str, entries: Any) -> PhotosHeader:
    """Check the entries of the header of a cache's photos.

    Args:
        path: path or URL of the cache, for error messages.
        entries: the attribute `jzi` of the group `queries`.

    Raises:
        CacheError: they are not a header, or were edited or damaged.
    """
    hint = f"`jzi cache verify --repair {path}` restores it"
    header: PhotosHeader = _validated(_PHOTOS, entries, f"the header of the photos of {path}", hint)
    return header


def read_format_1(path: str, entries: Any, tokens: Any = None, cells_m: Any = None) -> CacheHeader:
    """Convert the header of a cache of format 1, which has no digest.

    Args:
        path: path or URL of the cache, for error messages.
        entries: the attribute `jzi` of the root group.
        tokens: number of patch tokens of a tile, of the shape of their array.
        cells_m: side of a cell's reference crop, metres, of the attributes of the group `cells`.

    Raises:
        CacheError: the header is damaged.
    """
    adapted = {key: value for key, value in entries.items() if key != "format"}
    adapted |= {"tokens": tokens, "cells_m": cells_m}
    header: CacheHeader = _parsed(_CACHE, adapted, f"the header of {path}", "encode again with another cache.path")
    if header.pyramid is None:
        raise CacheError(f"the header of {path} lacks the pyramid: encode again with another cache.path")
    return replace(header, spatial_ref=new_header(header.pyramid, header.encoder, None).spatial_ref)


def check_photos_header(header: PhotosHeader) -> None:
    """Check a header before it is written.

    Raises:
        CacheError: a column of the photo table cannot be stored.
    """
    _parsed(_PHOTOS, plain(header), "the photo table", "rename or drop that column")


def _validated(adapter: TypeAdapter[Any], entries: Any, subject: str, hint: str) -> Any:
    if not isinstance(entries, dict):
        raise CacheError(f"{subject} is missing: {hint}")
    rest = {key: value for key, value in entries.items() if key != "digest"}
    if entries.get("digest") != _digest(rest):
        raise CacheError(f"{subject} does not match its own digest, it was edited or damaged: {hint}")
    rest.pop("format", None)
    return _parsed(adapter, rest, subject, hint)


def _parsed(adapter: TypeAdapter[Any], entries: Mapping[str, Any], subject: str, hint: str) -> Any:
    try:
        header = adapter.validate_json(json.dumps(entries))
    except ValidationError as error:
        raise CacheError(f"{subject} has an {first_invalid(error)}: {hint}") from error
    except (JziError, ValueError, TypeError, OverflowError, RecursionError) as error:  # of the pyramid
        raise CacheError(f"{subject} cannot be used ({first_line(error)}): {hint}") from error
    return header


def _digest(entries: Mapping[str, Any]) -> str:
    """SHA-256 of entries, independent of their order."""
    return hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()
