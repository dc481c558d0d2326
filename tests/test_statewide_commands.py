"""State-wide retrieval from the command line: counting, training, indexing another region, evaluating, locating."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from transformers import ConvNextConfig, ConvNextModel

import jzi as jzi_package
from jzi.commands.training import statewide as statewide_commands
from jzi.locate.answer.location import LocateOptions
from jzi.locate.joint.projected_expert import ProjectedExpert
from jzi.locate.joint.zoomed import tiles_of
from jzi.locate.priors.prior_weights import Prior
from jzi.rerank.judges.scripted import ScriptedJudge
from jzi.retrieve.bands_expert import BandsExpert
from jzi.retrieve.statewide import StatewideRetriever
from jzi.store.cache.feature_cache import FeatureCache
from jzi.store.features.cell_features import OUTSIDE, CellFeatures
from jzi.store.features.map_embeddings import ENCODED
from jzi.store.geometry.pyramid import Pyramid, geodesic_distance
from jzi.store.geometry.region import Region, RegionCells
from jzi.store.trained_photos import TrainedPhotos, photo_keys
from jzi.tests.mock_hub import Hub
from jzi.vectors.index_files import VECTORS
from jzi.workspace.regions.region_index import ZoomedLocator, region_locator
from jzi.workspace.setup.settings_file import load_region

from .conftest import run_command, save_zoom

SMALL = (
    "--set statewide.lods_m=[0.5,2.0] --set statewide.image_size=32 --set statewide.photo_size=[64,48] "
    "--set statewide.width=32 --set statewide.heads=4"
)
TRAINING = (
    "--set statewide.steps=6 --set statewide.validate_every=3 --set statewide.batch_size=4 "
    "--set statewide.warmup_steps=2 --set statewide.first_scan=8 --set statewide.pool_max=16 "
    "--set statewide.learning_rate=1e-3"
)


@pytest.fixture(scope="module")
def convnext_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("convnext")
    config = ConvNextConfig(depths=[1, 1, 1, 1], hidden_sizes=[8, 16, 24, 32], image_size=32)
    ConvNextModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def trained_folder(prepare: Callable[..., Path], town_folder: Path, convnext_folder: Path) -> Path:
    """A region with a trained retriever. Do not modify."""
    towers = f"--set statewide.photo_model={convnext_folder} --set statewide.map_model={convnext_folder}"
    return prepare(
        town_folder,
        "statewide",
        "init --map map.tif --queries photos --cell 40",
        f"train-retriever {towers} {SMALL} {TRAINING}",
    )


@pytest.fixture(scope="module")
def indexed_folder(prepare: Callable[..., Path], trained_folder: Path) -> Path:
    """`trained_folder` with the cells of its region encoded. Do not modify."""
    return prepare(trained_folder, "indexed", "index")


@pytest.fixture
def indexed(jzi: Callable[..., Any], indexed_folder: Path, tmp_path: Path) -> Callable[..., Any]:
    """Runs commands in a copy of the region with its index."""
    shutil.copytree(indexed_folder, tmp_path, dirs_exist_ok=True)
    return jzi


@pytest.fixture
def trained(jzi: Callable[..., Any], trained_folder: Path, tmp_path: Path) -> Callable[..., Any]:
    """Runs commands in a copy of the region."""
    shutil.copytree(trained_folder, tmp_path, dirs_exist_ok=True)
    return jzi


def half_of(region: Path, file: Path) -> None:
    """Write the western half of a region."""
    west, south, east, north = Region.read(region).geometry.bounds
    middle = (west + east) / 2
    ring = [(west, south), (middle, south), (middle, north), (west, north), (west, south)]
    file.write_text(json.dumps({"type": "Polygon", "coordinates": [ring]}))


def test_a_region_is_counted_without_a_map(jzi: Callable[..., Any], tmp_path: Path) -> None:
    ring = [(10.0, 50.0), (10.01, 50.0), (10.01, 50.01), (10.0, 50.01), (10.0, 50.0)]
    (tmp_path / "r.geojson").write_text(json.dumps({"type": "Polygon", "coordinates": [ring]}))
    counts = {
        rule: json.loads(jzi(f"init --region r.geojson --cell 30 --rule {rule} --json").stdout)
        for rule in ("touch", "corners", "centre")
    }
    assert counts["touch"]["cells"] >= counts["corners"]["cells"] > counts["centre"]["cells"] > 800
    assert counts["touch"]["bands"] >= 37
    assert not (tmp_path / "jzi.toml").exists()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ("--region missing.geojson", "missing.geojson cannot be read"),
        ("--cell 30", "no region is given"),
        ("--region r.geojson --preset just-zoom-in-dc", "--preset is not for a region"),
    ],
)
def test_regions_that_cannot_be_used_are_refused(
    jzi: Callable[..., Any], tmp_path: Path, options: str, reason: str
) -> None:
    ring = [(10.0, 50.0), (10.01, 50.0), (10.01, 50.01), (10.0, 50.0)]
    (tmp_path / "r.geojson").write_text(json.dumps({"type": "Polygon", "coordinates": [ring]}))
    assert reason in jzi(f"init {options}", 2).stderr


def test_a_map_of_another_place_than_the_region_is_refused(
    jzi: Callable[..., Any], trained_folder: Path, tmp_path: Path
) -> None:
    ring = [(20.0, 40.0), (20.01, 40.0), (20.01, 40.01), (20.0, 40.0)]
    (tmp_path / "r.geojson").write_text(json.dumps({"type": "Polygon", "coordinates": [ring]}))
    [raster] = load_region(trained_folder / "jzi.toml").rasters
    assert "does not overlap" in jzi(f"init --map {raster} --region r.geojson", 2).stderr
    assert not (tmp_path / "jzi.toml").exists()


def test_a_map_beside_the_polygons_of_a_region_is_refused(
    jzi: Callable[..., Any], trained_folder: Path, tmp_path: Path
) -> None:
    [raster] = load_region(trained_folder / "jzi.toml").rasters
    west, south, east, north = Region.read(trained_folder / "region.geojson").geometry.bounds
    width, height = east - west, north - south

    def around(gap: float) -> None:
        """Two rectangles to the west and the east of the map; the rectangle around both contains it."""
        parts = [(west - 2 * width, west - gap * width), (east + gap * width, east + 2 * width)]
        rings = [[[(a, south), (b, south), (b, north + height), (a, north + height), (a, south)]] for a, b in parts]
        (tmp_path / "r.geojson").write_text(json.dumps({"type": "MultiPolygon", "coordinates": rings}))

    around(0.5)
    assert "r.geojson has no imagery" in jzi(f"init --map {raster} --region r.geojson", 2).stderr
    assert not (tmp_path / "jzi.toml").exists()
    around(-0.1)
    jzi(f"init --map {raster} --region r.geojson")


def test_commands_of_the_zoom_refuse_a_region(trained: Callable[..., Any]) -> None:
    for command in ("encode-map", "train-decoder", "finetune"):
        assert "describes a region" in trained(command, 2).stderr


def test_a_finished_training_is_not_repeated(
    trained: Callable[..., Any], tmp_path: Path, convnext_folder: Path
) -> None:
    before = (tmp_path / "retriever" / "config.json").read_bytes()
    towers = f"--set statewide.photo_model={convnext_folder} --set statewide.map_model={convnext_folder}"
    report = json.loads(trained(f"train-retriever {towers} {SMALL} {TRAINING} --json").stdout.splitlines()[-1])
    assert report["epochs"] == 0
    assert (tmp_path / "retriever" / "config.json").read_bytes() == before
    other = trained(f"train-retriever {towers} {SMALL} {TRAINING} --set statewide.seed=1", 2)
    assert "trained in another way" in other.stderr or "another" in other.stderr


def test_a_retriever_indexes_and_locates_in_another_region(
    trained: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    half_of(tmp_path / "region.geojson", elsewhere / "half.geojson")
    trained("init elsewhere --map map.tif --region elsewhere/half.geojson --cell 40 --queries photos")
    there = "--config elsewhere/jzi.toml"
    estimate = json.loads(trained(f"index {there} --dry-run --json").stdout.splitlines()[-1])
    monkeypatch.setattr(statewide_commands, "MUCH_EMPTY", 0.001)
    encoding = trained(f"index {there} --json")
    assert "no imagery, which should reach 32 m beyond the region" in encoding.stderr
    report = json.loads(encoding.stdout.splitlines()[-1])
    assert report["encoded"] + report["nodata"] == estimate["cells"] > 100
    again = json.loads(trained(f"index {there} --json").stdout.splitlines()[-1])
    assert (again["encoded"], again["reused"]) == (0, report["encoded"])
    photos = json.loads(
        trained(f"encode-queries {there} --retriever retriever --json --skip-unusable").stdout.splitlines()[-1]
    )
    assert photos["encoded"] > 5
    cache = FeatureCache.open(elsewhere / "index.zarr")
    assert cache.region is not None
    gallery = "--split all --gallery-html failures.html --gallery-photos 2"
    evaluation = json.loads(trained(f"evaluate {there} --retriever retriever {gallery} --json").stdout.splitlines()[-1])
    assert 0 <= evaluation["recall@1<50m"]["value"] <= 1
    report = (tmp_path / "failures.html").read_text()
    assert report.count("<article") == 2 and report.count("<b>True position</b>") == 2 and "per square of" in report
    assert "The map is not shown" not in report and "cannot be shown" not in report
    photo = next((tmp_path / "photos").rglob("*.jpg"))
    outputs = "--geojson a.geojson --csv a.csv --heatmap a.tif --map a.html"
    located = json.loads(
        trained(f"locate {photo} --retriever retriever {there} {outputs} --json").stdout.splitlines()[-1]
    )
    row, _ = cache.area.cells_at(located["latitude"], located["longitude"])
    assert row[0] >= 0
    page = (tmp_path / "a.html").read_text()
    assert '"imagery": {"image": "data:image/webp' in page  # the map of the region, as that of a square
    with rasterio.open(tmp_path / "a.tif") as raster:
        probability = raster.read(1, masked=True)
        y, x = np.unravel_index(probability.argmax(), probability.shape)
        assert raster.crs is not None
        assert (y, x) != (0, 0)


def test_a_table_beside_the_index_is_searched_where_there_is_no_faiss_index(
    indexed: Callable[..., Any], tmp_path: Path
) -> None:
    pytest.importorskip("lancedb")
    values = json.loads(indexed("index --lance --json").stdout.splitlines()[-1])
    assert values["lance"] == "index.lance" and (tmp_path / "index.lance").is_dir()
    photo = next((tmp_path / "photos").rglob("*.jpg"))
    found, exact = (
        json.loads(indexed(f"locate {photo} --retriever retriever {how} --json").stdout.splitlines()[-1])
        for how in ("--approximate", "")
    )
    assert found["candidates"][0]["cell"] == exact["candidates"][0]["cell"]


def test_inverted_lists_are_searched_in_a_copy_of_the_vectors(
    indexed: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("faiss")
    values = json.loads(indexed("index --faiss ivf-rabitq --copy --json").stdout.splitlines()[-1])
    vectors, cells = np.load(tmp_path / "index.faiss" / VECTORS), FeatureCache.open(tmp_path / "index.zarr").cells
    assert vectors.shape == ((cells.status() == ENCODED).sum(), cells.width)
    assert values["faiss"]["copied"] and values["faiss"]["bytes"] > vectors.nbytes
    search = f"locate {next((tmp_path / 'photos').rglob('*.jpg'))} --retriever retriever --approximate --json"
    gather, reads = CellFeatures.gather, []

    def counted(*args: Any) -> np.ndarray:
        reads.append(args)
        return gather(*args)

    monkeypatch.setattr(CellFeatures, "gather", counted)
    assert json.loads(indexed(search).stdout.splitlines()[-1])["candidates"]
    assert len(reads) == 1  # of the index's fingerprint
    indexed("index --faiss ivf-rabitq")
    assert not (tmp_path / "index.faiss" / VECTORS).exists()
    reads.clear()
    indexed(search)
    assert len(reads) > 1


def test_options_of_an_index_that_do_not_apply_are_refused_before_any_work(
    trained: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for without in ("", " --faiss hnsw", " --hnsw"):
        assert "--copy is for inverted lists" in trained(f"index --copy{without}", 2).stderr
    assert "there is no folder nowhere" in trained("index --export nowhere/a.parquet", 2).stderr
    monkeypatch.setitem(sys.modules, "faiss", None)
    assert "pip install 'jzi[retrieve]'" in trained("index --faiss auto", 2).stderr
    assert not (tmp_path / "index.zarr").exists()


def test_a_score_map_has_every_cell_and_its_best_pixel_on_the_most_probable_one(
    indexed: Callable[..., Any], tmp_path: Path
) -> None:
    photo = next((tmp_path / "photos").rglob("*.jpg"))
    run = f"locate {photo} --retriever retriever --json --estimate map"
    located = json.loads(indexed(f"{run} --score-map a.tif --heatmap b.tif").stdout.splitlines()[-1])
    with rasterio.open(tmp_path / "a.tif") as raster, rasterio.open(tmp_path / "b.tif") as heatmap:
        score, probability = raster.read(1, masked=True), heatmap.read(1, masked=True)
        assert (score.mask == probability.mask).all() and score.count() >= FeatureCache.open(
            tmp_path / "index.zarr"
        ).cells.cells > 100
        assert score.max() == 1.0 and score.min() >= 0.0
        y, x = np.unravel_index(score.argmax(), score.shape)
        assert probability[y, x] == probability.max()
        np.testing.assert_allclose(score, probability / probability.max(), rtol=2e-3, atol=1e-6)
    near = f"--near {located['latitude']} {located['longitude']} --within 100"
    indexed(f"{run} --score-map c.tif {near}")
    with rasterio.open(tmp_path / "c.tif") as raster:
        assert 4 < raster.read(1, masked=True).count() < 60


def test_score_maps_that_do_not_apply_are_refused_before_any_work(indexed: Callable[..., Any], tmp_path: Path) -> None:
    first, second = sorted((tmp_path / "photos").rglob("*.jpg"))[:2]
    one = f"locate {first} --score-map a.tif"
    assert "--score-map is for a region: pass --retriever too" in indexed(one, 2).stderr
    several = f"locate {first} {second} --retriever retriever --score-map a.tif"
    assert "--score-map draws one photo" in indexed(several, 2).stderr
    missing = f"locate {first} --retriever retriever --score-map nowhere/a.tif"
    assert "there is no folder nowhere" in indexed(missing, 2).stderr
    pytest.importorskip("faiss")
    indexed("index --retriever retriever --faiss hnsw")
    approximate = indexed(f"{one} --retriever retriever --approximate", 2).stderr
    assert "--approximate does not score every cell" in approximate
    assert not (tmp_path / "a.tif").exists()


def test_a_published_retriever_indexes_and_locates_by_its_name(
    hub: Hub, trained: Callable[..., Any], tmp_path: Path
) -> None:
    trained("push retriever anna/state --license mit")
    trained("index --retriever anna/state")
    trained("encode-queries --retriever anna/state --skip-unusable")
    photo = next((tmp_path / "photos").rglob("*.jpg"))
    own, named = (
        json.loads(trained(f"locate {photo} --retriever {name} --json").stdout.splitlines()[-1])
        for name in ("retriever", "anna/state")
    )
    assert own == named
    assert json.loads(trained("evaluate --retriever anna/state --split all --json").stdout)["photos"] > 1
    card = trained("push retriever anna/state --license mit --dry-run --card card.md")
    assert "not evaluated" not in card.stderr and "the most similar of" in (tmp_path / "card.md").read_text()


@pytest.fixture(scope="module")
def fine_index(trained_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An index of cells of 12 m in several chunks, with random vectors. Do not modify."""
    path = str(tmp_path_factory.mktemp("fine") / "index.zarr")
    cells = RegionCells.of(Region.read(trained_folder / "region.geojson"), 12.0, "touch")
    encoder = StatewideRetriever.load(trained_folder / "retriever").encoder
    cache = FeatureCache.open_or_create(path, cells.info, encoder)
    generator = np.random.default_rng(0)
    for rows, cols in cache.cells.units:
        inside = cells.runs.mask(rows, cols)
        vectors = generator.normal(size=(*inside.shape, cache.cells.width))
        vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
        cache.cells.write((rows, cols), np.where(inside, ENCODED, OUTSIDE).astype(np.uint8), vectors.astype(np.float16))
    cache.close()
    return path


def chunks_of(mask: np.ndarray) -> set[tuple[int, int]]:
    row, col = np.nonzero(mask)
    return {*zip((row // 32).tolist(), (col // 32).tolist(), strict=True)}


def test_a_prior_is_searched_by_reading_its_chunks_only(trained_folder: Path, fine_index: str) -> None:
    locator = region_locator(StatewideRetriever.load(trained_folder / "retriever"), fine_index, device="cpu")
    expert, photo = locator.expert, next((trained_folder / "photos").rglob("*.jpg"))
    assert isinstance(expert, BandsExpert) and isinstance(expert.store, CellFeatures)
    row, col = (int(values[len(values) // 2]) for values in np.nonzero(expert.cell_mask))
    latitude, longitude = (float(values) for values in expert.area.unproject(*expert.area.cell_centers(row, col)))
    weight = Prior((latitude, longitude), 100.0).weight(expert.area)
    expert.store.reads = 0
    location = locator.with_prior(weight).locate(photo)
    assert expert.store.reads == len(chunks_of(weight > 0)) < len(chunks_of(expert.cell_mask))
    assert weight[location.posterior.row, location.posterior.col][location.posterior.probability > 0].all()
    locator.locate(photo)
    assert expert.store.reads == len(chunks_of(weight > 0)) + len(chunks_of(expert.cell_mask))


def test_a_zoom_bounds_the_search_to_the_chunks_of_its_tiles_in_the_region(
    trained_folder: Path, fine_index: str, encoder_folder: Path, tmp_path: Path
) -> None:
    region = region_locator(StatewideRetriever.load(trained_folder / "retriever"), fine_index, device="cpu")
    cells, photo = region.expert, next((trained_folder / "photos").rglob("*.jpg"))
    assert isinstance(cells, BandsExpert) and isinstance(cells.store, CellFeatures)
    area, mask = cells.area, cells.cell_mask
    corner = tuple(int(values[0]) for values in np.nonzero(mask))
    latitude, longitude = (float(values) for values in area.unproject(*area.cell_centers(*corner)))
    square = Pyramid.around(latitude, longitude, 300.0, grid=4, levels=2)  # a quarter of it lies in the region
    save_zoom(tmp_path / "zoom", square, encoder_folder)
    zoom = jzi_package.load(tmp_path / "zoom", "cpu")
    locator = ZoomedLocator.bounded(region, zoom)

    x, y = square.project(*area.unproject(*area.cell_centers(*np.indices(area.shape))))
    center_x, center_y = square.project(latitude, longitude)
    near = mask & (np.maximum(abs(x - center_x), abs(y - center_y)) <= 150 + 50 + 1)
    cells.store.reads = 0
    location = locator.locate(photo)
    assert 0 < cells.store.reads <= len(chunks_of(near)) < len(chunks_of(mask))
    posterior = location.posterior
    assert near[posterior.row, posterior.col][posterior.probability > 0].all()
    assert 0.6 < posterior.probability.sum() <= 1.0 + 1e-6  # none is lost to tiles outside of the region

    # Both encoders embed the photo, and within the district the cells are in the proportions of the whole region
    _, query = locator.encode([photo])
    _, expected = region.encode([photo])
    np.testing.assert_array_equal(query[:, -cells.store.width :], expected)
    np.testing.assert_allclose(query[:, : -cells.store.width], zoom.encode([photo])[1])
    grid = np.zeros(area.shape)
    whole = cells.posterior(expected, LocateOptions())
    grid[whole.row, whole.col] = whole.probability
    kept = (posterior.probability > 0) & (grid[posterior.row, posterior.col] > 0)
    share = posterior.probability[kept] / grid[posterior.row, posterior.col][kept]
    np.testing.assert_allclose(share, share[0], rtol=2e-3)

    weight = Prior((latitude, longitude), 60.0).weight(area)
    cells.store.reads = 0
    inside = locator.with_prior(weight).locate(photo).posterior
    assert 0 < cells.store.reads <= len(chunks_of(weight > 0))
    assert weight[inside.row, inside.col][inside.probability > 0].all()


def test_a_tile_is_of_the_region_if_cells_overlap_it_however_large_it_is(fine_index: str) -> None:
    cache = FeatureCache.open(fine_index)
    area, mask = cache.area, cache.cells.status() == ENCODED
    row, col = (int(values[len(values) // 2]) for values in np.nonzero(mask))
    latitude, longitude = (float(values) for values in area.unproject(*area.cell_centers(row, col)))
    one = np.zeros_like(mask)
    one[row, col] = True
    for size, levels in ((4000.0, 2), (64.0, 2)):  # tiles of 250 and of 4 m
        tiles = Pyramid.around(latitude, longitude, size, grid=4, levels=levels)
        inside = tiles_of(tiles, area, one)
        assert inside[tiles.cells_at(latitude, longitude)].all()
        assert 1 <= inside.sum() <= (4 if size > 1000 else 16)


def test_a_zoom_is_given_on_the_command_line(indexed: Callable[..., Any], encoder_folder: Path, tmp_path: Path) -> None:
    photo = next((tmp_path / "photos").rglob("*.jpg"))
    center = Region.read(tmp_path / "region.geojson").geometry.centroid
    for name, latitude in (("zoom", center.y), ("elsewhere", center.y + 1)):
        save_zoom(tmp_path / name, Pyramid.around(latitude, center.x, 200.0, grid=4, levels=2), encoder_folder)
    run = f"locate {photo} --retriever retriever"
    located = json.loads(indexed(f"{run} --zoom zoom --json").stdout.splitlines()[-1])
    assert geodesic_distance(center.y, center.x, located["latitude"], located["longitude"]) < 300
    for line, reason in (
        (f"locate {photo} --zoom zoom", "--zoom bounds the search of --retriever"),
        (f"{run} --zoom zoom --approximate", "without --approximate"),
        (f"{run} --zoom zoom --score-map a.tif", "leave one of them out"),
        (f"{run} --zoom retriever", "is a state-wide retriever: give a zoom model"),
        (f"{run} --zoom elsewhere", "does not overlap the cells to search"),
        (f"{run} --zoom missing", "missing"),
        (f"{run} --refine", "refining is for square areas"),
    ):
        assert reason in indexed(line, 2).stderr
    assert not (tmp_path / "a.tif").exists()


def test_an_index_of_another_retriever_is_refused(indexed: Callable[..., Any], tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "retriever")
    assert "retriever" in indexed("index", 2).stderr


@pytest.fixture(scope="module")
def zoomed_folder(prepare: Callable[..., Path], indexed_folder: Path, encoder_folder: Path) -> Path:
    """`indexed_folder` and a square in it with a trained zoom, which have encoded the same photos. Do not modify."""
    folder = prepare(indexed_folder, "zoomed", "encode-queries --retriever retriever")
    (folder / "square").mkdir()
    for name in ("map.tif", "photos"):
        (folder / "square" / name).symlink_to(folder / name)
    shutil.copytree(encoder_folder, folder / "square" / "encoder")
    allowed = "--set queries.allow_outside=true"
    prepare_square = [
        "init --map map.tif --queries photos --encoder encoder --image-size 28 --grid 4 --levels 2",
        "encode-map", f"encode-queries {allowed}",
        "train-decoder --experts zoom --set decoder.layers=1 --set train.epochs=1",
    ]  # fmt: skip
    with contextlib.chdir(folder / "square"):
        for line in prepare_square:
            run_command(line)
    return folder


def test_weights_of_a_zoom_and_a_retriever_are_fitted_and_used(
    jzi: Callable[..., Any], zoomed_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(zoomed_folder, tmp_path, dirs_exist_ok=True, symlinks=True)
    photo, run = next((tmp_path / "photos").rglob("*.jpg")), "--retriever retriever --zoom square"
    assert "jzi train-fusion" in jzi(f"locate {photo} {run} --fuse", 2).stderr  # there are no weights yet
    fitted = json.loads(jzi(f"train-fusion {run} --json").stdout)
    assert fitted["photos"] > 0 and fitted["weights"].keys() == {"cells", "zoom"}

    file = tmp_path / "index.fusion.json"
    entries = json.loads(file.read_text())
    entries["cells"], entries["zoom"] = 0.7, 0.4
    file.write_text(json.dumps(entries))
    evaluated = json.loads(jzi(f"evaluate {run} --split val --json").stdout)["experts"]
    assert evaluated.keys() == {"photos", "cells", "zoom", "fused"}
    assert evaluated["photos"] == fitted["photos"] and "recall@50m" in evaluated["fused"]
    located = json.loads(jzi(f"locate {photo} {run} --fuse --json").stdout.splitlines()[-1])

    # The answer is that of the product of both posteriors with these weights
    region = region_locator(StatewideRetriever.load(tmp_path / "retriever"), str(tmp_path / "index.zarr"), device="cpu")
    zoom = jzi_package.load(tmp_path / "square" / "model", "cpu")
    expected = ZoomedLocator.fused(region, zoom, (0.7, 0.4)).locate(photo)
    assert located["latitude"] == pytest.approx(expected.latitude, abs=1e-7)
    assert located["confidence"] == pytest.approx(expected.confidence, abs=1e-4)
    python = jzi_package.load(
        tmp_path / "retriever", cache=tmp_path / "index.zarr", zoom=tmp_path / "square", fusion=file
    )
    assert python.locate(photo).confidence == pytest.approx(expected.confidence, abs=1e-4)
    fused = ZoomedLocator.fused(region, zoom, (0.7, 0.4))
    assert isinstance(fused.expert, ProjectedExpert)
    _, query = fused.encode([photo])
    posteriors = fused.expert.posteriors(query, LocateOptions())
    for name, weights in (("cells", (1.0, 0.0)), ("zoom", (0.0, 1.0)), ("fused", (0.7, 0.4))):
        alone = ProjectedExpert(region.expert, zoom.expert, weights).posterior(query, LocateOptions())
        np.testing.assert_array_equal(posteriors[name].grid(), alone.grid())
    bounded = json.loads(jzi(f"locate {photo} {run} --json").stdout.splitlines()[-1])
    assert bounded["confidence"] != pytest.approx(expected.confidence, abs=1e-3)

    (tmp_path / "square" / "model" / "config.json").write_text("{}")
    assert "config.json" in jzi(f"locate {photo} {run} --fuse", 2).stderr
    for text in ("{", json.dumps({**entries, "zoom": -1.0}), json.dumps({**entries, "cells": 1e400})):
        file.write_text(text)
        assert "train-fusion" in jzi(f"evaluate {run} --split val", 2).stderr


def test_weights_of_another_model_are_refused(jzi: Callable[..., Any], zoomed_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(zoomed_folder, tmp_path, dirs_exist_ok=True, symlinks=True)
    run = "--retriever retriever --zoom square"
    jzi(f"train-fusion {run}")
    with contextlib.chdir(tmp_path / "square"):
        run_command("train-decoder --experts zoom --set decoder.layers=2 --set train.epochs=1 --set model.path=model2")
    photo = next((tmp_path / "photos").rglob("*.jpg"))
    refused = jzi(f"locate {photo} --retriever retriever --zoom square/model2 --fuse", 2).stderr
    assert "fitted for another model than square/model2" in refused
    for line, reason in (
        ("train-fusion --zoom photos", "photos has no jzi.toml"),
        (f"locate {photo} --retriever retriever --fuse", "give both"),
        (f"locate {photo} {run} --fuse --cache index.zarr", "leave --cache out"),
    ):
        assert reason in jzi(line, 2).stderr


def test_photos_that_either_was_trained_on_are_not_fitted_on(
    jzi: Callable[..., Any], zoomed_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(zoomed_folder, tmp_path, dirs_exist_ok=True, symlinks=True)
    run = "--retriever retriever --zoom square"
    fitted = json.loads(jzi(f"train-fusion {run} --json").stdout)["photos"]
    cache = FeatureCache.open(tmp_path / "square" / "features.zarr")
    photos = cache.queries.encoded()
    held_out = photos.index[photos["split"] == "val"]
    assert 1 < fitted <= len(held_out)
    table = tmp_path / "photos.csv"
    run_of_square = f"encode-queries --set queries.table={table} --set queries.photos=photos"
    for kept in (1, 0):  # the others are training photos of the square
        photos["split"] = np.where(photos.index.isin(held_out[:kept]), "val", "train")
        photos[["id", "path", "latitude", "longitude", "split"]].to_csv(table, index=False)
        with contextlib.chdir(tmp_path / "square"):
            run_command(f"{run_of_square} --set queries.allow_outside=true")
        if kept:
            assert json.loads(jzi(f"train-fusion {run} --json").stdout)["photos"] == kept
    assert "no photo of split val is in" in jzi(f"train-fusion {run}", 2).stderr
    with contextlib.chdir(tmp_path / "square"):  # they are held out again, but not from the model
        TrainedPhotos(model=photo_keys(photos)).write(tmp_path / "square" / "model")
        run_command("encode-queries")
    assert "square/model was trained on" in jzi(f"train-fusion {run}", 2).stderr


def test_candidates_of_a_region_are_compared(indexed: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    judge = ScriptedJudge({}, kind="random")
    monkeypatch.setattr("jzi.workspace.stages.reranker.open_judge", lambda *_: judge)
    answer = json.loads(indexed("locate photos/day0/000.jpg --retriever retriever --rerank x --json").stdout)
    assert answer["estimate"] == "rerank"
    shown = sum(each["judged"] is not None for each in answer["candidates"])
    assert judge.calls == shown * (shown - 1) > 0
    indexed("encode-queries --retriever retriever")
    row = json.loads(
        indexed(
            "rerank evaluate --judge x --retriever retriever --split train --photos 3 --methods pairs --json"
        ).stdout
    )
    assert row["photos"] == 3
    assert row["cost"]["asked"] > 0
    assert "name its retriever" in indexed("rerank evaluate --judge x", code=2).stderr
