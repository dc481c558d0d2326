"""Write the report of the worst and best photos of an evaluation, from what the settings name."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from jzi.errors import JziError
from jzi.evaluate.cases import Cases
from jzi.export.gallery.page import write_gallery
from jzi.export.gallery.sources import Sources
from jzi.workspace.inputs import open_map, open_photo_files
from jzi.workspace.setup.settings import RegionSettings, Settings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jzi.locate.expert import Expert
    from jzi.store.cache.feature_cache import FeatureCache


def write_cases(
    path: Path,
    settings: Settings | RegionSettings,
    cases: Cases,
    expert: Expert,
    cache: FeatureCache,
    experts: Mapping[str, Expert],
    *,
    title: str,
) -> int:
    """Write the report of single photos.

    Imagery and photos are opened for what the report shows; what cannot be opened is left out, and the report says so.

    Args:
        path: file to write.
        settings: name the map and the photos.
        cases: the photos and their locations.
        expert: the expert whose answers are shown.
        cache: the cache that the photos are from.
        experts: experts of the model by name, whose zoom steps and nearest training photos are shown; empty for a
            retriever.
        title: title of the report.

    Returns:
        The size of the file, bytes.

    Raises:
        ExportError: the file cannot be written.
    """
    from jzi.decode.expert import ZoomExpert
    from jzi.locate.joint.fusion import FusedExpert
    from jzi.retrieve.vpr import VprExpert

    sources = Sources()
    if isinstance(zoom := experts.get("zoom"), ZoomExpert):
        sources.zoom, sources.load_encoder = zoom, lambda: zoom.model.load_encoder(str(zoom.table.device))
        if isinstance(expert, FusedExpert) and zoom not in expert.experts:
            sources.notes.append(
                "The zoom has no weight in the answers of this model: its steps are shown all the same."
            )
    if isinstance(vpr := experts.get("vpr"), VprExpert):
        sources.vpr = vpr
    frame = cache.queries.encoded()
    training = frame[frame["split"] == "train"]
    sources.training = (
        training["id"].astype(str).tolist(),
        training["latitude"].to_numpy(np.float64),
        training["longitude"].to_numpy(np.float64),
    )
    try:
        sources.photos = {name: Path(file) for name, file in open_photo_files(settings).items()}
    except JziError as error:
        sources.notes.append(f"Photos are not shown: {error}")
    with contextlib.ExitStack() as stack:
        if not isinstance(settings, Settings) or expert.area == settings.pyramid:
            try:
                sources.imagery = stack.enter_context(open_map(settings, expert.area))
            except JziError as error:
                sources.notes.append(f"The map is not shown: {error}")
        return write_gallery(path, cases, sources, title=title)
