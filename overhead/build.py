"""Imagery of an area as one VRT or Cloud-Optimized GeoTIFF, with the record of whose it is beside it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

from jzi.curate.folder import MAX_INFO, Source
from jzi.errors import DatasetError, ImageryError
from jzi.overhead.area import Area
from jzi.overhead.blocks import Blocks
from jzi.overhead.capabilities import Terms
from jzi.overhead.cog import Compression, block_options, check_compression, write_cog
from jzi.overhead.download import Estimate, Pacer, check_space, download, sample
from jzi.overhead.layer import Layer
from jzi.overhead.vrt import leads_elsewhere, write_vrt
from jzi.store.disk.files import write_whole
from jzi.version import __version__

#: Metres per pixel from which imagery is called too coarse: markings of roads and cars, which photos show, need finer.
COARSE_M = 2.0


@dataclass(frozen=True)
class Credit:
    """Whose imagery it is.

    Attributes:
        name: of the service, the collection or the files.
        attribution: the credit line.
        licence: its name or its text.
        fees: what it costs, in words; empty if nothing is said.
        url: of the service, without secrets.
    """

    name: str
    attribution: str
    licence: str
    fees: str = ""
    url: str = ""


@dataclass(frozen=True)
class Prepared:
    """Imagery that can be written.

    Attributes:
        layer: its pixels.
        area: where it is wanted; None for all of it.
        credit: whose it is.
        zoom: zoom level of tiles; -1 if there is none.
        details: what else its record says, one "name: value" each.
        notes: sentences for the user: what was chosen, and what to know.
    """

    layer: Layer
    area: Area | None
    credit: Credit
    zoom: int = -1
    details: Mapping[str, str | float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def gsd_m(self) -> float:
        """Metres on the ground per pixel, in the middle."""
        grid = self.layer.grid
        if self.area is not None:
            return grid.gsd_m(self.area.latitude)
        return grid.gsd_m(Area.of_grid(grid).latitude)

    @property
    def coarse(self) -> str | None:
        """A warning if the pixels are too coarse for the zoom."""
        if self.gsd_m < COARSE_M:
            return None
        return (
            f"{self.gsd_m:.3g} m per pixel is far too coarse for locating street photos, which needs road markings and "
            "cars to be seen: use imagery of 0.6 m or finer, such as NAIP or an orthophoto"
        )

    def source(self) -> Source:
        """What is written beside the raster, and what a data card says."""
        grid = self.layer.grid
        degrees = Area.of_grid(grid).bounds
        details: dict[str, str | float] = {
            "crs": grid.label, "gsd_m": round(self.gsd_m, 4), "pixels": f"{grid.width} x {grid.height}",
            "bounds": " ".join(f"{value:.6f}" for value in degrees), **self.details,
        }  # fmt: skip
        if self.zoom >= 0:
            details["zoom"] = str(self.zoom)
        return Source(
            kind="imagery", name=self.credit.name[:1000], licence=self.credit.licence[:1000] or "unknown",
            attribution=self.credit.attribution[:4000], url=self.credit.url[:4000], accessed=date.today(),
            count=self.layer.count, details=details,
        )  # fmt: skip

    def tags(self) -> dict[str, str]:
        """Metadata of the raster."""
        source = self.source()
        return {
            "TIFFTAG_COPYRIGHT": source.attribution or source.licence, "TIFFTAG_SOFTWARE": f"jzi {__version__}",
            "ATTRIBUTION": source.attribution, "LICENCE": source.licence, "SOURCE": source.name,
            "SOURCE_URL": source.url, "ACCESSED": source.accessed.isoformat(),
            **{name.upper(): str(value) for name, value in self.details.items()},
        }  # fmt: skip


def credit(terms: Terms, attribution: str | None, licence: str | None, url: str, required: bool) -> Credit:
    """Whose imagery it is, by the user's word or else by that of the service.

    Args:
        terms: what the service says.
        attribution: what the user says, if anything.
        licence: what the user says, if anything.
        url: of the service, without secrets.
        required: whether imagery without attribution and licence is refused.

    Raises:
        DatasetError: nobody says whose it is.
    """
    given = {"--attribution": attribution or terms.provider, "--licence": licence or terms.licence}
    missing = [option for option, value in given.items() if not value]
    if required and missing:
        raise DatasetError(
            f"{terms.name or 'the service'} does not say whose its imagery is or what may be done with it: look for "
            f"its terms of use, and pass {' and '.join(f'{option} TEXT' for option in missing)}"
        )
    return Credit(terms.name, given["--attribution"], given["--licence"], terms.fees, terms.url or url)


@dataclass(frozen=True)
class WriteOptions:
    """How a GeoTIFF is written.

    Attributes:
        compression: of the pixels; None for JPEG of 8-bit pixels, DEFLATE of others.
        quality: 1 to 100, of JPEG and WebP.
        per_second: requests a second; None for no limit.
        force: replace an existing file, and discard blocks of another request.
        progress: show progress.
    """

    compression: Compression | None = None
    quality: int = 90
    per_second: float | None = None
    force: bool = False
    progress: bool = False

    def chosen(self, layer: Layer) -> Compression:
        """The compression of a layer."""
        return self.compression or ("jpeg" if layer.dtype == "uint8" else "deflate")


def work_folder(output: Path) -> Path:
    """Where the blocks of a GeoTIFF are kept until it is complete."""
    return output.with_name(f".{output.name}.blocks")


def check_output(output: Path, force: bool) -> None:
    """Raise unless a raster can be written to a path.

    Raises:
        ImageryError: its folder does not exist, its name has another end, or it exists.
    """
    if output.suffix.lower() not in (".vrt", ".tif", ".tiff"):
        raise ImageryError(f"{output} is neither a .vrt nor a .tif: give -o map.vrt or -o map.tif")
    if not output.parent.is_dir():
        raise ImageryError(f"there is no folder {output.parent}: make it first")
    record = output.with_suffix(".json")
    for file in (output, record):
        if file.exists() and not force and not (file == record and _is_record(file)):
            raise ImageryError(f"{file} exists: give -o another name, or pass --force to replace it")


def write_map_vrt(prepared: Prepared, output: Path) -> bool:
    """Write a VRT and the record beside it; return whether it names files elsewhere or URLs.

    Raises:
        ImageryError: it cannot be written, or would hold a secret.
    """
    sources = prepared.layer.sources()
    write_vrt(output, prepared.layer.grid, prepared.layer.dtype, sources, prepared.tags())
    _write_record(prepared, output)
    return leads_elsewhere(output, sources)


class GeoTiffWriter:
    """Writes a layer as a Cloud-Optimized GeoTIFF, by blocks that are kept until it is complete.

    Args:
        prepared: the imagery.
        output: the file to write.
        options: how.

    Raises:
        ImageryError: it has too many pixels, or another type than the compression takes.
    """

    def __init__(self, prepared: Prepared, output: Path, options: WriteOptions) -> None:
        self.prepared, self.output, self.options = prepared, output, options
        layer = prepared.layer
        self.compression = options.chosen(layer)
        check_compression(self.compression, layer.bands, layer.dtype)
        self.blocks = Blocks(work_folder(output), layer, prepared.area)
        self.resumed = 0
        self._pacer = Pacer(options.per_second)

    def estimate(self, dry_run: bool) -> Estimate:
        """Read a few blocks and estimate the rest.

        Args:
            dry_run: write nothing.

        Raises:
            ImageryError: a block cannot be read, or the disk will not hold the result.
            OSError: a block cannot be written.
        """
        layer, options = self.prepared.layer, self.options
        if not dry_run:
            self.blocks.open(options.force)
            self.resumed = len(self.blocks.states)
        compressed = block_options(self.compression, options.quality, layer.bands, layer.dtype)
        try:
            estimate = sample(self.blocks, self._pacer, compressed, not dry_run, options.progress)
            if not dry_run:
                check_space(self.blocks.folder, estimate)
        finally:
            if not dry_run and not self.blocks.states:
                shutil.rmtree(self.blocks.folder)  # nothing to resume
        return estimate

    def write(self, estimate: Estimate) -> None:
        """Read the other blocks, write the file and the record beside it, and remove the blocks.

        Raises:
            ImageryError: the service fails, there is no imagery, or the file cannot be written.
            OSError: a block cannot be written.
        """
        layer, blocks = self.prepared.layer, self.blocks
        download(blocks, self._pacer, self.options.progress)
        sources = blocks.sources()
        if not sources:
            shutil.rmtree(blocks.folder)
            raise ImageryError(f"{self.prepared.credit.name} has no imagery in the area: nothing was written")
        vrt = blocks.folder / "blocks.vrt"
        write_vrt(vrt, layer.grid, layer.dtype, sources, self.prepared.tags(), mask_band=layer.bands + 1)
        size = sum(Path(source.name).stat().st_size for source in sources)
        expected = estimate.output_bytes or size

        def write(temporary: Path) -> None:
            temporary.unlink()  # GDAL would look at what is there
            write_cog(
                vrt, temporary, self.compression, self.options.quality, layer.dtype, expected, self.options.progress
            )

        _write_record(self.prepared, self.output)
        write_whole(self.output, write)
        shutil.rmtree(blocks.folder)


def _is_record(file: Path) -> bool:
    """Whether a file is a record of imagery, which an interrupted run may have written."""
    try:
        return Source.model_validate_json(file.read_bytes()[:MAX_INFO]).kind == "imagery"
    except (OSError, ValueError):
        return False


def _write_record(prepared: Prepared, output: Path) -> None:
    text = prepared.source().model_dump_json(indent=2) + "\n"
    write_whole(output.with_suffix(".json"), lambda file: file.write_text(text, encoding="utf-8"))
