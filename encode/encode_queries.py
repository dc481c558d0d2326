"""Encode photos into the cache: new and changed ones only."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from numpy.typing import NDArray
from tqdm import tqdm

from jzi.encode.device import processes
from jzi.encode.encoders.encoder import Encoder
from jzi.encode.encoders.photo_encoder import PhotoEncoder
from jzi.encode.photo.augment import AUGMENTATION_VERSION, augment_photos, drop_parts, view_draws
from jzi.encode.photo.photo_files import PhotoFiles, with_copies_together
from jzi.encode.photo.photo_reader import PhotoReader, ReadPhoto
from jzi.encode.photo.photo_tokens import encode_photos_and_tokens, prepare_photo_tokens
from jzi.encode.photo.photo_view import with_view_columns
from jzi.encode.progress import Progress
from jzi.errors import ConfigError
from jzi.store.cache.chunk_writer import PhotoWriter, rows_by_chunk
from jzi.store.cache.feature_cache import NODATA, FeatureCache
from jzi.store.features.photo_features import CHUNK, ENCODED, MISSING, UNREADABLE, PhotoFeatures
from jzi.store.features.projection import Projection
from jzi.store.photos.photo_table import PhotoTable, Rejected


@dataclass(frozen=True)
class PhotoReport:
    """Counts of `encode_queries`, summed over all processes.

    Attributes:
        encoded: photos encoded by this run.
        reused: unchanged photos that the cache already held.
        unreadable: photos that cannot be read, with the reason.
        damaged: photos whose cached embeddings could not be read; included in `encoded`.
        remade: whether existing views of another seed or augmentation version were replaced.
        moved: photos that the cache already held with another split; their embeddings are kept.
        copies: photos of val and test that are copies of a file of another split: they were assigned to the split of
            that one, unless the table has its own splits.
        off_map: photos taken where the encoded map has no imagery; training and evaluation leave them out.
        tokens: photos whose tokens were written by this run.
        tokens_damaged: photos whose cached tokens could not be read; included in `tokens`.
        tokens_bytes: size on disk of the tokens of all photos; 0 if they were not requested.
    """

    encoded: int
    reused: int
    unreadable: tuple[Rejected, ...]
    damaged: int
    remade: bool = False
    moved: int = 0
    copies: int = 0
    off_map: tuple[Rejected, ...] = ()
    tokens: int = 0
    tokens_damaged: int = 0
    tokens_bytes: int = 0


@dataclass(frozen=True)
class PhotoBatch:
    """Photos of one chunk for another process to encode.

    Attributes:
        rows: (photo,) their rows in the cache.
        paths: their files.
        sizes: bytes of the files; -1 for those that do not exist.
        views: number of augmented views of each.
        only_tokens: whether only the tokens of each are missing.
    """

    rows: NDArray[np.int64]
    paths: tuple[str, ...]
    sizes: tuple[int, ...]
    views: tuple[int, ...]
    only_tokens: tuple[bool, ...]

    def __len__(self) -> int:
        return len(self.rows)


#: Encodes photos elsewhere, counting them; returns for each batch the rows that cannot be read, with the reason.
PhotoRunner = Callable[[list[PhotoBatch], tqdm], list[list[tuple[int, str]]]]


def encode_queries(
    cache: FeatureCache,
    encoder: PhotoEncoder,
    table: PhotoTable,
    *,
    batch_size: int = 32,
    views: int = 0,
    seed: int = 0,
    tokens: bool = False,
    magnetic_sd_deg: float = 20.0,
    run_batches: PhotoRunner | None = None,
) -> PhotoReport:
    """Set the cache's list of photos to a table, and encode photos that are missing or have changed.

    Photos are matched by id. A file is hashed only if its size or modification time differs from the recorded ones,
    and encoded again only if its SHA-256 does. Photos that cannot be read are reported, not raised.

    Args:
        cache: created for this encoder, open for writing.
        encoder: the cache's encoder.
        table: photos, all inside the pyramid's area.
        batch_size: photos per forward pass.
        views: number of augmented views per training photo, in addition to the plain photo; extra views that the
            cache already holds are kept.
        seed: of the views.
        tokens: also store the photos' tokens, which refiners read, and columns with what is known of their view
            (`jzi.encode.photo.photo_view`); embeddings that the cache already holds are kept.
        magnetic_sd_deg: standard deviation of headings that refer to magnetic north.
        run_batches: encodes the photos elsewhere (`jzi.cluster`); by default this process does.

    Returns:
        The counts.

    Raises:
        CacheError: the disk is full.
        ConfigError: there are views or tokens, but the encoder is not one for photos and tiles alike, which they are
            for.
    """
    if (views or tokens) and not isinstance(encoder, Encoder):
        raise ConfigError(
            f"{encoder.info.name} has a tower for photos, which is trained from images: set queries.views to 0, and "
            "leave --tokens out"
        )
    state = processes()
    queries, files = cache.queries, PhotoFiles(table.frame)
    damaged, moved, copies, remade, tokens_damaged = 0, 0, 0, False, 0
    if state.is_main_process:
        queries.repair()
        before = queries.frame()
        table, copies = with_copies_together(table, before, files)
        moved = _moved(before, table)
        queries.list_photos(with_view_columns(table.frame, magnetic_sd_deg) if tokens else table.frame)
        if views:
            remade = queries.require_views(views, {"seed": seed, "recipe": AUGMENTATION_VERSION})
        cache.consolidate()  # the steps above may have added rows and columns
        damaged_rows = queries.damaged_rows()
        damaged = len(damaged_rows)
        for rows in rows_by_chunk(damaged_rows):
            queries.write(rows, {"status": np.full(len(rows), MISSING)})
        if tokens:
            assert isinstance(encoder, Encoder)
            tokens_damaged = prepare_photo_tokens(queries, encoder, table.frame, batch_size)
            cache.consolidate()
    state.wait_for_everyone()
    frame = queries.frame()
    missing_views = (frame["split"] == "train") & (frame["views"] < views) & (frame["status"] == ENCODED)
    pending = _pending_rows(frame, files, queries, state, missing_views.to_numpy())
    only_tokens = np.empty(0, np.int64)
    if tokens:
        without = (frame["status"] == ENCODED).to_numpy() & (queries.tokens.status()[frame.index] == 0)
        only_tokens = np.setdiff1d(frame.index.to_numpy(np.int64)[without], pending)
    pending = np.union1d(pending, only_tokens)
    process_rows = pending[pending // CHUNK % state.num_processes == state.process_index]
    state.wait_for_everyone()  # nobody writes before all have determined `pending`
    paths, sizes = (dict(zip(frame.index, each[frame["id"]], strict=True)) for each in (files.path, files.size))
    view_counts = dict(zip(frame.index, np.where(frame["split"] == "train", views, 0), strict=True))
    hide_bar = not (state.is_main_process and len(pending))
    with tqdm(total=len(pending), unit="photo", desc="photos", disable=hide_bar) as bar:
        if run_batches is None:
            errors = _encode(
                process_rows, paths, view_counts, seed, encoder, queries, batch_size, bar, set(only_tokens.tolist()),
                tokens,
            )  # fmt: skip
        else:
            batches = [_batch(rows, paths, sizes, view_counts, only_tokens) for rows in rows_by_chunk(process_rows)]
            errors = (error for each in run_batches(batches, bar) for error in each)
        unreadable = [(frame["id"][row], error) for row, error in errors]
    if state.num_processes > 1:
        unreadable = gather_object(unreadable)
    written = len(pending) - len(unreadable)
    encoded = len(np.setdiff1d(pending, only_tokens)) - len(unreadable)
    unchanged = frame[~frame.index.isin(np.setdiff1d(pending, only_tokens))]
    still_unreadable = unchanged["id"][unchanged["status"] == UNREADABLE]
    unreadable += [(name, "cannot be read, and has not changed since the last attempt") for name in still_unreadable]
    return PhotoReport(
        encoded=encoded,
        reused=len(unchanged) - len(still_unreadable),
        unreadable=tuple(Rejected(*each) for each in unreadable),
        damaged=damaged,
        remade=remade,
        moved=moved,
        copies=copies,
        off_map=_off_map(cache, frame),
        tokens=written if tokens else 0,
        tokens_damaged=tokens_damaged,
        tokens_bytes=queries.tokens.stored_bytes() if tokens else 0,
    )


def encode_batch(
    queries: PhotoFeatures,
    encoder: PhotoEncoder,
    batch: PhotoBatch,
    progress: Progress,
    *,
    batch_size: int = 32,
    seed: int = 0,
    tokens: bool = False,
) -> list[tuple[int, str]]:
    """Encode photos for `encode_queries`, which runs in another process and holds the cache's lock.

    Args:
        queries: the photos of the cache, open for writing.
        encoder: the cache's encoder.
        batch: what to encode.
        progress: counts the photos.
        batch_size: photos per forward pass.
        seed: of the views.
        tokens: also store the photos' tokens.

    Returns:
        The rows of photos that cannot be read, with the reason.
    """
    paths, views = (dict(zip(batch.rows.tolist(), each, strict=True)) for each in (batch.paths, batch.views))
    only_tokens = set(batch.rows[np.array(batch.only_tokens, bool)].tolist())
    errors = _encode(batch.rows, paths, views, seed, encoder, queries, batch_size, progress, only_tokens, tokens)
    return list(errors)


def _batch(
    rows: NDArray[np.int64],
    paths: dict[int, str],
    sizes: dict[int, int],
    views: dict[int, int],
    only_tokens: NDArray[np.int64],
) -> PhotoBatch:
    files = tuple(str(Path(paths[row]).absolute()) for row in rows)
    file_sizes, counts = (tuple(int(each[row]) for row in rows) for each in (sizes, views))
    return PhotoBatch(rows, files, file_sizes, counts, tuple(np.isin(rows, only_tokens).tolist()))


def _moved(before: pd.DataFrame, table: PhotoTable) -> int:
    before = before[(before["status"] == ENCODED) & (before["split"] != "")]  # empty where a chunk was repaired
    split = table.frame.set_index("id")["split"].reindex(before["id"])
    return int((split.notna().to_numpy() & (split.to_numpy() != before["split"].to_numpy())).sum())


def _off_map(cache: FeatureCache, frame: pd.DataFrame) -> tuple[Rejected, ...]:
    row, col = cache.area.cells_at(frame["latitude"], frame["longitude"])
    status = cache.cells.status() if cache.region else cache.tiles.readable_status(cache.levels)[0]
    nodata = (row >= 0) & (status[row, col] == NODATA)
    return tuple(Rejected(name, "the map has no imagery there") for name in frame["id"][nodata])


def _pending_rows(
    frame: pd.DataFrame,
    files: PhotoFiles,
    queries: PhotoFeatures,
    state: PartialState,
    missing_views: NDArray[np.bool_],
) -> NDArray[np.int64]:
    """Rows to encode: new photos, changed files, and photos with missing views.

    Digests that were in a damaged chunk are computed again, of files whose size and time are as recorded.
    """
    size, mtime_ns = (each[frame["id"]].to_numpy() for each in (files.size, files.mtime_ns))
    tried = (frame["status"] != MISSING).to_numpy()
    stat_differs = tried & ((frame["photo_bytes"] != size) | (frame["photo_mtime_ns"] != mtime_ns)).to_numpy()
    lost = tried & (size >= 0) & (frame["photo_sha256"] == "").to_numpy() & ~stat_differs
    candidates = np.flatnonzero(stat_differs | lost)
    hashes = files.digests(frame["id"].iloc[candidates])
    same = lost[candidates] | (frame["photo_sha256"].to_numpy(object)[candidates] == hashes).astype(bool)
    state.wait_for_everyone()
    if state.is_main_process and same.any():  # copied or touched: record the new size and time
        unchanged = candidates[same]
        position = pd.Series(unchanged, index=frame.index[unchanged])
        for rows in rows_by_chunk(position.index.to_numpy()):
            at = position[rows].to_numpy()
            queries.write(rows, {"photo_bytes": size[at], "photo_mtime_ns": mtime_ns[at]})
    if state.is_main_process and lost.any():
        queries.restore_digests(frame.index.to_numpy(np.int64)[lost], hashes[lost[candidates]])
    pending = ~tried | missing_views
    pending[candidates[~same]] = True
    return frame.index.to_numpy(np.int64)[pending]


def _encode(
    rows: NDArray[np.int64],
    paths: dict[int, str],
    views: dict[int, int],
    seed: int,
    encoder: PhotoEncoder,
    queries: PhotoFeatures,
    batch_size: int,
    bar: Progress,
    only_tokens: set[int],
    with_tokens: bool,
) -> Iterator[tuple[int, str]]:
    """Encode and write rows; yield each row whose photo could not be read, with the error."""
    writer = PhotoWriter(queries)
    projection = queries.tokens.projection if with_tokens else None
    reader = PhotoReader(encoder.photo_shape, encoder.resampling, fit=encoder.fit, stamps=True, subject="it")
    batch: dict[int, ReadPhoto] = {}

    def flush() -> None:
        if batch:
            counts = np.array([0 if row in only_tokens else views[row] for row in batch])
            embeddings, tokens = _embed(list(batch.values()), counts, seed, encoder, projection)
            for (row, photo), embedding, own in zip(batch.items(), embeddings, tokens, strict=True):
                if row in only_tokens and own is not None:
                    writer.put_tokens(row, own)
                else:
                    writer.put(row, photo.stamp, embedding[: 1 + views[row]], own)
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


def _embed(
    batch: list[ReadPhoto],
    views: NDArray[np.int64],
    seed: int,
    encoder: PhotoEncoder,
    projection: Projection | None = None,
) -> tuple[NDArray[np.float16], list[NDArray[np.int8]] | list[None]]:
    """(photo, 1 + views, feature): the plain photo, then its augmented views; NaN beyond the number of views.

    With a projection, the photos' tokens too.
    """
    pixels = np.stack([photo.pixels for photo in batch if photo.pixels is not None])
    tokens: list[NDArray[np.int8]] | list[None] = [None] * len(batch)
    if projection is None:
        plain = encoder.to_storage(encoder.encode_photos(pixels))
    else:
        assert isinstance(encoder, Encoder)
        embedded, patches = encode_photos_and_tokens(encoder, pixels)
        plain, tokens = encoder.to_storage(embedded), list(projection.quantise(patches.cpu().numpy()))
    embedding = np.full((len(batch), 1 + views.max(initial=0), plain.shape[1]), np.nan, np.float16)
    embedding[:, 0] = plain
    if not views.any():
        return embedding, tokens
    assert isinstance(encoder, Encoder)
    photos = encoder.to_unit(torch.from_numpy(pixels))
    squares = encoder.squares(photos[:1]).shape[1]
    for view in range(1, embedding.shape[1]):
        rows = np.flatnonzero(views >= view)
        draws = np.stack([view_draws(batch[row].stamp.sha256, view, seed, squares) for row in rows])
        photo_draws, square_draws = torch.from_numpy(draws).split([1, squares], dim=1)
        index = torch.from_numpy(rows).to(photos.device)
        augmented = encoder.squares(augment_photos(photos[index], photo_draws[:, 0]))
        augmented = drop_parts(augmented.flatten(0, 1), square_draws.flatten(0, 1)).unflatten(0, augmented.shape[:2])
        embedding[rows, view] = encoder.to_storage(encoder.encode_squares(augmented))
    return embedding, tokens
