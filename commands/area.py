"""`init`, `tile` and `info`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import click

from jzi.commands.datasets.init_datasets import init_vigor_m_command, statewide_sources
from jzi.commands.datasets.pairs import init_pairs_command
from jzi.commands.shared.common import (
    UsageError,
    allow_outside_option,
    json_option,
    list_disagreements,
    list_rejected,
    number,
    print_result,
    print_warnings,
    split_by_option,
)
from jzi.commands.shared.failures import usage_error
from jzi.errors import JziError
from jzi.locate.ranges import CELL, DISTANCE, PIXELS

if TYPE_CHECKING:
    from jzi.store.geometry.region import Rule
    from jzi.store.photos.photo_table import PhotoTable
    from jzi.workspace.pairs import Dataset
    from jzi.workspace.setup.settings import Settings


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False), default=".")
@click.option("--map", "rasters", multiple=True, help="A raster, glob or folder of rasters; may be repeated.")
@click.option("--queries", help="A folder of photos with EXIF positions, or a CSV or Parquet table.")
@click.option("--photos", help="The folder of a table's photos.  [default: that of the table]")
@split_by_option
@allow_outside_option
@click.option("--encoder", help="A Hugging Face id or a folder.  [default: facebook/dinov2-base]")
@click.option("--image-size", type=number(PIXELS), help="Side of the encoder's input, pixels.  [default: 384]")
@click.option("--preset", help="A published area, such as just-zoom-in-dc.")
@click.option(
    "--center", type=float, nargs=2, metavar="LAT LON", help="Centre of the area.  [default: centre of the map]"
)
@click.option("--size", type=number(DISTANCE), help="Side of the area, metres.  [default: it contains the map]")
@click.option("--grid", type=click.IntRange(2, 16), help="A tile has grid x grid children.  [default: 4]")
@click.option("--levels", type=click.IntRange(1, 12),
              help="Zoom steps.  [default: the fewest with cells of at most 40 m]")  # fmt: skip
@click.option("--map-crs", help="CRS of rasters without one.")
@click.option("--remote", is_flag=True, help="Trust rasters that name other files, URLs or services: VRTs, XML of GDAL "
              "(map.remote).")  # fmt: skip
@click.option("--region", type=click.Path(path_type=Path, dir_okay=False),
              help="A GeoJSON file: set up state-wide retrieval in its polygons instead of a square.")  # fmt: skip
@click.option("--cell", type=number(CELL), help="Side of a region's cells, metres.  [default: 30]")
@click.option("--rule", type=click.Choice(["touch", "corners", "centre"]),
              help="Cells of a region: that it touches, or with a corner or the centre in it.  "
              "[default: touch]")  # fmt: skip
@click.option("--dataset", help="A published data set: just-zoom-in or vigor-m instead of a map, the photos of "
              "statewide, or pairs of photos and aerial images: vigor, cvusa, cvact, kitti.")  # fmt: skip
@click.option("--area", type=click.Choice(["same", "cross"]), help="Protocol of VIGOR and VIGOR-M.  [default: same]")
@click.option("--data", type=click.Path(path_type=Path), help="The folder of that data set.  [default: FOLDER]")
@click.option("--download", is_flag=True, help="Download it from the Hugging Face hub first.")
@click.option("--set", "set", multiple=True, metavar="SECTION.NAME=VALUE",
              help="Also write this setting, such as train.epochs=10; may be repeated.")  # fmt: skip
@click.option("--force", is_flag=True, help="Replace an existing jzi.toml.")
@json_option
def init(
    folder: Path,
    rasters: tuple[str, ...],
    force: bool,
    dataset: str | None,
    data: Path | None,
    download: bool,
    region: Path | None,
    cell: float | None,
    rule: Rule | None,
    area: Literal["same", "cross"] | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Set up a working directory: write jzi.toml for an area.

    With --region, or with --map and --cell, the area is a region for state-wide retrieval; without --map, its cells are
    only counted and nothing is written. With a --dataset of pairs, UnifyGeo is trained and evaluated on it.
    """
    if dataset in ("vigor", "cvusa", "cvact", "kitti"):
        given = {**options, "map": rasters, "region": region, "cell": cell, "rule": rule, "download": download}
        if unused := [f"--{name.replace('_', '-')}" for name, value in given.items() if value]:
            raise UsageError(f"{', '.join(unused)} is not for a data set of pairs: leave it out")
        init_pairs_command(folder, cast("Dataset", dataset), data, area, force, as_json)
        return
    if dataset == "vigor-m":
        others = {**options, "rasters": rasters, "region": region, "cell": cell, "rule": rule, "download": download}
        init_vigor_m_command(folder, data, area, force, as_json, **others)
        return
    if area:
        raise UsageError("--area is VIGOR's protocol: add --dataset vigor or vigor-m, or leave it out")
    if dataset == "statewide":
        _init_region(folder, rasters, region, cell, rule, force, as_json, statewide=True, data=data, download=download,
                     **options)  # fmt: skip
        return
    if region or cell or rule:
        _init_region(folder, rasters, region, cell, rule, force, as_json, dataset=dataset, data=data, download=download,
                     **options)  # fmt: skip
        return
    from jzi.commands.shared.reports import split_text
    from jzi.store.plain import plain
    from jzi.workspace.setup.init import dataset_settings, new_settings
    from jzi.workspace.setup.settings import FILE
    from jzi.workspace.setup.settings_file import with_settings, write_settings
    from jzi.workspace.zoom import describe_area

    if (folder / FILE).exists() and not force:
        raise UsageError(f"{folder / FILE} exists: edit it, or pass --force to replace it")
    more = options.pop("set")
    table: PhotoTable | None
    if dataset:
        settings, table = dataset_settings(dataset, folder, data, download, rasters=rasters, **options)
    elif data or download:
        raise UsageError("--data and --download require --dataset")
    else:
        settings, table = new_settings(folder, rasters, **options)
    settings = with_settings(settings, more)
    lines = [describe_area(settings.pyramid)]
    if table is not None:
        table = table.inside(settings.pyramid)
        list_rejected(table.rejected, "photos cannot be used")
        list_disagreements(table)
        lines.append(f"{len(table)} photos in the area, {split_text(table.split)}")
    write_settings(settings)
    warnings = _data_warnings(settings, None if table is None else len(table))
    print_warnings(warnings)
    steps = "" if folder == Path() else f"cd {folder}; "
    steps += "jzi encode-map" if settings.map.rasters else "set map.rasters and queries.table in it"
    lines.append(f"wrote {folder / FILE}; next: {steps}")
    if table is None and settings.map.rasters:
        lines.append("no photos to train with: set queries.table, or use a model of other areas with `jzi transfer`")
    photos = None if table is None else len(table)
    values = {"pyramid": settings.pyramid, "photos": photos, "file": folder / FILE, "warnings": warnings}
    print_result(as_json, plain(values), "\n".join(lines))


def _data_warnings(settings: Settings, photos: int | None) -> tuple[str, ...]:
    """Warnings about the map and the photos of a new area."""
    from jzi.workspace.inputs import open_imagery
    from jzi.workspace.setup.data_checks import map_warnings, photo_warnings

    found: tuple[str, ...] = ()
    if settings.map.rasters:
        with open_imagery(settings) as imagery:
            found = map_warnings(imagery, settings.pyramid, settings.encoder.image_size)
    return found if photos is None else (*found, *photo_warnings(photos))


def _init_region(
    folder: Path,
    rasters: tuple[str, ...],
    region: Path | None,
    cell: float | None,
    rule: Rule | None,
    force: bool,
    as_json: bool,
    statewide: bool = False,
    **options: Any,
) -> None:
    """Set up a working directory for a region, or count its cells if there is no map.

    With `statewide`, its photos are those of the state-wide data set in the folder `data`.
    """
    from jzi.commands.shared.reports import split_text
    from jzi.workspace.regions.region import describe_region, region_settings, write_footprint
    from jzi.workspace.setup.settings import FILE
    from jzi.workspace.setup.settings_file import with_settings, write_settings

    data, more = options.pop("data") if statewide else None, options.pop("set")
    names = ("dataset", "data", "download", "encoder", "image_size", "preset", "center", "size", "grid", "levels")
    if unused := [f"--{name.replace('_', '-')}" for name in names if options.pop(name, None)]:
        raise UsageError(f"{', '.join(unused)} is not for a region: leave it out")
    if rasters and (folder / FILE).exists() and not force:
        raise UsageError(f"{folder / FILE} exists: edit it, or pass --force to replace it")
    if statewide:
        rasters, outside, *photos = statewide_sources(folder, data, rasters, options)
        options["remote"] = options["remote"] or outside
        options["queries"], options["photos"] = photos
    settings, cells, table = region_settings(folder, region, cell, rule, rasters, **options)
    settings = with_settings(settings, more)
    values, text = describe_region(cells, settings.statewide.width)
    lines = [text]
    if table is not None:
        table = table.inside(cells.grid, cells)
        list_rejected(table.rejected, "photos cannot be used")
        values["photos"] = len(table)
        lines.append(f"{len(table)} photos in the region, {split_text(table.split)}")
    if statewide:
        lines.append("published results are of whole states that were not trained on: `jzi evaluate --split all`")
    if rasters:
        write_footprint(settings, cells)
        write_settings(settings)
        values["file"] = str(folder / FILE)
        steps = "" if folder == Path() else f"cd {folder}; "
        steps += "jzi train-retriever --method statewide, or jzi index --retriever RETRIEVER with one that you have"
        lines.append(f"wrote {folder / FILE}; next: {steps}")
    print_result(as_json, values, "\n".join(lines))


@click.command(context_settings={"ignore_unknown_options": True})  # a minus sign is not an option
@click.argument("latitude", type=float)
@click.argument("longitude", type=float)
@click.option("--preset", help="A published area.  [default: the area of jzi.toml, else just-zoom-in-dc]")
@click.option("--config", "config_file", type=click.Path(path_type=Path), default="jzi.toml", show_default=True)
@json_option
def tile(latitude: float, longitude: float, preset: str | None, config_file: Path, as_json: bool) -> None:
    """Print the zoom to a position: path, tiles and bounds."""
    from jzi.workspace.zoom import area_for_tile, describe_zoom

    values, text = describe_zoom(area_for_tile(preset, config_file), latitude, longitude)
    print_result(as_json, values, text)


@click.command(short_help="Describe caches, models, encoders and rasters.")
@click.argument("paths", nargs=-1, required=True)
@json_option
def info(paths: tuple[str, ...], as_json: bool) -> None:
    """Describe caches, models, encoders and rasters, in any order; paths or URLs.

    For several paths, also check whether they belong together; the exit code is 1 if they do not, or if some of them
    cannot be described.
    """
    from jzi.commands.shared.reports import info_text
    from jzi.workspace.describe import describe, disagreements

    descriptions = []
    for path in paths:
        try:
            description = describe(path)
        except JziError as error:
            if len(paths) == 1:
                raise
            click.echo(f"jzi: {usage_error(error).message}", err=True)
            continue
        descriptions.append(description)
        values = {"path": description.path, "kind": description.kind, **description.facts}
        print_result(as_json, values, info_text(description))
    if len(descriptions) > 1:
        problems = disagreements(descriptions)
        print_result(
            as_json,
            {"belong_together": not problems, "problems": problems},
            "They belong together." if not problems else "They do not belong together: " + "; ".join(problems) + ".",
        )
        if problems:
            raise SystemExit(1)
    if len(descriptions) < len(paths):
        raise SystemExit(1 if descriptions else 2)
