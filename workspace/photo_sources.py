"""The photos that the arguments of a command name: files, folders, https URLs, and - for standard input."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Self
from urllib.parse import unquote, urlsplit

from jzi.errors import ConfigError, JziError, PhotoError
from jzi.store.photos.exif import LISTED_SUFFIXES
from jzi.store.photos.georeference import is_georeferenced
from jzi.store.photos.photo_file import WHOLE_BYTES, open_image
from jzi.store.printable import printable
from jzi.web.client import Client, HttpOptions
from jzi.web.rules import Address
from jzi.workspace.setup.settings import FILE
from jzi.workspace.setup.settings_file import load_area

#: A photo is fetched while somebody waits: two repetitions, a few seconds apart.
_OPTIONS = HttpOptions(timeout_s=20.0, total_s=120.0, retries=2)


@dataclass(frozen=True)
class PhotoSource:
    """A photo to locate.

    Attributes:
        path: its file, a temporary one if it was fetched; there is none if that failed.
        name: its name for people: the path, the URL, or "standard input".
        error: why there is nothing to open: it could not be fetched, or there is no such file; else empty.
    """

    path: Path
    name: str
    error: str = ""


class PhotoSources:
    """Finds and fetches photos; a context manager, which deletes the temporary files.

    Args:
        config_file: a jzi.toml, which need not exist: the rasters of its map are left out of folders.

    Attributes:
        left_out: files of the folders that are no photos: rasters, and pictures that jzi drew.
    """

    def __init__(self, config_file: Path) -> None:
        self.left_out: list[Path] = []
        self._config_file = config_file
        self._stack = ExitStack()
        self._folder: Path | None = None
        self._fetched: list[PhotoSource] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def find(self, arguments: Sequence[str]) -> list[PhotoSource]:
        """The photos in the order of the arguments; those of a folder, and of its subfolders, by name.

        Raises:
            PhotoError: a folder contains no photo, or standard input holds none.
            ConfigError: a URL is not one of https, or "-" is named twice.
        """
        if arguments.count("-") > 1:
            raise ConfigError("- is standard input, which holds one photo: give it once")
        sources: list[PhotoSource] = []
        for argument in arguments:
            if argument == "-":
                sources.append(self._read(sys.stdin.buffer))
            elif "://" in argument:
                sources.append(self._fetch(argument))
            elif Path(argument).is_dir():
                sources += (PhotoSource(path, str(path)) for path in self._inside(Path(argument)))
            else:
                path = Path(argument)
                error = "" if path.exists() else f"there is no photo {printable(str(path))}"
                sources.append(PhotoSource(path, str(path), error))
        return sources

    def named(self, text: str) -> str:
        """A text with the names of fetched photos in place of their temporary files."""
        for source in self._fetched:
            text = text.replace(str(source.path), printable(source.name))
        return text

    def _inside(self, folder: Path) -> list[Path]:
        files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in LISTED_SUFFIXES and file.is_file())
        files = [file for file in files if not _in_store(file.relative_to(folder))]
        rasters = {raster for each in (folder / FILE, self._config_file) for raster in _rasters(each)}
        others = [file for file in files if file.resolve() in rasters or is_georeferenced(file) or _is_drawing(file)]
        self.left_out += others
        photos = [file for file in files if file not in set(others)]
        if not photos:
            more = f": {', '.join(file.name for file in others[:3])} {_ARE[len(others) > 1]}" if others else ""
            raise PhotoError(f"there is no photo in {folder}{more}")
        return photos

    def _read(self, stream: BinaryIO) -> PhotoSource:
        if stream.isatty():
            raise PhotoError(
                "- reads a photo from standard input: pipe one into it, such as `jzi locate - < photo.jpg`"
            )
        data = stream.read(WHOLE_BYTES + 1)
        if len(data) > WHOLE_BYTES:
            raise PhotoError(f"the photo on standard input has more than {WHOLE_BYTES / 2**20:.0f} MiB: shrink it")
        if not data:
            raise PhotoError("standard input is empty: pipe a photo into it, such as `jzi locate - < photo.jpg`")
        source = self._temporary("standard input", "stdin")
        source.path.write_bytes(data)
        return source

    def _fetch(self, url: str) -> PhotoSource:
        """Fetch a photo; what is not one is refused where it is opened.

        The address may be in a private network, since whoever runs the command named it; a server on the Internet
        cannot redirect into one (`jzi.web.rules.may_follow`).
        """
        address = Address.parse(url, "the address of a photo")
        if address.scheme != "https" and not address.is_loopback:
            raise ConfigError(f"{url:.100} would be fetched unencrypted: give a URL that begins https://, or a file")
        source = self._temporary(url, Path(unquote(urlsplit(url).path)).name[-100:] or "photo")
        host = f"[{address.host}]" if ":" in address.host else address.host
        try:
            with Client(address.host, f"{address.scheme}://{host}:{address.port}", _OPTIONS) as client:
                client.save(url, source.path, limit=WHOLE_BYTES)
        except (JziError, OSError) as error:
            reason = str(error).replace(", which resumes", "")
            return PhotoSource(source.path, source.name, f"{url.partition('?')[0]:.200} cannot be fetched: {reason}")
        return source

    def _temporary(self, name: str, file: str) -> PhotoSource:
        if self._folder is None:
            self._folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="jzi-")))
        folder = self._folder / str(len(self._fetched))
        folder.mkdir()
        self._fetched.append(PhotoSource(folder / printable(file), name))
        return self._fetched[-1]


_ARE = {False: "is no photo", True: "are no photos"}


def _in_store(path: Path) -> bool:
    """Whether a path is below a cache, or a hidden file or folder."""
    return any(part.startswith(".") or part.endswith(".zarr") for part in path.parts)


def _rasters(config_file: Path) -> Iterator[Path]:
    """The files of the map that a jzi.toml names; none if it cannot be used."""
    try:
        settings = load_area(config_file)
        yield from (Path(raster).resolve() for raster in settings.rasters)
    except JziError:
        return


def _is_drawing(file: Path) -> bool:
    """Whether a PNG was drawn by Matplotlib, as those of `jzi locate --picture`, `evaluate` and `ablate` are."""
    if file.suffix.lower() != ".png":
        return False
    try:
        with open_image(file, str(file)) as image:
            return str(image.info.get("Software", "")).startswith("Matplotlib")
    except PhotoError:
        return False
