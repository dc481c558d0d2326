"""`jzi dataset filter`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from jzi.commands.datasets.dataset_options import counts_text, filter_options, prepare_options
from jzi.commands.shared.common import UsageError, allow_outside_option, json_option, number, print_result, was_given
from jzi.locate.ranges import Range

if TYPE_CHECKING:
    from jzi.curate.options import FilterOptions, PrepareOptions
    from jzi.curate.own_photos import FilterReport

#: Threads that read photos.
THREADS = Range(1, 256, whole=True)

#: Options that need a copy of the photos.
_OF_COPIES = ("size", "crops", "crop_fov", "crop_seed", "undistort")


@click.command("filter", short_help="Make a data set of your own photos.")
@click.argument("source", type=click.Path(path_type=Path), metavar="FOLDER|TABLE")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The folder of the data set.")
@click.option("--photos", type=click.Path(path_type=Path), metavar="FOLDER",
              help="Folder of a table's photos.  [default: that of the table]")  # fmt: skip
@allow_outside_option
@click.option("--licence", default="unknown", show_default=True, help="Licence of the photos, for the data card.")
@click.option("--attribution", default="", help="The credit line that it asks for.")
@filter_options
@prepare_options
@click.option("--copy/--no-copy", default=True, show_default=True,
              help="Write prepared photos to images/, or have the table name the photos where they are.")  # fmt: skip
@click.option("--threads", type=number(THREADS), help="Threads that read photos.  [default: one per core]")
@click.option("--dry-run", is_flag=True, help="Print the counts and write no data set; measurements are kept.")
@json_option
def filter_command(
    source: Path,
    output: Path,
    photos: Path | None,
    allow_outside: bool,
    licence: str,
    attribution: str,
    filters: FilterOptions,
    preparation: PrepareOptions,
    copy: bool,
    threads: int | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Make a data set of your own photos: filter, undistort, crop panoramas, resize.

    FOLDER holds photos with GPS positions in EXIF, in sub-folders too, which count as drives; TABLE is a CSV or Parquet
    file with the columns id or path, latitude and longitude, and optionally heading, hfov, captured_at, drive, device,
    camera, camera_parameters, computed_latitude and computed_longitude.

    Each filter takes "off" for its threshold. photos.csv is for `jzi init --queries`, rejected.csv has the reason for
    each other photo. A run that was killed goes on where it was, and other thresholds measure no photo twice.

    Faces and number plates are not blurred: do that before you publish photos. Nothing is sent anywhere.
    """
    from jzi.curate.own_photos import OwnPhotos, filter_own_photos
    from jzi.store.printable import printable

    if not copy:
        given = [name for name in _OF_COPIES if was_given(name)]
        if given and not (given == ["undistort"] and not preparation.undistort):
            raise UsageError(f"--{given[0].replace('_', '-')} changes photos, --no-copy leaves them: give one of them")
    own = OwnPhotos(source, photos, licence, attribution, allow_outside)
    report = filter_own_photos(own, output, filters, preparation, copy=copy, dry_run=dry_run, threads=threads)
    if not report.kept:
        click.echo(counts_text(report.found, report.counts, report.kept), err=True)
        worst = max(report.counts, key=lambda each: each.removed).name
        example = next(each for each in report.rejected if each.filter == worst)
        raise UsageError(
            f"no photo of {source} is left, most were removed by the filter {worst!r} ({printable(example.id)}: "
            f"{printable(example.reason)}): loosen its threshold, or set it to off"
        )
    values = {
        "found": report.found,
        "filters": [each.model_dump() for each in report.counts],
        "kept": report.kept,
        "folder": str(output) if report.written else None,
    }
    print_result(as_json, values, _text(report, output, licence))


def _text(report: FilterReport, output: Path, licence: str) -> str:
    lines = [counts_text(report.found, report.counts, report.kept)]
    if report.written:
        lines.append(f"wrote {output / 'photos.csv'}; the reasons for the others are in {output / 'rejected.csv'}")
        if licence == "unknown":
            lines.append("the licence of the photos is recorded as unknown: give --licence if you publish them")
        lines.append("faces and number plates are not blurred; nothing was sent anywhere")
    else:
        lines.append("dry run: no data set was written")
    return "\n".join(lines)
