"""Find the photos of a table's rows; each folder is listed once, and paths do not lead out of the folder of photos."""

# Paths are text here: with millions of them, pathlib takes ten times as long.
# ruff: noqa: PTH100, PTH118, PTH119, PTH122

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from tqdm import tqdm

from jzi.store.exif import SUFFIXES

#: Order in which the suffixes of a photo `<id>.jpg` are tried; cameras write .JPG.
_RANK = {suffix: rank for rank, suffix in enumerate((*SUFFIXES, *(suffix.upper() for suffix in SUFFIXES)))}
_UNDISTORTED = "_undistorted"


@dataclass
class _Listing:
    """Names in a folder: photos, links to photos outside, and sub-folders; and photos by the ids that they match."""

    photos: set[str] = field(default_factory=set)
    outside: set[str] = field(default_factory=set)
    folders: list[str] = field(default_factory=list)

    @cached_property
    def by_id(self) -> dict[str, str]:
        return _by_id(self.photos)


class PhotoFinder:
    """Finds photos below a folder by path or id.

    Symbolic links and `..` are followed only to places inside of the folder. Folders outside are not even listed.

    Args:
        folder: the folder of the photos.
        allow_outside: whether paths and links may lead out of it.
    """

    def __init__(self, folder: Path, allow_outside: bool = False) -> None:
        self.folder = os.path.abspath(folder)
        self.allow_outside = allow_outside
        self._root = os.path.realpath(folder)
        self._listings: dict[str, _Listing | None] = {}
        self._heads: dict[tuple[str, str], tuple[str, _Listing | None]] = {}  # by a table's folder of a photo

    def find(self, ids: Iterable[str], paths: Iterable[str], table_folder: Path) -> Iterator[tuple[str, bool]]:
        """Find the photo of each row.

        A photo is found by its path in the folder, as `<id>`, `<id>.jpg` or `<id>_undistorted.jpg` (and other suffixes)
        in it, by its path relative to the table, or by the name of its file anywhere below the folder if that occurs
        once.

        Args:
            ids: id of each row.
            paths: path of each row; may be empty.
            table_folder: folder of the table.

        Yields:
            The absolute path of the photo, empty if there is none, and whether its path leads out of the folder.
        """
        table = os.path.abspath(table_folder)
        for name, path in tqdm(zip(ids, paths, strict=True), unit="row", desc="photo table", delay=2):
            photo, outside = self._look_up(self.folder, path, False) if path else ("", False)
            if photo:
                yield photo, False
                continue
            for folder, each, is_id in ((self.folder, name, True), (table, path, False)):
                if each and not photo:
                    photo, leads_out = self._look_up(folder, each, is_id)
                    outside |= leads_out
            yield photo or self._anywhere(path) or self._anywhere(name, is_id=True), outside

    def _look_up(self, folder: str, path: str, is_id: bool) -> tuple[str, bool]:
        head, _, base = path.rpartition("/")  # a base of ".." is no photo
        try:
            directory, listing = self._heads[folder, head]
        except KeyError:
            directory = os.path.normpath(os.path.join(folder, head or ("/" if path[0] == "/" else "")))
            self._heads[folder, head] = directory, self._list(directory)
            return self._look_up(folder, path, is_id)
        if listing is None or base in listing.outside:
            return "", True
        name = base if base in listing.photos else listing.by_id.get(base, "") if is_id else ""
        return f"{directory}{os.sep}{name}" if name else "", False

    def _anywhere(self, path: str, is_id: bool = False) -> str:
        base = os.path.basename(path.rstrip("/"))
        photo = self._unique.get(base, "") if base else ""
        return photo or (self._unique[name] if is_id and (name := self._unique_by_id.get(base)) else "")

    @cached_property
    def _unique(self) -> dict[str, str]:
        """Photos in all sub-folders by the name of their file; names that occur twice are ambiguous and left out."""
        unique: dict[str, str] = {}
        twice = set()
        for directory, listing in self._walk():
            for name in listing.photos:
                if name in unique:
                    twice.add(name)
                unique[name] = os.path.join(directory, name)
        return {name: path for name, path in unique.items() if name not in twice}

    @cached_property
    def _unique_by_id(self) -> dict[str, str]:
        return _by_id(self._unique)

    def all(self) -> tuple[list[Path], list[Path]]:
        """Return the photos in the folder and its sub-folders, sorted, and the links that lead out of it."""
        photos, outside = [], []
        for directory, listing in self._walk():
            photos += [Path(directory, name) for name in listing.photos]
            outside += [Path(directory, name) for name in listing.outside]
        return sorted(photos), sorted(outside)

    def _walk(self) -> Iterator[tuple[str, _Listing]]:
        pending = [self.folder]
        while pending:
            directory = pending.pop()
            if listing := self._list(directory):
                pending += [os.path.join(directory, name) for name in listing.folders]
                yield directory, listing

    def _list(self, directory: str) -> _Listing | None:
        """List a folder; None if it is outside. It is empty if there is no such folder."""
        if directory not in self._listings:
            self._listings[directory] = self._read(directory)
        return self._listings[directory]

    def _read(self, directory: str) -> _Listing | None:
        if not (self.allow_outside or _below(directory, self.folder) or _below(directory, self._root)):
            return None
        listing = _Listing()
        try:
            with os.scandir(directory) as entries:
                if not self._inside(directory):
                    return None
                for entry in entries:
                    is_link = entry.is_symlink()
                    if entry.is_dir(follow_symlinks=False):
                        listing.folders.append(entry.name)
                    elif os.path.splitext(entry.name)[1].lower() in SUFFIXES and entry.is_file():
                        inside = not is_link or self._inside(entry.path)
                        (listing.photos if inside else listing.outside).add(entry.name)
        except (OSError, ValueError):  # no such folder, a name that is too long, or a NUL character
            return _Listing()
        return listing

    def _inside(self, path: str) -> bool:
        return self.allow_outside or _below(os.path.realpath(path), self._root)


def _below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)


def _by_id(photos: Iterable[str]) -> dict[str, str]:
    """Photos by the ids that they match, the preferred one if several do."""
    best: dict[str, tuple[int, str]] = {}
    for photo in photos:
        stem, suffix = os.path.splitext(photo)
        rank = _RANK.get(suffix)
        if rank is None:
            continue
        best[stem] = min(best.get(stem, (99, "")), (rank, photo))
        if stem.endswith(_UNDISTORTED):
            plain = stem.removesuffix(_UNDISTORTED)
            best[plain] = min(best.get(plain, (99, "")), (len(_RANK) + rank, photo))
    return {name: photo for name, (_, photo) in best.items()}
