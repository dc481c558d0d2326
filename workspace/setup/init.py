"""The settings of a new working directory, which `jzi init` writes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jzi.errors import ConfigError
from jzi.store.disk.json_file import read_json
from jzi.store.geometry.cell_grid import off_earth, swap_hint
from jzi.store.geometry.pyramid import Pyramid, preset
from jzi.store.info import MAX_IMAGE_SIZE
from jzi.store.model_config import CONFIG
from jzi.workspace.inputs import open_imagery, open_photo_table
from jzi.workspace.setup.settings import (
    EncoderSettings,
    MapSettings,
    QuerySettings,
    Settings,
    find_rasters,
    names_url,
)

if TYPE_CHECKING:
    from jzi.store.photos.photo_table import PhotoTable


def new_settings(
    folder: Path,
    rasters: Sequence[str] = (),
    *,
    queries: str | None = None,
    photos: str | None = None,
    encoder: str | None = None,
    image_size: int | None = None,
    preset: str | None = None,
    center: tuple[float, float] | None = None,
    size: float | None = None,
    grid: int | None = None,
    levels: int | None = None,
    map_crs: str | None = None,
    remote: bool = False,
    split_by: Literal["auto", "sequence", "block", "photo"] | None = None,
    allow_outside: bool = False,
) -> tuple[Settings, PhotoTable | None]:
    """Create the settings of a new working directory, and read its photo table if one is named; nothing is written.

    Paths are relative to the current directory; in the settings, those below `folder` are relative to it.

    Args:
        folder: the working directory.
        rasters: files, globs or folders of the map.
        queries: folder of photos, or CSV or Parquet table.
        photos: folder of the table's photos.
        encoder: Hugging Face id or folder.
        image_size: side of the encoder's input, pixels.
        preset: name of a published area.
        center: latitude and longitude of the area's centre, degrees (WGS 84).
        size: side of the area, metres.
        grid: g; a tile has g x g children.
        levels: L; by default the fewest whose cells are at most 40 m.
        map_crs: CRS of rasters without one.
        remote: whether rasters may name other files, URLs and services; those that are URLs may.
        split_by: what photos of a split have in common, "auto" by default.
        allow_outside: whether paths of the table and symbolic links may lead out of the folder of photos.

    Raises:
        JziError: the rasters, the photos or the area cannot be used.
    """
    imagery = MapSettings(rasters=[relative_path(raster, folder) for raster in rasters], crs=map_crs)
    imagery.remote = remote or names_url(rasters)  # named by the user
    pyramid = _area(find_rasters(rasters) if rasters else [], imagery, preset, center, size, grid, levels)
    table, lookup = (relative_path(path, folder) if path else None for path in (queries, photos))
    settings = Settings(
        pyramid=pyramid,
        map=imagery,
        queries=QuerySettings(table, lookup, split_by=split_by or "auto", allow_outside=allow_outside),
        encoder=new_encoder_settings(folder, encoder, image_size),
    )
    settings.folder = folder
    settings.overridden = frozenset({"queries.split_by"} if split_by else ())
    if rasters:
        with open_imagery(settings):
            pass  # raises if it cannot be read or does not touch the area
    return settings, open_photo_table(settings) if queries else None


def new_encoder_settings(folder: Path, name: str | None, image_size: int | None) -> EncoderSettings:
    """The encoder of a working directory: a Hugging Face id or folder, and the side of its input; None for defaults.

    A folder whose encoder was trained at less than the default side gets its own side.

    Raises:
        ConfigError: the side is not positive.
    """
    if image_size is not None and image_size < 1:
        raise ConfigError(f"--image-size is {image_size}: it must be at least 1")
    chosen = EncoderSettings()
    chosen.name = relative_path(name, folder) if name else chosen.name
    chosen.image_size = image_size or min(chosen.image_size, _trained_size(name))
    return chosen


def _trained_size(name: str | None) -> int:
    """The side that config.json of an encoder's folder states, pixels; the greatest one if there is none."""
    try:
        size = read_json(Path(name or "") / CONFIG, ConfigError, "")["image_size"]
    except (OSError, ConfigError, KeyError, TypeError):  # what is damaged is reported where it is loaded
        return MAX_IMAGE_SIZE
    return size if type(size) is int and size >= 1 else MAX_IMAGE_SIZE


def dataset_settings(
    name: str,
    folder: Path,
    data: Path | None,
    download: bool,
    *,
    encoder: str | None = None,
    image_size: int | None = None,
    **others: Any,
) -> tuple[Settings, PhotoTable]:
    """Create the settings of a working directory for a published data set, and write the VRT of its map.

    Args:
        name: "just-zoom-in" (Hugging Face `pcvlab/justzoomin`, or a data set of another area in its layout).
        folder: the working directory.
        data: folder of the data set, or to download it to; by default `folder`.
        download: download it from the Hugging Face hub first; files that exist are kept.
        encoder: as in `new_settings`.
        image_size: as in `new_settings`.
        others: other arguments of `new_settings`, which the data set determines: none may be given.

    Raises:
        ConfigError: there is no such data set, it cannot be downloaded, or another option is given.
        JziError: its files cannot be used.
    """
    from jzi.datasets import just_zoom_in

    if name != "just-zoom-in":
        raise ConfigError(
            f"there is no data set {name!r}: give just-zoom-in, vigor-m, statewide, vigor, cvusa, cvact or kitti"
        )
    if conflicting := [f"--{option.replace('_', '-')}" for option, value in others.items() if value]:
        raise ConfigError(
            f"--dataset sets these itself: leave out {', '.join(conflicting).replace('--rasters', '--map')}"
        )
    data = data or folder
    if download:
        just_zoom_in.download(data)
    files = just_zoom_in.JustZoomIn.read(data)
    folder.mkdir(parents=True, exist_ok=True)
    files.layout.write_vrt(folder / "satellite.vrt")
    layout_folder = files.layout.folder.resolve()
    settings = Settings(
        pyramid=files.area,
        # the VRT, which this writes, may name tiles in another folder
        map=MapSettings(rasters=["satellite.vrt"], remote=not layout_folder.is_relative_to(folder.resolve())),
        queries=QuerySettings(
            table={split: relative_path(str(table), folder) for split, table in files.tables.items()},
            photos=relative_path(str(files.photos), folder),
        ),
        encoder=new_encoder_settings(folder, encoder, image_size),
    )
    settings.encoder.resampling = "reference"
    settings.folder = folder
    return settings, open_photo_table(settings)


def _area(
    rasters: list[str],
    imagery: MapSettings,
    name: str | None,
    center: tuple[float, float] | None,
    size: float | None,
    grid: int | None,
    levels: int | None,
) -> Pyramid:
    if name:
        if center or size or grid or levels:
            raise ConfigError("--preset determines the area: leave out --center, --size, --grid and --levels")
        return preset(name)
    grid = grid or 4
    if center and size and not rasters:
        return Pyramid.around(*center, size, grid=grid, levels=levels)
    if not rasters:
        raise ConfigError(
            "no area is given: pass --map RASTER (the area that it covers), --center LAT LON --size M, or --preset"
        )
    from jzi.encode.rasters.raster import RasterOptions
    from jzi.workspace.area import square_around

    whole = square_around(rasters, RasterOptions(crs=imagery.crs, remote=imagery.remote), grid=grid, levels=levels)
    if not center and not size:
        return whole
    if center and not off_earth(*center) and whole.paths(*center)[0, 0] < 0 and (hint := swap_hint(whole, *center)):
        raise ConfigError(f"--center {center[0]:g} {center[1]:g} is not on the map{hint}")
    middle = whole.unproject(whole.west + whole.size / 2, whole.north - whole.size / 2)
    latitude, longitude = center or (float(middle[0]), float(middle[1]))
    return Pyramid.around(latitude, longitude, size or whole.size, grid=grid, levels=levels)


def relative_path(path: str, folder: Path) -> str:
    """Convert a path of the command line to one of the jzi.toml in `folder`; URLs and hub ids are not changed."""
    if "://" in path or path.startswith("/vsi") or not (any(c in path for c in "*?[") or Path(path).exists()):
        return path
    absolute = Path(path).expanduser().absolute()
    if absolute.is_relative_to(folder.absolute()):
        return str(absolute.relative_to(folder.absolute()))
    return os.path.relpath(absolute, folder.absolute()) if not Path(path).is_absolute() else str(absolute)
