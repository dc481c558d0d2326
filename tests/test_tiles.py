"""Claims about rendering the tiles of every level."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from rasterio.errors import NotGeoreferencedWarning

from jzi.commands.shared.process import handled_warnings_ignored
from jzi.encode.rasters.imagery import BACKGROUND, Imagery
from jzi.encode.rasters.raster import Raster
from jzi.encode.rasters.tiles import Tile, TileRenderer
from jzi.store.geometry.pyramid import Pyramid, TileKey

pytestmark = pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")

SIZE = 24  # divisible by 2, 3 and 4: a thumb of a child is a whole number of pixels
WHOLE = [TileKey(0, 0, 0)]
SHAPES = pytest.mark.parametrize(
    ("grid", "levels"), [(2, 1), (2, 2), (2, 4), (3, 1), (3, 2), (3, 4), (4, 1), (4, 2), (4, 3)]
)


def cut(grid: int, levels: int) -> Pyramid:
    return Pyramid.around(48.2, 16.37, 800.0, grid=grid, levels=levels)


@pytest.fixture
def render(town_raster: Path) -> Callable[..., dict[TileKey, Tile]]:
    """All tiles of the town for a grid and a number of levels, in the order of rendering."""

    def render(grid: int, levels: int, size: int = SIZE) -> dict[TileKey, Tile]:
        tiles = list(TileRenderer(Imagery([town_raster], cut(grid, levels)), size, threads=2).render(WHOLE))
        assert len({tile.key for tile in tiles}) == len(tiles), "no tile comes twice"
        return {tile.key: tile for tile in tiles}

    return render


@SHAPES
def test_every_tile_comes_once_and_children_before_their_parents(render: Callable, grid: int, levels: int) -> None:
    pyramid, tiles = cut(grid, levels), render(grid, levels)
    order = {key: place for place, key in enumerate(tiles)}
    assert len(tiles) == pyramid.tile_count
    for key, tile in tiles.items():
        assert tile.image.shape == (SIZE, SIZE, 3)
        assert (tile.cells is not None) == (key.level == levels - 1)
        if key.level < levels - 1:
            assert all(order[child] < order[key] for child in pyramid.children(key))


@SHAPES
def test_a_parent_is_the_mean_of_its_children(render: Callable, grid: int, levels: int) -> None:
    tiles = render(grid, levels)
    thumb = SIZE // grid
    for key, tile in tiles.items():
        for action, child in enumerate(cut(grid, levels).children(key)):
            if child in tiles:
                row, col = action // grid * thumb, action % grid * thumb
                blocks = tiles[child].image.astype(float).reshape(thumb, grid, thumb, grid, 3)
                part = tile.image[row : row + thumb, col : col + thumb]
                assert np.abs(part - blocks.mean(axis=(1, 3))).max() <= 1, "but for rounding"


@SHAPES
def test_a_tile_looks_as_if_it_were_rendered_by_itself(
    render: Callable, town_raster: Path, grid: int, levels: int
) -> None:
    pyramid = cut(grid, levels)
    imagery = Imagery([town_raster], pyramid)
    for key, tile in list(render(grid, levels).items())[:: max(1, pyramid.tile_count // 20)]:
        alone, _ = imagery.render(pyramid.tile_bounds(key), SIZE)
        difference = np.abs(tile.image.astype(int) - alone)
        assert difference.mean() < 7, "what differs is the edges between squares of random colours"


@pytest.mark.parametrize("size", [23, 28, 30])
def test_any_image_size_will_do(render: Callable, size: int) -> None:
    tiles = render(4, 3, size)
    assert {tile.image.shape for tile in tiles.values()} == {(size, size, 3)}
    whole, mean = tiles[WHOLE[0]].image, np.mean([tile.image for key, tile in tiles.items() if key.level == 2])
    assert whole.mean() == pytest.approx(mean, abs=1)


def test_tiles_are_rendered_below_the_given_roots_only(town_raster: Path) -> None:
    renderer = TileRenderer(Imagery([town_raster], cut(4, 3)), SIZE)
    roots = [TileKey(1, 3, 0), TileKey(1, 0, 2)]
    keys = {tile.key for tile in renderer.render(roots)}
    assert keys == {*roots, *(child for root in roots for child in cut(4, 3).children(root))}
    assert not list(renderer.render([]))


@pytest.mark.parametrize("size", [14, 28, 56])
def test_every_pixel_of_the_imagery_is_read_about_once(
    town_raster: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    pixels = []
    read = Raster._read

    def counted(raster: Raster, window, shape):
        pixels.append(window.width * window.height)
        return read(raster, window, shape)

    monkeypatch.setattr(Raster, "_read", counted)
    list(TileRenderer(Imagery([town_raster], cut(4, 3)), size).render(WHOLE))
    assert 1.0 <= sum(pixels) / 800**2 <= 1.6


def test_what_rasterio_says_of_its_own_arrays_does_not_reach_the_user(
    town_raster: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    warp = Raster.warp

    def loud(*args):  # as from rasterio when two threads silence warnings at once
        warnings.warn("Dataset has no geotransform", NotGeoreferencedWarning, stacklevel=1)
        return warp(*args)

    monkeypatch.setattr(Raster, "warp", loud)
    with handled_warnings_ignored():
        list(TileRenderer(Imagery([town_raster], cut(4, 2)), SIZE).render(WHOLE))
    assert not [warning for warning in recwarn if warning.category is NotGeoreferencedWarning]


def test_where_half_of_the_area_has_no_imagery_tiles_and_cells_say_so(
    write_raster: Callable, pattern: Callable
) -> None:
    pyramid = cut(4, 3)
    west, south, _, north = pyramid.bounds
    # 450 m from the west: two and a quarter of the four tiles of level 1, and a whole number of cells
    path = write_raster(pattern(800, 450), (west, south, west + 450, north), pyramid.crs)
    tiles = {tile.key: tile for tile in TileRenderer(Imagery([path], pyramid), SIZE).render(WHOLE)}
    for key, tile in tiles.items():
        bounds = pyramid.tile_bounds(key)
        assert tile.has_imagery == (bounds.west < west + 450)
        if not tile.has_imagery:
            assert (tile.image == BACKGROUND).all()
        if tile.cells is not None:
            edges = [pyramid.tile_bounds(child).west for child in pyramid.children(key)]
            assert tile.cells.ravel().tolist() == [edge < west + 450 for edge in edges]
    assert sum(tile.has_imagery for key, tile in tiles.items() if key.level == 2) == 9 * 16


def test_a_cell_of_which_a_corner_is_imagery_is_a_cell(write_raster: Callable, pattern: Callable) -> None:
    pyramid = cut(4, 1)
    west, _, _, north = pyramid.bounds
    path = write_raster(pattern(240, 240), (west, north - 240, west + 240, north), pyramid.crs)
    [tile] = TileRenderer(Imagery([path], pyramid), SIZE).render(WHOLE)
    assert tile.cells is not None
    assert tile.cells.tolist() == [[row < 2 and col < 2 for col in range(4)] for row in range(4)]


def bytes_read() -> int:
    """Bytes that this process has read."""
    return int(Path("/proc/self/io").read_text().split()[1])


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="Linux tells what a process reads, others do not")
def test_a_file_stored_by_rows_is_read_once_however_many_threads_there_are(write_raster: Callable) -> None:
    pyramid = cut(4, 3)
    area = pyramid.bounds
    data = np.random.default_rng(0).integers(0, 256, (3, 2048, 2048), np.uint8)
    path = write_raster(data, (area.west, area.south, area.east, area.north), pyramid.crs, blockysize=1)
    with Imagery([path], pyramid) as imagery:
        before = bytes_read()
        tiles = list(TileRenderer(imagery, SIZE, threads=8).render(WHOLE))
        read = bytes_read() - before
    assert len(tiles) == pyramid.tile_count
    assert read < 1.2 * data.nbytes
