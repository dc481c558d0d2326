"""Tokens of photos from the patch tokens of the squares that they are cut into."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from jzi.encode.encoders.encoder import Encoder
from jzi.encode.photo.photo_reader import PhotoReader
from jzi.errors import CacheCorruptError, CacheError
from jzi.store.cache.chunk_writer import rows_by_chunk
from jzi.store.features.photo_features import PhotoFeatures
from jzi.store.features.projection import Projection
from jzi.store.features.token_info import PhotoTokensInfo

#: Tokens that the projection is fitted to, and photos that they are taken from.
SAMPLE_TOKENS, SAMPLE_PHOTOS = 20_000, 128

#: Seed of the choice of photos and tokens for the projection.
SEED = 0


@torch.inference_mode()
def encode_photos_and_tokens(encoder: Encoder, photos: NDArray[np.uint8]) -> tuple[Tensor, Tensor]:
    """Embed photos and return their tokens, from one forward pass.

    Args:
        encoder: the encoder.
        photos: (n, height, width, 3) uint8 of `Encoder.photo_shape`.

    Returns:
        (n, feature) embeddings, as of `Encoder.encode_photos`, and (n, row, col, feature) tokens: those of the squares
        side by side, in columns that are equally wide and fill the photo. float32 on the device.
    """
    squares = encoder.squares(encoder.to_unit(torch.from_numpy(photos)))
    embedding, patches = encoder.embed_with_patches(encoder.normalise(squares.flatten(0, 1)))
    side = encoder.image_size // encoder.patch
    tokens = patches.unflatten(1, (side, side)).unflatten(0, squares.shape[:2])  # (n, square, row, col, feature)
    tokens = torch.cat(tokens.unbind(1), dim=2)
    if encoder.image_size % encoder.patch:
        weights = column_weights(encoder.image_size, encoder.patch, squares.shape[1])
        tokens = torch.einsum("vu,nruf->nrvf", torch.from_numpy(weights).to(tokens), tokens)
    return embedding.unflatten(0, squares.shape[:2]).mean(1), tokens


@lru_cache(maxsize=8)
def column_weights(size: int, patch: int, squares: int) -> NDArray[np.float32]:
    """(column, token column) weights that make columns of equal width of the tokens of squares side by side.

    Patches of 14 see 378 of 384 pixels: between two squares, and at the right end, there is a gap.

    Args:
        size: side of a square, pixels.
        patch: side of a patch, pixels.
        squares: number of squares.
    """
    side = size // patch
    centres = (np.arange(squares)[:, None] * size + (np.arange(side) + 0.5) * patch).ravel()
    columns = (np.arange(len(centres)) + 0.5) / len(centres) * squares * size
    each = np.eye(len(centres))
    return np.stack([np.interp(columns, centres, row) for row in each], 1).astype(np.float32)


def prepare_photo_tokens(queries: PhotoFeatures, encoder: Encoder, frame: pd.DataFrame, batch_size: int = 32) -> int:
    """Create the arrays of the photos' tokens and fit their projection, or mark those that are damaged as missing.

    The projection is fitted to training photos, if there are any. One that is damaged is fitted again; if that gives
    another one, since the photos have changed, the tokens of all photos are made anew.

    Args:
        queries: photos of a cache that is open for writing.
        encoder: the cache's encoder.
        frame: of a `PhotoTable`.
        batch_size: photos per forward pass.

    Returns:
        The number of photos whose tokens are damaged.

    Raises:
        CacheError: none of the photos can be read, or the disk is full.
    """
    if queries.has_tokens and _is_sound(queries):
        return _mark_damaged(queries)
    train = frame[frame["split"] == "train"]
    projection, shape = _fit(encoder, (train if len(train) else frame)["photo"].tolist(), batch_size)
    info = PhotoTokensInfo(
        rows=shape[0],
        cols=shape[1],
        source_width=len(projection.mean),
        width=len(projection.scale),
        projection=projection.digest,
    )
    if queries.has_tokens and queries.tokens.info == info:
        queries.tokens.write_projection(projection)
        return _mark_damaged(queries)
    damaged = int(queries.tokens.status().sum()) if queries.has_tokens else 0
    queries.create_tokens(info, projection)
    return damaged


def _is_sound(queries: PhotoFeatures) -> bool:
    """Whether the projection of the tokens can be read."""
    try:
        return bool(queries.tokens.projection)
    except CacheCorruptError:
        return False


def _mark_damaged(queries: PhotoFeatures) -> int:
    """Mark tokens that are damaged as missing, and return the number of their photos."""
    damaged = queries.tokens.damaged_rows()
    for rows in rows_by_chunk(damaged):
        queries.tokens.mark(rows, 0)
    return len(damaged)


def _fit(encoder: Encoder, photos: list[str], batch_size: int) -> tuple[Projection, tuple[int, ...]]:
    """A projection fitted to random tokens of random photos, and the rows and columns of a photo's tokens."""
    reader = PhotoReader(encoder.photo_shape, encoder.resampling, fit=encoder.fit)
    rng = np.random.default_rng(SEED)
    chosen = [photos[int(index)] for index in rng.permutation(len(photos))[:SAMPLE_PHOTOS]]
    each = math.ceil(SAMPLE_TOKENS / max(1, len(chosen)))
    parts: list[NDArray[np.float32]] = []
    shape: tuple[int, ...] = ()
    with tqdm(total=len(chosen), unit="photo", desc="projection") as bar:
        for batch in reader.batches(chosen, batch_size):
            pixels = [photo.pixels for photo in batch if photo.pixels is not None]
            for tokens in encode_photos_and_tokens(encoder, np.stack(pixels))[1].cpu().numpy() if pixels else ():
                shape = tokens.shape[:2]
                tokens = tokens.reshape(-1, tokens.shape[-1])
                parts.append(tokens[rng.permutation(len(tokens))[:each]])
            bar.update(len(batch))
    if not parts:
        raise CacheError("there is no photo that can be read, of which tokens could be made: check queries.table")
    return Projection.fit(np.concatenate(parts)[:SAMPLE_TOKENS]), shape
