"""Open what a service needs: a locator, and the background of its pages."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jzi.errors import ConfigError, ImageryError
from jzi.workspace.inputs import imagery_of
from jzi.workspace.models.locators import open_locator
from jzi.workspace.stages.refiner import RefineRequest

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
