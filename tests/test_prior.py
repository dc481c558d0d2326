"""A prior excludes the cells that it gives no weight, and multiplies the others; experts search only what it leaves."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import jzi as package
from jzi.decode import expert as zoom_module
from jzi.decode.config import DecoderConfig
from jzi.decode.decoder import ZoomDecoder
from jzi.decode.expert import ZoomExpert
from jzi.decode.model import ZoomModel, create_folder, save_weights
from jzi.decode.tile_table import TileTable
from jzi.encode.encoders.encoder import Encoder
from jzi.errors import ConfigError
from jzi.locate.answer.location import LocateOptions
from jzi.locate.expert import Expert, Restrictable
from jzi.locate.joint.fusion import FusedExpert
from jzi.locate.posterior import Posterior
from jzi.locate.priors.prior import PriorExpert
from jzi.locate.priors.prior_weights import Prior, near, raster, region
from jzi.locate.priors.restricted import RestrictedExpert, restrict
from jzi.retrieve import vpr as vpr_module
from jzi.retrieve.cells import CellsExpert
from jzi.retrieve.expert import RetrievalExpert
from jzi.retrieve.heads import HeadsConfig, SimilarityHeads
from jzi.retrieve.search import CellIndex
from jzi.retrieve.vpr import VprConfig, VprExpert
from jzi.store.features.map_embeddings import ENCODED, NODATA, MapEmbeddings
from jzi.store.geometry.geojson import MAX_MB, parse_polygons
from jzi.store.geometry.pyramid import Pyramid
from jzi.store.info import EncoderInfo
from jzi.store.model_folder import MAP, write_file

WIDTH = 16
INFO = EncoderInfo("none", False, "0" * 64, WIDTH, 28, "halves")
AREA = Pyramid.around(48.2, 16.37, 320.0, grid=2, levels=4)  # 16 x 16 cells of 20 m; the centre is a corner of four


def polygon(*corners: tuple[float, float], area: Pyramid = AREA) -> dict[str, Any]:
    """A GeoJSON polygon with corners in metres east and north of the centre."""
    latitude, longitude = area.unproject(*np.array([*corners, corners[0]], float).T)
    return {"type": "Polygon", "coordinates": [np.stack([longitude, latitude], 1).tolist()]}


def rectangle(west: float, south: float, east: float, north: float, area: Pyramid = AREA) -> dict[str, Any]:
    return polygon((west, south), (east, south), (east, north), (west, north), area=area)


def position(x: float, y: float) -> tuple[float, float]:
    latitude, longitude = AREA.unproject(x, y)
    return float(latitude), float(longitude)


# Weights


def test_a_circle_weights_cells_by_the_share_of_them_that_it_covers() -> None:
    weight = near(AREA, *position(10, 10), 28.0)  # around the centre of cell (7, 8)
    assert weight[7, 8] == 1 and weight.sum() * 20**2 == pytest.approx(np.pi * 28**2, rel=0.02)
    assert set(zip(*np.nonzero(weight), strict=True)) == {(row, col) for row in (6, 7, 8) for col in (7, 8, 9)}
    assert weight[6, 8] == pytest.approx(weight[8, 8], abs=0.02) and 0.8 < weight[6, 8] < 1
    assert near(AREA, *position(0, 0), 1e4).all() and near(AREA, *position(0, 0), 1e7).all()
    assert [*zip(*np.nonzero(near(AREA, *position(13, 3), 0.01)), strict=True)] == [(7, 8)]
    outside = near(AREA, *position(200, 10), 60.0)  # the map ends 160 m east of its centre
    assert outside.any() and not outside[:, :15].any()


@pytest.mark.parametrize("crs", ["EPSG:32633", "EPSG:3857"])
def test_a_circle_is_measured_on_the_ground_in_any_crs(crs: str) -> None:
    x, y = Pyramid(crs, 0.0, 0.0, 1.0).project(48.2, 16.37)
    area = Pyramid(crs, float(x) - 500, float(y) + 500, 1000.0, grid=4, levels=3)
    weight = near(area, 48.2, 16.37, 100.0)
    scale = np.cos(np.radians(48.2)) if crs == "EPSG:3857" else 1.0  # metres on the ground per metre of Web Mercator
    assert weight.sum() * (area.cell_size * scale) ** 2 == pytest.approx(np.pi * 100**2, rel=0.02)


def test_a_region_weights_cells_by_the_share_of_them_that_it_covers() -> None:
    weight = region(AREA, [rectangle(-35, 5, -5, 35)])
    expected = np.zeros(AREA.shape)
    expected[6:8, 6:8] = 0.75**2
    np.testing.assert_allclose(weight, expected)
    assert set(zip(*np.nonzero(weight), strict=True)) == {(6, 6), (6, 7), (7, 6), (7, 7)}
    tiny = region(AREA, [rectangle(25.0, 5.0, 25.1, 5.1)])
    assert [*zip(*np.nonzero(tiny), strict=True)] == [(7, 9)]
    ring = rectangle(-60, -60, 60, 60)
    ring["coordinates"] += rectangle(-20, -20, 20, 20)["coordinates"]  # a hole
    hollow = region(AREA, [ring])
    assert hollow[6, 6] == 1 and hollow[5:11, 5:11].sum() == pytest.approx(32, abs=0.7) and hollow[7, 7] < 0.05
    two = region(AREA, [rectangle(2, 2, 18, 18), rectangle(2, 2, 18, 18), rectangle(-158, 142, -142, 158)])
    assert [*zip(*np.nonzero(two), strict=True)] == [(0, 0), (7, 8)]  # overlapping polygons count once
    assert two[7, 8] == two[0, 0] <= 1


def test_every_kind_of_geojson_gives_its_polygons() -> None:
    one, other = rectangle(2, 2, 18, 18), rectangle(-18, 2, -2, 18)
    several = {"type": "MultiPolygon", "coordinates": [one["coordinates"], other["coordinates"]]}
    point = {"type": "Point", "coordinates": [16.37, 48.2]}
    collection = {
        "type": "FeatureCollection",
        "features": [
            {"type": "Feature", "properties": {}, "geometry": None},
            {"type": "Feature", "geometry": {"type": "GeometryCollection", "geometries": [point, one, other]}},
        ],
    }
    weights = [region(AREA, parse_polygons(json.dumps(each), "r")) for each in (several, collection)]
    np.testing.assert_array_equal(*weights)
    assert weights[0].any(0).sum() == 2


def nested(depth: int) -> str:
    return '{"type":"GeometryCollection","geometries":[' * depth + json.dumps(rectangle(0, 0, 9, 9)) + "]}" * depth


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "cannot be read as GeoJSON"),
        ("[1, 2]", "no GeoJSON object"),
        ('"Polygon"', "no GeoJSON object"),
        ('{"type": "Polygon"}', "lacks 'coordinates'"),
        ('{"type": "Point", "coordinates": [16.37, 48.2]}', "contains no Polygon"),
        ('{"type": "FeatureCollection", "features": 3}', "cannot be read as GeoJSON"),
        ('{"type": "Polygon", "coordinates": []}', "contains no Polygon"),
        ('{"type": "Polygon", "coordinates": [[[16, 48], [17, 48], [16, 48]]]}', "fewer than four"),
        ('{"type": "Polygon", "coordinates": [[["a", "b"], [1, 2], [3, 4], [5, 6]]]}', "cannot be read as GeoJSON"),
        ('{"type": "Polygon", "coordinates": [[[NaN, 48], [17, 48], [17, 49], [16, 48]]]}', "not longitude, latitude"),
        ('{"type": "Polygon", "coordinates": [[[1e999, 48], [17, 48], [17, 49], [16, 48]]]}', "not longitude"),
        ('{"type": "Polygon", "coordinates": [[[1822000, 48], [17, 48], [17, 49], [16, 48]]]}', "not longitude"),
        (json.dumps({"type": "Polygon", "coordinates": [[[10**400, 1], [1, 2], [3, 4], [5, 6]]]}), "GeoJSON"),
        (nested(9), "nested more than 8 deep"),
        (nested(20_000), "nested too deep"),
        (b"\xff\xfe\x00", "cannot be read as GeoJSON"),
        (b" " * (MAX_MB * 10**6 + 1), f"more than {MAX_MB} MB"),
    ],
)  # fmt: skip
def test_what_is_no_region_is_refused_in_a_sentence(content: str | bytes, reason: str) -> None:
    with pytest.raises(ConfigError, match=f"^r.json .*{reason}") as error:
        parse_polygons(content, "r.json")
    assert "\n" not in str(error.value) and len(str(error.value)) < 200


def test_a_raster_is_averaged_over_each_cell(write_raster: Callable[..., Path]) -> None:
    fine = np.zeros((1, 64, 64), np.float32)  # 5 m: four pixels to the side of a cell
    fine[0, 28:32, 32:36] = 3.0  # cell (7, 8)
    fine[0, 28:30, 36:40] = 3.0  # half of cell (7, 9)
    fine[0, 0:4, 0:4], fine[0, 0, 0] = -9999, 6.0  # cell (0, 0) has one pixel with data
    fine[0, 60:, 60:] = np.nan
    weight = raster(AREA, write_raster(fine, AREA.bounds, AREA.crs, nodata=-9999))
    expected = np.zeros(AREA.shape)
    expected[7, 8], expected[7, 9], expected[0, 0] = 0.5, 0.25, 1.0
    np.testing.assert_allclose(weight, expected, atol=1e-6)
    for value in (-9999, 5):  # of no pixel of this cell
        fine[0, 8:12, 8:12], fine[0, 0:4, 0:4], fine[0, 0, 0] = value, value, 6.0
        weight = raster(AREA, write_raster(fine, AREA.bounds, AREA.crs, "without.tif", nodata=value))
        np.testing.assert_allclose(weight, expected, atol=1e-6)
    coarse = np.array([[[1, 2], [0, 4]]], np.uint8)  # 160 m: eight cells to the side of a pixel
    weight = raster(AREA, write_raster(coarse, AREA.bounds, AREA.crs, "coarse.tif"))
    np.testing.assert_allclose(weight, np.kron([[0.25, 0.5], [0, 1]], np.ones((8, 8))))


def test_a_raster_is_read_by_its_overviews(write_raster: Callable[..., Path]) -> None:
    import rasterio
    from rasterio.enums import Resampling

    fine = np.random.default_rng(0).random((1, 1024, 1024)).astype(np.float32)
    path = write_raster(fine, AREA.bounds, AREA.crs, tiled=True)
    with rasterio.open(path, "r+") as file:
        file.build_overviews([2, 4, 8, 16, 32, 64], Resampling.nearest)
    mean = fine[0, ::32, ::32].reshape(16, 2, 16, 2).mean((1, 3))  # the overview with two pixels to the side of a cell
    assert np.corrcoef(raster(AREA, path).ravel(), mean.ravel())[0, 1] > 0.99


@pytest.mark.parametrize(
    ("value", "crs", "reason"),
    [
        (-1.0, AREA.crs, "negative or infinite"),
        (np.inf, AREA.crs, "negative or infinite"),
        (0.0, AREA.crs, "no weight above 0 on the map"),
        (np.nan, AREA.crs, "no weight above 0 on the map"),
        (1.0, None, "no CRS"),
        (1.0, "EPSG:32633", "no weight above 0 on the map"),  # the same numbers, elsewhere
    ],
)
def test_a_raster_without_usable_weights_is_refused(write_raster, value: float, crs: str | None, reason: str) -> None:
    data = np.zeros((1, 64, 64), np.float32)
    data[0, 10, 10] = value  # one pixel is enough
    with pytest.raises(ConfigError, match=reason) as error:
        raster(AREA, write_raster(data, AREA.bounds, crs))
    assert "map.tif" in str(error.value) and "\n" not in str(error.value)


def test_a_file_that_is_no_raster_is_refused(tmp_path: Path) -> None:
    (tmp_path / "w.tif").write_text("no raster")
    for name in ("w.tif", "gone.tif"):
        with pytest.raises(ConfigError, match=f"{name} cannot be read as a raster of weights"):
            raster(AREA, tmp_path / name)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"near": (48.2, 16.37)}, "belong together"),
        ({"within": 100.0}, "belong together"),
        ({"near": (95.0, 16.37), "within": 100.0}, "near 95 16.37 is no position on earth"),
        ({"near": (48.2, float("nan")), "within": 100.0}, "no position on earth"),
        ({"near": (48.2, 16.37), "within": 0.0}, "within must be"),
        ({"near": (48.2, 16.37), "within": -3.0}, "within must be"),
        ({"near": (48.2, 16.37), "within": float("inf")}, "within must be"),
        ({"near": (48.2, 16.37), "within": float("nan")}, "within must be"),
    ],
)
def test_a_circle_that_makes_no_sense_is_refused(values: dict, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        Prior(**values)


def test_a_prior_outside_of_the_map_is_refused() -> None:
    with pytest.raises(ConfigError, match="no cell of the map is within 100 m"):
        near(AREA, 48.3, 16.37, 100.0)
    with pytest.raises(ConfigError, match="my region does not touch the map"):
        region(AREA, [rectangle(1000, 1000, 1100, 1100)], "my region")


def test_parts_of_a_prior_are_multiplied(write_raster: Callable[..., Path]) -> None:
    weights = write_raster(np.array([[[1, 2]]], np.uint8), AREA.bounds, AREA.crs)  # west, east
    prior = Prior(position(0, 0), 300.0, (rectangle(-18, 2, 18, 18),), "r.json", weights)
    expected = region(AREA, prior.region) * np.repeat([0.5, 1.0], 8)
    np.testing.assert_allclose(prior.weight(AREA), expected)
    assert prior and not Prior()
    assert prior.to_dict() == {
        "near": [*position(0, 0)],
        "within_m": 300.0,
        "region": "r.json",
        "raster": str(weights),
    }
    assert Prior(region=prior.region).to_dict() == {"region": "region"}


# Experts


def zoom_expert(seed: int = 0, imagery: np.ndarray | None = None, area: Pyramid = AREA) -> ZoomExpert:
    """A random decoder on a random map."""
    rng = np.random.default_rng(seed)
    sides = [area.tiles_per_side(level) for level in range(area.levels + 1)]
    imagery = np.ones(area.shape, bool) if imagery is None else imagery
    covered = [imagery.reshape(side, sides[-1] // side, side, -1).any((1, 3)) for side in sides]
    status = tuple(np.where(each, ENCODED, NODATA).astype(np.uint8) for each in covered)
    embedding = tuple(rng.normal(size=(side, side, WIDTH)).astype(np.float16) for side in sides[:-1])
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        decoder = ZoomDecoder(DecoderConfig(width=WIDTH, actions=area.actions, layers=1, heads=2)).eval()
    for parameter in decoder.parameters():
        parameter.data *= 6  # or all steps would be close to uniform
    model = ZoomModel(decoder.requires_grad_(False), area, INFO, None, Path())
    return ZoomExpert(model, TileTable(MapEmbeddings(area, embedding, status)))


def cells_expert(seed: int = 1) -> CellsExpert:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        heads = SimilarityHeads(HeadsConfig(WIDTH, features=8)).eval().requires_grad_(False)
        codes = torch.nn.functional.normalize(torch.randn(256, 8), dim=-1)
    return CellsExpert(AREA, INFO, np.ones(AREA.shape, bool), heads, codes)


def vpr_expert(seed: int = 2, photos: int = 60) -> VprExpert:
    rng = np.random.default_rng(seed)
    x, y = rng.uniform(-160, 160, (2, photos))
    embedding = torch.from_numpy(rng.normal(size=(photos, WIDTH)))
    return VprExpert(AREA, INFO, np.ones(AREA.shape, bool), embedding, x, y, VprConfig(width_m=15.0, temperature=0.1))


def retrieval_expert() -> RetrievalExpert:
    pytest.importorskip("faiss")
    from jzi.retrieve.retriever import Retriever
    from jzi.store.model_config import RetrieverModelConfig

    row, col = (values.ravel() for values in np.indices(AREA.shape))
    embedding = np.random.default_rng(3).normal(size=(256, WIDTH))
    config = object.__new__(RetrieverModelConfig)
    object.__setattr__(config, "temperature", 0.1)
    object.__setattr__(config, "pyramid", AREA)
    object.__setattr__(config, "encoder", INFO)
    return RetrievalExpert(Retriever(Path(), config), CellIndex(row, col, embedding))


EXPERTS: dict[str, Callable[[], Any]] = {
    "zoom": zoom_expert,
    "cells": cells_expert,
    "vpr": vpr_expert,
    "retrieval": retrieval_expert,
    "fused": lambda: FusedExpert([zoom_expert(), cells_expert(), vpr_expert()], [0.6, 0.5, 0.4]),
    "any": lambda: RestrictedExpert(zoom_expert(), np.ones(AREA.shape, bool)),
}
QUERY = torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(4))
OPTIONS = LocateOptions("map")
#: As `OPTIONS`, but a zoom computes the probability of every cell instead of spreading the last of it evenly.
EXACT = LocateOptions("map", beams=64)


def grids(posterior: Posterior) -> np.ndarray:
    return np.stack([posterior.grid(photo) for photo in range(len(posterior))])


@pytest.mark.parametrize("name", EXPERTS)
def test_the_product_is_the_posterior_times_the_weights_where_an_expert_reaches_all_cells(name: str) -> None:
    expert = EXPERTS[name]()
    weight = np.random.default_rng(5).random(AREA.shape)
    weight[:, :9] = weight[12:] = 0.0
    product = PriorExpert(expert, weight).posterior(QUERY, EXACT)
    whole = expert.posterior(QUERY, EXACT)
    spread = (
        whole.residual[:, None, None]
        * (grids(whole) == 0)
        / np.maximum(1, (grids(whole) == 0).sum((1, 2)))[:, None, None]
    )
    expected = (grids(whole) + spread) * weight
    np.testing.assert_allclose(grids(product), expected / expected.sum((1, 2), keepdims=True), rtol=2e-3, atol=1e-7)
    assert (grids(product)[:, weight == 0] == 0).all() and (product.residual == 0).all()
    assert product.probability.sum(1) == pytest.approx(np.ones(5))
    assert (np.diff(product.probability) <= 0).all()


@pytest.mark.parametrize("name", EXPERTS)
def test_a_restricted_expert_keeps_to_its_cells_and_proportions(name: str) -> None:
    expert = EXPERTS[name]()
    assert isinstance(expert, Restrictable) == (name != "any")
    mask = np.zeros(AREA.shape, bool)
    mask[3:8, 5:14] = True
    restricted = restrict(expert, mask)
    part, whole = grids(restricted.posterior(QUERY, EXACT)), grids(expert.posterior(QUERY, EXACT)) * mask
    np.testing.assert_array_equal(restricted.cell_mask, mask)
    assert (part[:, ~mask] == 0).all()
    ratio = part.sum((1, 2)) / whole.sum((1, 2))
    np.testing.assert_allclose(part, whole * ratio[:, None, None], rtol=2e-3, atol=1e-7)
    west = np.broadcast_to(np.arange(16) < 8, AREA.shape)
    again = restrict(restricted, west)  # twice
    np.testing.assert_array_equal(again.cell_mask, mask & west)
    assert (grids(again.posterior(QUERY, EXACT))[:, :, 8:] == 0).all()


def test_the_beams_of_a_zoom_stay_inside_the_prior(monkeypatch: pytest.MonkeyPatch) -> None:
    expert, mask = zoom_expert(), np.zeros(AREA.shape, bool)
    exact = grids(expert.posterior(QUERY, EXACT))
    few = LocateOptions("map", beams=2)
    unreached = grids(expert.posterior(QUERY, few)).max(0) == 0
    least = np.argsort(np.where(unreached, exact.max(0), np.inf), axis=None)[:40]
    mask[np.unravel_index(least, AREA.shape)] = True  # the least probable cells, which no beam reaches
    assert not mask[~unreached].any()
    restricted = expert.restricted(mask)
    part = restricted.posterior(QUERY, few)
    reached = grids(part)
    assert (reached[:, ~mask] == 0).all() and (reached > 0).any((1, 2)).all()
    np.testing.assert_allclose(reached[reached > 0], exact[reached > 0], rtol=1e-4)
    missed = (exact * mask * (reached == 0)).sum((1, 2))
    assert (part.residual >= missed * (1 - 1e-4)).all() and (part.residual > 0).any()
    # By default all tiles of a small region are searched, however large the map is
    monkeypatch.setattr(zoom_module, "BEAMS", 1)
    monkeypatch.setattr(zoom_module, "EXACT_CELLS", 4 * 40)
    whole = expert.restricted(mask).posterior(QUERY, OPTIONS)
    np.testing.assert_allclose(grids(whole), exact * mask, rtol=1e-4)
    assert (whole.residual == 0).all()
    assert expert.table.search_mask is expert.table.child_mask  # the original is as before


def test_vpr_searches_the_photos_of_the_region(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vpr_module, "NEIGHBOURS", 3)
    expert, mask = vpr_expert(), np.zeros(AREA.shape, bool)
    mask[:3, :3] = True
    few = grids(expert.posterior(QUERY, OPTIONS)) * mask
    assert (few.sum((1, 2)) == 0).any()  # no neighbour of some photo is there
    assert (grids(expert.restricted(mask).posterior(QUERY, OPTIONS)).sum((1, 2)) > 0).all()
    nowhere = replace(expert.config, width_m=1e-3)
    empty = VprExpert(
        AREA, INFO, expert.cell_mask, expert.embedding[:1], np.array([150.0]), np.array([-150.0]), nowhere
    )
    product = PriorExpert(FusedExpert([empty], [1.0]), mask.astype(float)).posterior(QUERY, OPTIONS)
    np.testing.assert_allclose(grids(product), np.broadcast_to(mask / 9, (5, 16, 16)))


class Nowhere:
    """An expert that gives one cell all the probability."""

    name, rules_out, area, encoder = "nowhere", False, AREA, INFO
    cell_mask = np.ones(AREA.shape, bool)

    def posterior(self, query: torch.Tensor, options: LocateOptions) -> Posterior:
        return Posterior.from_cells(AREA, np.array([15]), np.array([15]), np.ones((len(query), 1)))

    def uncalibrated(self) -> None:
        return None


def test_where_an_expert_gives_nothing_the_prior_remains() -> None:
    weight = np.zeros(AREA.shape)
    weight[2, 3], weight[4, 5] = 1.0, 3.0
    product = PriorExpert(Nowhere(), weight).posterior(QUERY, OPTIONS)
    assert product.grid()[2, 3] == pytest.approx(0.25) and product.grid()[4, 5] == pytest.approx(0.75)


def test_a_prior_of_many_cells_keeps_a_residual(monkeypatch: pytest.MonkeyPatch) -> None:
    expert, weight = zoom_expert(), np.random.default_rng(5).random(AREA.shape)
    weight[:, 8:] = 0.0
    options = LocateOptions("map", beams=4)
    dense = PriorExpert(expert, weight).posterior(QUERY, options)
    monkeypatch.setattr("jzi.locate.priors.prior.MAX_CELLS", 10)
    sparse = PriorExpert(expert, weight).posterior(QUERY, options)
    assert (sparse.residual > 0).any() and (grids(sparse)[:, :, 8:] == 0).all()
    np.testing.assert_allclose(sparse.probability.sum(1) + sparse.residual, 1)
    reached = grids(sparse) > 0
    np.testing.assert_allclose(grids(sparse)[reached], grids(dense)[reached])


def test_greedy_with_a_prior_is_the_most_probable_cell() -> None:
    expert = PriorExpert(zoom_expert(), near(AREA, *position(100, 100), 50.0))
    greedy, best = (expert.posterior(QUERY, LocateOptions(each)) for each in ("greedy", "map"))
    assert greedy.row.shape == (5, 1) and (greedy.row[:, 0] == best.row[:, 0]).all()
    assert (greedy.probability[:, 0] == best.probability[:, 0]).all()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda weight: weight * 0, "no cell with imagery"),
        (lambda weight: -weight, "0 or more"),
        (lambda weight: weight * np.nan, "finite"),
        (lambda weight: weight / 0, "finite"),
        (lambda weight: weight[1:], "a weight for each of"),
    ],
)
@pytest.mark.filterwarnings("ignore:divide by zero")
def test_weights_that_are_none_are_refused(change: Callable, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        PriorExpert(zoom_expert(), change(np.ones(AREA.shape)))


def test_a_region_without_imagery_is_refused() -> None:
    imagery = np.ones(AREA.shape, bool)
    imagery[:, 8:] = False
    expert: Expert = zoom_expert(imagery=imagery)
    with pytest.raises(ConfigError, match="no cell with imagery"):
        PriorExpert(expert, region(AREA, [rectangle(40, 40, 80, 80)]))
    partly = PriorExpert(expert, region(AREA, [rectangle(-70, 42, 70, 58)]))
    assert partly.cell_mask.any() and not partly.cell_mask[:, 8:].any()
    assert PriorExpert(expert, np.full(AREA.shape, 1e308)).weight.sum() == pytest.approx(1)


# From Python, and from the command line


@pytest.fixture
def model(tmp_path: Path, encoder_folder: Path, pyramid: Pyramid) -> Path:
    """A model folder with random weights and a random map of 64 x 64 cells of 12.5 m."""
    rng = np.random.default_rng(0)
    sides = [pyramid.tiles_per_side(level) for level in range(4)]
    embedding = tuple(rng.normal(size=(side, side, 32)).astype(np.float16) for side in sides[:-1])
    status = tuple(np.full((side, side), ENCODED, np.uint8) for side in sides)
    config = DecoderConfig(width=32, layers=1, heads=2)
    info = Encoder.load(encoder_folder, image_size=28).info
    create_folder(tmp_path / "model", config, pyramid, info, encoder_folder)
    write_file(tmp_path / "model", MAP, MapEmbeddings(pyramid, embedding, status).save)
    torch.manual_seed(0)
    save_weights(tmp_path / "model", ZoomDecoder(config))
    return tmp_path / "model"


def test_photos_are_located_inside_the_prior_one_by_one_together_and_on_a_drive(model, photo_folder, pyramid) -> None:
    plain = package.load(model)
    latitude, longitude = map(float, pyramid.unproject(200.0, -100.0))
    weight = near(pyramid, latitude, longitude, 60.0)
    weight[:, 40:] *= 3
    locator, photos = plain.with_prior(weight), sorted(photo_folder.rglob("*.jpg"))[:3]
    together = locator.locate_together(photos)
    answers = [*locator.locate_all(photos), together, *locator.locate_track(photos, [0, 10, 20], 5.0)]
    for answer in answers:
        grid = answer.posterior.grid()
        assert (grid[weight == 0] == 0).all() and grid.sum() == pytest.approx(1) and answer.residual == 0
    assert locator.encoder is plain.encoder
    assert plain.locate(photos[0]).posterior.grid()[weight == 0].any()  # the original is as before
    # Several photos of one position use the prior once
    mask = weight > 0
    by_region = plain.with_prior(mask.astype(float)).locate_together(photos).posterior.grid()
    expected = by_region * weight
    np.testing.assert_allclose(together.posterior.grid(), expected / expected.sum(), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("options", ["", " --together", " --track --interval 5"])
def test_the_command_locates_inside_of_its_priors(jzi, model, photo_folder, pyramid, tmp_path, options) -> None:
    latitude, longitude = (float(each) for each in pyramid.unproject(200.0, -100.0))
    (tmp_path / "r.json").write_text(json.dumps(rectangle(190, -300, 390, 300, area=pyramid)))
    lines = jzi(
        f"locate photos/day0 --near {latitude} {longitude} --within 60 --region r.json --json{options}"
    ).stdout.splitlines()
    assert len(lines) == (1 if "together" in options else 15)
    for line in lines:
        answer = json.loads(line)
        assert answer["prior"] == {"near": [latitude, longitude], "within_m": 60.0, "region": "r.json"}
        assert all(170 <= each["x"] <= 280 and -180 <= each["y"] <= -20 for each in answer["candidates"])
    assert "prior" not in json.loads(jzi("locate photos/day0/000.jpg --json").stdout)


def test_the_command_takes_a_raster_of_weights(jzi, model, photo_folder, pyramid, write_raster) -> None:
    weights = np.zeros((1, 8, 8), np.float32)
    weights[0, 2, 5] = 0.1  # rows and columns of 100 m
    write_raster(weights, pyramid.bounds, pyramid.crs, "weights.tif")
    answer = json.loads(jzi("locate photos/day0/000.jpg --prior weights.tif --json --estimate map").stdout)
    assert answer["prior"] == {"raster": "weights.tif"}
    assert all(each["cell"][0] // 8 == 2 and each["cell"][1] // 8 == 5 for each in answer["candidates"])


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ("--near 48.2 16.37", "near and within belong together"),
        ("--within 100", "near and within belong together"),
        ("--near 16.37 48.2 --within 100", "no cell of the map is within 100 m of 16.37 48.2"),
        ("--near 16.37 48.2 --within 100", "within 100 m of 16.37 48.2; 48.2 16.37 is inside: give the latitude first"),
        ("--near -33.9 151.2 --within 100", "no cell of the map"),
        ("--near nan 16.37 --within 100", "no position on earth"),
        ("--near 48.2 16.37 --within inf", "within must be"),
        ("--region gone.json", "gone.json cannot be read: No such file"),
        ("--region photos/day0/000.jpg", "cannot be read as GeoJSON"),
        ("--prior gone.tif", "gone.tif cannot be read as a raster"),
        ("--experts zoom,cells", "no expert 'cells'"),
        ("--experts zoom,zoom", "distinct names"),
    ],
)
def test_a_prior_that_cannot_be_used_is_one_sentence_and_nothing_is_written(
    jzi, model, photo_folder, tmp_path, options, reason
) -> None:
    before = set(tmp_path.rglob("*"))
    error = jzi(f"locate photos/day0 {options} --csv out.csv --map out.html --write-exif copies", code=2).stderr
    assert reason in error and error.startswith("jzi: ") and error.count("\n") == 1
    assert set(tmp_path.rglob("*")) == before


def test_experts_are_chosen_from_python_and_refused_for_retrievers(model) -> None:
    assert package.load(model, experts=["zoom"]).expert.name == "zoom"
    with pytest.raises(ConfigError, match="no expert 'vpr': it has zoom"):
        package.load(model, experts=["vpr"])
