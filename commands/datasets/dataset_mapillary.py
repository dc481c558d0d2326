"""`jzi dataset mapillary`: photos of Mapillary in an area, as a data set."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from jzi.commands.datasets.dataset_options import counts_text, filter_options, prepare_options
from jzi.commands.shared.common import UsageError, json_option, number, print_result
from jzi.locate.ranges import LATITUDE, LONGITUDE, Range

if TYPE_CHECKING:
    from jzi.curate.options import FilterOptions, PrepareOptions
    from jzi.mapillary.collect import Estimate, MapillaryReport
    from jzi.store.geometry.region import Region

#: Counts of photos.
_PHOTOS = Range(1, 10**9, whole=True)


@click.command("mapillary", short_help="Collect photos of an area from Mapillary.")
@click.option("--area", type=click.Path(path_type=Path), metavar="JZI.TOML", help="The area of a jzi.toml.")
@click.option("--bbox", nargs=4, type=(number(LONGITUDE), number(LATITUDE), number(LONGITUDE), number(LATITUDE)),
              metavar="WEST SOUTH EAST NORTH", help="A box, in degrees.")  # fmt: skip
@click.option("--region", type=click.Path(path_type=Path), metavar="GEOJSON", help="The polygons of a GeoJSON file.")
@click.option("-o", "--output", "folder", type=click.Path(path_type=Path, file_okay=False), required=True,
              metavar="FOLDER", help="Folder of the data set.")  # fmt: skip
@click.option("--limit", type=number(_PHOTOS), metavar="N", help="Download N photos at most, chosen at random.")
@click.option("--thumbnail", type=click.Choice(["1024", "2048", "original"]), default="2048", show_default=True,
              help="Size of downloads, pixels of the longer side. Crops of panoramas need originals.")  # fmt: skip
@click.option("--keep-originals", is_flag=True, help="Also keep photos as they were downloaded, so that they can be "
              "prepared again in another way.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="End with an estimate of the download, for which up to 8 photos are "
              "downloaded and kept.")  # fmt: skip
@filter_options
@prepare_options
@json_option
def mapillary_command(
    area: Path | None,
    bbox: tuple[float, float, float, float] | None,
    region: Path | None,
    folder: Path,
    limit: int | None,
    thumbnail: Any,
    keep_originals: bool,
    dry_run: bool,
    filters: FilterOptions,
    preparation: PrepareOptions,
    as_json: bool,
) -> None:
    """Collect the photos of an area from Mapillary, filtered and prepared.

    Needs a token in the environment variable MAPILLARY_TOKEN: register an application at
    https://www.mapillary.com/dashboard/developers. Run the same command again to resume, or with other filters: nothing
    is asked for twice.
    """
    from jzi.mapillary.collect import MapillaryRequest, collect_mapillary

    if sum(each is not None for each in (area, bbox, region)) != 1:
        raise UsageError("give one of --area JZI.TOML, --bbox WEST SOUTH EAST NORTH and --region GEOJSON")
    request = MapillaryRequest(
        _region(area, bbox, region), folder, filters, preparation, thumbnail, limit, keep_originals, dry_run
    )
    report = collect_mapillary(request, lambda estimate: click.echo(_estimate_text(estimate), err=True))
    values = {**vars(report), "counts": [each.model_dump() for each in report.counts]}
    print_result(as_json, values, _report_text(report))
    if report.failed:
        click.echo(f"jzi: {_photos(report.failed)} could not be downloaded: run the command again later", err=True)
        raise SystemExit(1)


def _region(area: Path | None, bbox: tuple[float, float, float, float] | None, file: Path | None) -> Region:
    from jzi.mapillary.regions import box_region, outline
    from jzi.store.geometry.region import Region

    if bbox is not None:
        return box_region(*bbox)
    if file is not None:
        return Region.read(file)
    from jzi.workspace.setup.settings import RegionSettings
    from jzi.workspace.setup.settings_file import load_area

    settings = load_area(area or Path())
    if isinstance(settings, RegionSettings):
        return Region.read(settings.path(settings.region.file))
    return outline(settings.pyramid, str(area))


def _estimate_text(estimate: Estimate) -> str:
    if not estimate.photos:
        return "nothing to download: the photos are there"
    text = f"to download: {_photos(estimate.photos)}"
    if estimate.bytes is not None:
        text += f", about {_size(estimate.bytes)}"
    if estimate.seconds is not None:
        text += f", about {_time(estimate.seconds)}"
    if estimate.bytes is not None and estimate.bytes > estimate.free:
        text += f"; only {_size(estimate.free)} are free on the disk"
    return text


def _report_text(report: MapillaryReport) -> str:
    lines = [counts_text(report.found, list(report.counts), report.kept), *report.notes]
    if report.dry_run:
        return "\n".join([*lines, "nothing more was downloaded (--dry-run): run the command without it"])
    downloaded = f"{_photos(report.downloaded)} downloaded ({_size(report.bytes)}, {report.requests:,} requests)"
    return "\n".join(
        [
            *lines,
            downloaded,
            f"wrote {_photos(report.kept)} to {report.folder}; next: jzi dataset split {report.folder}",
        ]
    )


def _photos(count: int) -> str:
    return f"{count:,} photo{'' if count == 1 else 's'}"


def _size(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
