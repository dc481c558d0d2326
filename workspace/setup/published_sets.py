"""Working directories of VIGOR-M and of the state-wide data set, which `jzi init --dataset` sets up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jzi.datasets import statewide, vigor_m
from jzi.datasets.tiled_layout import TiledLayout
from jzi.errors import ConfigError
from jzi.store.photos.photo_table import PhotoTable, Rejected
from jzi.workspace.inputs import open_photo_table
from jzi.workspace.setup.init import new_encoder_settings, relative_path
from jzi.workspace.setup.settings import FILE, MapSettings, QuerySettings, Settings

#: Table that is written for the photos of the state-wide data set and of VIGOR-M, and raster for tiles.
STATEWIDE_TABLE, VIGOR_M_TABLE, VRT = "photos.parquet", "photos.csv", "satellite.vrt"


@dataclass(frozen=True)
class CityArea:
    """A city of VIGOR-M as a working directory.

    Attributes:
        city: the city.
        settings: of the directory.
        table: the photos in it.
    """

    city: vigor_m.City
    settings: Settings
    table: PhotoTable


def vigor_m_areas(
    folder: Path,
    data: Path | None,
    area: Literal["same", "cross"],
    *,
    encoder: str | None = None,
    image_size: int | None = None,
    force: bool = False,
) -> list[CityArea]:
    """Create the settings of a working directory for each city of VIGOR-M, and write their photo tables and VRTs.

    Args:
        folder: where the directories are made.
        data: folder of the data set; by default `folder`.
        area: the protocol.
        encoder: Hugging Face id or folder.
        image_size: side of the encoder's input, pixels.
        force: whether directories that have settings are set up anew.

    Raises:
        ConfigError: a directory has settings.
        DatasetError: the data set cannot be used.
    """
    cities = vigor_m.read(data or folder, area)
    for city in cities:
        if (folder / city.name / FILE).exists() and not force:
            raise ConfigError(f"{folder / city.name / FILE} exists: edit it, or pass --force to replace it")
    layouts = [city.layout() for city in cities]
    areas = []
    for city, layout in zip(cities, layouts, strict=True):
        place = folder / city.name
        place.mkdir(parents=True, exist_ok=True)
        layout.write_vrt(place / VRT)
        vigor_m.write_photos(city, place / VIGOR_M_TABLE)
        settings = Settings(
            pyramid=city.pyramid,
            # the VRT, which this writes, may name tiles in another folder
            map=MapSettings(rasters=[VRT], remote=not city.tiles.resolve().is_relative_to(place.resolve())),
            queries=QuerySettings(VIGOR_M_TABLE, relative_path(str(city.panoramas), place)),
            encoder=new_encoder_settings(place, encoder, image_size),
        )
        settings.folder = place
        areas.append(CityArea(city, settings, open_photo_table(settings).inside(city.pyramid)))
    return areas


def statewide_rasters(folder: Path, rasters: Sequence[str]) -> tuple[list[str], bool]:
    """Write VRTs for those rasters that are folders of `tiledwebmaps`, as the state-wide data set has its imagery.

    Args:
        folder: the working directory.
        rasters: as for `jzi init --map`.

    Returns:
        The rasters, with VRTs for such folders, and whether a VRT names files outside of the working directory.
    """
    result, outside = [], False
    for raster in rasters:
        layout = Path(raster) / "layout.yaml"
        if "://" in raster or not layout.is_file():
            result.append(raster)
            continue
        vrt = folder / f"{Path(raster).resolve().name}.vrt"
        tiles = TiledLayout.read(layout)
        folder.mkdir(parents=True, exist_ok=True)
        tiles.write_vrt(vrt)
        outside = outside or not tiles.folder.resolve().is_relative_to(folder.resolve())
        result.append(str(vrt))
    return result, outside


def statewide_photos(folder: Path, data: Path | None) -> tuple[str, str, tuple[Rejected, ...]]:
    """Write the photo table of a state of the state-wide data set.

    Args:
        folder: the working directory.
        data: folder of the state's photos; by default `folder`.

    Returns:
        The table and the folder of its photos, as for `jzi init --queries` and `--photos`, and the photos that are
        not on disk.

    Raises:
        DatasetError: the photos' metadata cannot be read.
    """
    data = data or folder
    missing = statewide.write_table(data, folder / STATEWIDE_TABLE)
    return str(folder / STATEWIDE_TABLE), str(data / "images"), missing
