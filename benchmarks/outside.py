"""Measure how well photos that were not taken on a model's map are recognized.

    python -m benchmarks.outside TOWN             # a folder written by `jzi demo`

Held-out photos of the town, photos of other made towns, and pictures that are of no town are located on its map. AUROC
is the share of pairs of a photo of the town and another one in which the first has the higher value; 0.5 is chance.
The last table compares the probability of being from the area with the share of photos that are, among as many photos
of this town as of others.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from PIL import Image, ImageDraw, ImageOps

import jzi
from jzi.benchmarks.device import device_option
from jzi.errors import ModelError
from jzi.locate.answer.location import Location
from jzi.locate.inside import auroc
from jzi.locate.locator import Locator
from jzi.locate.ranges import ELSEWHERE
from jzi.store.cache.feature_cache import FeatureCache
from jzi.synth.photos import place_cameras
from jzi.synth.render import render
from jzi.synth.town import make_town

#: Pictures of each kind that show no town, and bins of the last table.
PICTURES, BINS = 40, 5


@dataclass(frozen=True)
class Answers:
    """Values of the photos of one kind, (photo,)."""

    place: np.ndarray  # probability within 50 m, given that the photo is from the area
    inside: np.ndarray  # probability of being from the area, at even odds
    confidence: np.ndarray  # their product, at the default odds


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True))
@click.option("--photos", default=400, show_default=True)
@click.option(
    "--seed", "seeds", multiple=True, type=int, default=(101, 102, 103), show_default=True, help="Other towns."
)
@device_option
def main(folder: Path, photos: int, seeds: tuple[int, ...]) -> None:
    """Measure and print the tables."""
    locator = jzi.load(folder / "model")
    if locator.detector is None:
        raise ModelError(f"the model of {folder} does not recognize photos from elsewhere: train it again")
    frame = FeatureCache.open(folder / "features.zarr").queries.encoded()
    held_out = [folder / "photos" / path for path in frame[frame["split"] == "test"]["path"][:photos]]
    here = locate(locator, held_out)
    click.echo(
        f"{'photos of':<22}{'photos':>8}{'within 50 m':>13}{'from here':>11}{'confidence':>12}   AUROC of the three"
    )
    click.echo(line("this town", here, None))
    towns = []
    for name, images in outsiders(folder, held_out, seeds):
        answers = locate(locator, images)
        click.echo(line(name, answers, here))
        if name.startswith("town"):
            towns.append(answers.inside)
    foreign = np.concatenate(towns)
    click.echo("\nprobability of being from here   share that is")
    for low in np.arange(BINS) / BINS:
        ours, others = (values[(values >= low) & (values < low + 1 / BINS)] for values in (here.inside, foreign))
        share = len(ours) / len(here.inside), len(others) / len(foreign)
        if sum(share):
            mean = (ours.sum() / len(here.inside) + others.sum() / len(foreign)) / sum(share)
            click.echo(f"{mean:>10.1%} {share[0] / sum(share):>30.1%}")


def outsiders(folder: Path, held_out: list[Path], seeds: tuple[int, ...]) -> Iterator[tuple[str, list[Image.Image]]]:
    """Photos and pictures that were not taken in the town, by what they are."""
    parameters, rng = json.loads((folder / "town.json").read_text()), np.random.default_rng(0)
    width, height = parameters["width_px"], parameters["height_px"]
    for seed in seeds:
        other = make_town(seed, parameters["size_m"], parameters["resolution"])
        cameras, images = place_cameras(other, seed, len(held_out)), []
        for start in range(0, len(held_out), 64):
            pixels = render(other.scene, cameras[slice(start, start + 64)], height, width)
            images += [Image.fromarray(photo) for photo in pixels.cpu().numpy()]
        yield f"town {seed}", images
    yield "this town, upside down", [ImageOps.flip(Image.open(path).convert("RGB")) for path in held_out[:100]]
    colors = rng.integers(0, 256, (PICTURES, 3)).tolist()
    yield "one colour", [Image.new("RGB", (width, height), tuple(color)) for color in colors]
    noise = rng.integers(0, 256, (PICTURES, height, width, 3), dtype=np.uint8)
    yield "noise", [Image.fromarray(each) for each in noise]
    patches = [rng.integers(0, 256, (size, 2 * size, 3), dtype=np.uint8) for size in rng.integers(2, 12, PICTURES)]
    smooth = [Image.fromarray(each).resize((width, height), Image.Resampling.BICUBIC) for each in patches]
    yield "smooth textures", smooth
    ends, share = rng.uniform(0, 255, (PICTURES, 2, 1, 1, 3)), np.linspace(0, 1, height)[:, None, None]
    ramps = [(first * (1 - share) + last * share).repeat(width, 1).astype(np.uint8) for first, last in ends]
    yield "colour gradients", [Image.fromarray(each) for each in ramps]
    yield "grey gradients", [Image.fromarray(each).convert("L").convert("RGB") for each in ramps]
    yield "screenshots", [screenshot(rng, width, height) for _ in range(PICTURES)]


def screenshot(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Lines of text, here bars, and pictures, here rectangles, below a coloured bar on a plain page."""
    page = Image.new("RGB", (width, height), (255, 255, 255) if rng.random() < 0.7 else (30, 30, 30))
    draw = ImageDraw.Draw(page)
    draw.rectangle((0, 0, width, height // 10), fill=tuple(rng.integers(0, 255, 3).tolist()))
    for lines, high in ((14, 3), (3, height // 6)):
        for _ in range(lines):
            x, y = rng.integers(4, width // 2), rng.integers(height // 8, height - high)
            right = x + rng.integers(10, width // 2)
            draw.rectangle((x, y, right, y + high), fill=tuple(rng.integers(0, 220, 3).tolist()))
    return page


def locate(locator: Locator, photos: list[Path] | list[Image.Image]) -> Answers:
    """Locate photos at the default odds."""
    answers = [each for each in locator.locate_all(photos) if isinstance(each, Location)]
    inside = np.array([each.inside for each in answers], float)
    odds = inside / (1 - inside) * ELSEWHERE / (1 - ELSEWHERE)
    return Answers(
        np.array([each.best.probability for each in answers]),
        odds / (1 + odds),
        np.array([each.confidence for each in answers]),
    )


def line(name: str, answers: Answers, here: Answers | None) -> str:
    """Medians, and AUROC against the photos of this town."""
    values = answers.place, answers.inside, answers.confidence
    medians = "".join(f"{np.median(each):>{width}.1%}" for each, width in zip(values, (13, 11, 12), strict=True))
    if here is None:
        return f"{name:<22}{len(answers.place):>8}{medians}"
    ours = here.place, here.inside, here.confidence
    against = "".join(f"{auroc(own, other):>8.3f}" for own, other in zip(ours, values, strict=True))
    return f"{name:<22}{len(answers.place):>8}{medians}{against}"


if __name__ == "__main__":
    main()
