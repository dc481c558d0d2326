"""Compare settings of state-wide retrieval in towns that nothing was trained on.

    for seed in 1 2 101 102 103 104; do jzi demo town-$seed --seed $seed --photos 2048 --only-town; done
    python -m benchmarks.statewide town-10? --test town-1 --test town-2 --encoder CONVNEXT --seeds 3 \
        --variants benchmarks/ablations/statewide-lods.toml --set statewide.steps=20000
    python -m benchmarks.statewide town-10? --test town-1 --tiny --set statewide.steps=500    # no download

For every variant and seed: trains a retriever on the towns given, indexes the cells of the towns of --test, encodes
their photos, and searches all cells for each. A town's region is the outline of its raster; all photos of a test town
are searched for. Prints recall at k within 50 m, the mean negative log-likelihood of the true cells (nats), and the
seconds of training, with mean and sample standard deviation over the seeds, and beside recall and likelihood what
guessing gives. The likelihoods of cells of different size do not compare.

Settings apply in this order, the last one wins: --cell and --encoder, `settings` of the variants' file, --set, the
variant. --tiny names the encoders whatever the settings say. A run is reused while its settings, the files of its
encoder, the towns' rasters and the number of their photos are the same; an interrupted training is resumed. The towns
are made: figures compare settings, and say nothing about a real state.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray

from jzi.ablate.variants import Variant, folder_name, read_variants
from jzi.benchmarks.device import device_option
from jzi.encode.encode_queries import encode_queries
from jzi.encode.encoders.hf_model import quiet_transformers
from jzi.errors import ConfigError, JziError
from jzi.evaluate.experts import negative_log_likelihood
from jzi.evaluate.retrieval import TOP, check_radii, evaluate_retrieval, matches, reachable
from jzi.locate.answer.location import LocateOptions
from jzi.retrieve.statewide import StatewideRetriever
from jzi.store.disk.files import file_sha256, write_whole
from jzi.workspace.inputs import open_photo_table
from jzi.workspace.regions.region import region_settings, write_footprint
from jzi.workspace.regions.region_index import open_region_expert
from jzi.workspace.regions.statewide import new_towers, open_index, train_region
from jzi.workspace.setup.settings import FILE, PathSettings, RegionSettings
from jzi.workspace.setup.settings_file import load_region, write_settings

#: Radius of recall, metres, and photos located at once.
RADIUS, BATCH = 50.0, 64

#: Sections whose settings a variant may change.
SECTIONS = ("statewide", "region")

Values = dict[str, Any]


@dataclass(frozen=True)
class Town:
    """A town's name, the settings of its region, and what identifies its contents."""

    name: str
    settings_file: Path
    contents: str


@dataclass(frozen=True)
class Run:
    """One training and its evaluation.

    Attributes:
        variant: name of the variant.
        seed: seed of the training.
        training: settings of the regions to train on.
        tests: settings of the regions to search, by name of the town.
        folder: where everything of the run is.
    """

    variant: str
    seed: int
    training: tuple[RegionSettings, ...]
    tests: dict[str, RegionSettings]
    folder: Path

    @property
    def result_file(self) -> Path:
        """Where the figures are written when the run is complete."""
        return self.folder.with_name(f"{self.folder.name}.json")


def open_town(town: Path, raster: str, output: Path) -> Town:
    """Set up a town's region below the output folder, the outline of its raster with the photos of the town.

    Raises:
        ConfigError: the town lacks its raster or its photos.
    """
    image, photos = town / raster, town / "photos"
    for path in (image, photos):
        if not path.exists():
            raise ConfigError(
                f"{town} has no {path.name}: make it with `jzi demo {town} --seed N --only-town`, or name the raster "
                "with --map"
            )
    identity = hashlib.sha256(str(town.resolve()).encode()).hexdigest()[:8]
    folder = output / "towns" / f"{town.resolve().name}-{identity}"
    if not (folder / FILE).exists():
        settings, cells, _ = region_settings(
            folder, None, None, None, [str(image.resolve())], queries=str(photos.resolve())
        )
        write_footprint(settings, cells)
        write_settings(settings)
    count = sum(path.is_file() for path in photos.rglob("*"))
    return Town(town.resolve().name, folder / FILE, f"{file_sha256(image)} {count}")


def tiny_encoder(folder: Path, kind: str, seed: int) -> Path:
    """Write a tiny encoder with random weights, a ConvNeXt or, for the pooling "class", a DeiT, unless it is there."""
    from transformers import ConvNextConfig, ConvNextModel, DeiTConfig, DeiTModel

    path = folder / f"{kind}-{seed}"
    if not path.exists():
        torch.manual_seed(seed)
        if kind == "deit":
            model: Any = DeiTModel(
                DeiTConfig(hidden_size=128, num_hidden_layers=4, num_attention_heads=4, intermediate_size=256)
            )
        else:
            model = ConvNextModel(ConvNextConfig(depths=[1, 1, 2, 1], hidden_sizes=[16, 32, 64, 128]))
        partial_folder = path.with_name(f"{path.name}.partial")
        quiet_transformers()
        model.save_pretrained(partial_folder)
        partial_folder.rename(path)
    return path


def plan_run(
    variant: Variant,
    seed: int,
    training: Sequence[Town],
    tests: Sequence[Town],
    overrides: Sequence[str],
    output: Path,
    tiny: bool,
) -> Run:
    """The settings of a run; nothing is trained.

    Raises:
        ConfigError: a setting is unknown or invalid, or the cells are too large for the radius of recall.
    """
    options = [*overrides, *variant.overrides, f"statewide.seed={seed}"]
    try:
        first = load_region(training[0].settings_file, options)
        check_radii([RADIUS], first.region.cell_m)
        if tiny:
            kind = "deit" if first.statewide.pooling == "class" else "convnext"
            path = json.dumps(str(tiny_encoder(output / "encoders", kind, seed).resolve()))
            options += [f"statewide.photo_model={path}", f"statewide.map_model={path}"]
        areas = [load_region(town.settings_file, options) for town in (*training, *tests)]
    except ConfigError as error:
        raise ConfigError(f"variant {variant.name}: {error}") from error
    config = areas[0].statewide
    encoders = [_digest(areas[0].path(name)) for name in (config.photo_model, config.map_model)]
    contents = [[town.name, town.contents] for town in (*training, *tests)]
    key = json.dumps([[area.to_toml() for area in areas], contents, len(training), encoders])
    folder = f"{folder_name(variant.name)}-seed{seed}-{hashlib.sha256(key.encode()).hexdigest()[:8]}"
    run = Run(
        variant.name,
        seed,
        tuple(areas[: len(training)]),
        dict(zip((town.name for town in tests), areas[len(training) :], strict=True)),
        output / "runs" / folder,
    )
    for name, area in run.tests.items():
        area.cache = PathSettings(str((run.folder / f"{name}.zarr").resolve()))
    return run


def _digest(folder: Path) -> str:
    """Digest of the files of an encoder's folder; "" if it is an id."""
    files = sorted(path for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []
    return " ".join(f"{path.name} {file_sha256(path)}" for path in files)


def check_towers(runs: Sequence[Run]) -> None:
    """Create the towers of each variant that is not complete, so that one which cannot be is not found out hours later.

    Raises:
        JziError: an encoder cannot be loaded, or does not fit the settings.
    """
    for run in {run.variant: run for run in runs if not run.result_file.exists()}.values():
        try:
            new_towers(run.training[0])
        except JziError as error:
            raise type(error)(f"variant {run.variant}: {error}") from error


def run_once(run: Run, keep: bool) -> Values:
    """Train and evaluate a run, or read its figures where it is complete."""
    if run.result_file.exists():
        return json.loads(run.result_file.read_text())
    click.echo(f"{run.variant}, seed {run.seed}: training and searching in {run.folder}", err=True)
    retriever, timing = run.folder / "retriever", run.folder / "training.json"
    resumed = retriever.exists()
    run.folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(run.seed)  # of the poolings
    report, _ = train_region(run.training, retriever, lambda text: click.echo(f"warning: {text}", err=True))
    if not resumed:
        write_whole(timing, partial(Path.write_text, data=json.dumps(report.seconds)))
    # The time of a training that was interrupted is not known
    seconds = json.loads(timing.read_text()) if timing.exists() else None
    towns = {name: search_town(settings, retriever) for name, settings in run.tests.items()}
    result = {"variant": run.variant, "seed": run.seed, "seconds": seconds, "towns": towns}
    write_whole(run.result_file, partial(Path.write_text, data=json.dumps(result, indent=2)))
    if not keep:
        shutil.rmtree(run.folder)
    return result


def search_town(settings: RegionSettings, folder: Path) -> Values:
    """Index a town, encode its photos, and measure how well a retriever finds them."""
    with open_index(settings, StatewideRetriever.load(folder)) as index:
        index.encode(settings.encoding.batch_size)
        table = open_photo_table(settings).inside(index.cells.grid, index.cells)
        encode_queries(index.cache, index.towers, table, batch_size=settings.encoding.batch_size)
    expert, cache = open_region_expert(settings, folder)
    frame, mask = cache.queries.encoded(), expert.cell_mask
    query = cache.queries.embedding(frame.index.to_numpy(np.int64))[:, 0].astype(np.float32)
    latitude, longitude = (frame[name].to_numpy(float) for name in ("latitude", "longitude"))
    found = evaluate_retrieval(cache.area, mask, cache.cells, query, latitude, longitude, radii=[RADIUS])
    kept = reachable(cache.area, mask, latitude, longitude)[0]
    query, latitude, longitude = query[kept], latitude[kept], longitude[kept]
    right = np.bincount(matches(cache.area, mask, latitude, longitude, RADIUS).photo, minlength=len(query))
    row, col = cache.area.cells_at(latitude, longitude)
    losses = [
        negative_log_likelihood(
            expert.posterior(torch.from_numpy(query[part]), LocateOptions()), mask, row[part], col[part]
        )
        for part in np.array_split(np.arange(len(query)), range(BATCH, len(query), BATCH))
    ]
    return {
        "photos": found.photos,
        "cells": found.cells,
        "recall": {str(k): found.recall[RADIUS][k].value for k in TOP},
        "chance": {str(k): float(chance(right, found.cells, k).mean()) for k in TOP},
        "nll": float(np.concatenate(losses).mean()),
        "nll_chance": float(np.log(found.cells)),
    }


def chance(right: NDArray[np.int64], cells: int, k: int) -> NDArray[np.float64]:
    """(photo,) probability that k of the cells, drawn without replacement, contain one of the `right` (photo,) ones."""
    drawn = np.arange(min(k, cells))
    return 1 - np.prod(np.maximum(cells - right[:, None] - drawn, 0) / (cells - drawn), axis=1)


def to_markdown(results: Sequence[Values]) -> str:
    """One row per variant and town: mean and sample standard deviation over seeds, and chance in parentheses."""
    seeds = len({result["seed"] for result in results})
    over = f"mean ± standard deviation over {seeds} seeds" if seeds > 1 else "one seed"
    lines = [
        f"Made towns that nothing was trained on; recall at k within {RADIUS:g} m in %, and the negative "
        f"log-likelihood of the true cell in nats; {over}, chance in parentheses. The figures compare settings, and do "
        "not show how well they do in a real state.",
        "",
        "| variant | town | photos | cells | " + " | ".join(f"recall@{k}" for k in TOP) + " | NLL | training, s |",
        "|---" * (6 + len(TOP)) + "|",
    ]
    for variant in dict.fromkeys(result["variant"] for result in results):
        runs = [result for result in results if result["variant"] == variant]
        seconds = [run["seconds"] for run in runs]
        time = "interrupted" if None in seconds else _mean(seconds, 0)
        for town in runs[0]["towns"]:
            each = [run["towns"][town] for run in runs]
            recall = [
                f"{_mean([100 * one['recall'][str(k)] for one in each], 1)} ({100 * each[0]['chance'][str(k)]:.1f})"
                for k in TOP
            ]
            nll = f"{_mean([one['nll'] for one in each], 2)} ({each[0]['nll_chance']:.2f})"
            cells = [variant, town, str(each[0]["photos"]), str(each[0]["cells"]), *recall, nll, time]
            lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines)


def _mean(values: Sequence[float], digits: int) -> str:
    text = f"{np.mean(values):.{digits}f}"
    return text if len(values) == 1 else f"{text} ± {np.std(values, ddof=1):.{digits}f}"


def plan(
    training: Sequence[Path],
    tests: Sequence[Path],
    *,
    raster: str,
    variants: Path | None,
    seeds: int,
    cell: float,
    overrides: Sequence[str],
    encoder: Path | None,
    tiny: bool,
    output: Path,
) -> list[Run]:
    """All runs, whose settings are valid. Arguments are the options of `main`.

    Raises:
        JziError: a town, a variant or a setting cannot be used.
    """
    places = [town.resolve() for town in (*training, *tests)]
    if twice := [place for place in places if places.count(place) > 1]:
        raise ConfigError(f"{twice[0]} is given twice: test in towns of other seeds than those that are trained on")
    names = [town.resolve().name for town in tests]
    if len(set(names)) < len(names):
        raise ConfigError(f"two towns of --test have the same name, among {', '.join(names)}: rename one")
    if encoder and tiny:
        raise ConfigError("--encoder and --tiny name two encoders: give one of them")
    shared, chosen = read_variants(variants, SECTIONS) if variants else ((), [Variant("as given")])
    base = [f"region.cell_m={cell}"]
    if encoder:
        path = json.dumps(str(encoder.resolve()))
        base += [f"statewide.photo_model={path}", f"statewide.map_model={path}"]
    towns = [open_town(town, raster, output) for town in (*training, *tests)]
    split = len(training)
    return [
        plan_run(variant, seed, towns[:split], towns[split:], (*base, *shared, *overrides), output, tiny)
        for variant in chosen
        for seed in range(seeds)
    ]


@click.command()
@click.argument("training", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--test", "towns", multiple=True, required=True, type=click.Path(path_type=Path, exists=True),
              help="A town that nothing was trained on; may be repeated.")  # fmt: skip
@click.option("--variants", type=click.Path(path_type=Path, exists=True), help="TOML file of variants.")
@click.option("--seeds", default=1, show_default=True, type=click.IntRange(1), help="Trainings of each variant.")
@click.option("--cell", default=20.0, show_default=True, help="Side of a cell, metres.")
@click.option("--encoder", type=click.Path(path_type=Path, exists=True),
              help="Folder of the encoder of both towers.  [default: that of the method, from the hub]")  # fmt: skip
@click.option("--tiny", is_flag=True, help="Start from tiny encoders with random weights, of the run's seed.")
@click.option("--map", "raster", default="ortho.tif", show_default=True, help="Name of the raster in each town.")
@click.option("--set", "overrides", multiple=True, metavar="SECTION.NAME=VALUE", help="A setting of all variants.")
@click.option("--keep", is_flag=True, help="Keep retrievers and indexes of complete runs.")
@click.option("-o", "--output", default="statewide-runs", show_default=True, type=click.Path(path_type=Path))
@device_option
def main(
    training: tuple[Path, ...],
    towns: tuple[Path, ...],
    variants: Path | None,
    seeds: int,
    cell: float,
    encoder: Path | None,
    tiny: bool,
    raster: str,
    overrides: tuple[str, ...],
    keep: bool,
    output: Path,
) -> None:
    """Train on the towns TRAINING with every variant and seed, and print recall in the towns of --test."""
    try:
        runs = plan(
            training, towns, raster=raster, variants=variants, seeds=seeds, cell=cell, overrides=overrides,
            encoder=encoder, tiny=tiny, output=output,
        )  # fmt: skip
        check_towers(runs)
        results = [run_once(run, keep) for run in runs]
    except JziError as error:
        click.echo(f"statewide: {error}", err=True)
        sys.exit(2)
    click.echo(to_markdown(results))


if __name__ == "__main__":
    main()
