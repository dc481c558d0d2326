"""Compare the zoom with flat retrieval on the same encoder, photos, map and number of photo encodings.

    python -m benchmarks.city city --heights HEIGHT.tif --size 2560 --encoder ENCODER --image-size 84
    python -m benchmarks.compare city --passes 6            # 20 000 photos on two cores: 2 to 3 hours
    python -m benchmarks.compare city --passes 30           # full-size city and pretrained encoder, on a GPU

CITY is any folder with a jzi.toml. Every method trains the encoder of jzi.toml for the same number of passes over the
training photos; then cells or tiles and the held-out photos are encoded, and the photos are located from the cache.
The zoom is trained without and with a contrastive loss over all levels beside its own (`finetune.contrast`).
Each step is a jzi command in a separate process; finished steps are not repeated, so an interrupted comparison resumes.
Memory is the peak of the process that locates. All experts read the zoom's embeddings of photos; the terminal cells
that two of them read are encoded in addition.
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

from jzi.benchmarks.device import device_option
from jzi.decode.expert import ZoomExpert
from jzi.decode.search import zoom as search
from jzi.locate.answer.location import LocateOptions
from jzi.retrieve.expert import RetrievalExpert
from jzi.store.cache.feature_cache import FeatureCache
from jzi.workspace.setup.settings_file import load_settings

from .zoom_and_retrieval import median_ms

#: Repeats of a measurement; the median is reported.
REPEATS = 50


@dataclass(frozen=True)
class Method:
    """One row of the table: the commands that train, prepare and evaluate a method."""

    name: str
    folder: str
    cache: str
    train: str
    prepare: tuple[str, ...]
    evaluate: str
    approximate: bool = False


def methods(passes: int, rate: float, retriever_rate: float, stage_two: str, settings: tuple[str, ...]) -> list[Method]:
    """Return the rows of the table.

    Args:
        passes: passes over the training photos.
        rate: learning rate of the zoom's joint training.
        retriever_rate: learning rate of the retrievers.
        stage_two: settings of the training from the cache that follows the joint training; empty for none.
        settings: "section.name=value"; settings of `finetune` apply to the retrievers too.
    """
    shared = [setting for setting in settings if setting.startswith("finetune.")]
    zoom = _options([setting for setting in settings if not setting.startswith("retriever.")])
    retriever = _options(
        [
            *(setting.replace("finetune.", "retriever.") for setting in shared),
            *(setting for setting in settings if setting.startswith("retriever.")),
        ]
    )
    rows = []
    for name, folder, contrast in (("zoom", "compare/zoom", 0.0), ("zoom with contrast", "compare/contrast", 1.0)):
        train = (
            f"finetune -o {folder} --set finetune.epochs={passes} --set finetune.learning_rate={rate} "
            f"--set finetune.contrast={contrast} {zoom}"
        )
        cache = f"--set encoder.name={folder}/encoder --set cache.path={folder}.zarr"
        # Learning rate 0: the jointly trained decoder only gets its map and temperatures
        stages = {"joint": "--set train.epochs=1 --set train.learning_rate=0", "on": stage_two}
        for stage, settings_of in stages.items():
            if not settings_of:
                continue
            model = f"{cache} --set model.path={folder}-{stage}"
            start = f"train-decoder {model} --set train.init={folder} {settings_of}"
            prepare = (f"encode-map --cells {cache}", f"encode-queries {cache}", start)
            label = name if stage == "joint" else f"{name}, then stage two"
            rows.append(Method(label, f"{folder}-{stage}", f"{folder}.zarr", train, prepare, f"evaluate {model}"))
    for loss in ("sample4geo", "infonce", "transgeo"):
        folder = f"compare/{loss}"
        train = (
            f"train-retriever --method {loss} -o {folder} --set retriever.epochs={passes} "
            f"--set retriever.learning_rate={retriever_rate} {retriever}"
        )
        prepare = (f"index --retriever {folder} --hnsw", f"encode-queries --retriever {folder}")
        cache, evaluate = f"{folder}/index.zarr", f"evaluate --retriever {folder}"
        rows.append(Method(loss, folder, cache, train, prepare, evaluate))
        rows.append(
            Method(f"{loss}, HNSW", folder, cache, train, prepare, f"{evaluate} --approximate", approximate=True)
        )
    return rows


def _options(settings: list[str]) -> str:
    return " ".join(f"--set {setting}" for setting in settings)


def run(city: Path, command: str) -> dict[str, Any]:
    """Run a jzi command once in a separate process; return its JSON output and wall time."""
    result_file = city / "compare" / "steps" / f"{hashlib.sha256(command.encode()).hexdigest()[:16]}.json"
    if result_file.exists():
        return json.loads(result_file.read_text())
    click.echo(f"$ jzi {command}", err=True)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        result = pool.submit(_run, str(city), command).result()
    result_file.parent.mkdir(parents=True, exist_ok=True)
    result_file.write_text(json.dumps({"command": command, **result}))
    return result


def _run(city: str, command: str) -> dict[str, Any]:
    from jzi.cli import main

    with contextlib.chdir(city), contextlib.redirect_stdout(io.StringIO()) as out:
        start = time.monotonic()
        main.main([*shlex.split(command), "--json"], prog_name="jzi", standalone_mode=False)
        seconds = time.monotonic() - start
    printed = json.loads(out.getvalue().strip().splitlines()[-1])
    return {"printed": printed, "wall_s": seconds}


def measure_locating(city: str, method: Method) -> dict[str, Any]:
    """Measure the cost of locating an encoded photo; called in a separate process."""
    with contextlib.chdir(city):
        retrieval = "--retriever" in method.evaluate
        queries = FeatureCache.open(method.cache).queries
        frame = queries.encoded()
        rows = frame.index[frame["split"] == "test"].to_numpy(np.int64)[:REPEATS]
        query = torch.from_numpy(queries.embedding(rows)[:, 0]).float()
        expert = (
            RetrievalExpert.load(method.folder, approximate=method.approximate)
            if retrieval
            else ZoomExpert.load(method.folder)
        )
        cost: dict[str, Any] = {}
        if isinstance(expert, RetrievalExpert):
            index = expert.index
            cost["database"] = index.bytes
            vectors = query.numpy()
            lookups = len(index)
            if method.approximate:
                import faiss

                faiss.cvar.hnsw_stats.reset()  # type: ignore[attr-defined]
                index.search(vectors, 10)
                lookups = faiss.cvar.hnsw_stats.ndis // len(vectors)  # type: ignore[attr-defined]
            cost["lookups"], cost["flops"] = lookups, 2 * lookups * vectors.shape[1]
            cost["ms"] = median_ms(lambda row: index.search(vectors[row : row + 1], 10), len(rows))
        else:
            table = expert.table
            cost["database"] = table.embedding.numel() * table.embedding.element_size()
            cost["lookups"] = expert.area.levels
            query = query.to(table.device)
            greedy = LocateOptions(estimate="greedy")
            with FlopCounterMode(display=False) as counter:
                search(expert.model.decoder, table, query[:1])  # torch does not count products of packed weights
            cost["flops"] = counter.get_total_flops()
            cost["ms"] = median_ms(lambda row: expert.posterior(query[row : row + 1], greedy), len(rows))
        cost["memory"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return cost


def encoder_flops(city: Path) -> int:
    """Return the floating-point operations of encoding one photo with the encoder of jzi.toml."""
    from jzi.workspace.inputs import load_encoder

    encoder = load_encoder(load_settings(city / "jzi.toml"))
    height, width = encoder.photo_shape
    with FlopCounterMode(display=False) as counter:
        encoder.encode_photos(np.zeros((1, height, width, 3), np.uint8))
    return counter.get_total_flops()


@click.command()
@click.argument("city", type=click.Path(path_type=Path, exists=True))
@click.option("--passes", default=6, show_default=True, help="Passes of every method over the training photos.")
@click.option("--learning-rate", default=7e-4, show_default=True, help="Learning rate of the zoom's joint training.")
@click.option("--retriever-learning-rate", default=7e-4, show_default=True, help="Of the retrievers.")
@click.option("--stage-two", default="--set train.epochs=10 --set train.learning_rate=1e-4", show_default=True,
              help="Settings of the zoom's training from the cache, after the joint one; empty for none.")  # fmt: skip
@click.option("--set", "common", multiple=True, metavar="SECTION.NAME=VALUE",
              help="Settings of the training; those of finetune apply to the retrievers too.")  # fmt: skip
@click.option("--only", help="Comma-separated prefixes of the names of the methods to run.")
@device_option
def main(
    city: Path,
    passes: int,
    learning_rate: float,
    retriever_learning_rate: float,
    stage_two: str,
    common: tuple[str, ...],
    only: str | None,
) -> None:
    """Train and measure every method; print the table."""
    settings = load_settings(city / "jzi.toml")
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} CPU threads"
    rows = []
    for method in methods(passes, learning_rate, retriever_learning_rate, stage_two, common):
        if only and not method.name.startswith(tuple(only.split(","))):
            continue
        trained = run(city, method.train)
        prepared = [run(city, command) for command in method.prepare]
        evaluation = run(city, method.evaluate)["printed"]
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            cost = pool.submit(measure_locating, str(city), method).result()
        rows.append((method, trained, prepared, evaluation, cost))
    photos = trained["printed"]["train"]
    click.echo(
        f"\n{settings.pyramid.size:g} m, cells of {settings.pyramid.cell_size:g} m, {photos} training photos x "
        f"{passes} passes, encoder {settings.encoder.name} at {settings.encoder.image_size} px; {device}, "
        f"{platform.machine()}, torch {torch.__version__}, faiss {version('faiss-cpu')}"
    )
    click.echo(f"one photo through the encoder: {encoder_flops(city) / 1e6:.0f} MFLOP, the same for all\n")
    click.echo("| | 40 m | 50 m | 100 m | cell among 1 / 5 / 10 |\n|---|---|---|---|---|")
    for method, _, _, evaluation, _ in rows:
        for name, figures in evaluation.get("experts", {}).items():  # the default answer of each, and of their fusions
            cross_view = "" if name in ("vpr", "fused") else ", cross-view"
            click.echo(f"| {method.name}: {name}{cross_view} | {_recalls(figures)} | |")
        if "experts" not in evaluation:
            ranks = " / ".join(f"{100 * evaluation[f'recall@{k}']['value']:.1f}" for k in (1, 5, 10))
            click.echo(f"| {method.name} | {_recalls(evaluation)} | {ranks} % |")
    click.echo(
        "\n| | training photos/s | training | encoding, stage two | database | look-ups | MFLOP | ms | memory |\n"
        "|---|---|---|---|---|---|---|---|---|"
    )
    for method, trained, prepared, _, cost in rows:
        rest = sum(step["wall_s"] for step in prepared)
        training = trained["printed"]
        click.echo(
            f"| {method.name} | {training['samples_per_s']:.0f} | {training['seconds'] / 60:.1f} min | "
            f"{rest / 60:.1f} min | "
            f"{cost['database'] / 1e6:.2f} MB | {cost['lookups']} | {cost['flops'] / 1e6:.2f} | {cost['ms']:.2f} | "
            f"{cost['memory'] / 1e9:.2f} GB |"
        )


def _recalls(figures: dict[str, Any]) -> str:
    return " | ".join(_interval(figures[f"recall@{radius}m"]) for radius in (40, 50, 100))


def _interval(recall: dict[str, float]) -> str:
    return f"{100 * recall['value']:.1f} % ({100 * recall['low']:.1f} .. {100 * recall['high']:.1f})"


if __name__ == "__main__":
    main()
