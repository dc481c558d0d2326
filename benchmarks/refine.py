"""Metres inside of the cell: what a refiner adds to each front end, and what it costs.

    jzi demo town --only-town && cd town                       # or an area of your own, with a jzi.toml
    jzi encode-map --cells --detail && jzi encode-queries --tokens && jzi train-decoder && jzi train-refiner
    python -m benchmarks.refine measure town                   # perspective photos
    python -m benchmarks.refine panoramas town town-360        # the same places as panoramas, then as above in town-360
    python -m benchmarks.refine published town --epochs 10     # UnifyGeo's form from images, beside the cached one

`measure` prints metres before and after refinement for the zoom, the expert cells and the fusion of all, the error of
headings that are withheld, and what is left with black photos and with those of other places, which may be no better
than the best constant guess in windows that contain the photo. `published` trains both forms on the same photos and
compares metres, parameters, bytes of a cell and milliseconds. Figures of made towns compare settings, and say nothing
about real cities.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import click
import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from PIL import Image

from jzi.benchmarks.device import device_option
from jzi.benchmarks.pairs import SMALL, panoramas
from jzi.encode.rasters.imagery import Imagery
from jzi.evaluate.stages.metres import MetreFigures, constant_error, gain_over
from jzi.evaluate.stages.refinement import Control
from jzi.refine.config import RefineConfig, UnifyGeoConfig
from jzi.refine.info import RefinerInfo
from jzi.refine.networks.cached import CachedRefiner
from jzi.refine.networks.files import Refiner, load_refiner
from jzi.refine.networks.model import UnifyGeo
from jzi.refine.photos import read_pixels
from jzi.refine.windows.window import Windows
from jzi.store.cache.feature_cache import FeatureCache
from jzi.store.geometry.cell_grid import Bounds
from jzi.store.geometry.pyramid import Pyramid
from jzi.synth.town import make_town
from jzi.train.config.refiner import RefinerTrainingConfig
from jzi.train.refine.refine_data import Pairs, PairSource, Read, prepare, window_tokens
from jzi.train.refine.refine_pairs import PairPhotos, draw_windows, own_places
from jzi.train.refine.refine_tokens import PairSplits, TokenSource
from jzi.train.refine.refiner import train_refiner
from jzi.workspace.inputs import open_imagery, open_photo_table
from jzi.workspace.setup.settings import FILE, Settings
from jzi.workspace.setup.settings_file import load_settings
from jzi.workspace.stages.refiner import refiner_folder
from jzi.workspace.stages.refiner_training import evaluate_area_refiner

#: Photos timed.
REPEATS = 30

#: What photos are replaced with, to see that answers come from them.
CONTROLS: tuple[Control, ...] = ("", "black", "shuffled")


@click.group()
@device_option
def main() -> None:
    """Measure refiners in made towns."""


@main.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True))
@click.option("--refiner", type=click.Path(path_type=Path), help="Folder of the refiner.  [default: the model's]")
@click.option("--split", default=None, help="Photos to locate.  [default: test, or val if there is none]")
@click.option("--set", "overrides", multiple=True, metavar="SECTION.NAME=VALUE", help="Override a setting.")
def measure(folder: Path, refiner: Path | None, split: str | None, overrides: tuple[str, ...]) -> None:
    """Metres before and after refinement for each front end, headings, and controls without the photos."""
    settings = load_settings(folder / FILE, overrides)
    where = refiner or settings.path(settings.model.path)
    run = partial(evaluate_area_refiner, settings, where, split, progress=True)
    click.echo("| front end | headings | photos | answers | 1 m | 3 m | 5 m | 10 m | median | mean | NLL |")
    click.echo("|---" * 11 + "|")
    for name, experts in {"zoom": ("zoom",), "cells": ("cells",), "fused": ()}.items():
        for headings in (True, False):
            _rows(name, "given" if headings else "withheld", run(experts=experts, headings=headings))
    figures = run(headings=False)
    if figures.heading_error:
        click.echo(f"\nheadings withheld: median error {figures.heading_error.value:.1f}°")
    for share, interval in figures.coverage.items():
        click.echo(f"circles of {share:.0%} hold {interval.value:.1%}")
    for control in CONTROLS[1:]:
        _rows(f"fused, {_photos(control)}", "withheld", run(control=control, headings=False))
    refiner_path = refiner_folder(where)
    source = TokenSource.load(FeatureCache.open(settings.cache_path), settings.refine, settings.refiner, refiner_path)
    network, info = load_refiner(refiner_path)
    for each in CONTROLS:
        error, constant = errors_in_windows(network, info, source, settings.refiner, control=each)
        click.echo(f"{_photos(each)} in windows that contain them: {_gain_text(error, constant)}")


def _photos(control: Control) -> str:
    return {"": "photos", "black": "black photos", "shuffled": "photos in the wrong order"}[control]


def _gain_text(error: NDArray[np.float64], constant: NDArray[np.float64]) -> str:
    gain = gain_over(error, constant)
    return (
        f"median {np.median(error):.1f} m, best constant guess {np.median(constant):.1f} m, gain of the median "
        f"{gain.value:.1f} m ({gain.low:.1f} .. {gain.high:.1f})"
    )


def _rows(name: str, headings: str, figures: MetreFigures) -> None:
    parts = {"model": figures.before, "refined": figures.unranked, "and re-ranked": figures.after}
    for label, metres in parts.items():
        recall = " | ".join(f"{each.value:.1%}" for each in metres.recall.values())
        nll = {"model": f"{figures.nll_before:.2f}", "and re-ranked": f"{figures.nll_after:.2f}"}.get(label, "")
        click.echo(
            f"| {name} | {headings} | {figures.photos} | {label} | {recall} | {metres.median.value:.1f} m | "
            f"{metres.mean.value:.1f} m | {nll} |"
        )


@torch.inference_mode()
def errors_in_windows(
    refiner: Refiner, info: RefinerInfo, source: PairSource, config: RefinerTrainingConfig, *, control: Control = ""
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Errors of the most probable pixels in windows that contain validation photos, without headings, metres.

    Args:
        refiner: the refiner.
        info: of the refiner.
        source: the photos.
        config: offsets of windows.
        control: what photos are replaced with: zeros, or another photo of the batch.

    Returns:
        (photo,) of the refiner and of the best constant guess.
    """
    photos, size = source.val, info.config.pixels
    windows = draw_windows(photos, source.area, info.window_m, size, config.offsets, (7,))
    found = []
    for start in range(0, len(photos), 16):
        part = np.arange(start, min(start + 16, len(photos)))
        pairs = Pairs.read(source, photos[part], windows.select(part))
        batch = prepare(pairs, info.config.rolls, torch.zeros(len(part)) > 0, None, images=source.images, augment=False)
        given = batch.photos
        if control:
            other = torch.zeros_like if control == "black" else partial(torch.roll, shifts=1, dims=0)
            shown = {name: other(v) for name in ("tokens", "pixels") if (v := getattr(given, name)) is not None}
            given = replace(given, **shown)
        aerial = refiner.aerial(window_tokens(refiner, batch.windows, batch.grid))
        best = refiner.match(refiner.ground(given), aerial, batch.mask).logits.flatten(1).argmax(1).numpy()
        found.append(np.stack([best % size, best // size], 1) + 0.5)
    place = own_places(windows, photos)
    error = np.hypot(*((np.concatenate(found) / size - 0.5 - place) * info.window_m).T)
    return error, constant_error(place * info.window_m)


@main.command("panoramas")
@click.argument("town", type=click.Path(path_type=Path, exists=True))
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--width", default=384, show_default=True, help="Width of panoramas, pixels; a multiple of 48.")
@click.option("--photos", default=0, help="Number of photos.  [default: all]")
def make_panoramas(town: Path, folder: Path, width: int, photos: int) -> None:
    """Write a town like TOWN, with panoramas in random directions at the places of its photos."""
    note = json.loads((town / "town.json").read_text())
    settings = load_settings(town / FILE)
    made = make_town(note["seed"], note["size_m"], note["resolution"])
    table = open_photo_table(settings).frame.sort_values("id")
    table = table.iloc[: photos or len(table)]
    x, y = made.xy(table["longitude"].to_numpy(float), table["latitude"].to_numpy(float))
    turns = np.random.default_rng([note["seed"], 3]).integers(0, width, len(table))
    (folder / "photos").mkdir(parents=True, exist_ok=True)
    names = [f"{number:05d}.jpg" for number in range(len(table))]
    images = panoramas(made, np.stack([x, y], 1), note["seed"], width)
    for name, turn, image in zip(names, turns, images, strict=True):
        rolled = np.roll(np.asarray(image), -int(turn), 1)  # what was `turn` columns right of north is in the middle
        Image.fromarray(rolled).save(folder / "photos" / name, quality=92)
    pd.DataFrame({
        "id": names,
        "path": names,
        "latitude": table["latitude"].to_numpy(),
        "longitude": table["longitude"].to_numpy(),
        "split": table["split"].to_numpy(),
        "heading": turns * 360 / width,
        "panorama": 1,
    }).to_csv(folder / "photos.csv", index=False)  # fmt: skip
    shutil.copy(town / "ortho.tif", folder / "ortho.tif")
    click.echo(f"wrote {folder}; next: jzi init --map ortho.tif --queries photos.csv --photos photos in it")


class PixelSource:
    """Photos and windows of an area as pixels, as UnifyGeo takes them (a `PairSource`).

    Args:
        settings: of the area.
        imagery: the map.
        config: the network.
    """

    images = True

    def __init__(self, settings: Settings, imagery: Imagery, config: UnifyGeoConfig) -> None:
        cache = FeatureCache.open(settings.cache_path)
        frame = cache.queries.encoded()
        paths = open_photo_table(settings).frame.set_index("id")["photo"]
        self.paths = paths.reindex(frame["id"]).set_axis(frame.index)
        self.area: Pyramid = settings.pyramid
        self.splits = PairSplits.of(self.area, frame, settings.refine, settings.refiner)
        self.imagery, self.config = imagery, config

    @property
    def train(self) -> PairPhotos:
        """Training photos."""
        return self.splits.train

    @property
    def val(self) -> PairPhotos:
        """Validation photos."""
        return self.splits.val

    def read(self, photos: PairPhotos, windows: Windows) -> Read:
        """Pixels of photos and windows."""
        side = self.config.aerial
        rendered = [self.imagery.render(Bounds(*bounds), side) for bounds in windows.bounds.tolist()]
        read = [
            read_pixels(str(self.paths[row]), self.config, panorama=bool(pano))
            for row, pano in zip(photos.row, photos.panorama, strict=True)
        ]
        return Read(
            torch.from_numpy(np.stack([image for image, _ in read])).permute(0, 3, 1, 2),
            torch.from_numpy(np.stack([image for image, _ in rendered])).permute(0, 3, 1, 2),
            torch.from_numpy(np.stack([mask for _, mask in rendered])),
            torch.tensor([fill for _, fill in read]),
        )


@main.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True))
@click.option("--epochs", default=10, show_default=True, help="Epochs of both.")
@click.option("--full", is_flag=True, help="UnifyGeo at its published size; one for CPUs by default.")
@click.option("--output", default="compared", show_default=True, help="Folder of the refiners in FOLDER.")
@click.option("--set", "overrides", multiple=True, metavar="SECTION.NAME=VALUE", help="Override a setting.")
def published(folder: Path, epochs: int, full: bool, output: str, overrides: tuple[str, ...]) -> None:
    """Train UnifyGeo's form from images and the cached form on the same photos, and compare them."""
    settings = load_settings(folder / FILE, (*overrides, f"refiner.epochs={epochs}", "refiner.retrieval=0"))
    cache = FeatureCache.open(settings.cache_path)
    refine, config = settings.refine, settings.refiner
    shape = UnifyGeoConfig(aligned=False, bins=24) if full else _small()
    with open_imagery(settings) as imagery:
        images = PixelSource(settings, imagery, shape)
        tokens = TokenSource.load(cache, refine, config, folder)
        cached = tokens.network(refine)
        makers: dict[str, tuple[PairSource, Callable[[], Refiner], RefinerInfo]] = {
            "UnifyGeo, images": (
                images,
                partial(UnifyGeo, shape),
                RefinerInfo(kind="unifygeo", config=shape, window_m=refine.window_m),
            ),
            "cached tokens": (
                tokens,
                partial(CachedRefiner, cached),
                RefinerInfo(kind="cached", config=cached, window_m=refine.window_m),
            ),
        }
        click.echo("| form | parameters | training | median | best constant | bytes a cell | ms a window |")
        click.echo("|---" * 7 + "|")
        lines = []
        for number, (name, (source, make, info)) in enumerate(makers.items()):
            lines += _compare(name, source, make, info, folder / output / str(number), refine, config, cache)
        click.echo("\n" + "\n".join(lines))


def _small() -> UnifyGeoConfig:
    values = dict(each.split("=", 1) for each in SMALL if each.startswith("refine."))
    shape = {name.removeprefix("refine."): json.loads(value) for name, value in values.items()}
    shape = {name: tuple(value) if isinstance(value, list) else value for name, value in shape.items()}
    return UnifyGeoConfig(**shape, aligned=False, bins=12)


def _compare(
    name: str,
    source: PairSource,
    make: Callable[[], Refiner],
    info: RefinerInfo,
    folder: Path,
    refine: RefineConfig,
    config: RefinerTrainingConfig,
    cache: FeatureCache,
) -> list[str]:
    report = train_refiner(source, make, folder, refine, config, info, fingerprint={"benchmark": name})
    refiner, trained = load_refiner(folder)
    error, constant = errors_in_windows(refiner, trained, source, config)
    parameters = sum(parameter.numel() for parameter in refiner.parameters())
    size, ms = _bytes_of_a_cell(refiner, cache), _milliseconds(refiner, trained, source)
    click.echo(
        f"| {name} | {parameters:,} | {report.seconds:.0f} s | {np.median(error):.1f} m | {np.median(constant):.1f} m "
        f"| {size:,.0f} | {ms:.0f} |"
    )
    return [f"{name}, {_photos(each)}: {_gain_text(*errors_in_windows(refiner, trained, source, config, control=each))}"
            for each in CONTROLS]  # fmt: skip


def _bytes_of_a_cell(refiner: Refiner, cache: FeatureCache) -> float:
    """Bytes to keep of each cell so that no image is opened: its share of the tokens, or UnifyGeo's maps in float16."""
    if isinstance(refiner, UnifyGeo):
        side = refiner.config.aerial
        with torch.inference_mode():
            maps = refiner.aerial(torch.zeros(1, 3, side, side)).maps
        return sum(2 * each.numel() for each in maps)
    return cache.detail.stored_bytes() / cache.pyramid.cell_count


@torch.inference_mode()
def _milliseconds(refiner: Refiner, info: RefinerInfo, source: PairSource) -> float:
    """Median time of a photo and a window, without reading them."""
    photos = source.val[:1]
    windows = draw_windows(photos, source.area, info.window_m, info.config.pixels, "cell", (0,))
    pairs = Pairs.read(source, photos, windows)
    batch = prepare(pairs, info.config.rolls, torch.zeros(1) > 0, None, images=source.images, augment=False)
    times = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        aerial = refiner.aerial(window_tokens(refiner, batch.windows, batch.grid))
        refiner.match(refiner.ground(batch.photos), aerial, batch.mask)
        times.append(time.perf_counter() - began)
    return 1000 * float(np.median(times))


if __name__ == "__main__":
    main()
