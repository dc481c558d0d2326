"""How sure the model is of photos that were not taken on its map at all.

    python -m benchmarks.outside TOWN             # a folder that `jzi demo` made

Photos of another made town are located on this one's map, beside held-out photos of this town. A model that knows what
it does not know is less sure of the former. AUROC is the share of pairs of which it is (0.5 is guessing).
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

LEVELS = (0.1, 0.2, 0.3, 0.5)


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True))
@click.option("--photos", default=400, show_default=True)
@click.option("--seed", default=101, show_default=True, help="Of the other town.")
def main(folder: Path, photos: int, seed: int) -> None:
    """Measure."""
    recipe = json.loads((folder / "town.json").read_text())
    locator = jzi.load(folder / "model")
    frame = FeatureCache.open(folder / "features.zarr").queries.encoded()
    own = [folder / "photos" / path for path in frame[frame["split"] == "test"]["path"][:photos]]
    other = make_town(seed, recipe["size_m"], recipe["resolution"])
    cameras = place_cameras(other, seed, len(own))
    strange = []
    for start in range(0, len(own), 64):
        pixels = render(other.scene, cameras[slice(start, start + 64)], recipe["height_px"], recipe["width_px"])
        strange += [Image.fromarray(each) for each in pixels.cpu().numpy()]
    confidence = {}
    for name, images in (("this town", own), (f"town {seed}", strange)):
        answers = [answer for answer in locator.locate_all(images) if isinstance(answer, Location)]
        confidence[name] = np.array([answer.confidence for answer in answers])
    click.echo(f"{'photos of':<12}{'photos':>8}{'median':>10}" + "".join(f"{f'over {x:.0%}':>11}" for x in LEVELS))
    for name, values in confidence.items():
        shares = "".join(f"{(values > level).mean():>11.1%}" for level in LEVELS)
        click.echo(f"{name:<12}{len(values):>8}{np.median(values):>10.1%}{shares}")
    here, there = confidence.values()
    pairs = (here[:, None] > there).mean() + 0.5 * (here[:, None] == there).mean()
    click.echo(f"AUROC {pairs:.3f}")


if __name__ == "__main__":
    main()
