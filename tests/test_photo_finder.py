"""The photo of a row of a table depends on nothing but the row and the folder, however many rows are looked up."""

# Paths are text here, as they are in tables.
# ruff: noqa: PTH112, PTH113, PTH118, PTH122

from __future__ import annotations

import os
import random
from functools import cache
from pathlib import Path

import pytest

from jzi.store.photos.photo_finder import PhotoFinder

FILES = (
    "photos/a.jpg", "photos/a.JPG", "photos/a.png", "photos/b_undistorted.jpeg", "photos/b.tif", "photos/.jpg",
    "photos/..jpg", "photos/c.jpg.jpg", "photos/d.gif", "photos/e.Jpg", "photos/sub/a.jpg", "photos/sub/f.jpg",
    "photos/sub/g_undistorted.PNG", "photos/sub/deep/h.webp", "photos/two words/i.jpg", "photos/jpg", "table/j.jpg",
    "photos/tables/k.jpg", "outside/m.jpg", "outside/n.jpg",
)  # fmt: skip

#: Links, by their path: to a photo and a folder inside, and to a photo and a folder outside.
LINKS = {
    "photos/link.jpg": "photos/sub/f.jpg",
    "photos/linked": "photos/sub",
    "photos/out.jpg": "outside/m.jpg",
    "photos/out": "outside",
    "photos/gone.jpg": "photos/none.jpg",
}

NAMES = ("a", "b", "e", "f", "g", "h", "i", "k", "m", "c.jpg", "a.jpg", "h.webp", "f.jpg", "n.jpg", "j.jpg", "out.jpg",
         "link.jpg", "gone.jpg", "e.Jpg", ".jpg", "..jpg", "jpg", "d.gif", "", ".", "..",
         "\0", "x" * 300, "ü", "A")  # fmt: skip
HEADS = ("", "", "/", "//", "sub/", "./", "../", "../outside/", "sub/../", "sub//", "sub/deep/", "two words/",
         "linked/", "out/", "out/../photos/", "../photos/", "../table/", "none/", "\0/", "y" * 300 + "/",
         "{root}/photos/", "{root}/outside/", "{root}/photos/sub/", "a.jpg/", "../photos/tables/")  # fmt: skip

SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".tif", ".tiff", ".heic", ".heif", ".hif")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `FILES` and `LINKS`."""
    root = tmp_path_factory.mktemp("finder")
    for name in FILES:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    for name, target in LINKS.items():
        (root / name).symlink_to(root / target)
    return root


def below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(f"{folder}/")


def names_of_id(name: str) -> list[str]:
    """Names of the photos that an id means, the preferred one first."""
    cases = (str.lower, str.upper)
    return [name + end + case(suffix) for end in ("", "_undistorted") for case in cases for suffix in SUFFIXES]


def in_folder(root: Path, folder: str, path: str, is_id: bool, allow_outside: bool) -> str | None:
    """The photo of a path, by one look at the disk; None if it lies outside."""
    photos, base = str(root / "photos"), path.rpartition("/")[2]
    directory = os.path.normpath(os.path.join(folder, path[: len(path) - len(base)]))
    try:
        real = os.path.realpath(directory)
        exists = os.path.isdir(directory)
    except ValueError:  # a NUL character
        real, exists = directory, False
    if not allow_outside and not (below(directory, photos) and (below(real, photos) or not exists)):
        return None
    plain = [base] if os.path.splitext(base)[1].lower() in SUFFIXES else []
    for name in plain + (names_of_id(base) if is_id else []):
        file = os.path.join(directory, name)
        if name in ("\0",) or "\0" in file or not (os.path.splitext(name)[1] and os.path.isfile(file)):
            continue
        if allow_outside or below(os.path.realpath(file), photos):
            return file
        if name == base:
            return None
    return ""


@cache
def unique_photos(root: Path, allow_outside: bool) -> dict[str, str]:
    """Photos by their name if one folder has it, of the folders that are not reached through links."""
    names: dict[str, list[str]] = {}
    for directory, _, files in os.walk(root / "photos"):
        for name in files:
            file = os.path.join(directory, name)
            inside = allow_outside or below(os.path.realpath(file), str(root / "photos"))
            if os.path.splitext(name)[1].lower() in SUFFIXES and inside and os.path.isfile(file):
                names.setdefault(name, []).append(file)
    return {name: files[0] for name, files in names.items() if len(files) == 1}


def anywhere(root: Path, path: str, is_id: bool, allow_outside: bool) -> str:
    """The photo of a name that one folder has."""
    base = path.rstrip("/").rpartition("/")[2]
    unique, names = unique_photos(root, allow_outside), [base, *(names_of_id(base) if is_id and base else [])]
    return next((unique[name] for name in names if name in unique), "")


def expected(root: Path, name: str, path: str, allow_outside: bool) -> tuple[str, bool]:
    """Photo of one row alone, and whether the row leads outside, by the description of `PhotoFinder.find`."""
    photos, outside = str(root / "photos"), False
    for folder, each, is_id in ((photos, path, False), (photos, name, True), (str(root / "table"), path, False)):
        photo = in_folder(root, folder, each, is_id, allow_outside) if each else ""
        if photo:
            return photo, outside
        outside |= photo is None
    return anywhere(root, path, False, allow_outside) or anywhere(root, name, True, allow_outside), outside


@pytest.mark.parametrize("allow_outside", [False, True])
def test_rows_of_any_number_are_found_as_each_is_alone(root: Path, allow_outside: bool) -> None:
    cells = [head.replace("{root}", str(root)) + name for head in HEADS for name in NAMES]
    others = random.Random(0).sample(cells, len(cells))
    rows = [*((cell, "") for cell in cells), *(("", cell) for cell in cells), *zip(cells, others, strict=True)]
    ids, paths = [name for name, _ in rows], [path for _, path in rows]
    photos, outside = PhotoFinder(root / "photos", allow_outside).find(ids, paths, root / "table")
    for row, *found in zip(rows, photos, outside, strict=True):
        assert tuple(found) == expected(root, *row, allow_outside), row
    assert any(outside) != allow_outside and len(set(photos)) > 15
    if not allow_outside:
        assert all(below(os.path.realpath(photo), str(root / "photos")) for photo in photos if photo)


def test_an_absolute_path_of_the_root_is_not_one_of_the_folder(root: Path) -> None:
    finder = PhotoFinder(root / "photos")
    assert finder.find(["", ""], ["a.png", "/a.jpg"], root / "table")[0][0] == str(root / "photos" / "a.png")
    assert finder.find(["", ""], ["/b.tif", "a.png"], root / "table")[0][1] == str(root / "photos" / "a.png")
