"""Photos are located inside of priors, from Python and from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import jzi as package
from jzi.decode.config import DecoderConfig
from jzi.decode.decoder import ZoomDecoder
from jzi.decode.model import create_folder, save_weights
from jzi.encode.encoders.encoder import Encoder
from jzi.errors import ConfigError
from jzi.locate.priors.prior_weights import near
from jzi.store.features.map_embeddings import ENCODED, MapEmbeddings
from jzi.store.geometry.pyramid import Pyramid
from jzi.store.model_folder import MAP, write_file
from jzi.tests.prior_map import rectangle


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
