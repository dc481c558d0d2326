"""UnifyGeo on pairs of photos and aerial images: accuracy, and the time of reading, training and evaluation.

    python -m benchmarks.pairs make made --photos 400 --town 1 --town 2    # a VIGOR of rendered towns
    python -m benchmarks.pairs measure made --small --set refiner.epochs=20
    python -m benchmarks.pairs measure VIGOR --area cross                  # or a folder of CVUSA, CVACT, KITTI
    python -m benchmarks.pairs measure made --small --control black        # does it learn without looking?

`make` renders panoramas and orthophotos of made towns, which take the names of VIGOR's cities in its order: with two,
the area is the same in training and test, with four there are the cities that VIGOR tests across areas too. `measure`
trains and evaluates in a folder, and prints the figures beside those of answering the centre of the aerial image.
Figures of made towns compare settings, and say nothing about real cities. `--small` is a network of 0.4 million
parameters with random weights that a CPU trains in minutes.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from jzi.benchmarks.device import device_option
from jzi.benchmarks.vigor_tree import CITIES, side_m, write_city
from jzi.commands.datasets.pairs import evaluation_text, training_text
from jzi.encode.photo.pair_images import PairImages, cut_view
from jzi.errors import JziError
from jzi.evaluate.cross_view import RADII, Errors
from jzi.store.photos.pairs import PairDataset
from jzi.synth.overhead import orthophoto
from jzi.synth.photos import place_cameras
from jzi.synth.render import render
from jzi.synth.scene import Town
from jzi.synth.town import make_town
from jzi.workspace.pair_runs import evaluate_on_pairs, train_on_pairs
from jzi.workspace.pairs import DATASETS, Dataset, evaluation_pairs, load_pairs, new_pair_settings, write_pair_settings

#: Sectors that a panorama is rendered in, each on an image plane of its own.
SECTORS = 24

#: Settings of the network that a CPU trains in minutes.
SMALL = (
    "refine.ground_height=128",
    "refine.ground_width=256",
    "refine.photo_width=256",
    "refine.aerial=128",
    "refine.widths=[24, 24, 48, 96]",
    "refine.depths=[1, 1, 2]",
    "refine.layer_scale=1.0",
    "pairs.backbone=",
    "pairs.val_share=0.1",
    "refiner.batch_size=16",
    "refiner.learning_rate=1e-3",
    "refiner.neighbours=8",
    "refiner.neighbour_range=16",
)


def panoramas(town: Town, places: NDArray[np.float64], seed: int, width: int) -> Iterator[Image.Image]:
    """Rendered panoramas of width x width / 2 pixels at places in a town, north in the middle.

    Columns are equidistant in azimuth; rows are those of an image plane, up to 58 degrees above and below the horizon.
    """
    rng = np.random.default_rng([seed, 2])
    cameras = place_cameras(town, seed, len(places))
    weather = rng.permutation(len(places))
    columns = width // SECTORS
    for number, (x, y) in enumerate(places):
        one = cameras[np.full(SECTORS, weather[number])]
        heading = (np.arange(SECTORS) + 0.5) * 360 / SECTORS - 180
        full = np.ones(SECTORS)
        one = replace(
            one,
            x=x * full,
            y=y * full,
            heading_deg=heading % 360,
            fov_deg=360 / SECTORS * full,
            pitch_deg=0 * full,
        )
        sectors = render(town.scene, one, columns * SECTORS // 2, columns).cpu().numpy()
        yield Image.fromarray(np.concatenate(list(sectors), 1))


def aerial_images(town: Town, centers: NDArray[np.float64], side: float, pixels: int) -> Iterator[Image.Image]:
    """Squares of a town's orthophoto around centres, metres east and north of its corner."""
    ortho = orthophoto(town.scene).cpu().numpy()
    whole = len(ortho) * town.scene.resolution
    scaled = np.asarray(Image.fromarray(ortho).resize((round(whole / side * pixels),) * 2, Image.Resampling.BICUBIC))
    for center in centers:
        view = np.array([*(center - whole / 2), 0.0])
        yield Image.fromarray(cut_view(scaled, whole, view, side, pixels))


@click.group()
@device_option
def main() -> None:
    """Make a data set of pairs of rendered towns, or measure UnifyGeo on any."""


@main.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--town", "towns", multiple=True, type=int, default=(1, 2), show_default=True, help="Seeds of towns.")
@click.option("--photos", default=400, show_default=True, help="Photos of each town, half of them for the test.")
@click.option("--size", default=480.0, show_default=True, help="Side of a town, metres.")
@click.option("--width", default=384, show_default=True, help="Width of panoramas, pixels; a multiple of 48.")
@click.option("--pixels", default=192, show_default=True, help="Side of aerial images, pixels.")
def make(folder: Path, towns: tuple[int, ...], photos: int, size: float, width: int, pixels: int) -> None:
    """Write a tree of VIGOR of rendered towns."""
    for city, seed in zip(CITIES, towns, strict=False):
        town, side = make_town(seed, size), side_m(city)
        whole = town.scene.rows * town.scene.resolution
        steps = np.arange(side / 2, whole - side / 2 + 1e-6, side / 2)
        centers = np.array([(col, row) for row in steps for col in steps])
        cameras = place_cameras(town, seed, 8 * photos)
        places = np.stack([cameras.x, cameras.y], -1)
        inner = ((places > steps[0]) & (places < steps[-1])).all(-1)  # four aerial images cover every place
        places = places[inner][:photos]
        write_city(
            folder,
            city,
            centers,
            places,
            aerial_images(town, centers, side, pixels),
            panoramas(town, places, seed, width),
        )
        click.echo(f"{city}: {len(places)} panoramas, {len(centers)} aerial images")


@main.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True))
@click.option("--dataset", type=click.Choice(DATASETS), default="vigor", show_default=True)
@click.option("--area", type=click.Choice(["same", "cross"]), help="Protocol of VIGOR.  [default: same]")
@click.option("--split", help="Split to evaluate on.  [default: the first of the data set's]")
@click.option("--small", is_flag=True, help="A small network with random weights.")
@click.option("--control", type=click.Choice(["none", "black"]), default="none", help="Train on black photos instead.")
@click.option("--set", "overrides", multiple=True, metavar="SECTION.NAME=VALUE")
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path("pair-runs"), show_default=True)
def measure(
    folder: Path,
    dataset: Dataset,
    area: str | None,
    split: str | None,
    small: bool,
    control: str,
    overrides: tuple[str, ...],
    output: Path,
) -> None:
    """Train and evaluate UnifyGeo on a data set of pairs."""
    try:
        plain = new_pair_settings(dataset, output, folder.resolve(), area)  # type: ignore[arg-type]
        write_pair_settings(plain)
        settings = load_pairs(output / "jzi.toml", (*(SMALL if small else ()), *overrides))
        if control == "black":
            PairImages.photo = black_photo  # type: ignore[method-assign]
        began = time.monotonic()
        report, train, _ = train_on_pairs(settings, output / "refiner")
        click.echo(training_text(report))
        if report.epochs:
            rate = report.epochs * len(train) / report.seconds
            click.echo(f"training: {report.seconds:.0f} s, {rate:.1f} pairs a second with reading and validation")
        began = time.monotonic()
        evaluation, tested, _ = evaluate_on_pairs(settings, output / "refiner", split)
        seconds = time.monotonic() - began
        click.echo(evaluation_text(evaluation))
        click.echo(f"evaluation: {seconds:.0f} s, {len(tested) / seconds:.1f} photos a second")
        for line in guesses(tested, evaluation_pairs(settings, "train")):
            click.echo(line)
        (output / "result.json").write_text(json.dumps(evaluation.to_dict(), indent=2))
    except JziError as error:
        click.echo(f"pairs: {error}", err=True)
        sys.exit(2)
    click.echo(f"torch {torch.__version__}, {torch.get_num_threads()} threads, GPU {torch.cuda.is_available()}")


def guesses(tested: PairDataset, train: PairDataset) -> Iterator[str]:
    """Errors of answering the centre of the positive, and the median place of the training photos in theirs."""
    if tested.not_metric:
        return
    place = tested.in_view()[0]
    constant = np.median(train.in_view()[0], 0)
    for name, guess in (("centre of the positive", np.zeros(2)), ("median place in training", constant)):
        errors = Errors.of(np.hypot(*(place - guess).T), RADII)
        yield f"guessing the {name}: mean {errors.mean.value:.2f} m, median {errors.median.value:.2f} m"


def black_photo(self: PairImages, index: int) -> NDArray[np.uint8]:
    """A photo that shows nothing."""
    height, width = self.panorama
    return np.zeros((height, width if self.dataset.hfov_deg[index] >= 360 else self.photo_width, 3), np.uint8)


if __name__ == "__main__":
    main()
