"""The layout of Hugging Face: Parquet shards with the photos in them, which `datasets.load_dataset` reads."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from jzi.curate.folder import NUMBERS, TEXTS, cannot_write
from jzi.errors import DatasetError
from jzi.publish.card import write_card
from jzi.publish.card_text import columns_without
from jzi.publish.publication import Photos, Publication, Request, begin, find_photos, fingerprint, finish, published
from jzi.store.disk.files import write_whole
from jzi.store.photos.photo_file import open_regular_file
from jzi.store.photos.splits import SPLITS

#: What Hugging Face calls the splits.
NAMES = {"train": "train", "val": "validation", "test": "test"}

#: Bytes of photos in a shard: what `datasets` aims at when it writes shards.
SHARD_BYTES = 500 * 10**6

#: Most photos and bytes of them in a row group, which is in memory at once; `datasets` has 100 images in one.
GROUP_ROWS, GROUP_BYTES = 100, 64 * 2**20

#: Largest photo, bytes.
MAX_PHOTO = 2**30

#: Columns that say where a row is, which its file does here.
_DROPPED = ("path", "split")
_WHOLE = ("width", "height")


def publish_huggingface(request: Request) -> Publication:
    """Publish a data set as data/<split>-00000-of-00001.parquet, with its card as README.md.

    A shard is written whole, and one that is there is kept, so that an interrupted publication is resumed. There are at
    most `GROUP_BYTES` of photos, and one more, in memory.

    Raises:
        DatasetError: the photos have no split, one is missing, the folder holds something else or cannot be written.
    """
    photos = find_photos(request)
    values = fingerprint("huggingface", request, photos)
    resumed = begin(request.output, values)
    frame = photos.frame.drop(columns=[name for name in _DROPPED if name in photos.frame])
    schema = _schema(frame)
    shards = list(_shards(photos))
    try:
        (request.output / "data").mkdir(exist_ok=True)
        with tqdm(total=int(photos.sizes.sum()), unit="B", unit_scale=True, desc="shards", delay=2) as progress:
            for name, rows in shards:
                file = request.output / "data" / name
                if not file.exists():
                    _write_shard(file, frame, photos, rows, schema, progress)
                else:
                    progress.update(int(photos.sizes[rows].sum()))
        files = [
            {"split": NAMES[split], "path": f"data/{NAMES[split]}-*"}
            for split, count in photos.count().items()
            if count
        ]
        write_card(
            published(request, photos), request.name, request.rasters, request.imagery_sources, output=request.output,
            name="README.md", configs=[{"config_name": "default", "data_files": files}], remote=request.remote,
            columns=columns_without(*_DROPPED, image="the photo"),
        )  # fmt: skip
        result = Publication(
            "huggingface", request.output, photos.count(), photos.left_out, len(shards), "shards", resumed
        )
        return finish(request.output, values, result)
    except OSError as error:
        raise DatasetError(cannot_write(request.output, error)) from error


def _shards(photos: Photos) -> Iterator[tuple[str, np.ndarray[Any, np.dtype[np.int64]]]]:
    """Name of each shard, and the rows in it."""
    split = photos.frame["split"].to_numpy()
    for name in SPLITS:
        rows = np.flatnonzero(split == name)
        if not len(rows):
            continue
        count = max(1, math.ceil(photos.sizes[rows].sum() / SHARD_BYTES))
        before = np.cumsum(photos.sizes[rows]) - photos.sizes[rows]
        shard = np.minimum(before * count // max(1, photos.sizes[rows].sum()), count - 1)
        for number in range(count):
            yield f"{NAMES[name]}-{number:05d}-of-{count:05d}.parquet", rows[shard == number]


def _schema(frame: pd.DataFrame) -> pa.Schema:
    """The columns, with the features that `datasets` reads from the metadata."""
    fields = [pa.field("image", pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())]))]
    features: dict[str, Any] = {"image": {"_type": "Image"}}
    for name in frame:
        kind = pa.string()
        if name in _WHOLE:
            kind = pa.int64()
        elif name == "panorama":
            kind = pa.bool_()
        elif name in NUMBERS or (name not in TEXTS and pd.api.types.is_numeric_dtype(frame[name])):
            kind = pa.float64()
        if name == "image":  # of a table of one's own
            raise DatasetError("the table has a column image, which is that of the photos: rename it")
        fields.append(pa.field(str(name), kind))
        dtype = {"double": "float64"}.get(str(kind), str(kind))
        features[str(name)] = {"dtype": dtype, "_type": "Value"}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    return pa.schema(fields, metadata=metadata)


def _write_shard(
    file: Path, frame: pd.DataFrame, photos: Photos, rows: np.ndarray[Any, Any], schema: pa.Schema, progress: tqdm
) -> None:
    # photos are compressed already
    compression = {each.name: "zstd" for each in schema if each.name != "image"} | {"image.bytes": "none"}

    def write(temporary: Path) -> None:
        with pq.ParquetWriter(temporary, schema, compression=compression, use_dictionary=False) as writer:
            for group in _groups(photos.sizes, rows):
                contents = [_read(photos.files[row]) for row in group]
                columns: list[Any] = [
                    pa.array(
                        [
                            {"bytes": content, "path": path}
                            for content, path in zip(contents, photos.frame["path"].iloc[group], strict=True)
                        ],
                        schema.field("image").type,
                    )
                ]
                columns += [_column(frame[each.name].iloc[group], each.type) for each in list(schema)[1:]]
                writer.write_table(pa.Table.from_arrays(columns, schema=schema), row_group_size=len(group))
                progress.update(sum(map(len, contents)))

    write_whole(file, write)


def _groups(sizes: np.ndarray[Any, Any], rows: np.ndarray[Any, Any]) -> Iterator[np.ndarray[Any, Any]]:
    start, held = 0, 0
    for end, size in enumerate(sizes[rows]):
        if end > start and (end - start >= GROUP_ROWS or held + size > GROUP_BYTES):
            yield rows[start:end]
            start, held = end, 0
        held += int(size)
    if start < len(rows):
        yield rows[start:]


def _read(file: Path) -> bytes:
    with open_regular_file(file) as opened:
        content = opened.read(MAX_PHOTO + 1)
    if len(content) > MAX_PHOTO:
        raise DatasetError(f"{file} has more than {MAX_PHOTO} bytes: shrink it")
    return content


def _column(values: pd.Series, kind: pa.DataType) -> pa.Array:
    """A column; what is unknown, text without a character and NaN, is null."""
    if pa.types.is_string(kind):
        return pa.array([str(value) if pd.notna(value) and value != "" else None for value in values], kind)
    if pa.types.is_boolean(kind):
        return pa.array(values.astype(bool).tolist(), kind)
    numbers = values.astype(float)
    if pa.types.is_integer(kind):
        return pa.array([int(value) if np.isfinite(value) else None for value in numbers], kind)
    return pa.array(numbers, kind, from_pandas=True)
