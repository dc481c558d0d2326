"""The files that `locate` writes; one that cannot be written does not keep the others from being written."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jzi.commands.shared.common import UsageError
from jzi.errors import JziError, first_line
from jzi.store.printable import listed

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from jzi.encode.rasters.imagery import Imagery
    from jzi.locate.answer.location import Location, NotLocated
    from jzi.locate.locator import Locator
    from jzi.store.photos.exif import ExifPosition


@dataclass
class Outputs:
    """Collects answers and writes them.

    Attributes:
        geojson: file to write; None for none, as for the other files.
        heatmap: a GeoTIFF of cells; beside it, of refined answers, one of metres with `.refined` in its name.
        picture: a PNG of the first photo.
        page: an HTML page.
        table: a CSV.
        copies: folder for copies of the photos with their position as EXIF.
        score_map: a GeoTIFF of the score of every cell for the first photo.
        headings: whether copies get the heading of answers that have one, if it is known.
        overwrite_gps: whether positions that photos have in their EXIF are replaced in their copies.
        errors: a sentence for each file that could not be written.
    """

    geojson: Path | None
    heatmap: Path | None
    picture: Path | None
    page: Path | None
    table: Path | None
    copies: Path | None
    score_map: Path | None = None
    headings: bool = False
    overwrite_gps: bool = False
    errors: list[str] = field(default_factory=list)
    _copied: int = 0
    _written: list[Path] = field(default_factory=list)
    _done: set[Path] = field(default_factory=set)
    _answers: list[tuple[Path, dict[str, Any], Location | None]] = field(default_factory=list)
    _with_gps: list[Path] = field(default_factory=list)
    _not_sure: list[Path] = field(default_factory=list)
    _elsewhere: list[Path] = field(default_factory=list)
    _heif: list[Path] = field(default_factory=list)

    def __bool__(self) -> bool:
        return any((*self._files, self.copies))

    @property
    def written(self) -> list[str]:
        """The folder of copies with their number, if there are any, and the files that were written so far."""
        copies = f"{self._copied} {'copy' if self._copied == 1 else 'copies'} into {self.copies}"
        return [*([copies] if self._copied else []), *map(str, self._written)]

    @property
    def _files(self) -> tuple[Path | None, ...]:
        return self.geojson, self.heatmap, self.picture, self.page, self.table, self.score_map

    def check(self) -> None:
        """Raise a UsageError if the folder of a file does not exist."""
        for output in self._files:
            if output and not output.parent.is_dir():
                raise UsageError(f"there is no folder {output.parent} to write {output.name} into")

    def prepare_copies(self, photos: list[Path]) -> None:
        """Raise a UsageError if a copy would replace a photo or another copy, or has no place for its folder.

        The folder is created with the first copy: a run without any leaves none behind.
        """
        folder = self.copies
        if folder is None:
            return
        if any(photo.resolve().parent == folder.resolve() for photo in photos):
            raise UsageError(f"--write-exif {folder} is the folder of the photos: give another folder for the copies")
        names = [photo.name for photo in photos]
        if duplicates := {name for name in names if names.count(name) > 1}:
            raise UsageError(f"two photos are called {min(duplicates)}: locate one folder at a time with --write-exif")
        existing = next(each for each in (folder, *folder.absolute().parents) if each.exists())
        if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
            raise UsageError(f"--write-exif {folder} cannot be created in {existing}: give another folder")

    def add(self, photo: Path, answer: Location | NotLocated) -> None:
        """Write a photo's copy if its answer is sure, and add the answer.

        An interruption leaves the answer out of all other files, or out of none. Without a threshold of the user's own,
        photos that are more probably from elsewhere get no copy either: a position in EXIF comes without the
        probability that it is in the area at all, which all other files have.
        """
        from jzi.locate.answer.location import Location
        from jzi.store.plain import plain

        if not isinstance(answer, Location):
            self._answers.append((photo, plain(answer), None))
            return
        if self.copies:
            self._copy(photo, answer, self.copies / photo.name)
        mapped = answer if any(file for file in self._files if file != self.table) else None
        self._answers.append((photo, answer.to_dict(), mapped))

    def _copy(self, photo: Path, answer: Location, copy: Path) -> None:
        from jzi.store.photos.exif import write_position
        from jzi.store.photos.photo_file import HEIF_HEAD, is_heif

        if not answer.sure:
            self._not_sure.append(photo)
            return
        if answer.elsewhere and not answer.abstain:
            self._elsewhere.append(photo)
            return
        if not self.overwrite_gps and answer.exif:
            self._with_gps.append(photo)
            return
        with photo.open("rb") as file:
            if is_heif(file.read(HEIF_HEAD)):
                self._heif.append(photo)
                return
        radius = answer.radius_68 if math.isfinite(answer.radius_68) else None
        directions = answer.fix.directions if self.headings and answer.fix else ()
        heading = directions[0].heading_deg if directions else None
        position = answer.latitude, answer.longitude

        def write_copy(path: Path) -> None:
            path.parent.mkdir(parents=True, exist_ok=True)
            # photos that have a position which is not to be replaced have been left out above
            write_position(photo, path, *position, radius, heading, overwrite=True)

        self._copied += self._write(copy, write_copy)

    @property
    def notes(self) -> list[str]:
        """A sentence for the photos without a copy of each kind, and for a picture that is not drawn."""
        notes = []
        if self._with_gps:
            photos = _each(self._with_gps, "has", "have")
            notes.append(
                f"{photos} a position in the EXIF already: no copy was written; --overwrite-gps replaces the position"
            )
        if self._not_sure:
            photos = _each(self._not_sure, "has an answer that is", "have answers that are")
            notes.append(f"{photos} not sure: no copy was written")
        if self._elsewhere:
            photos = _each(self._elsewhere, "is", "are")
            notes.append(
                f"{photos} more probably from elsewhere than from this area: no copy was written; --elsewhere 0 says "
                "that all photos are from this area"
            )
        if self._heif:
            photos = _each(self._heif, "is a HEIC photo", "are HEIC photos")
            them = "it" if len(self._heif) == 1 else "them"
            notes.append(f"{photos}: no copy was written; convert {them} to JPEG first")
        if self.picture and self._located and not self._located[0][1].sure:
            notes.append(f"{self.picture} is not drawn: its answer is not sure")
        return notes

    @property
    def _located(self) -> list[tuple[Path, Location]]:
        return [(photo, answer) for photo, _, answer in self._answers if answer]

    def write(
        self,
        imagery: Imagery | None,
        cell_mask: NDArray[np.bool_] | None = None,
        locator: Locator | None = None,
    ) -> None:
        """Write the files of the answers so far that it has not written yet: none if there is no answer.

        Args:
            imagery: background of the picture and the page.
            cell_mask: (row, col) the cells that are searched, if the others are to be nodata in the heat map.
            locator: the locator of the answers; needed for the score map.
        """
        if self.table and self._answers:
            from jzi.export.files import write_csv

            self._write_file(self.table, write_csv, [row for _, row, _ in self._answers])
        answers = self._located
        if not answers:
            return
        from jzi.export.files import write_geojson

        locations = [location for _, location in answers]
        truths = [location.exif for location in locations]
        if self.geojson:
            self._write_file(self.geojson, write_geojson, locations, truths)
        if self.heatmap:
            from jzi.export.heatmap import write_heatmap

            self._write_file(self.heatmap, write_heatmap, locations, cell_mask)
            refined = [location for location in locations if location.sure]
            if any(location.fix for location in refined):
                from jzi.export.fine_grid import refined_name, write_fine_heatmap

                self._write_file(refined_name(self.heatmap), write_fine_heatmap, refined)
        if self.picture and locations[0].sure:
            self._write_file(self.picture, self._draw, imagery, truths[0])
        if self.page:
            from jzi.export.page import write_page

            located = [(photo, location, truth) for (photo, location), truth in zip(answers, truths, strict=True)]
            self._write_file(self.page, write_page, located, imagery)

        if self.score_map and locator:
            self._write_file(self.score_map, self._draw_scores, locator)

    def _draw_scores(self, path: Path, locator: Locator) -> None:
        from jzi.export.heatmap import write_score_map
        from jzi.workspace.regions.region_index import log_scores

        photo = self._located[0][0]
        _, query = locator.encode([photo])
        write_score_map(path, locator.expert.area, log_scores(locator.expert, query), photo.name)

    def _draw(self, path: Path, imagery: Imagery | None, truth: ExifPosition | None) -> None:
        from jzi.export.picture import draw_zoom

        photo, location = self._located[0]
        draw_zoom(location, photo, imagery, path, truth=(truth.latitude, truth.longitude) if truth else None)

    def _write_file(self, path: Path, write: Callable[..., Any], *arguments: Any) -> None:
        if path in self._done:
            return
        if self._write(path, write, *arguments):
            self._written.append(path)
        self._done.add(path)

    def _write(self, path: Path, write: Callable[..., Any], *arguments: Any) -> bool:
        """Call `write` with a path and arguments; whatever is raised becomes a sentence. Returns whether it wrote."""
        try:
            write(path, *arguments)
            return True
        except JziError as error:
            self.errors.append(str(error))
        except Exception as error:
            self.errors.append(f"{path} cannot be written: {first_line(error)}")
        return False


def _each(photos: list[Path], one: str, several: str) -> str:
    """Photos with a verb."""
    return f"{listed(photos)} {one if len(photos) == 1 else several}"
