"""Training of state-wide retrieval: settings, validation, resumption, and that the model learns."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import rasterio
import torch
from PIL import Image
from safetensors.torch import load_file

from jzi.encode.encoders.towers import Towers, TowersConfig
from jzi.encode.photo.augment import JITTER_DRAWS, jitter_colors, jitter_padded
from jzi.encode.rasters import cell_crops
from jzi.encode.rasters.cell_crops import CellCrops
from jzi.encode.rasters.imagery import Imagery
from jzi.encode.rasters.raster import close_rasters
from jzi.errors import ConfigError, ModelError, TrainingError
from jzi.retrieve.statewide import StatewideRetriever
from jzi.store.geometry.bands import BandGrid
from jzi.store.geometry.pyramid import geodesic_distance
from jzi.store.geometry.region import Region
from jzi.store.photos.photo_table import PhotoTable
from jzi.tests.conftest import write_geotiff
from jzi.train.config.statewide import StatewideConfig
from jzi.train.encoders.networks import TrainedTowers
from jzi.train.loop import TrainingLoop
from jzi.train.schedule import learning_rate_factor
from jzi.train.statewide import statewide_data
from jzi.train.statewide.statewide import train_statewide
from jzi.train.statewide.statewide_data import (
    NO_PANORAMAS,
    AreaPhotos,
    Gallery,
    SampleReader,
    StatewideArea,
    content_box,
)
from jzi.train.statewide.statewide_validation import encode_gallery, validate

# Settings


def test_settings_follow_the_method_unless_they_are_given() -> None:
    assert (StatewideConfig().steps, StatewideConfig().batch_size, StatewideConfig().learning_rate) == (
        200_000,
        30,
        1e-4,
    )
    baseline = StatewideConfig(method="sample4geo")
    assert (baseline.steps, baseline.batch_size, baseline.learning_rate) == (66_000, 90, 3e-4)
    assert baseline.pooling == "sample4geo" and not baseline.decoupled and baseline.mining
    assert baseline.lods(30.0) == (60 / 384,) and StatewideConfig().lods(30.0) == (0.2, 0.4, 0.8, 1.6)
    safa, transgeo = (StatewideConfig(method=method, scale=10.0) for method in ("safa", "transgeo"))
    assert safa.triplets and not safa.mining and safa.factor == 20
    assert transgeo.triplets and transgeo.mining and transgeo.factor == 10
    assert (safa.cluster_size, transgeo.cluster_size) == (30, 2)
    assert StatewideConfig(method="safa", mining=True, steps=7).steps == 7


@pytest.mark.parametrize(
    "name, value",
    [
        ("method", "netvlad"), ("batch_size", 1), ("lods_m", (0.0,)), ("lods_m", (0.2,) * 9), ("image_size", 0),
        ("photo_size", (640, 5000)), ("width", 0), ("pooling", "max"), ("heads", 0), ("scale", 0.0),
        ("negative_distance_m", -1.0), ("offset_margin_m", math.nan), ("bucket_m", 0.0), ("first_scan", 0),
        ("pool_max", 59), ("steps", 0), ("warmup_steps", -1), ("final_lr_share", 1.1), ("validate_every", 0),
        ("val_photos", 0), ("val_cells", 0), ("learning_rate", math.inf), ("label_smoothing", 1.0), ("seed", -1),
        ("epochs", 3), ("warmup", 0.1),
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused(name, value) -> None:
    with pytest.raises(ConfigError, match=f"statewide.{name}"):
        StatewideConfig(**{name: value})


def test_settings_that_contradict_one_another_are_refused() -> None:
    with pytest.raises(ConfigError, match="batch_size is 31: give a multiple of 2"):
        StatewideConfig(method="transgeo", batch_size=31)
    with pytest.raises(ConfigError, match="decoupled has no effect"):
        StatewideConfig(method="safa", decoupled=True)


def test_the_learning_rate_is_that_of_the_published_schedule() -> None:
    warm, final = StatewideConfig().schedule(200_000)

    def factor(step: int) -> float:
        return learning_rate_factor(step, 200_000, warm, final)

    assert factor(0) == 1 / 1000 and factor(499) == 0.5 and factor(999) == factor(1000) == 1
    assert factor(100_500) == pytest.approx(0.55) and factor(200_000) == pytest.approx(0.1)
    assert factor(50_000) == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi * 49 / 199)) / 2)


# Training

#: 300 m by 300 m in cells of 30 m.
GRID = BandGrid.covering(-71.062, 42.36, -71.0584, 42.3627, 30.0)
QUICK = StatewideConfig(
    batch_size=8, steps=12, warmup_steps=2, learning_rate=1e-3, validate_every=5, first_scan=24, pool_max=32,
    lods_m=(1.0, 2.0), image_size=32, photo_size=(48, 32), width=32, heads=4, val_cells=200, precision="no",
)  # fmt: skip


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A map whose colours differ everywhere, and photos that show the colours around them."""
    folder = tmp_path_factory.mktemp("town")
    bounds = GRID.bounds
    west, south, east, north = (round(each) for each in (bounds.west, bounds.south, bounds.east, bounds.north))
    down, right = np.linspace(30, 225, north - south)[:, None], np.linspace(30, 225, east - west)
    data = np.stack(np.broadcast_arrays(right, down, 128 + 60 * np.sin(right / 15) * np.sin(down / 15))).astype(
        np.uint8
    )
    write_geotiff(folder / "map.tif", data, (west, south, east, north), GRID.crs)
    rng = np.random.default_rng(0)
    x, y = rng.uniform(west + 30, east - 30, 80), rng.uniform(south + 30, north - 30, 80)
    rows = []
    for number, (latitude, longitude) in enumerate(zip(*GRID.unproject(x, y), strict=True)):
        row, col = int(north - y[number]), int(x[number] - west)
        view = data[:, row - 16 : row + 16, col - 24 : col + 24]
        path = folder / f"{number:03}.png"
        Image.fromarray(np.moveaxis(view, 0, -1)).save(path)
        split = "train" if number < 64 else "val"
        rows.append(
            {"id": f"{number:03}", "photo": str(path), "latitude": latitude, "longitude": longitude, "split": split}
        )
    pd.DataFrame(rows).to_csv(folder / "photos.csv", index=False)
    return folder


@pytest.fixture(autouse=True)
def _no_handle_outlives_a_test() -> Iterator[None]:
    yield
    close_rasters()


class ArrayCrops(CellCrops):
    """Turned cells cut from an array, by the nearest pixel: much faster than from a raster."""

    array: tuple[np.ndarray, float, float]

    def at(self, latitude, longitude, rotation_deg=0.0, *, threads=1):
        image, west, north = self.array
        offset = np.arange(self.image_size) + 0.5 - self.image_size / 2
        views = []
        for x, y, angle in zip(*GRID.project(latitude, longitude), np.radians(rotation_deg), strict=True):
            for metres in self.lods_m:
                right, up = metres * offset[None], -metres * offset[:, None]
                col = x + right * np.cos(angle) + up * np.sin(angle) - west
                row = north - (y - right * np.sin(angle) + up * np.cos(angle))
                row, col = (np.clip(each.astype(int), 0, len(image) - 1) for each in (row, col))
                views.append(image[row, col])
        return np.reshape(views, (-1, len(self.lods_m), self.image_size, self.image_size, 3))


def read_area(town: Path, fast: bool = True, **values) -> StatewideArea:
    frame = pd.read_csv(town / "photos.csv", dtype={"id": str})
    kind = ArrayCrops if fast else CellCrops
    crops = kind(Imagery([town / "map.tif"], GRID), GRID, QUICK.lods_m, QUICK.image_size)
    if isinstance(crops, ArrayCrops):
        with rasterio.open(town / "map.tif") as file:
            crops.array = (np.moveaxis(file.read(), 0, -1), file.bounds.left, file.bounds.top)
    return replace(StatewideArea(crops, PhotoTable(frame, (), "photos.csv")), **values)


@pytest.fixture(scope="module")
def convnext(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny ConvNeXt with random weights, 0.27 million."""
    from transformers import ConvNextConfig, ConvNextModel

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("convnext")
    ConvNextModel(
        ConvNextConfig(depths=[1, 1, 2, 1], hidden_sizes=[16, 32, 64, 128], layer_scale_init_value=1.0)
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def make_towers(convnext: Path) -> Callable[[], Towers]:
    """Creates the same towers every time."""

    def make() -> Towers:
        torch.manual_seed(0)
        names = ("width", "heads", "pooling", "photo_size", "image_size", "lods_m", "scale")
        config = TowersConfig(**{name: getattr(QUICK, name) for name in names})
        return Towers.create(convnext, convnext, config, "cpu")

    return make


@pytest.fixture(scope="module")
def train(town: Path, make_towers: Callable[[], Towers]) -> Callable:
    """Trains on the town."""

    def run(folder: Path, config: StatewideConfig = QUICK, areas: list[StatewideArea] | None = None):
        return train_statewide(areas or [read_area(town)], make_towers(), folder, config)

    return run


def metrics_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "train/metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_the_model_tells_64_photos_of_the_town_apart_within_300_steps(train, tmp_path) -> None:
    config = replace(
        QUICK, steps=180, validate_every=60, batch_size=16, augment=False, mining=False, negative_distance_m=60.0,
        scale=20.0,
    )  # fmt: skip
    report = train(tmp_path / "model", config)
    lines = metrics_of(tmp_path / "model")
    assert [line["step"] for line in lines] == [60, 120, 180] and report.steps == 180
    assert lines[-1]["batch_recall@1"] > 0.9 and lines[-1]["loss"] < lines[0]["loss"] - 1
    assert max(line["recall@1<50m"] for line in lines) > 0.5  # of photos that it has not seen, among 120 cells
    assert (report.train, report.val, report.unreachable) == (64, 16, 0)


class Killed(BaseException):
    """Stands for a kill signal."""


def weights(folder: Path) -> dict[str, torch.Tensor]:
    files = sorted((folder / "encoder").rglob("*.safetensors"))
    assert len(files) == 3  # two encoders and their poolings
    return {f"{path.relative_to(folder)} {name}": value for path in files for name, value in load_file(path).items()}


@pytest.fixture(scope="module")
def whole(train, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A retriever whose training nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole") / "model"
    train(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("steps", [3, 5, 9])
def test_a_killed_training_continues_as_if_it_had_not_been(train, whole, tmp_path, monkeypatch, steps) -> None:
    config, step, done = replace(QUICK, save_every_s=1e-9), TrainingLoop.step, []

    def killed(*args):
        if len(done) == steps:
            raise Killed
        done.append(1)
        return step(*args)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingLoop, "step", killed)
        with pytest.raises(Killed):
            train(tmp_path / "killed", config)
    train(tmp_path / "killed", config)
    expected, resumed = weights(whole), weights(tmp_path / "killed")
    assert expected.keys() == resumed.keys()
    for name, value in expected.items():
        torch.testing.assert_close(value, resumed[name], rtol=0, atol=0, msg=name)
    timing = ("seconds", "samples_per_s")
    one, two = ([{k: v for k, v in line.items() if k not in timing} for line in metrics_of(folder)]
                for folder in (whole, tmp_path / "killed"))  # fmt: skip
    assert one == two


def test_a_run_validates_at_every_interval_and_is_not_repeated(train, whole, tmp_path) -> None:
    lines = metrics_of(whole)
    assert [line["step"] for line in lines] == [5, 10, 12]  # the last interval is shorter
    assert {f"recall@{k}<{r}m" for k in (1, 10, 100) for r in (25, 50, 100)} <= set(lines[0])
    assert [line["pool"] for line in lines] == [16, 32, 32]  # samples of a scan, at most pool_max
    assert all(line["val_photos"] == 16 and line["val_cells"] > 100 for line in lines)
    assert train(whole).epochs == 0
    retriever = StatewideRetriever.load(whole)
    best = max(lines, key=lambda line: (line["recall@1<50m"], line["step"]))
    assert (retriever.method, retriever.cell_m, retriever.temperature) == ("statewide", 30.0, best["temperature"])
    with pytest.raises(ModelError, match=r"statewide.scale 36.0 not 20.0"):
        train(whole, replace(QUICK, scale=20.0))


def test_photos_outside_of_the_imagery_are_left_out_and_counted(town, train, tmp_path) -> None:
    area = read_area(town)
    frame = area.table.frame.copy()
    frame.loc[:2, "latitude"] += 0.01
    frame.loc[70, "longitude"] += 0.01
    photos = AreaPhotos.of([replace(area, table=PhotoTable(frame, (), ""))], "train")
    assert len(photos) == 61 and photos.unreachable == 3
    frame["latitude"] += 1.0
    with pytest.raises(TrainingError, match="no photo to train on"):
        train(tmp_path / "model", areas=[replace(area, table=PhotoTable(frame, (), ""))])
    assert not (tmp_path / "model").exists()


def test_photos_that_cannot_be_read_and_panoramas_are_left_out_of_batches(town, train, tmp_path) -> None:
    area = read_area(town)
    frame = area.table.frame.copy()
    frame.loc[[3, 30, 66], "photo"] = str(tmp_path / "missing.png")
    frame.loc[40, "photo"] = str(tmp_path / "round.png")
    Image.new("RGB", (2000, 1000), (200, 100, 50)).save(tmp_path / "round.png")
    report = train(tmp_path / "model", areas=[replace(area, table=PhotoTable(frame, (), ""))])
    assert [each.name for each in report.unreadable] == ["missing.png", "round.png"]
    assert report.unreadable[1].reason == NO_PANORAMAS
    lines = metrics_of(tmp_path / "model")
    assert all(np.isfinite(line["loss"]) for line in lines) and lines[-1]["val_left_out"] == 1
    frame["photo"] = str(tmp_path / "missing.png")
    with pytest.raises(TrainingError, match="none of the 8 photos of a batch can be used"):
        train(tmp_path / "other", areas=[replace(area, table=PhotoTable(frame, (), ""))])


def test_several_areas_are_trained_on_together(town, train, tmp_path) -> None:
    area = read_area(town)
    frame = area.table.frame
    parts = [replace(area, table=PhotoTable(frame[start::2].reset_index(drop=True), (), "")) for start in (0, 1)]
    report = train(tmp_path / "model", replace(QUICK, steps=3), parts)
    assert (report.train, report.val) == (64, 16)
    assert metrics_of(tmp_path / "model")[0]["val_photos"] == 16
    photos = AreaPhotos.of(parts, "train")
    assert photos.area.tolist() == [0] * 32 + [1] * 32
    assert len(photos.spread(5)) == 10


@pytest.mark.parametrize("method", ["sample4geo", "safa"])
def test_other_methods_are_trained_by_their_losses(train, tmp_path, method) -> None:
    config = replace(QUICK, method=method, decoupled=False, mining=method == "sample4geo", steps=4)
    report = train(tmp_path / "model", config)
    assert report.best["loss"] > 0  # unlike the decoupled one, these losses are positive


def test_weights_are_decayed_but_not_biases_norms_and_layer_scales(make_towers) -> None:
    towers = make_towers()
    decayed, plain = TrainedTowers(towers).parameter_groups()
    assert plain["weight_decay"] == 0 and "weight_decay" not in decayed
    assert min(parameter.ndim for parameter in decayed["params"]) == 2
    assert max(parameter.ndim for parameter in plain["params"]) == 1
    assert len(decayed["params"]) + len(plain["params"]) == len(list(towers.parameters()))


# Validation


def test_validation_searches_the_cells_of_the_region_or_the_blocks_with_most_photos(town, monkeypatch) -> None:
    area = read_area(town)
    photos = AreaPhotos.of([area], "val")
    everything = Gallery.of(area, photos, 10_000)
    assert everything.photos is photos and sum(len(block) for block in area.crops.blocks(everything.keys)) == 120
    monkeypatch.setattr(statewide_data, "BLOCK", 4)
    monkeypatch.setattr(cell_crops, "BLOCK", 4)
    part = Gallery.of(area, photos, 33)
    row, col = area.grid.cells_at(part.photos.latitude, part.photos.longitude)
    for r, c in zip(row, col, strict=True):
        assert any(key.rows.start <= r < key.rows.stop and key.cols.start <= c < key.cols.stop for key in part.keys)
    assert len(part.keys) == 2 and 0 < len(part.photos) < len(photos)
    middle = [(-71.0612, 42.3606), (-71.0594, 42.3606), (-71.0594, 42.3618), (-71.0612, 42.3618), (-71.0612, 42.3606)]
    region = Region.of([{"type": "Polygon", "coordinates": [middle]}]).cells(GRID, "touch")
    limited = Gallery.of(replace(area, region=region), photos, 10_000)
    assert sum(len(block) for block in area.crops.blocks(limited.keys)) == region.count


def test_recall_counts_photos_with_a_near_cell_among_the_most_similar(town, make_towers) -> None:
    area = read_area(town)
    photos = AreaPhotos.of([area], "val")
    gallery, towers = Gallery.of(area, photos, 10_000), make_towers()
    reader = SampleReader([area], photos, None, towers)
    metrics = validate(towers, [gallery], reader)
    encoded = encode_gallery(towers, gallery, reader)
    similarity = (encoded.query @ encoded.reference.T).numpy()
    latitude, longitude = GRID.positions(encoded.row, encoded.col)
    for radius in (25, 50, 100):
        for k in (1, 10, 100):
            best = np.argsort(-similarity, 1, kind="stable")[:, :k]
            distance = geodesic_distance(
                encoded.latitude[:, None], encoded.longitude[:, None], latitude[best], longitude[best]
            )
            assert metrics[f"recall@{k}<{radius}m"] == (distance <= radius).any(1).mean()
    own = GRID.cells_at(encoded.latitude, encoded.longitude)
    np.testing.assert_array_equal(np.stack([encoded.row, encoded.col])[:, encoded.truth], own)


def test_padding_is_found_and_not_jittered() -> None:
    photo = np.zeros((6, 8, 3), np.uint8)
    assert content_box(photo) == (0, 0, 0, 0)
    photo[:, 2:6] = 90
    photo[2, 3] = 0
    assert content_box(photo) == (0, 6, 2, 6)
    assert content_box(np.full((6, 8, 3), 1, np.uint8)) == (0, 6, 0, 8)
    padded = torch.from_numpy(photo).permute(2, 0, 1)[None].float() / 255
    draws = torch.rand(1, JITTER_DRAWS, generator=torch.Generator().manual_seed(0))
    view = jitter_padded(padded, [content_box(photo)], draws)
    assert (view[..., :2] == 0).all() and (view[..., 6:] == 0).all()
    torch.testing.assert_close(view[..., 2:6], jitter_colors(padded[..., 2:6], draws))


def test_the_direction_of_a_sample_is_up_in_its_images(town) -> None:
    array, raster = read_area(town), read_area(town, fast=False)
    latitude, longitude = array.table.frame[["latitude", "longitude"]].to_numpy()[:4].T
    for rotation in (0.0, 37.0, 90.0):
        angles = np.full(4, rotation)
        expected = array.crops.at(latitude, longitude, angles).astype(float)
        assert abs(raster.crops.at(latitude, longitude, angles) - expected).mean() < 1
        if rotation:  # counter-clockwise is another image
            assert abs(raster.crops.at(latitude, longitude, -angles) - expected).mean() > 5


@pytest.mark.slow
def test_training_reads_the_raster_itself(town, train, tmp_path) -> None:
    report = train(tmp_path / "model", replace(QUICK, steps=3), [read_area(town, fast=False)])
    assert np.isfinite(report.best["loss"]) and report.train == 64
