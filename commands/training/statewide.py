"""State-wide retrieval: what `train-retriever` and `index` do in the working directory of a region."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from jzi.commands.shared.common import UsageError, gallery_text, list_rejected, print_result, ray_cluster

if TYPE_CHECKING:
    from jzi.evaluate.retrieval import Distance
    from jzi.workspace.setup.settings import RegionSettings

#: Share of pixels without imagery that is reported: those of cells at the edge of a map.
MUCH_EMPTY = 0.05


def train_region_command(
    config_file: Path,
    overrides: tuple[str, ...],
    method: str | None,
    others: tuple[Path, ...],
    output: str,
    as_json: bool,
) -> None:
    """Train a state-wide retriever on one or several regions."""
    from jzi.workspace.setup.settings import FILE
    from jzi.workspace.setup.settings_file import load_region

    if method is not None:
        overrides = (*overrides, f"statewide.method={method}")
    areas = [load_region(config_file, overrides, training=("queries", "statewide"))]
    areas += [load_region(folder / FILE) for folder in others]
    from jzi.commands.shared.reports import training_text
    from jzi.encode.device import processes
    from jzi.store.plain import plain
    from jzi.workspace.regions.statewide import train_region

    main = processes().is_main_process

    def warn(text: str) -> None:
        if main:
            click.echo(f"warning: {text}", err=True)

    report, rejected = train_region(areas, areas[0].path(output), warn)
    if not main:
        return
    list_rejected(rejected, "photos left out")
    list_rejected(report.unreadable, "photos cannot be used")
    if report.unreachable:
        click.echo(f"{report.unreachable} photos are on cells without imagery and left out", err=True)
    print_result(as_json, {**plain(report), "unreadable": len(report.unreadable)}, training_text(report))
    if not as_json:
        click.echo(f"next, in any region: jzi index --retriever {output}; jzi encode-queries --retriever {output}")


def index_region_command(
    config_file: Path,
    overrides: tuple[str, ...],
    retriever: Path,
    kind: str | None,
    copy: bool,
    lance: bool,
    export: Path | None,
    dry_run: bool,
    ray: str | None,
    as_json: bool,
) -> None:
    """Encode the cells of a region that its index lacks; then build what else is asked for.

    With `copy`, inverted lists get a copy of the vectors.
    """
    from jzi.workspace.setup.settings_file import load_region

    settings = load_region(config_file, overrides, training=("statewide",))
    from jzi.commands.shared.reports import size_text, time_text
    from jzi.encode.device import processes
    from jzi.retrieve.statewide import StatewideRetriever
    from jzi.store.plain import plain, share_text
    from jzi.vectors.index_files import import_faiss
    from jzi.vectors.lance_index import import_lance
    from jzi.workspace.regions.statewide import build_faiss, build_lance, export_cells, open_index

    if export and not export.parent.is_dir():  # reported before anything is encoded, as what is not installed
        raise UsageError(f"there is no folder {export.parent} to write {export.name} into")
    if kind:
        import_faiss()
    if lance:
        import_lance()
    state = processes()
    with ray_cluster(ray) as on_nodes, open_index(settings, StatewideRetriever.load(retriever)) as index:
        expected = index.estimate(state.num_processes) if state.is_main_process else None
        if expected and expected.cells:
            if expected.reading.warning:
                click.echo(f"warning: {expected.reading.warning}", err=True)
            time = time_text(expected.seconds)
            click.echo(
                f"{expected.cells:,} cells to encode, {expected.images:,} images from "
                f"{expected.source_pixels / 1e6:,.0f} million pixels: about {time}, {size_text(expected.bytes)}",
                err=True,
            )
        if dry_run:
            print_result(as_json, plain(expected), f"nothing encoded; without --dry-run: {settings.cache_path}")
            return
        parts = index.cache, index.towers, index.crops, index.cells.runs, settings.encoding.batch_size
        run_units = on_nodes(index.cache, lambda work: work.RegionWork.of(*parts))
        report = index.encode(settings.encoding.batch_size, run_units)
        reach = index.crops.reach
    if not state.is_main_process:
        return
    if report.empty > MUCH_EMPTY:
        click.echo(
            f"warning: {share_text(report.empty)} of the pixels of the cells' images have no imagery, which should "
            f"reach {reach:.0f} m beyond the region",
            err=True,
        )
    values = {**plain(report), "cache": settings.cache_path}
    lines = [
        f"{report.encoded:,} cells encoded, {report.reused:,} were there, {report.nodata:,} without imagery, "
        f"{size_text(report.bytes)}: {settings.cache_path}"
    ]
    if kind:
        built = build_faiss(settings, kind, copy=copy)
        info, size = built.info, built.disk_bytes
        values["faiss"] = {"folder": str(built.folder), "kind": info.kind, "copied": info.copied, "bytes": size}
        copied = " with a copy of the vectors" if info.copied else ""
        lines.append(f"{info.kind} index{copied} of {size_text(size)}: {built.folder}")
    if lance:
        table = build_lance(settings)
        values["lance"] = table.uri
        lines.append(f"LanceDB table: {table.uri}")
    if export:
        values["exported"] = export_cells(settings, export)
        lines.append(f"{values['exported']:,} vectors: {export}")
    print_result(as_json, values, "\n".join(lines))


def evaluate_region_command(
    config_file: Path,
    overrides: tuple[str, ...],
    retriever: Path,
    split: str | None,
    radii: tuple[float, ...] | None,
    distance: Distance,
    time_zone: str | None,
    min_bin: int,
    zoom: Path | None,
    radius: float,
    as_json: bool,
    gallery: Path | None = None,
    count: int = 1,
) -> None:
    """Measure recall at k of a state-wide retriever among all cells of a region, and its fusion with a zoom.

    `gallery` is a page to write of `count` photos.
    """
    from jzi.workspace.setup.settings_file import load_region

    settings = load_region(config_file, overrides, training=())
    from jzi.commands.shared.tables import retrieval_table
    from jzi.evaluate.published import STATEWIDE
    from jzi.workspace.regions.evaluation import evaluate_region

    evaluation, name = evaluate_region(
        settings, retriever, split, radii=radii, distance=distance, time_zone=time_zone, min_photos=min_bin
    )
    title = (
        f"{evaluation.photos} photos of the {name} split among {evaluation.cells:,} cells, distances on the {distance}"
    )
    values = {"split": name, **evaluation.to_dict()}
    text = retrieval_table(evaluation, title, STATEWIDE[:5])
    if zoom:
        figures, table = _fusion_figures(settings, retriever, zoom, name, radius)
        values["experts"] = figures
        text += "\n\n" + table
    if gallery:
        from jzi.workspace.regions.evaluation import write_region_failures

        size = write_region_failures(gallery, settings, retriever, name, count=count, radius=radius)
        text += gallery_text(gallery, size, values)
    print_result(as_json, values, text)


def _fusion_figures(
    settings: RegionSettings, retriever: Path, square: Path, split: str, radius: float
) -> tuple[dict[str, Any], str]:
    """The figures of the zoom, the cells and their fusion on photos that both have encoded, for JSON and as text."""
    from jzi.commands.shared.tables import experts_table, experts_values
    from jzi.evaluate.experts import evaluate_posteriors
    from jzi.evaluate.metrics import RADII
    from jzi.locate.answer.location import LocateOptions
    from jzi.workspace.regions.region_index import fusion_file
    from jzi.workspace.regions.zoom_fusion import ZoomedRegion
    from jzi.workspace.regions.zoom_weights import ZoomFusion

    file = fusion_file(settings)
    fusion = ZoomFusion.read(file)
    both = ZoomedRegion.open(settings, retriever, square, fusion.experts)
    fusion.check(file, retriever, both.model)
    photos, expert, options = both.photos(split), both.expert(fusion.weights), LocateOptions(radius=radius)
    figures = evaluate_posteriors(
        lambda query: expert.posteriors(query, options), expert.cell_mask, photos, radius=radius
    )
    title = f"{len(photos)} photos that both have encoded, and neither was trained on"
    return {"photos": len(photos), **experts_values(figures)}, f"{title}\n{experts_table(figures, RADII, radius)}"
