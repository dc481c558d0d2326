"""Train the refiner that looks along rays, on the images of an area and of others beside it."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jzi.errors import ModelError
from jzi.refine.info import RefinerInfo
from jzi.store.plain import plain
from jzi.workspace.inputs import open_imagery, open_photo_table
from jzi.workspace.setup.settings import Settings

if TYPE_CHECKING:
    from jzi.refine.networks.rays import RayRefiner
    from jzi.refine.ray_config import RayConfig
    from jzi.train.refine.refiner import RefinerReport


def train_ray_refiner(
    settings: Settings, others: Sequence[Settings], folder: Path, *, progress: bool = True
) -> RefinerReport:
    """Train a refiner on the images of areas; no cache is needed.

    An interrupted run is resumed, a finished one not repeated.

    Args:
        settings: the settings; the section [refine] has the architecture, [refiner] the training.
        others: further areas, of which only the map and the photos matter.
        folder: the refiner's folder to write.
        progress: whether to show progress bars.

    Raises:
        JziError: as `jzi.train.refine.refiner.train_refiner`.
    """
    from jzi.train.encoders.area import new_folder
    from jzi.train.refine.ray_images import RaySource, RaySources
    from jzi.train.refine.rays import RayTask
    from jzi.train.refine.refiner import check_photos, train_refiner

    refine, config = settings.refine, settings.refiner
    network = refine.ray_config()
    init = settings.path(config.init) if config.init else None
    with contextlib.ExitStack() as stack:
        parts = []
        with new_folder(folder):  # not around the training: what is trained stays when it is interrupted
            for area in (settings, *others):
                imagery = stack.enter_context(open_imagery(area))
                parts.append(RaySource.load(imagery, open_photo_table(area).inside(area.pyramid), refine, config))
            source = RaySources(tuple(parts))
            check_photos(source)
        return train_refiner(
            source,
            lambda: _make(network, init),
            folder,
            refine,
            config,
            RefinerInfo(kind="rays", config=network, window_m=refine.window_m, heading_temperature=1.0),
            fingerprint={**{f"refine.{name}": value for name, value in plain(network).items()}, **source.fingerprint},
            start=init,
            settings=settings.to_toml(),
            duplicates=sum(part.splits.duplicates for part in parts),
            progress=progress,
            make_task=RayTask,
        )


def _make(network: RayConfig, init: Path | None) -> RayRefiner:
    """A new refiner, or one with the weights of another whose layers are the same."""
    from jzi.refine.networks.files import load_refiner
    from jzi.refine.networks.rays import RayRefiner

    refiner = RayRefiner(network)
    if init is None:
        return refiner
    trained, _ = load_refiner(init)
    try:
        refiner.load_state_dict(trained.state_dict())
    except RuntimeError as error:
        raise ModelError(
            f"refiner.init {init} has another architecture than the section [refine]: leave it out"
        ) from error
    return refiner
