"""Open what a service needs: a locator, and the background of its pages."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jzi.errors import ConfigError, ImageryError, ModelError
from jzi.refine.info import INFO
from jzi.store.model_config import CONFIG
from jzi.workspace.inputs import imagery_of
from jzi.workspace.models.hub import local_folder
from jzi.workspace.models.locators import model_folder, open_locator
from jzi.workspace.setup.settings import FILE
from jzi.workspace.stages.refiner import RefineRequest, refiner_folder

if TYPE_CHECKING:
    from jzi.encode.rasters.imagery import Imagery
    from jzi.locate.locator import Locator


def open_service(
    model: Path | None,
    config_file: Path,
    *,
    cache: str | None,
    retriever: Path | None,
    approximate: bool,
    experts: Sequence[str],
    zoom: Path | None,
    fuse: bool,
    refine: RefineRequest | None,
    imagery: Sequence[str],
) -> tuple[Locator, Imagery | None, str]:
    """Open a locator, its encoder included, and a background.

    Args:
        model: as the following ones as for `jzi.workspace.models.locators.open_locator`.
        config_file: a jzi.toml, which need not exist.
        cache: cache to read the map from.
        retriever: folder of a retriever to use instead of a zoom model.
        approximate: search the retriever's graph.
        experts: names of a zoom model's experts to fuse.
        zoom: folder of a zoom model that bounds the search of a retriever.
        fuse: multiply the probabilities of the zoom and the retriever instead.
        refine: refine candidates to metres.
        imagery: rasters of the background; by default the map of `config_file`, if that can be read: a model needs
            none, and the map may be on another machine.

    Returns:
        The locator, the background (None for a plain one), and why there is none.

    Raises:
        ConfigError: options contradict one another.
        JziError: the model, the cache or the rasters cannot be used.
    """
    locator = open_locator(
        model, config_file, cache=cache, retriever=retriever, approximate=approximate, experts=experts, zoom=zoom,
        fuse=fuse, refine=refine, imagery=imagery,
    )  # fmt: skip
    locator.encoder  # noqa: B018 - loaded here
    try:
        return locator, imagery_of(locator.expert.area, imagery, config_file), ""
    except (ConfigError, ImageryError) as error:
        if imagery:
            raise
        return locator, None, str(error)


def reopen_service(
    digest: str, model: Path | None, config_file: Path, **options: Any
) -> tuple[Locator, Imagery | None, str]:
    """Open in another process, perhaps hours later, what `open_service` has opened in this one.

    Args:
        digest: of `service_digest`, from before it was opened here.
        model: as the following ones as for `open_service`.
        config_file: see above.
        options: see above.

    Raises:
        ModelError: it is another model by now, such as one that was trained again.
        JziError: as `open_service`.
    """
    opened = open_service(model, config_file, **options)
    if service_digest(model, config_file, options["retriever"], options["zoom"], options["refine"]) != digest:
        raise ModelError(f"{opened[0].name} has changed since the service was started: start the service again")
    return opened


def service_digest(
    model: Path | None, config_file: Path, retriever: Path | None, zoom: Path | None, refine: RefineRequest | None
) -> str:
    """SHA-256 of the records of the models that a service opens, which have the digests of all their files.

    Args:
        model: as the following ones as for `open_service`.
        config_file: see above.
        retriever: see above.
        zoom: see above.
        refine: see above.

    Raises:
        JziError: there is no such model.
    """
    folder = local_folder(retriever) if retriever else model_folder(model, config_file)
    records = [folder / CONFIG]
    if zoom:
        records.append((model_folder(None, zoom / FILE) if (zoom / FILE).exists() else zoom) / CONFIG)
    if refine is not None:
        records.append(refiner_folder(refine.folder or folder) / INFO)
    digests = [hashlib.sha256(path.read_bytes() if path.is_file() else b"").hexdigest() for path in records]
    return hashlib.sha256(" ".join(digests).encode()).hexdigest()
