"""Flat retrieval: `train-retriever` and `index`."""

from __future__ import annotations

from pathlib import Path

import click

from jzi.commands.common import UsageError, json_option, list_rejected, print_result, report_left_out, settings_options


@click.command("train-retriever")
@settings_options
@click.option("--method", help="sample4geo, infonce or transgeo.  [default: sample4geo]")
@click.option("-o", "--output", default="retriever", show_default=True, help="The folder to write the retriever to.")
@json_option
def train_retriever_command(
    config_file: Path, overrides: tuple[str, ...], method: str | None, output: str, as_json: bool
) -> None:
    """Train the encoder for flat retrieval, a baseline for the zoom.

    An interrupted run is resumed; a finished one is not repeated. Run `jzi index` afterwards to encode the cells.
    """
    from jzi.workspace.settings import load_settings

    if method is not None:
        overrides = (*overrides, f"retriever.method={method}")
    settings = load_settings(config_file, overrides, training=("queries", "retriever"))
    from jzi.commands.reports import training_text
    from jzi.encode.device import processes
    from jzi.store.plain import plain
    from jzi.train.retriever import train_retriever
    from jzi.workspace.open import load_encoder, open_imagery, open_photo_table

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


@click.command()
@settings_options
@click.option("--retriever", type=click.Path(path_type=Path), default="retriever", show_default=True,
              help="A folder that train-retriever wrote.")  # fmt: skip
@click.option("--hnsw", is_flag=True, help="Also build an HNSW graph for approximate search.")
@json_option
def index(config_file: Path, overrides: tuple[str, ...], retriever: Path, hnsw: bool, as_json: bool) -> None:
    """Encode the cells of the map that the retriever's index lacks."""
    from jzi.workspace.settings import load_settings

    settings = load_settings(config_file, overrides, training=())
    from jzi.commands.reports import cells_text
    from jzi.encode.device import processes
    from jzi.encode.encode_cells import index_cells
    from jzi.retrieve.retriever import Retriever
    from jzi.retrieve.search import build_graph, import_faiss, save_graph
    from jzi.store.model_folder import lock_model
    from jzi.store.plain import plain
    from jzi.workspace.open import open_cache_of, open_imagery

    if hnsw:
        import_faiss()  # fails before anything is encoded
    model = Retriever.load(retriever)
    if model.pyramid != settings.pyramid:
        raise UsageError(f"{retriever} was trained on another area than that of {config_file}: train one on this area")
    with open_imagery(settings) as imagery:
        encoder = model.load_encoder()
        cache = open_cache_of(model.cache_path, settings.pyramid, encoder, imagery)
        report = index_cells(cache, encoder, imagery, model.context, batch_size=settings.encoder.batch_size)
    if not processes().is_main_process:
        return
    if hnsw:
        _, _, embedding = cache.cells.read()
        with lock_model(model.folder):
            save_graph(build_graph(embedding), model.hnsw_path)
    values = {**plain(report), "cache": model.cache_path, "graph": str(model.hnsw_path) if hnsw else None}
    graph = f", and a graph for approximate search: {model.hnsw_path}" if hnsw else ""
    print_result(as_json, values, f"{cells_text(report)}: {model.cache_path}{graph}")
