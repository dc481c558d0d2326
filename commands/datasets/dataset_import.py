"""`jzi dataset import`."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from jzi.commands.shared.common import UsageError, json_option, number, print_result, with_options
from jzi.locate.ranges import DISTANCE, HEADING, LATITUDE, LONGITUDE, SECONDS, Range

if TYPE_CHECKING:
    from jzi.curate.folder import DatasetFolder

_FOLDER = click.Path(path_type=Path, file_okay=False)
_FILE = click.Path(path_type=Path, dir_okay=False)

#: Seconds by which a camera's clock may be off: 100 years either way.
_OFFSET = Range(-SECONDS.high, SECONDS.high)


class _Kinds(click.Group):
    """A group that says which kind a folder or file looks like, where one is given instead of a kind."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args[0] not in self.commands and Path(args[0]).exists():
            kind = looks_like(Path(args[0]))
            kinds = ", ".join(self.commands)
            hint = f"it looks like {kind}: jzi dataset import {kind} {args[0]}" if kind else f"the kinds are {kinds}"
            raise UsageError(f"give the kind of recording before {args[0]}; {hint}")
        return super().resolve_command(ctx, args)


def looks_like(path: Path) -> str:
    """The kind of a recording by its files; empty if it is none that is known."""
    if path.is_dir():
        if (path / "reconstruction.json").is_file():
            return "opensfm"
        drives = ("oxts/data", "*/oxts/data", "*/*/oxts/data")
        return "kitti" if any(next(path.glob(pattern), None) for pattern in drives) else ""
    if path.suffix.lower() in (".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi"):
        return "video"
    return "trajectory" if path.suffix.lower() in (".gpx", ".csv", ".txt", ".tum") else ""


@click.group("import", cls=_Kinds)
def import_command() -> None:
    """Make a data set of a recording with positions.

    \b
    jzi dataset import opensfm DIR -o photos/
    jzi dataset import kitti DIR -o photos/
    jzi dataset import trajectory TRACK.gpx --images DIR -o photos/
    jzi dataset import video FILE.mp4 --gpx TRACK.gpx -o photos/

    Photos are linked into the folder where the file system allows it, else copied. An import that was interrupted is
    continued by the same command.
    """


def _output_options(command: Callable) -> Callable:
    options = (
        click.option("-o", "--output", required=True, type=_FOLDER, help="The folder of the data set."),
        click.option("--licence", default="unknown", help='Of the photos, such as "CC BY 4.0", for the data card.'),
        json_option,
    )
    return with_options(command, options)


_direction_option = click.option(
    "--direction", type=number(HEADING), default=0.0, show_default=True,
    help="Where the camera looks, degrees clockwise from the direction of travel.",
)  # fmt: skip
_max_gap_option = click.option(
    "--max-gap", type=number(SECONDS), default=10.0, show_default=True,
    help="Longest time between two points of the track that is bridged, seconds.",
)  # fmt: skip


@import_command.command("opensfm", short_help="Import a reconstruction of OpenSfM.")
@click.argument("folder", type=_FOLDER)
@click.option("--images", type=_FOLDER, help="The folder of the photos.  [default: images/ in FOLDER]")
@_output_options
def opensfm_command(folder: Path, images: Path | None, output: Path, licence: str, as_json: bool) -> None:
    """Import a reconstruction of OpenSfM: positions, headings and fields of view of its shots."""
    from jzi.recordings.opensfm import import_opensfm

    _report(import_opensfm(folder, output, images=images, licence=licence), as_json)


@import_command.command("kitti", short_help="Import KITTI raw data.")
@click.argument("folder", type=_FOLDER)
@click.option("--camera", type=click.Choice(["image_00", "image_01", "image_02", "image_03"]), default="image_02",
              show_default=True, help="Whose photos; 02 and 03 see colours.")  # fmt: skip
@_output_options
def kitti_command(folder: Path, camera: str, output: Path, licence: str, as_json: bool) -> None:
    """Import KITTI raw data: the folder of all dates, of one date, or of one drive."""
    from jzi.recordings.kitti_raw import import_kitti

    _report(import_kitti(folder, output, camera=camera, licence=licence), as_json)


@import_command.command("trajectory", short_help="Import photos with a trajectory: GPX, CSV, poses.")
@click.argument("file", type=_FILE)
@click.option("--images", required=True, type=_FOLDER, help="The folder of the photos.")
@click.option("--times", type=_FILE, help="The photos' times: one a line in the order of the names, or 'time name'.  "
              "[default: the names if they are times, else EXIF]")  # fmt: skip
@click.option("--offset", type=number(_OFFSET), default=0.0, show_default=True,
              help="Seconds to add to the photos' times, such as for a clock on local time.")  # fmt: skip
@click.option("--origin", type=float, nargs=2, metavar="LAT LON", help="Where the frame of TUM or KITTI poses begins.")
@click.option("--heading", type=number(HEADING), help="Where its forward axis points, degrees clockwise from north: "
              "z of KITTI poses, x of TUM.")  # fmt: skip
@click.option("--forward", type=click.Choice(["z", "x"]), default="z", show_default=True,
              help="Axis of a TUM pose along which the camera looks.")  # fmt: skip
@_direction_option
@_max_gap_option
@_output_options
def trajectory_command(
    file: Path,
    images: Path,
    times: Path | None,
    offset: float,
    origin: tuple[float, float] | None,
    heading: float | None,
    forward: Any,
    direction: float,
    max_gap: float,
    output: Path,
    licence: str,
    as_json: bool,
) -> None:
    """Import a folder of photos with a trajectory: GPX, CSV (time, latitude, longitude), TUM, or poses of KITTI."""
    from jzi.recordings.trajectories import Frame, TrajectoryOptions, import_trajectory

    if (origin is None) != (heading is None):
        raise UsageError("--origin and --heading belong together: give both for poses in metres")
    if origin is not None:
        LATITUDE.check("the latitude of --origin", origin[0])
        LONGITUDE.check("the longitude of --origin", origin[1])
    frame = Frame(*origin, heading) if origin is not None and heading is not None else None
    options = TrajectoryOptions(frame, forward, direction, offset, max_gap, times)
    _report(import_trajectory(file, images, output, options, licence=licence), as_json)


@import_command.command("video", short_help="Import frames of a video.")
@click.argument("file", type=_FILE)
@click.option("--gpx", required=True, type=_FILE, help="The track of the recording.")
@click.option("--every", type=number(DISTANCE), default=5.0, show_default=True,
              help="Metres along the track between two frames.")  # fmt: skip
@click.option("--start", metavar="TIME", help="When the video begins, such as 2024-05-01T12:00:00Z.  "
              "[default: as the video's header says]")  # fmt: skip
@click.option("--offset", type=number(_OFFSET), help="Seconds to add to the start; of a video that does not say when "
              "it was recorded, seconds after the first point of the track.")  # fmt: skip
@click.option("--min-speed", type=number(Range(0, 1000)), default=2.0, show_default=True,
              help="Take nothing where the track is slower, km/h.")  # fmt: skip
@_direction_option
@click.option("--hfov", type=number(Range(0, 360, above=True)),
              help="Horizontal field of view of the camera, degrees; 360 for a panorama.")  # fmt: skip
@_max_gap_option
@_output_options
def video_command(
    file: Path,
    gpx: Path,
    every: float,
    start: str | None,
    offset: float | None,
    min_speed: float,
    direction: float,
    hfov: float | None,
    max_gap: float,
    output: Path,
    licence: str,
    as_json: bool,
) -> None:
    """Import frames of a video, at a spacing in metres along its GPX track."""
    from jzi.recordings.track import parse_time
    from jzi.recordings.video import VideoOptions, import_video

    start_s = None if start is None else parse_time(start)
    if start is not None and start_s is None:
        raise UsageError(f"--start takes a time such as 2024-05-01T12:00:00Z, not {start!r:.60}")
    options = VideoOptions(every, start_s, offset, min_speed, max_gap, direction, hfov)
    folder, alignment = import_video(file, gpx, output, options, licence=licence)
    _report(folder, as_json, alignment.sentences(), {"start_s": alignment.start_s, "before_s": alignment.before_s,
                                                     "after_s": alignment.after_s})  # fmt: skip


def _report(folder: DatasetFolder, as_json: bool, lines: list[str] | None = None, values: dict | None = None) -> None:
    from jzi.commands.shared.common import list_rejected
    from jzi.curate.folder import TABLE
    from jzi.store.photos.photo_table import Rejected

    rows = folder.photos
    list_rejected(tuple(Rejected(each.id, each.reason) for each in folder.rejected), "photos left out")
    headings = int(rows["heading"].notna().sum()) if "heading" in rows else 0
    drives = rows["drive"].nunique()
    text = [
        *(lines or []),
        f"{len(rows)} photos of {drives} drive{'s' if drives > 1 else ''}, {headings} with a heading",
        f"wrote {folder.path / TABLE}; next: jzi dataset filter {folder.path}, or jzi init --map RASTER --queries "
        f"{folder.path / TABLE}",
    ]
    result = {"folder": str(folder.path), "photos": len(rows), "rejected": len(folder.rejected), "drives": drives,
              "headings": headings, **(values or {})}  # fmt: skip
    result = {name: None if isinstance(each, float) and math.isnan(each) else each for name, each in result.items()}
    print_result(as_json, result, "\n".join(text))
