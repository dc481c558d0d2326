"""Write the report of the worst and best photos of an evaluation, from what the settings name."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from jzi.errors import JziError
from jzi.evaluate.cases import find_cases
from jzi.export.gallery.page import write_gallery
from jzi.export.gallery.sources import Sources
from jzi.store.geometry.pyramid import Pyramid
from jzi.workspace.inputs import open_imagery, open_photo_files

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jzi.evaluate.photos import LabelledPhotos
    from jzi.locate.expert import Expert
    from jzi.store.cache.feature_cache import FeatureCache
    from jzi.workspace.setup.settings import Settings


def write_failures(
    path: Path,
    settings: Settings,
    expert: Expert,
    photos: LabelledPhotos,
    cache: FeatureCache,
    experts: Mapping[str, Expert],
    *,
    count: int,
    radius: float,
    beams: int | None,
    title: str,
) -> int:
    """Locate photos, and write the report of the worst and best ones.

    Imagery and photos are opened for what the report shows; what cannot be opened is left out, and the report says so.

    Args:
        path: file to write.
        settings: name the map and the photos.
        expert: the expert whose answers are shown.
        photos: the photos that are located.
        cache: the cache that they are from.
        experts: experts of the model by name, whose zoom steps and nearest training photos are shown; empty for a
            retriever.
        count: number of photos, at most.
        radius: radius of the answer, metres.
        beams: see `LocateOptions`.
        title: title of the report.

    Returns:
        The size of the file, bytes.

    Raises:
        ConfigError: a number is out of range.
        ExportError: the file cannot be written.
    """
    from jzi.decode.expert import ZoomExpert
    from jzi.locate.joint.fusion import FusedExpert
    from jzi.retrieve.vpr import VprExpert

    cases = find_cases(expert, photos, count, radius=radius, beams=beams)
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
        if isinstance(expert.area, Pyramid) and expert.area == settings.pyramid:
            try:
                sources.imagery = stack.enter_context(open_imagery(settings))
            except JziError as error:
                sources.notes.append(f"The map is not shown: {error}")
        return write_gallery(path, cases, sources, title=title)
