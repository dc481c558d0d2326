"""Recall over the cells of a state: the rank formula, what is refused, and breakdowns by year and hour."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from jzi.commands.shared.tables import retrieval_table
from jzi.errors import ConfigError
from jzi.evaluate.moments import UNKNOWN, groups_by_time, moments_of
from jzi.evaluate.published import STATEWIDE
from jzi.evaluate.retrieval import equivalent_ranks, evaluate_retrieval, matches, reachable, summarise
from jzi.store.geometry.bands import BandGrid, haversine
from jzi.store.geometry.pyramid import Pyramid, geodesic_distance
from jzi.store.plain import plain

GRID = BandGrid.covering(-71.10, 42.35, -71.06, 42.37, 30.0)
RADII = (0.0, 25.0, 50.0, 100.0)


@pytest.fixture(scope="module")
def searched():
    """2000 photos and all cells of 75 x 111, a tenth without imagery, with random similarities."""
    rng = np.random.default_rng(0)
    row = np.repeat(np.arange(GRID.rows), GRID.count)
    col = np.concatenate([np.arange(count) for count in GRID.count])
    mask = np.zeros(GRID.shape, bool)
    mask[row, col] = rng.random(len(row)) < 0.9
    row, col = np.nonzero(mask)
    latitude, longitude = rng.uniform(42.351, 42.369, 2000), rng.uniform(-71.099, -71.061, 2000)
    kept, _ = reachable(GRID, mask, latitude, longitude)
    latitude, longitude = latitude[kept], longitude[kept]
    # Coarse numbers, so that there are ties; cells near the photo are more similar
    away = haversine(latitude[:, None], longitude[:, None], *GRID.positions(row, col))
    similarity = (rng.normal(size=away.shape) + 4 * np.exp(-away / 60)).round(1).astype(np.float32)
    return mask, row, col, latitude, longitude, similarity


@pytest.mark.parametrize("distance", ["sphere", "ellipsoid"])
def test_the_rank_formula_is_a_literal_check_of_the_first_k(searched, distance: str) -> None:
    mask, row, col, latitude, longitude, similarity = searched
    found = [matches(GRID, mask, latitude, longitude, radius, distance) for radius in RADII]
    place = np.full(GRID.shape, -1)
    place[row, col] = np.arange(len(row))
    values = [similarity[each.photo, place[each.row, each.col]] for each in found]
    order = np.random.default_rng(1).permutation(len(row))
    chunks = ((row[part], col[part], similarity[:, part]) for part in np.array_split(order, 7))
    ranks, cells = equivalent_ranks(chunks, found, values, GRID.shape[1])
    assert cells == len(row)

    metres = {"sphere": haversine, "ellipsoid": geodesic_distance}[distance]
    own = GRID.cells_at(latitude, longitude)
    for photo in range(0, len(latitude), 5):
        away = metres(latitude[photo], longitude[photo], *GRID.positions(row, col))
        for number, radius in enumerate(RADII):
            right = (row == own[0][photo]) & (col == own[1][photo]) if radius == 0 else away <= radius
            assert right.any()
            first = np.lexsort((right, -similarity[photo]))  # of equally similar cells, the wrong ones come first
            for k in (1, 10, 100):
                assert (ranks[number, photo] < k) == right[first[:k]].any()
    assert 0.1 < (ranks < 1).mean() < 0.9


def test_a_photo_without_a_right_cell_ranks_last() -> None:
    mask = np.zeros(GRID.shape, bool)
    mask[0, 0] = True
    found = [matches(GRID, mask, np.array([42.36]), np.array([-71.08]), 50.0)]
    chunk = (np.zeros(1, int), np.zeros(1, int), np.full((1, 1), -3.0))
    assert equivalent_ranks([chunk], found, [np.zeros(0)], GRID.shape[1])[0].tolist() == [[1]]
    assert not found[0].found.any()


class _Store:
    """Embeddings of cells, as the cache gives them."""

    def __init__(self, grid: BandGrid, mask: np.ndarray, vectors: np.ndarray) -> None:
        self.grid, self.mask = grid, mask
        self.row, self.col = np.nonzero(mask)
        self.vectors = vectors[: len(self.row)]

    def blocks(self, mask: np.ndarray | None = None):
        for part in np.array_split(np.arange(len(self.row)), 5):
            yield self.row[part], self.col[part], self.vectors[part]

    def gather(self, row: np.ndarray, col: np.ndarray) -> np.ndarray:
        place = np.full(self.mask.shape, -1)
        place[self.row, self.col] = np.arange(len(self.row))
        return self.vectors[place[row, col]]


def test_recall_of_embeddings_is_that_of_their_similarities(searched) -> None:
    mask = searched[0]
    rng = np.random.default_rng(3)
    vectors = rng.normal(size=(int(mask.sum()), 8)).astype(np.float16)
    store = _Store(GRID, mask, vectors)
    truth = rng.integers(0, len(vectors), 60)
    latitude, longitude = (each.copy() for each in GRID.positions(store.row[truth], store.col[truth]))
    latitude[0] = 10.0
    query = vectors[truth].astype(np.float32) + rng.normal(size=(60, 8)).astype(np.float32)
    frame = pd.DataFrame({"captured_at": ["2020-05-05"] * 30 + ["2021-05-05"] * 30})
    found = evaluate_retrieval(GRID, mask, store, query, latitude, longitude, frame=frame, batch=16)
    similarity = query @ vectors.astype(np.float32).T
    own = (similarity > similarity[np.arange(60), truth][:, None]).sum(1)[1:]
    for k in (1, 10, 100):
        assert found.recall[0.0][k].value == pytest.approx((own < k).mean())
        assert found.recall[50.0][k].value >= found.recall[25.0][k].value >= found.recall[0.0][k].value
    assert found.photos == 59 and found.left_out == {"outside of the region": 1, "no imagery": 0}
    assert [(group.name, group.photos) for group in found.by["year"]] == [("2020", 29), ("2021", 30)]
    assert found.cells == len(vectors)


@pytest.mark.parametrize("width", [32, 1024])
def test_photos_are_not_found_among_cells_that_all_have_the_same_embedding(searched, width: int) -> None:
    mask, _, _, latitude, longitude, _ = searched
    vector, *query = np.random.default_rng(0).normal(size=(81, width))
    unit = [(each / np.linalg.norm(each)).astype(np.float16).astype(np.float32) for each in query]
    vectors = np.tile((vector / np.linalg.norm(vector)).astype(np.float16), (int(mask.sum()), 1))
    found = evaluate_retrieval(GRID, mask, _Store(GRID, mask, vectors), np.array(unit), latitude[:80], longitude[:80])
    assert all(found.recall[radius][k].value == 0 for radius in RADII for k in (1, 10, 100))


def test_a_radius_that_leaves_photos_without_a_cell_is_refused_with_the_reason(searched) -> None:
    mask, _, _, latitude, longitude, _ = searched
    with pytest.raises(ConfigError, match=r"recall within 20 m .* cells of 30 m: a photo in a cell's corner is 21.2 m"):
        matches(GRID, mask, latitude, longitude, 20.0)
    assert matches(GRID, np.ones(GRID.shape, bool), latitude, longitude, 21.3).found.all()
    with pytest.raises(ConfigError, match="a radius of recall"):
        matches(GRID, mask, latitude, longitude, np.inf)


def test_cells_around_photos_are_found_in_a_crs_that_is_not_true_to_scale() -> None:
    corner = Pyramid.around(60.0, 10.0, 1000.0)
    x, y = Pyramid("EPSG:3857", 0, 0, 1000.0).project(60.0, 10.0)
    mercator = Pyramid("EPSG:3857", float(x) - 960, float(y) + 960, 1920.0, 4, 3)
    latitude, longitude = (np.array([each]) for each in (60.0, 10.0))
    for area in (corner, mercator):
        found = matches(area, np.ones(area.shape, bool), latitude, longitude, 200.0)
        row, col = (each.ravel() for each in np.indices(area.shape))
        away = geodesic_distance(60.0, 10.0, *area.unproject(*area.cell_centers(row, col)))
        assert len(found.row) == (away <= 200).sum() > 50


def test_photos_outside_and_without_imagery_are_left_out_and_counted(searched) -> None:
    mask = searched[0]
    bare = np.argwhere(~mask[:, :100])[0]
    latitude, longitude = (np.append(value, other) for value, other in zip(
        GRID.positions(bare[:1], bare[1:]), ([43.0, np.nan], [-71.08, 0.0]), strict=True))  # fmt: skip
    kept, left_out = reachable(GRID, mask, latitude, longitude)
    assert kept.tolist() == [False] * 3
    assert left_out == {"outside of the region": 2, "no imagery": 1}
    with pytest.raises(ConfigError, match="no photo lies in a cell"):
        summarise(np.zeros((1, 0), int), [50.0], 10)


# By time


def test_tables_by_year_and_hour_sum_to_all() -> None:
    rng = np.random.default_rng(2)
    count = 3000
    moments = pd.Timestamp("2014-06-01", tz="UTC") + pd.to_timedelta(rng.integers(0, 8 * 365 * 24, count), unit="h")
    frame = pd.DataFrame({"captured_at": (moments.as_unit("ms").astype("int64")).astype(str)})
    frame.loc[:9, "captured_at"] = ""
    groups = groups_by_time(frame, "America/New_York")
    ranks = rng.geometric(0.02, (2, count)) - 1
    evaluation = summarise(ranks, [25.0, 50.0], 10_000, groups=groups, min_photos=20)
    for name in ("year", "hour"):
        tables = evaluation.by[name]
        assert sum(group.photos for group in tables) == evaluation.photos == count
        small = {group.name for group in tables if not group.recall}
        assert small == {UNKNOWN}
        shown = np.isin(groups[name], list(small), invert=True)
        for radius, rank in zip((25.0, 50.0), ranks, strict=True):
            for k in (1, 10, 100):
                hits = sum(round(group.recall[radius][k] * group.photos) for group in tables if group.recall)
                assert hits == (rank[shown] < k).sum()
    assert [group.name for group in evaluation.by["year"]] == [*map(str, range(2014, 2023)), UNKNOWN]
    assert len(evaluation.by["hour"]) == 25
    values = json.loads(json.dumps(plain(evaluation.to_dict()), allow_nan=False))
    assert values["recall@10<50m"]["value"] == pytest.approx((ranks[1] < 10).mean())
    assert values["recall@1%<50m"] == pytest.approx((ranks[1] < 100).mean())
    assert values["median_rank<25m"] == np.median(ranks[0])


def test_times_are_milliseconds_or_iso_8601_and_hours_are_local() -> None:
    frame = pd.DataFrame({"captured_at": ["1609459200000", "2021-01-01T01:30:00+02:00", "2021-01-01 00:00", "x", None]})
    moments = moments_of(frame["captured_at"])
    assert moments.isna().tolist() == [False, False, False, True, True]
    assert moments[0] == moments[2] == pd.Timestamp("2021-01-01", tz="UTC")
    groups = groups_by_time(frame, "America/New_York")
    assert groups["hour"].tolist() == ["19", "18", "19", UNKNOWN, UNKNOWN]
    assert groups["year"].tolist() == ["2020"] * 3 + [UNKNOWN] * 2
    assert set(groups_by_time(frame)) == {"year"}  # without a time zone there is no local hour
    given = groups_by_time(frame.assign(hour=[6, "7", 24, np.nan, 23.5]))
    assert given["hour"].tolist() == ["06", "07", UNKNOWN, UNKNOWN, "23"]
    assert groups_by_time(pd.DataFrame({"id": [1]})) == {}
    with pytest.raises(ConfigError, match="no time zone Mars/Base"):
        groups_by_time(frame, "Mars/Base")


def test_published_results_are_shares_with_conditions() -> None:
    for result in STATEWIDE:
        assert result.conditions and result.source
        for by_k in result.recall.values():
            values = [by_k[k] for k in sorted(by_k)]
            assert all(0 < value < 1 for value in values) and values == sorted(values)


def test_the_table_shows_published_results_apart() -> None:
    ranks = np.array([[0, 5, 50, 500]])
    groups = {"year": np.array(["2020", "2021", "2021", "2021"])}
    evaluation = summarise(ranks, [50.0], 1000, left_out={"no imagery": 2}, groups=groups, min_photos=2)
    text = retrieval_table(evaluation, "a region", STATEWIDE)
    assert "within 50 m" in text and "50.0 %" in text and "2 photos left out: no imagery" in text
    own, apart = text.split("published, ", 1)
    assert "60.6 %" in apart and "60.6" not in own and "Massachusetts" in apart
    (row,) = (line for line in own.splitlines() if line.strip().startswith("2020"))
    assert "too few photos" in row
