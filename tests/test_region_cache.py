"""The feature cache of a region: rows of different length, shards, resuming, verification."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zarr

from jzi.errors import CacheCorruptError, CacheError, CacheMismatchError
from jzi.store.cache import layout
from jzi.store.cache.feature_cache import ENCODED, NODATA, FeatureCache
from jzi.store.cache.verify import repair_cache, verify_cache
from jzi.store.features.cell_features import OUTSIDE, CellFeatures
from jzi.store.features.map_embeddings import MISSING
from jzi.store.geometry.bands import BandGrid
from jzi.store.geometry.pyramid import Pyramid
from jzi.store.geometry.region import CellRuns, Region, RegionCells, RegionInfo
from jzi.store.info import EncoderInfo

WIDTH = 4


@pytest.fixture(scope="module")
def region() -> Region:
    """A lozenge of about 2.2 by 2.2 km, so that whole units of its grid are outside of it."""
    corners = [(10.015, 50.0), (10.03, 50.01), (10.015, 50.02), (10.0, 50.01), (10.015, 50.0)]
    return Region.of([{"type": "Polygon", "coordinates": [corners]}], "lozenge.geojson")


@pytest.fixture(scope="module")
def grid(region: Region) -> BandGrid:
    return region.grid(20.0)


@pytest.fixture(scope="module")
def runs(region: Region, grid: BandGrid) -> CellRuns:
    return region.cells(grid)


@pytest.fixture(scope="module")
def info(region: Region) -> RegionInfo:
    return RegionCells.of(region, 20.0).info


@pytest.fixture(scope="module")
def towers() -> EncoderInfo:
    return EncoderInfo("towers", False, "0" * 64, WIDTH, 64, "fit")


@pytest.fixture(params=[False, True], ids=["chunks", "shards"])
def sharded(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    if request.param:
        monkeypatch.setattr(layout, "MAX_UNSHARDED", 100)
        monkeypatch.setattr(layout, "MAX_CELL_CHUNK", 8)
    return bool(request.param)


def vectors_of(row: np.ndarray, col: np.ndarray) -> np.ndarray:
    return np.stack([row, col, row % 7, col % 5], -1).astype(np.float16)


def fill(cells: CellFeatures, runs: CellRuns, units: slice = slice(None)) -> None:
    """Encode the cells of some units: every seventh row has no imagery."""
    for unit in cells.units[units]:
        mask = runs.mask(*unit)
        if not mask.any():
            continue
        row, col = (each + part.start for each, part in zip(np.indices(mask.shape), unit, strict=True))
        has_imagery = mask & (row % 7 != 0)
        status = np.where(mask, np.where(has_imagery, ENCODED, NODATA), OUTSIDE).astype(np.uint8)
        cells.write(unit, status, np.where(has_imagery[..., None], vectors_of(row, col), np.nan).astype(np.float16))


@pytest.fixture
def cache(tmp_path: Path, sharded: bool, info: RegionInfo, towers: EncoderInfo) -> FeatureCache:
    return FeatureCache.create(tmp_path / "region.zarr", info, towers)


def test_cells_are_read_as_they_were_written(
    cache: FeatureCache, runs: CellRuns, grid: BandGrid, sharded: bool
) -> None:
    fill(cache.cells, runs)
    cells = FeatureCache.open(cache.path).cells
    assert cells.missing() == 0
    row, col, embedding = cells.read()
    assert np.array_equal(embedding, vectors_of(row, col))
    assert len(row) == int(
        (runs.mask(slice(0, grid.rows), slice(0, grid.shape[1])).sum(1) * (np.arange(grid.rows) % 7 != 0)).sum()
    )
    blocks = list(cells.blocks())
    assert {(r, c) for block in blocks for r, c in zip(block[0].tolist(), block[1].tolist(), strict=True)} == set(
        zip(row.tolist(), col.tolist(), strict=True)
    )
    assert all(np.array_equal(vectors, vectors_of(r, c)) for r, c, vectors in blocks)
    stored = zarr.open_array(f"{cache.path}/cells/embedding", mode="r")
    assert (stored.shards is not None) is sharded


def test_units_without_cells_are_not_stored(cache: FeatureCache, runs: CellRuns) -> None:
    fill(cache.cells, runs)
    stored = [file for file in Path(cache.path, "cells/embedding/c").rglob("*") if file.is_file()]
    with_cells = sum(bool(runs.mask(*unit).any()) for unit in cache.cells.units)
    assert 0 < len(stored) <= with_cells < len(cache.cells.units)


def test_gathering_reads_only_the_chunks_of_the_cells(cache: FeatureCache, runs: CellRuns) -> None:
    fill(cache.cells, runs)
    cells, rng = cache.cells, np.random.default_rng(0)
    row, col = cells.read()[:2]
    order = rng.permutation(len(row))[:50]
    assert np.array_equal(cells.gather(row[order], col[order]), vectors_of(row[order], col[order]))
    near = (abs(row - row[200]) < 2) & (abs(col - col[200]) < 2)
    before = cells.reads
    cells.gather(row[near], col[near])
    assert 1 <= cells.reads - before <= 4
    mask = np.zeros(cells.shape, bool)
    mask[row[near], col[near]] = True
    before = cells.reads
    found = [block[:2] for block in cells.blocks(mask)]
    assert sum(len(each[0]) for each in found) == near.sum()
    assert 1 <= cells.reads - before <= 4


def test_an_interrupted_index_says_how_many_cells_are_missing(cache: FeatureCache, runs: CellRuns) -> None:
    units = [number for number, unit in enumerate(cache.cells.units) if runs.mask(*unit).any()]
    fill(cache.cells, runs, slice(0, units[len(units) // 2]))
    missing = cache.cells.missing()
    assert 0 < missing < runs.count
    with pytest.raises(CacheError, match=f"lacks {missing} of {runs.count} cells"):
        cache.cells.read()
    assert f"{missing} cells" in verify_cache(cache).missing
    fill(cache.cells, runs)
    assert verify_cache(cache).sound


def test_damage_is_found(cache: FeatureCache, runs: CellRuns) -> None:
    fill(cache.cells, runs)
    file = max(
        (file for file in Path(cache.path, "cells/embedding/c").rglob("*") if file.is_file()),
        key=lambda f: f.stat().st_size,
    )
    content = bytearray(file.read_bytes())
    content[len(content) // 3] ^= 0xFF
    file.write_bytes(content)
    with pytest.raises(CacheCorruptError):
        cache.cells.read()
    report = verify_cache(cache)
    assert report.damaged
    assert not report.sound
    file.unlink()
    with pytest.raises(CacheCorruptError, match="gone"):
        cache.cells.read()


def test_a_damaged_header_is_restored_from_its_copy(cache: FeatureCache, runs: CellRuns) -> None:
    fill(cache.cells, runs)
    cache.close()
    root = Path(cache.path, "zarr.json")
    root.write_text(root.read_text().replace('"cell_m": 20.0', '"cell_m": 21.0', 1))
    with pytest.raises(CacheError, match="digest"):
        FeatureCache.open(cache.path)
    assert any("cells/zarr.json" in each for each in repair_cache(cache.path))
    assert verify_cache(FeatureCache.open(cache.path)).sound


def test_the_cache_of_another_region_is_refused(
    cache: FeatureCache, region: Region, grid: BandGrid, info: RegionInfo, towers: EncoderInfo
) -> None:
    centre = RegionCells.of(region, 20.0, "centre").info
    with pytest.raises(CacheMismatchError, match="another region"):
        FeatureCache.open_or_create(cache.path, centre, towers)
    with pytest.raises(CacheMismatchError, match="a region and not a pyramid"):
        cache.check(area=Pyramid.around(50, 10, 1000))
    with pytest.raises(CacheError, match="region, not the tiles"):
        _ = cache.pyramid
    renamed = RegionInfo(**{**vars(info), "name": "elsewhere.geojson"})
    cache.check(area=renamed)


def test_xarray_opens_it_with_coordinates(cache: FeatureCache, runs: CellRuns, grid: BandGrid) -> None:
    fill(cache.cells, runs)
    tree = FeatureCache.open(cache.path).to_xarray()
    cells = tree["cells"]
    row, col = np.array([3, 40]), np.array([30, 20])
    latitude, longitude = grid.positions(row, col)
    assert np.allclose(cells["latitude"].values[row], latitude)
    assert np.allclose((cells["first_cell"].values[row] + col) * cells["step"].values[row], longitude)
    assert (cells["cell_count"].values == grid.count).all()


def test_missing_is_told_from_outside(cache: FeatureCache, runs: CellRuns) -> None:
    fill(cache.cells, runs)
    status = cache.cells.status()
    mask = runs.mask(slice(0, status.shape[0]), slice(0, status.shape[1]))
    assert set(np.unique(status[mask])) == {ENCODED, NODATA}
    assert set(np.unique(status[~mask])) <= {OUTSIDE, MISSING}


def test_a_torn_chunk_or_shard_is_found_and_can_be_written_again(
    cache: FeatureCache, runs: CellRuns, files_of: Callable
) -> None:
    fill(cache.cells, runs)
    whole = files_of(Path(cache.path))
    for torn in sorted(path for path in Path(cache.path, "cells/embedding/c").rglob("*") if path.is_file()):
        torn.write_bytes(torn.read_bytes()[:-5])
    assert not verify_cache(cache).sound
    fill(cache.cells, runs)
    assert files_of(Path(cache.path)) == whole and verify_cache(cache).sound
