"""Compare the experts of a model and their fusions: accuracy, calibration, cost.

    jzi demo town-1 --seed 1 --only-town && (cd town-1 && jzi encode-map --cells && jzi encode-queries)
    python -m benchmarks.experts town-1 town-2 --seeds 3 --set decoder.layers=3 --set decoder.heads=4

Each folder has a jzi.toml and a cache with cells and photos. For every seed, all experts are trained from the cache on
the same photos, and every expert alone, every pair and all of them are evaluated on the held-out photos with weights
fitted on validation photos. Finished models are not trained again. Figures are means over the seeds; fusions with vpr
compare photos with training photos and are not cross-view.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import click
import torch

from jzi.benchmarks.device import device_option
from jzi.evaluate.experts import ExpertFigures, evaluate_experts
from jzi.evaluate.photos import LabelledPhotos
from jzi.locate.answer.location import LocateOptions
from jzi.locate.expert import Expert
from jzi.store.model_folder import DECODER, EXPERT_FILES, MAP
from jzi.workspace.models.evaluated import open_zoom
from jzi.workspace.models.experts import load_experts
from jzi.workspace.setup.settings import Settings
from jzi.workspace.setup.settings_file import load_settings
from jzi.workspace.training import ModelTraining

from .zoom_and_retrieval import median_ms

RADII = (20.0, 40.0, 50.0, 100.0)

#: Photos located to measure the time.
REPEATS = 50


def subsets(names: Sequence[str]) -> list[tuple[str, ...]]:
    """Every expert, every pair, all without vpr and all."""
    sets = [tuple(each) for count in (1, 2) for each in itertools.combinations(names, count)]
    sets += [tuple(name for name in names if name != "vpr"), tuple(names)]
    return list(dict.fromkeys(sets))


def train(town: Path, folder: Path, seed: int, overrides: Sequence[str]) -> tuple[Settings, dict[str, float]]:
    """Train all experts with a seed; return the settings, and the seconds of the zoom and of the others."""
    seeded = (f"train.seed={seed}", f"heads.seed={seed}", f"model.path={folder.resolve()}")
    settings = load_settings(town / "jzi.toml", (*overrides, *seeded))
    report, fused = ModelTraining.open(settings).run()
    return settings, {"zoom": report.seconds, "others": fused.seconds}


def measure(folder: Path, cache_path: str) -> tuple[dict[str, ExpertFigures], dict[str, float], dict[str, int]]:
    """Evaluate all subsets of a model's experts.

    Returns:
        The figures of each subset, milliseconds to locate one photo with each expert, and the size of its files.
    """
    zoom, cache = open_zoom(folder, cache_path)
    model = load_experts(folder, zoom)
    photos = LabelledPhotos.load(cache, zoom, "test")
    fusions = {" + ".join(names): model.fusion_of(names) for names in subsets(tuple(model.experts))}
    figures = evaluate_experts(model.experts, fusions, photos, radii=RADII)
    query = photos.query[:REPEATS].float()
    options = LocateOptions()

    def milliseconds(expert: Expert) -> float:
        return median_ms(lambda row: expert.posterior(query[row : row + 1], options), len(query))

    files = {name: [EXPERT_FILES[name]] if name in EXPERT_FILES else [DECODER, MAP] for name in model.experts}
    sizes = {name: sum((folder / file).stat().st_size for file in each) for name, each in files.items()}
    return figures, {name: milliseconds(expert) for name, expert in model.experts.items()}, sizes


@click.command()
@click.argument("folders", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--seeds", default=3, show_default=True, help="Number of seeds.")
@click.option("--set", "overrides", multiple=True, metavar="SECTION.NAME=VALUE", help="Settings of the training.")
@click.option("--models", default="experts", show_default=True, help="Folder of the models in each of FOLDERS.")
@device_option
def main(folders: tuple[Path, ...], seeds: int, overrides: tuple[str, ...], models: str) -> None:
    """Train and evaluate; print a table for each folder."""
    for town in folders:
        runs, seconds = [], []
        for seed in range(seeds):
            folder = town / models / f"seed-{seed}"
            began = time.monotonic()
            settings, took = train(town, folder, seed, overrides)
            seconds.append(took)
            runs.append(measure(folder, settings.cache_path))
            click.echo(f"{folder}: {time.monotonic() - began:.0f} s", err=True)
        _print(town, runs, seconds)


def _print(
    town: Path,
    runs: list[tuple[dict[str, ExpertFigures], dict[str, float], dict[str, int]]],
    seconds: list[dict[str, float]],
) -> None:
    rows = [figures for figures, _, _ in runs]
    baseline = [figures["zoom"].recall[50.0].value for figures in rows]
    click.echo(f"\n{town}: {len(runs)} seeds, {torch.get_num_threads()} threads, torch {torch.__version__}\n")
    click.echo("| experts | cross-view | 20 m | 40 m | 50 m | 100 m | over zoom, 50 m | NLL | calibration error |")
    click.echo("|---|---|---|---|---|---|---|---|---|")
    for name in rows[0]:
        each = [figures[name] for figures in rows]
        recall = " | ".join(f"{100 * statistics.mean(row.recall[r].value for row in each):.1f}" for r in RADII)
        gains = [100 * (row.recall[50.0].value - zoom) for row, zoom in zip(each, baseline, strict=True)]
        spread = f" ± {statistics.stdev(gains):.1f}" if len(gains) > 1 else ""
        nll = statistics.mean(row.nll for row in each)
        calibration = 100 * statistics.mean(row.calibration_error for row in each)
        cross_view = "no" if "vpr" in name else "yes"
        click.echo(
            f"| {name} | {cross_view} | {recall} | {statistics.mean(gains):+.1f}{spread} | {nll:.2f} | "
            f"{calibration:.1f} % |"
        )
    click.echo("\n| expert | ms per photo | files |\n|---|---|---|")
    for name in runs[0][1]:
        ms = statistics.median(times[name] for _, times, _ in runs)
        click.echo(f"| {name} | {ms:.1f} | {runs[0][2][name] / 1e6:.2f} MB |")
    trained = [each for each in seconds if each["zoom"]]
    if trained:
        means = {name: statistics.mean(each[name] for each in trained) for name in trained[0]}
        click.echo(f"\nTraining: zoom {means['zoom']:.0f} s, the other experts and the fusion {means['others']:.0f} s.")


if __name__ == "__main__":
    main()
