"""The benchmark of state-wide retrieval: its variants can be set, and it trains, searches and reuses what is there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import rasterio
from click.testing import CliRunner, Result
from pyproj import Transformer

from jzi.ablate.variants import read_variants
from jzi.benchmarks import statewide, statewide_layouts
from jzi.encode.encoders.towers_config import TowersConfig
from jzi.errors import ConfigError
from jzi.store.photos.photo_table import read_photo_table
from jzi.workspace.regions.region import region_settings, write_footprint
from jzi.workspace.setup.settings import FILE
from jzi.workspace.setup.settings_file import load_region, write_settings

ABLATIONS = sorted((Path(statewide.__file__).parent / "ablations").glob("statewide-*.toml"))
TINY = (
    "statewide.lods_m=[2.0]",
    "statewide.image_size=32",
    "statewide.photo_size=[64,48]",
    "statewide.width=16",
    "statewide.heads=4",
    "statewide.steps=2",
    "statewide.validate_every=2",
    "statewide.batch_size=4",
    "statewide.pool_max=8",
    "statewide.first_scan=4",
    "statewide.warmup_steps=1",
)


@pytest.fixture
def towns(town_folder: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A town to train on, and one to search."""
    return tuple(Path(shutil.copytree(town_folder, tmp_path / name)) for name in ("here", "there"))


def run(towns: tuple[Path, ...], *options: str) -> Result:
    train, test = towns
    arguments = [str(train), "--test", str(test), "--map", "map.tif", "--tiny", "--cell", "40"]
    arguments += [*(part for setting in TINY for part in ("--set", setting)), *options]
    result = CliRunner().invoke(statewide.main, [*arguments, "-o", str(train.parent / "runs")])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_the_papers_ablations_are_there() -> None:
    names = {file.stem.removeprefix("statewide-") for file in ABLATIONS}
    assert names == {"lods", "pooling", "dimension", "cell", "loss", "baselines", "towns"}


@pytest.mark.parametrize("file", ABLATIONS, ids=lambda file: file.stem)
def test_every_variant_is_one_that_the_settings_accept(town_raster: Path, tmp_path: Path, file: Path) -> None:
    settings, cells, _ = region_settings(tmp_path, None, 30.0, None, [str(town_raster)])
    write_footprint(settings, cells)
    write_settings(settings)
    shared, variants = read_variants(file, statewide.SECTIONS)
    seen = set()
    for variant in variants:
        area = load_region(tmp_path / FILE, (*shared, *variant.overrides))
        config = area.statewide
        lods_m = config.lods(area.region.cell_m)
        assert config.pooling not in ("safa", "smd", "class") or len(lods_m) == 1
        assert config.pooling not in ("attention", "safa") or config.width % config.heads == 0
        TowersConfig(
            width=config.width, pooling=config.pooling, heads=config.heads, photo_size=config.photo_size,
            image_size=config.image_size, lods_m=lods_m, scale=config.scale,
        )  # fmt: skip
        seen.add(area.to_toml())
    assert len(seen) == len(variants)


def test_variants_of_other_sections_or_with_a_seed_are_refused(tmp_path: Path) -> None:
    for setting, reason in (("decoder.layers = 2", "choose a setting of statewide, region"),
                            ("statewide.seed = 2", "use --seeds")):  # fmt: skip
        (tmp_path / "v.toml").write_text(f"[variants.a]\n{setting}\n")
        with pytest.raises(ConfigError, match=reason):
            read_variants(tmp_path / "v.toml", statewide.SECTIONS)


def test_chance_is_that_of_drawing_cells_without_replacement() -> None:
    assert statewide.chance(np.array([0, 1, 2, 4]), 4, 1) == pytest.approx([0, 0.25, 0.5, 1])
    assert statewide.chance(np.array([1, 2]), 4, 2) == pytest.approx([0.5, 1 - 1 / 6])
    assert statewide.chance(np.array([0, 1]), 4, 100) == pytest.approx([0, 1])


def test_the_table_has_mean_deviation_and_chance() -> None:
    def result(seed: int, recall: float, seconds: float | None) -> dict[str, Any]:
        shares = {"recall": dict.fromkeys(("1", "10", "100"), recall), "chance": {"1": 0.1, "10": 0.5, "100": 1.0}}
        town = {"photos": 5, "cells": 40, "nll": 3.0 + seed, "nll_chance": 3.69, **shares}
        return {"variant": "a|b", "seed": seed, "seconds": seconds, "towns": {"there": town}}

    text = statewide.to_markdown([result(0, 0.2, 10.0), result(1, 0.4, 14.0)])
    assert "2 seeds" in text and "Made towns" in text
    recall = "30.0 ± 14.1 (10.0) | 30.0 ± 14.1 (50.0) | 30.0 ± 14.1 (100.0)"
    assert text.splitlines()[-1] == rf"| a\|b | there | 5 | 40 | {recall} | 3.50 ± 0.71 (3.69) | 12 ± 3 |"
    assert statewide.to_markdown([result(0, 0.2, None)]).endswith("| 3.00 (3.69) | interrupted |")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--test", "here"), "is given twice"),
        (("--set", "statewide.wrong=1"), "variant as given"),
        (("--set", "region.cell_m=80"), "cannot be measured on cells of 80 m"),
        (("--encoder", "there"), "give one of them"),
        (("--set", "statewide.heads=5"), "variant as given: the pooling attention of 5 heads has a width of 16"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_training(
    towns: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], reason: str
) -> None:
    monkeypatch.chdir(towns[0].parent)
    result = run(towns, *options)
    assert result.exit_code == 2
    assert result.stderr.startswith("statewide: ") and reason in result.stderr
    assert result.stdout == ""
    assert not (towns[0].parent / "runs" / "runs").exists()


def test_a_town_without_its_raster_is_refused(towns: tuple[Path, Path]) -> None:
    (towns[1] / "map.tif").unlink()
    result = run(towns)
    assert (result.exit_code, "there has no map.tif" in result.stderr) == (2, True)


@pytest.mark.slow
def test_variants_are_trained_and_searched_once(towns: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    file = towns[0].parent / "variants.toml"
    file.write_text(
        '[variants.mean]\nstatewide.pooling = "mean"\n[variants.vit]\nstatewide.pooling = "class"\n'
        "statewide.mining = false"
    )
    first = run(towns, "--seeds", "2", "--variants", str(file))
    assert first.exit_code == 0, first.output
    rows = [line.split("|") for line in first.stdout.splitlines()[4:]]
    assert [row[1].strip() for row in rows] == ["mean", "vit"]
    assert all(row[3].strip() == "30" and " ± " in row[5] for row in rows)
    results = [json.loads(path.read_text()) for path in sorted((towns[0].parent / "runs" / "runs").glob("*.json"))]
    assert len(results) == 4
    for result in results:
        town = result["towns"]["there"]
        assert 0 <= town["recall"]["1"] <= town["recall"]["10"] <= town["recall"]["100"] <= 1
        assert 0.5 / town["cells"] < town["chance"]["1"] < 10 / town["cells"]
        assert town["nll_chance"] == pytest.approx(np.log(town["cells"]))
        assert result["seconds"] > 0
    assert not [path for path in (towns[0].parent / "runs" / "runs").iterdir() if path.is_dir()]

    def refuse(*_: Any) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(statewide, "train_region", refuse)
    again = run(towns, "--seeds", "2", "--variants", str(file))
    assert again.stdout == first.stdout
    with pytest.raises(AssertionError, match="trained again"):
        run(towns, "--seeds", "2", "--variants", str(file), "--set", "statewide.learning_rate=1e-3")


def test_a_moved_town_keeps_its_photos_where_they_are_in_its_map(towns: tuple[Path, Path], tmp_path: Path) -> None:
    town = towns[0]
    (town / "map.tif").rename(town / "ortho.tif")
    original = read_photo_table(town / "photos", split_by="photo").frame
    with rasterio.open(town / "ortho.tif") as raster:
        before = pixels_of(raster, original)
        content = raster.read()
    path, table = statewide_layouts.move_town(town, 60.0, tmp_path / "moved")
    with rasterio.open(path) as raster:
        np.testing.assert_allclose(pixels_of(raster, table.frame), before, atol=0.01)
        np.testing.assert_array_equal(raster.read(), content)
    assert table.frame["latitude"].mean() == pytest.approx(60.0, abs=0.01)
    for layout, cells in (("bands", 1.0), ("Web Mercator", (np.cos(np.radians(42)) / np.cos(np.radians(60))) ** 2)):
        area = statewide_layouts.lay_out(layout, path, table, 42.0)
        side_m = statewide_layouts.CELL
        assert np.prod(area.grid.shape) == pytest.approx(cells * (800 / side_m) ** 2, rel=0.1)
        assert (area.grid.cells_at(table.frame["latitude"], table.frame["longitude"])[0] >= 0).all()


def pixels_of(raster: rasterio.DatasetReader, frame: pd.DataFrame) -> np.ndarray:
    """Column and row (2, photo) of photos in a raster, fractional."""
    to_map = Transformer.from_crs("EPSG:4326", raster.crs.to_wkt(), always_xy=True)
    return np.array(~raster.transform @ to_map.transform(frame["longitude"], frame["latitude"]))
