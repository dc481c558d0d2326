"""Fusion of several photos is more certain than one photo, and finds no position that none of them supports."""

from __future__ import annotations

import numpy as np
import pytest

from jzi.errors import ConfigError
from jzi.locate.answer.location import LocateOptions, to_locations
from jzi.locate.joint.sequential import OUTLIER, fuse, likelihoods, smooth_track
from jzi.locate.posterior import Posterior
from jzi.store.geometry.pyramid import Pyramid

SIDE = 16


@pytest.fixture
def pyramid() -> Pyramid:
    return Pyramid.around(48.2, 16.37, 320.0, grid=2, levels=4)  # 16 x 16 cells of 20 m


EVERYWHERE = np.ones((SIDE, SIDE), bool)


def saying(pyramid: Pyramid, *grids: np.ndarray) -> Posterior:
    """A posterior of every cell for each photo."""
    row, col = np.divmod(np.arange(SIDE * SIDE), SIDE)
    probability = np.stack([grid.ravel() / grid.sum() for grid in grids])
    return Posterior.from_cells(pyramid, row, col, probability)


def peaks(*cells: tuple[int, int, float]) -> np.ndarray:
    grid = np.full((SIDE, SIDE), 1e-4)
    for row, col, mass in cells:
        grid[row, col] += mass
    return grid


def test_a_posterior_of_given_cells_keeps_them_and_the_chain_rule(pyramid) -> None:
    grid = np.random.default_rng(0).random((SIDE, SIDE))
    grid /= grid.sum()
    found = saying(pyramid, grid)
    np.testing.assert_allclose(found.grid(), grid, rtol=1e-9)
    assert (np.diff(found.probability[0]) <= 1e-15).all()
    cells = to_locations(found, LocateOptions("map", radius=0.1, top=256), [""])[0].candidates
    first = {each.path[0]: each.step_probabilities[0] for each in cells}
    quarters = grid.reshape(2, 8, 2, 8).sum((1, 3)).ravel()
    assert [first[action] for action in range(4)] == pytest.approx(quarters.tolist())
    assert all(np.prod(each.step_probabilities) == pytest.approx(each.probability) for each in cells)
    part = Posterior.from_cells(pyramid, np.array([3, 4]), np.array([5, 6]), np.array([0.2, 0.5]))
    assert part.probability.sum() == pytest.approx(0.7) and part.residual == pytest.approx([0.3])


def test_the_place_that_two_photos_agree_on_wins(pyramid) -> None:
    one = peaks((3, 3, 0.5), (10, 10, 0.4))
    other = peaks((12, 2, 0.5), (10, 10, 0.4))
    both = fuse(saying(pyramid, one, other), EVERYWHERE)
    assert np.unravel_index(both.grid().argmax(), (SIDE, SIDE)) == (10, 10)
    assert both.grid()[10, 10] > 0.8 and both.probability.sum() == pytest.approx(1)


def test_one_photo_that_tells_nothing_rules_nothing_out(pyramid) -> None:
    good, wrong = peaks((5, 5, 1.0)), np.zeros((SIDE, SIDE))
    wrong[0, 0] = 1.0
    both = fuse(saying(pyramid, good, good, wrong), EVERYWHERE)
    assert np.unravel_index(both.grid().argmax(), (SIDE, SIDE)) == (5, 5)


def test_likelihoods_are_a_probability_that_leaves_no_cell_with_imagery_out(pyramid) -> None:
    somewhere = EVERYWHERE.copy()
    somewhere[:, :4] = False
    narrow = Posterior.from_cells(pyramid, np.array([8]), np.array([8]), np.array([0.6]))
    (grid,) = likelihoods(narrow, somewhere)
    assert grid.sum() == pytest.approx(1) and (grid[somewhere] > 0).all() and (grid[~somewhere] == 0).all()
    assert grid[8, 8] == pytest.approx((1 - OUTLIER) * 0.6, abs=0.001)
    assert (fuse(narrow, somewhere).grid()[~somewhere] == 0).all()


def test_a_drive_takes_the_side_that_can_be_reached(pyramid) -> None:
    """Photo 2 fits a cell on the other side of town equally well; its neighbours in time decide."""
    seen = [peaks((8, 2, 1.0)), peaks((8, 3, 0.5), (2, 14, 0.5)), peaks((8, 4, 1.0))]
    smoothed = smooth_track(saying(pyramid, *seen), EVERYWHERE, [0.0, 2.0, 4.0], speed=15.0)
    assert [np.unravel_index(each.grid().argmax(), (SIDE, SIDE)) for each in smoothed] == [(8, 2), (8, 3), (8, 4)]
    assert smoothed[1].grid()[8, 3] > 0.95
    alone = smooth_track(saying(pyramid, *seen), EVERYWHERE, [0.0, 600.0, 1200.0], speed=15.0)
    assert alone[1].grid()[2, 14] > 0.4  # after ten minutes every cell is in reach


def test_forward_backward_is_the_sum_over_all_tracks() -> None:
    """Compare with enumerating every track on a map of 4 x 4 cells."""
    pyramid = Pyramid.around(48.2, 16.37, 80.0, grid=2, levels=2)
    rng = np.random.default_rng(1)
    row, col = np.divmod(np.arange(16), 4)
    grids = [grid / grid.sum() for grid in rng.random((3, 16)) ** 4]
    found = Posterior.from_cells(pyramid, row, col, np.stack(grids))
    everywhere = np.ones((4, 4), bool)
    smoothed = smooth_track(found, everywhere, [0, 1, 2], speed=10.0)  # 10 m and a cell: the four neighbours
    seen = np.stack([*likelihoods(found, everywhere)]).reshape(3, 16)
    near = np.hypot(row[:, None] - row, col[:, None] - col) * 20 <= 30
    step = near / 9  # the disc has nine cells: sqrt(2) * 20 is less than 30
    every = np.einsum("a,ab,b,bc,c->abc", seen[0], step, seen[1], step, seen[2])
    every /= every.sum()
    for photo, axes in enumerate([(1, 2), (0, 2), (0, 1)]):
        np.testing.assert_allclose(smoothed[photo].grid().ravel(), every.sum(axes), atol=1e-6)


@pytest.mark.parametrize("dense", [True, False])
def test_photos_that_contradict_one_another_count_alike_whichever_was_first(dense: bool, monkeypatch) -> None:
    """On a map of so many cells that a photo of no use leaves each less than the least probability of a cell."""
    monkeypatch.setattr("jzi.locate.joint.sequential.is_dense", lambda _: dense)
    area, side = Pyramid.around(48.2, 16.37, 10_240.0, grid=2, levels=9), 512
    rows, cols = np.array([100, 250, 400]), np.array([100, 400, 200])
    found = Posterior.from_cells(area, rows, cols, np.eye(3))
    there = smooth_track(found, np.ones((side, side), bool), [0, 5, 10], speed=15.0)
    back = smooth_track(Posterior.concatenate([found.of(photo) for photo in (2, 1, 0)]),
                        np.ones((side, side), bool), [0, 5, 10], speed=15.0)  # fmt: skip
    for one, other in zip(there, back[::-1], strict=True):
        np.testing.assert_allclose(one.grid()[rows, cols], other.grid()[rows, cols], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("seconds", "speed", "reason"),
    [
        ([0, 5, 3], 10.0, "the time from a photo to the next"),
        ([0, np.inf, np.inf], 10.0, "the time from a photo to the next"),
        ([0, 1, 2], 0.0, "the top speed"),
        ([0, 1, 2], np.inf, "the top speed"),
        ([0, 1, 2], np.nan, "the top speed"),
    ],
)
def test_a_track_against_time_or_with_no_finite_speed_is_refused(pyramid, seconds, speed, reason) -> None:
    with pytest.raises(ConfigError, match=reason):
        smooth_track(saying(pyramid, *[peaks((1, 1, 1.0))] * 3), EVERYWHERE, seconds, speed)


def test_a_track_that_would_not_fit_into_memory_is_refused(pyramid, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jzi.locate.joint.sequential.MAX_TRACK", 2 * SIDE * SIDE)
    posterior = saying(pyramid, *[peaks((1, 1, 1.0))] * 3)
    assert len(smooth_track(posterior.of(0), EVERYWHERE, [0.0], 10.0)) == 1
    with pytest.raises(ConfigError, match="a track of 3 photos is too long for a map of 256 cells: pass at most 2"):
        smooth_track(posterior, EVERYWHERE, [0, 1, 2], 10.0)
