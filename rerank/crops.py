"""Crops of the map around cells, as judges see them; rendered once, and kept as files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from pyproj import Transformer

from jzi.errors import RerankError
from jzi.rerank.config import RerankConfig
from jzi.rerank.question import Picture
from jzi.store.disk.files import write_whole
from jzi.store.geometry.cell_grid import Bounds, CellGrid
from jzi.store.plain import plain

if TYPE_CHECKING:
    from jzi.encode.rasters.imagery import Imagery

#: Colour and width in pixels of a cell's outline.
OUTLINE, OUTLINE_PX = (255, 255, 0), 2

#: Names the imagery that a folder's crops were rendered from.
SOURCE = "source.json"


class Crops:
    """Crops around the centres of cells, in true metres, true north up, with the cell outlined.

    A crop that is kept needs no imagery any more; those of other imagery are rendered anew.

    Args:
        area: the cells.
        config: side and pixels of crops, and whether the cell is outlined.
        folder: where crops are kept, in a folder of their own for each area, side and number of pixels.
        imagery: opens the map; returns None if there is none.
    """

    def __init__(
        self, area: CellGrid, config: RerankConfig, folder: Path, imagery: Callable[[], Imagery | None]
    ) -> None:
        self.area, self.config, self._open = area, config, imagery
        settings = [str(plain(area)), config.crop_m, config.crop_pixels, config.outline]
        self.folder = folder / hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:16]
        self._imagery: Imagery | None = None
        self._opened = False
        self.rendered = 0

    def of(self, cells: Sequence[tuple[int, int]]) -> list[Picture | None]:
        """The crop around each cell, given by row and column; None where there is no imagery at all.

        Raises:
            RerankError: a crop is not kept, and there is no imagery to render it from; or it cannot be kept.
            ImageryError: the imagery cannot be read.
        """
        self._use_imagery()
        return [self._crop(row, col) for row, col in cells]

    def _crop(self, row: int, col: int) -> Picture | None:
        path, empty = (self.folder / f"{row}_{col}{suffix}" for suffix in (".png", ".empty"))
        if empty.exists():
            return None
        if path.exists():
            return Picture(self._read(path))
        if self._imagery is None:
            raise RerankError(
                f"there is no imagery around cell {row}, {col}, and no crop of it in {self.folder}: name rasters with "
                "--imagery or in jzi.toml, or fill the folder with --crops-only where they are"
            )
        pixels = self._render(row, col)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if pixels is None:
                empty.touch()
                return None
            image = Image.fromarray(pixels)
            write_whole(path, lambda file: image.save(file, "PNG"))
        except OSError as error:
            raise RerankError(f"a crop cannot be kept in {self.folder}: {error.strerror or error}") from error
        self.rendered += 1
        return Picture(pixels)

    def _read(self, path: Path) -> NDArray[np.uint8]:
        side = self.config.crop_pixels
        try:
            with Image.open(path, formats=["PNG"]) as image:
                if image.size != (side, side):
                    raise ValueError(f"it has {image.width} x {image.height} pixels, not {side} x {side}")
                return np.asarray(image.convert("RGB"))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise RerankError(f"{path} is not a crop ({error}): delete it") from error

    def _render(self, row: int, col: int) -> NDArray[np.uint8] | None:
        """(row, col, 3) pixels; None without imagery."""
        assert self._imagery is not None
        center_x, center_y = (float(each) for each in self.area.cell_centers(row, col))
        half = self.area.cell_size / 2
        x, y = center_x + half * np.array([-1, 1, 1, -1]), center_y + half * np.array([1, 1, -1, -1])
        (latitude, longitude), (at_lat, at_lon) = self.area.unproject(x, y), self.area.unproject(center_x, center_y)
        crs = f"+proj=aeqd +lat_0={float(at_lat)!r} +lon_0={float(at_lon)!r} +datum=WGS84 +units=m +no_defs +type=crs"
        right, up = Transformer.from_crs("EPSG:4326", crs, always_xy=True).transform(longitude, latitude)
        corners = np.stack([right, up], 1)
        reach = self.config.crop_m / 2 or float(np.ptp(corners, axis=0).max())
        pixels, covered = self._imagery.render(Bounds(-reach, -reach, reach, reach), self.config.crop_pixels, crs)
        if not covered.any():
            return None
        if not self.config.outline:
            return pixels
        image = Image.fromarray(pixels)
        scale = self.config.crop_pixels / (2 * reach)
        points = [((reach + east) * scale, (reach - north) * scale) for east, north in corners]
        ImageDraw.Draw(image).polygon(points, outline=OUTLINE, width=OUTLINE_PX)
        return np.asarray(image)

    def _use_imagery(self) -> None:
        """Open the imagery, if there is any, and leave crops of other imagery aside."""
        if self._opened:
            return
        self._imagery, self._opened = self._open(), True
        if self._imagery is None:
            return
        source = json.dumps(sorted(self._files(self._imagery)))
        record = self.folder / SOURCE
        try:
            if record.exists() and record.read_text(errors="replace") != source:
                for path in [*self.folder.glob("*_*.png"), *self.folder.glob("*_*.empty")]:
                    path.unlink()
            self.folder.mkdir(parents=True, exist_ok=True)
            write_whole(record, lambda file: file.write_text(source))
        except OSError as error:
            raise RerankError(f"crops cannot be kept in {self.folder}: {error.strerror or error}") from error

    @staticmethod
    def _files(imagery: Imagery) -> list[list[str | int]]:
        """Name, size and time of change of the files of the rasters, with how they are read."""
        files: list[list[str | int]] = [[imagery.description, 0, 0]]
        for raster in imagery.rasters:
            for name in raster.files or [raster.path]:
                try:
                    stat = Path(name).stat()
                except OSError:  # such as a raster at a URL
                    files.append([str(name), -1, -1])
                else:
                    files.append([Path(name).name, stat.st_size, stat.st_mtime_ns])
        return files
