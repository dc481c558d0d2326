"""A position, its path, its keys and its cell agree, in any pyramid anywhere on the globe."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from jzi.store.geometry.cell_grid import Bounds
from jzi.store.geometry.pyramid import Pyramid, TileKey
from jzi.store.plain import plain


@st.composite
def pyramids(draw: st.DrawFn) -> Pyramid:
    """Pyramids of 10 m to 100 km: the projection is exact to far less than a cell over such a distance."""
    return Pyramid.around(
        draw(st.floats(-85, 85)),
        draw(st.floats(-180, 180)),
        draw(st.floats(10, 100_000)),
        grid=draw(st.integers(2, 6)),
        levels=draw(st.integers(1, 4)),
    )


@st.composite
def pyramids_with_tiles(draw: st.DrawFn) -> tuple[Pyramid, TileKey]:
    pyramid = draw(pyramids())
    level = draw(st.integers(0, pyramid.levels))
    last = pyramid.tiles_per_side(level) - 1
    return pyramid, TileKey(level, draw(st.integers(0, last)), draw(st.integers(0, last)))


def contains(bounds: Bounds, x: float, y: float, slack: float) -> bool:
    west, south, east, north = bounds
    return west - slack <= x <= east + slack and south - slack <= y <= north + slack


#: A place in the unit square, from the north-west corner; the edges are tests/test_pyramid.py's.
SHARES = st.floats(0.001, 0.999)


@given(pyramids(), SHARES, SHARES)
def test_every_tile_on_the_path_of_a_position_contains_it(pyramid: Pyramid, east: float, south: float) -> None:
    latitude, longitude = pyramid.unproject(pyramid.west + east * pyramid.size, pyramid.north - south * pyramid.size)
    x, y = pyramid.project(latitude, longitude)
    (path,) = pyramid.paths(latitude, longitude)
    keys = pyramid.keys(path)
    assert path.shape == (pyramid.levels,)
    assert [key.level for key in keys] == list(range(pyramid.levels + 1))
    assert all(contains(pyramid.tile_bounds(key), float(x), float(y), slack=1e-6) for key in keys)
    assert all(child in pyramid.children(key) for key, child in pairwise(keys))


@given(pyramids_with_tiles())
def test_the_centre_of_a_tile_leads_back_to_it(tile: tuple[Pyramid, TileKey]) -> None:
    pyramid, key = tile
    latitude, longitude = pyramid.tile_positions(*key)
    shift = pyramid.cell_size / 4  # a tile's centre may be a corner of four cells
    x, y = pyramid.project(latitude, longitude)
    (path,) = pyramid.paths(*pyramid.unproject(x + shift, y - shift))
    assert pyramid.keys(path)[key.level] == key
    assert contains(pyramid.tile_bounds(key), float(x), float(y), slack=1e-6)


@given(pyramids_with_tiles())
def test_cells_paths_and_keys_say_the_same(tile: tuple[Pyramid, TileKey]) -> None:
    pyramid, key = tile
    scale = pyramid.grid ** (pyramid.levels - key.level)
    row, col = key.row * scale, key.col * scale  # its north-western cell
    path = pyramid.cell_to_path(row, col)
    assert ((path >= 0) & (path < pyramid.actions)).all()
    assert tuple(map(int, pyramid.path_to_tile(path))) == (row, col)
    keys = pyramid.keys(path)
    assert keys[key.level] == key
    assert keys[-1] == TileKey(pyramid.levels, row, col)
    rows, cols = pyramid.input_tiles(path)
    assert [TileKey(level, *place) for level, place in enumerate(zip(rows, cols, strict=True))] == keys[:-1]


@given(pyramids_with_tiles())
def test_children_cover_their_parent_without_overlap(tile: tuple[Pyramid, TileKey]) -> None:
    pyramid, key = tile
    children = pyramid.children(key)
    assert len(set(children)) == pyramid.actions
    west, south, east, north = pyramid.tile_bounds(key)
    bounds = np.array([pyramid.tile_bounds(child) for child in children])
    side = pyramid.footprint(key.level + 1)
    places = np.stack([(bounds[:, 0] - west) / side, (north - bounds[:, 3]) / side], 1)  # of each, in sides
    expected = {(col, row) for row in range(pyramid.grid) for col in range(pyramid.grid)}
    np.testing.assert_allclose(places, places.round(), atol=1e-6)
    assert {tuple(place) for place in places.round().astype(int).tolist()} == expected
    np.testing.assert_allclose(bounds[:, 2] - bounds[:, 0], side, atol=1e-6)
    np.testing.assert_allclose([bounds[:, 1].min(), bounds[:, 2].max()], [south, east], atol=1e-6)


@given(pyramids(), st.floats(1e-6, 2), st.floats(0, 1), st.sampled_from("NESW"))
def test_positions_beyond_an_edge_have_no_path(pyramid: Pyramid, beyond: float, along: float, edge: str) -> None:
    outside, inside = pyramid.size * (0.5 + beyond), pyramid.size * (along - 0.5)
    x, y = {"N": (inside, outside), "E": (outside, inside), "S": (inside, -outside), "W": (-outside, inside)}[edge]
    assert (pyramid.paths(*pyramid.unproject(x, y)) == -1).all()


@given(pyramids())
def test_a_pyramid_survives_json(pyramid: Pyramid) -> None:
    assert Pyramid(**json.loads(json.dumps(plain(pyramid)))) == pyramid
