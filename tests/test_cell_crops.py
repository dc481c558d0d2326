"""Claims about the images of cells at several levels of detail, and of turned cells anywhere."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from pyproj import Transformer

from jzi.encode.rasters import cell_crops, raster
from jzi.encode.rasters.cell_blocks import BlockKey, CellBlock
from jzi.encode.rasters.cell_crops import LODS_M, CellCrops
from jzi.encode.rasters.imagery import BACKGROUND, Imagery
from jzi.encode.rasters.raster import close_rasters
from jzi.errors import ConfigError
from jzi.store.geometry.bands import RADIUS, BandGrid
from jzi.store.geometry.cell_grid import CellGrid
from jzi.store.geometry.mercator import MercatorGrid
from jzi.store.geometry.pyramid import Pyramid

#: A grid of the state of Massachusetts, far from its west edge, so that rows are shifted by parts of cells.
STATE = BandGrid.covering(-73.5, 41.2, -69.9, 42.9)

LATITUDE, LONGITUDE = 42.36, -71.06

#: CRS of the maps: metres of Massachusetts, whose north is turned by 0.3 degrees there.
MAP_CRS = "EPSG:26986"

#: A function of metres east and north of the middle of a map to its colours, (3, rows, cols).
Paint = Callable[[np.ndarray, np.ndarray], np.ndarray]


@pytest.fixture(autouse=True)
def _no_handle_outlives_a_test() -> Iterator[None]:
    yield
    close_rasters()


@pytest.fixture
def draw(write_raster: Callable) -> Callable[..., Path]:
    """Draw a map around a position whose colours are a function of the metres east and north of it, on the sphere."""

    def write(paint: Paint, latitude: float, longitude: float, half: float, metres: float, east: float = 0.0) -> Path:
        x, y = Transformer.from_crs("EPSG:4326", MAP_CRS, always_xy=True).transform(longitude, latitude)
        side = round(2 * half / metres)
        across = x + (np.arange(side) + 0.5) * metres - half
        down = y - (np.arange(side) + 0.5) * metres + half
        to_degrees = Transformer.from_crs(MAP_CRS, "EPSG:4326", always_xy=True)
        lon, lat = to_degrees.transform(*np.meshgrid(across, down))
        scale = RADIUS * math.cos(math.radians(latitude))
        data = paint(scale * np.radians(lon - longitude), RADIUS * np.radians(lat - latitude))
        data = np.clip(np.rint(data), 0, 255).astype(np.uint8)
        bounds = (x - half, y - half, x + half, y + half)
        return write_raster(data, bounds, MAP_CRS, photometric="RGB")

    return write


def middle_of(grid: CellGrid) -> tuple[int, int, float, float]:
    """Row, column, latitude and longitude of the centre of the cell at the position."""
    [row], [col] = grid.cells_at(LATITUDE, LONGITUDE)
    latitude, longitude = grid.unproject(*grid.cell_centers(np.array([row]), np.array([col])))
    return int(row), int(col), float(latitude[0]), float(longitude[0])


def block_around(row: int, col: int, side: int = 3) -> tuple[slice, slice]:
    return slice(row - side // 2, row + side - side // 2), slice(col - side // 2, col + side - side // 2)


def image_of(crops: CellCrops, row: int, col: int, side: int = 3) -> np.ndarray:
    """(level, S, S, 3) images of a cell, cut from a block around it."""
    block = crops.block(*block_around(row, col, side))
    [index] = np.flatnonzero((block.row == side // 2) & (block.col == side // 2))
    return block[index : index + 1][0].numpy()


def ramp(step: float) -> Paint:
    """Red and green rise by `step` per metre in directions 20 and 110 degrees from east, blue everywhere alike.

    With noise, as in photos: interpolated whole numbers that rise by less than one per pixel would round to one side.
    """
    cosine, sine = math.cos(math.radians(20)), math.sin(math.radians(20))

    def paint(east: np.ndarray, north: np.ndarray) -> np.ndarray:
        noise = np.random.default_rng(0).normal(0, 2, (2, *east.shape))
        red, green = east * cosine + north * sine, north * cosine - east * sine
        return np.stack([127.3 + step * red + noise[0], 127.3 + step * green + noise[1], np.full_like(red, 80)])

    return paint


def measured(image: np.ndarray, step: float) -> np.ndarray:
    """What a `ramp` shows: (2, 3) metres east and north of its middle at the image's centre, and metres by which both
    change per pixel to the right and per pixel down.
    """
    size = len(image)
    offset = np.arange(size) + 0.5 - size / 2
    down, right = np.meshgrid(offset, offset, indexing="ij")
    design = np.stack([np.ones(size * size), right.ravel(), down.ravel()], 1)
    fit = np.linalg.lstsq(design, (image[..., :2].reshape(-1, 2) - 127.3) / step, rcond=None)[0].T
    cosine, sine = math.cos(math.radians(20)), math.sin(math.radians(20))
    return np.array([[cosine, -sine], [sine, cosine]]) @ fit


SIZE = 64


@pytest.mark.parametrize("metres", LODS_M)
@pytest.mark.parametrize("theta", [None, 0.0, 37.0, 90.0], ids=lambda theta: "block" if theta is None else str(theta))
def test_centre_and_size_of_pixels_are_right(draw: Callable, metres: float, theta: float | None) -> None:
    row, col, latitude, longitude = middle_of(STATE)
    size = 192
    step = 140 / (size * metres)
    imagery = Imagery([draw(ramp(step), latitude, longitude, size * metres, metres / 2)], STATE)
    crops = CellCrops(imagery, STATE, [metres], size)
    image = image_of(crops, row, col)[0] if theta is None else crops.at(latitude, longitude, theta)[0, 0]
    found = measured(image, step)
    cosine, sine = math.cos(math.radians(theta or 0)), math.sin(math.radians(theta or 0))
    assert np.abs(found[:, 0]).max() < 0.05 * metres
    expected = metres * np.array([[cosine, -sine], [-sine, -cosine]])  # to the right, down
    np.testing.assert_allclose(found[:, 1:], expected, atol=0.001 * metres)


@pytest.mark.parametrize("theta", [None, 0.0, 37.0, 90.0], ids=lambda theta: "block" if theta is None else str(theta))
def test_a_marker_in_the_north_east_is_where_it_must_be(draw: Callable, theta: float | None) -> None:
    row, col, latitude, longitude = middle_of(STATE)
    east, north = 20 / math.sqrt(2), 20 / math.sqrt(2)

    def paint(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        red = (abs(x - east) < 2) & (abs(y - north) < 2)
        blue = (abs(x - east - 6) < 2) & (abs(y - north) < 2)  # 6 m to the east of it
        return np.stack([red, np.zeros_like(red), blue]) * 255

    size = 256  # 51.2 m at 0.2 m: the markers lie inside of it, whatever the rotation
    imagery = Imagery([draw(paint, latitude, longitude, 60, 0.2)], STATE, background=(0, 0, 0))
    crops = CellCrops(imagery, STATE, LODS_M, size)
    images = image_of(crops, row, col) if theta is None else crops.at(latitude, longitude, theta)[0]
    angle = math.radians(theta or 0)
    for image, metres in zip(images.astype(float), LODS_M, strict=True):
        for band, x in ((0, east), (2, east + 6)):
            right, up = x * math.cos(angle) - north * math.sin(angle), x * math.sin(angle) + north * math.cos(angle)
            weight = image[..., band] / image[..., band].sum()
            rows, cols = np.indices(weight.shape) + 0.5
            assert (weight * cols).sum() == pytest.approx(size / 2 + right / metres, abs=0.3 / metres)
            assert (weight * rows).sum() == pytest.approx(size / 2 - up / metres, abs=0.3 / metres)


def test_details_finer_than_a_pixel_are_averaged(draw: Callable) -> None:
    """Squares of 2 pixels of the finest level must not alias in the coarsest one."""
    row, col, latitude, longitude = middle_of(STATE)

    def paint(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        rows, cols = np.indices(x.shape)
        return np.stack([(rows // 2 + cols // 2) % 2 * 255.0] * 3)

    crops = CellCrops(Imagery([draw(paint, latitude, longitude, 110, 0.2)], STATE), STATE, LODS_M, SIZE)
    for images in (
        image_of(crops, row, col, 1),
        crops.at(latitude, longitude)[0],
        crops.at(latitude, longitude, 37)[0],
    ):
        assert images[3].std() < 3
        assert abs(images[3].mean() - 127.5) < 1
        assert images[0].std() > 50


@pytest.mark.parametrize("metres", LODS_M)
def test_images_cut_from_blocks_equal_single_ones(draw: Callable, metres: float) -> None:
    row, col, latitude, longitude = middle_of(STATE)
    period = 2 * math.pi / (48 * metres)

    def paint(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return 128 + 50 * np.stack([np.sin(period * x), np.cos(period * y), np.sin(period * (x + y) / 2)])

    half = 80 + 40 * metres
    imagery = Imagery([draw(paint, latitude, longitude, half, max(0.2, metres / 2.5))], STATE)
    crops = CellCrops(imagery, STATE, [metres], SIZE)
    rows, cols = block_around(row, col)
    block = crops.block(rows, cols)
    assert len(block) == 9 and (block.empty == 0).all() and (block.coverage == 1).all()
    shift = block.corners[:, 0] % 1
    assert np.unique(shift[:, 1].round(3)).size >= 3  # rows are shifted by parts of a pixel
    single = crops.at(*STATE.positions(rows.start + block.row, cols.start + block.col))
    difference = np.abs(block[:].numpy().astype(int) - single)
    # Both are rounded twice or thrice, which may add up to more than one in a few pixels of a million
    assert (difference > 1).mean() < 1e-4 and difference.max() <= 2


@pytest.mark.slow
def test_images_from_held_mosaics_equal_single_ones(draw: Callable, tmp_path: Path) -> None:
    town = BandGrid.covering(LONGITUDE - 0.002, LATITUDE - 0.001, LONGITUDE + 0.002, LATITUDE + 0.001)
    lods_m = (0.5, 2.0)
    periods = [2 * math.pi / (48 * metres) for metres in lods_m]

    def paint(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return 128 + 50 * np.stack([np.sin(periods[0] * x), np.cos(periods[0] * y), np.sin(periods[1] * (x + y))])

    imagery = Imagery([draw(paint, LATITUDE, LONGITUDE, 330, 0.25)], town)
    crops, held = CellCrops(imagery, town, lods_m, SIZE), CellCrops(imagery, town, lods_m, SIZE)
    assert held.hold(tmp_path)
    rng = np.random.default_rng(1)
    latitude = LATITUDE + rng.uniform(-0.001, 0.001, 6)
    longitude = LONGITUDE + rng.uniform(-0.002, 0.002, 6)
    for theta in (0.0, 37.0, 200.0):
        expected = crops.at(latitude, longitude, theta).astype(int)
        difference = np.abs(held.at(latitude, longitude, theta) - expected)
        assert difference.mean() < 1 and difference.max() <= 6  # interpolated once more where the image is not turned
        shifted = np.abs(held.at(latitude + 2e-5, longitude, theta) - expected)  # by 2 m
        assert shifted[:, 0].mean() > 5
        elsewhere = LATITUDE + 0.01, LONGITUDE, theta
        np.testing.assert_array_equal(held.at(*elsewhere), crops.at(*elsewhere))


def test_only_areas_of_the_size_of_a_city_are_held(draw: Callable, tmp_path: Path) -> None:
    imagery = Imagery([draw(ramp(0.1), LATITUDE, LONGITUDE, 300, 1.0)], STATE)
    assert not CellCrops(imagery, STATE, (0.2, 0.4), SIZE).hold(tmp_path)
    assert list(tmp_path.glob(".jzi*")) == []


def test_images_beyond_the_edge_show_background_and_keep_their_centre(draw: Callable) -> None:
    *_, latitude, longitude = middle_of(STATE)
    step, half, size = 0.8, 120, 192
    scale = RADIUS * math.cos(math.radians(latitude))
    inside = Imagery([draw(ramp(step), latitude, longitude, half, 0.4)], STATE)
    white = Imagery(inside.paths, STATE, background=(255, 255, 255))
    [row], [col] = STATE.cells_at(latitude, longitude + math.degrees(110 / scale))
    centre = STATE.positions(row, col)
    east, north = scale * math.radians(float(centre[1]) - longitude), RADIUS * math.radians(centre[0] - latitude)
    for imagery, background in ((inside, BACKGROUND), (white, (255, 255, 255))):
        block = CellCrops(imagery, STATE, [0.4, 0.8], size).block(*block_around(int(row), int(col), 1))
        edge = size / 2 + (half - east) / np.array([0.4, 0.8])  # column of the map's east edge
        for image, column, metres in zip(block[:].numpy()[0], edge, (0.4, 0.8), strict=True):
            assert (image[:, math.ceil(column) + 3 :] == background).all()
            side = math.floor(column) // 2 * 2 - 4
            part = image[(size - side) // 2 : (size + side) // 2, :side]
            shift = (size - side) / 2 * metres  # from the centre of that part to the centre of the cell
            found = measured(part, step)
            assert np.abs(found[:, 0] - [east - shift, north]).max() < 0.2 * metres
            np.testing.assert_allclose(found[:, 1:], metres * np.diag([1, -1]), atol=0.01 * metres)
        assert block.empty[0] == pytest.approx(((size - edge) / size).mean(), abs=0.01)


def test_a_cell_has_imagery_if_its_own_square_has_enough(draw: Callable) -> None:
    row, col, latitude, longitude = middle_of(STATE)
    path = draw(ramp(1.0), latitude, longitude, 25, 0.4)  # the middle cell and 10 m around it
    rows, cols = block_around(row, col, 5)
    block = CellCrops(Imagery([path], STATE), STATE, [0.4, 1.6], SIZE).block(rows, cols)
    assert block.coverage[2, 2] == 1 and block.coverage[2, 1] == pytest.approx(1 / 3, abs=0.02)
    assert block.coverage.sum() * 900 == pytest.approx(2500, rel=0.02)
    assert not block.coverage[[0, 4]].any()
    assert (block.has_imagery == (block.coverage > 0)).all() and len(block) == block.has_imagery.sum() >= 8
    strict = CellCrops(Imagery([path], STATE), STATE, [0.4, 1.6], SIZE, min_coverage=0.5).block(rows, cols)
    assert (strict.has_imagery == (block.coverage >= 0.5)).all() and len(strict) == 1
    share = 1 - 50**2 / (SIZE * 1.6) ** 2  # of its coarse image; it is kept nevertheless
    assert strict.empty[0] == pytest.approx(share / 2, abs=0.02)


def test_only_wanted_cells_are_rendered(draw: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    row, col, latitude, longitude = middle_of(STATE)
    imagery = Imagery([draw(ramp(1.0), latitude, longitude, 120, 0.4)], STATE)
    crops = CellCrops(imagery, STATE, [0.4, 0.8], SIZE)
    rows, cols = block_around(row, col, 5)
    whole = crops.block(rows, cols)
    wanted = np.zeros((5, 5), bool)
    wanted[3, 1] = True
    part = crops.block(rows, cols, wanted)
    assert (part.has_imagery == wanted).all() and len(part) == 1
    [index] = np.flatnonzero((whole.row == 3) & (whole.col == 1))
    assert np.abs(part[:].numpy().astype(int) - whole[index : index + 1].numpy()).mean() < 0.5
    assert part.mosaics[0].numel() < whole.mosaics[0].numel() / 4
    monkeypatch.setattr(Imagery, "render", None)
    none = crops.block(rows, cols, np.zeros((5, 5), bool))
    assert len(none) == 0 and none[:].shape == (0, 2, SIZE, SIZE, 3) and not none.coverage.any()


def test_nothing_is_rendered_coarsely_where_there_is_no_imagery(draw: Callable) -> None:
    row, col, latitude, longitude = middle_of(STATE)
    imagery = Imagery([draw(ramp(1.0), latitude, longitude, 20, 0.4)], STATE)
    block = CellCrops(imagery, STATE, LODS_M, SIZE).block(*block_around(row, col + 10, 2))
    assert len(block) == 0 and block.mosaics == []


@pytest.mark.parametrize("kind", ["pyramid", "mercator"])
def test_cells_of_square_grids_have_images_in_the_crs_of_the_grid(draw: Callable, kind: str) -> None:
    grid: CellGrid = Pyramid.around(LATITUDE, LONGITUDE, 480.0, levels=2)
    scale = 1.0
    if kind == "mercator":
        grid, scale = MercatorGrid.covering(-71.1, 42.3, -71.0, 42.4), math.cos(math.radians(LATITUDE))
    row, col, latitude, longitude = middle_of(grid)
    step, size = 3.0, 128
    path = draw(ramp(step), latitude, longitude, 90, 0.2)
    crops = CellCrops(Imagery([path], grid), grid, [0.2, 0.4], size)
    for images in (image_of(crops, row, col), crops.at(latitude, longitude)[0]):
        for image, metres in zip(images, (0.2, 0.4), strict=True):
            found = measured(image, step)
            tolerance = 0.004 if kind == "pyramid" else 0.002  # its CRS is of the ellipsoid, the ramp of the sphere
            np.testing.assert_allclose(found[:, 1:], metres * scale * np.diag([1, -1]), atol=tolerance * metres)
            assert np.abs(found[:, 0]).max() < 0.05 * metres
    east = measured(crops.at(latitude, longitude, 90)[0, 0], step)
    np.testing.assert_allclose(east[:, 1:], 0.2 * scale * np.array([[0, -1], [-1, 0]]), atol=0.0008)


def test_rows_that_end_before_the_grid_does_have_no_images_there(draw: Callable) -> None:
    grid = BandGrid.covering(-71.2, 42.0, LONGITUDE, 42.5)
    [row] = grid.cells_at(LATITUDE, LONGITUDE - 1e-4)[0]
    assert grid.count[row] < grid.shape[1]
    imagery = Imagery([draw(ramp(1.0), LATITUDE, LONGITUDE, 150, 0.4)], grid)
    block = CellCrops(imagery, grid, [0.8], SIZE).block(slice(row, row + 1), slice(grid.shape[1] - 40, None))
    assert block.has_imagery.shape == (1, 40)
    assert not block.has_imagery[0, 40 - (grid.shape[1] - grid.count[row]) :].any()


def test_blocks_come_in_order_and_wait_in_bounded_memory(draw: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    row, col, latitude, longitude = middle_of(STATE)
    imagery = Imagery([draw(ramp(1.0), latitude, longitude, 120, 0.8)], STATE)
    crops = CellCrops(imagery, STATE, [0.8], 16)
    monkeypatch.setattr(cell_crops, "BLOCK", 2)
    rows, cols = block_around(row, col, 7)
    keys = crops.keys(rows, cols)
    assert len(keys) == 16 and keys[0] == BlockKey(slice(row - 3, row - 1), slice(col - 3, col - 1))
    monkeypatch.setattr(cell_crops, "free_bytes", lambda _: 3 * crops.block_bytes / cell_crops.SHARE)
    rendered = []
    alone = [crops.block(*key) for key in keys]
    render = CellCrops.block

    def count(self: CellCrops, *key: slice) -> CellBlock:
        rendered.append(key)
        return render(self, *key)

    monkeypatch.setattr(CellCrops, "block", count)
    for index, block in enumerate(crops.blocks(keys, threads=8)):
        assert len(rendered) <= index + 4, "three wait while one is used"
        assert (block[:] == alone[index][:]).all() and (block.coverage == alone[index].coverage).all()
    wanted = np.zeros((7, 7), bool)
    wanted[6, 0] = True
    assert [(key.rows, key.cols) for key in crops.keys(rows, cols, wanted)] == [
        (slice(row + 3, row + 4), slice(col - 3, col - 1))
    ]


@pytest.mark.parametrize("held", [False, True])
def test_whether_a_position_has_imagery(draw: Callable, tmp_path: Path, held: bool) -> None:
    town = BandGrid.covering(LONGITUDE - 0.002, LATITUDE - 0.002, LONGITUDE + 0.002, LATITUDE + 0.002)
    imagery = Imagery([draw(ramp(1.0), LATITUDE, LONGITUDE, 100, 0.8)], town)
    crops = CellCrops(imagery, town, [0.8], SIZE)
    assert not held or crops.hold(tmp_path)
    degrees = math.degrees(1 / RADIUS)
    latitude = LATITUDE + degrees * np.array([0, 90, 110, 130])
    assert crops.covered(latitude, np.full(4, LONGITUDE), threads=2).tolist() == [True, True, True, False]


def test_single_samples_keep_the_raster_open(draw: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    crops = CellCrops(Imagery([draw(ramp(1.0), LATITUDE, LONGITUDE, 60, 0.8)], STATE), STATE, [0.8], 16)
    crops.at(LATITUDE, LONGITUDE)
    monkeypatch.setattr(raster, "open_raster", None)
    together = crops.at([LATITUDE] * 2, [LONGITUDE] * 2, [0, 45])
    assert together.shape == (2, 1, 16, 16, 3) and (together[0] != together[1]).any()


def test_levels_and_sizes_are_checked(draw: Callable) -> None:
    imagery = Imagery([draw(ramp(1.0), LATITUDE, LONGITUDE, 20, 0.8)], STATE)
    with pytest.raises(ConfigError, match=r"lods_m is \(0\.2, 0\.0\)"):
        CellCrops(imagery, STATE, [0.2, 0.0])
    with pytest.raises(ConfigError, match=r"min_coverage 1\.5"):
        CellCrops(imagery, STATE, min_coverage=1.5)
