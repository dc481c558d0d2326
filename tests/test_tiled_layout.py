"""The benchmark's imagery: a VRT over tiles in the layout of `tiledwebmaps`, compared with the package itself."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from jzi.datasets.tiled_layout import TiledLayout
from jzi.encode.rasters.imagery import Imagery
from jzi.errors import ImageryError
from jzi.store.geometry.pyramid import Pyramid
from jzi.tests.children import run_python

SIZE = [40_000.0, 30_000.0]  # which the package needs where an axis runs south or west
LAYOUTS: dict[str, dict[str, Any]] = {
    "metres, south": {"crs": "EPSG:26918", "tile_axes": ["east", "south"], "size_crs": SIZE},
    "metres, north": {"crs": "EPSG:26918", "tile_axes": ["east", "north"]},
    "feet": {"crs": "EPSG:2248", "tile_axes": ["east", "south"], "size_crs": SIZE},
    "finer zoom": {"crs": "EPSG:26918", "tile_axes": ["east", "south"], "size_crs": SIZE, "max_zoom": 1},
    "north first": {"crs": "EPSG:6677", "tile_axes": ["east", "north"]},
}
CENTER = {"EPSG:26918": (38.89, -77.01), "EPSG:2248": (38.89, -77.01), "EPSG:6677": (35.69, 139.75)}

#: Run in a process of its own: the package brings an older PROJ and points everything at it.
REFERENCE = """
import sys, numpy as np, tiledwebmaps as twm
tree, latitude, longitude, metres, pixels = sys.argv[1], *map(float, sys.argv[2:5]), int(sys.argv[5])
loader = twm.from_yaml(tree, wait_after_last_modified=0.0)
image = loader.load(np.array([latitude, longitude]), 0.0, metres / pixels, np.array([pixels, pixels]), loader.max_zoom)
np.save(sys.argv[6], image)
"""


def write_tree(folder: Path, layout: dict, tiles: int = 8) -> tuple[Path, Pyramid]:
    """A square of `tiles` x `tiles` tiles of 64 px around a place, of smooth colours; and a pyramid inside of it."""
    from pyproj import Transformer

    latitude, longitude = CENTER[layout["crs"]]
    zoom, unit = layout.get("max_zoom", 0), 1200 / 3937 if layout["crs"] == "EPSG:2248" else 1.0
    side = 64.0 / unit  # a tile of zoom 0 covers 64 m, a pixel 1 m
    x, y = Transformer.from_crs("EPSG:4326", layout["crs"]).transform(latitude, longitude)
    size = layout.get("size_crs")
    first = 100  # tile numbers need not begin with 0, but must not be negative
    half = (first + tiles / 2) * side / 2**zoom
    signs = [1, 1]
    if layout["tile_axes"][1] == "south":
        signs[1] = -1
    order = (1, 0) if layout["crs"] == "EPSG:6677" else (0, 1)  # of x and y among the CRS's axes
    origin = [x, y]
    for axis in (0, 1):
        origin[order[axis]] -= signs[axis] * half
    if size:
        origin[1] -= size[1]
    document = {
        "tile_shape_px": [64, 64], "tile_shape_crs": [side, side], "origin_crs": origin, "min_zoom": zoom,
        "max_zoom": zoom, "path": "{zoom}/{x}/{y}.png", **layout,
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "layout.yaml").write_text(yaml.safe_dump(document))
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (tiles * 4, tiles * 4, 3), dtype=np.uint8))
    whole = np.asarray(noise.resize((tiles * 64, tiles * 64), Image.Resampling.BICUBIC))
    for column in range(tiles):
        for row in range(tiles):
            number = row if signs[1] < 0 else tiles - 1 - row  # rows of the picture go south
            path = folder / str(zoom) / str(first + column) / f"{first + number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(whole[row * 64 : row * 64 + 64, column * 64 : column * 64 + 64]).save(path)
    span = tiles * 64 / 2**zoom / 2
    return folder, Pyramid.around(latitude, longitude, span, levels=1)


@pytest.mark.skipif(
    not (importlib.util.find_spec("tiledwebmaps") and importlib.util.find_spec("requests")),
    reason="the package tiledwebmaps is not installed",
)
@pytest.mark.parametrize("name", LAYOUTS)
def test_our_tile_is_the_one_that_the_package_loads(tmp_path: Path, name: str) -> None:
    tree, pyramid = write_tree(tmp_path / "tree", LAYOUTS[name])
    TiledLayout.read(tree / "layout.yaml").write_vrt(tmp_path / "map.vrt")
    pixels = int(pyramid.size * 2 ** LAYOUTS[name].get("max_zoom", 0))
    with Imagery([tmp_path / "map.vrt"], pyramid) as imagery:
        ours, covered = imagery.render(pyramid.bounds, pixels)
    latitude, longitude = CENTER[LAYOUTS[name]["crs"]]
    run_python(REFERENCE, tree, latitude, longitude, pyramid.size, pixels, tmp_path / "theirs.npy")
    inner = slice(pixels // 16, -pixels // 16)  # the package leaves the rim of what it turns black in some layouts
    ours, theirs = ours[inner, inner], np.load(tmp_path / "theirs.npy")[inner, inner]
    difference = np.abs(ours.astype(float) - theirs)
    assert covered.all()
    # They turn and scale the square as a whole, we warp it: half a pixel at the rim, on colours that change slowly
    assert difference.mean() < 2.5 and difference.max() < 30
    for shift in ((0, 3), (3, 0)):  # and no other place fits as well
        moved = np.roll(ours, shift, (0, 1)).astype(float)
        assert np.abs(moved - theirs).mean() > 3 * difference.mean()


def test_a_missing_tile_is_no_data_and_no_error(tmp_path: Path) -> None:
    tree, pyramid = write_tree(tmp_path / "tree", LAYOUTS["metres, south"])
    (tree / "0" / "104" / "104.png").unlink()  # just south-east of the middle
    assert TiledLayout.read(tree / "layout.yaml").write_vrt(tmp_path / "map.vrt") == 63
    with Imagery([tmp_path / "map.vrt"], pyramid) as imagery:
        _, covered = imagery.render(pyramid.bounds, 256)
    assert not covered[140:180, 140:180].any()
    assert covered[:120].all() and covered[:, :120].all()


def test_a_layout_with_no_tiles_is_refused(tmp_path: Path) -> None:
    tree, _ = write_tree(tmp_path / "tree", LAYOUTS["metres, south"])
    shutil.rmtree(tree / "0")
    with pytest.raises(ImageryError, match="has no tile of zoom 0"):
        TiledLayout.read(tree / "layout.yaml").write_vrt(tmp_path / "map.vrt")
    assert not (tmp_path / "map.vrt").exists()


@pytest.mark.parametrize(
    "wrong", ["[]", "crs: nowhere", "crs: EPSG:26918", "crs: [", "crs: EPSG:26918\ntile_shape_px: [1, 2]"]
)
def test_a_layout_that_is_none_is_one_sentence(tmp_path: Path, wrong: str) -> None:
    (tmp_path / "layout.yaml").write_text(wrong)
    with pytest.raises(ImageryError, match=r"layout\.yaml"):
        TiledLayout.read(tmp_path / "layout.yaml")


def test_the_vrt_moves_with_its_tiles(tmp_path: Path) -> None:
    tree, pyramid = write_tree(tmp_path / "a" / "tree", LAYOUTS["metres, south"])
    TiledLayout.read(tree / "layout.yaml").write_vrt(tmp_path / "a" / "map.vrt")
    (tmp_path / "a").rename(tmp_path / "b")
    with Imagery([tmp_path / "b" / "map.vrt"], pyramid) as imagery:
        assert imagery.render(pyramid.bounds, 64)[1].all()


@pytest.mark.parametrize(
    ("edit", "match"),
    [
        ("path: /etc/{zoom}/{x}/{y}.jpg", "must lie in its folder"),
        ("path: ../{zoom}/{x}/{y}.jpg", "must lie in its folder"),
        ("path: 7", "must lie in its folder"),
        ("max_zoom: 100000", "check its sizes"),
        ("tile_shape_crs: [.nan, .nan]", "only square tiles|check its sizes"),
        ("tile_shape_crs: [.inf, .inf]", "check its sizes"),
        ("tile_axes: [east, east]", "check its sizes"),
        ("origin_crs: [1]", "check its sizes"),
        ("crs: EPSG:4978", "check its sizes"),
        ("tile_shape_px: [.inf, .inf]", "OverflowError"),
        ("x: " + "[" * 5000, "not a tiledwebmaps layout"),
    ],
)
def test_a_hostile_layout_is_refused_in_a_sentence(tmp_path: Path, edit: str, match: str) -> None:
    key = edit.split(":")[0]
    base = {"crs": "EPSG:3857", "tile_shape_px": "[256, 256]", "max_zoom": "3"}
    lines = [f"{name}: {value}" for name, value in base.items() if name != key]
    (tmp_path / "layout.yaml").write_text("\n".join([*lines, edit]))
    with pytest.raises(ImageryError, match=match) as error:
        TiledLayout.read(tmp_path / "layout.yaml")
    assert "\n" not in str(error.value)
