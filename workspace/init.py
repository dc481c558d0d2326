"""The settings of a new working directory: what `jzi init` writes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jzi.errors import ConfigError, first_line
from jzi.store.pyramid import Pyramid, preset
from jzi.workspace.open import open_imagery, open_photo_table
from jzi.workspace.settings import EncoderSettings, MapSettings, QuerySettings, Settings, find_rasters

if TYPE_CHECKING:
    from jzi.store.photo_table import PhotoTable


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
) -> tuple[Settings, PhotoTable | None]:
    """The settings of a new working directory, and its query table if one was named; nothing is written.

    Paths are relative to the current directory, and become relative to `folder` where they lie below it.

    Raises:
        JziError: the rasters, the photos or the area cannot be used; see the readers.
    """
    imagery = MapSettings(rasters=[_relative(raster, folder) for raster in rasters], crs=map_crs)
    pyramid = _area(find_rasters(rasters) if rasters else [], map_crs, preset, center, size, grid, levels)
    table, lookup = (_relative(path, folder) if path else None for path in (queries, photos))
    settings = Settings(
        pyramid=pyramid,
        map=imagery,
        queries=QuerySettings(table, lookup),
        encoder=_encoder_settings(folder, encoder, image_size),
    )
    settings.folder = folder
    if rasters:
        with open_imagery(settings):
            pass  # it can be read and touches the area, or raises
    return settings, open_photo_table(settings) if queries else None


def _encoder_settings(folder: Path, name: str | None, image_size: int | None) -> EncoderSettings:
    if image_size is not None and image_size < 1:
        raise ConfigError(f"--image-size is {image_size}: it must be at least 1")
    chosen = EncoderSettings()
    chosen.name = _relative(name, folder) if name else chosen.name
    chosen.image_size = image_size or chosen.image_size
    return chosen


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
    """The settings of a working directory for a published data set; the map's VRT is written into it.

    Args:
        name: "just-zoom-in", the only one so far (Hugging Face `pcvlab/justzoomin`).
        folder: the working directory.
        data: where the copy of the data set lies, or is downloaded to; `folder` itself by default.
        download: fetch it from the Hugging Face hub first; what is there already is kept.
        encoder: as in `new_settings`.
        image_size: as in `new_settings`.
        others: anything else that `new_settings` takes; the data set says all that, and none may be given.

    Raises:
        ConfigError: there is no such data set, or it cannot be downloaded.
        JziError: the copy cannot be used; see the readers.
    """
    from jzi.datasets.tiled_layout import TiledLayout

    if name != "just-zoom-in":
        raise ConfigError(f"there is no data set {name!r}: the only one is just-zoom-in")
    if given := [f"--{option.replace('_', '-')}" for option, value in others.items() if value]:
        raise ConfigError(f"--dataset says it all: leave {', '.join(given).replace('--rasters', '--map')} out")
    data = data or folder
    if download:
        _download("pcvlab/justzoomin", data)
    layout = TiledLayout.read(data / "satellite" / "layout.yaml")
    tables = {split: data / "metadata" / f"large_area_{split}_map.csv" for split in ("train", "val")}
    folder.mkdir(parents=True, exist_ok=True)
    layout.write_vrt(folder / "satellite.vrt")
    settings = Settings(
        pyramid=preset("just-zoom-in-dc"),
        map=MapSettings(rasters=["satellite.vrt"]),
        queries=QuerySettings(
            table={split: _relative(str(table), folder) for split, table in tables.items()},
            photos=_relative(str(data / "streetview" / "images"), folder),
        ),
        encoder=_encoder_settings(folder, encoder, image_size),
    )
    settings.folder = folder
    return settings, open_photo_table(settings)


def _download(repository: str, data: Path) -> None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        snapshot_download(repository, repo_type="dataset", local_dir=data)
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise ConfigError(
            f"the data set {repository} cannot be downloaded ({first_line(error)}): run again, what came is kept"
        ) from error


def _area(
    rasters: list[str],
    crs: str | None,
    name: str | None,
    center: tuple[float, float] | None,
    size: float | None,
    grid: int | None,
    levels: int | None,
) -> Pyramid:
    if name:
        if center or size or grid or levels:
            raise ConfigError("--preset says it all: leave --center, --size, --grid and --levels out")
        return preset(name)
    grid = grid or 4
    if center and size:
        return Pyramid.around(*center, size, grid=grid, levels=levels)
    if not rasters:
        raise ConfigError(
            "say which area: --map RASTER (the area that it covers), --center LAT LON --size M, or --preset"
        )
    from jzi.encode.raster import RasterOptions
    from jzi.workspace.area import square_around

    whole = square_around(rasters, RasterOptions(crs=crs), grid=grid, levels=levels)
    if not center and not size:
        return whole
    middle = whole.unproject(whole.west + whole.size / 2, whole.north - whole.size / 2)
    latitude, longitude = center or (float(middle[0]), float(middle[1]))
    return Pyramid.around(latitude, longitude, size or whole.size, grid=grid, levels=levels)


def _relative(path: str, folder: Path) -> str:
    """A path given on the command line, as the jzi.toml in `folder` has it; URLs and hub ids stay as they are."""
    if "://" in path or path.startswith("/vsi") or not (any(c in path for c in "*?[") or Path(path).exists()):
        return path
    absolute = Path(path).expanduser().absolute()
    if absolute.is_relative_to(folder.absolute()):
        return str(absolute.relative_to(folder.absolute()))
    return os.path.relpath(absolute, folder.absolute()) if not Path(path).is_absolute() else str(absolute)
