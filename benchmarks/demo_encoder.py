"""Measure the demo's encoder: recall on held-out photos of synthetic towns, trained and random.

    python -m benchmarks.demo_encoder [FOLDER]

Prints the recall within 20, 50 and 100 m of runs of `jzi demo`. Seed 0 is the town on whose training photos the
encoder was fine-tuned (its held-out photos were never used); towns of other seeds were not used in training. The
figures are for synthetic towns and do not transfer to real cities.
"""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import click

from jzi import cli
from jzi.benchmarks.device import device_option
from jzi.evaluate.calibration import calibrate
from jzi.evaluate.photos import LabelledPhotos
from jzi.workspace.models.evaluated import open_zoom

RADII = (20.0, 50.0, 100.0)


@click.command()
@click.argument("folder", type=click.Path(path_type=Path), default="demo-encoder")
@click.option("--photos", default=4096, show_default=True, help="Photos of each town.")
@click.option("--seeds", default="0,1", show_default=True, help="Seeds of the towns.")
@device_option
def main(folder: Path, photos: int, seeds: str) -> None:
    """Run the demo for every town and encoder, and print the table."""
    click.echo(f"{'town':>5}  {'encoder':<8}{'answer':<22}{'photos':>7}" + "".join(f"{f'{r:g} m':>10}" for r in RADII))
    for seed in map(int, seeds.split(",")):
        for encoder in ("random", "trained"):
            town = folder / f"{seed}-{encoder}"
            with contextlib.redirect_stdout(io.StringIO()):
                how = ["--photos", str(photos), "--seed", str(seed), "--encoder", encoder]
                if code := cli.main(["demo", str(town), *how], standalone_mode=False):
                    raise SystemExit(code)
            expert, cache = open_zoom(town / "model", str(town / "features.zarr"))
            calibration = calibrate(expert, LabelledPhotos.load(cache, expert, "test"))
            for estimate, name in (("greedy", "greedy, the paper's"), ("radius", "most within 50 m")):
                recall = "".join(f"{calibration.recall(estimate, radius):>10.1%}" for radius in RADII)
                click.echo(f"{seed:>5}  {encoder:<8}{name:<22}{calibration.photos:>7}{recall}")


if __name__ == "__main__":
    main()
