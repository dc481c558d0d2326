"""Measure how the cost of locating grows with the map, for the zoom and for flat retrieval.

    python -m benchmarks.zoom_and_retrieval [--plot scaling.png]

Maps of 2.5 to 40 km have random features of DINOv2-base's width and cells of at most 40 m; photos are already encoded.
Time and memory do not depend on the values of the features. Medians of one run on one device are printed. The features
have 32 intrinsic dimensions, as the HNSW graph is slow to build over pure noise.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from jzi.benchmarks.device import device_option
from jzi.decode.config import DecoderConfig
from jzi.decode.decoder import ZoomDecoder
from jzi.decode.expert import default_beams
from jzi.decode.search import zoom
from jzi.decode.tile_table import TileTable
from jzi.encode.device import best_device
from jzi.retrieve.search import CellIndex, build_graph
from jzi.store.features.map_embeddings import ENCODED, MapEmbeddings
from jzi.store.geometry.pyramid import Pyramid

WIDTH, CELL, INTRINSIC = 768, 40.0, 32


def features(count: int, rng: np.random.Generator) -> np.ndarray:
    """Return random features of INTRINSIC dimensions, (count, WIDTH) float16."""
    basis = np.random.default_rng(0).normal(size=(INTRINSIC, WIDTH)).astype(np.float32)
    parts = [
        (rng.normal(size=(min(65_536, count - start), INTRINSIC)).astype(np.float32) @ basis).astype(np.float16)
        for start in range(0, count, 65_536)
    ]
    return np.concatenate(parts)


def median_ms(work: Callable[[int], Any], repeats: int) -> float:
    times = []
    for number in range(repeats):
        start = time.perf_counter()
        work(number)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(1e3 * (time.perf_counter() - start))
    return float(np.median(times))


def measure(size: float, decoder: ZoomDecoder, repeats: int, with_graph: bool) -> dict[str, dict[str, float]]:
    """Return milliseconds per photo, megabytes of the database and images to encode, of each method."""
    rng, device = np.random.default_rng(1), decoder.output_head.weight.device
    pyramid = Pyramid.around(0, 0, size)
    sides = [pyramid.tiles_per_side(level) for level in range(pyramid.levels + 1)]
    embedding = tuple(features(side**2, rng).reshape(side, side, WIDTH) for side in sides[:-1])
    table = TileTable(
        MapEmbeddings(pyramid, embedding, tuple(np.full((side, side), ENCODED, np.uint8) for side in sides)), device
    )
    photos = features(repeats, rng)
    query = torch.from_numpy(photos).to(device)
    beams = default_beams(pyramid)
    tiles, megabytes = len(table.embedding), 2 * table.embedding.numel() / 1e6
    results = {
        "zoom, greedy": {"ms": median_ms(lambda row: zoom(decoder, table, query[row : row + 1]), repeats)},
        "zoom, 64 beams": {
            "ms": median_ms(lambda row: zoom(decoder, table, query[row : row + 1], min(64, beams)), repeats)
        },
    }
    for values in results.values():
        values |= {"MB": megabytes, "images": tiles}
    side = round(size / CELL)
    cells = features(side**2, rng)
    row, col = np.divmod(np.arange(side**2), side)
    exact = CellIndex(row, col, cells)
    results["retrieval, exact"] = {
        "ms": median_ms(lambda number: exact.search(photos[number : number + 1], 10), repeats),
        "MB": exact.bytes / 1e6,
        "images": side**2,
    }
    if with_graph:
        graph = CellIndex(row, col, cells, build_graph(cells))
        results["retrieval, HNSW"] = {
            "ms": median_ms(lambda number: graph.search(photos[number : number + 1], 10), repeats),
            "MB": graph.bytes / 1e6,
            "images": side**2,
        }
    return results


def draw(results: dict[float, dict[str, dict[str, float]]], path: Path) -> None:
    """Plot each quantity over the side of the map, both logarithmic."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4), layout="constrained")
    for axes, (quantity, label) in zip(
        figure.subplots(1, 3),
        (("ms", "milliseconds per encoded photo"), ("MB", "database, MB"), ("images", "images to encode")),
        strict=True,
    ):
        for method in next(iter(results.values())):
            points = [(size / 1000, costs[method][quantity]) for size, costs in results.items() if method in costs]
            axes.loglog(*zip(*points, strict=True), marker="o", label=method)
        axes.set(xlabel="side of the map, km", title=label)
        axes.set_xticks([size / 1000 for size in results], [f"{size / 1000:g}" for size in results])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    axes.legend(loc="upper left")
    figure.savefig(path, dpi=120)


@click.command()
@click.option("--sizes", default="2500,5000,10000,20000,40000", show_default=True, help="Sides of the maps, metres.")
@click.option("--repeats", default=30, show_default=True)
@click.option("--graph-to", default=10_000.0, show_default=True, help="Largest map with an HNSW graph, metres.")
@click.option("--plot", type=click.Path(path_type=Path), help="Write a plot to this file.")
@device_option
def main(sizes: str, repeats: int, graph_to: float, plot: Path | None) -> None:
    """Measure and print the table."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} CPU threads"
    click.echo(f"features {WIDTH}, decoder of 6 blocks, {device}, torch {torch.__version__}")
    torch.manual_seed(0)
    decoder = ZoomDecoder(DecoderConfig(width=WIDTH)).eval().to(best_device())
    results: dict[float, dict[str, dict[str, float]]] = {}
    click.echo("| map | method | ms | database | images to encode |\n|---|---|---|---|---|")
    for size in map(float, sizes.split(",")):
        results[size] = measure(size, decoder, repeats, size <= graph_to)
        for method, values in results[size].items():
            columns = f"{values['ms']:.2f} | {values['MB']:.1f} MB | {values['images']:.0f}"
            click.echo(f"| {size / 1000:g} km | {method} | {columns} |")
    if plot:
        draw(results, plot)


if __name__ == "__main__":
    main()
