"""Augmented views of photos and tiles: which operations are applied how often, and reproducibility."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from jzi.encode.photo import augment
from jzi.encode.photo.augment import (
    DRAWS,
    GRAY,
    PHOTO_HOLE,
    TILE_HOLE,
    augment_photos,
    augment_tiles,
    drop_parts,
    view_draws,
)

N, SIDE = 200, 42


@pytest.fixture
def draws() -> torch.Tensor:
    return torch.rand(N, DRAWS, generator=torch.Generator().manual_seed(0))


def psnr(images: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """(n,) peak signal-to-noise ratio, dB."""
    return -10 * (images - others).square().flatten(1).mean(1).log10()


@pytest.fixture
def photos() -> torch.Tensor:
    """Smooth colours, so that a crop changes no pixel much."""
    ramp = torch.linspace(0.2, 0.8, 2 * SIDE)
    red, green = ramp.expand(SIDE, -1), ramp[::2].flip(0)[:, None].expand(-1, 2 * SIDE)
    return torch.stack([red, green, 1 - red]).expand(N, -1, -1, -1)


@pytest.fixture
def textured(photos) -> torch.Tensor:
    """Smooth colours with noise, square, of a side that is no multiple of 16."""
    noise = torch.randn(N, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1)) / 50
    return (photos[..., :SIDE] + noise).clamp(0, 1)


def test_a_view_keeps_shape_and_range(photos, draws) -> None:
    views = augment_photos(photos, draws)
    assert views.shape == photos.shape and views.min() >= 0 and views.max() <= 1
    tiles = augment_tiles(photos[..., :SIDE], draws)
    assert tiles.shape == (N, 3, SIDE, SIDE) and tiles.min() >= 0 and tiles.max() <= 1


@pytest.mark.parametrize("shape", [(7, 30), (16, 16), (28, 56), (91, 182)])
def test_images_of_any_size_are_augmented(draws, shape) -> None:
    images = torch.rand(8, 3, *shape)
    assert torch.isfinite(augment_photos(images, draws[:8])).all()


def test_the_same_numbers_make_the_same_view_in_any_batch(photos, draws) -> None:
    whole = augment_photos(photos, draws)
    alone = torch.cat([augment_photos(photos[i : i + 1], draws[i : i + 1]) for i in range(N)])
    torch.testing.assert_close(alone, whole, atol=1e-5, rtol=0)
    squares = photos[..., :SIDE]
    alone = torch.cat([augment_tiles(squares[i : i + 1], draws[i : i + 1]) for i in range(N)])
    torch.testing.assert_close(alone, augment_tiles(squares, draws), atol=1e-5, rtol=0)


def test_tiles_are_neither_cropped_nor_grayed_and_an_eighth_is_left_alone(photos, draws) -> None:
    tiles = photos[..., :SIDE]
    changed = (augment_tiles(tiles, draws) != tiles).flatten(1).any(1)
    assert 0.06 < 1 - changed.float().mean() < 0.2  # 0.5 x 0.5 x 0.7 x 0.7
    assert torch.equal(augment_tiles(tiles, torch.ones_like(draws)), tiles)
    assert (augment_tiles(tiles, draws).std(1).flatten(1).amax(1) > 0.02).all()  # a gray tile has none


def test_a_tenth_of_the_photos_is_gray(photos, draws) -> None:
    gray = augment_photos(photos, draws).std(1).flatten(1).amax(1) < 1e-3
    assert torch.equal(gray, draws[:, augment._GRAY] < GRAY) and gray.any()


def test_crops_keep_70_to_100_percent_of_the_photo(photos, draws) -> None:
    draws[:, augment._JITTER.start] = draws[:, augment._GRAY] = draws[:, augment._FILTER.start] = 1.0
    draws[:, augment._JPEG.start] = 1.0
    red = augment_photos(photos, draws)[:, 0]
    extent = (red.amax((1, 2)) - red.amin((1, 2))) / 0.6  # of the photo's width
    assert extent.min() > 0.7**0.5 - 0.03 and extent.max() < 1.001
    assert extent.min() < 0.87 and extent.max() > 0.97


def test_parts_are_dropped_from_three_tenths_by_grid_or_by_rectangles(draws) -> None:
    white = torch.ones(N, 3, SIDE, SIDE)
    dropped = 1 - drop_parts(white, draws)[:, 0].mean((1, 2))
    which = draws[:, augment._DROPOUT.start]
    assert (dropped[which >= 0.3] == 0).all()
    assert ((dropped[which < 0.15] > 0.1) & (dropped[which < 0.15] < 0.35)).all()  # 0.5 x 0.5 of each cell
    coarse = dropped[(which >= 0.15) & (which < 0.3)]
    assert coarse.min() > 0.05 and coarse.max() < 0.5


def test_the_holes_of_the_grid_are_half_a_cell_wide_in_photos_and_two_fifths_in_tiles(draws) -> None:
    draws = torch.ones_like(draws).index_copy(1, torch.arange(12, 14), draws[:, 12:14])  # nothing but dropout
    draws[:, augment._DROPOUT.start] = 0.0  # by the grid, shifted at random
    white = torch.ones(N, 3, 100, 100)
    for view, hole in ((drop_parts(white, draws), PHOTO_HOLE), (augment_tiles(white, draws), TILE_HOLE)):
        dropped = 1 - view[:, 0].mean((1, 2))
        torch.testing.assert_close(dropped, torch.full((N,), hole**2))
    assert (PHOTO_HOLE, TILE_HOLE) == (0.5, 0.4)


# Compression


def test_half_of_the_images_are_compressed_and_the_others_are_left_alone(textured, draws) -> None:
    selected = draws[:, augment._JPEG.start] < 0.5
    compressed = augment._compress(textured, draws[:, augment._JPEG])
    assert torch.equal((compressed != textured).flatten(1).any(1), selected)
    assert 0.4 < selected.float().mean() < 0.6
    assert compressed.min() >= 0 and compressed.max() <= 1


def test_compression_changes_an_image_little_and_the_less_the_higher_the_quality(textured) -> None:
    first, last = (augment._compress(textured, torch.tensor([[0.0, share]]).expand(N, 2)) for share in (0.0, 1.0))
    for image, bound in ((first, 30), (last, 34)):
        assert psnr(image, textured).min() > bound
    assert (psnr(last, textured) > psnr(first, textured)).all()


@pytest.mark.parametrize(("share", "quality"), [(0.0, 90), (0.5, 95), (0.999, 100)])
def test_an_image_is_compressed_as_by_a_jpeg_file(pattern, share: float, quality: int) -> None:
    noise = np.random.default_rng(0).normal(0, 5, (SIDE, SIDE, 3))
    pixels = (np.moveaxis(pattern(SIDE, SIDE, 10), 0, -1) + noise).clip(0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(file := io.BytesIO(), "JPEG", quality=quality, subsampling=2)
    images = [torch.from_numpy(np.array(each)).permute(2, 0, 1)[None] / 255 for each in (pixels, Image.open(file))]
    ours = augment._compress(images[0], torch.tensor([[0.0, share]]))
    assert psnr(ours, images[1]) > psnr(images[0], images[1]) + 3


def test_a_compressed_image_is_the_same_in_any_batch(textured, draws) -> None:
    draws[:, augment._JPEG.start] = 0.0
    whole = augment._compress(textured, draws[:, augment._JPEG])
    alone = torch.cat([augment._compress(textured[i : i + 1], draws[i : i + 1, augment._JPEG]) for i in range(N)])
    # A coefficient halfway between two steps of the quantisation may be rounded either way
    assert (whole - alone).abs().max() < 2 / 255 and (whole - alone).abs().mean() < 1e-5


def test_a_view_of_a_photo_depends_on_its_bytes_the_view_and_the_seed() -> None:
    one = view_draws("a" * 64, 1, 0, 2)
    assert one.shape == (3, DRAWS) and (one == view_draws("a" * 64, 1, 0, 2)).all()
    for other in (view_draws("b" * 64, 1, 0, 2), view_draws("a" * 64, 2, 0, 2), view_draws("a" * 64, 1, 1, 2)):
        assert (one != other).any()
