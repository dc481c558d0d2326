"""Measure the recall of several photos of one position or one drive, against single photos.

    python -m benchmarks.together TOWN            # a folder written by `jzi demo`

Positions and drives are sampled on the town's streets with other cameras than the demo's; none of the photos was used
in training. At a position four photos look in four directions. A drive has a photo every 15 m at 27 km/h; the top speed
passed to the locator is 40 km/h. The figures are for a synthetic town and do not transfer to real cities.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
from PIL import Image

import jzi
from jzi.benchmarks.device import device_option
from jzi.store.geometry.pyramid import geodesic_distance
from jzi.synth.photos import camera_places, place_cameras
from jzi.synth.render import render
from jzi.synth.scene import Cameras, Town
from jzi.synth.town import make_town

RADII = (20.0, 50.0, 100.0)
STEP_M, SECONDS, TOP_SPEED = 15.0, 2.0, 40 / 3.6


def positions(town: Town, count: int, seed: int) -> list[Cameras]:
    """Return the cameras of `count` positions: four photos each, a quarter turn apart."""
    cameras = place_cameras(town, seed, count)
    light = place_cameras(town, seed + 1, 4 * count)
    spots = []
    for index in range(count):
        four = np.full(4, index)
        heading = (cameras.heading_deg[index] + 90 * np.arange(4)) % 360
        conditions = light[np.arange(4 * index, 4 * index + 4)]
        spots.append(replace(conditions, x=cameras.x[four], y=cameras.y[four], heading_deg=heading))
    return spots


def drives(town: Town, count: int, photos: int, seed: int) -> list[Cameras]:
    """Return the cameras of `count` drives along the streets, which turn where a street ends."""
    rng = np.random.default_rng(seed)
    free = np.zeros(town.scene.rows * town.scene.cols, bool)
    free[camera_places(town)] = True
    light = place_cameras(town, seed, count * photos)
    tracks: list[Cameras] = []
    starts = iter(range(count * photos))
    while len(tracks) < count:
        start = next(starts)
        x, y, heading = (getattr(light, name)[start] for name in ("x", "y", "heading_deg"))
        track = []
        while len(track) < photos:
            track.append((x, y, heading))
            for turn in (0, *rng.permutation([-8, 8, -20, 20]), *rng.permutation([-45, 45, -90, 90])):
                bearing = np.radians(heading + turn)
                path = [
                    (x + ahead * np.sin(bearing), y + ahead * np.cos(bearing)) for ahead in np.linspace(3, STEP_M, 5)
                ]
                pixels = [town.scene.pixel(np.array(px), np.array(py)) for px, py in path]
                if all(free[int(row) * town.scene.cols + int(col)] for row, col in pixels):
                    (x, y), heading = path[-1], (heading + turn) % 360
                    break
            else:
                break
        if len(track) == photos:
            conditions = light[np.arange(len(tracks) * photos, (len(tracks) + 1) * photos)]
            xs, ys, headings = np.array(track).T
            tracks.append(replace(conditions, x=xs, y=ys, heading_deg=headings))
    return tracks


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True))
@click.option("--spots", default=100, show_default=True, help="Number of positions.")
@click.option("--drives", "drive_count", default=12, show_default=True, help="Number of drives.")
@click.option("--photos", default=20, show_default=True, help="Photos of a drive.")
@click.option("--seed", default=1000, show_default=True)
@device_option
def main(folder: Path, spots: int, drive_count: int, photos: int, seed: int) -> None:
    """Measure both and print the table."""
    parameters = json.loads((folder / "town.json").read_text())
    town = make_town(parameters["seed"], parameters["size_m"], parameters["resolution"])
    locator = jzi.load(folder / "model")

    def render_photos(cameras: Cameras) -> list[Image.Image]:
        pixels = render(town.scene, cameras, parameters["height_px"], parameters["width_px"]).cpu().numpy()
        return [Image.fromarray(photo) for photo in pixels]

    def errors(answers: list, cameras: Cameras) -> list[float]:
        longitude, latitude = town.lon_lat(cameras.x, cameras.y)
        located = [(answer.latitude, answer.longitude) for answer in answers]
        return geodesic_distance(latitude[: len(located)], longitude[: len(located)], *np.array(located).T).tolist()

    rows: dict[str, list[float]] = {
        name: [] for name in ("position, one photo", "position, four", "drive, one photo", "drive")
    }
    for cameras in positions(town, spots, seed):
        images = render_photos(cameras)
        rows["position, one photo"] += errors(list(locator.locate_all(images)), cameras)
        rows["position, four"] += errors([locator.locate_together(images)], cameras)
    for cameras in drives(town, drive_count, photos, seed + 7):
        images = render_photos(cameras)
        rows["drive, one photo"] += errors(list(locator.locate_all(images)), cameras)
        times = SECONDS * np.arange(photos)
        rows["drive"] += errors(locator.locate_track(images, times.tolist(), TOP_SPEED), cameras)
    click.echo(f"{'':<22}{'answers':>8}" + "".join(f"{f'within {r:g} m':>14}" for r in RADII) + f"{'median':>10}")
    for name, values in rows.items():
        error = np.array(values)
        recall = "".join(f"{(error <= radius).mean():>14.1%}" for radius in RADII)
        click.echo(f"{name:<22}{len(error):>8}{recall}{np.median(error):>8.0f} m")


if __name__ == "__main__":
    main()
