"""A data set that is being published: its folder, which is resumed or refused, its photos, and what was left out."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tqdm import tqdm

from jzi.curate.folder import TABLE, DatasetFolder, Source, cannot_write
from jzi.curate.splits import check_split
from jzi.encode.rasters.imagery import Imagery
from jzi.errors import DatasetError, PhotoError, first_line
from jzi.store.disk.files import file_sha256, write_whole
from jzi.store.geometry.pyramid import Pyramid
from jzi.store.photos.photo_file import open_image, open_regular_file
from jzi.store.photos.splits import SPLITS
from jzi.store.plain import plain

Layout = Literal["huggingface", "just-zoom-in", "vigor"]

#: What is being published, in the published folder; and its version.
MANIFEST, FORMAT = "publication.json", 1

#: Largest manifest, bytes.
MAX_BYTES = 2**20

#: Names of files that no file system changes; longer ones are cut.
_SAFE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
_KEPT = 80

OUTSIDE = "outside the area"
NO_IMAGERY = "no imagery where they were taken"


@dataclass(frozen=True)
class Publication:
    """A published data set.

    Attributes:
        layout: one of `Layout`.
        path: its folder.
        photos: number of photos of train, val and test.
        left_out: number of photos that are not in it, by the reason.
        files: number of its shards or tiles.
        what: what these are.
        resumed: whether an interrupted publication was continued, or a complete one was there.
    """

    layout: Layout
    path: Path
    photos: dict[str, int]
    left_out: dict[str, int]
    files: int
    what: str
    resumed: bool


@dataclass(frozen=True)
class Request:
    """What to publish.

    Attributes:
        folder: the data set, with a split.
        output: the folder to write.
        title: of the data set; by default the name of its folder.
        rasters: names of imagery.
        imagery_sources: where it is from, for the card.
        area: photos outside of it are left out; None for no area of one's own.
        remote: whether rasters may be URLs, or name files elsewhere.
    """

    folder: DatasetFolder
    output: Path
    title: str = ""
    rasters: Sequence[str] = ()
    imagery_sources: Sequence[Source] = ()
    area: Pyramid | None = None
    remote: bool = False

    @property
    def name(self) -> str:
        """The title, or the name of the data set's folder."""
        return self.title or self.folder.path.resolve().name or "photos"


@dataclass(frozen=True)
class Photos:
    """The photos to publish.

    Attributes:
        frame: their rows.
        files: (photo,) their files.
        sizes: (photo,) their bytes.
        left_out: number of photos of the data set that are not among them, by the reason.
    """

    frame: pd.DataFrame
    files: NDArray[np.object_]
    sizes: NDArray[np.int64]
    left_out: dict[str, int]

    def __len__(self) -> int:
        return len(self.frame)

    def take(self, kept: NDArray[np.bool_], reason: str) -> Photos:
        """Those of a mask; the others are counted as left out.

        Raises:
            DatasetError: none is left.
        """
        count = int((~kept).sum())
        left_out = {**self.left_out, **({reason: self.left_out.get(reason, 0) + count} if count else {})}
        if not kept.any():
            reasons = ", ".join(f"{name}: {number}" for name, number in left_out.items())
            raise DatasetError(f"no photo can be published ({reasons}): give imagery or an area that has them")
        return Photos(self.frame[kept].reset_index(drop=True), self.files[kept], self.sizes[kept], left_out)

    def count(self) -> dict[str, int]:
        """Number of photos of train, val and test."""
        return {name: int((self.frame["split"] == name).sum()) for name in SPLITS}


def find_photos(request: Request) -> Photos:
    """Find the files of the photos to publish, and check that each can be opened; those outside the area are left out.

    Raises:
        DatasetError: the photos have no split, a file is missing or no photo, or all are outside of the area.
    """
    folder, area = request.folder, request.area
    check_split(folder)
    files: list[Path | None] = []
    sizes, problems = [], []
    for path in tqdm(folder.photos["path"], unit="photo", desc="photos", delay=2):
        try:
            file = folder.photo(path)
            with open_image(file, str(file)):
                pass
            files.append(file)
            sizes.append(file.stat().st_size)
        except (DatasetError, PhotoError) as error:
            problems.append(str(error))
            files.append(None)
            sizes.append(0)
    if problems:
        raise DatasetError(f"{len(problems)} of {len(files)} photos cannot be published; the first: {problems[0]}")
    photos = Photos(folder.photos.reset_index(drop=True), np.array(files, object), np.array(sizes, np.int64), {})
    if area is not None:
        inside = area.cells_at(photos.frame["latitude"], photos.frame["longitude"])[0] >= 0
        photos = photos.take(inside, OUTSIDE)
    return photos


def fingerprint(layout: Layout, request: Request, photos: Photos, imagery: Imagery | None = None) -> dict[str, Any]:
    """What distinguishes one publication from another: table, photos, area, imagery and title.

    Photos and imagery count by their sizes, imagery by its time of modification too.
    """
    sizes = hashlib.sha256(photos.sizes.tobytes()).hexdigest()
    rasters = []
    for raster in imagery.rasters if imagery else ():
        for name in raster.files or [raster.path]:
            stat = Path(name).stat() if Path(name).is_file() else None
            rasters.append([Path(name).name, stat.st_size if stat else -1, stat.st_mtime_ns if stat else -1])
    return {
        "layout": layout,
        "title": request.name,
        "table": file_sha256(request.folder.path / TABLE),
        "photos": sizes,
        "area": asdict(request.area) if request.area else None,
        "imagery": rasters,
    }


def begin(output: Path, values: dict[str, Any]) -> bool:
    """Make the folder of a publication, or find that it is the one to resume.

    Args:
        output: the folder.
        values: of `fingerprint`.

    Returns:
        Whether it was there.

    Raises:
        DatasetError: it is a file, has something else in it, or cannot be written.
    """
    file = output / MANIFEST
    try:
        output.mkdir(parents=True, exist_ok=True)
        if any(path.name != f".{MANIFEST}.partial" for path in output.iterdir()):
            if not file.exists():
                raise DatasetError(f"{output} exists and is no publication of jzi: give another folder, or remove it")
            if _read(file).get("publication") != plain(values):
                raise DatasetError(
                    f"{output} holds another publication: its photos, split, layout, title, area or imagery differ; "
                    "give another folder, or remove it"
                )
            return True
        _write(file, {"format": FORMAT, "complete": False, "publication": values})
    except OSError as error:
        raise DatasetError(cannot_write(output, error)) from error
    return False


def finish(output: Path, values: dict[str, Any], publication: Publication) -> Publication:
    """Mark a publication as complete."""
    result = {name: getattr(publication, name) for name in ("photos", "left_out")}
    _write(output / MANIFEST, {"format": FORMAT, "complete": True, "publication": values, **result})
    return publication


def _read(file: Path) -> dict[str, Any]:
    try:
        with open_regular_file(file) as opened:
            values = json.loads(opened.read(MAX_BYTES))
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{file} is damaged ({first_line(error)}): remove the folder, and publish anew") from error
    return values if isinstance(values, dict) else {}


def _write(file: Path, values: dict[str, Any]) -> None:
    text = json.dumps(plain(values), indent=2) + "\n"
    write_whole(file, lambda path: path.write_text(text, encoding="utf-8"))


def place(source: Path, target: Path) -> None:
    """Put a file into a publication, as a hard link where the file system allows it, else as a copy.

    A file that is there is kept: it is complete, since both ways are atomic.

    Raises:
        OSError: it cannot be written.
    """
    if target.exists():
        return
    real = source.resolve()  # a hard link to a symbolic link would be one
    try:
        os.link(real, target)
    except FileExistsError:
        return
    except OSError:  # another file system, or one without hard links
        write_whole(target, lambda file: shutil.copyfile(real, file))


def file_names(ids: Sequence[str]) -> list[str]:
    """(photo,) names of files, without a suffix, that no two photos share, on any file system.

    An id is its own name if it can be; else what cannot be in a name is replaced, and a part of its SHA-256 added.
    """
    cleaned = [re.sub(r"[^A-Za-z0-9._-]", "_", name).lstrip(".-")[:_KEPT] or "photo" for name in ids]
    lower = pd.Series([name.lower() for name in cleaned], dtype=object)
    names = []
    for name, clean, twice in zip(ids, cleaned, lower.duplicated(keep=False), strict=True):
        safe = _SAFE.fullmatch(name) and clean == name and not twice
        names.append(name if safe else f"{clean}-{hashlib.sha256(name.encode(errors='replace')).hexdigest()[:8]}")
    return names


def published(request: Request, photos: Photos) -> DatasetFolder:
    """The data set with the published photos only, for the card."""
    notes = [f"{count} photos of the data set are left out: {reason}" for reason, count in photos.left_out.items()]
    info = request.folder.info.model_copy(update={"notes": (*request.folder.info.notes, *notes)})
    return replace(request.folder, photos=photos.frame, info=info)
