"""Flips, quarter turns, rolls and dropout of photos and windows: the scene stays one scene."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from jzi.train.refine.refine_augment import (
    PairLabels,
    Symmetry,
    coarsen_images,
    drop_tokens,
    jitter_images,
    roll_panoramas,
)

SIDE, WIDTH, RADII = 96, 72, (6.0, 10.0, 15.0)


def scene(place: Tensor) -> Tensor:
    """(n, 3, SIDE, SIDE): twelve sectors of different colours around each place, and rings of brightness."""
    position = torch.arange(SIDE) + 0.5
    u = position[None, None, :] - (place[:, 0] + 0.5)[:, None, None] * SIDE
    v = position[None, :, None] - (place[:, 1] + 0.5)[:, None, None] * SIDE
    azimuth = torch.atan2(u, -v)
    sector = torch.floor(azimuth / (2 * math.pi) * 12) % 12
    distance = torch.hypot(u, v)
    return torch.stack([torch.sin(sector), torch.cos(2.7 * sector), distance / SIDE], 1)


def panorama(windows: Tensor, labels: PairLabels) -> Tensor:
    """(n, 3, radius, WIDTH): what the windows show around each place, the centre column in its heading's direction."""
    angle = (torch.arange(WIDTH) + 0.5 - WIDTH / 2) * (360 / WIDTH)
    azimuth = torch.deg2rad(labels.heading_deg[:, None] + angle)  # (n, column)
    radius = torch.tensor(RADII)[None, :, None] / SIDE
    u = labels.place[:, 0, None, None] + radius * azimuth.sin()[:, None]
    v = labels.place[:, 1, None, None] - radius * azimuth.cos()[:, None]
    return functional.grid_sample(windows, 2 * torch.stack([u, v], -1), align_corners=False)


@pytest.fixture
def labels() -> PairLabels:
    return PairLabels(
        torch.tensor([[0.11, -0.23], [-0.27, 0.05], [0.0, 0.31], [0.2, 0.2]]), torch.tensor([0.0, 33.0, 200.0, 271.5])
    )


@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_the_panorama_of_a_transformed_window_is_the_transformed_panorama(
    labels: PairLabels, flipped: bool, turns: int
) -> None:
    windows = scene(labels.place)
    photos = panorama(windows, labels)
    symmetry = Symmetry(torch.tensor([flipped, False, flipped, True]), torch.tensor([turns, turns, 1, 3]))
    moved, turned = symmetry.labels(labels), symmetry.windows(windows, 2, 3)
    assert torch.allclose(panorama(turned, moved), symmetry.photos(photos, 3), atol=1e-4)
    if flipped or turns:  # and the test would see labels that stay as they are
        assert not torch.allclose(panorama(turned, labels), symmetry.photos(photos, 3), atol=0.1)


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_rolling_a_panorama_back_restores_its_heading_as_in_the_paper(labels: PairLabels, turns: int) -> None:
    windows = scene(labels.place)
    photos = panorama(windows, labels)
    symmetry = Symmetry(torch.zeros(4, dtype=torch.bool), torch.full((4,), turns))
    moved = symmetry.labels(labels)
    rolled, heading = roll_panoramas(photos, moved.heading_deg, torch.full((4,), -turns * WIDTH // 4), 3)
    assert torch.allclose(heading, labels.heading_deg)
    expected = panorama(symmetry.windows(windows, 2, 3), PairLabels(moved.place, heading))
    assert torch.allclose(rolled, expected, atol=1e-4)


def test_grids_of_tokens_are_transformed_as_images_are(labels: PairLabels) -> None:
    windows, photos = scene(labels.place), panorama(scene(labels.place), labels)
    symmetry = Symmetry.draw(4, torch.Generator().manual_seed(3))
    tokens = symmetry.windows(windows.permute(0, 2, 3, 1), 1, 2)
    assert torch.equal(tokens.permute(0, 3, 1, 2), symmetry.windows(windows, 2, 3))
    tokens = symmetry.photos(photos.permute(0, 2, 3, 1), 2)
    assert torch.equal(tokens.permute(0, 3, 1, 2), symmetry.photos(photos, 3))


def test_places_of_all_photos_in_a_window_move_with_it() -> None:
    places = torch.rand(2, 5, 2) - 0.5
    symmetry = Symmetry(torch.tensor([True, False]), torch.tensor([1, 3]))
    moved = symmetry.places(places)
    for photo in range(5):
        assert torch.equal(moved[:, photo], symmetry.places(places[:, photo]))


def test_a_quarter_turn_moves_a_pixel_with_the_image() -> None:
    windows = torch.zeros(3, 1, 4, 4)
    windows[:, 0, 0, 2] = 1  # the pixel's centre is 0.5 right of the window's and 1.5 above
    symmetry = Symmetry(torch.zeros(3, dtype=torch.bool), torch.tensor([1, 2, 3]))
    turned = symmetry.windows(windows, 2, 3)
    place = symmetry.places(torch.tensor([[0.5, -1.5]]).expand(3, 2) / 4)
    pixel = ((place + 0.5) * 4).floor().long()
    assert [float(turned[n, 0, row, col]) for n, (col, row) in enumerate(pixel.tolist())] == [1, 1, 1]


def test_symmetries_have_the_published_probabilities() -> None:
    symmetry = Symmetry.draw(4000, torch.Generator().manual_seed(0))
    assert float(symmetry.flip.float().mean()) == pytest.approx(0.5, abs=0.03)
    assert [float((symmetry.turns == n).float().mean()) for n in range(4)] == [pytest.approx(0.25, abs=0.03)] * 4
    assert not Symmetry.draw(10, torch.Generator(), turn=False).turns.any()


def test_dropout_of_tokens_leaves_most_and_is_a_function_of_the_seed() -> None:
    tokens = torch.ones(400, 6, 12, 2)
    dropped, again = (drop_tokens(tokens, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(dropped, again)
    untouched = (dropped == 1).flatten(1).all(1).float().mean()
    assert 0.6 < float(untouched) < 0.8
    assert 0.85 < float(dropped.mean()) < 0.99


def test_jitter_takes_panoramas_and_moves_nothing() -> None:
    photos = torch.rand(6, 3, 40, 80, generator=torch.Generator().manual_seed(0))
    views = jitter_images(photos, torch.Generator().manual_seed(2), 0.5)
    assert views.shape == photos.shape
    assert not torch.equal(views, photos)
    assert torch.equal(views, jitter_images(photos, torch.Generator().manual_seed(2), 0.5))


def test_coarser_pixels_keep_means_and_places_and_lose_detail() -> None:
    rows, cols = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    chequered = ((rows + cols) % 2).expand(40, 3, 64, 64)
    slope = (cols / 64).expand(40, 3, 64, 64)
    coarse = coarsen_images(chequered, 4.0, torch.Generator().manual_seed(0))
    changed = (coarse != chequered).flatten(1).any(1)
    assert 10 <= int(changed.sum()) <= 30
    assert coarse.mean((1, 2, 3)).numpy() == pytest.approx(0.5, abs=0.01)
    assert (coarse[changed].std((1, 2, 3)) < 0.5 * chequered[0].std()).float().mean() > 0.8
    moved = coarsen_images(slope, 4.0, torch.Generator().manual_seed(0)) - slope
    assert moved[..., 8:-8, 8:-8].abs().max() < 0.5 / 64  # not by half a pixel
