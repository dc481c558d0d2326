"""Imagery that a command names, with its licence and attribution: rasters, and the JSON files that describe them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from jzi.curate.folder import MAX_INFO, Source
from jzi.errors import DatasetError, first_line
from jzi.store.photos.photo_file import open_regular_file

#: Rasters that a JSON file of the same name may describe, in order of preference.
SUFFIXES = (".vrt", ".tif", ".tiff", ".jp2")

#: Most sources that a file may have.
MAX_SOURCES = 1000


def read_imagery(names: Sequence[str]) -> tuple[list[str], list[Source]]:
    """Rasters and their sources.

    A raster map.vrt is described by map.json beside it, as `jzi dataset imagery` writes it, if that is there; and the
    name of such a file stands for the raster beside it.

    Args:
        names: rasters, in any form that `--map` of `jzi init` takes, and JSON files.

    Raises:
        DatasetError: a JSON file describes no imagery, or there is no raster beside it.
    """
    rasters: list[str] = []
    sources: list[Source] = []
    for name in names:
        if name.lower().endswith(".json"):
            described = Path(name)
            beside = [described.with_suffix(suffix) for suffix in SUFFIXES]
            raster = next((path for path in beside if path.exists()), None)
            sources += read_sources(described)
            if raster is None:
                raise DatasetError(f"there is no raster beside {name}, such as {beside[0].name}: name it, not {name}")
            rasters.append(str(raster))
        else:
            rasters.append(name)
            described = Path(name).with_suffix(".json")
            if "://" not in name and not name.startswith("/vsi") and Path(name).is_file() and described.is_file():
                sources += read_sources(described)
    return rasters, list({source.model_dump_json(): source for source in sources}.values())


def read_sources(file: Path) -> list[Source]:
    """The sources of imagery in a JSON file: one object, a list of them, or the list `sources` of an object.

    Raises:
        DatasetError: the file cannot be read, or has none.
    """
    try:
        with open_regular_file(file) as opened:
            content = opened.read(MAX_INFO + 1)
        if len(content) > MAX_INFO:
            raise DatasetError(f"{file} is larger than {MAX_INFO} bytes: it describes no imagery")
        values: Any = json.loads(content)
        if isinstance(values, dict):
            values = values.get("sources", values.get("source", values))
        values = values if isinstance(values, list) else [values]
        sources = [Source.model_validate_json(json.dumps(each)) for each in values[:MAX_SOURCES]]
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "its text"
        raise DatasetError(f"{file} describes no imagery ({where}: {first['msg']}): name the raster") from error
    except (OSError, ValueError, RecursionError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or first_line(error)
        raise DatasetError(f"{file} describes no imagery: {reason}") from error
    return [source for source in sources if source.kind == "imagery"]
