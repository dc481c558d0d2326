"""Measure the confidence of a model for photos that were not taken on its map.

    python -m benchmarks.outside TOWN             # a folder written by `jzi demo`

Photos of another synthetic town and held-out photos of this town are located on this town's map. AUROC is the share of
pairs in which the photo of this town has the higher confidence (0.5 is chance).
"""

from __future__ import annotations

import json
from pathlib import Path

import click
import numpy as np
from PIL import Image

import jzi
from jzi.locate.location import Location
from jzi.store.cache import FeatureCache
from jzi.synth.photos import place_cameras
from jzi.synth.render import render
from jzi.synth.town import make_town

THRESHOLDS = (0.1, 0.2, 0.3, 0.5)


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True))
@click.option("--photos", default=400, show_default=True)
@click.option("--seed", default=101, show_default=True, help="Seed of the other town.")
def main(folder: Path, photos: int, seed: int) -> None:
    """Measure and print the table."""
    parameters = json.loads((folder / "town.json").read_text())
    locator = jzi.load(folder / "model")
    frame = FeatureCache.open(folder / "features.zarr").queries.encoded()
    held_out = [folder / "photos" / path for path in frame[frame["split"] == "test"]["path"][:photos]]
    other = make_town(seed, parameters["size_m"], parameters["resolution"])
    cameras = place_cameras(other, seed, len(held_out))
    foreign = []
    for start in range(0, len(held_out), 64):
        pixels = render(other.scene, cameras[slice(start, start + 64)], parameters["height_px"], parameters["width_px"])
        foreign += [Image.fromarray(photo) for photo in pixels.cpu().numpy()]
    confidence = {}
    for name, images in (("this town", held_out), (f"town {seed}", foreign)):
        answers = [answer for answer in locator.locate_all(images) if isinstance(answer, Location)]
        confidence[name] = np.array([answer.confidence for answer in answers])
    click.echo(f"{'photos of':<12}{'photos':>8}{'median':>10}" + "".join(f"{f'over {x:.0%}':>11}" for x in THRESHOLDS))
    for name, values in confidence.items():
        shares = "".join(f"{(values > threshold).mean():>11.1%}" for threshold in THRESHOLDS)
        click.echo(f"{name:<12}{len(values):>8}{np.median(values):>10.1%}{shares}")
    inside, outside = confidence.values()
    auroc = (inside[:, None] > outside).mean() + 0.5 * (inside[:, None] == outside).mean()
    click.echo(f"AUROC {auroc:.3f}")


if __name__ == "__main__":
    main()
