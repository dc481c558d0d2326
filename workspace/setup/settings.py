"""jzi.toml: the settings of one area and its experiments."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import asdict, field
from pathlib import Path
from typing import Any, Literal

import tomlkit
from pydantic import ConfigDict
from pydantic import Field as Bounds
from pydantic.dataclasses import dataclass
from pyproj import CRS
from pyproj.exceptions import CRSError

from jzi.decode.config import DecoderConfig, Precision
from jzi.errors import ConfigError, first_line
from jzi.locate.ranges import MAX_SEED
from jzi.refine.config import RefineConfig
from jzi.rerank.config import RerankConfig
from jzi.store.disk.memory import memory_bytes
from jzi.store.geometry.bands import MAX_CELL, MIN_CELL
from jzi.store.geometry.pyramid import Pyramid
from jzi.store.geometry.region import Rule
from jzi.store.info import MAX_ATTRIBUTION, MAX_IMAGE_SIZE
from jzi.train.config.encoders import FinetuneConfig, RetrieverConfig
from jzi.train.config.refiner import RefinerTrainingConfig
from jzi.train.config.statewide import StatewideConfig
from jzi.train.config.training import HeadsTrainingConfig, TrainConfig

FILE = "jzi.toml"
_strict = ConfigDict(extra="forbid")


@dataclass(config=_strict)
class MapSettings:
    """The map, and how to read rasters that lack metadata.

    Attributes:
        rasters: orthophotos: files, globs, folders or URLs; the first is on top.
        crs: CRS of rasters without one, such as EPSG:25833.
        nodata: value of pixels without imagery, of rasters that do not record it.
        stretch: the two values that become black and white, of rasters that are not 8-bit; percentiles 2 and 98 of each
            band if unset.
        tokens: whether patch tokens of tiles are stored beside their embeddings, for `decoder.patch_tokens`.
        detail_px: side of the images of which `jzi encode-map --detail` makes tokens for refiners, pixels; twice the
            encoder's input if unset.
        remote: whether rasters may be URLs and other GDAL data sources, and may name files outside of their folder.
        attribution: credit line that the imagery's licence asks for, which maps and pictures show; by default what the
            rasters record.
        memory: memory that the embeddings of the map may take, such as "4GB"; "auto" is a quarter of what is free. A
            larger map is not loaded: what is needed of it is read, and what was used last is kept.
    """

    rasters: list[str] = field(default_factory=list)
    crs: str | None = None
    nodata: float | None = None
    stretch: tuple[float, float] | None = None
    tokens: bool = False
    detail_px: int | None = Bounds(default=None, ge=1, le=MAX_IMAGE_SIZE)
    remote: bool = False
    attribution: str = Bounds(default="", max_length=MAX_ATTRIBUTION)
    memory: str = "auto"

    def __post_init__(self) -> None:
        memory_bytes(self.memory, "map.memory")
        try:
            CRS.from_user_input(self.crs or "EPSG:4326")
        except CRSError as error:
            raise ConfigError(f"map.crs {self.crs!r} is not a CRS that PROJ knows: {first_line(error)}") from error


@dataclass(config=_strict)
class QuerySettings:
    """The photos with known positions.

    Attributes:
        table: a folder of photos with EXIF positions, or a CSV or Parquet table; or a table for each split:
            { train = "train.csv", val = "val.csv" }.
        photos: the folder of a table's photos; that of the table if unset.
        views: augmented views that `jzi encode-queries` stores of each training photo.
        seed: seed of the augmented views.
        split_by: what photos of a split have in common where the table has no splits: a drive (sequence), a block of
            the map, or nothing (photo); auto is the first of these that gives three groups or more.
        allow_outside: whether paths of the table and symbolic links may lead out of the folder of photos.
    """

    table: str | dict[str, str] | None = None
    photos: str | None = None
    views: int = Bounds(default=0, ge=0, le=255)
    seed: int = Bounds(default=0, ge=0, le=MAX_SEED)
    split_by: Literal["auto", "sequence", "block", "photo"] = "auto"
    allow_outside: bool = False


@dataclass(config=_strict)
class EncoderSettings:
    """The encoder of photos and tiles.

    Attributes:
        name: a Hugging Face id or a folder.
        image_size: side of its input, pixels.
        layout: how a photo is fitted into the input: as its left and right halves (the paper's), or whole.
        resampling: how photos are resized: "antialias", or "reference" as published checkpoints need, with OpenCV.
        batch_size: images per forward pass.
    """

    name: str = "facebook/dinov2-base"
    image_size: int = Bounds(default=384, ge=1, le=MAX_IMAGE_SIZE)
    layout: Literal["halves", "whole"] = "halves"
    resampling: Literal["antialias", "reference"] = "antialias"
    batch_size: int = Bounds(default=32, ge=1, le=65_536)


@dataclass(config=_strict)
class PathSettings:
    """Where a cache or a model is stored.

    Attributes:
        path: its folder; that of a cache may be a URL such as s3://bucket/features.zarr.
    """

    path: str


@dataclass(config=_strict)
class ModelSettings:
    """Where the model is stored, and how it searches.

    Attributes:
        path: its folder.
        precision: of the zoom's search: "float32", or "bfloat16", which is faster on processors that multiply it
            themselves (AVX-512 with BF16, AMX, GPUs), and slower on others; probabilities change by about 0.1 %.
    """

    path: str = "model"
    precision: Precision = "float32"


class AreaSettings:
    """What the settings of every kind of area have. Relative paths are relative to the folder of jzi.toml."""

    map: MapSettings
    queries: QuerySettings
    cache: PathSettings
    rerank: RerankConfig

    def __post_init__(self) -> None:
        self.folder = Path()
        #: Names of the settings that were overridden, such as "decoder.layers".
        self.overridden: frozenset[str] = frozenset()

    def path(self, value: str) -> Path:
        """Resolve a path of the settings."""
        return resolve_path(value, self.folder)

    @property
    def cache_path(self) -> str:
        """Path or URL of the cache."""
        return self.cache.path if "://" in self.cache.path else str(self.path(self.cache.path))

    @property
    def rasters(self) -> list[str]:
        """Paths of the rasters of the map.

        Raises:
            ConfigError: no raster is named, or an entry matches no file.
        """
        return find_rasters(self.map.rasters, self.folder)

    def to_toml(self) -> str:
        """Format all settings as a jzi.toml."""
        return tomlkit.dumps(without_none(asdict(self)))  # type: ignore[call-overload]


@dataclass(config=_strict)
class Settings(AreaSettings):
    """The settings of a square area, which the zoom searches."""

    pyramid: Pyramid
    map: MapSettings = field(default_factory=MapSettings)
    queries: QuerySettings = field(default_factory=QuerySettings)
    encoder: EncoderSettings = field(default_factory=EncoderSettings)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    cache: PathSettings = field(default_factory=lambda: PathSettings("features.zarr"))
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    heads: HeadsTrainingConfig = field(default_factory=HeadsTrainingConfig)
    model: ModelSettings = field(default_factory=ModelSettings)
    retriever: RetrieverConfig = field(default_factory=RetrieverConfig)
    refine: RefineConfig = field(default_factory=RefineConfig)
    refiner: RefinerTrainingConfig = field(default_factory=RefinerTrainingConfig)
    rerank: RerankConfig = field(default_factory=RerankConfig)

    @property
    def encoder_folder(self) -> Path | None:
        """Folder of the encoder; None if its name is a Hugging Face id."""
        folder = self.path(self.encoder.name)
        return folder if folder.is_dir() else None


@dataclass(config=_strict)
class RegionSection:
    """The region, which is divided into cells.

    Attributes:
        file: a GeoJSON file with polygons.
        cell_m: side of a cell, metres.
        rule: which cells belong to it: those that it touches, with a corner in it, or with their centre in it.
    """

    file: str
    cell_m: float = Bounds(default=30.0, ge=MIN_CELL, le=MAX_CELL)
    rule: Rule = "touch"


@dataclass(config=_strict)
class EncodingSettings:
    """How cells and photos of a region are encoded.

    Attributes:
        batch_size: cells, or photos, per forward pass.
    """

    batch_size: int = Bounds(default=32, ge=1, le=65_536)


@dataclass(config=_strict)
class RegionSettings(AreaSettings):
    """The settings of a region, whose cells a state-wide retriever searches. The cache is the index of its cells."""

    region: RegionSection
    map: MapSettings = field(default_factory=MapSettings)
    queries: QuerySettings = field(default_factory=QuerySettings)
    statewide: StatewideConfig = field(default_factory=StatewideConfig)
    cache: PathSettings = field(default_factory=lambda: PathSettings("index.zarr"))
    encoding: EncodingSettings = field(default_factory=EncodingSettings)
    rerank: RerankConfig = field(default_factory=RerankConfig)


#: The sections of jzi.toml about photos and training, of which a command uses some: those that train off the cache read
#: no photos.
TRAINING = ("queries", "finetune", "decoder", "train", "heads", "retriever", "statewide", "refiner")


def find_rasters(entries: Iterable[str], folder: Path = Path()) -> list[str]:
    """Expand entries to paths of rasters.

    Args:
        entries: files, globs, URLs, or folders of GeoTIFF, JPEG, PNG, JPEG 2000 and VRT files.
        folder: folder of relative paths.

    Raises:
        ConfigError: there is no entry, or one matches no file.
    """
    rasters: list[str] = []
    for entry in entries:
        if "://" in entry or entry.startswith("/vsi"):
            rasters.append(entry)
            continue
        path = resolve_path(entry, folder)
        if path.is_dir():
            suffixes = (".tif", ".tiff", ".vrt", ".jp2", ".jpg", ".jpeg", ".png")
            files = sorted(file for file in path.iterdir() if file.suffix.lower() in suffixes)
        else:
            anchor = Path(path.anchor)
            files = sorted(anchor.glob(str(path.relative_to(anchor)))) if any(c in entry for c in "*?[") else [path]
        if not files or not files[0].exists():
            raise ConfigError(f"there is no raster {entry}: map.rasters names files, globs or folders")
        rasters += [str(file) for file in files]
    if not rasters:
        raise ConfigError("no raster is given: name the map with `jzi init --map RASTER` or in map.rasters of jzi.toml")
    return rasters


def names_url(entries: Iterable[str]) -> bool:
    """Return whether one of the entries of `find_rasters` is a URL or another GDAL data source."""
    return any("://" in entry or entry.startswith("/vsi") for entry in entries)


def resolve_path(path: str, folder: Path) -> Path:
    """Resolve a path of jzi.toml, whose folder need not exist."""
    return Path(os.path.normpath(folder / Path(path).expanduser()))


def without_none(values: dict[str, Any]) -> dict[str, Any]:
    """Leave out values that are not set: TOML has no null."""
    return {
        key: without_none(value) if isinstance(value, dict) else value
        for key, value in values.items()
        if value is not None
    }
