"""The layout of a feature cache: the metadata document (zarr.json) of each of its groups and arrays.

All documents follow from the two headers (`jzi.store.cache.cache_header`). They are written from here and compared with
here before an array is opened, so nothing that a damaged or hostile document says is ever used.
"""

from __future__ import annotations

import re
from typing import Any

from jzi.store.cache.cache_header import CacheHeader, PhotosHeader, entries_of
from jzi.store.features.projection import ABSENT
from jzi.store.features.token_info import DetailInfo, PhotoTokensInfo
from jzi.store.geometry.bands import RADIUS, BandGrid
from jzi.store.geometry.cell_grid import CellGrid
from jzi.store.geometry.pyramid import Pyramid
from jzi.store.plain import plain

Document = dict[str, Any]

#: Side of the largest chunk of tiles, and of cells, in tiles or cells: 1024 cells of 768 features in float16 take
#: 1.6 MB.
MAX_CHUNK, MAX_CELL_CHUNK = 16, 32

#: Largest side in tiles of what is written at once of tokens at a high resolution: a killed run loses as much.
MAX_DETAIL_UNIT = 4

#: Largest shard of these tokens, bytes: 16 x 16 tiles of 54 x 54 tokens with 32 features have 24 MB.
MAX_DETAIL_SHARD = 2**27

#: Chunks of cells along a side of a shard, and the number of cells of a region, or of tiles of a pyramid's last level,
#: above which they are sharded. A shard of cells with 1024 features has 33.6 MB.
SHARD_CHUNKS, MAX_UNSHARDED = 4, 2**20

#: Bytes of the embeddings in a shard of tiles, of which there are at least so many, or at most so many if the grid is
#: that wide: 256 x 256 tiles with 768 features have 101 MB, and a billion tiles 15 000 shards. Whoever writes a shard
#: holds it in memory, and its compressed chunks while they are joined.
MIN_SHARD, MAX_SHARD = 48 * 10**6, 10**9

#: Coordinates of the bands of a region: type and attributes. The centre of column c of a row lies at longitude
#: (first_cell + c) * step, for a grid that does not cross the antimeridian.
BAND_COORDINATES: dict[str, tuple[str, dict[str, Any]]] = {
    "latitude": ("float64", {"standard_name": "latitude", "units": "degrees_north"}),
    "step": ("float64", {"long_name": "width of a cell in longitude", "units": "degrees_east"}),
    "first_cell": ("int64", {"long_name": "number of the cell in column 0, counted from longitude 0"}),
    "cell_count": ("int64", {"long_name": "number of cells of the row"}),
}

#: End of the names of the arrays that are written last, so that coordinates are complete with them.
COMPLETES_COORDINATES = "/spatial_ref"

#: Rows in a chunk of photos: with 768 features in float16 it has 393 kB, like a chunk of 16 x 16 tiles.
PHOTO_CHUNK = 256

#: Rows in a chunk of the columns that are written for all photos at once.
COLUMN_CHUNK = 64 * PHOTO_CHUNK

#: Type and fill value of the columns that every cache has.
COLUMNS: dict[str, tuple[str, Any]] = {
    "id": ("string", ""),
    "latitude": ("float64", "NaN"),
    "longitude": ("float64", "NaN"),
    "split": ("string", ""),
    "path": ("string", ""),
    "listed": ("bool", False),
    "status": ("uint8", 0),
    "photo_sha256": ("string", ""),
    "photo_bytes": ("int64", -1),
    "photo_mtime_ns": ("int64", -1),
    "views": ("uint8", 0),
}

#: Columns that are written with the embeddings, in chunks of as many rows.
WRITTEN_WITH_EMBEDDING = ("photo_sha256", "photo_bytes", "photo_mtime_ns", "views", "status")

#: What cannot be part of the name of an array on every file system and in Zarr.
_RESERVED = re.compile(r'^\.|^_(?=_)|^z(?=arr\.json$)|[%/\\:*?"<>|\x00-\x1f\ud800-\udfff]')

_UNITS = {"latitude": "degrees_north", "longitude": "degrees_east"}
_FILL = {"string": "", "float64": "NaN"}
_SINGLE_BYTE = ("uint8", "int8", "bool")


def shard_side(pyramid: Pyramid, width: int) -> int | None:
    """Side in tiles of a shard of the last level of a new cache; None for a map of few chunks, which has none.

    Args:
        pyramid: geometry of the area.
        width: number of features.
    """
    tiles, side = pyramid.tiles_per_side(pyramid.levels - 1), 1
    if tiles**2 <= MAX_UNSHARDED:
        return None
    while side * pyramid.grid <= tiles and shard_bytes(side, width) < MIN_SHARD:
        if shard_bytes(side * pyramid.grid, width) > MAX_SHARD:
            break
        side *= pyramid.grid
    return side


def shard_bytes(side: int, width: int) -> int:
    """Bytes of the embeddings of a square of tiles."""
    return 2 * side**2 * width


def block_level(pyramid: Pyramid, shard: int | None = None) -> int:
    """The level from which on no chunk or shard spans two subtrees.

    Args:
        pyramid: geometry of the area.
        shard: side in tiles of a shard of the last level; None if there are no shards.
    """
    depth = 0
    while pyramid.grid ** (depth + 1) <= (shard or MAX_CHUNK):
        depth += 1
    return max(0, pyramid.levels - 1 - depth)


def chunk_side(pyramid: Pyramid, level: int, shard: int | None = None) -> int:
    """Side in tiles of what is written at once, a chunk or a shard.

    The extent of one tile of `block_level`; above that level up to `MAX_CHUNK`.
    """
    top = block_level(pyramid, shard)
    if level >= top:
        return pyramid.tiles_per_side(level - top)
    return _largest_chunk(pyramid, pyramid.tiles_per_side(level))


def _largest_chunk(pyramid: Pyramid, tiles: int) -> int:
    """The largest power of the grid up to `MAX_CHUNK` and a number of tiles."""
    side = 1
    while side * pyramid.grid <= min(MAX_CHUNK, tiles):
        side *= pyramid.grid
    return side


def map_documents(header: CacheHeader) -> dict[str, Document]:
    """Documents of everything but the root and the photos, by name, such as "map/2/embedding"; groups come first."""
    if header.region is not None:
        return _region_documents(header, header.region.grid)
    pyramid, width = header.pyramid, header.encoder.width
    assert pyramid is not None
    grid_mapping = {"grid_mapping": "spatial_ref", "coordinates": "x y spatial_ref"}
    documents = {"map": group({"jzi": entries_of(header)})}
    for level in range(pyramid.levels + 1):
        n, unit = pyramid.tiles_per_side(level), chunk_side(pyramid, level, header.shard)
        name, tiles = f"map/{level}", ("row", "col")
        documents[name] = group({})
        documents[f"{name}/status"] = array((n, n), (unit, unit), "uint8", tiles, 0, grid_mapping)
        if level < pyramid.levels:  # terminal cells have a status, but no embedding
            chunk = _largest_chunk(pyramid, unit)
            shape, chunks = (n, n, width), (chunk, chunk, width)
            embedding = array(shape, chunks, "float16", (*tiles, "feature"), "NaN", grid_mapping)
            documents[f"{name}/embedding"] = sharded(embedding, (unit, unit, width)) if unit > chunk else embedding
            if header.tokens is not None:
                shape4, dimensions = (n, n, header.tokens, width), (*tiles, "token", "feature")
                chunks4 = (1, 1, *shape4[2:])
                documents[f"{name}/tokens"] = array(shape4, chunks4, "float16", dimensions, "NaN", grid_mapping)
        for axis, dimension in (("x", "col"), ("y", "row")):
            attributes = {"standard_name": f"projection_{axis}_coordinate", "units": "m"}
            documents[f"{name}/{axis}"] = array((n,), (n,), "float64", (dimension,), 0.0, attributes)
        documents[f"{name}/spatial_ref"] = array((), (), "int64", (), 0, header.spatial_ref)
    if header.cells_m is not None:
        n = pyramid.tiles_per_side(pyramid.levels)
        chunk = min(MAX_CELL_CHUNK, n)
        unit = chunk * (SHARD_CHUNKS if header.shard else 1)
        documents["cells"] = group({"footprint_m": header.cells_m})
        documents["cells/status"] = array((n, n), (unit, unit), "uint8", ("row", "col"), 0, {})
        shape, chunks = (n, n, width), (chunk, chunk, width)
        embedding = array(shape, chunks, "float16", ("row", "col", "feature"), "NaN", {})
        documents["cells/embedding"] = sharded(embedding, (unit, unit, width)) if unit > chunk else embedding
    return documents | ({} if header.detail is None else _detail_documents(pyramid, header.detail, header.shard))


def _detail_documents(pyramid: Pyramid, detail: DetailInfo, shard: int | None) -> dict[str, Document]:
    """Documents of the tokens of tiles at a high resolution, and of their projection."""
    n, unit = pyramid.tiles_per_side(pyramid.levels - 1), detail_unit(pyramid)
    if shard:
        while unit < n and (unit * pyramid.grid * detail.side) ** 2 * detail.width <= MAX_DETAIL_SHARD:
            unit *= pyramid.grid
    tokens, tiles = (detail.side, detail.side, detail.width), ("row", "col")
    dimensions = (*tiles, "token_row", "token_col", "feature")
    values = array((n, n, *tokens), (1, 1, *tokens), "int8", dimensions, ABSENT, {})
    return {
        "detail": group(plain(detail)),
        "detail/status": array((n, n), (unit, unit), "uint8", tiles, 0, {}),
        "detail/tokens": sharded(values, (unit, unit, *tokens)) if shard else values,
        **_projection_documents("detail/", detail, "source", "feature"),
    }


def detail_unit(pyramid: Pyramid) -> int:
    """Side in tiles of what is written at once of the tokens at a high resolution, a power of the grid."""
    side, tiles = 1, pyramid.tiles_per_side(pyramid.levels - 1)
    while side * pyramid.grid <= min(MAX_DETAIL_UNIT, tiles):
        side *= pyramid.grid
    return side


def _projection_documents(
    prefix: str, tokens: DetailInfo | PhotoTokensInfo, source: str, feature: str
) -> dict[str, Document]:
    """Documents of a projection; the names of its dimensions differ where those of others are in the same group."""
    shape = (tokens.source_width, tokens.width)
    arrays = {"mean": (shape[:1], (source,)), "basis": (shape, (source, feature)), "scale": (shape[1:], (feature,))}
    return {f"{prefix}{name}": array(each, each, "float32", axes, 0.0, {}) for name, (each, axes) in arrays.items()}


def cell_unit(grid: CellGrid) -> int:
    """Side in cells of what is written at once of a region's cells: a shard, or a chunk where there are few."""
    rows, cols = grid.shape
    return MAX_CELL_CHUNK * (SHARD_CHUNKS if rows * cols > MAX_UNSHARDED else 1)


def _region_documents(header: CacheHeader, grid: BandGrid) -> dict[str, Document]:
    """Documents of the cells of a region: a row for each band, whose cells begin at column 0."""
    (rows, cols), width, unit = grid.shape, header.encoder.width, cell_unit(grid)
    coordinates = {"grid_mapping": "spatial_ref", "coordinates": f"{' '.join(BAND_COORDINATES)} spatial_ref"}
    documents = {"cells": group({"jzi": entries_of(header)})}
    documents["cells/status"] = array((rows, cols), (unit, unit), "uint8", ("row", "col"), 0, coordinates)
    embedding = array(
        (rows, cols, width),
        (MAX_CELL_CHUNK, MAX_CELL_CHUNK, width),
        "float16",
        ("row", "col", "feature"),
        "NaN",
        coordinates,
    )
    documents["cells/embedding"] = sharded(embedding, (unit, unit, width)) if unit > MAX_CELL_CHUNK else embedding
    for name, (data_type, attributes) in BAND_COORDINATES.items():
        fill = 0.0 if data_type == "float64" else 0
        documents[f"cells/{name}"] = array((rows,), (rows,), data_type, ("row",), fill, attributes)
    sphere = {"grid_mapping_name": "latitude_longitude", "earth_radius": RADIUS}
    documents["cells/spatial_ref"] = array((), (), "int64", (), 0, sphere)
    return documents


def copy_of_header(header: CacheHeader) -> str:
    """Name of the group whose attribute `jzi` is a copy of the header."""
    return "map" if header.region is None else "cells"


def photo_documents(header: PhotosHeader, width: int) -> dict[str, Document]:
    """Documents of the photos, by name, such as "queries/id"; the group comes first."""
    names = [*COLUMNS, *(name for name in header.columns if name not in COLUMNS), "embedding"]
    documents = {"queries": group({"jzi": entries_of(header)})}
    documents |= {photo_array(name): photo_document(header, name, width) for name in names}
    return documents | photo_token_documents(header)


def photo_token_documents(header: PhotosHeader) -> dict[str, Document]:
    """Documents of the tokens of the photos and of their projection, by name; empty if there are none."""
    if header.photo_tokens is None:
        return {}
    info = header.photo_tokens
    tokens, dimensions = (info.rows, info.cols, info.width), ("query", "token_row", "token_col", "token_feature")
    return {
        "queries/tokens_status": array((header.rows,), (PHOTO_CHUNK,), "uint8", ("query",), 0, {}),
        "queries/tokens": array((header.rows, *tokens), (1, *tokens), "int8", dimensions, ABSENT, {}),
        **_projection_documents("queries/tokens_", info, "token_source", "token_feature"),
    }


def photo_array(name: str) -> str:
    """Path of the array of a column in the cache."""
    return f"queries/{array_name(name)}"


def array_name(name: str) -> str:
    """Name of the array of a column; characters that it cannot have are percent-encoded ("km/h" is "km%2Fh")."""
    return _RESERVED.sub(lambda match: f"%{ord(match[0]):02X}", name)


def photo_document(header: PhotosHeader, name: str, width: int) -> Document:
    """Document of one array of the photos.

    Args:
        header: the header of the photos.
        name: "embedding" or a column.
        width: number of features.
    """
    if name == "embedding":
        shape, attributes = (header.rows, 1 + header.views, width), {"coordinates": "id latitude longitude split"}
        chunks, dimensions = (PHOTO_CHUNK, 1, width), ("query", "view", "feature")
        return array(shape, chunks, "float16", dimensions, "NaN", attributes)
    data_type = COLUMNS[name][0] if name in COLUMNS else header.columns[name]
    fill = COLUMNS[name][1] if name in COLUMNS else _FILL[data_type]
    chunk = PHOTO_CHUNK if name in WRITTEN_WITH_EMBEDDING else COLUMN_CHUNK
    units = {"units": _UNITS[name]} if name in _UNITS else {}
    return array((header.rows,), (chunk,), data_type, ("query",), fill, units)


def root_document(header: CacheHeader, photos: PhotosHeader) -> Document:
    """Document of the root group, with the consolidated metadata from which xarray opens the cache in one request."""
    members = map_documents(header) | photo_documents(photos, header.encoder.width)
    nested: Document = {"kind": "inline", "must_understand": False, "metadata": {}}
    for name, document in members.items():
        if document["node_type"] == "group":
            members[name] = {**document, "consolidated_metadata": nested}
    return {
        **group({"jzi": entries_of(header)}),
        "consolidated_metadata": {"kind": "inline", "must_understand": False, "metadata": members},
    }


def group(attributes: dict[str, Any]) -> Document:
    """Document of a group."""
    return {"attributes": attributes, "zarr_format": 3, "node_type": "group"}


def array(
    shape: tuple[int, ...],
    chunks: tuple[int, ...],
    data_type: str,
    dimensions: tuple[str, ...],
    fill: Any,
    attributes: dict[str, Any],
) -> Document:
    """Document of an array.

    The checksum is the last codec and covers the bytes on disk. zstd makes embeddings about 8 % smaller at any level,
    shuffled or not, and does not slow down their use (`python -m benchmarks.cache_codecs`).
    """
    serializer: Document = {"name": "bytes", "configuration": {"endian": "little"}}
    if data_type in _SINGLE_BYTE:
        serializer = {"name": "bytes"}
    elif data_type == "string":
        serializer = {"name": "vlen-utf8", "configuration": {}}
    compressor = {"name": "zstd", "configuration": {"level": 1, "checksum": False}}
    return {
        "shape": list(shape),
        "data_type": data_type,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(chunks)}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": fill,
        "codecs": [serializer, compressor, {"name": "crc32c"}],
        "attributes": attributes,
        "dimension_names": list(dimensions),
        "zarr_format": 3,
        "node_type": "array",
        "storage_transformers": [],
    }


def sharded(document: Document, shard: tuple[int, ...]) -> Document:
    """The document of an array whose chunks are stored together in shards, each with an index of its own checksum."""
    inner = document["chunk_grid"]["configuration"]["chunk_shape"]
    index_codecs = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
    configuration = {
        "chunk_shape": inner,
        "codecs": document["codecs"],
        "index_codecs": index_codecs,
        "index_location": "end",
    }
    return {
        **document,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(shard)}},
        "codecs": [{"name": "sharding_indexed", "configuration": configuration}],
    }
