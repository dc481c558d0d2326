"""`locate`."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from jzi.commands.rerank import rerank_options, rerank_summary
from jzi.commands.shared.common import (
    approximate_option,
    beams_option,
    experts_option,
    fuse_option,
    json_option,
    number,
    print_result,
    refine_options,
    refine_request,
    refuse,
    retriever_option,
    was_given,
    zoom_option,
)
from jzi.commands.shared.outputs import Outputs
from jzi.locate.ranges import CANDIDATES, DISTANCE, ELSEWHERE, HEADING, HEADING_SD, SECONDS, SHARE, SPEED_KMH
from jzi.store.printable import listed

if TYPE_CHECKING:
    from jzi.locate.answer.location import LocateOptions, Location, NotLocated
    from jzi.locate.locator import Locator
    from jzi.locate.priors.prior_weights import Prior
    from jzi.workspace.photo_sources import PhotoSource, PhotoSources
    from jzi.workspace.stages.reranker import RerankRequest


class _OutputFile(click.Path):
    """A file to write; "-" is none."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "-":
            self.fail("- is standard input for photos: name a file to write", param, ctx)
        return super().convert(value, param, ctx)


_file = _OutputFile(path_type=Path, dir_okay=False)


@click.command()
@click.argument("photos", nargs=-1, required=True, type=click.Path(path_type=str, readable=False, allow_dash=True))
@click.option(
    "--model",
    "models",
    multiple=True,
    type=click.Path(path_type=Path),
    help="A model folder, or USER/NAME[@REVISION] of the Hugging Face hub; several are searched as one area.  "
    "[default: that of jzi.toml, else model]",
)
@click.option("--config", "config_file", type=click.Path(path_type=Path), default="jzi.toml", show_default=True)
@experts_option("Experts of the model to fuse.  [default: all]")
@retriever_option
@approximate_option
@zoom_option
@fuse_option
@click.option("--cache", help="Read the map from this cache.  [default: the model's own map]")
@refine_options
@click.option("--heading", type=number(HEADING), metavar="DEG", help="With --refine: azimuth of the photos' centre, "
              "clockwise from true north.  [default: from their EXIF]")  # fmt: skip
@click.option("--heading-sd", type=number(HEADING_SD), metavar="DEG", help="With --refine: standard deviation of the "
              "heading.  [default: 10; 20 if it is magnetic]")  # fmt: skip
@click.option("--panorama/--no-panorama", default=None, help="With --refine: the photos are 360° panoramas.  "
              "[default: from their metadata]")  # fmt: skip
@rerank_options
@click.option(
    "--estimate",
    type=click.Choice(["mean", "radius", "map", "greedy"]),
    default="mean",
    show_default=True,
    help="The mean within --radius of the point with the most probability there, that point, the most probable cell, "
    "or greedy search.",
)
@click.option("--radius", type=number(DISTANCE), default=50.0, show_default=True,
              help="Metres; at most the area's side.")  # fmt: skip
@click.option("--top", type=number(CANDIDATES), default=5, show_default=True, help="Number of candidates.")
@beams_option
@click.option(
    "--near", nargs=2, type=float, metavar="LAT LON", help="Prior: the photos were taken within --within of this point."
)
@click.option("--within", type=float, metavar="METRES", help="Distance from --near.")
@click.option("--region", type=_file, help="Prior: the photos were taken in the polygons of this GeoJSON file.")
@click.option("--prior", "raster", type=_file, help="Prior: a raster of weights; 0 or nodata excludes a place.")
@click.option("--together", "as_one", is_flag=True, help="The photos show one location: fuse them into one answer.")
@click.option("--track", is_flag=True, help="The photos are of one drive: locate each with the help of the others.")
@click.option(
    "--top-speed",
    type=number(SPEED_KMH),
    default=60.0,
    show_default=True,
    help="Maximum speed of the drive, km/h.",
)
@click.option(
    "--interval",
    type=number(SECONDS),
    metavar="SECONDS",
    help="Time between photos, in the order given.  [default: from their EXIF]",
)
@click.option("--abstain", type=number(SHARE), default=0.0, help='Answer "not sure" below this confidence.')
@click.option(
    "--elsewhere",
    type=number(SHARE),
    default=ELSEWHERE,
    show_default=True,
    help="Share of photos that were not taken in this area, before they are seen; 0 if all were.",
)
@click.option("--geojson", type=_file, help="Write locations, candidates, circles and zoom tiles as GeoJSON.")
@click.option("--heatmap", type=_file, help="Write the probability of every cell as a Cloud-Optimized GeoTIFF.")
@click.option(
    "--score-map",
    type=_file,
    help="In a region: write the score of every cell for one photo, from 0 to 1, as a GeoTIFF.",
)
@click.option("--picture", type=_file, help="Write a PNG of one photo, its zoom and its location.")
@click.option(
    "--map",
    "page",
    type=_file,
    help="Write an HTML page with all locations on a map and up to 4 MB of the imagery around them; it works offline.",
)
@click.option("--csv", "table", type=_file, help="Write a CSV with one row per photo.")
@click.option(
    "--write-exif",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Write copies of the photos with their position as EXIF.",
)
@click.option("--overwrite-gps", is_flag=True, help="Replace positions that photos have in their EXIF, too.")
@click.option("--exif-heading", is_flag=True, help="Write the heading too, where it is known (--refine).")
@click.option("--imagery", multiple=True, help="Rasters for --picture, --map, refiners and re-rankers.  "
              "[default: the map of jzi.toml]")  # fmt: skip
@json_option
def locate(
    photos: tuple[str, ...],
    models: tuple[Path, ...],
    experts: tuple[str, ...],
    retriever: Path | None,
    approximate: bool,
    zoom: Path | None,
    fuse: bool,
    config_file: Path,
    cache: str | None,
    refine: str | None,
    refine_top: int | None,
    heading: float | None,
    heading_sd: float | None,
    panorama: bool | None,
    rerank: RerankRequest | None,
    estimate: str,
    radius: float,
    top: int,
    beams: int | None,
    near: tuple[float, float] | None,
    within: float | None,
    region: Path | None,
    raster: Path | None,
    as_one: bool,
    track: bool,
    top_speed: float,
    interval: float | None,
    abstain: float,
    elsewhere: float,
    geojson: Path | None,
    heatmap: Path | None,
    score_map: Path | None,
    picture: Path | None,
    page: Path | None,
    table: Path | None,
    write_exif: Path | None,
    overwrite_gps: bool,
    exif_heading: bool,
    imagery: tuple[str, ...],
    as_json: bool,
) -> None:
    """Locate photos.

    PHOTOS are files, folders, which stand for the photos in them, https URLs, or - for a photo on standard input.
    Several priors are multiplied.
    """
    from jzi.workspace.inputs import imagery_of
    from jzi.workspace.models.locators import open_forest, open_locator
    from jzi.workspace.photo_sources import PhotoSources

    sources = click.get_current_context().with_resource(PhotoSources(config_file))
    found = sources.find(photos)
    files = [each.path for each in found]
    if sources.left_out:
        click.echo(f"not located: {listed(sources.left_out)} (rasters, or drawn by jzi)", err=True)
    errors = {each.path: each.error for each in found if each.error}
    request = refine_request(refine, refine_top)
    camera = heading, heading_sd, panorama
    refuse(
        (errors and (as_one or track), next(iter(errors.values()), "")),
        (
            not track and (interval is not None or was_given("top_speed")),
            "--interval and --top-speed are about a drive: add --track, or leave them out",
        ),
        (as_one and track, "--together and --track cannot be combined: pass one of them"),
        (picture and len(files) > 1 and not as_one, "--picture draws one photo: pass one, or use --map"),
        (score_map and len(files) > 1, "--score-map draws one photo: pass one, or use --heatmap"),
        (score_map and not retriever, "--score-map is for a region: pass --retriever too, or use --heatmap"),
        (retriever and beams, "--beams does not apply to --retriever: leave it out"),
        (score_map and zoom, "--score-map scores every cell of a region, --zoom only some: leave one of them out"),
        (
            imagery and not (picture or page or request or rerank),
            "--imagery is what --picture and --map draw, and what a refiner or re-ranker reads: add one of them",
        ),
        (exif_heading and not write_exif, "--exif-heading writes into the copies of --write-exif: pass that too"),
        (overwrite_gps and not write_exif, "--overwrite-gps is about the copies of --write-exif: pass that too"),
        (
            (request or rerank) and (as_one or track),
            "--refine and --rerank look at single photos: leave --together and --track out",
        ),
        (rerank and top < 2, "--rerank compares candidates: give --top 2 or more"),
        (camera != (None,) * 3 and not request, "--heading, --heading-sd and --panorama go with --refine: add it"),
    )
    if len(models) > 1:
        one_area = {"--heatmap": heatmap, "--picture": picture, "--map": page, "--refine": request, "--rerank": rerank,
                    "--near": near, "--region": region, "--prior": raster, "--together": as_one, "--track": track,
                    "--retriever": retriever, "--cache": cache}  # fmt: skip
        needing = next((name for name, value in one_area.items() if value), "")
        refuse((needing, f"{needing} is for one area, but {len(models)} models are named: leave it out"))
    outputs = Outputs(geojson, heatmap, picture, page, table, write_exif, score_map, exif_heading, overwrite_gps)
    outputs.check()
    if len(errors) == len(found) and not outputs:  # nothing to load a model for
        for each in found:
            _print_answer(_not_located(each), as_json, {})
        sys.exit(2)
    from jzi.locate.answer.location import Camera, LocateOptions, NotLocated
    from jzi.locate.points.discs import check_radius

    prior = _prior(near, within, region, raster)
    if len(models) > 1:
        locator = open_forest(models, config_file, experts)
    else:
        locator = open_locator(models[0] if models else None, config_file, cache=cache, retriever=retriever,
                               approximate=approximate, experts=experts, zoom=zoom, fuse=fuse, refine=request,
                               imagery=imagery)  # fmt: skip
    stage = None
    if rerank:
        from jzi.workspace.stages.reranker import reranked

        locator, stage = reranked(locator, rerank, config_file, imagery)
    if score_map:
        from jzi.workspace.regions.region_index import check_score_map

        check_score_map(locator.expert)
    if prior:
        locator = locator.with_prior(prior.weight(locator.expert.area))
    area = locator.expert.area
    rasters = imagery_of(area, imagery, config_file) if picture or page else None
    check_radius(area, radius)
    outputs.prepare_copies(files)
    options = LocateOptions(estimate, radius, top, beams, abstain, Camera(*camera), elsewhere)
    answers: Iterable[Location | NotLocated]
    if as_one:
        answers, files = [locator.locate_together(files, options)], files[:1]
    elif track:
        files, answers = _along_track(locator, files, interval, top_speed / 3.6, options)
    else:
        answers = locator.locate_all(files, options)
    write_files = partial(outputs.write, rasters, locator.expert.cell_mask if heatmap else None, locator)
    failed, located, closed = 0, 0, None
    try:
        for file, answer in zip(files, answers, strict=True):
            answer = _named(answer, sources, errors.get(file, ""))
            outputs.add(file, answer)
            failed += isinstance(answer, NotLocated)
            located += not isinstance(answer, NotLocated)
            try:
                if not closed:
                    _print_answer(answer, as_json, prior.to_dict() if prior else {})
            except BrokenPipeError as error:  # `jzi locate ... | head`
                if not outputs:
                    raise
                closed = error
        write_files()
    except BaseException as error:  # also Ctrl-C: what was located is kept, and another one stops writing it
        if not isinstance(error, BrokenPipeError):
            writing = "; writing their files (Ctrl-C again to stop)" if outputs and located else ""
            click.echo(f"stopped: {located} of {len(files)} photos were located{writing}", err=True)
        try:
            write_files()
        finally:
            _report(outputs, sources)
        raise
    if stage:
        click.echo(rerank_summary(stage), err=True)
    _report(outputs, sources)
    if outputs.errors or failed:
        sys.exit(2 if outputs.errors or failed == len(files) else 1)
    if closed:
        raise closed


def _prior(
    near: tuple[float, float] | None, within: float | None, region: Path | None, raster: Path | None
) -> Prior | None:
    """Where the photos were taken as far as it is known; None if nothing is."""
    if near is None and within is None and region is None and raster is None:
        return None
    from jzi.locate.priors.prior_weights import Prior  # loads GDAL
    from jzi.store.geometry.geojson import read_polygons

    return Prior(near, within, read_polygons(region) if region else (), str(region), raster)


def _print_answer(answer: Location | NotLocated, as_json: bool, prior: dict[str, Any]) -> None:
    from jzi.commands.shared.tables import location_text
    from jzi.locate.answer.location import NotLocated

    if isinstance(answer, NotLocated):
        if as_json:
            print_result(True, answer, "")
        click.echo(f"jzi: {answer.error}", err=True)
        return
    print_result(as_json, {**answer.to_dict(), **({"prior": prior} if prior else {})}, location_text(answer))


def _report(outputs: Outputs, sources: PhotoSources) -> None:
    """List the files that were written, and what keeps others from it."""
    for written in outputs.written:
        click.echo(f"wrote {written}", err=True)
    for sentence in (*outputs.notes, *outputs.errors):
        click.echo(f"jzi: {sources.named(sentence)}", err=True)


def _not_located(source: PhotoSource) -> NotLocated:
    from jzi.locate.answer.location import NotLocated

    return NotLocated(source.name, source.error)


def _named(answer: Location | NotLocated, sources: PhotoSources, error: str) -> Location | NotLocated:
    """An answer with the name that the user gave the photo, and the reason if it could not be fetched."""
    from jzi.locate.answer.location import NotLocated

    name = sources.named(answer.photo)
    if isinstance(answer, NotLocated):
        return NotLocated(name, error or sources.named(answer.error))
    return answer if name == answer.photo else replace(answer, photo=name)


def _along_track(
    locator: Locator, files: list[Path], interval: float | None, speed: float, options: LocateOptions
) -> tuple[list[Path], list[Location]]:
    """Photos of a drive in the order of time, and their locations."""
    if interval is not None:
        seconds = [interval * index for index in range(len(files))]
        return files, locator.locate_track(files, seconds, speed, options)
    from jzi.store.photos.drive import read_drive

    drive = read_drive(files)
    return drive.files, locator.locate_track(
        drive.files, drive.seconds, speed, options, rounding_s=drive.rounding_s, recorded=drive.positions
    )
