"""Fills the photos' side of a cache: new and changed photos are encoded, the others are left as they are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from numpy.typing import NDArray
from tqdm import tqdm

from jzi.encode.augment import AUGMENTATION_VERSION, augment_photos, drop_parts, view_draws
from jzi.encode.device import processes
from jzi.encode.encoder import Encoder
from jzi.encode.photo_reader import PhotoReader, ReadPhoto
from jzi.encode.prefetch import prefetch, reader_threads
from jzi.store.cache import NODATA, FeatureCache
from jzi.store.chunk_writer import PhotoWriter, rows_by_chunk
from jzi.store.files import file_sha256
from jzi.store.photo_features import CHUNK, ENCODED, MISSING, UNREADABLE, PhotoFeatures
from jzi.store.photo_table import PhotoTable, Rejected


@dataclass(frozen=True)
class PhotoReport:
    """What `encode_queries` did, all processes together.

    Attributes:
        encoded: photos encoded by this run.
        reused: photos that the cache already had, unchanged.
        unreadable: photos that cannot be read, and why.
        damaged: photos that the cache claimed to have and could not give; they are among the encoded.
        remade: whether views of another seed had to give way.
        off_map: photos taken where the map, as far as it has been encoded, has no imagery: they will not be used.
    """

    encoded: int
    reused: int
    unreadable: tuple[Rejected, ...]
    damaged: int
    remade: bool = False
    off_map: tuple[Rejected, ...] = ()


def encode_queries(
    cache: FeatureCache, encoder: Encoder, table: PhotoTable, *, batch_size: int = 32, views: int = 0, seed: int = 0
) -> PhotoReport:
    """Make the cache list the photos of a table, and encode those that it lacks or that have changed.

    A photo is known by its id and by its bytes; bytes are looked at only where size or modification time differ from
    what the cache remembers. One photo that cannot be read costs only itself.

    Args:
        cache: made for this encoder, open for writing.
        encoder: as in the cache.
        table: photos, all inside the pyramid's area.
        batch_size: photos to a forward pass.
        views: how many augmented views of each training photo to encode beside the plain one; more stay as they are.
        seed: of the views.

    Raises:
        CacheError: the disk is full.
    """
    state = processes()
    queries = cache.queries
    damaged, remade = 0, False
    if state.is_main_process:
        queries.repair()
        queries.list_photos(table.frame)
        if views:
            remade = queries.require_views(views, {"seed": seed, "recipe": AUGMENTATION_VERSION})
        cache.consolidate()  # there may be more rows and columns now
        lost = queries.damaged_rows()
        damaged = len(lost)
        for rows in rows_by_chunk(lost):
            queries.write(rows, {"status": np.full(len(rows), MISSING)})
    state.wait_for_everyone()
    known = queries.frame()
    photos = table.frame.set_index("id")["photo"].reindex(known["id"])
    lacking = (known["split"] == "train") & (known["views"] < views) & (known["status"] == ENCODED)
    todo = _changed(known, photos.tolist(), queries, state, again=lacking.to_numpy())
    reused = len(known) - len(todo)
    mine = todo[todo // CHUNK % state.num_processes == state.process_index]
    state.wait_for_everyone()  # all have worked `todo` out before the first writes
    paths = dict(zip(known.index, photos, strict=True))
    unreadable = []
    with tqdm(total=len(todo), unit="photo", desc="photos", disable=not (state.is_main_process and len(todo))) as bar:
        viewed = dict(zip(known.index, np.where(known["split"] == "train", views, 0), strict=True))
        for row, error in _encode(mine, paths, viewed, seed, encoder, queries, batch_size, bar):
            unreadable.append((known["id"][row], error))
    if state.num_processes > 1:
        unreadable = gather_object(unreadable)
    still = known[~known.index.isin(todo)]
    still = still[still["status"] == UNREADABLE]
    unreadable += [(name, "cannot be read, and has not changed since it was tried") for name in still["id"]]
    encoded = len(todo) - (len(unreadable) - len(still))
    return PhotoReport(
        encoded=encoded,
        reused=reused - len(still),
        unreadable=tuple(Rejected(*each) for each in unreadable),
        damaged=damaged,
        remade=remade,
        off_map=_off_map(cache, known),
    )


def _off_map(cache: FeatureCache, known: pd.DataFrame) -> tuple[Rejected, ...]:
    pyramid = cache.pyramid
    row, col = pyramid.path_to_tile(pyramid.paths(known["latitude"], known["longitude"]))
    nothing = cache.readable_status(pyramid.levels)[0][row, col] == NODATA
    return tuple(Rejected(name, "the map has no imagery there") for name in known["id"][nothing])


def _changed(
    known: pd.DataFrame, photos: list[str], queries: PhotoFeatures, state: PartialState, again: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """Rows to encode: never tried, with other bytes than those that the cache knows, or wanted again."""
    size, mtime_ns = np.array([_stat(Path(photo)) for photo in photos], np.int64).reshape(-1, 2).T
    tried = (known["status"] != MISSING).to_numpy()
    touched = tried & ((known["photo_bytes"] != size) | (known["photo_mtime_ns"] != mtime_ns)).to_numpy()
    suspects = np.flatnonzero(touched)
    hashes = prefetch(lambda index: _sha256(Path(photos[index])), suspects, reader_threads())
    same = np.array(
        [known["photo_sha256"].iloc[index] == sha for index, sha in zip(suspects, hashes, strict=True)], bool
    )
    state.wait_for_everyone()
    if state.is_main_process and same.any():
        copies = suspects[same]
        position = pd.Series(copies, index=known.index[copies])
        for rows in rows_by_chunk(position.index.to_numpy()):
            at = position[rows].to_numpy()
            queries.write(rows, {"photo_bytes": size[at], "photo_mtime_ns": mtime_ns[at]})
    changed = ~tried | again
    changed[suspects[~same]] = True
    return known.index.to_numpy(np.int64)[changed]


def _encode(
    rows: NDArray[np.int64],
    paths: dict[int, str],
    views: dict[int, int],
    seed: int,
    encoder: Encoder,
    queries: PhotoFeatures,
    batch_size: int,
    bar: tqdm,
) -> Iterator[tuple[int, str]]:
    """Encode and write the given rows; yields those whose photos could not be read, and why."""
    writer = PhotoWriter(queries)
    reader = PhotoReader(encoder.photo_shape, stamps=True, subject="it")
    batch: dict[int, ReadPhoto] = {}

    def flush() -> None:
        if batch:
            photos, counts = list(batch.values()), np.array([views[row] for row in batch])
            for (row, photo), embedding in zip(batch.items(), _embed(photos, counts, seed, encoder), strict=True):
                writer.put(row, photo.stamp, embedding[: 1 + views[row]])
            bar.update(len(batch))
            batch.clear()

    with writer:
        photos = reader.read((paths[row] for row in rows), ahead=2 * batch_size)
        for row, photo in zip(rows.tolist(), photos, strict=True):
            if photo.pixels is None:
                writer.put(row, photo.stamp, None)
                bar.update()
                yield row, photo.error
                continue
            batch[row] = photo
            if len(batch) == batch_size:
                flush()
                writer.write_if_due()
        flush()


def _embed(batch: list[ReadPhoto], views: NDArray[np.int64], seed: int, encoder: Encoder) -> NDArray[np.float16]:
    """(photo, 1 + views, feature): the plain photo, then the augmented views that each is to have."""
    pixels = np.stack([photo.pixels for photo in batch if photo.pixels is not None])
    plain = encoder.to_storage(encoder.encode_photos(pixels))
    embedding = np.full((len(batch), 1 + views.max(initial=0), plain.shape[1]), np.nan, np.float16)
    embedding[:, 0] = plain
    if not views.any():
        return embedding
    photos = encoder.to_unit(torch.from_numpy(pixels))
    squares = encoder.squares(photos[:1]).shape[1]
    for view in range(1, embedding.shape[1]):
        index = np.flatnonzero(views >= view)
        draws = [view_draws(batch[place].stamp.sha256, view, seed, squares) for place in index]
        own, parts = torch.from_numpy(np.stack(draws)).to(photos.device).split([1, squares], dim=1)
        changed = encoder.squares(augment_photos(photos[torch.from_numpy(index).to(photos.device)], own[:, 0]))
        changed = drop_parts(changed.flatten(0, 1), parts.flatten(0, 1)).unflatten(0, changed.shape[:2])
        embedding[index, view] = encoder.to_storage(encoder.encode_squares(changed))
    return embedding


def _stat(path: Path) -> tuple[int, int]:
    """Size and modification time, -1 where there is no such file: reading it will say so."""
    try:
        stat = path.stat()
    except OSError:
        return -1, -1
    return stat.st_size, stat.st_mtime_ns


def _sha256(path: Path) -> str:
    try:
        return file_sha256(path)
    except OSError:
        return "unreadable"
