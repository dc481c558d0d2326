"""Photos are fused over the cells that search reached as they are over an array of all cells."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from jzi.errors import ConfigError
from jzi.locate.joint import sequential
from jzi.locate.joint.sequential import fuse, smooth_track
from jzi.locate.posterior import Posterior
from jzi.store.geometry.bands import BandGrid
from jzi.store.geometry.pyramid import Pyramid

SIDE = 16
PYRAMID = Pyramid("EPSG:32631", 0.0, 480.0, 480.0, grid=2, levels=4)  # 16 x 16 cells of 30 m
EQUATOR = BandGrid.covering(0.0, -0.0020, 0.00404, 0.0022, 30.0)  # where bands are not sheared
STATE = BandGrid.covering(-73.55, 41.2, -69.9, 42.9, 30.0)
MASK = np.random.default_rng(9).random((SIDE, SIDE)) < 0.8


def posterior_on(area, reached: float, photos: int = 4) -> Posterior:
    rng = np.random.default_rng(1)
    row, col = np.nonzero(MASK)
    order = rng.permutation(len(row))[: int(reached * len(row))]
    probability = rng.dirichlet(np.full(len(order), 0.2), photos) * min(1.0, reached + 0.3)
    return Posterior.from_cells(area, row[order], col[order], probability)


@pytest.fixture
def sparse(monkeypatch: pytest.MonkeyPatch):
    """Runs a function with no array of all cells."""

    def run(function, *arguments):
        with monkeypatch.context() as patch:
            patch.setattr(sequential, "is_dense", lambda _: False)
            return function(*arguments)

    return run


@pytest.mark.parametrize("reached", [0.4, 1.0])
def test_the_common_position_is_that_of_the_dense_fusion(sparse, reached: float) -> None:
    dense = fuse(posterior_on(PYRAMID, reached), MASK)
    found = sparse(fuse, posterior_on(PYRAMID, reached), MASK)
    unreached = MASK & (found.grid() == 0)
    grid = found.grid() + unreached * (found.residual[0] / max(1, unreached.sum()))
    np.testing.assert_allclose(grid, dense.grid(), atol=1e-7)
    assert found.probability.sum() + found.residual[0] == pytest.approx(1)


def test_a_drive_is_smoothed_as_by_the_dense_filter_where_all_cells_are_reached(sparse) -> None:
    seconds, speed = [0.0, 3.0, 4.0, 30.0], 12.0
    dense = smooth_track(posterior_on(PYRAMID, 1.0), MASK, seconds, speed)
    for area in (PYRAMID, EQUATOR):
        assert area.shape == (SIDE, SIDE)
        found = sparse(smooth_track, posterior_on(area, 1.0), MASK, seconds, speed)
        for one, other in zip(found, dense, strict=True):
            np.testing.assert_allclose(one.grid(), other.grid(), atol=1e-7)


def test_cells_that_no_photo_reached_count_as_evenly_spread(sparse) -> None:
    """On a map of which the edges, where the camera may leave it, are a small part."""
    area = Pyramid("EPSG:32631", 0.0, 1920.0, 1920.0, grid=2, levels=6)
    rng = np.random.default_rng(2)
    way = 30 * 64 + np.arange(30, 34)  # to the east
    row, col = np.divmod(np.union1d(rng.permutation(64 * 64)[:2000], way), 64)
    probability = rng.dirichlet(np.full(len(row), 0.02), 4) * 0.5
    for photo, cell in enumerate(way):
        probability[photo, row * 64 + col == cell] += 0.2
    posterior = Posterior.from_cells(area, row, col, probability)
    arguments = posterior, np.ones((64, 64), bool), [0.0, 3.0, 4.0, 8.0], 12.0
    for one, other in zip(sparse(smooth_track, *arguments), smooth_track(*arguments), strict=True):
        reached = one.grid() > 0
        assert one.grid().argmax() == other.grid().argmax()
        np.testing.assert_allclose(one.grid()[reached], other.grid()[reached], atol=0.02)
        assert one.residual[0] == pytest.approx(other.grid()[~reached].sum(), abs=0.05)


def test_a_drive_through_a_state_needs_no_array_of_its_cells(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mask = np.arange(STATE.shape[1]) < STATE.count[:, None]
    row, col = STATE.cells_at([42.36, 42.3605, 42.361], [-71.06] * 3)
    rng = np.random.default_rng(3)
    rows = rng.integers(0, STATE.rows, (3, 2000))
    cols = rng.integers(0, STATE.count[rows])
    rows[:, 0], cols[:, 0] = row, col
    probability = np.full((3, 2000), 1e-5)
    probability[:, 0] = 0.2
    probability[1, 1] = 0.7  # elsewhere
    posterior = Posterior.from_cells(STATE, rows, cols, probability)
    tracemalloc.start()
    smoothed = smooth_track(posterior, mask, [0.0, 5.0, 10.0], 15.0)
    together = fuse(posterior, mask)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 60e6
    for photo, each in enumerate(smoothed):
        assert (each.row[0, 0], each.col[0, 0]) == (row[photo], col[photo]) and each.probability[0, 0] > 0.9
        assert each.probability.sum() + each.residual[0] == pytest.approx(1)
    assert together.probability.sum() + together.residual[0] == pytest.approx(1)
    monkeypatch.setattr(sequential, "MAX_TRACK", 2**17)
    with pytest.raises(ConfigError, match=r"a track of 3 photos is too long .* at most 2 photos"):
        smooth_track(posterior, mask, [0.0, 5.0, 10.0], 15.0)
