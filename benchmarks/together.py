"""What several photos of one place, or of one drive, are worth: recall of single photos, and of all together.

    python -m benchmarks.together TOWN            # a folder that `jzi demo` made

Places and drives are drawn on the town's streets with other cameras than the demo's; nothing of them was trained on.
At a place four photos look four ways. A drive takes a photo every 15 m, at 27 km/h; its top speed is given as 40 km/h.
The town is made: no figure here says how well jzi does in a real city.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
from PIL import Image

import jzi
from jzi.store.pyramid import geodesic_distance
from jzi.synth.photos import camera_places, place_cameras
from jzi.synth.render import render
from jzi.synth.scene import Cameras, Town
from jzi.synth.town import make_town

RADII = (20.0, 50.0, 100.0)
STEP_M, SECONDS, TOP_SPEED = 15.0, 2.0, 40 / 3.6


def places(town: Town, count: int, seed: int) -> list[Cameras]:
    """Four photos at each of several places, a quarter turn apart."""
    cameras = place_cameras(town, seed, count)
    light = place_cameras(town, seed + 1, 4 * count)
    spots = []
    for index in range(count):
        four = np.full(4, index)
        heading = (cameras.heading_deg[index] + 90 * np.arange(4)) % 360
        own = light[np.arange(4 * index, 4 * index + 4)]
        spots.append(replace(own, x=cameras.x[four], y=cameras.y[four], heading_deg=heading))
    return spots


def drives(town: Town, count: int, photos: int, seed: int) -> list[Cameras]:
    """Drives along the streets, turning where they end."""
    rng = np.random.default_rng(seed)
    free = np.zeros(town.scene.rows * town.scene.cols, bool)
    free[camera_places(town)] = True
    light = place_cameras(town, seed, count * photos)
    found: list[Cameras] = []
    starts = iter(range(count * photos))
    while len(found) < count:
        start = next(starts)
        x, y, heading = (getattr(light, name)[start] for name in ("x", "y", "heading_deg"))
        track = []
        while len(track) < photos:
            track.append((x, y, heading))
            for turn in (0, *rng.permutation([-8, 8, -20, 20]), *rng.permutation([-45, 45, -90, 90])):
                bearing = np.radians(heading + turn)
                way = [(x + far * np.sin(bearing), y + far * np.cos(bearing)) for far in np.linspace(3, STEP_M, 5)]
                pixels = [town.scene.pixel(np.array(px), np.array(py)) for px, py in way]
                if all(free[int(row) * town.scene.cols + int(col)] for row, col in pixels):
                    (x, y), heading = way[-1], (heading + turn) % 360
                    break
            else:
                break
        if len(track) == photos:
            own = light[np.arange(len(found) * photos, (len(found) + 1) * photos)]
            xs, ys, headings = np.array(track).T
            found.append(replace(own, x=xs, y=ys, heading_deg=headings))
    return found


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True))
@click.option("--spots", default=100, show_default=True)
@click.option("--drives", "drive_count", default=12, show_default=True)
@click.option("--photos", default=20, show_default=True, help="Of a drive.")
@click.option("--seed", default=1000, show_default=True)
def main(folder: Path, spots: int, drive_count: int, photos: int, seed: int) -> None:
    """Measure both."""
    recipe = json.loads((folder / "town.json").read_text())
    town = make_town(recipe["seed"], recipe["size_m"], recipe["resolution"])
    locator = jzi.load(folder / "model")

    def pictures(cameras: Cameras) -> list[Image.Image]:
        pixels = render(town.scene, cameras, recipe["height_px"], recipe["width_px"]).cpu().numpy()
        return [Image.fromarray(each) for each in pixels]

    def errors(answers: list, cameras: Cameras) -> list[float]:
        longitude, latitude = town.lon_lat(cameras.x, cameras.y)
        places = [(answer.latitude, answer.longitude) for answer in answers]
        return geodesic_distance(latitude[: len(places)], longitude[: len(places)], *np.array(places).T).tolist()

    rows: dict[str, list[float]] = {
        name: [] for name in ("place, one photo", "place, four", "drive, one photo", "drive")
    }
    for cameras in places(town, spots, seed):
        images = pictures(cameras)
        rows["place, one photo"] += errors(list(locator.locate_all(images)), cameras)
        rows["place, four"] += errors([locator.locate_together(images)], cameras)
    for cameras in drives(town, drive_count, photos, seed + 7):
        images = pictures(cameras)
        rows["drive, one photo"] += errors(list(locator.locate_all(images)), cameras)
        times = SECONDS * np.arange(photos)
        rows["drive"] += errors(locator.locate_track(images, times.tolist(), TOP_SPEED), cameras)
    click.echo(f"{'':<18}{'answers':>8}" + "".join(f"{f'within {r:g} m':>14}" for r in RADII) + f"{'median':>10}")
    for name, values in rows.items():
        error = np.array(values)
        recall = "".join(f"{(error <= radius).mean():>14.1%}" for radius in RADII)
        click.echo(f"{name:<18}{len(error):>8}{recall}{np.median(error):>8.0f} m")


if __name__ == "__main__":
    main()
