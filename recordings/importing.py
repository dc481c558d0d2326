"""What imports share: photos that are linked into the folder of a data set, and the folder that is written at the end.

An import that was killed is run again and continues: a photo that is in place is not written again, and dataset.json
comes last. Until then `.import.json` says what is being imported, so that no other import mixes with it.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path, PurePosixPath
from typing import Any

import pandas as pd
from tqdm import tqdm

from jzi.curate.folder import IMAGES, INFO, DatasetFolder, DatasetInfo, FilterCount, Rejection, Source, read_info
from jzi.errors import DatasetError, PhotoError, first_line
from jzi.store.disk.files import remove_leftovers, write_whole
from jzi.store.photos.exif import SUFFIXES
from jzi.store.photos.photo_file import open_image

#: What is being imported, until it is done.
CLAIM = ".import.json"

#: Names of filters: what cannot be placed, and what cannot be read.
POSITION, PHOTO = "position", "photo"

_SETTINGS = {
    POSITION: "a position on earth, other than 0, 0, from the recording",
    PHOTO: "a photo on disk that can be read, in the folder of photos",
}


@dataclass(frozen=True)
class Recording:
    """What an import reads and how, which tells a continued import from another one.

    Attributes:
        kind: such as "opensfm".
        path: the folder or file.
        licence: of the photos.
        options: what else decides the result.
        url: of the data set, if it has one.
        attribution: its credit line.
    """

    kind: str
    path: Path
    licence: str = "unknown"
    options: Mapping[str, Any] = field(default_factory=dict)
    url: str = ""
    attribution: str = ""

    @property
    def name(self) -> str:
        """Name of the folder or of the file without its suffix; what `drive` is by default."""
        return (self.path.name or self.path.resolve().name) if self.path.is_dir() else self.path.stem

    @property
    def _note(self) -> str:
        return f"Imported from {self.name} ({self.kind})."

    @property
    def _fingerprint(self) -> dict[str, Any]:
        return {"kind": self.kind, "path": str(self.path.resolve()), "options": json.loads(json.dumps(self.options))}

    def claim(self, out: Path) -> None:
        """Make the folder of the data set and note in it what is imported.

        Raises:
            DatasetError: it holds something else, is the recording itself, or cannot be written.
        """
        if out.exists() and self.path.exists() and out.resolve() == self.path.resolve():
            raise DatasetError(f"{out} is what is imported: give another folder by -o")
        remedy = "give another folder by -o, or remove it"
        try:
            claimed = out / CLAIM
            if claimed.is_file():
                if json.loads(claimed.read_bytes()[:65_536]) != self._fingerprint:
                    raise DatasetError(f"{out} has an unfinished import of something else: {remedy}")
            elif (out / INFO).is_file():
                if self._note not in read_info(out).notes:
                    raise DatasetError(f"{out} holds another data set: {remedy}")
            elif out.is_dir() and any(out.iterdir()):
                raise DatasetError(f"{out} is not empty: {remedy}")
            out.mkdir(parents=True, exist_ok=True)
            text = json.dumps(self._fingerprint)
            write_whole(claimed, lambda file: file.write_text(text, encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DatasetError(f"{out} cannot be used for the data set: {first_line(error)}") from error

    def write(
        self, out: Path, rows: Sequence[Mapping[str, Any]], rejected: Sequence[Rejection], notes: Sequence[str] = ()
    ) -> DatasetFolder:
        """Write photos.csv, rejected.csv and dataset.json.

        Args:
            out: the folder, which was claimed.
            rows: of the photos.
            rejected: the other photos.
            notes: for the reader of the data card.

        Raises:
            DatasetError: there is no row, or the files cannot be written.
        """
        if not rows:
            first = f" (the first, {rejected[0].id}: {rejected[0].reason})" if rejected else ""
            self.release(out)
            raise DatasetError(f"{self.path} has no photo that can be used{first}; {len(rejected)} were left out")
        counts = pd.Series([each.filter for each in rejected], dtype=object).value_counts()
        source = Source(
            kind="photos", name=f"{self.name} ({self.kind})"[:1000], licence=self.licence or "unknown",
            attribution=self.attribution, url=self.url, accessed=date.today(), count=len(rows) + len(rejected),
        )  # fmt: skip
        info = DatasetInfo(
            sources=(source,),
            found=len(rows) + len(rejected),
            filters=tuple(
                FilterCount(name=name, setting=setting, removed=int(counts.get(name, 0)))
                for name, setting in _SETTINGS.items()
            ),
            notes=(self._note, *notes),
        )
        frame = pd.DataFrame(rows)
        frame["source"], frame["licence"] = self.name, source.licence
        folder = DatasetFolder(out, frame.dropna(axis="columns", how="all"), info, tuple(rejected))
        folder.write()
        (out / CLAIM).unlink(missing_ok=True)
        return folder

    def release(self, out: Path) -> None:
        """Remove what `claim` made, if nothing else is there."""
        (out / CLAIM).unlink(missing_ok=True)
        for folder in (out / IMAGES, out):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()


class PhotoFolder:
    """A folder of photos, out of which no name leads.

    Args:
        path: the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._root = path.resolve()

    def find(self, name: str) -> Path:
        """The file of a photo.

        Args:
            name: relative to the folder.

        Raises:
            PhotoError: there is none, or the name or a link leads out of the folder.
        """
        if not _is_relative(name):
            raise PhotoError("its path leads out of the folder of photos")
        file = self.path / name
        if not file.is_file():
            raise PhotoError(f"no such photo in {self.path}")
        if not file.resolve().is_relative_to(self._root):
            raise PhotoError("a link leads out of the folder of photos")
        if file.suffix.lower() not in SUFFIXES:
            raise PhotoError(f"{file.suffix or 'no suffix'} is no supported format of photos: convert it to JPEG")
        return file

    def names(self) -> list[str]:
        """Names of all photos in the folder and its sub-folders, sorted."""
        found = (each for each in self.path.rglob("*") if each.suffix.lower() in SUFFIXES and each.is_file())
        return sorted(each.relative_to(self.path).as_posix() for each in found)


def _is_relative(name: str) -> bool:
    path = PurePosixPath(name.replace("\\", "/"))
    return bool(path.parts) and "\0" not in name and not path.is_absolute() and ".." not in path.parts


def photo_ids(names: Iterable[str]) -> list[str]:
    """Ids of photos: their names without suffix, with `_` for `/`; the whole name where two would have the same."""
    names = list(names)
    stems = [name.rpartition(".")[0].replace("/", "_") or name for name in names]
    twice = {stem for stem, count in pd.Series(stems, dtype=object).value_counts().items() if count > 1}
    return [name.replace("/", "_") if stem in twice else stem for name, stem in zip(names, stems, strict=True)]


def place_photos(
    out: Path, rows: Iterable[dict[str, Any]], photos: PhotoFolder, total: int
) -> tuple[list[dict[str, Any]], list[Rejection]]:
    """Link the photos of rows into the folder of a data set, or copy them where links are impossible.

    Args:
        out: the folder of the data set.
        rows: with `id`, `name` (in the folder of photos) and what photos.csv shall have; width and height are added.
        photos: the folder of photos.
        total: number of rows, for the progress.

    Returns:
        The rows with `path` for `name`, and the photos that cannot be read.

    Raises:
        DatasetError: a photo cannot be written.
    """
    placed, rejected = [], []
    for row in tqdm(rows, total=total, unit="photo", desc="photos", delay=1):
        name = row.pop("name")
        try:
            file = photos.find(name)
            with open_image(file, name) as image:
                row["width"], row["height"] = image.size
        except PhotoError as error:
            rejected.append(Rejection(row["id"], PHOTO, str(error)))
            continue
        row["path"] = (PurePosixPath(IMAGES) / PurePosixPath(name.replace("\\", "/"))).as_posix()
        link_or_copy(file, out / row["path"])
        placed.append(row)
    return placed, rejected


def link_or_copy(source: Path, target: Path) -> None:
    """Put a file in another place, as a hard link if the file system allows it; one that is there stays.

    Raises:
        DatasetError: it cannot be written.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():
            if target.samefile(source) or target.stat().st_size == source.stat().st_size:
                return
            target.unlink()  # of an earlier import; the source has changed since
        try:
            os.link(source.resolve(), target)
        except OSError:  # another file system, or one without links
            write_whole(target, lambda file: shutil.copyfile(source, file))
    except OSError as error:
        raise DatasetError(f"{target} cannot be written: {error.strerror or first_line(error)}") from error


def clean(out: Path) -> None:
    """Remove temporary files that a killed import left."""
    for folder in {out, *(each.parent for each in (out / IMAGES).rglob(".*.partial"))}:
        remove_leftovers(folder)
