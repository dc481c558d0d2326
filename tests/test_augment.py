"""Augmented views of photos and tiles: which operations are applied how often, and reproducibility."""

from __future__ import annotations

import pytest
import torch

from jzi.encode import augment
from jzi.encode.augment import (
    DRAWS,
    GRAY,
    augment_photos,
    augment_tiles,
    drop_parts,
    view_draws,
)

N, SIDE = 200, 42


@pytest.fixture
def draws() -> torch.Tensor:
    return torch.rand(N, DRAWS, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def photos() -> torch.Tensor:
    """Smooth colours, so that a crop changes no pixel much."""
    ramp = torch.linspace(0.2, 0.8, 2 * SIDE)
    red, green = ramp.expand(SIDE, -1), ramp[::2].flip(0)[:, None].expand(-1, 2 * SIDE)
    return torch.stack([red, green, 1 - red]).expand(N, -1, -1, -1)


def test_a_view_keeps_shape_and_range(photos, draws) -> None:
    views = augment_photos(photos, draws)
    assert views.shape == photos.shape and views.min() >= 0 and views.max() <= 1
    tiles = augment_tiles(photos[..., :SIDE], draws)
    assert tiles.shape == (N, 3, SIDE, SIDE) and tiles.min() >= 0 and tiles.max() <= 1


def test_the_same_numbers_make_the_same_view_in_any_batch(photos, draws) -> None:
    whole = augment_photos(photos, draws)
    alone = torch.cat([augment_photos(photos[i : i + 1], draws[i : i + 1]) for i in range(N)])
    torch.testing.assert_close(alone, whole, atol=1e-5, rtol=0)
    squares = photos[..., :SIDE]
    alone = torch.cat([augment_tiles(squares[i : i + 1], draws[i : i + 1]) for i in range(N)])
    torch.testing.assert_close(alone, augment_tiles(squares, draws), atol=1e-5, rtol=0)


def test_tiles_are_neither_cropped_nor_grayed_and_a_quarter_is_left_alone(photos, draws) -> None:
    tiles = photos[..., :SIDE]
    changed = (augment_tiles(tiles, draws) != tiles).flatten(1).any(1)
    assert 0.15 < 1 - changed.float().mean() < 0.35  # 0.5 x 0.7 x 0.7
    assert torch.equal(augment_tiles(tiles, torch.ones_like(draws)), tiles)
    assert (augment_tiles(tiles, draws).std(1).flatten(1).amax(1) > 0.02).all()  # a gray tile has none


def test_a_tenth_of_the_photos_is_gray(photos, draws) -> None:
    gray = augment_photos(photos, draws).std(1).flatten(1).amax(1) < 1e-3
    assert torch.equal(gray, draws[:, augment._GRAY] < GRAY) and gray.any()


def test_crops_keep_70_to_100_percent_of_the_photo(photos, draws) -> None:
    draws[:, augment._JITTER.start] = draws[:, augment._GRAY] = draws[:, augment._FILTER.start] = 1.0
    red = augment_photos(photos, draws)[:, 0]
    extent = (red.amax((1, 2)) - red.amin((1, 2))) / 0.6  # of the photo's width
    assert extent.min() > 0.7**0.5 - 0.03 and extent.max() < 1.001
    assert extent.min() < 0.87 and extent.max() > 0.97


def test_parts_are_dropped_from_three_tenths_by_grid_or_by_rectangles(draws) -> None:
    white = torch.ones(N, 3, SIDE, SIDE)
    dropped = 1 - drop_parts(white, draws)[:, 0].mean((1, 2))
    which = draws[:, augment._DROPOUT.start]
    assert (dropped[which >= 0.3] == 0).all()
    assert ((dropped[which < 0.15] > 0.1) & (dropped[which < 0.15] < 0.35)).all()  # 0.4 x 0.4 of each cell
    coarse = dropped[(which >= 0.15) & (which < 0.3)]
    assert coarse.min() > 0.05 and coarse.max() < 0.5


def test_a_view_of_a_photo_depends_on_its_bytes_the_view_and_the_seed() -> None:
    one = view_draws("a" * 64, 1, 0, 2)
    assert one.shape == (3, DRAWS) and (one == view_draws("a" * 64, 1, 0, 2)).all()
    for other in (view_draws("b" * 64, 1, 0, 2), view_draws("a" * 64, 2, 0, 2), view_draws("a" * 64, 1, 1, 2)):
        assert (one != other).any()
