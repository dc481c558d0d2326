"""Flat retrieval: `train-retriever` and `index`."""

from __future__ import annotations

from pathlib import Path

import click

from jzi.commands.shared.common import (
    UsageError,
    json_option,
    list_rejected,
    print_result,
    ray_cluster,
    ray_option,
    report_left_out,
    settings_options,
)
from jzi.commands.training.statewide import index_region_command, train_region_command


@click.command("train-retriever")
@settings_options
@click.option(
    "--method",
    help="On a square: sample4geo (the default), infonce or transgeo. "
    "On a region: statewide (the default), sample4geo, safa or transgeo.",
)
@click.option("--also", "others", multiple=True, type=click.Path(path_type=Path), metavar="FOLDER",
              help="Also train on another region: a folder with a jzi.toml; may be repeated.")  # fmt: skip
@click.option("-o", "--output", default="retriever", show_default=True, help="The folder to write the retriever to.")
@json_option
def train_retriever_command(
    config_file: Path,
    overrides: tuple[str, ...],
    method: str | None,
    others: tuple[Path, ...],
    output: str,
    as_json: bool,
) -> None:
    """Train retrieval of cells.

    On a square, the encoder for flat retrieval, a baseline for the zoom. On a region (`jzi init --region`), two towers
    for state-wide retrieval, which then locate photos in any region.

    An interrupted run is resumed; a finished one is not repeated. Run `jzi index` afterwards to encode the cells.
    """
    from jzi.workspace.setup.settings_file import is_region, load_settings

    if is_region(config_file):
        train_region_command(config_file, overrides, method, others, output, as_json)
        return
    if others or method == "statewide":
        raise UsageError(
            f"{'--also' if others else '--method statewide'} is for regions, and {config_file} describes a square: set "
            "one up with `jzi init --region REGION.geojson`"
        )
    if method is not None:
        overrides = (*overrides, f"retriever.method={method}")
    settings = load_settings(config_file, overrides, training=("queries", "retriever"))
    from jzi.commands.shared.reports import training_text
    from jzi.encode.device import processes
    from jzi.store.plain import plain
    from jzi.train.encoders.retriever import train_retriever
    from jzi.workspace.inputs import load_encoder, open_imagery, open_photo_table

    table = open_photo_table(settings).inside(settings.pyramid)
    with open_imagery(settings) as imagery:
        report = train_retriever(
            imagery,
            table,
            load_encoder(settings),
            settings.path(output),
            settings.retriever,
            settings=settings.to_toml(),
        )
    if not processes().is_main_process:
        return
    list_rejected(table.rejected, "photos left out")
    list_rejected(report.unreadable, "photos cannot be read")
    report_left_out(report)
    print_result(as_json, {**plain(report), "unreadable": len(report.unreadable)}, training_text(report))
    if not as_json:
        click.echo(f"next: jzi index --retriever {output}; jzi encode-queries --retriever {output}")


@click.command(short_help="Encode the cells that a retriever searches.")
@settings_options
@click.option("--retriever", type=click.Path(path_type=Path), default="retriever", show_default=True,
              help="A folder that train-retriever wrote, or in a region also USER/NAME of the hub.")  # fmt: skip
@click.option("--hnsw", is_flag=True, help="Also build an HNSW graph for approximate search.")
@click.option("--faiss", type=click.Choice(["auto", "hnsw", "ivf-pq", "ivf-rabitq"]),
              help="Of a region, also build an index for approximate search.")  # fmt: skip
@click.option("--copy", is_flag=True, help="Also copy the vectors beside the lists of ivf-pq or ivf-rabitq, which are "
              "then searched 20 to 50 times as fast. It takes as much disk as the vectors, 2 bytes per feature: 52 GB "
              "for 25 million cells of 1024 features.")  # fmt: skip
@click.option("--lance", is_flag=True, help="Of a region, also write a LanceDB table for approximate search, beside "
              "the cache: on object storage too.")  # fmt: skip
@click.option("--export", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE.parquet",
              help="Of a region, also write key, position and vector of every cell.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Of a region, only estimate what encoding takes.")
@ray_option
@json_option
def index(
    config_file: Path,
    overrides: tuple[str, ...],
    retriever: Path,
    hnsw: bool,
    faiss: str | None,
    copy: bool,
    lance: bool,
    export: Path | None,
    dry_run: bool,
    ray: str | None,
    as_json: bool,
) -> None:
    """Encode the cells of the map that the retriever's index lacks.

    In a region, the index is the cache of its jzi.toml, and the retriever may have been trained anywhere.
    """
    from jzi.workspace.models.hub import local_folder
    from jzi.workspace.setup.settings_file import is_region, load_settings

    retriever = local_folder(retriever)
    if is_region(config_file):
        kind = "hnsw" if hnsw and not faiss else faiss
        if copy and kind in (None, "hnsw"):
            raise UsageError("--copy is for inverted lists, a graph has the vectors: add --faiss ivf-rabitq, or auto")
        index_region_command(config_file, overrides, retriever, kind, copy, lance, export, dry_run, ray, as_json)
        return
    if dry_run or faiss or copy or lance or export:
        raise UsageError("--dry-run, --faiss, --copy, --lance and --export are for regions: leave them out")

    settings = load_settings(config_file, overrides, training=())
    from jzi.commands.shared.reports import cells_text
    from jzi.encode.device import processes
    from jzi.encode.encode_cells import index_cells
    from jzi.retrieve.retriever import Retriever
    from jzi.retrieve.search import build_graph, save_graph
    from jzi.store.model_folder import lock_model
    from jzi.store.plain import plain
    from jzi.vectors.index_files import import_faiss
    from jzi.workspace.inputs import open_cache_of, open_imagery

    if hnsw:
        import_faiss()  # fails before anything is encoded
    model = Retriever.load(retriever)
    if model.published:
        raise UsageError(f"{retriever} was published with its index: there is nothing to encode")
    if model.pyramid != settings.pyramid:
        raise UsageError(f"{retriever} was trained on another area than that of {config_file}: train one on this area")
    with ray_cluster(ray) as on_nodes, open_imagery(settings) as imagery:
        encoder, context, size = model.load_encoder(), model.context, settings.encoder.batch_size
        cache = open_cache_of(model.cache_path, settings.pyramid, encoder, imagery)
        run_units = on_nodes(cache, lambda work: work.CellWork.of(cache, encoder, imagery, context, size))
        report = index_cells(cache, encoder, imagery, context, batch_size=size, run_units=run_units)
    if not processes().is_main_process:
        return
    if hnsw:
        _, _, embedding = cache.cells.read()
        with lock_model(model.folder):
            save_graph(build_graph(embedding), model.hnsw_path)
    values = {**plain(report), "cache": model.cache_path, "graph": str(model.hnsw_path) if hnsw else None}
    graph = f", and a graph for approximate search: {model.hnsw_path}" if hnsw else ""
    print_result(as_json, values, f"{cells_text(report)}: {model.cache_path}{graph}")
