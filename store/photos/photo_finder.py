"""Find the photos of a table's rows; each folder is listed once, and paths do not lead out of the folder of photos."""

# Paths are text here: with millions of them, pathlib takes ten times as long.
# ruff: noqa: PTH100, PTH118

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from tqdm import tqdm

from jzi.store.photos.exif import LISTED_SUFFIXES, SUFFIXES

#: Suffixes in the order in which those of a photo `<id>.jpg` are tried; cameras write .JPG.
_ORDER = (*SUFFIXES, *(suffix.upper() for suffix in SUFFIXES))
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

    def find(self, ids: Sequence[str], paths: Sequence[str], table_folder: Path) -> tuple[list[str], list[bool]]:
        """Find the photo of each row.

        A photo is found by its path in the folder, as `<id>`, `<id>.jpg` or `<id>_undistorted.jpg` (and other suffixes)
        in it, by its path relative to the table, or by the name of its file anywhere below the folder if that occurs
        once.

        Args:
            ids: (row,) id of each row; may be empty text.
            paths: (row,) path of each row; may be empty text.
            table_folder: folder of the table.

        Returns:
            (row,) absolute path of each photo, empty if there is none, and (row,) whether the path or the id of a row
            without one leads out of the folder.
        """
        table = os.path.abspath(table_folder)
        photos, outside = [""] * len(ids), [False] * len(ids)
        steps: tuple[tuple[Sequence[str], Callable[[list[str]], Iterable[str | None]]], ...] = (
            (paths, lambda names: self._look_up(self.folder, names, by_id=False)),
            (ids, lambda names: self._look_up(self.folder, names, by_id=True)),
            (paths, lambda names: self._look_up(table, names, by_id=False)),
            (paths, lambda names: self._anywhere(names, by_id=False)),
            (ids, lambda names: self._anywhere(names, by_id=True)),
        )
        for names, search in steps:
            rows = [row for row, photo in enumerate(photos) if not photo and names[row]]
            if not rows:
                continue
            for row, photo in zip(rows, search([names[row] for row in rows]), strict=True):
                if photo is None:
                    outside[row] = True
                else:
                    photos[row] = photo
        return photos, outside

    def _look_up(self, folder: str, paths: list[str], by_id: bool) -> Iterator[str | None]:
        """Photo of each path relative to a folder: "" if there is none, None if the path leads out of `self.folder`."""
        bases = [path.rpartition("/")[2] for path in paths]  # a base of ".." is no photo
        heads = [path[: len(path) - len(base)] for path, base in zip(paths, bases, strict=True)]
        distinct = dict.fromkeys(heads)
        folders = {
            head: self._photos_in(os.path.normpath(os.path.join(folder, head)), by_id)
            for head in tqdm(distinct, unit="folder", desc="photo table", delay=2)
        }
        for head, base in zip(heads, bases, strict=True):
            prefix, listing, names = folders[head]
            if listing is None or base in listing.outside:
                yield None
            elif base in listing.photos:
                yield prefix + base
            else:
                yield prefix + names[base] if base in names else ""

    def _photos_in(self, directory: str, by_id: bool) -> tuple[str, _Listing | None, Mapping[str, str]]:
        listing = self._list(directory)
        return os.path.join(directory, ""), listing, listing.by_id if by_id and listing is not None else {}

    def _anywhere(self, paths: list[str], by_id: bool) -> Iterator[str]:
        """Photo of each path by the name of its file: "" if there is none."""
        unique, names = self._unique, self._unique_by_id if by_id else {}
        for path in paths:
            base = path.rstrip("/").rpartition("/")[2]
            name = base if base in unique else names.get(base)
            yield unique[name] + name if name else ""

    @cached_property
    def _unique(self) -> dict[str, str]:
        """Folders of the photos in all sub-folders, by name; names that occur twice are ambiguous and left out."""
        unique: dict[str, str] = {}
        twice = set()
        for directory, listing in tqdm(self._walk(), unit="folder", desc="photos by name", delay=2):
            twice |= unique.keys() & listing.photos
            unique.update(dict.fromkeys(listing.photos, os.path.join(directory, "")))
        for name in twice:
            del unique[name]
        return unique

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
                    elif _is_photo(entry.name) and entry.is_file():
                        inside = not is_link or self._inside(entry.path)
                        (listing.photos if inside else listing.outside).add(entry.name)
        except (OSError, ValueError):  # no such folder, a name that is too long, or a NUL character
            return _Listing()
        return listing

    def _inside(self, path: str) -> bool:
        return self.allow_outside or _below(os.path.realpath(path), self._root)


def _below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)


def _is_photo(name: str) -> bool:
    stem, dot, suffix = name.rpartition(".")
    return dot + suffix.lower() in LISTED_SUFFIXES and bool(stem.strip("."))


def _by_id(photos: Iterable[str]) -> dict[str, str]:
    """Photos by the ids that they match, the preferred one if several do."""
    stems: dict[str, list[str]] = {suffix: [] for suffix in _ORDER}
    for photo in photos:
        stem, dot, suffix = photo.rpartition(".")
        if (suffix := dot + suffix) in stems:
            stems[suffix].append(stem)
    by_id: dict[str, str] = {}
    for suffix in _ORDER:
        for stem in stems[suffix]:
            by_id.setdefault(stem, stem + suffix)
    for suffix in _ORDER:
        for stem in stems[suffix]:
            if stem.endswith(_UNDISTORTED):
                by_id.setdefault(stem.removesuffix(_UNDISTORTED), stem + suffix)
    return by_id
