"""`jzi dataset imagery`: imagery of an area from map services, STAC and rasters."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from jzi.commands.shared.common import UsageError, json_option, number, print_result
from jzi.locate.ranges import Range

if TYPE_CHECKING:
    from jzi.overhead.area import Area
    from jzi.overhead.build import GeoTiffWriter, Prepared
    from jzi.overhead.download import Estimate

#: Ground sampling distances, metres; margins; requests at the same time and a second; cloud cover, percent.
_GSD, _MARGIN = Range(0.01, 1000, unit="metres"), Range(0, 1_000_000, unit="metres")
_CONNECTIONS, _RATE, _CLOUD = Range(1, 16, whole=True), Range(0.01, 1000), Range(0, 100)

#: Wanted ground sampling distance, metres: cars and road markings are seen; that of most cities' orthophotos is finer.
_DEFAULT_GSD = 0.3

#: Requests at the same time, and a second: as of a person who pans a map. Defaults that someone may change.
_DEFAULT_CONNECTIONS, _DEFAULT_RATE = 4, 20.0

#: Zoom of tiles that is not exceeded by default: the finest that public services have, 0.03 m at the equator.
_DEFAULT_MAX_ZOOM = 22


@dataclass(frozen=True)
class _Options:
    """Options of the command whose use depends on the kind of source."""

    gsd: float | None
    crs: str | None
    layer: str | None
    max_zoom: int | None
    image_format: str | None
    collection: str | None
    datetime: str | None
    asset: str | None
    max_cloud: float | None
    connections: int | None
    rate: float | None
    remote: bool


#: Options that each kind of source takes.
_TAKES = {
    "xyz": {"gsd", "max_zoom", "connections", "rate"},
    "wms": {"gsd", "crs", "layer", "image_format", "connections", "rate"},
    "wmts": {"gsd", "crs", "layer", "connections", "rate"},
    "stac": {"crs", "collection", "datetime", "asset", "max_cloud"},
    "xml": {"gsd", "rate"},
    "rasters": {"crs", "remote"},
}


@click.command("imagery")
@click.argument("rasters", nargs=-1)
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), required=True,
              help="map.vrt, which refers to the sources, or map.tif, which holds the pixels.")  # fmt: skip
@click.option("--xyz", metavar="TEMPLATE",
              help="Tiles, such as https://host/{z}/{x}/{y}.png; {-y} counts from the south.")  # fmt: skip
@click.option("--wms", metavar="URL", help="A WMS, with --layer.")
@click.option("--wmts", metavar="URL", help="The capabilities of a WMTS, with --layer.")
@click.option("--stac", metavar="URL", help="A STAC API, with --collection, such as naip.")
@click.option("--area", "area_file", type=click.Path(path_type=Path, dir_okay=False), metavar="JZI.TOML",
              help="The area of a working directory.")  # fmt: skip
@click.option("--bbox", type=float, nargs=4, metavar="W S E N", help="Longitudes and latitudes, degrees.")
@click.option("--region", type=click.Path(path_type=Path, dir_okay=False), help="A GeoJSON file with polygons.")
@click.option("--margin", type=number(_MARGIN), default=0.0, show_default=True, help="Around the area, metres.")
@click.option("--gsd", type=number(_GSD), help=f"Metres per pixel, of services.  [default: {_DEFAULT_GSD}]")
@click.option("--max-zoom", type=click.IntRange(0, 30), help=f"Finest zoom of --xyz.  [default: {_DEFAULT_MAX_ZOOM}]")
@click.option("--layer", help="Layer of a WMS or WMTS.")
@click.option("--crs", help="CRS to ask a WMS or WMTS for; of rasters and STAC, take those in this CRS only.")
@click.option("--format", "image_format", metavar="TYPE", help="Image format of a WMS.  [default: image/jpeg]")
@click.option("--collection", help="Collection of a STAC API.")
@click.option("--datetime", metavar="DATE[/DATE]", help="Date or interval of --stac, such as 2020/2023.")
@click.option("--asset", help="Asset of STAC items.  [default: visual, else image]")
@click.option("--max-cloud", type=number(_CLOUD), help="Greatest cloud cover of STAC items, percent.")
@click.option("--attribution", metavar="TEXT", help="Credit line.  [default: what the service says]")
@click.option("--licence", metavar="TEXT", help="Licence of the imagery.  [default: what the service says]")
@click.option("--compress", type=click.Choice(["jpeg", "webp", "deflate"]),
              help="Of map.tif.  [default: jpeg for 8-bit pixels, else deflate]")  # fmt: skip
@click.option("--quality", type=click.IntRange(1, 100), help="Of jpeg and webp.  [default: 90]")
@click.option("--connections", type=number(_CONNECTIONS),
              help=f"Requests at the same time.  [default: {_DEFAULT_CONNECTIONS}]")  # fmt: skip
@click.option("--rate", type=number(_RATE), help=f"Requests of tiles a second.  [default: {_DEFAULT_RATE:g}]")
@click.option("--remote", is_flag=True, help="Allow local rasters that name other files or URLs (map.remote).")
@click.option("--dry-run", is_flag=True, help="Estimate tiles, bytes and time, and write nothing.")
@click.option("--force", is_flag=True, help="Replace an existing file.")
@json_option
def imagery_command(
    rasters: tuple[str, ...],
    output: Path,
    xyz: str | None,
    wms: str | None,
    wmts: str | None,
    stac: str | None,
    area_file: Path | None,
    bbox: tuple[float, float, float, float] | None,
    region: Path | None,
    margin: float,
    attribution: str | None,
    licence: str | None,
    compress: Literal["jpeg", "webp", "deflate"] | None,
    quality: int | None,
    dry_run: bool,
    force: bool,
    as_json: bool,
    **others: Any,
) -> None:
    """Write imagery of an area as one raster, for `jzi init --map`.

    The source is RASTERS (GeoTIFFs, globs, folders, URLs, a text file that lists them, or one XML of GDAL), or one of
    --xyz, --wms, --wmts and --stac. Nothing is reprojected. A token in a URL is given as {env:NAME}, which is replaced
    by the environment variable and never written down. The terms of a service are shown first: keep to them. An
    interrupted download resumes when the same command is run again.

    \b
    jzi dataset imagery orthophotos/ -o map.vrt
    jzi dataset imagery --xyz 'https://tiles.example.org/{z}/{x}/{y}.jpg' --area jzi.toml \\
        --attribution 'City of Example' --licence 'CC BY 4.0' -o map.tif
    jzi dataset imagery --stac https://stac.example.org --collection naip --bbox -77.1 38.8 -76.9 39 -o map.tif

    Any XML or data source of GDAL also works with `jzi init --map` itself, with --remote.
    """
    from jzi.overhead.build import GeoTiffWriter, WriteOptions, check_output, write_map_vrt

    given = {name: value for name, value in (("xyz", xyz), ("wms", wms), ("wmts", wmts), ("stac", stac)) if value}
    if len(given) + bool(rasters) != 1:
        raise UsageError("give one source: rasters, --xyz, --wms, --wmts or --stac")
    kind, value = next(iter(given.items()), ("rasters", ""))
    if kind == "rasters" and len(rasters) == 1 and rasters[0].lower().endswith(".xml"):
        kind, value = "xml", rasters[0]
    options = _Options(**others)
    _check_options(kind, options)
    is_vrt = output.suffix.lower() == ".vrt"
    if is_vrt and (compress or quality or options.rate or dry_run):
        raise UsageError("--compress, --quality, --rate and --dry-run are for a GeoTIFF: give -o map.tif")
    if quality and compress == "deflate":
        raise UsageError("--quality is for jpeg and webp: leave it out")
    if not dry_run:
        check_output(output, force)
    area = _area(area_file, bbox, region, margin)
    prepared = _prepare(kind, value, rasters, area, options, output if is_vrt else None, attribution, licence)
    for line in _terms(prepared):
        click.echo(line, err=True)
    if is_vrt:
        elsewhere = write_map_vrt(prepared, output)
        remote = " --remote" if elsewhere else ""
        written = f"wrote {output} and {output.with_suffix('.json')}; next: jzi init --map {output}{remote}"
        text = f"{_size_text(prepared)}\n{written}"
        print_result(as_json, {**_values(prepared, output), "remote": elsewhere}, text)
        return
    rate = options.rate or (_DEFAULT_RATE if kind in ("xyz", "wms", "wmts", "xml") else None)
    writer = GeoTiffWriter(prepared, output, WriteOptions(compress, quality or 90, rate, force, not as_json))
    estimate = writer.estimate(dry_run)
    click.echo(_estimate_text(writer, estimate), err=True)
    if dry_run:
        values = {**_values(prepared, output), "estimate": estimate}
        print_result(as_json, values, f"{_size_text(prepared)}; nothing was written")
        return
    writer.write(estimate)
    size = output.stat().st_size
    written = f"wrote {output} ({size / 1e6:,.1f} MB) and {output.with_suffix('.json')}; next: jzi init --map {output}"
    text = f"{_size_text(prepared)}\n{written}"
    print_result(as_json, {**_values(prepared, output), "bytes": size, "remote": False}, text)


def _check_options(kind: str, options: _Options) -> None:
    """Refuse options that the kind of source does not take."""
    unused = [name for name, value in vars(options).items() if value and name not in _TAKES[kind]]
    if unused:
        names = ", ".join(f"--{name.replace('image_format', 'format').replace('_', '-')}" for name in unused)
        what = {"rasters": "rasters", "xml": "an XML of GDAL"}.get(kind, f"--{kind}")
        raise UsageError(f"{names} is not for {what}: leave it out")
    if kind in ("wms", "wmts") and not options.layer:
        raise UsageError(f"--{kind} needs --layer")
    if kind == "stac" and not options.collection:
        raise UsageError("--stac needs --collection, such as naip or sentinel-2-l2a")


def _area(
    area_file: Path | None,
    bbox: tuple[float, float, float, float] | None,
    region: Path | None,
    margin: float,
) -> Area | None:
    from jzi.overhead.area import Area
    from jzi.workspace.setup.settings_file import load_settings

    if sum(each is not None for each in (area_file, bbox, region)) > 1:
        raise UsageError("give one of --area, --bbox and --region")
    if bbox is not None:
        return Area.of_bbox(*bbox, margin)
    if region is not None:
        return Area.of_region(region, margin)
    if area_file is not None:
        return Area.of_pyramid(load_settings(area_file).pyramid, margin)
    if margin:
        raise UsageError("--margin goes with --area, --bbox or --region: add one")
    return None


def _prepare(
    kind: str,
    value: str,
    rasters: tuple[str, ...],
    area: Area | None,
    options: _Options,
    vrt: Path | None,
    attribution: str | None,
    licence: str | None,
) -> Prepared:
    """Open the source."""
    from jzi.overhead.build import Prepared, credit
    from jzi.overhead.capabilities import Terms
    from jzi.overhead.mosaic import Mosaic

    if kind == "rasters":
        names = _names(rasters)
        layer = Mosaic(names, area, options.remote, options.crs, progress=True)
        title = Path(rasters[0]).name if len(rasters) == 1 else f"{layer.count} rasters"
        whose = credit(Terms(name=title), attribution, licence, "", required=False)
        return Prepared(layer, area, whose, notes=tuple(layer.notes))
    if area is None:
        raise UsageError("a service covers more than one wants: give --area, --bbox or --region")
    if kind == "stac":
        return _prepare_stac(value, area, options, attribution, licence)
    return _prepare_service(kind, value, area, options, vrt, attribution, licence)


def _names(rasters: tuple[str, ...]) -> list[str]:
    """Files and URLs that arguments name: lists, globs and folders."""
    from jzi.overhead.mosaic import read_list
    from jzi.workspace.setup.settings import find_rasters

    entries: list[str] = []
    for raster in rasters:
        is_list = "://" not in raster and raster.lower().endswith((".txt", ".lst"))
        entries += read_list(Path(raster)) if is_list else [raster]
    return find_rasters(entries)


def _prepare_stac(url: str, area: Area, options: _Options, attribution: str | None, licence: str | None) -> Prepared:
    from jzi.overhead.build import Prepared, credit
    from jzi.overhead.mosaic import Mosaic
    from jzi.overhead.stac import find_imagery
    from jzi.store.plain import share_text

    assert options.collection is not None
    found = find_imagery(url, options.collection, area, options.datetime, options.asset, options.max_cloud, options.crs)
    layer = Mosaic(found.urls, area, crs=options.crs, progress=True)
    dates = f"{found.dates[-1]} to {found.dates[0]}" if found.dates[-1] != found.dates[0] else found.dates[0]
    notes = [f"{len(found.urls)} of {found.found} items, asset {found.asset!r}, of {dates}, the newest on top"]
    if found.covered < 0.999:
        notes.append(f"they cover {share_text(found.covered)} of the area")
    details: dict[str, str | float] = {
        "collection": options.collection, "asset": found.asset, "dates": dates, "covered": round(found.covered, 4),
    }  # fmt: skip
    whose = credit(found.terms, attribution, licence, url, required=True)
    return Prepared(layer, area, whose, details=details, notes=(*notes, *layer.notes))


def _prepare_service(
    kind: str,
    value: str,
    area: Area,
    options: _Options,
    vrt: Path | None,
    attribution: str | None,
    licence: str | None,
) -> Prepared:
    from jzi.overhead.build import Prepared, credit
    from jzi.overhead.ogc import wms_service, wmts_service
    from jzi.overhead.services import Access, xml_service
    from jzi.overhead.xyz import xyz_service

    cache = vrt.absolute().with_name(f"{vrt.stem}.cache") if vrt else None
    access = Access(options.connections or _DEFAULT_CONNECTIONS, cache=cache)
    gsd = options.gsd or _DEFAULT_GSD
    layer = options.layer or ""
    max_zoom = _DEFAULT_MAX_ZOOM if options.max_zoom is None else options.max_zoom
    if kind == "xyz":
        service = xyz_service(value, area, gsd, max_zoom, access)
    elif kind == "wms":
        service = wms_service(value, layer, area, gsd, options.crs, options.image_format, access)
    elif kind == "wmts":
        service = wmts_service(value, layer, area, gsd, options.crs, access)
    else:
        service = xml_service(Path(value), area, gsd)
    whose = credit(service.terms, attribution, licence, "" if kind == "xml" else value, required=True)
    details = {"layer": options.layer} if options.layer else {}
    notes = (service.choice, *((f"tiles are kept in {cache}",) if cache and kind != "xml" else ()))
    return Prepared(service.layer, area, whose, service.zoom, details, notes)


def _terms(prepared: Prepared) -> list[str]:
    """What a user should read before anything starts."""
    whose = prepared.credit
    lines = [f"imagery: {whose.name}" + (f" ({whose.url})" if whose.url else "")]
    lines += [f"  {name}: {value}" for name, value in (
        ("attribution", whose.attribution), ("licence", whose.licence), ("fees", whose.fees)
    ) if value]  # fmt: skip
    if prepared.layer.tile:
        lines.append("  many services do not allow bulk downloads: read the terms of this one")
    lines += [f"  {note}" for note in prepared.notes]
    return [*lines, f"warning: {prepared.coarse}"] if prepared.coarse else lines


def _size_text(prepared: Prepared) -> str:
    grid = prepared.layer.grid
    return f"{grid.width:,} x {grid.height:,} pixels of {prepared.gsd_m:.3g} m in {grid.label}"


def _estimate_text(writer: GeoTiffWriter, estimate: Estimate) -> str:
    text = f"{estimate.blocks} blocks"
    if writer.resumed:
        text += f", {writer.resumed} of them there already"
    if estimate.requests:
        text += f"; {estimate.requests:,} requests"
    text += (
        f"; about {estimate.output_bytes / 1e6:,.3g} MB, {estimate.kept_bytes / 1e6:,.3g} MB more while it is written, "
        f"and {_duration(estimate.seconds)}"
    )
    return text + ("; no imagery in the samples, check the area" if estimate.empty == 1 else "")


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _values(prepared: Prepared, output: Path) -> dict[str, Any]:
    """The result for JSON."""
    grid, whose = prepared.layer.grid, prepared.credit
    return {
        "output": output, "crs": grid.label, "gsd_m": prepared.gsd_m,
        "zoom": prepared.zoom if prepared.zoom >= 0 else None, "width": grid.width, "height": grid.height,
        "files": prepared.layer.count, "name": whose.name, "attribution": whose.attribution, "licence": whose.licence,
        "notes": list(prepared.notes), "warning": prepared.coarse,
    }  # fmt: skip
