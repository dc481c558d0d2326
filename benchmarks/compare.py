"""The zoom against flat retrieval: the same encoder, photos, map and number of photo encodings, side by side.

    python -m benchmarks.city city --heights HEIGHT.tif --size 2560 --encoder ENCODER --image-size 84
    python -m benchmarks.compare city --passes 6            # 20 000 photos on two cores: two to three hours
    python -m benchmarks.compare city --passes 30           # the whole city and a pretrained encoder: for a GPU

CITY is any folder with a jzi.toml. Every way trains the encoder of jzi.toml for as many passes over its training
photos; then cells or tiles and the held-out photos are encoded, and answered off the cache. Each step is a command of
jzi in a process of its own; what is done is not done again, so that an interrupted comparison goes on. Memory is the
peak of the process that answers.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import platform
import resource
import shlex
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from jzi.decode.expert import ZoomExpert
from jzi.locate.location import LocateOptions
from jzi.retrieve.expert import RetrievalExpert
from jzi.store.cache import FeatureCache
from jzi.workspace.settings import load_settings

from .scaling import median_ms

#: Repeats of a measurement, of which the median is told.
REPEATS = 50


@dataclass(frozen=True)
class Way:
    """One row of the table: what is trained, and how it is answered."""

    name: str
    folder: str
    cache: str
    train: str
    prepare: tuple[str, ...]
    evaluate: str
    approximate: bool = False


def ways(passes: int, rate: float, retriever_rate: float, stage_two: str, settings: tuple[str, ...]) -> list[Way]:
    """The rows of the table.

    Args:
        passes: over the training photos.
        rate: learning rate of the zoom's joint training.
        retriever_rate: of the others'.
        stage_two: settings of the training off the cache that follows.
        settings: "section.name=value"; those of `finetune` are for the retrievers too.
    """
    shared = [each for each in settings if each.startswith("finetune.")]
    zoom = _sets([each for each in settings if not each.startswith("retriever.")])
    retriever = _sets(
        [
            *(each.replace("finetune.", "retriever.") for each in shared),
            *(each for each in settings if each.startswith("retriever.")),
        ]
    )
    found = []
    folder = "compare/zoom"
    train = f"finetune -o {folder} --set finetune.epochs={passes} --set finetune.learning_rate={rate} {zoom}"
    cache = f"--set encoder.name={folder}/encoder --set cache.path={folder}.zarr"
    stages = {
        # No step is taken: the decoder that was trained with the encoder gets its map and its temperatures
        "joint": f"--set train.init={folder} --set train.epochs=1 --set train.learning_rate=0",
        "on": f"--set train.init={folder} {stage_two}",
    }
    for stage, settings_of in stages.items():
        model = f"{cache} --set model.path={folder}-{stage}"
        prepare = (f"encode-map {cache}", f"encode-queries {cache}", f"train-decoder {model} {settings_of}")
        label = "zoom" if stage == "joint" else "zoom, then stage two"
        found.append(Way(label, f"{folder}-{stage}", f"{folder}.zarr", train, prepare, f"evaluate {model}"))
    for method in ("sample4geo", "infonce", "transgeo"):
        folder = f"compare/{method}"
        train = (
            f"train-retriever --method {method} -o {folder} --set retriever.epochs={passes} "
            f"--set retriever.learning_rate={retriever_rate} {retriever}"
        )
        prepare = (f"index --retriever {folder} --hnsw", f"encode-queries --retriever {folder}")
        cache, evaluate = f"{folder}/index.zarr", f"evaluate --retriever {folder}"
        found.append(Way(method, folder, cache, train, prepare, evaluate))
        found.append(
            Way(f"{method}, HNSW", folder, cache, train, prepare, f"{evaluate} --approximate", approximate=True)
        )
    return found


def _sets(settings: list[str]) -> str:
    return " ".join(f"--set {each}" for each in settings)


def run(city: Path, command: str) -> dict[str, Any]:
    """What a command of jzi printed as JSON, and what it took; run in a process of its own, once."""
    kept = city / "compare" / "steps" / f"{hashlib.sha256(command.encode()).hexdigest()[:16]}.json"
    if kept.exists():
        return json.loads(kept.read_text())
    click.echo(f"$ jzi {command}", err=True)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        found = pool.submit(_run, str(city), command).result()
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps({"command": command, **found}))
    return found


def _run(city: str, command: str) -> dict[str, Any]:
    from jzi.cli import main

    with contextlib.chdir(city), contextlib.redirect_stdout(io.StringIO()) as out:
        began = time.monotonic()
        main.main([*shlex.split(command), "--json"], prog_name="jzi", standalone_mode=False)
        seconds = time.monotonic() - began
    printed = json.loads(out.getvalue().strip().splitlines()[-1])
    return {"printed": printed, "wall_s": seconds}


def measure_locating(city: str, way: Way) -> dict[str, Any]:
    """Cost of an answer when the photo has been encoded; in a process of its own."""
    with contextlib.chdir(city):
        retrieval = "--retriever" in way.evaluate
        queries = FeatureCache.open(way.cache).queries
        frame = queries.encoded()
        rows = frame.index[frame["split"] == "test"].to_numpy(np.int64)[:REPEATS]
        query = torch.from_numpy(queries.embedding(rows)[:, 0]).float()
        expert = (
            RetrievalExpert.load(way.folder, approximate=way.approximate) if retrieval else ZoomExpert.load(way.folder)
        )
        found: dict[str, Any] = {}
        if isinstance(expert, RetrievalExpert):
            index = expert.index
            found["database"] = index.bytes
            vectors = query.numpy()
            looked = len(index)
            if way.approximate:
                import faiss

                faiss.cvar.hnsw_stats.reset()  # type: ignore[attr-defined]
                index.search(vectors, 10)
                looked = faiss.cvar.hnsw_stats.ndis // len(vectors)  # type: ignore[attr-defined]
            found["lookups"], found["flops"] = looked, 2 * looked * vectors.shape[1]
            found["ms"] = median_ms(lambda row: index.search(vectors[row : row + 1], 10), len(rows))
        else:
            table = expert.table
            found["database"] = table.embedding.numel() * table.embedding.element_size()
            found["lookups"] = expert.area.levels
            query = query.to(table.device)
            greedy = LocateOptions(estimate="greedy")
            with FlopCounterMode(display=False) as counter:
                expert.posterior(query[:1], greedy)
            found["flops"] = counter.get_total_flops()
            found["ms"] = median_ms(lambda row: expert.posterior(query[row : row + 1], greedy), len(rows))
        found["memory"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return found


def encoder_flops(city: Path) -> int:
    """Of one photo through the encoder of jzi.toml."""
    from jzi.workspace.open import load_encoder

    encoder = load_encoder(load_settings(city / "jzi.toml"))
    height, width = encoder.photo_shape
    with FlopCounterMode(display=False) as counter:
        encoder.encode_photos(np.zeros((1, height, width, 3), np.uint8))
    return counter.get_total_flops()


@click.command()
@click.argument("city", type=click.Path(path_type=Path, exists=True))
@click.option("--passes", default=6, show_default=True, help="Over the training photos, of every way.")
@click.option("--learning-rate", default=7e-4, show_default=True, help="Of the zoom's joint training.")
@click.option("--retriever-learning-rate", default=7e-4, show_default=True)
@click.option("--stage-two", default="--set train.epochs=10 --set train.learning_rate=1e-4", show_default=True)
@click.option("--set", "common", multiple=True, metavar="SECTION.NAME=VALUE",
              help="Of the training; those of finetune are for the retrievers too.")  # fmt: skip
@click.option("--only", help="Ways to run, by the beginnings of their names, separated by commas.")
def main(
    city: Path,
    passes: int,
    learning_rate: float,
    retriever_learning_rate: float,
    stage_two: str,
    common: tuple[str, ...],
    only: str | None,
) -> None:
    """Train and measure every way; print the table."""
    settings = load_settings(city / "jzi.toml")
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} CPU threads"
    rows = []
    for way in ways(passes, learning_rate, retriever_learning_rate, stage_two, common):
        if only and not way.name.startswith(tuple(only.split(","))):
            continue
        trained = run(city, way.train)
        prepared = [run(city, command) for command in way.prepare]
        evaluation = run(city, way.evaluate)["printed"]
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            cost = pool.submit(measure_locating, str(city), way).result()
        rows.append((way, trained, prepared, evaluation, cost))
    photos = trained["printed"]["train"]
    click.echo(
        f"\n{settings.pyramid.size:g} m, cells of {settings.pyramid.cell_size:g} m, {photos} training photos x "
        f"{passes} passes, encoder {settings.encoder.name} at {settings.encoder.image_size} px; {device}, "
        f"{platform.machine()}, torch {torch.__version__}, faiss {version('faiss-cpu')}"
    )
    click.echo(f"one photo through the encoder: {encoder_flops(city) / 1e6:.0f} MFLOP, the same for all\n")
    click.echo("| | 40 m | 50 m | 100 m | cell among 1 / 5 / 10 |\n|---|---|---|---|---|")
    for way, _, _, evaluation, _ in rows:
        recall = " | ".join(_interval(evaluation[f"recall@{radius}m"]) for radius in (40, 50, 100))
        first = [evaluation.get(f"recall@{k}") for k in (1, 5, 10)]
        ranks = " / ".join(f"{100 * each['value']:.1f}" for each in first if each) or _exact(evaluation)
        click.echo(f"| {way.name} | {recall} | {ranks} % |")
    click.echo(
        "\n| | training photos/s | training | encoding, stage two | database | look-ups | MFLOP | ms | memory |\n"
        "|---|---|---|---|---|---|---|---|---|"
    )
    for way, trained, prepared, _, cost in rows:
        rest = sum(step["wall_s"] for step in prepared)
        training = trained["printed"]
        click.echo(
            f"| {way.name} | {training['samples_per_s']:.0f} | {training['seconds'] / 60:.1f} min | "
            f"{rest / 60:.1f} min | "
            f"{cost['database'] / 1e6:.2f} MB | {cost['lookups']} | {cost['flops'] / 1e6:.2f} | {cost['ms']:.2f} | "
            f"{cost['memory'] / 1e9:.2f} GB |"
        )


def _interval(each: dict[str, float]) -> str:
    return f"{100 * each['value']:.1f} % ({100 * each['low']:.1f} .. {100 * each['high']:.1f})"


def _exact(evaluation: dict[str, Any]) -> str:
    return f"{100 * evaluation['sequence_accuracy']['value']:.1f}"


if __name__ == "__main__":
    main()
